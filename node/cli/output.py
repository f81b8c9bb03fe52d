"""How the command line speaks: data on stdout, as JSON or as tables, and talk on stderr."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


HINTS = {
    "account_not_found": "open it with `tiebreak account open`; a token reaches only the accounts that it names",
    "asset_not_found": "`tiebreak asset list` shows what there is; `tiebreak asset add` adds one",
    "instrument_not_found": "`tiebreak instrument list` shows what there is",
    "insufficient_funds": "`tiebreak account show ACCOUNT` shows what is available and what open orders hold",
    "no_reference": "a market order needs a price seen outside: `tiebreak reference SYMBOL PRICE`",
    "stale_reference": "tell a fresh price with `tiebreak reference SYMBOL PRICE`",
    "order_not_found": "it may be filled, canceled or another account's; `tiebreak order list --status all`",
    "key_reused": "leave --key out for a new command",
    "unauthenticated": "make a token with `tiebreak token`, or leave --token out inside the cluster's folder",
    "forbidden": "this role may not do that; see `tiebreak token --help`",
    "no_leader": "an election may be under way; `tiebreak status` shows who is there",
    "no_quorum": "too few members reach each other; `tiebreak status` shows who is there",
    "member_not_found": "`tiebreak cluster members` shows who there is",
    "member_not_reached": "`tiebreak cluster members` shows who is connected",
    "member_behind": "`tiebreak cluster members` shows how far it is",
    "unreachable": "is the cluster up? `tiebreak status` shows each member",
}
"""What to do about a refusal, by its word."""


def print_json(data: Any) -> None:
    """One JSON document on stdout; views and structs as they are on the wire."""
    text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    sys.stdout.write(text + "\n")


def say(text: str) -> None:
    """Talk for people, on stderr."""
    err.print(text)


def complain(text: str, hint: str = "") -> None:
    err.print(f"[bold red]error:[/] {escape(text)}")
    if hint:
        err.print(f"[dim]{escape(hint)}[/]")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    title: str = "",
    width: int | None = None,
) -> Table:
    """A table for people. right: the columns that hold numbers. Cells are plain text, not markup.

    A column that is empty in every row is left out. A cell may go on in the next line between words, never inside
    one: print it with crop=False, since it may be wider than the terminal for that. width: the terminal's.
    """
    shown = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    needs = [max(len(word) for row in (columns, *rows) for word in row[place].split()) for place in shown]
    roomy = sum(needs) + 2 * len(needs) <= (out.width if width is None else width)
    made = Table(
        box=SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1 if roomy else 0, 0, 0),
    )
    for place, need in zip(shown, needs, strict=True):
        made.add_column(columns[place], justify="right" if columns[place] in right else "left", min_width=need)
    for row in rows:
        made.add_row(*(escape(row[place]) for place in shown))
    return made


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    title: str = "",
    empty: str = "nothing",
) -> None:
    if not rows:
        say(f"[dim]{escape(empty)}[/]")
        return
    out.print(table(columns, rows, right=right, title=title), crop=False)


def print_fields(pairs: Iterable[tuple[str, str | None]]) -> None:
    """One thing, a line for each of its fields that has a value."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        out.print(f"[dim]{name:<{width}}[/]  {escape(value)}")


def short_time(stamp: str | None) -> str:
    """`2026-01-05 10:00:00` of an RFC 3339 time, as one word; the zone is always UTC."""
    return (stamp or "").replace("T", "\N{NO-BREAK SPACE}")[:19]
