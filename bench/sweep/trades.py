"""A flow of orders that fill: makers rest, one order takes them; so many trades a second can be asked for."""

import random
from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from cluster.wire import AnyRequest, CancelOrder, PlaceOrder, SideWord

PRICE = "100.00"
DEEP_MAX = 1_000
"""Orders of a group that rest far from the touch, until the oldest are canceled."""

Sides = tuple[tuple[SideWord, Sequence[str]], tuple[SideWord, Sequence[str]]]


class Flow(Struct, frozen=True):
    """What is asked for.

    symbols: drawn alike. groups: accounts that share a token, and so connections; half of each buy and the others
        sell, so that nobody meets himself.
    makers: orders of one lot that each taking order takes: of `makers` + 1 orders there are `makers` fills.
    crossing: which share of all requests does that; the others rest far from the touch and are canceled again.
    """

    symbols: list[str]
    groups: list[list[str]]
    makers: int = 1
    crossing: float = 1.0

    def orders_per_fill(self) -> float:
        """Requests for one fill, on the mean."""
        return (self.makers + 1) / self.makers / self.crossing if self.crossing else 0.0


class Trades:
    """One flow; a seed and a name for its keys make it."""

    def __init__(self, flow: Flow, run: str, seed: int) -> None:
        if min(map(len, flow.groups)) < 2:
            raise ValueError("a trade has two sides: a group has at least two accounts")
        self._flow = flow
        self._run = run
        self._draws = random.Random(f"{seed}:{run}")
        self._sides: list[Sides] = [
            (("sell", group[len(group) // 2 :]), ("buy", group[: len(group) // 2])) for group in flow.groups
        ]
        self._number = 0
        self._turn = 0
        self._symbol = flow.symbols[0]
        self._deep: list[deque[tuple[str, str]]] = [deque() for _ in flow.groups]

    def next(self, group: int, sent_at: str) -> AnyRequest:
        """The next request, by an account of this group, under a key of its own. sent_at: in RFC 3339."""
        self._number += 1
        key = f"{self._run}-{self._number}"
        if self._flow.crossing < 1.0 and self._draws.random() >= self._flow.crossing:
            return self._far(group, key, sent_at)
        cycle, place = divmod(self._turn, self._flow.makers + 1)
        self._turn += 1
        if place == 0 and len(self._flow.symbols) > 1:
            self._symbol = self._draws.choice(self._flow.symbols)
        taking = place == self._flow.makers
        # Sides change after each cycle. All are at one price: whoever comes first rests, the other fills, whichever
        # connection was faster.
        side, accounts = self._sides[group][(cycle + taking) % 2]
        return PlaceOrder(
            key=key,
            sent_at=sent_at,
            account=self._draws.choice(accounts),
            symbol=self._symbol,
            side=side,
            type="limit",
            time_in_force="gtc",
            qty=self._flow.makers if taking else 1,
            limit_price=PRICE,
        )

    def _far(self, group: int, key: str, sent_at: str) -> AnyRequest:
        deep = self._deep[group]
        if len(deep) >= DEEP_MAX:
            account, placed = deep.popleft()
            return CancelOrder(key=key, sent_at=sent_at, account=account, original_client_order_id=placed)
        side, accounts = self._draws.choice(self._sides[group])
        account = self._draws.choice(accounts)
        deep.append((account, key))
        away = self._draws.randrange(1, 50)
        return PlaceOrder(
            key=key,
            sent_at=sent_at,
            account=account,
            symbol=self._draws.choice(self._flow.symbols),
            side=side,
            type="limit",
            time_in_force="gtc",
            qty=1,
            limit_price=f"{100 - away if side == 'buy' else 100 + away}.00",
        )
