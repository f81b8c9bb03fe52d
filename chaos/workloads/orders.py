"""orders: submitted, replaced, canceled and filled by 16 traders in three instruments; money and goods are reserved."""

import random
from collections import deque
from decimal import Decimal
from typing import Any

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.operation import Request
from chaos.workloads.process import Process, settle
from chaos.workloads.requests import plain
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

TRADERS = 16
QUOTE = "USD"
BASES = ("ORDA", "ORDB", "ORDC")
MONEY, GOODS = "1000000", "100000"
MID_TICKS = 10_000
NEAR_TICKS, FAR_TICKS = 12, 60
"""How far an order may stand on the other side's half, and on its own: some meet another at once, most rest a while."""
QTY_MAX = 10
OVERSELL = 0.03
TOO_MANY = "90000000"
SIDES = ("buy", "sell")
KNOWN_MAX = 50
"""Orders of an account that may still be open, the newest last."""


FEES = {"ORDB": {"maker_bps": 2, "taker_bps": 9}}


def symbol_of(base: str) -> str:
    return f"{base}-{QUOTE}"


class Orders(Workload):
    name = "orders"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.traders = [f"trader-{number:02d}" for number in range(TRADERS)]
        self._zipf = Zipf(self.traders)
        self._symbols = Zipf([symbol_of(base) for base in BASES])
        self._open: dict[str, deque[tuple[str, str]]] = {trader: deque(maxlen=KNOWN_MAX) for trader in self.traders}

    async def setup(self) -> None:
        await settle(self.context, self.name, [[*market(QUOTE, 2)], *([*market(base, 0)] for base in BASES)])
        await settle(self.context, self.name, [listed(base) for base in BASES])
        self.context.accounts.update(self.traders)
        await settle(self.context, self.name, [funded(trader) for trader in self.traders])

    async def step(self, process: Process) -> None:
        chance = process.chance
        account = self._zipf.one(chance)
        known = self._open[account]
        drawn = chance.random()
        if drawn < 0.06:
            await process.ask(requests.read_account(account))
        elif drawn < 0.60 or not known:
            await self._place(process, account)
        elif drawn < 0.68:
            await process.ask(requests.read_order(known[-1][1]))
        elif drawn < 0.82:
            await self._replace(process, account)
        elif drawn < 0.995:
            await self._cancel(process, account)
        else:
            known.clear()
            await process.ask(requests.cancel_orders(account, key=process.new_key()))

    async def _place(self, process: Process, account: str) -> None:
        order = drawn_order(process, self._symbols.one(process.chance))
        key = process.new_key()
        reply = await process.ask(requests.place_order(account, order, key=key))
        if reply.outcome == "ok" and reply.answer.get("leaves_qty", "0") != "0":
            self._open[account].append((key, reply.answer["id"]))

    async def _replace(self, process: Process, account: str) -> None:
        chance = process.chance
        named, order_id = self._open[account].pop()
        is_key = chance.random() < 0.5
        changes: dict[str, Any] = {"qty": str(chance.randint(1, QTY_MAX))}
        if chance.random() < 0.6:
            changes["limit_price"] = drawn_price(chance, chance.choice(SIDES))
        key = process.new_key()
        request = requests.replace_order(
            account, named=named if is_key else order_id, is_key=is_key, changes=changes, key=key
        )
        reply = await process.ask(request)
        if reply.outcome == "ok" and "id" in reply.answer:
            self._open[account].append((key, reply.answer["id"]))

    async def _cancel(self, process: Process, account: str) -> None:
        known = self._open[account]
        named, order_id = known.popleft() if process.chance.random() < 0.2 else known.pop()
        is_key = process.chance.random() < 0.5
        key = process.new_key()
        await process.ask(requests.cancel_order(account, named=named if is_key else order_id, is_key=is_key, key=key))


def market(asset: str, scale: int) -> list[Request]:
    return [requests.add_asset(asset, scale=scale, key=f"setup-asset-{asset}")]


def listed(base: str) -> list[Request]:
    symbol, key = symbol_of(base), f"setup-list-{base}"
    made = [requests.add_instrument(symbol, base, QUOTE, tick_size="0.01", lot_size="1", key=key)]
    if base in FEES:
        made.append(requests.change_instrument(symbol, FEES[base], key=f"setup-fees-{base}"))
    return made


def funded(trader: str) -> list[Request]:
    """Opened, with money and with goods."""
    amounts = [(QUOTE, MONEY), *((base, GOODS) for base in BASES)]
    return [
        requests.open_account(trader, key=f"setup-open-{trader}"),
        *(requests.deposit(trader, asset, amount, key=f"setup-fund-{trader}-{asset}") for asset, amount in amounts),
    ]


def drawn_order(process: Process, symbol: str) -> dict[str, Any]:
    """Mostly limit orders that rest or meet one; some fill or go; a few ask for more than there is."""
    chance = process.chance
    order: dict[str, Any] = {
        "symbol": symbol,
        "side": (side := chance.choice(SIDES)),
        "type": "limit",
        "qty": str(chance.randint(1, QTY_MAX)),
        "limit_price": drawn_price(chance, side),
    }
    drawn = chance.random()
    if drawn < OVERSELL:
        order["qty"] = TOO_MANY
    elif drawn < 0.10:
        order["time_in_force"] = chance.choice(("ioc", "fok"))
    elif drawn < 0.16:
        order["post_only"] = True
    return order


def drawn_price(chance: random.Random, side: str) -> str:
    towards = chance.randint(-FAR_TICKS, NEAR_TICKS)
    return price_of(MID_TICKS + towards if side == "buy" else MID_TICKS - towards)


def price_of(ticks: int) -> str:
    return plain(Decimal(ticks) / 100)
