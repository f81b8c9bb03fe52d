"""Alerts in two running gateways: fired once, or twice with one id; taken over, disarmed by a merge, whole or not."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from gateway.alerts.engine import Stage
from gateway.notify import outbox
from gateway.notify.outbox import USER_MAX
from gateway.notify.policy import Planned
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.fields import Channel
from gateway.prefs.store import Store, Writing
from tests.cluster.engines import until
from tests.gateway.alerts.gates import Gate, Gates, gates_in, now_us
from tests.gateway.notify.servers import Hook
from tests.gateway.notify.test_dispatcher import notice

ABOVE = Terms("AAPL", Condition.above, price_e9=200_000_000_000, note="sell")
PRICE = 201_500_000_000
SECRET = "s" * 16
ROOT = Path(__file__).parents[3]


async def set_up(gates: Gates, hook: Hook | None = None, terms: Terms = ABOVE) -> tuple[Gate, Gate]:
    """ann's alert x is at both sites; its owner and the other."""
    channels = ["websocket"] + (["webhook"] if hook else [])
    changes: dict[str, object] = {"alert_channels": channels, "fill_channels": channels}
    if hook:
        changes |= {"webhook_url": hook.url(), "webhook_secret": SECRET}
    await gates.a.side.prefs.change("ann", changes)
    await gates.b.side.prefs.put_alert("ann", "x", terms)
    await until(lambda: all(gate.stage("ann", "x") is Stage.armed for gate in (gates.a, gates.b)))
    return gates.owner_and_other("ann", "x")


async def test_one_site_fires_and_both_show_it(tmp_path: Path) -> None:
    async with Hook() as hook, gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates, hook)
        for _ in range(3):
            theirs.tick(PRICE)
            ours.tick(PRICE)
        await until(lambda: ours.ids() != [] and theirs.ids() != [] and hook.got != [])
        await asyncio.sleep(0.1)
        assert ours.ids() == theirs.ids()
        assert len(ours.ids()) == 1
        ((_, _, body),) = hook.got
        told = msgspec.json.decode(body)
        assert told["id"] == ours.ids()[0]
        assert told["subject"] == "AAPL above 200: 201.5"
        assert told["details"] == {
            "alert_id": "x",
            "firing_id": told["id"],
            "symbol": "AAPL",
            "condition": "above",
            "repeat": False,
            "price": "201.5",
            "threshold": "200",
            "note": "sell",
        }
        for gate in (ours, theirs):
            assert gate.fired("ann", "x") == 1
            assert gate.stage("ann", "x") is Stage.done
        assert theirs.alerts.counters["fired_elsewhere"] == 1
        assert theirs.shown[0].subject == ours.shown[0].subject


async def test_fired_on_both_sides_of_a_partition_it_comes_twice_with_one_id(tmp_path: Path) -> None:
    async with Hook() as hook, gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates, hook)
        gates.pair.cut.cut = True
        await until(lambda: not ours.side.linked and not theirs.side.linked)
        ours.tick(PRICE)
        theirs.tick(PRICE + 1)
        await until(lambda: len(hook.got) == 2)
        ids = {headers["Tiebreak-Notice-Id"] for _, headers, _ in hook.got}
        assert len(ids) == 1
        assert ours.ids() == theirs.ids() == list(ids)
        gates.pair.cut.cut = False
        await until(gates.pair.equal)
        for gate in (ours, theirs):
            assert gate.fired("ann", "x") == 1
            assert gate.stage("ann", "x") is Stage.done
            gate.tick(PRICE)
        await asyncio.sleep(0.1)
        assert len(hook.got) == 2
        assert len(ours.ids()) == len(theirs.ids()) == 1


async def test_a_merge_disarms_what_one_side_fired_in_a_partition(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates)
        gates.pair.cut.cut = True
        await until(lambda: not ours.side.linked and not theirs.side.linked)
        theirs.tick(PRICE)
        await until(lambda: theirs.fired("ann", "x") == 1)
        assert ours.stage("ann", "x") is Stage.armed
        gates.pair.cut.cut = False
        await until(lambda: ours.stage("ann", "x") is Stage.done)
        await until(lambda: ours.ids() == theirs.ids())
        ours.tick(PRICE)
        await asyncio.sleep(0.1)
        assert len(ours.ids()) == 1


async def test_written_anew_on_one_side_while_the_other_fired_it_stays_armed(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates)
        gates.pair.cut.cut = True
        await until(lambda: not ours.side.linked and not theirs.side.linked)
        ours.tick(PRICE)
        await until(lambda: ours.fired("ann", "x") == 1)
        await theirs.side.prefs.put_alert("ann", "x", ABOVE)
        gates.pair.cut.cut = False
        await until(gates.pair.equal)
        await until(lambda: ours.stage("ann", "x") is Stage.armed)
        ours.tick(PRICE)
        await until(lambda: len(ours.ids()) == 2)
        assert len(set(ours.ids())) == 2


async def test_an_absent_owner_is_stood_in_for_and_what_it_had_seen_is_not_lost(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates)
        gates.pair.cut.cut = True  # the owner is away; that takes a moment to be known
        theirs.tick(PRICE)
        assert theirs.ids() == []
        await until(lambda: len(theirs.ids()) == 1)
        assert theirs.fired("ann", "x") == 1
        assert ours.fired("ann", "x") == 0


async def test_an_owner_whose_feed_is_silent_is_stood_in_for(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates)
        theirs.alerts.engine._takeover_us = 300_000
        theirs.tick(PRICE)
        await until(lambda: len(theirs.ids()) == 1 and len(ours.ids()) == 1)
        assert theirs.alerts.engine.counters["takeovers"] == 1
        assert ours.fired("ann", "x") == 1


