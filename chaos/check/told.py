"""All that a run's folder tells, read once; what of it is missing, and why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from chaos.history.file import History, Op, read_events, read_final, read_history, read_log
from chaos.history.records import Event, Final, Logged
from chaos.history.run import Run, RunUnreadable, read_run

COMMANDS = frozenset(
    {
        "open_account", "deposit", "transfer", "request_withdrawal", "close_withdrawal", "place_order", "replace_order",
        "cancel_order", "cancel_orders", "add_asset", "add_instrument", "change_instrument", "set_reference",
    }
)  # fmt: skip
"""Kinds of operations that change the ledger, as clients call them."""

Found = TypeVar("Found")


class Told(Struct):
    """missing: file to why it can't be read; what it would have held is empty. log_is_whole: no entry is missing.

    commands: operations that change the ledger, by their key.
    """

    run: Run
    history: History
    log: list[Logged] = []
    events: list[Event] = []
    final: Final = Final(complete=False)
    disagreement: Any = None
    log_is_whole: bool = True
    missing: dict[str, str] = {}
    commands: dict[str, list[Op]] = {}

    def __post_init__(self) -> None:
        for op in self.history.ops:
            if op.key and op.kind in COMMANDS:
                self.commands.setdefault(op.key, []).append(op)

    def lacks(self, *files: str) -> str:
        """Why one of these files can't be judged, or an empty string."""
        return "; ".join(self.missing[name] for name in files if name in self.missing)


def read_told(folder: Path) -> Told:
    """Raises RunUnreadable: no run.json or history.jsonl, or one of them is broken."""
    told = Told(read_run(folder), read_history(folder / "history.jsonl"))

    def read(name: str, reader: Callable[[Path], Found], otherwise: Found) -> Found:
        try:
            return reader(folder / name)
        except RunUnreadable as error:
            told.missing[name] = str(error)
            return otherwise

    told.log = read("log.jsonl", read_log, [])
    told.events = read("events.jsonl", read_events, [])
    told.final = read("final.json", read_final, Final(complete=False))
    told.disagreement = _json(folder / "log-disagreement.json")
    about = _json(folder / "log-about.json")
    told.log_is_whole = bool(about["complete"]) if about else not holes(told.log)
    return told


def holes(log: list[Logged]) -> list[tuple[int, int]]:
    """Indexes that no line has, as (first, last). The first entry of all is there before any command."""
    found = []
    last = 1
    for line in log:
        if line.index > last + 1:
            found.append((last + 1, line.index - 1))
        last = line.index
    return found


def _json(path: Path) -> Any:
    """What a file says that need not be there. Raises RunUnreadable."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes())
    except msgspec.MsgspecError as error:
        raise RunUnreadable(f"{path}: {error}") from error
