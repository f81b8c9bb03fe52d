"""The steps that all books play, made from a recording or the generator, with what our machine made of them.

A step is what every book knows: a limit order, one of which nothing may rest, a cancel. A reduction becomes a cancel
and a new order of what is left, for us too: most of the others know none that keeps its place.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from bench.books.harness import CANCEL, PLACE, TAKE, Fill, Step
from bench.flow import Act, Intent
from bench.market import Market
from bench.replay import START_US, Engine, ReplayError
from statemachine import codec
from statemachine.codec import Envelope
from statemachine.commands import CancelOrder, PlaceOrder
from statemachine.events import Traded
from statemachine.records import Applied
from statemachine.results import Refused
from statemachine.types import OrderType, Side, TimeInForce

SYMBOL = "BENCH"


class Asker:
    """Says steps as commands of the machine. Makers and takers take turns; nobody trades with himself."""

    def __init__(self) -> None:
        self.market = Market(SYMBOL)

    def envelope(self, step: Step) -> Envelope:
        names = self.market.takers if step.act == TAKE else self.market.makers
        account = names[step.order % len(names)]
        if step.act == CANCEL:
            return Envelope(account, f"c{step.order}", 0, codec.encode(CancelOrder(account, step.order)))
        body = PlaceOrder(
            account,
            SYMBOL,
            Side.buy if step.buys else Side.sell,
            OrderType.limit,
            TimeInForce.gtc if step.act == PLACE else TimeInForce.ioc,
            step.price,
            step.lots,
        )
        return Envelope(account, f"o{step.order}", 0, codec.encode(body))


def fills_of(applied: Iterable[Applied]) -> Iterator[Fill]:
    """What traded, in order."""
    for one in applied:
        for event in one.events:
            if isinstance(event, Traded):
                yield Fill(event.maker_order_id, event.price_ticks, event.quantity_lots)


class Recorder:
    """Asks our machine for one step after the other, and keeps those that it took with what traded."""

    def __init__(self) -> None:
        self._asker = Asker()
        self._engine = Engine(self._asker.market)
        self._engine.open()
        self._orders: dict[int, int] = {}
        """By the flow's reference: our number of an order that was placed."""
        self._entered = 0
        self.steps: list[Step] = []
        self.fills: list[Fill] = []
        self.resting_max = 0

    def follow(self, intent: Intent) -> None:
        """Raises ReplayError: the market can't go on."""
        buys = int(intent.side == Side.buy)
        if intent.act == Act.place:
            self._enter(intent.ref, Step(PLACE, self._entered + 1, buys, intent.price, intent.quantity))
        elif intent.act == Act.take:
            self._enter(0, Step(TAKE, self._entered + 1, buys, intent.price, intent.quantity))
        elif intent.act in (Act.reduce, Act.cancel):
            number = self._orders.pop(intent.ref, 0)
            resting = self._engine.machine.order(number) if number else None
            if resting is None:  # it was hit instead of another, or never entered
                return
            self._ask(Step(CANCEL, number, 0, 0, 0))
            left = intent.quantity - resting.filled_lots
            if intent.act == Act.reduce and left > 0:
                buys = int(resting.side == Side.buy)
                self._enter(intent.ref, Step(PLACE, self._entered + 1, buys, resting.price_ticks, left))

    def _enter(self, ref: int, step: Step) -> None:
        if self._ask(step):
            self._entered += 1
            if ref:
                self._orders[ref] = step.order
                self.resting_max = max(self.resting_max, len(self._orders))

    def _ask(self, step: Step) -> bool:
        now_us = START_US + 1_000 * (len(self.steps) + 1)
        applied = self._engine.apply(codec.encode_batch(now_us, [self._asker.envelope(step)]))
        if isinstance(applied.results[0], Refused):
            if step.act == CANCEL:
                raise ReplayError(f"{step} was refused: {applied.results[0]}")
            return False
        self.steps.append(step)
        self.fills.extend(fills_of([applied]))
        return True


def recorded(intents: Iterator[Intent], count: int) -> Recorder:
    """At least `count` steps, or all that the flow has."""
    recorder = Recorder()
    for intent in intents:
        if len(recorder.steps) >= count:
            break
        recorder.follow(intent)
    return recorder


def payloads(steps: Iterable[Step], batch: int) -> list[bytes]:
    """The same steps as a node would put them in the log."""
    asker = Asker()
    left = iter(steps)
    made: list[bytes] = []
    while part := list(islice(left, batch)):
        now_us = START_US + 1_000 * (len(made) + 1)
        made.append(codec.encode_batch(now_us, [asker.envelope(step) for step in part]))
    return made
