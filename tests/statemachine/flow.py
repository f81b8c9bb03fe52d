"""A random flow of every kind of command, from a seed.

A machine of its own tells it which orders are open, so that cancels and replacements mostly hit; what it
yields is a list of batches for any other machine.

`python -m tests.statemachine.flow SEED` runs one and prints what came of it, for a fresh interpreter.
Stamps are whole seconds and every deadline falls between two of them, so that where a batch begins and
ends within a second decides nothing.
"""

import sys
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from random import Random

from statemachine import commands as c
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.records import Applied
from statemachine.types import Mode, OrderType, SelfTrade, Side, TimeInForce

START_US = 1_750_110_960_000_000
"""2025-06-16 21:56 UTC: for one of the instruments midnight comes soon."""
SECOND_US = 1_000_000
HALF_US = 500_000
ACCOUNTS = ("anna", "bert", "cleo", "dora")
SYMBOLS = ("AAA-USD", "BBB-USD", "BBB-AAA")
WEEKLY = (c.SessionHours(0, 1440),) * 6 + (None,)
LIMITS = c.Limits(band_bps=600, open_orders_max=12, reference_age_us_max=20 * SECOND_US + HALF_US)

LISTING: tuple[c.Command, ...] = (
    c.AddAsset("USD", 2, 10**12),
    c.AddAsset("AAA", 0, 10**9),
    c.AddAsset("BBB", 1, 10**9),
    c.AddInstrument("AAA-USD", "AAA", "USD", 2, 0, 1, 1, 5, 10, LIMITS),
    c.AddInstrument("BBB-USD", "BBB", "USD", 2, 1, 10, 10, 0, 30, LIMITS, c.Calendar(WEEKLY, 120, ((20_259, None),))),
    c.AddInstrument("BBB-AAA", "BBB", "AAA", 0, 1, 1, 10, 0, 0, LIMITS, c.Calendar((), -60)),
)


