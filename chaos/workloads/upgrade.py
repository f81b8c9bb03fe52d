"""upgrade: every kind of command there is, while members are stopped and started with another program, one by one.

Two programs must agree on what each command does, or their digests part. Members are asked which version they are.
"""

from collections import deque
from typing import Any

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.orders import MID_TICKS, Orders, drawn_order, price_of, symbol_of
from chaos.workloads.process import Process, settle
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

BASE = "ORDA"
WITHDRAWALS_KNOWN = 40


class Upgrade(Workload):
    name = "upgrade"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._orders = Orders(context)
        self._zipf = Zipf(self._orders.traders)
        self._pending: deque[str] = deque(maxlen=WITHDRAWALS_KNOWN)
        self._listed = 0

    async def setup(self) -> None:
        await self._orders.setup()
        # Market orders need a price from outside that is fresh for the whole run.
        limits = {"limits": {"reference_age_ms_max": 86_400_000, "collar_bps": 1_000}}
        await settle(
            self.context,
            self.name,
            [[requests.change_instrument(symbol_of(BASE), limits, key=f"setup-limits-{BASE}")]],
        )

    async def step(self, process: Process) -> None:
        chance = process.chance
        drawn = chance.random()
        account = self._zipf.one(chance)
        key = process.new_key()
        if drawn < 0.45:
            await self._orders.step(process)
        elif drawn < 0.52:
            order: dict[str, Any] = {
                "symbol": symbol_of(BASE),
                "side": chance.choice(("buy", "sell")),
                "type": "market",
            }
            if order["side"] == "buy" and chance.random() < 0.5:
                order["notional"] = f"{chance.randint(100, 900)}"
            else:
                order["qty"] = f"{chance.randint(1, 5)}"
            await process.ask(requests.place_order(account, order, key=key))
        elif drawn < 0.57:
            order = drawn_order(process, symbol_of(BASE)) | {"self_trade": "decrement"}
            await process.ask(requests.place_order(account, order, key=key))
        elif drawn < 0.65:
            reply = await process.ask(requests.request_withdrawal(account, "USD", f"{chance.randint(1, 50)}", key=key))
            if reply.outcome == "ok" and "id" in reply.answer:
                self._pending.append(reply.answer["id"])
        elif drawn < 0.72 and self._pending:
            post = chance.random() < 0.5
            await process.ask(requests.close_withdrawal(self._pending.popleft(), post=post, key=key))
        elif drawn < 0.77:
            await process.ask(requests.change_instrument(symbol_of("ORDB"), _fees(process), key=key))
        elif drawn < 0.80:
            mode = chance.choice(("post_only", "cancel_only", "halted", "trading", "trading", "trading"))
            await process.ask(requests.change_instrument(symbol_of("ORDC"), {"mode": mode}, key=key))
        elif drawn < 0.84:
            price = price_of(MID_TICKS + chance.randint(-5, 5))
            await process.ask(requests.set_reference(symbol_of(BASE), price, requests.now(), key=key))
        elif drawn < 0.88:
            other = self._zipf.one(chance)
            await process.ask(requests.transfer(account, other, "USD", "1.50", key=key))
        elif drawn < 0.90:
            self._listed += 1
            await process.ask(requests.open_account(f"upgrade-{self.context.seed}-{self._listed}", key=key))
            self.context.accounts.add(f"upgrade-{self.context.seed}-{self._listed}")
        else:
            await process.ask(requests.read_status())


def _fees(process: Process) -> dict[str, Any]:
    return {"maker_bps": process.chance.randint(0, 5), "taker_bps": process.chance.randint(0, 20)}
