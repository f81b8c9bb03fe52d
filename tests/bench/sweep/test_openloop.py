"""The open loop: its schedule is fixed beforehand, all doors lead in, and a stall costs each request that was due."""

import asyncio
import gc
import signal
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.running import LIMITS, RunError, Running, run_loop, running
from bench.sweep.arrivals import Step, arrivals, lasting
from bench.sweep.doors import DOORS, DoorWord
from bench.sweep.openloop import OpenLoop, Result, Spec
from bench.sweep.playing import Played, open_market, play, tokens_of
from bench.sweep.samples import DONE, REFUSED, UNKNOWN, Samples
from bench.sweep.trades import DEEP_MAX, Flow, Trades
from bench.watching import leader_of
from cluster.wire import CancelOrder, PlaceOrder

STEPS = st.lists(st.builds(Step, st.floats(0.01, 3.0), st.floats(0.0, 2_000.0)), min_size=1, max_size=5)


# ---- the schedule ----


@given(STEPS, st.integers(0, 1 << 32))
def test_a_schedule_is_that_of_its_seed_and_rises_within_its_steps(steps: list[Step], seed: int) -> None:
    found = list(arrivals(steps, seed))
    assert found == list(arrivals(steps, seed))
    assert all(before < after for before, after in pairwise(found))
    begin = 0.0
    for step in steps:
        end = begin + step.seconds
        mine = sum(begin <= at < end for at in found)
        expected = step.seconds * step.rate_per_s
        # Six standard deviations of a Poisson count, and room for the smallest.
        assert abs(mine - expected) <= 6 * expected**0.5 + 6
        begin = end
    assert all(0 <= at < lasting(steps) for at in found)


def test_gaps_are_as_irregular_as_those_of_many_clients() -> None:
    gaps = [after - before for before, after in pairwise(arrivals([Step(10, 1_000)], 1))]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.001, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)


# ---- the flow ----


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 1_000))
def test_what_rests_is_taken_and_nobody_meets_himself(makers: int, symbols: int, seed: int) -> None:
    flow = Flow([f"S{number}" for number in range(symbols)], [["a", "b", "c"], ["d", "e"]], makers=makers)
    trades = Trades(flow, "run", seed)
    cycles = 40
    orders = [trades.next(at % 2, "") for at in range(cycles * (makers + 1))]
    lots: Counter[tuple[str, str]] = Counter()
    sides: dict[str, set[str]] = {}
    for order in orders:
        assert isinstance(order, PlaceOrder)
        assert isinstance(order.qty, int)
        lots[order.symbol, order.side] += order.qty
        sides.setdefault(order.account, set()).add(order.side)
    assert sum(lots.values()) == 2 * makers * cycles
    for symbol in flow.symbols:
        assert lots[symbol, "buy"] == lots[symbol, "sell"]
    assert all(len(one) == 1 for one in sides.values())
    assert len({order.key for order in orders}) == len(orders)
    assert flow.orders_per_fill() == (makers + 1) / makers


def test_orders_far_from_the_touch_are_canceled_by_their_keys() -> None:
    trades = Trades(Flow(["S"], [["a", "b"]], crossing=0.5), "run", 1)
    open_keys: set[str] = set()
    crossing = 0
    for _ in range(8 * DEEP_MAX):
        order = trades.next(0, "")
        if isinstance(order, CancelOrder):
            open_keys.remove(order.original_client_order_id)
        elif isinstance(order, PlaceOrder) and order.limit_price != "100.00":
            assert float(str(order.limit_price)) < 100 if order.side == "buy" else float(str(order.limit_price)) > 100
            open_keys.add(order.key)
        else:
            crossing += 1
    assert len(open_keys) <= DEEP_MAX
    assert crossing == pytest.approx(4 * DEEP_MAX, rel=0.1)


def test_a_trade_needs_two_sides() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Trades(Flow(["S"], [["a", "b"], ["c"]]), "run", 1)


# ---- what was found ----


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = Samples(array("d", [0.1, 0.2]), array("f", [5.0, 7.0]), array("b", [DONE, UNKNOWN]))
    written.write(tmp_path / "samples")
    found = Samples.read(tmp_path / "samples", 2)
    assert (found.due_s, found.latency_ms, found.outcome) == (written.due_s, written.latency_ms, written.outcome)
    with pytest.raises(EOFError):
        Samples.read(tmp_path / "samples", 3)
    both = Samples.merged([written, found])
    assert (len(both), both.count(DONE), both.count(REFUSED), both.count(UNKNOWN)) == (4, 2, 0, 2)
    assert both.latency().max_ms == 7.0


def test_slices_count_answers_when_they_came_and_latency_when_it_was_due() -> None:
    samples = Samples(array("d", [0.1, 0.6, 0.7, 1.9]), array("f", [100, 900, 1, 500]), array("b", [0, 0, 1, 0]))
    middles, per_s = samples.answered_per_s(2.0, 0.5)
    assert (middles, per_s) == ([0.25, 0.75, 1.25, 1.75], [2.0, 0.0, 0.0, 2.0])
    assert [one.max_ms for one in samples.by_slice(2.0, 0.5)] == [100, 900, 0.0, 500]


# ---- against real members ----


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Flow]]:
    with running(tmp_path_factory.mktemp("openloop") / "cluster", limits=LIMITS) as up:
        yield up, run_loop(open_market(up, accounts=100))


