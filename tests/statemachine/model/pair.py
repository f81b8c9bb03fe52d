"""One machine and one model that are given the same batches and must agree on everything after each."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from chaos.check.ledger import Bounds, Log, Model, No, Order
from statemachine.codec import Envelope, decode_command, encode_batch
from statemachine.commands import Command
from statemachine.events import OrderClosed
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.records import Applied, OrderRecord
from statemachine.results import Refused
from statemachine.types import FEES, ROUNDING, SYSTEM_ACCOUNTS, Side
from tests.statemachine.model.replay import Replay
from tests.statemachine.model.scenario import START_US, Shape, Writer, ahead_us

BOUNDS = Bounds(steps_max=3, chunk=3, chunk_sessions=2, withdrawals_max=3, sessions_max=2, cancel_keys_min=3)
SHRUNK = {
    "STEPS_MAX": 3,
    "CHUNK_ORDERS": 3,
    "CHUNK_SESSIONS": 2,
    "WITHDRAWALS_OPEN_MAX": 3,
    "SESSIONS_OPEN_MAX": 2,
    "CANCEL_KEYS_MIN": 3,
}
RESTART = range(1, 4)
FLUSH = range(4, 9)


@contextmanager
def shrunk() -> Iterator[None]:
    """Make the machine's bounds as small as BOUNDS, wherever its modules hold them."""
    modules = [module for name, module in sys.modules.items() if name.startswith("statemachine.")]
    homes = [(module, name, getattr(module, name)) for module in modules for name in SHRUNK if hasattr(module, name)]
    if {name for _, name, _ in homes} != set(SHRUNK):
        raise AssertionError("a bound has another name now")
    try:
        for module, name, _ in homes:
            setattr(module, name, SHRUNK[name])
        yield
    finally:
        for module, name, value in homes:
            setattr(module, name, value)


