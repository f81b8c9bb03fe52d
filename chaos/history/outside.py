"""Histories of other suites: Jepsen's logs of a register, and EDN maps per line as Porcupine and Knossos keep them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from chaos.history.run import RunUnreadable

Format = Literal["porcupine", "knossos"]
"""porcupine: get, put and append on keys of a map. knossos: read, write and cas on one register."""
DOES: dict[Format, tuple[str, ...]] = {"porcupine": ("get", "put", "append"), "knossos": ("read", "write", "cas")}

# INFO  jepsen.util - 3  :invoke  :cas  [1 2]
LOG_LINE = re.compile(
    r"^INFO\s+jepsen\.util\s+-\s+(?P<process>\d+)\s+:(?P<type>\w+)\s+:(?P<f>\w+)\s+(?P<value>.*?)\s*$"
)
# {:process 0, :type :ok, :f :append, :key "0", :value "x 0 0 y"}
EDN_FIELD = re.compile(r':(?P<name>[a-z]+)\s+(?P<value>"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^\s,{}]+)')


class Step(Struct, frozen=True):
    """One line: an operation begins (`invoke`) or ends (`ok`, `fail`, `info`). value: as text; nil is empty."""

    process: str
    type: str
    does: str
    key: str
    value: str


class OutsideOp(Struct):
    """begin_at, end_at: numbers of lines; end_at None: nobody knows how it ended."""

    process: str
    does: str
    key: str
    asked: str
    begin_at: int
    end_at: int | None = None
    outcome: Literal["ok", "fail", "unknown"] = "unknown"
    said: str = ""


def read_outside(path: Path, format: Format) -> list[OutsideOp]:
    """Raises RunUnreadable: no such file, not a line of this format in it, an end without a beginning."""
    ops: list[OutsideOp] = []
    open_ops: dict[str, OutsideOp] = {}
    for number, step in _steps(path, format):
        where = f"{path}, line {number}"
        if step.type == "invoke":
            if step.process in open_ops:
                raise RunUnreadable(f"{where}: process {step.process} begins twice")
            op = OutsideOp(step.process, step.does, step.key, step.value, number)
            open_ops[step.process] = op
            ops.append(op)
            continue
        ending = open_ops.pop(step.process, None)
        if ending is None or step.type not in ("ok", "fail", "info") or step.does != ending.does:
            raise RunUnreadable(f"{where}: process {step.process} ends what it never began")
        if step.type != "info":
            ending.end_at, ending.said = number, step.value
            ending.outcome = "ok" if step.type == "ok" else "fail"
    return ops


def _steps(path: Path, format: Format) -> Iterator[tuple[int, Step]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunUnreadable(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    found = 0
    for number, line in enumerate(lines, 1):
        step = _step(line)
        if step is None:
            continue
        if step.does not in DOES[format]:
            raise RunUnreadable(f"{path}, line {number}: {format} histories have {DOES[format]}, not {step.does}")
        found += 1
        yield number, step
    if not found:
        raise RunUnreadable(f"{path}: no line of it is an operation of the format {format}")


def _step(line: str) -> Step | None:
    if match := LOG_LINE.match(line):
        return Step(match["process"], match["type"], match["f"], "", _value(match["value"]))
    if not line.lstrip().startswith("{"):
        return None
    fields = {field["name"]: field["value"] for field in EDN_FIELD.finditer(line)}
    if not {"process", "type", "f"} <= set(fields):
        return None
    plain = {name: fields.get(name, "").lstrip(":") for name in ("process", "type", "f")}
    return Step(
        plain["process"], plain["type"], plain["f"], _value(fields.get("key", "")), _value(fields.get("value", ""))
    )


def _value(text: str) -> str:
    if text == "nil":
        return ""
    return text[1:-1] if text.startswith('"') else text
