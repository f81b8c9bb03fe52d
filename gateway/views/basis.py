"""Finds out what lots from before a snapshot cost: from an account's ledger at a node, row by row, back to its start.

The ledger tells deposits and trades apart and in order, which trades alone would not; what is older than a node keeps,
or than is read, stays a lot without a basis. One account after another, those that somebody looks at first.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import aiohttp
import msgspec
import structlog
from msgspec import Struct

from gateway.projection.accounts import Instrument
from gateway.projection.host import micros
from gateway.views.lots import ZERO
from gateway.views.portfolio import Deed, Portfolios

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.basis")

PAGE_ROWS = 1_000
PAGES_MAX = 50
"""Of one account: 50,000 rows are some 15,000 trades. What is older stays unknown."""
PAUSE_S = 0.05
"""Between two accounts: nodes have better to do. 100,000 accounts take an hour and a half."""
AWAY_S = 1.0
TIMEOUT_S = 10.0


class LedgerRow(Struct, frozen=True):
    """amount: below zero when it left. balance: after it. reference: of a trade and its fee, the trade's id."""

    index: int
    asset: str
    amount: Decimal
    balance: Decimal
    reason: str
    reference: str
    at: str


class _Page(Struct, frozen=True):
    items: list[LedgerRow]
    next_page_token: str | None = None


_decode = msgspec.json.Decoder(_Page).decode


class Basis:
    """nodes, token, tls: as the follower's. counters: for metrics."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        nodes: Callable[[], Sequence[str]],
        token: Callable[[], str],
        portfolios: Portfolios,
        instruments: Mapping[str, Instrument],
        *,
        tls: Callable[[], ssl.SSLContext | bool] = lambda: True,
    ) -> None:
        self._session = session
        self._nodes = nodes
        self._token = token
        self._portfolios = portfolios
        self._instruments = instruments
        self._tls = tls
        self._turn = 0
        self.counters = {"filled": 0, "failed": 0, "given_up": 0}

    async def run(self) -> None:
        """For ever. Raises nothing but CancelledError."""
        portfolios = self._portfolios
        while True:
            await asyncio.sleep(PAUSE_S)
            account = next(iter(portfolios.asked), None) or next(iter(portfolios.unknown), None)
            book = portfolios.books.get(account) if account is not None else None
            if account is None or book is None or book.past is None or not book.past.index:
                continue  # none, or its snapshot is being read
            try:
                await self.fill(account)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
                self.counters["failed"] += 1
                self._turn += 1
                log.info("an account's past is not known yet", account=account, error=f"{error}"[:300])
                await asyncio.sleep(AWAY_S)

    async def fill(self, account: str) -> None:
        """Read one account's past and work its lots out. Raises what asking a node raises, and ValueError."""
        portfolios = self._portfolios
        past = portfolios.books[account].past
        if past is None:
            return
        rows = await self._rows(account, past.index)
        book = portfolios.books.get(account)
        if book is None or book.past is not past:
            return  # another snapshot was read meanwhile
        why = portfolios.fill_in(account, deeds(rows, past.owned, portfolios.cash_assets, self._instruments.values()))
        self.counters["given_up" if why else "filled"] += 1
        if why:
            log.error("an account's past stays unknown", account=account, why=why)

    async def _rows(self, account: str, index: int) -> list[LedgerRow]:
        """Up to an index, the oldest first."""
        nodes = self._nodes()
        node, found, token = nodes[self._turn % len(nodes)], list[LedgerRow](), ""
        for _ in range(PAGES_MAX):
            async with self._session.get(
                f"{node}/v1/ledger",
                params={"account": account, "limit": str(PAGE_ROWS)} | ({"page_token": token} if token else {}),
                headers={"Authorization": f"Bearer {self._token()}"},
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                ssl=self._tls(),
            ) as response:
                if response.status != 200:
                    raise ConnectionError(f"HTTP {response.status} for a ledger: {(await response.text())[:200]}")
                if int(response.headers["X-Log-Index"]) < index:
                    raise ConnectionError(f"{node} is behind the snapshot")
                page = _decode(await response.read())
            found += [row for row in page.items if row.index <= index]
            token = page.next_page_token or ""
            if not token:
                break
        found.reverse()
        return found


def deeds(
    rows: Sequence[LedgerRow], owned: Mapping[str, Decimal], cash: set[str], instruments: Iterable[Instrument]
) -> list[Deed]:
    """What an account did, in order; first, without a basis, what it had before the oldest of these rows."""
    pairs = {(one.base, one.quote) for one in instruments}
    before = dict(owned)
    for row in reversed(rows):
        if row.asset not in cash:
            before[row.asset] = row.balance - row.amount
    found = [Deed(0, 0, asset, qty) for asset, qty in before.items() if qty]
    groups: dict[Any, list[LedgerRow]] = {}
    for number, row in enumerate(rows):
        is_trade = row.reason in ("trade", "fee", "rounding") and row.reference
        groups.setdefault(row.reference if is_trade else number, []).append(row)
    for group in groups.values():
        found += _deeds_of(group, pairs, cash)
    return found


def _deeds_of(rows: Sequence[LedgerRow], pairs: set[tuple[str, str]], cash: set[str]) -> list[Deed]:
    """Of one trade, or of one row that is none."""
    index, at_us = rows[0].index, micros(rows[0].at)
    moved: dict[str, Decimal] = {}
    for row in rows:
        if row.reason == "trade":
            moved[row.asset] = moved.get(row.asset, ZERO) + row.amount
    fee = -sum((row.amount for row in rows if row.reason in ("fee", "rounding")), ZERO)
    for base, quote in (tuple(moved), tuple(moved)[::-1]) if len(moved) == 2 else ():
        if (base, quote) in pairs and moved[base]:
            return [Deed(index, at_us, base, moved[base], quote, moved[quote], fee)]
    return [Deed(index, at_us, row.asset, row.amount) for row in rows if row.asset not in cash]