def spec_of(cluster: Running, flow: Flow, *, urls: list[str], rate: float, seconds: float = 1.0) -> Spec:
    return Spec(
        urls=urls,
        tokens=tokens_of(cluster, flow),
        flow=flow,
        run=f"{time.time_ns():x}",
        connections=4,
        steps=[Step(seconds, rate)],
        warmup_s=0.3,
        drain_s=20.0,
    )


async def leader(cluster: Running) -> str:
    async with cluster.client("auditor", ("*",)) as auditor:
        return await leader_of(cluster, auditor)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("processes", [1, 2])
def test_each_door_leads_in_and_trades_are_filled(
    cluster: tuple[Running, Flow], door: DoorWord, processes: int
) -> None:
    up, flow = cluster
    mixed = msgspec.structs.replace(flow, crossing=0.9)

    async def played() -> Played:
        spec = spec_of(up, mixed, urls=[up.url(await leader(up))], rate=200)
        spec.door = door
        spec.frame_max = 2
        return await play(spec, processes=processes)

    found = run_loop(played())
    assert found.requests == pytest.approx(200, abs=85)
    assert (found.done, found.refused, found.unknown, found.words) == (found.requests, 0, 0, {})
    # Each order that crosses is half a fill; those of the warm-up may still have rested.
    assert found.fills == pytest.approx(found.requests * 0.45, abs=found.requests * 0.2)
    assert 0 < found.latency.p50_ms <= found.latency.p99_ms <= found.latency.max_ms
    assert found.late.count == pytest.approx(found.requests, rel=0.7)
    assert "the load generator" in found.cpu_s


def test_refusals_are_told_apart_from_what_was_done(cluster: tuple[Running, Flow]) -> None:
    up, flow = cluster
    wrong = msgspec.structs.replace(flow, symbols=["NONE"])

    async def played() -> Played:
        return await play(spec_of(up, wrong, urls=[up.url(await leader(up))], rate=50, seconds=0.5))

    found = run_loop(played())
    assert found.done == found.unknown == found.fills == 0
    assert found.refused == found.requests == found.words["instrument_not_found"]


def test_a_stall_costs_each_request_that_was_due(cluster: tuple[Running, Flow]) -> None:
    """The leader sleeps for 0.25 of 2 seconds: so do the p99, and at least a twelfth of all that was due."""
    up, flow = cluster
    stall_s = 0.25

    async def played() -> Played:
        name = await leader(up)
        playing = asyncio.create_task(play(spec_of(up, flow, urls=[up.url(name)], rate=300, seconds=2.0)))
        await asyncio.sleep(2.0)  # it has started, warmed up and is halfway
        up.launcher.signal(name, signal.SIGSTOP)
        try:
            await asyncio.sleep(stall_s)
        finally:
            up.launcher.signal(name, signal.SIGCONT)
        return await playing

    found = run_loop(played())
    assert found.done + found.unknown == found.requests
    waited = sorted(found.samples.latency_ms)
    # Due evenly within the stall, half of them waited for half of it or longer.
    slow = [latency for latency in waited if latency >= stall_s / 2 * 1e3]
    assert len(slow) >= 0.9 * 300 * stall_s / 2
    assert found.latency.p99_ms >= 0.8 * stall_s * 1e3


def test_what_is_sent_late_counts_from_when_it_was_due(cluster: tuple[Running, Flow]) -> None:
    """The generator itself sleeps for a quarter of a second: that is lateness, and part of each latency."""
    up, flow = cluster
    late_s = 0.25

    async def played() -> Result:
        loop = OpenLoop(spec_of(up, flow, urls=[up.url(await leader(up))], rate=300))
        asyncio.get_running_loop().call_later(1.0, time.sleep, late_s)
        return await loop.run()

    try:
        found = run_loop(played())
    finally:
        gc.unfreeze()
    assert found.late.max_ms >= 0.8 * late_s * 1e3
    assert found.latency.max_ms >= found.late.max_ms


def test_who_asks_again_is_answered_by_the_next_leader(cluster: tuple[Running, Flow]) -> None:
    """The leader is killed under load; a generator that retries ends with nothing unknown, and each was done once."""
    up, flow = cluster

    async def played() -> Played:
        name = await leader(up)
        urls = [up.url(name), *(up.url(one) for one in up.replicas if one != name)]
        spec = spec_of(up, flow, urls=urls[:2], rate=100, seconds=3.0)
        spec.retry = True
        playing = asyncio.create_task(play(spec))
        await asyncio.sleep(2.0)
        up.launcher.kill(name)
        try:
            return await playing
        finally:
            up.launcher.start(name, die_with_us=True)
            up.launcher.wait_ready([name])

    found = run_loop(played())
    assert (found.done, found.refused, found.unknown) == (found.requests, 0, 0), found.words
    assert found.reconnects >= 2
    assert found.latency.max_ms > 200


def test_without_a_member_nothing_can_be_measured(cluster: tuple[Running, Flow]) -> None:
    up, flow = cluster
    spec = msgspec.structs.replace(spec_of(up, flow, urls=["http://127.0.0.1:9"], rate=10), connect_s=0.3)
    with pytest.raises(RunError, match="exit code"):
        run_loop(play(spec))
