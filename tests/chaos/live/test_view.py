"""What a run shows meanwhile: who leads, what is cut, how many requests a second end how; in place, or line by line."""

import io
from collections import Counter
from typing import Any

from rich.console import Console

from chaos.live.view import Lines, Picture, Rates, Row, Screen, rows, view_for


def picture() -> Picture:
    return Picture(
        title="dc-cut seed 7",
        phase="faults",
        at_s=12.3,
        of_s=60,
        rows=[
            Row("dc-a", "dc-a", up=True, state="leader", term=2, commit=70, per_s={"fail": 40.0}),
            Row("dc-b", "dc-b", up=True, state="leader", term=3, commit=99, per_s={"ok": 55.0, "unknown": 1.0}),
            Row("tiebreaker", "tiebreaker", up=False),
        ],
        faults=["dc-cut 5 links (tiebreaker b)"],
        counts={"ok": 1_234, "fail": 56, "unknown": 7},
    )


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)


def text_of(one: Console) -> str:
    assert isinstance(one.file, io.StringIO)
    return one.file.getvalue()


def test_the_leader_of_the_highest_term_counts() -> None:
    assert picture().leader == "dc-b leads term 3"
    assert Picture("", "", 0, 0, [Row("dc-a", "dc-a", up=True, state="follower")], [], {}).leader == "nobody leads"


def test_a_screen_shows_everything_at_once() -> None:
    shown = console(terminal=True)
    view = view_for(shown)
    assert isinstance(view, Screen)
    view.show(picture())
    view.say("[red]dc-cut[/] strikes")
    view.close()
    text = text_of(shown)
    for part in (
        "dc-b leads term 3",
        "in force",
        "dc-cut 5 links",
        "not reached",
        "1,234 answered",
        "strikes",
        "12 of 60 s",
    ):
        assert part in text, part


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    shown = console(terminal=False)
    view = view_for(shown)
    assert isinstance(view, Lines)
    view.show(picture())
    view.show(picture())
    view.say("[red]dc-cut[/] ends")
    first, second = text_of(shown).splitlines()
    assert "dc-b leads term 3" in first
    assert "dc-a 0/40/0, dc-b 55/0/1" in first
    assert "in force: dc-cut 5 links" in first
    assert second.strip() == "dc-cut ends"


def test_rates_are_of_the_last_second_or_so() -> None:
    rates, tally = Rates(), Counter({("dc-a", "ok"): 100})
    rates.of(tally, 10.0)
    tally["dc-a", "ok"] += 50
    assert rates.of(tally, 11.0)["dc-a"]["ok"] == 50
    assert rates.of(tally, 13.0)["dc-a"]["ok"] == 0
    assert rates.of(tally, 14.0)["dc-a"]["ok"] == 0


def test_rows_are_what_each_last_said() -> None:
    latest: dict[str, dict[str, Any] | None] = {
        "dc-a": {"state": "leader", "term": 4, "commit_index": 9},
        "gateway-dc-a": {"ready": True},
        "dc-b": None,
    }
    names = [("dc-a", "dc-a"), ("dc-b", "dc-b"), ("gateway-dc-a", "dc-a"), ("tiebreaker", "tiebreaker")]
    made = rows(names, latest, {"dc-a": {"ok": 2.0}})
    assert [(row.name, row.up, row.state, row.term) for row in made] == [
        ("dc-a", True, "leader", 4),
        ("dc-b", False, "", 0),
        ("gateway-dc-a", True, "", 0),
        ("tiebreaker", False, "", 0),
    ]
