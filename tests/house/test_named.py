"""Everything that has a name outside is named in a test: codes, reasons, commands of the machine and of the line."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import typer
from typer.main import get_command

from node.cli.main import app
from statemachine.codes import Code
from statemachine.commands import AnyCommand
from statemachine.events import AnyEvent
from statemachine.types import Reason

TESTS = Path(__file__).parents[1]
RULES = ("*.txt", "*.py")

NOT_ANSWERED = {Code.ok, Code.price_not_allowed}
"""ok is no refusal; a market order may name a price, so that nothing answers price_not_allowed yet."""


def unnamed(names: Iterable[str], folder: Path, patterns: Iterable[str]) -> list[str]:
    """The names that occur as whole words in no file of a folder."""
    files = [path for pattern in patterns for path in folder.rglob(pattern)]
    words = set(re.findall(r"[A-Za-z_]+", "\n".join(path.read_text("utf-8") for path in files)))
    return sorted(set(names) - words)


def test_each_refusal_is_in_a_conversation() -> None:
    names = [code.name for code in Code if code not in NOT_ANSWERED]
    assert not unnamed(names, TESTS / "statemachine" / "conversations", ["*.txt"])


def test_each_reason_is_in_a_test_of_the_machine() -> None:
    assert not unnamed([reason.name for reason in Reason], TESTS / "statemachine", RULES)


def test_each_command_and_event_is_in_a_test_of_the_machine() -> None:
    names = [kind.__name__ for union in (AnyCommand, AnyEvent) for kind in get_args(union)]
    assert not unnamed(names, TESTS / "statemachine", RULES)


def leaves(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """("order place", command) of each command that does something."""
    if isinstance(command, typer.core.TyperGroup):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), (*path, name))
    else:
        yield " ".join(path), command


LINES = dict(leaves(get_command(app)))


def test_each_command_line_explains_itself_and_speaks_json() -> None:
    mute = [line for line, command in LINES.items() if not (getattr(command, "help", None) or "").strip()]
    assert not mute, "no help text"
    # `node` and `gateway run` are servers: they have no data to print, and their log is JSON lines already.
    options = {line: {opt for p in getattr(command, "params", []) for opt in p.opts} for line, command in LINES.items()}
    assert [line for line, known in options.items() if "--json" not in known] == ["node", "gateway run"]


def test_each_command_line_is_tried_in_a_test() -> None:
    assert len(LINES) > 20
    words = [word for line in LINES for word in line.split()]
    assert not unnamed([word for word in words if "-" not in word], TESTS, ["test_*.py"])


def test_a_name_that_is_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").write_text("insufficient_funds\n", "utf-8")
    assert unnamed(["insufficient_funds", "funds"], tmp_path, ["*.txt"]) == ["funds"]
