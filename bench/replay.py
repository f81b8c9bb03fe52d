"""Runs a flow through the bare machine, in memory: no network, no disk, one process."""

from collections.abc import Iterator

from bench.dispatch import Dispatcher
from bench.flow import Act, Flow, Intent
from bench.lobster import Message, Row
from bench.market import Market
from statemachine import codec
from statemachine.codec import Envelope
from statemachine.commands import CancelOrder, Command, ReplaceOrder
from statemachine.events import Traded
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.records import Applied, OrderRecord
from statemachine.results import AnyResult, Canceled, Placed, Refused, Replaced

START_US = 1_340_236_800_000_000
"""2012-06-21, midnight in New York, about: where the machine's clock starts."""


class ReplayError(Exception):
    """The machine refused what the flow needs to go on."""


class Counts:
    """What became of the commands of a run."""

    __slots__ = ("canceled", "commands", "fills", "placed", "reduced", "refused", "taken", "volume_lots")

    def __init__(self) -> None:
        self.commands = self.placed = self.taken = self.reduced = self.canceled = 0
        self.fills = self.volume_lots = 0
        self.refused: dict[str, int] = {}

    def add(self, act: int, result: AnyResult) -> None:
        self.commands += 1
        if isinstance(result, Refused):
            self.refused[result.code.name] = self.refused.get(result.code.name, 0) + 1
        elif isinstance(result, Placed):
            if act == Act.take:
                self.taken += 1
            else:
                self.placed += 1
        elif isinstance(result, Replaced):
            self.reduced += 1
        elif isinstance(result, Canceled):
            self.canceled += 1

    @property
    def orders(self) -> int:
        return self.placed + self.taken


