"""Tables at 80 columns: whole words, nothing cut off, nothing wider than the terminal where that can be helped."""

from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console, RenderableType

from cluster.client import Health, Member
from cluster.wire import OrderView
from node.cli import output
from node.cli.orders import ORDER_COLUMNS, _row
from node.cli.output import short_time, table
from node.cli.status import judge, picture
from tests.node.cli.test_status import A, B, T

BIG = 87_654_321


def shown(what: RenderableType, *, width: int = 80) -> list[str]:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(what, crop=False)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_the_status_of_a_large_cluster_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "out", Console(width=80))
    far = {"commit_index": BIG, "applied_index": BIG, "stored_index": BIG, "durable_index": BIG, "last_index": BIG}
    views = [replace(view, **far, term=1_234) for view in (A, B, replace(B, name="dc-b-2", state="candidate"), T)]
    found = [Health(Member("http://x", view.name), view, answers=True) for view in views]
    found.append(Health(Member("http://x", "dc-a-2"), error="connection refused"))
    digests = {"dc-a": "c4c5194dad73", "dc-b": "c4c5194dad73", "dc-b-2": "0123456789ab"}
    lines = shown(picture(judge(found, digests, BIG)))
    words = " ".join(lines).split()
    for whole in ("tiebreaker", "candidate", "follower", "unreachable", "witness", "c4c5194d", str(BIG)):
        assert whole in words, lines
    assert max(map(len, lines[:-2])) <= 80, lines


ORDER = OrderView(
    id="12345",
    client_order_id="k",
    account="alice",
    symbol="AAPL-USD",
    side="sell",
    type="limit",
    order_type="limit",
    time_in_force="gtc",
    qty="1000",
    notional=None,
    limit_price="12187.20",
    filled_qty="40",
    filled_avg_price="12187.2",
    leaves_qty="960",
    fee="0.1",
    status="partially_filled",
    reason="",
    post_only=False,
    self_trade="cancel_newest",
    session=None,
    created_at="2026-01-05T10:00:00.123456Z",
    submitted_at="2026-01-05T10:00:00.123456Z",
    updated_at="2026-01-05T10:00:00.123456Z",
)
LISTS = [
    [ORDER],
    [replace(ORDER, status="canceled", reason="session_expired"), replace(ORDER, status="filled", reason="filled")],
    [replace(ORDER, status="canceled", reason="budget_spent", type="market", qty=None, notional="10000")],
]


@pytest.mark.parametrize("orders", LISTS)
def test_a_list_of_orders_fits(orders: list[OrderView]) -> None:
    lines = shown(table(ORDER_COLUMNS, [_row(order) for order in orders], width=80))
    assert max(map(len, lines)) <= 80, lines
    for order in orders:
        assert order.status in " ".join(lines).split()


def test_words_stay_whole_even_where_the_terminal_is_too_narrow() -> None:
    lines = shown(table(("name", "text"), [("unbreakable-name", "two words"), ("short", "")]), width=16)
    words = " ".join(lines).split()
    assert {"unbreakable-name", "two", "words", "short"} <= set(words)
    assert "words" not in next(line for line in lines if "two" in line)


def test_a_column_without_content_is_left_out() -> None:
    assert "empty" not in shown(table(("name", "empty"), [("a", ""), ("b", "")]))[0]


def test_a_time_is_one_word() -> None:
    assert short_time("2026-01-05T10:00:00.123456Z") == "2026-01-05\N{NO-BREAK SPACE}10:00:00"
    assert short_time(None) == ""
