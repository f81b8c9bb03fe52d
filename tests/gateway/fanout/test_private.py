"""Private events as a gateway says them are those that the nodes say, of a real node under every kind of command."""

from pathlib import Path
from typing import Any

import msgspec

from gateway.events import Position
from gateway.fanout.hub import Hub
from gateway.fanout.private import PrivateEvents
from gateway.fanout.ring import Rings
from node.event_views import EventViews
from node.outcomes import at
from statemachine.codec import decode_events
from tests.gateway.feeding import Gateway, batches, feed, url
from tests.node.solo import Solo, run

ONLY_THE_NODE_SAYS = {"post_only", "self_trade", "session"}
"""Of an order's opening: the projection does not read them."""


def from_the_node(solo: Solo) -> dict[str, list[dict[str, Any]]]:
    """Every private event since the beginning, by account."""
    views = EventViews(solo.node.catalogue)
    found: dict[str, list[dict[str, Any]]] = {}
    index = 0
    while rows := solo.node.history.events_after(index, bytes_max=1 << 20):
        for batch in rows:
            for seq, event in enumerate(decode_events(batch.events)):
                position = f"0.{solo.node.epoch}.{batch.index}.{seq}"
                for account, view in views.private(event, position, at(batch.time_us)):
                    if not account.startswith("@"):
                        left_out = ONLY_THE_NODE_SAYS if view["event"] == "new" else set()
                        found.setdefault(account, []).append({k: v for k, v in view.items() if k not in left_out})
            index = batch.index
    return found


def test_each_account_is_told_what_the_node_tells_it(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            gateway, rings, hub = Gateway(), Rings(1), Hub(1)
            private = PrivateEvents(hub, rings)
            gateway.projection.on_batch.append(private.apply)
            async with gateway.following(url(solo)):
                feed(solo, batches(5, 200))
                await gateway.catches_up(solo)
            found: dict[str, list[dict[str, Any]]] = {}
            for one in rings.rings["orders"].updates:
                assert one.mark is not None
                body = msgspec.json.decode(one.fragment.json())
                assert body["events"][-1]["position"] == str(one.mark)
                found.setdefault(one.key[1], []).extend(body["events"])
                assert msgspec.msgpack.decode(one.fragment.msgpack()) == [9, body["symbol"], body["events"]]
            expected = from_the_node(solo)
            assert set(found) == set(expected) and len(expected) >= 4
            for account, events in expected.items():
                assert found[account] == events, account
            assert {event["event"] for events in found.values() for event in events} >= {
                "new", "fill", "partial_fill", "canceled", "transferred", "reduced",
            }  # fmt: skip

    run(talk())


def test_after_a_rebuild_nothing_old_is_recovered(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            gateway, rings = Gateway(), Rings(1)
            gaps: list[bool] = []
            private = PrivateEvents(Hub(1), rings, on_gap=lambda: gaps.append(True))
            gateway.projection.on_batch.append(private.apply)
            gateway.projection.on_reset.append(private.reset)
            flow = batches(5, 200)
            async with gateway.following(url(solo)):
                feed(solo, flow, 100)
                await gateway.catches_up(solo)
                first = rings.rings["orders"].updates[0].mark
                assert first is not None and rings.since("orders", first, {("orders", "anna")}) is not None
                beginning = Position(first.group, first.epoch, 0, 0)
                assert rings.since("orders", beginning, {("orders", "anna")}) is None
                gateway.projection.begin_snapshot()
                assert gaps and rings.since("orders", first, {("orders", "anna")}) is None

    run(talk())