class Flow:
    """Commands in groups of one second each."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.stamp_us = START_US
        self.keys = 0
        self.reports = 0
        self.backing = MemoryBacking(keep_history=False)
        self.guide = Machine(self.backing)

    def groups(self, count: int) -> Iterator[tuple[int, list[Envelope]]]:
        """(stamp, commands of that second), `count` times after the one that lists everything."""
        first = [self.envelope("@operator", command) for command in LISTING]
        for account in ACCOUNTS:
            first.append(self.envelope("@operator", c.OpenAccount(account)))
            for asset, units in (("USD", 500_000), ("AAA", 3_000), ("BBB", 30_000)):
                first.append(self.envelope("@custodian", c.Deposit(account, asset, units)))
        group = first
        for _ in range(count + 1):
            yield self.stamp_us, group
            run(self.guide, self.backing, [encode_batch(self.stamp_us, group)])
            self.stamp_us += self.random.choice((1, 1, 1, 2, 7)) * SECOND_US
            group = [self.any_envelope() for _ in range(self.random.randint(1, 12))]

    def envelope(self, scope: str, command: c.Command) -> Envelope:
        self.keys += 1
        sent_at_us = self.stamp_us if self.keys % 3 == 0 else 0
        return Envelope(scope, f"key-{self.keys}", sent_at_us, encode_command(command))

    def any_envelope(self) -> Envelope:
        choice = self.random.random()
        account = self.random.choice(ACCOUNTS)
        if choice < 0.55:
            return self.envelope(account, self.place(account))
        if choice < 0.82:
            return self.envelope(account, self.of_trader(account))
        if choice < 0.97:
            return self.envelope("@operator", self.of_operator())
        if choice < 0.98:
            self.keys -= 1  # a repeat: the key before this one, perhaps with another body
            return self.envelope(account, self.place(account))
        return Envelope("@member", "", 0, encode_command(self.of_member(account)))

    def order_id(self, account: str) -> int:
        """Mostly one that was open a second ago."""
        orders = self.guide.open_orders(account)
        if not orders or self.random.random() < 0.05:
            return self.random.randint(1, 50)
        return self.random.choice(orders).order_id

    def named(self, account: str) -> tuple[int, str]:
        """The same by its id, or by its key."""
        order_id = self.order_id(account)
        order = self.guide.order(order_id)
        return (order_id, "") if order is None or self.random.random() < 0.7 else (0, order.key)

    def session(self, account: str) -> str:
        sessions = self.guide.sessions(account)
        return self.random.choice(sessions).session if sessions else self.random.choice(("s1", "s2"))

    def place(self, account: str) -> c.Command:
        random = self.random
        type_ = OrderType.market if random.random() < 0.15 else OrderType.limit
        if type_ is OrderType.market:
            time_in_force = random.choice((TimeInForce.ioc, TimeInForce.ioc, TimeInForce.fok))
        else:
            time_in_force = random.choice((TimeInForce.gtc,) * 4 + tuple(TimeInForce))
        by_budget = type_ is OrderType.market and random.random() < 0.4
        return c.PlaceOrder(
            account,
            random.choice(SYMBOLS),
            Side.buy if by_budget else random.choice(tuple(Side)),
            type_,
            time_in_force,
            random.choice((0, 95, 105)) if type_ is OrderType.market else random.randint(92, 108),
            0 if by_budget else random.randint(1, 40),
            random.randint(50, 9_000) if by_budget else 0,
            self.stamp_us + random.randint(0, 20) * SECOND_US + HALF_US if time_in_force is TimeInForce.gtd else 0,
            type_ is OrderType.limit and time_in_force is TimeInForce.gtc and random.random() < 0.2,
            random.choice(tuple(SelfTrade)),
            self.session(account) if random.random() < 0.2 else "",
        )

    def of_trader(self, account: str) -> c.Command:
        random = self.random
        choice = random.random()
        if choice < 0.35:
            return c.CancelOrder(account, *self.named(account))
        if choice < 0.75:
            order_id, order_key = self.named(account)
            price_ticks = random.choice((0, 0, random.randint(92, 108)))
            symbol = random.choice(SYMBOLS) if random.random() < 0.1 else ""
            return c.ReplaceOrder(account, order_id, price_ticks, random.randint(0, 40), order_key, symbol)
        if choice < 0.78:
            return c.CancelAccountOrders(account, random.choice(("", *SYMBOLS)))
        if choice < 0.88:
            # No two deadlines in one millisecond: which session ends first would be for the microseconds to say.
            timeout_ms = random.choice((5_100, 20_100, 60_100)) + self.keys % 800
            return c.OpenSession(account, random.choice(("s1", "s2")), timeout_ms)
        if choice < 0.90:
            return c.CloseSession(account, self.session(account))
        if choice < 0.95:
            return c.RequestWithdrawal(account, random.choice(("USD", "AAA")), random.randint(1, 2_000))
        return c.Transfer(account, random.choice(ACCOUNTS), random.choice(("USD", "BBB")), random.randint(1, 5_000))

    def of_operator(self) -> c.Command:
        random = self.random
        choice = random.random()
        symbol = random.choice(SYMBOLS)
        pending = [number for number in range(1, 200) if self.guide.withdrawal(number)]
        withdrawal_id = random.choice(pending) if pending else 1
        if choice < 0.6:
            return c.SetReference(symbol, random.randint(97, 103), self.stamp_us - random.randint(0, 2) * SECOND_US)
        if choice < 0.68:
            return c.PostWithdrawal(withdrawal_id)
        if choice < 0.76:
            return c.VoidWithdrawal(withdrawal_id)
        if choice < 0.82:
            return c.SetMode(random.choice((symbol, "")), random.choice((Mode.trading,) * 12 + tuple(Mode)))
        if choice < 0.86:
            return c.SetFees(symbol, random.randint(0, 40), random.randint(0, 40))
        if choice < 0.88:
            return c.CancelInstrumentOrders(symbol)
        if choice < 0.92:
            return c.SetLimits(symbol, LIMITS)
        if choice < 0.94:
            return c.SetCalendar(symbol, c.Calendar(WEEKLY, random.choice((-60, 0, 60))))
        if choice < 0.96:
            return c.ActivateRules(1)
        return c.Deposit(random.choice(ACCOUNTS), "USD", random.randint(1, 10_000))

    def of_member(self, account: str) -> c.Command:
        choice = self.random.random()
        if choice < 0.6:
            return c.TimeStep()
        if choice < 0.8:
            return c.BeatSession(account, self.session(account))
        self.reports += 1
        return c.ReportDigest(f"member-{self.reports % 3}", self.reports // 3, bytes(16), 3)


@cache
def groups(seed: int, count: int) -> list[tuple[int, list[Envelope]]]:
    return list(Flow(seed).groups(count))


def payloads(seed: int, count: int, *, per_batch: int = 0) -> list[bytes]:
    """Batches of one flow: one per second, or of `per_batch` commands with the stamp of their second."""
    batches: list[bytes] = []
    for stamp_us, envelopes in groups(seed, count):
        size = per_batch or len(envelopes)
        batches += [encode_batch(stamp_us, envelopes[at : at + size]) for at in range(0, len(envelopes), size)]
    return batches


def run(machine: Machine, backing: MemoryBacking, batches: list[bytes]) -> list[Applied]:
    applied = []
    for payload in batches:
        applied.append(machine.apply(machine.applied_index + 1, payload))
        backing.write(applied[-1])
    return applied


def state_digest(machine: Machine, backing: MemoryBacking) -> str:
    """One hash over every record, after storing what is dirty."""
    backing.store(machine.collect())
    digest = blake2b(digest_size=16)
    for table, rows in backing.tables.items():
        for key, value in sorted(rows.items()):
            digest.update(b"%s %s %s\n" % (table.encode(), key.hex().encode(), value.hex().encode()))
    return digest.hexdigest()


def main() -> None:
    backing = MemoryBacking()
    machine = Machine(backing)
    run(machine, backing, payloads(int(sys.argv[1]), 300))
    print(machine.digest.hex(), state_digest(machine, backing))


if __name__ == "__main__":
    main()