class Pair:
    """Raises AssertionError with all that was asked so far when the two disagree."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.model = Model(BOUNDS)
        self.backing = MemoryBacking()
        self.machine = Machine(self.backing, accounts_cached=2)
        self.restarts = 0
        self.payloads: list[bytes] = []
        self.replay = Replay()
        self.ledger: dict[tuple[str, str], int] = defaultdict(int)
        self.writer = Writer(self.model)
        self.seen: Counter[str] = Counter()
        self.asked: list[str] = []
        self.index = 0
        self.ahead_us = 0
        self.waiting: list[Envelope] = []
        self.apply(START_US, self.writer.opening(shape))

    def step(self, step: bytes) -> None:
        """Take one step; some wait for the next, so that a batch holds more than one command."""
        if step[0] == 0:
            return
        if step[0] in (*RESTART, *FLUSH):
            self.flush()
            self.backing.store(self.machine.collect())
            if step[0] in RESTART:
                self.restart()
            return
        self.waiting.append(self.writer.step(step))
        self.ahead_us = ahead_us(step[13]) if len(self.waiting) == 1 else self.ahead_us
        if step[12] % 4:
            self.flush()

    def finish(self) -> None:
        """Apply what waits, and everything again to a machine that never restarts: one digest."""
        self.flush()
        if self.restarts:
            backing = MemoryBacking()
            again = Machine(backing)
            for index, payload in enumerate(self.payloads, 1):
                backing.write(again.apply(index, payload))
            if again.digest != self.machine.digest:
                self.disagree("digest after restarts", again.digest.hex(), self.machine.digest.hex())
            self.seen["restarted"] += 1

    def flush(self) -> None:
        if self.waiting:
            self.apply(self.model.now + self.ahead_us, self.waiting)
            self.waiting = []

    def restart(self) -> None:
        """The machine as it comes back from what it handed out."""
        self.machine = Machine(self.backing, self.backing.state(), accounts_cached=1)
        self.restarts += 1
        self.asked.append("restart")

    def apply(self, stamp_us: int, envelopes: list[Envelope]) -> None:
        self.index += 1
        self.asked.append(f"batch {self.index} stamped {stamp_us - START_US:+}")
        self.asked += [f"  {e.scope} {e.key} {e.sent_at_us} {decode_command(e.body)}" for e in envelopes]
        log = self.model.apply(self.index, stamp_us, envelopes)
        payload = encode_batch(stamp_us, envelopes)
        self.payloads.append(payload)
        applied = self.machine.apply(self.index, payload)
        self.backing.write(applied)
        self.seen.update(log.met)
        self.compare_answers(log, applied, [decode_command(envelope.body) for envelope in envelopes])
        self.compare_events(log, applied)
        self.compare_balances(applied)
        self.compare_state()

    def compare_answers(self, log: Log, applied: Applied, commands: list[Command]) -> None:
        if applied.time_us != self.model.now:
            self.disagree("time", self.model.now, applied.time_us)
        if len(log.answers) != len(applied.results):
            self.disagree("count of answers", len(log.answers), len(applied.results))
        for command, answer, result in zip(commands, log.answers, applied.results, strict=True):
            told = type(command).__name__
            if isinstance(answer, No):
                if not isinstance(result, Refused) or result.code not in answer.codes:
                    self.disagree(f"answer to {command}", sorted(code.name for code in answer.codes), result)
                self.seen[f"{told}: {result.code.name}"] += 1
                self.seen[result.code.name] += 1
            else:
                if answer != result:
                    self.disagree(f"answer to {command}", answer, result)
                self.seen[f"{told}: {type(answer).__name__}"] += 1

    def compare_events(self, log: Log, applied: Applied) -> None:
        for expected, event in zip(log.happened, applied.events, strict=False):
            if expected != event:
                self.disagree("event", expected, event)
        if len(log.happened) != len(applied.events):
            self.disagree("events", log.happened, applied.events)
        self.seen.update(f"closed: {event.reason.name}" for event in log.happened if isinstance(event, OrderClosed))

    def compare_balances(self, applied: Applied) -> None:
        model, replay = self.model, self.replay
        try:
            replay.follow(applied.events)
        except (AssertionError, KeyError) as error:
            self.disagree("replay of events", "balances", repr(error))
        holds = model.holds()
        for account in (*SYSTEM_ACCOUNTS, *model.accounts):
            for asset in model.assets:
                owned = model.owned.get((account, asset), 0), holds[account, asset]
                if account not in (FEES, ROUNDING):
                    from_events = replay.owned[account, asset], replay.held[account, asset]
                    if owned != from_events:
                        self.disagree(f"owned and held by {account} in {asset}, from events", owned, from_events)
        for row in applied.ledger_rows:
            self.ledger[row.account, row.asset] += row.delta_units
            if self.ledger[row.account, row.asset] != row.owned_units:
                self.disagree("ledger's running balance", self.ledger[row.account, row.asset], row)
        ledger = {place: units for place, units in self.ledger.items() if units}
        owned_by = {place: units for place, units in model.owned.items() if units}
        if ledger != owned_by:
            self.disagree("owned, from the ledger", owned_by, ledger)
        for asset in model.assets:
            total = sum(model.owned.get((account, asset), 0) for account in (FEES, ROUNDING))
            if total != replay.owned[FEES, asset]:
                self.disagree(f"fees in {asset}, from events", total, replay.owned[FEES, asset])
        rows = {order.id: (order.leaves, order.filled, order.hold) for order in model.open_orders()}
        from_events_rows = {i: (replay.leaves[i], replay.filled[i], replay.holds[i]) for i in replay.open}
        if rows != from_events_rows:
            self.disagree("open orders, from events", rows, from_events_rows)

    def compare_state(self) -> None:
        """What the machine itself says it holds: balances, orders, books."""
        model, machine = self.model, self.machine
        holds, open_orders = model.holds(), model.open_orders()
        for name in (*SYSTEM_ACCOUNTS, *model.accounts):
            record = machine.account(name)
            balances = {asset: (free, held) for asset, free, held in record.balances} if record else {}
            for asset in model.assets:
                held = holds[name, asset]
                expected = model.owned.get((name, asset), 0) - held, held
                if expected != balances.get(asset, (0, 0)):
                    self.disagree(f"available and held, {name} {asset}", expected, balances.get(asset))
            expected_orders = [order_of(order) for order in open_orders if order.ask.account == name]
            orders = [order_of_record(order) for order in machine.open_orders(name)]
            if sorted(expected_orders) != orders:
                self.disagree(f"open orders of {name}", sorted(expected_orders), orders)
        for symbol in model.instruments:
            book = tuple(levels(model.side(symbol, side)) for side in (Side.buy, Side.sell))
            if book != machine.book(symbol, 100):
                self.disagree(f"book of {symbol}", book, machine.book(symbol, 100))

    def disagree(self, what: str, model: object, machine: object) -> NoReturn:
        asked = "\n".join(self.asked)
        raise AssertionError(f"{self.shape}\n{asked}\n{what}\n  model:   {model}\n  machine: {machine}")


def order_of(order: Order) -> tuple[object, ...]:
    amounts = (order.leaves, order.filled, order.notional, order.fee, order.hold)
    ask = order.ask
    frozen = (order.expires_at_us, order.maker_bps, order.taker_bps, order.maker_notional, order.taker_notional)
    return (
        order.id,
        order.key,
        ask.symbol,
        ask.side,
        ask.price_ticks,
        order.status,
        *amounts,
        *frozen,
        ask.post_only,
        ask.session,
    )


def order_of_record(order: OrderRecord) -> tuple[object, ...]:
    o = order
    amounts = (o.leaves_lots, o.filled_lots, o.notional_units, o.fee_units, o.hold_units)
    frozen = (o.expires_at_us, o.maker_bps, o.taker_bps, o.maker_notional_units, o.taker_notional_units)
    return (o.order_id, o.key, o.symbol, o.side, o.price_ticks, o.status, *amounts, *frozen, o.post_only, o.session)


def levels(orders: list[Order]) -> list[tuple[int, int, int]]:
    """(price, lots, orders) of each level, best first."""
    prices = list(dict.fromkeys(order.ask.price_ticks for order in orders))
    at = {price: [order.leaves for order in orders if order.ask.price_ticks == price] for price in prices}
    return [(price, sum(at[price]), len(at[price])) for price in prices]