class Engine:
    """A machine with its memory, fed with batches."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.backing = MemoryBacking(keep_history=False)
        self.machine = Machine(self.backing)
        self.index = 0
        self.keys = 0

    def open(self) -> None:
        """Make the market. Raises ReplayError."""
        envelopes = [self.envelope(scope, body) for scope, body in self.market.opening_commands()]
        for result in self.apply(codec.encode_batch(START_US, envelopes)).results:
            if isinstance(result, Refused):
                raise ReplayError(f"the market was not opened: {result}")

    def envelope(self, scope: str, body: object, key: str = "") -> Envelope:
        self.keys += 1
        return Envelope(scope, key or f"k{self.keys}", 0, codec.encode(body))

    def apply(self, payload: bytes) -> Applied:
        self.index += 1
        applied = self.machine.apply(self.index, payload)
        self.backing.write(applied)
        return applied


class ExactReplay:
    """Follows a recording message by message, as exactly as the rules allow.

    A batch ends where the next intent needs an id that is not known yet, and after each take. Where the
    machine then hit another order than the recording says (`missed`), the book is put right, so that
    one difference does not breed others.
    """

    def __init__(self, market: Market, flow: Flow) -> None:
        self.engine = Engine(market)
        self.engine.open()
        self.flow = flow
        self.counts = Counts()
        self.named = self.hit = self.repaired = 0
        """Takes whose order was known for certain; those of them that hit just that order first; repairs."""
        self.missed: list[Intent] = []
        self._ids: dict[int, int] = {}
        self._refs: dict[int, int] = {}
        self._batch: list[Envelope] = []
        self._intents: list[Intent] = []
        self._pending: set[int] = set()
        self._now_us = START_US

    def step(self, message: Message, row: Row | None = None) -> None:
        """Ask for what this message says. Some of it may wait for the next `flush`."""
        self._now_us = START_US + message.time_ns // 1_000
        for intent in self.flow.step(message, row):
            self._send(intent)
            if intent.act == Act.take:
                self._settle(intent, self.flush())

    def flush(self) -> set[int]:
        """Apply what is waiting. Returns the makers' references that were hit."""
        if not self._batch:
            return set()
        applied = self.engine.apply(codec.encode_batch(self._now_us, self._batch))
        intents, self._intents, self._batch = self._intents, [], []
        self._pending.clear()
        for intent, result in zip(intents, applied.results, strict=True):
            self.counts.add(intent.act, result)
            if isinstance(result, Placed | Replaced) and intent.act != Act.take:
                self._ids[intent.ref] = result.order_id
                self._refs[result.order_id] = intent.ref
        hit: dict[int, None] = {}
        for event in applied.events:
            if isinstance(event, Traded):
                self.counts.fills += 1
                self.counts.volume_lots += event.quantity_lots
                hit[self._refs[event.maker_order_id]] = None
        if intents[-1].certain:
            self.named += 1
            if next(iter(hit), 0) == intents[-1].ref:
                self.hit += 1
            else:
                self.missed.append(intents[-1])
        return set(hit)

    def _send(self, intent: Intent) -> None:
        if intent.act not in (Act.reduce, Act.cancel):
            self._ask(intent, *self.engine.market.command(intent, ""))
            return
        if intent.ref in self._pending:
            self.flush()
        order = self._order(intent.ref)
        if order is None:
            self.counts.refused["gone"] = self.counts.refused.get("gone", 0) + 1
        elif intent.act == Act.reduce:
            # After a swap the order may be another maker's, so its own record says whose it is.
            reduction = ReplaceOrder(order.account, order.order_id, 0, intent.quantity)
            self._ask(intent, order.account, reduction)
        else:
            self._ask(intent, order.account, CancelOrder(order.account, order.order_id))

    def _ask(self, intent: Intent, scope: str, command: Command) -> None:
        if intent.act in (Act.place, Act.reduce):
            self._pending.add(intent.ref)
        self._batch.append(self.engine.envelope(scope, command))
        self._intents.append(intent)
        if len(self._batch) >= codec.COMMANDS_PER_BATCH_MAX:
            self.flush()

    def _settle(self, take: Intent, hit: set[int]) -> None:
        """Compare what was hit with what the recording says; make both the same again."""
        wrong = [ref for ref in sorted({take.ref, *hit}) if self._leaves(ref) != self.flow.left(ref)]
        if not wrong:
            return
        self.repaired += 1
        if len(wrong) == 2 and self._swap(*wrong):
            return
        for ref in wrong:
            if self._order(ref) is not None:
                self._send(Intent(Act.cancel, ref, 0, 0, 0, 0))
            if self.flow.left(ref):
                self._send(self.flow.rebase(ref, self.flow.left(ref)))
        self.flush()

    def _swap(self, one: int, other: int) -> bool:
        """Give the two orders each other's reference, where that makes both right."""
        if (self._leaves(one), self._leaves(other)) != (self.flow.left(other), self.flow.left(one)):
            return False
        self._ids[one], self._ids[other] = self._ids[other], self._ids[one]
        for ref in (one, other):
            self._refs[self._ids[ref]] = ref
            order = self._order(ref)
            if order is not None:
                self.flow.rebase(ref, order.quantity_lots)
        return True

    def _order(self, ref: int) -> OrderRecord | None:
        return self.engine.machine.order(self._ids.get(ref, 0))

    def _leaves(self, ref: int) -> int:
        order = self._order(ref)
        return 0 if order is None else order.leaves_lots

    def touch(self) -> tuple[int, int, int, int]:
        """Best ask price and size, best bid price and size; zeroes for an empty side."""
        book = self.engine.machine.book(self.engine.market.symbol, 1)
        if book is None:
            raise ReplayError(f"no instrument {self.engine.market.symbol}")
        bids, asks = book
        return (*(asks[0][:2] if asks else (0, 0)), *(bids[0][:2] if bids else (0, 0)))


def record(intents: Iterator[Intent], market: Market, *, commands: int, batch: int) -> tuple[list[bytes], Counts]:
    """Payloads of `batch` commands each, such as a node would put in the log, with what became of them.

    Applying the same payloads to a fresh machine in the same order gives the same answers.
    """
    engine = Engine(market)
    engine.open()
    counts = Counts()
    dispatcher = Dispatcher(intents, "r")
    payloads: list[bytes] = []
    now_us = START_US
    while counts.commands < commands:
        taken = dispatcher.take(min(batch, commands - counts.commands))
        if not taken:
            break
        envelopes = [engine.envelope(*market.command(one.intent, one.order), one.key) for one in taken]
        now_us += 1_000
        payloads.append(codec.encode_batch(now_us, envelopes))
        applied = engine.apply(payloads[-1])
        for one, result in zip(taken, applied.results, strict=True):
            counts.add(one.intent.act, result)
            if isinstance(result, Refused):
                dispatcher.refused(one)
        counts.fills += sum(isinstance(event, Traded) for event in applied.events)
    return payloads, counts
