"""history.jsonl: written while a run goes on, and read again as operations, faults, phases and sightings."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from chaos.history.records import Call, Event, Fault, Final, Line, Logged, Outcome, Phase, Return, Seen, Stage
from chaos.history.run import RunUnreadable

NAME = "history.jsonl"
NEVER_NS = 2**63 - 1
"""When an operation ended whose end nobody knows: after everything else."""

Item = TypeVar("Item")


class HistoryWriter:
    """Appends lines, each handed to the operating system at once: what was called is known even when the run is killed.

    For one thread. Times are taken here, when the line is written: before the request leaves, after the answer came.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileExistsError: a history is written once."""
        self._file = path.open("xb")
        self._encode = msgspec.json.Encoder().encode
        self._ops = 0

    def call(
        self,
        *,
        process: int,
        workload: str,
        kind: str,
        target: str,
        key: str = "",
        args: Mapping[str, Any] | None = None,
    ) -> int:
        """Write that an operation begins. Returns its number, for `ret`."""
        self._ops += 1
        line = Call(self._ops, process, time.monotonic_ns(), workload, kind, target, key, dict(args or {}))
        self._write(line)
        return self._ops

    def ret(
        self,
        op: int,
        outcome: Outcome,
        *,
        index: int = 0,
        replay: bool = False,
        answer: Mapping[str, Any] | None = None,
        error: str = "",
        age_ms: int = -1,
    ) -> None:
        self._write(Return(op, time.monotonic_ns(), outcome, index, replay, dict(answer or {}), error, age_ms))

    def fault(
        self,
        number: int,
        nemesis: str,
        did: Literal["begin", "bite", "end", "failed"],
        *,
        targets: Sequence[str] = (),
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        self._write(Fault(number, time.monotonic_ns(), nemesis, did, list(targets), dict(detail or {})))

    def phase(self, name: Stage) -> None:
        self._write(Phase(time.monotonic_ns(), name))

    def seen(
        self,
        name: str,
        *,
        up: bool,
        state: str = "",
        term: int = 0,
        commit: int = 0,
        applied: int = 0,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        self._write(Seen(time.monotonic_ns(), name, up, state, term, commit, applied, dict(detail or {})))

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Line) -> None:
        self._file.write(self._encode(line) + b"\n")
        self._file.flush()


class Op(Struct, gc=False):
    """One operation: its call and, where there is one, its return. Without, it is unknown and never ended."""

    op: int
    process: int
    workload: str
    kind: str
    target: str
    key: str
    args: dict[str, Any]
    call_ns: int
    return_ns: int = NEVER_NS
    outcome: Outcome = "unknown"
    index: int = 0
    replay: bool = False
    answer: dict[str, Any] = {}
    error: str = ""
    age_ms: int = -1

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    def said(self) -> dict[str, Any]:
        """What an example in a verdict shows of it."""
        shown = ("op", "process", "workload", "kind", "target", "key", "args", "outcome", "index", "answer", "error")
        return {name: value for name in shown if (value := getattr(self, name)) not in ("", 0, {})}


class History(Struct):
    """ops: in the order of their calls. torn: lines at the end that were cut short (0 or 1)."""

    ops: list[Op]
    faults: list[Fault]
    phases: list[Phase]
    seen: list[Seen]
    torn: int = 0

    def phase_ns(self, name: Stage) -> int | None:
        """When a phase began, or None."""
        return next((phase.at_ns for phase in self.phases if phase.name == name), None)


def read_history(path: Path) -> History:
    """Read a history; a last line that was cut short is left out and counted.

    Raises RunUnreadable: no such file, a line that is none, a return without its call, a second call or return.
    """
    history = History([], [], [], [])
    by_op: dict[int, Op] = {}
    lines = _Lines[Line](path, Line)
    for number, line in lines:
        match line:
            case Call():
                if line.op in by_op:
                    raise RunUnreadable(f"{path}, line {number}: operation {line.op} is called a second time")
                op = Op(line.op, line.process, line.workload, line.kind, line.target, line.key, line.args, line.at_ns)
                by_op[line.op] = op
                history.ops.append(op)
            case Return():
                _ends(by_op, line, f"{path}, line {number}")
            case Fault():
                history.faults.append(line)
            case Phase():
                history.phases.append(line)
            case Seen():
                history.seen.append(line)
    history.torn = lines.torn
    return history


def _ends(by_op: dict[int, Op], line: Return, where: str) -> None:
    op = by_op.get(line.op)
    if op is None:
        raise RunUnreadable(f"{where}: operation {line.op} returns and was never called")
    if op.return_ns != NEVER_NS:
        raise RunUnreadable(f"{where}: operation {line.op} returns a second time")
    if line.at_ns < op.call_ns:
        raise RunUnreadable(f"{where}: operation {line.op} returns {op.call_ns - line.at_ns} ns before its call")
    op.return_ns, op.outcome = line.at_ns, line.outcome
    op.index, op.replay, op.answer, op.error, op.age_ms = line.index, line.replay, line.answer, line.error, line.age_ms


def read_log(path: Path) -> list[Logged]:
    """Lines of log.jsonl. Raises RunUnreadable, also for a last line cut short: it is written after the run."""
    return _whole(path, Logged)


def read_events(path: Path) -> list[Event]:
    """Lines of events.jsonl; a last line cut short is left out. Raises RunUnreadable."""
    return [line for _, line in _Lines[Event](path, Event)]


def write_lines(path: Path, lines: Sequence[Struct]) -> None:
    """Write log.jsonl or events.jsonl at once."""
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))


def read_final(path: Path) -> Final:
    """Raises RunUnreadable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Final)
    except OSError as error:
        raise RunUnreadable(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise RunUnreadable(f"{path}: {error}") from error


def write_final(path: Path, final: Final) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(final), indent=1) + b"\n")


def _whole(path: Path, kind: type[Item]) -> list[Item]:
    lines = _Lines[Item](path, kind)
    found = [line for _, line in lines]
    if lines.torn:
        raise RunUnreadable(f"{path}: the last line is cut short: the run ended while it wrote this file")
    return found


class _Lines(Generic[Item]):
    """(number, line) of a file of JSON lines. `torn`, once all are read: 1 if the last was cut short."""

    def __init__(self, path: Path, kind: Any) -> None:
        self._path = path
        self._decode = msgspec.json.Decoder(kind).decode
        self.torn = 0

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except OSError as error:
            raise RunUnreadable(f"{self._path}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if not line and number == len(lines):
                return
            try:
                yield number, self._decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                if number == len(lines):
                    self.torn = 1
                    return
                raise RunUnreadable(f"{self._path}, line {number}: {error}") from error
