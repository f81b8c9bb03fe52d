"""Returns of accounts over the day, the week and all time, ranked now and then; a deposit is no gain.

Returns are time-weighted (linked sub-periods, as the GIPS standards have it for portfolios): at each flow of money
or shares in or out, what the account was worth before it ends one sub-period, and what it is worth after it begins the
next. Worth is counted at the gateway's own marks, in floats: this is for show, and the two sites may differ by a tick
of their quotes. Ranks are recomputed every few seconds in pieces, so that nobody waits for them.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from msgspec import Struct

from gateway.events import Traded, Transferred
from gateway.projection.accounts import Account
from gateway.projection.projector import Batch, Row, Touch

EVERY_S = 3.0
PIECE = 1_000
TOP_MAX = 1_000
WORTH_MIN = 1.0
"""In the ranking's currency. Who holds less has no return that says anything."""


class Period(StrEnum):
    day = "day"
    """Since midnight, UTC."""
    week = "week"
    """Since Monday, UTC."""
    all = "all"
    """Since this gateway's group first saw the account."""


class Standing(Struct, array_like=True):
    """growth: the product of all sub-periods so far. worth: when the present one began. bases: growth at a period's
    beginning, with the name of that period, as `2026-11-20` or `2026-W47`."""

    growth: float = 1.0
    worth: float = 0.0
    bases: dict[str, tuple[str, float]] = {}


class Place(Struct, frozen=True):
    """rank: from 1; equal returns rank by account name, so that ties do not change places."""

    rank: int
    account: str
    return_pct: float


class Table(Struct, frozen=True):
    """as_of_us: when it was computed. ranked: how many accounts are in it."""

    period: Period
    as_of_us: int
    ranked: int
    top: list[Place]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Standing).decode

Prices = Callable[[str], float | None]
"""What one unit of an asset is worth in the ranking's currency; None where nobody says."""


class Leaderboard:
    """Implements Projector, beside Accounts, and comes after it: balances are those after the batch.

    hidden(account): it opted out. wall_us: the clock that days and ages are told by.
    """

    kind = "leaderboard"

    def __init__(
        self,
        accounts: dict[str, Account],
        prices: Prices,
        *,
        hidden: Callable[[str], bool] = lambda _account: False,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.touch: Touch = lambda _field: None
        self.standings: dict[str, Standing] = {}
        self.tables: dict[Period, Table] = {}
        self.on_tables: Callable[[], None] = lambda: None
        self._accounts = accounts
        self._prices = prices
        self._hidden = hidden
        self._wall_us = wall_us
        self._sorted: dict[Period, list[tuple[float, str]]] = {}
        self._returns: dict[Period, dict[str, float]] = {}

    # ---- Projector ----

    def reset(self) -> None:
        self.standings.clear()

    def row(self, table: str, row: Row, at_us: int) -> None:
        pass

    def fields(self) -> Iterable[str]:
        return self.standings

    def dump(self, field: str) -> bytes | None:
        standing = self.standings.get(field)
        return None if standing is None else _encode(standing)

    def load(self, field: str, value: bytes) -> None:
        self.standings[field] = _decode(value)

    def apply(self, batch: Batch) -> None:
        flows: dict[str, float] = {}
        for event in batch.events:
            if not isinstance(event, Transferred):
                continue
            price = self._prices(event.asset)
            value = float(event.amount) * (price or 0.0)
            for account, sign in ((event.source, -1.0), (event.target, 1.0)):
                if not account.startswith("@"):
                    flows[account] = flows.get(account, 0.0) + sign * value
        for account, flow in flows.items():
            worth = self._worth(account)
            if worth is not None:
                self._link(account, worth - flow, worth)
        for event in batch.events:
            if isinstance(event, Traded):
                for account in (event.taker_account, event.maker_account):
                    self.standings.setdefault(account, Standing(bases={}))

    def _link(self, account: str, before: float, after: float) -> None:
        """End a sub-period at `before` and begin the next at `after`."""
        standing = self.standings.setdefault(account, Standing(bases={}))
        if standing.worth >= WORTH_MIN and before > 0:
            standing.growth *= before / standing.worth
            if before != standing.worth:
                self.touch(account)
        if standing.worth != after:
            standing.worth = after
            self.touch(account)

    def _worth(self, name: str) -> float | None:
        """None where something that is held has no price: half of it would look like a loss."""
        account = self._accounts.get(name)
        if account is None:
            return None
        worth = 0.0
        for asset, balance in account.balances.items():
            if balance.owned:
                price = self._prices(asset)
                if price is None:
                    return None
                worth += float(balance.owned) * price
        return worth

    # ---- ranking ----

    async def run(self) -> None:
        """Rank again and again. Never raises but CancelledError."""
        while True:
            await self.rank()
            await asyncio.sleep(EVERY_S)

    async def rank(self) -> None:
        """Bring every standing up to now and rank them; other work goes on in between."""
        now_us = self._wall_us()
        names = period_names(now_us)
        returns: dict[Period, dict[str, float]] = {period: {} for period in Period}
        for number, name in enumerate(list(self._accounts)):
            if number % PIECE == PIECE - 1:
                await asyncio.sleep(0)
            worth = self._worth(name)
            if worth is None:
                continue
            self._link(name, worth, worth)
            standing = self.standings[name]
            for period, label in names.items():
                known = standing.bases.get(period)
                if known is None or known[0] != label:
                    standing.bases[period] = (label, standing.growth)
                    self.touch(name)
            if worth < WORTH_MIN or self._hidden(name):
                continue
            for period in Period:
                returns[period][name] = standing.growth / standing.bases[period][1] - 1.0
        self._returns = returns
        for period, found in returns.items():
            ranked = sorted((-value, name) for name, value in found.items())
            self._sorted[period] = ranked
            top = [Place(rank, name, -value * 100.0) for rank, (value, name) in enumerate(ranked[:TOP_MAX], 1)]
            self.tables[period] = Table(period, now_us, len(ranked), top)
        self.on_tables()

    def place(self, period: Period, account: str) -> Place | None:
        """Where an account is; None when it is not ranked: opted out, empty, without prices, or new."""
        value = self._returns.get(period, {}).get(account)
        if value is None:
            return None
        rank = bisect_left(self._sorted[period], (-value, account)) + 1
        return Place(rank, account, value * 100.0)


def period_names(now_us: int) -> dict[Period, str]:
    today = datetime.fromtimestamp(now_us / 1e6, UTC)
    year, week, _ = today.isocalendar()
    return {Period.day: today.strftime("%Y-%m-%d"), Period.week: f"{year}-W{week:02d}", Period.all: "all"}