async def test_what_was_fired_is_not_fired_again_after_a_start(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates)
        ours.tick(PRICE)
        await until(lambda: len(ours.ids()) == 1 and len(theirs.ids()) == 1)
        await ours.side.prefs.put_alert("ann", "y", ABOVE)
        await ours.stop()
        await ours.side.start()
        await ours.start()
        assert ours.stage("ann", "x") is Stage.done
        assert ours.stage("ann", "y") is Stage.armed


async def test_nobody_is_told_what_the_disk_did_not_take(tmp_path: Path) -> None:
    async with Hook() as hook, gates_in(tmp_path) as gates:
        ours, _ = await set_up(gates, hook)
        ours.side.store._free_bytes_min = 1 << 60
        ours.tick(PRICE)
        await until(lambda: ours.alerts.counters["not_written"] >= 1)
        assert (ours.ids(), hook.got, ours.fired("ann", "x")) == ([], [], 0)
        ours.side.store._free_bytes_min = 0
        await until(lambda: len(ours.ids()) == 1 and len(hook.got) == 1)
        assert ours.fired("ann", "x") == 1


async def test_an_alert_and_its_deliveries_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    async with Hook() as hook, gates_in(tmp_path) as gates:
        ours, _ = await set_up(gates, hook)
        hook.statuses = [503] * 10_000

        def flood(writing: Writing) -> None:
            later = [Planned(Channel.webhook, now_us() + 10**12)]
            for n in range(USER_MAX):
                outbox.add(writing, notice(f"n{n}"), later, now_us())

        def drain(writing: Writing) -> None:
            for item in outbox.load(ours.side.store):
                outbox.remove(writing, item)

        await ours.side.store.write(flood)
        ours.tick(PRICE)
        await until(lambda: ours.alerts.counters["not_written"] >= 1)
        assert (ours.ids(), ours.fired("ann", "x")) == ([], 0)
        await ours.side.store.write(drain)
        await until(lambda: len(ours.ids()) == 1)
        assert ours.fired("ann", "x") == 1
        assert [item.notice.notice_id for item in outbox.load(ours.side.store)] == ours.ids()


async def test_a_stale_price_fires_nothing(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, _ = await set_up(gates)
        ours.alerts.tick("AAPL", PRICE, now_us() - 1_100_000)
        await asyncio.sleep(0.1)
        assert ours.ids() == []
        assert ours.stage("ann", "x") is Stage.armed


async def test_a_move_is_told_in_percent(tmp_path: Path) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates, terms=Terms("AAPL", Condition.moves, move_bps=200, window_s=300))
        ours.tick(PRICE)
        ours.tick(PRICE * 103 // 100)
        await until(lambda: len(ours.ids()) == 1 and len(theirs.ids()) == 1)
        assert ours.shown[0].subject == "AAPL moves 2 % in 5 min: 3 %"
        assert ours.shown[0].details["moved_bps"] == 300
        assert theirs.shown[0].subject == ours.shown[0].subject


async def test_a_site_that_is_filled_does_not_tell_what_is_long_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gates_in(tmp_path) as gates:
        ours, theirs = await set_up(gates)
        ours.tick(PRICE)
        await until(lambda: len(ours.ids()) == 1 and len(theirs.ids()) == 1)
        await theirs.stop()
        gates.pair.lose(theirs.side)
        monkeypatch.setattr("gateway.alerts.service.TELL_S_MAX", 0)
        await theirs.side.start()
        await theirs.start()
        await until(lambda: theirs.stage("ann", "x") is Stage.done)
        assert len(theirs.ids()) == 1


@pytest.mark.parametrize("wait_s", [0.2, 0.5])
def test_a_killed_gateway_has_what_it_told_and_every_firing_has_its_delivery(wait_s: float, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gateway.alerts.firing_child", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        lines = [child.stdout.readline() for _ in range(20)]
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            lines.append(child.stdout.readline())
        child.kill()
        lines += child.stdout.read().splitlines(keepends=True)[:-1]  # the last line may be cut
    told = {(user, alert_id) for _, user, alert_id in map(str.split, lines)}
    store = Store(tmp_path, cluster_id="c", site="dc-a", free_bytes_min=0)
    standing = [
        (user, alert_id, each) for user, document in store.documents() for alert_id, each in document.standing()
    ]
    fired = {(user, alert_id) for user, alert_id, version in standing if version.fired}
    queued = {(item.notice.user, str(item.notice.details["alert_id"])) for item in outbox.load(store)}
    asyncio.run(store.close())
    assert len(told) > 10
    assert told <= fired
    assert fired == queued


async def test_one_users_full_outbox_does_not_keep_back_the_others(tmp_path: Path) -> None:
    async with Hook() as hook, gates_in(tmp_path) as gates:
        ours, _ = await set_up(gates, hook)
        gates.pair.cut.cut = True
        await until(lambda: ours.side.links.live_sites() == [ours.site])

        def flood(writing: Writing) -> None:
            later = [Planned(Channel.webhook, now_us() + 10**12)]
            for n in range(USER_MAX):
                outbox.add(writing, notice(f"n{n}"), later, now_us())

        await ours.side.store.write(flood)
        for n in range(3):
            await ours.side.prefs.put_alert(f"user-{n}", "x", ABOVE)
        ours.tick(PRICE)
        await until(lambda: len(ours.ids()) == 3)
        assert ours.alerts.counters["not_written"] >= 1
        assert ours.fired("ann", "x") == 0
