"""The boundary cases of ARCHITECTURE.md: where what must never be wrong meets what must never be away."""

import asyncio
import random
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cluster.consensus.engine import NoQuorum
from gateway.cache.client import connect
from gateway.notify.notice import Notice
from node.session_token import SessionTokens
from tests.gateway.api.sites import Site, market, sites, trades, until, url
from tests.node.fakes import SESSION_KEY
from tests.node.solo import Solo, command, list_market, order


def held(body: Any, asset: str) -> str:
    rows = [one for one in body["positions"] if one["asset"] == asset]
    return str(rows[0]["qty"]) if rows else "0"


def cash(body: Any, asset: str = "USD") -> str:
    return str(next(one["total"] for one in body["cash"] if one["asset"] == asset))


class Held:
    """A gateway whose feed stands still while it is held: the node goes on without it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._apply = site.core.projection.apply
        self._waiting: list[Any] = []

    def __enter__(self) -> "Held":
        self.site.core.projection.apply = self._waiting.append
        return self

    def __exit__(self, *_: object) -> None:
        self.site.core.projection.apply = self._apply
        for message in self._waiting:
            self._apply(message)


async def test_a_portfolio_read_just_after_a_fill_shows_the_fill(tmp_path: Path) -> None:
    """With the fill's session token: from the gateway's view once it is there."""
    async with market(tmp_path) as (solo, (site,)):
        session = await trades(solo)
        found = await site.ask("/v1/portfolio", X_Session_Token=session)
        assert (found.status, held(found.body, "AAPL"), cash(found.body)) == (200, "1010", "99000")
        assert int(found.headers["X-Log-Index"]) >= SessionTokens(SESSION_KEY, epoch=solo.node.epoch).read(session)


async def test_a_gateway_that_is_behind_asks_a_node_and_never_shows_an_older_portfolio(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        with Held(site):
            session = await trades(solo)
            without = await site.ask("/v1/portfolio")
            assert (held(without.body, "AAPL"), without.body["source"]) == ("1000", "gateway")  # old, and it says so
            found = await site.ask("/v1/portfolio", X_Session_Token=session)
            assert (held(found.body, "AAPL"), cash(found.body)) == ("1010", "99000")
            assert found.body["source"] == "node"
            assert found.staleness_ms == -1, "a node that is cut off answers at a token too; nobody knows how old it is"
            # What the gateway knows of costs is of before: it is left out rather than mixed in.
            row = next(one for one in found.body["positions"] if one["asset"] == "AAPL")
            assert (row["cost"], row["unrealised"], row["basis_unknown_qty"]) == (None, None, "1010")


async def test_an_account_that_nobody_here_knows_is_not_found_though_the_node_is_cut_off(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        solo.log.refuse = NoQuorum("no majority answers")
        refused = await site.ask("/v1/accounts/anna")
        assert (refused.status, refused.body["error"]) == (503, "no_quorum")
        unknown = await site.ask("/v1/portfolio?account=nobody", role="auditor")
        assert (unknown.status, unknown.body["error"]) == (404, "account_not_found")
        assert (await site.ask("/v1/portfolio")).status == 200

        async def wait(*, timeout_ms: int) -> int:
            await asyncio.sleep(timeout_ms / 1000)
            raise NoQuorum("no majority answers")

        solo.log.read_index = wait  # type: ignore[method-assign]
        async with asyncio.timeout(0.9):  # the node waits longer for a majority
            unknown = await site.ask("/v1/portfolio?account=nobody", role="auditor")
        assert (unknown.status, unknown.body["error"]) == (404, "account_not_found")


async def test_behind_and_without_a_node_it_refuses_rather_than_show_an_older_portfolio(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        with Held(site):
            session = await trades(solo)
            site.app.api.relay._nodes = lambda: ["http://127.0.0.1:9"]
            found = await site.ask("/v1/portfolio", X_Session_Token=session)
            assert (found.status, found.body["error"]) == (503, "read_timeout") and found.headers["Retry-After"]
            lots = await site.ask("/v1/portfolio/lots", X_Session_Token=session)
            assert lots.status == 503
            # Who has seen nothing yet is still served, with the age.
            old = await site.ask("/v1/portfolio")
            assert (old.status, old.body["source"]) == (200, "gateway")


async def test_a_session_that_moves_between_sites_never_reads_backwards(tmp_path: Path) -> None:
    """One trader, two gateways, one of them stopped and going by turns; what he reads only grows."""
    chance = random.Random(4)
    async with market(tmp_path, count=2) as (solo, found):
        seen_index, seen_qty, answers = 0, 0, 0
        for turn in range(12):
            with Held(found[turn % 2]):
                session = await trades(solo, qty=1 + turn)
                seen_qty += 1 + turn
                for _ in range(4):
                    site = chance.choice(found)
                    answer = await site.ask("/v1/portfolio", X_Session_Token=session)
                    assert answer.status == 200, answer.body
                    index, qty = int(answer.headers["X-Log-Index"]), int(held(answer.body, "AAPL")) - 1000
                    assert index >= seen_index and qty == seen_qty, (turn, site.config.site, answer.body)
                    seen_index, answers = index, answers + 1
        assert answers == 48


async def test_a_token_of_another_epoch_is_refused_as_nodes_do(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        other = SessionTokens(SESSION_KEY, epoch=solo.node.epoch + 1).issue(3)
        found = await site.ask("/v1/portfolio", X_Session_Token=other)
        assert (found.status, found.body["error"]) == (409, "epoch_changed")
        forged = SessionTokens(bytes(32), epoch=solo.node.epoch).issue(3)
        found = await site.ask("/v1/portfolio", X_Session_Token=forged)
        assert (found.status, found.body["field"]) == (422, "X-Session-Token")


async def test_the_balance_that_a_gateway_shows_does_not_validate_a_trade(tmp_path: Path) -> None:
    """The gateway shows money that was spent since; an order that would need it is refused by the node."""
    async with market(tmp_path) as (solo, (site,)):
        with Held(site):
            custodian = await solo.stream("custodian", "*")
            gone = await custodian.submit(
                command("transfer", kind="transfer", account="anna", target="bert", asset="USD", amount="99999")
            )
            assert "error" not in gone[0]
            await custodian.close()
            shown = await site.ask("/v1/portfolio")
            assert cash(shown.body) == "100000"
            body = {"symbol": "AAPL-USD", "side": "buy", "type": "limit", "qty": "10", "limit_price": "100.00"}
            refused = await site.ask("/v1/orders", method="POST", body=body, Idempotency_Key="b-1")
            assert (refused.status, refused.body["error"]) == (403, "insufficient_funds")


async def test_a_market_order_against_a_stale_reference_is_refused_whatever_the_gateway_shows(tmp_path: Path) -> None:
    """A fresh quote at the gateway prices nothing: the machine knows logged references, and their age."""
    async with market(tmp_path) as (solo, (site,)):
        operator = await solo.stream("operator")
        changed = await operator.submit(
            command("change_instrument", symbol="AAPL-USD", limits={"reference_age_ms_max": 50})
        )
        feed = await solo.stream("feed", "*")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        told = await feed.submit(command("reference", symbol="AAPL-USD", price="100.00", observed_at=now))
        assert not [one for one in (*changed, *told) if "error" in one], (changed, told)
        bert = await solo.stream("trader", "bert")
        await bert.submit(order("sell", 5, "100.00"))
        site.quote("AAPL-USD", "99.99", "100.01")
        (row,) = (await site.ask("/v1/market/quotes?symbols=AAPL-USD")).body["items"]
        assert not row["stale"]
        await asyncio.sleep(0.2)
        body = {"symbol": "AAPL-USD", "side": "buy", "type": "market", "qty": "1"}
        refused = await site.ask("/v1/orders", method="POST", body=body, Idempotency_Key="m-1")
        assert refused.body["error"] == "stale_reference", refused.body


async def test_a_preference_changed_on_both_sides_is_equal_on_both_and_the_later_wins(tmp_path: Path) -> None:
    async with market(tmp_path, count=2) as (_, (here, there)):
        await until(lambda: len(here.core.sites.live_sites()) == 2)
        await here.core.sites.stop()
        await until(lambda: len(there.core.sites.live_sites()) == 1)
        first = await here.ask("/v1/preferences", method="PATCH", body={"language": "de", "display_currency": "EUR"})
        await asyncio.sleep(0.05)
        second = await there.ask("/v1/preferences", method="PATCH", body={"language": "fr"})
        assert (first.status, second.status) == (200, 200)
        assert second.body["preferences"]["display_currency"] == "USD"  # not heard of yet, and the age says so
        await asyncio.sleep(0.01)
        assert (await there.ask("/v1/preferences")).staleness_ms > 0
        await here.core.sites.start()

        async def both() -> list[tuple[str, str]]:
            shown = [(await site.ask("/v1/preferences")).body["preferences"] for site in (here, there)]
            return [(one["language"], one["display_currency"]) for one in shown]

        async with asyncio.timeout(10):
            while await both() != [("fr", "EUR")] * 2:  # noqa: ASYNC110 - over the network, which has no event
                await asyncio.sleep(0.05)


async def test_an_alert_that_both_sides_saw_is_told_under_one_id(tmp_path: Path) -> None:
    async with market(tmp_path, count=2) as (_, found):
        await until(lambda: all(len(site.core.sites.live_sites()) == 2 for site in found))
        told: dict[str, list[str]] = {site.config.site: [] for site in found}
        for site in found:
            site.core.on_notice = partial(_keep, told[site.config.site])
            site.trade("AAPL", "190")
        body = {"symbol": "AAPL", "condition": "above", "price": "200"}
        made = await found[0].ask("/v1/alerts/a1", method="PUT", body=body)
        assert (made.status, made.body["text"]) == (200, "AAPL above 200")
        await until(lambda: bool(found[1].core.prefs.alerts("anna")))
        # Cut off from each other, both see the price.
        await found[0].core.sites.stop()
        await until(lambda: len(found[1].core.sites.live_sites()) == 1)
        for site in found:
            site.trade("AAPL", "201")
        await until(lambda: all(told.values()), within_s=10)
        await found[0].core.sites.start()
        await until(lambda: all(len(site.core.sites.live_sites()) == 2 for site in found), within_s=10)
        await asyncio.sleep(0.3)
        assert len({*told["dc-a"], *told["dc-b"]}) == 1, told
        for site in found:
            (row,) = (await site.ask("/v1/alerts")).body["items"]
            assert (row["armed"], row["fired"], row["fired_value"]) == (False, 1, "201")


async def test_events_that_arrive_late_move_the_leaderboard_then_and_its_age_says_so(
    tmp_path: Path,
) -> None:
    async with market(tmp_path) as (solo, (site,)):
        site.quote("AAPL-USD", "99.99", "100.01")
        await site.core.leaderboard.rank()
        before = await site.ask("/v1/leaderboard?period=all", role="auditor", accounts=())
        assert before.body["ranked"] == 2 and [one["return_pct"] for one in before.body["items"]] == [0.0, 0.0]
        with Held(site):
            await trades(solo, qty=100, price="50.00")  # bert sells far below what it is worth
            await asyncio.sleep(0.3)
            site.quote("AAPL-USD", "99.99", "100.01")
            await site.core.leaderboard.rank()
            late = await site.ask("/v1/leaderboard?period=all", role="auditor", accounts=())
            assert [one["return_pct"] for one in late.body["items"]] == [0.0, 0.0] and late.staleness_ms >= 250
        site.quote("AAPL-USD", "99.99", "100.01")
        await site.core.leaderboard.rank()
        after = await site.ask("/v1/leaderboard?period=all", role="auditor", accounts=())
        first, last = after.body["items"]
        assert first["return_pct"] > 0 > last["return_pct"]
        mine = await site.ask("/v1/leaderboard/me")
        assert mine.body["places"]["all"]["rank"] == 1 and mine.body["name"] == first["name"]


async def test_the_sorted_set_in_the_cache_is_the_leaderboard(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        site.quote("AAPL-USD", "99.99", "100.01")
        await site.core.leaderboard.rank()
        await trades(solo, qty=100, price="50.00")
        await site.reaches(solo.log.index)
        site.quote("AAPL-USD", "99.99", "100.01")
        await site.core.leaderboard.rank()
        client = connect(site.core.cache_server.url)
        key = "{tb:test-cluster:dc-a}:ranks:all"
        async with asyncio.timeout(5):
            while (found := await client.ask("ZRANGE", key, 0, -1)) != [b"anna", b"bert"]:
                assert set(found) <= {b"anna", b"bert"}
                await asyncio.sleep(0.02)
        assert 0 < await client.ask("TTL", key) <= 60
        await client.aclose()


async def test_who_opted_out_is_not_on_the_leaderboard(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        site.quote("AAPL-USD", "99.99", "100.01")
        await site.ask("/v1/preferences", method="PATCH", body={"leaderboard_hidden": True})
        await site.core.leaderboard.rank()
        found = await site.ask("/v1/leaderboard", role="auditor", accounts=())
        assert found.body["ranked"] == 1
        mine = await site.ask("/v1/leaderboard/me")
        assert mine.body["hidden"] and mine.body["places"] == {"day": None, "week": None, "all": None}


async def test_the_age_grows_when_the_feed_is_gone_and_answers_go_on(tmp_path: Path) -> None:
    async with Solo(tmp_path) as solo:
        await list_market(solo, "anna")
        async with sites(url(solo)) as (site,):
            await site.reaches(solo.log.index)
            await solo.app.drain()
            solo.app.drain = _nothing  # type: ignore[method-assign]
            await asyncio.sleep(1.2)
            found = await site.ask("/v1/portfolio")
            assert found.status == 200 and found.staleness_ms >= 1_000
            assert (await site.ask("/readyz", bearer="")).status == 200  # it is AP: old is still served


def _keep(told: list[str], notice: Notice) -> None:
    told.append(notice.notice_id)


async def _nothing() -> None:
    """It has drained already."""
