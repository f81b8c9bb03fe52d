"""register: many small registers, written, compared-and-swapped and read, for a checker that trusts no index.

Two things in the product are registers. An account's only open order: its key is the value, and a replacement that
names the order by its key is a compare-and-swap. An instrument's reference price: a plain write, refused when a newer
one is there. An unconditional write of the first kind, or a swap of the second, the product has not.
"""

import random
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.operation import Request
from chaos.workloads.orders import market
from chaos.workloads.process import Process, settle
from chaos.workloads.requests import plain
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ACTIVE = 8
"""Registers in use at a time, half of each kind."""
OPS_MAX = 150
"""After so many calls a register is left, and another begun: the checker's work grows fast with a key's history."""
QUOTE, BASE, SYMBOL = "USD", "REG", "REG-USD"
READS = 0.45
WAITS = 0.75
"""How often a client that could swap reads instead, while another's swap is under way: most would only be refused."""
STALE_GUESS = 0.15
GUESSES_KEPT = 8


class Register:
    """making: what is to be done before it can be used, the next last; whoever comes by does one, with its key."""

    def __init__(self, name: str, making: list[Request], first: str) -> None:
        self.name = name
        self.making = making
        self.ops = 0
        self.swapping = 0
        self.values = [first] if first else []
        """That were seen or written, the newest last."""

    def guess(self, chance: random.Random) -> str:
        if len(self.values) > 1 and chance.random() < STALE_GUESS:
            return chance.choice(self.values[:-1])
        return self.values[-1]

    def saw(self, value: str) -> None:
        if value in self.values:
            self.values.remove(value)
        self.values = [*self.values[-GUESSES_KEPT:], value]


class Registers(Workload):
    name = "register"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._made = 0
        self._prices = 0
        self._active: list[Register] = []
        self._places = Zipf(range(ACTIVE), skew=0.5)

    async def setup(self) -> None:
        await settle(self.context, self.name, [market(QUOTE, 2), market(BASE, 0)])
        listed = requests.add_instrument(SYMBOL, BASE, QUOTE, tick_size="0.01", lot_size="1", key="setup-list-REG")
        await settle(self.context, self.name, [[listed]])
        self._active = [self._new(is_order=place % 2 == 0) for place in range(ACTIVE)]

    def _new(self, *, is_order: bool) -> Register:
        self._made += 1
        number, seed = self._made, self.context.seed
        if not is_order:
            symbol = f"R{seed % 10**8}-{number}"
            key = f"register-{seed}-list-{number}"
            listing = requests.add_instrument(symbol, BASE, QUOTE, tick_size="0.01", lot_size="1", key=key)
            return Register(symbol, [listing], "")
        account, key = f"reg-{seed}-{number}", f"register-{seed}-first-{number}"
        self.context.accounts.add(account)
        order = {"symbol": SYMBOL, "side": "sell", "type": "limit", "qty": "1", "limit_price": self._price()}
        making = [
            requests.place_order(account, order, key=key),
            requests.deposit(account, BASE, "1", key=f"register-{seed}-fund-{number}"),
            requests.open_account(account, key=f"register-{seed}-open-{number}"),
        ]
        return Register(account, making, key)

    def _price(self) -> str:
        """Another each time; nobody buys, so nothing ever trades."""
        self._prices += 1
        return plain(Decimal(10_000 + self._prices) / 100)

    async def step(self, process: Process) -> None:
        place = self._places.one(process.chance)
        register = self._active[place]
        if register.ops >= OPS_MAX:
            register = self._active[place] = self._new(is_order=place % 2 == 0)
        if register.making:
            making = register.making[-1]
            reply = await process.ask(making)
            if reply.outcome == "ok" and register.making and register.making[-1] is making:
                register.making.pop()
            return
        register.ops += 1
        if place % 2 == 0:
            await self._order(process, register)
        else:
            await self._reference(process, register)

    async def _order(self, process: Process, register: Register) -> None:
        if process.chance.random() < (WAITS if register.swapping else READS):
            request = _as(requests.read_open_orders(register.name), register, "read")
            reply = await process.ask(replace(request, kept=_only_key))
            if reply.answer.get("value"):
                register.saw(reply.answer["value"])
            return
        expect, value = register.guess(process.chance), process.new_key()
        changes = {"limit_price": self._price(), "symbol": SYMBOL}
        request = requests.replace_order(register.name, named=expect, is_key=True, changes=changes, key=value)
        register.swapping += 1
        reply = await process.ask(_as(request, register, "cas", expect=expect, value=value))
        register.swapping -= 1
        if reply.outcome == "ok" and "error" not in reply.answer:
            register.saw(value)

    async def _reference(self, process: Process, register: Register) -> None:
        if process.chance.random() < READS:
            request = _as(requests.read_reference(register.name), register, "read")
            await process.ask(replace(request, kept=lambda body: {"value": body.get("reference_price")}))
            return
        value = self._price()
        request = requests.set_reference(register.name, value, requests.now(), key=process.new_key())
        await process.ask(_as(request, register, "write", value=value))


def _as(request: Request, register: Register, does: str, **more: Any) -> Request:
    """The same, told as a register's: `f` is read, write or cas."""
    return replace(request, args={**request.args, "register": register.name, "f": does, **more})


def _only_key(body: dict[str, Any]) -> dict[str, Any]:
    """The value of a register that is an order; none where the account has no open order, or two."""
    keys = [one["client_order_id"] for one in body["items"]]
    return {"value": keys[0] if len(keys) == 1 else None}
