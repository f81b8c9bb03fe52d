"""idempotence: each key sent up to five times, by several clients to several members, now or seconds later, with the
same body or another; the first try of some is given up before it can be answered."""

import time
from collections.abc import Callable
from heapq import heappop, heappush

from msgspec import Struct

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.operation import Request
from chaos.workloads.orders import market
from chaos.workloads.process import Process, settle
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ACCOUNTS = 12
QUOTE, BASE, SYMBOL = "USD", "IDEM", "IDEM-USD"
SENT_MAX = 5
GIVEN_UP = 0.30
GIVEN_UP_MS_MAX = 3
"""Sooner than most commands are on two disks."""
OTHER_BODY = 0.15
AT_ONCE = 0.30
LATER_S_MAX = 12.0
"""Longer than a member takes to be killed and to come back."""
WAITING_MAX = 300

Maker = Callable[[int], Request]
"""The request under one key; another number is another body."""


class Again(Struct, order=True, gc=False):
    """One more time that a key will be sent. number: makes the order whole."""

    due_s: float
    number: int
    make: Maker
    body: int


class Idempotence(Workload):
    name = "idempotence"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.accounts = [f"idem-{number:02d}" for number in range(ACCOUNTS)]
        self._zipf = Zipf(self.accounts)
        self._again: list[Again] = []
        self._number = 0

    async def setup(self) -> None:
        await settle(self.context, self.name, [market(QUOTE, 2), market(BASE, 0)])
        listed = requests.add_instrument(SYMBOL, BASE, QUOTE, tick_size="0.01", lot_size="1", key="setup-list-IDEM")
        await settle(self.context, self.name, [[listed]])
        self.context.accounts.update(self.accounts)
        rows = [
            [
                requests.open_account(account, key=f"setup-open-{account}"),
                requests.deposit(account, QUOTE, "1000000", key=f"setup-fund-{account}-{QUOTE}"),
                requests.deposit(account, BASE, "1000000", key=f"setup-fund-{account}-{BASE}"),
            ]
            for account in self.accounts
        ]
        await settle(self.context, self.name, rows)

    async def step(self, process: Process) -> None:
        if self._again and (self._again[0].due_s <= time.monotonic() or len(self._again) > WAITING_MAX):
            await self._repeat(process)
            return
        chance = process.chance
        make = self._new(process)
        body = chance.randint(1, 1_000)
        now = time.monotonic()
        for _ in range(chance.randint(1, SENT_MAX) - 1):
            self._number += 1
            due_s = now + (0.0 if chance.random() < AT_ONCE else chance.uniform(0.0, LATER_S_MAX))
            other = body + 1 if chance.random() < OTHER_BODY else body
            heappush(self._again, Again(due_s, self._number, make, other))
        timeout_ms = chance.randint(1, GIVEN_UP_MS_MAX) if chance.random() < GIVEN_UP else 0
        await process.ask(make(body), timeout_ms=timeout_ms)

    async def _repeat(self, process: Process) -> None:
        again = heappop(self._again)
        target = process.elsewhere() if process.chance.random() < 0.5 else ""
        await process.ask(again.make(again.body), target)

    def _new(self, process: Process) -> Maker:
        chance, key = process.chance, process.new_key()
        account, other = self._zipf.two(chance)
        drawn = chance.random()
        if drawn < 0.35:
            return lambda body: requests.deposit(account, QUOTE, f"{body}", key=key)
        if drawn < 0.65:
            return lambda body: requests.transfer(account, other, QUOTE, f"{body}", key=key)
        if drawn < 0.75:
            return lambda body: requests.request_withdrawal(account, QUOTE, f"{body}", key=key)
        if drawn < 0.80:
            name = f"i{key}"
            self.context.accounts.update((f"{name}-0", f"{name}-1"))
            return lambda body: requests.open_account(f"{name}-{body % 2}", key=key)
        side = chance.choice(("buy", "sell"))
        price = f"{chance.randint(95, 105)}"
        order = {"symbol": SYMBOL, "side": side, "type": "limit", "limit_price": price}
        return lambda body: requests.place_order(account, {**order, "qty": f"{body}"}, key=key)
