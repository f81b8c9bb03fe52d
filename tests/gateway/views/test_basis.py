"""A gateway that began with a snapshot has the lots of one that saw everything, once it has asked a node."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest

from gateway.cache.state import StateCache
from gateway.events import Transferred
from gateway.projection.host import Projection
from gateway.projection.projector import Batch
from gateway.tasks import end
from gateway.views.basis import Basis, LedgerRow, deeds
from gateway.views.portfolio import SINCE_MAX, Deed, Portfolios
from tests.gateway.api.sites import market, trades, until
from tests.gateway.feeding import Gateway, batches, feed, url
from tests.node.solo import Solo, run, token


class Watched(Gateway):
    def __init__(self, cache: StateCache | None = None) -> None:
        super().__init__()
        self.portfolios = Portfolios(self.accounts.instruments, self.accounts.scales)
        self.projection = Projection([self.accounts, self.books, self.portfolios], cache)
        self.projection.on_rebuilt.append(lambda position: self.portfolios.rebuilt(position.index))
        self.given: set[tuple[str, str]] = set()
        """(account, asset) that another account gave shares of: only who saw it knows what they had cost."""
        self.projection.on_batch.append(self._see)

    def _see(self, batch: Batch) -> None:
        for event in batch.events:
            if isinstance(event, Transferred) and not event.source.startswith("@"):
                self.given.add((event.target, event.asset))

    @asynccontextmanager
    async def asking(self, *nodes: str) -> AsyncIterator[Basis]:
        async with aiohttp.ClientSession() as session:
            basis = Basis(session, lambda: nodes, lambda: token("auditor"), self.portfolios, self.accounts.instruments)
            task = asyncio.create_task(basis.run())
            try:
                yield basis
            finally:
                await end(task)


def lots(gateway: Watched, but: set[tuple[str, str]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, book in gateway.portfolios.books.items():
        for asset, holding in book.holdings.items():
            if (name, asset) not in but:
                rows = [(lot.qty, lot.cost, lot.currency) for lot in holding.lots]
                found[f"{name} {asset}"] = rows, holding.totals.realised, holding.fees, holding.no_basis
    return found


@pytest.mark.parametrize("seed", [21, 22])
def test_lots_of_before_a_snapshot_are_those_of_who_saw_it_all(tmp_path: Path, seed: int) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            flow, all_seen, late = batches(seed, 400), Watched(), Watched()
            async with all_seen.following(url(solo)):
                feed(solo, flow, 200)
                await all_seen.catches_up(solo)
                solo.flush()
                late.projection.begin_snapshot()
                late.projection.rebuilding = False
                async with late.following(url(solo)):
                    late.follower._snapshot_needed = True
                    feed(solo, flow, 20)
                    await late.catches_up(solo)
                    assert len(late.portfolios.unknown) > 1
                    feed(solo, flow)  # what is done while the past is not known yet is not forgotten
                    await late.catches_up(solo)
                    await all_seen.catches_up(solo)
                    assert any(book.past and book.past.since for book in late.portfolios.books.values())
                    async with late.asking(url(solo)) as basis:
                        await until(lambda: not late.portfolios.unknown)
                        assert basis.counters["given_up"] == 0 < basis.counters["filled"]
            known = lots(all_seen, all_seen.given)
            assert len(known) > 3
            assert lots(late, all_seen.given) == known
            for name, book in late.portfolios.books.items():
                for asset, holding in book.holdings.items():
                    assert holding.qty == late.accounts.accounts[name].balances[asset].owned

    run(talk())


def row(asset: str, amount: str, balance: str, reason: str = "deposit", reference: str = "") -> LedgerRow:
    return LedgerRow(5, asset, Decimal(amount), Decimal(balance), reason, reference, "2026-01-01T00:00:00Z")


def test_what_was_before_the_oldest_row_has_no_basis() -> None:
    class Pair:
        base, quote = "AAA", "USD"

    rows = [
        row("USD", "-20", "80", "trade", "7"),
        row("AAA", "2", "5", "trade", "7"),
        row("USD", "-1", "79", "fee", "7"),
        row("AAA", "-1", "4", "withdrawal"),
        row("BBB", "3", "3"),
    ]
    owned = {"AAA": Decimal(4), "BBB": Decimal(3), "CCC": Decimal(9)}
    found = deeds(rows, owned, {"USD"}, [Pair])  # type: ignore[list-item]
    assert [(deed.asset, int(deed.qty), deed.quote, int(deed.notional), int(deed.fee)) for deed in found] == [
        ("AAA", 3, "", 0, 0),
        ("CCC", 9, "", 0, 0),
        ("AAA", 2, "USD", -20, 1),
        ("AAA", -1, "", 0, 0),
        ("BBB", 3, "", 0, 0),
    ]


def test_a_past_that_does_not_add_up_is_not_believed() -> None:
    portfolios = Portfolios({}, {})
    portfolios.row("accounts", {"account": "anna", "balances": [{"asset": "AAA", "available": "4", "held": "0"}]}, 1)
    portfolios.rebuilt(7)
    assert portfolios.books["anna"].past is not None and portfolios.books["anna"].past.index == 7
    why = portfolios.fill_in("anna", [Deed(1, 1, "AAA", Decimal(3))])
    assert why == "its past does not add up to what it held: {'AAA': ('3', '4')}"
    assert portfolios.books["anna"].holdings["AAA"].qty == 4 and not portfolios.unknown


def test_who_does_too_much_before_its_past_is_known_stays_without_it() -> None:
    portfolios = Portfolios({}, {})
    portfolios.row("accounts", {"account": "anna", "balances": [{"asset": "AAA", "available": "4", "held": "0"}]}, 1)
    for number in range(SINCE_MAX + 1):
        assert "anna" in portfolios.unknown
        portfolios._did("anna", Deed(number, 1, "AAA", Decimal(1)))
    assert "anna" not in portfolios.unknown and portfolios.books["anna"].past is None


def test_an_unknown_past_is_kept_in_the_cache() -> None:
    portfolios = Portfolios({}, {})
    portfolios.row("accounts", {"account": "anna", "balances": [{"asset": "AAA", "available": "4", "held": "0"}]}, 1)
    portfolios.rebuilt(7)
    portfolios._did("anna", Deed(8, 1, "AAA", Decimal(1)))
    again = Portfolios({}, {})
    for field in portfolios.fields():
        again.load(field, portfolios.dump(field) or b"")
    assert again.books == portfolios.books and again.unknown == portfolios.unknown


async def test_a_portfolio_says_that_its_costs_are_being_found_out(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo, qty=3, price="100.00")
        await site.reaches(solo.log.index)
        site.core.basis._nodes = lambda: ["http://127.0.0.1:9"]
        site.core.projection.begin_snapshot()
        site.core.projection.rebuilding = False
        site.core.follower._snapshot_needed = True
        solo.flush()
        for socket in list(solo.feed.followers):
            transport = socket._req.transport if socket._req is not None else None
            assert transport is not None
            transport.abort()
        await until(lambda: bool(site.core.portfolios.unknown))
        await site.reaches(solo.log.index)
        body = (await site.ask("/v1/portfolio")).body
        [position] = body["positions"]
        assert (body["basis_pending"], position["cost"], position["basis_unknown_qty"]) == (True, None, position["qty"])
        site.core.basis._nodes = lambda: site.config.nodes.addresses
        await until(lambda: not site.core.portfolios.unknown, within_s=10)
        body = (await site.ask("/v1/portfolio")).body
        [position] = body["positions"]
        assert body["basis_pending"] is False
        assert Decimal(position["cost"]) >= 300 and position["basis_unknown_qty"] != position["qty"]
