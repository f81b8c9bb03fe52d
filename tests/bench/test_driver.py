"""The driver and its check: honest answers pass, and each kind of lie is found."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, cast

import pytest

from bench import flow
from bench.dispatch import Dispatcher
from bench.driver import Checked, Driver, Kept, compare, longest_gap_s
from bench.flow import Act, Flow, Intent
from bench.generator import Market as MadeUp
from bench.market import Market
from bench.stats import percentile, spread
from cluster.client import Client, Done, Outcome, Refused, Unknown
from cluster.wire import Answer, AnyRequest, CancelOrder, PlaceOrder, ReplaceOrder


class FakeCluster:
    """Answers by key, as a cluster does: ids without gaps, a replay for a key that it knows.

    forget: this many of its answers are lost. twice: this many orders are executed two times.
    """

    def __init__(self, *, forget: int = 0, twice: int = 0, forge: int = 0, silent: int = 0) -> None:
        self.answers: dict[str, Answer] = {}
        self.next_id = 1
        self.forget = forget
        self.twice = twice
        self.forge = forge
        self.silent = silent
        self.open: dict[str, str] = {}
        self.resent = 0

    @asynccontextmanager
    async def stream(self) -> Any:
        yield self

    async def submit(self, requests: Sequence[AnyRequest]) -> list[Outcome]:
        await asyncio.sleep(0)
        return [self.one(request) for request in requests]

    def one(self, request: AnyRequest) -> Outcome:
        known = self.answers.get(request.key)
        if known is not None:
            if self.forge:
                self.forge -= 1
                return Done(request.key, Answer(id="999", replay=True))
            if known.error:
                return Refused(request.key, known.error, code=42200026, replay=True)
            return Done(request.key, Answer(id=known.id, replay=True))
        answer = self.execute(request)
        if self.forget:
            self.forget -= 1
        else:
            self.answers[request.key] = answer
        if self.silent:
            self.silent -= 1
            return Unknown(request.key)
        return Refused(request.key, answer.error, code=42200026) if answer.error else Done(request.key, answer)

    def execute(self, request: AnyRequest) -> Answer:
        assert isinstance(request, PlaceOrder | ReplaceOrder | CancelOrder)
        if not isinstance(request, PlaceOrder):
            order_id = self.open.pop(request.original_client_order_id, "")
            if not order_id:
                return Answer(error="order_not_found")
            if isinstance(request, CancelOrder):
                return Answer(id=order_id)
        if self.twice:
            self.twice -= 1
            self.next_id += 1
        order_id, self.next_id = str(self.next_id), self.next_id + 1
        if not (isinstance(request, PlaceOrder) and request.time_in_force == "ioc"):
            self.open[request.key] = order_id
        return Answer(id=order_id)


def drive(cluster: FakeCluster, commands: int = 500) -> tuple[Driver, Checked]:
    market = Market("MADE")
    intents = flow.intents(MadeUp(4).messages(), (), Flow(8, 4))
    driver = Driver(cast(Client, cluster), market, intents, run="t", frame=20)

    async def run() -> Checked:
        await driver.send(commands)
        return await driver.check(market.request(Intent(Act.place, 0, 0, 1, 1, 1), "probe", "", ""))

    return driver, asyncio.run(run())


def test_an_honest_cluster_passes() -> None:
    driver, checked = drive(FakeCluster())
    assert checked == Checked(asked=500, lost=0, changed=0, twice=0)
    assert checked.holds
    assert driver.answered == 500
    assert driver.acts[Act.cancel] > 50
    assert not driver.refused  # no cancel waits for an id, and none comes before its order
    assert len(driver.latencies_ms) == len(driver.answered_at) >= 25


def test_a_forgotten_answer_is_found() -> None:
    assert drive(FakeCluster(forget=3))[1].lost == 3


def test_an_order_executed_twice_is_found() -> None:
    assert drive(FakeCluster(twice=2))[1].twice == 2


def test_another_answer_under_the_same_key_is_found() -> None:
    assert drive(FakeCluster(forge=4))[1].changed == 4


def test_an_unknown_outcome_is_asked_for_and_counted_once() -> None:
    driver, checked = drive(FakeCluster(silent=7))
    assert len(driver.unknown) == 7
    assert all(one.id for one in driver.unknown)
    assert checked.holds


def kept(*, order_id: str = "", refused: str = "") -> Kept:
    return Kept(CancelOrder(key="k", order_id="1"), Act.cancel, order_id, refused)


COMPARED = [
    # first answer,           asked again,                                           verdict
    (kept(order_id="7"), Done("k", Answer(id="7", replay=True)), "same"),
    (kept(order_id="7"), Done("k", Answer(id="7")), "lost"),
    (kept(order_id="7"), Done("k", Answer(id="8", replay=True)), "changed"),
    (kept(order_id="7"), Refused("k", "order_not_found"), "changed"),
    (kept(order_id="7"), Unknown("k"), "changed"),
    (kept(refused="would_cross"), Refused("k", "would_cross", replay=True), "same"),
    (kept(refused="would_cross"), Done("k", Answer(id="7", replay=True)), "changed"),
    (kept(), Done("k", Answer(id="7", replay=True)), "resolved"),
    (kept(), Refused("k", "would_cross"), "resolved"),
]


@pytest.mark.parametrize(("one", "outcome", "verdict"), COMPARED)
def test_what_a_repeated_answer_says(one: Kept, outcome: Outcome, verdict: str) -> None:
    assert compare(one, outcome) == verdict


def intents(*rows: tuple[int, int]) -> Iterator[Intent]:
    return iter([Intent(act, ref, 0, 1, 100, 1) for act, ref in rows])


def test_an_order_goes_by_the_key_of_its_last_change() -> None:
    dispatcher = Dispatcher(
        intents((Act.place, 1), (Act.reduce, 1), (Act.place, 2), (Act.take, 1), (Act.cancel, 1), (Act.cancel, 3)), "r"
    )
    taken = dispatcher.take(2) + dispatcher.take(10)
    assert [(asked.intent.act, asked.key, asked.order) for asked in taken] == [
        (Act.place, "r-1", ""),
        (Act.reduce, "r-2", "r-1"),
        (Act.place, "r-3", ""),
        (Act.take, "r-4", ""),
        (Act.cancel, "r-5", "r-2"),
    ]
    assert (dispatcher.dropped, dispatcher.exhausted) == (1, True)  # 3 was never placed
    assert dispatcher.take(1) == []


def test_a_refused_reduction_leaves_the_order_its_name() -> None:
    dispatcher = Dispatcher(intents((Act.place, 1), (Act.reduce, 1), (Act.cancel, 1)), "r")
    _, reduction = dispatcher.take(2)
    dispatcher.refused(reduction)
    (cancel,) = dispatcher.take(1)
    assert cancel.order == "r-1"


def test_what_follows_a_refused_order_is_dropped() -> None:
    dispatcher = Dispatcher(intents((Act.place, 1), (Act.reduce, 1), (Act.cancel, 1), (Act.place, 1)), "r")
    (place,) = dispatcher.take(1)
    dispatcher.refused(place)
    (anew,) = dispatcher.take(5)
    assert (anew.key, dispatcher.dropped) == ("r-2", 2)


PERCENTILES = [
    ([], 50, 0.0),
    ([5.0], 99, 5.0),
    ([1.0, 2.0], 50, 1.0),
    ([1.0, 2.0], 51, 2.0),
    (list(range(1, 101)), 99, 99),
    (list(range(1, 102)), 99, 100),
    (list(range(20)), 99, 19),
]


@pytest.mark.parametrize(("values", "percent", "expected"), PERCENTILES)
def test_percentiles_are_of_samples(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_spread_does_not_hide_the_longest() -> None:
    assert spread([1.0] * 999 + [500.0]).max_ms == 500.0
    assert spread([1.0] * 999 + [500.0]).p999_ms == 1.0
    assert spread([]).count == 0


def test_the_outage_is_the_longest_silence_around_the_kill() -> None:
    answered = [0.0, 1.0, 1.1, 1.2, 1.7, 1.75, 30.0]
    assert longest_gap_s(answered, 1.21) == pytest.approx(0.5)
    assert longest_gap_s(answered, 1.21, after_s=0.1) == pytest.approx(0.1)
    assert longest_gap_s([], 1.0) == 0.0


def test_the_flow_ends_and_so_does_the_driver() -> None:
    market = Market("MADE")
    asked = flow.intents(islice(MadeUp(4).messages(), 150), (), Flow(8, 4))
    driver = Driver(cast(Client, FakeCluster()), market, asked, run="t", frame=20)
    asyncio.run(driver.send(10_000))
    assert 0 < driver.answered <= 150
