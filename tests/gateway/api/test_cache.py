"""A cache that dies, errs or is emptied while a gateway serves."""

import os
import signal
import time
from pathlib import Path

from gateway.api.rates import Rates, weigh
from gateway.cache.client import CacheAway, connect
from gateway.cache.rates import CacheRates
from gateway.cache.server import CacheServer, NoServer, make_private, socket_path
from tests.gateway.api.sites import market, sites, trades, until

NOWHERE = "http://127.0.0.1:9"


async def test_a_cache_that_dies_changes_no_answer(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo)
        await site.reaches(solo.log.index)
        site.quote("AAPL-USD", "99.99", "100.01")
        before = (await site.ask("/v1/portfolio")).body
        os.kill(site.core.cache_server.pid, signal.SIGKILL)
        await trades(solo, qty=1)
        await site.reaches(solo.log.index)
        after = await site.ask("/v1/portfolio")
        assert after.status == 200 and after.body["index"] > before["index"]
        await until(lambda: site.core.projection.standing.cache.startswith("away"))
        status = await site.ask("/v1/gateway", role="auditor", accounts=())
        assert status.body["cache"].startswith("away") and status.body["ready"]
        page = (await site.ask("/metrics", bearer="")).raw.decode()
        assert 'tiebreak_gateway_cache_state{state="away"} 1.0' in page
        quote = await site.ask("/v1/market/quotes?symbols=AAPL-USD")
        assert quote.status == 200 and quote.headers["X-RateLimit-Remaining"]


async def test_a_user_who_asks_too_often_is_told_when_to_come_back() -> None:
    async with sites(NOWHERE, limits="requests_per_s = 10\nrequests_burst = 20") as (site,):
        site.quote("AAPL", "1", "2")
        answers = [await site.ask("/v1/market/quotes?symbols=AAPL") for _ in range(30)]
        passed = [one for one in answers if one.status == 200]
        refused = [one for one in answers if one.status == 429]
        assert 18 <= len(passed) <= 22 and refused
        first = refused[0]
        assert first.body["error"] == "rate_limited" and int(first.headers["Retry-After"]) >= 1
        assert first.headers["X-RateLimit-Limit"] == "20" and first.headers["X-RateLimit-Remaining"] == "0"
        # Others are not held up by it.
        assert (await site.ask("/v1/market/quotes?symbols=AAPL", accounts=("bert",), role="auditor")).status == 200
        assert site.app.api.rates.counters["cache"] and not site.app.api.rates.counters["memory"]


async def test_a_user_has_one_rate_at_all_gateways_of_one_cache(tmp_path: Path) -> None:
    async with CacheServing(tmp_path) as server:
        limits, more = "requests_per_s = 2\nrequests_burst = 20", f'[cache]\nredis_url = "{server.url}"'
        async with sites(NOWHERE, count=2, limits=limits, more=more) as both:
            for site in both:
                site.quote("AAPL", "1", "2")
            answers = [await both[turn % 2].ask("/v1/market/quotes?symbols=AAPL") for turn in range(30)]
            assert 20 <= sum(one.status == 200 for one in answers) <= 24
            assert not any(site.app.api.rates.counters["memory"] for site in both)


async def test_the_window_slides_and_is_the_same_in_the_cache_and_in_memory(tmp_path: Path) -> None:
    async with CacheServing(tmp_path) as server:
        client = connect(server.url)
        clock = [1_000_000.0]
        cached = Rates(CacheRates(client, "t"), requests_per_s=10, burst=20, clock=lambda: clock[0])
        plain = Rates(None, requests_per_s=10, burst=20, clock=lambda: clock[0])
        outcomes: list[tuple[bool, bool]] = []
        for step in range(200):
            clock[0] += 0.03 if step < 120 else 0.2
            outcomes.append(((await cached.take("anna")).passed, (await plain.take("anna")).passed))
        assert [one for one, _ in outcomes] == [other for _, other in outcomes]
        assert not all(one for one, _ in outcomes[:120]) and all(one for one, _ in outcomes[130:])
        # Over any window no more than the limit passes, give or take the estimate of an even flow.
        passed = sum(one for one, _ in outcomes[:120])
        assert passed <= 20 * (120 * 0.03 / 2 + 1)
        await client.aclose()


async def test_a_cache_that_is_away_is_not_asked_for_each_request() -> None:
    class Away:
        asked = 0

        async def count(self, *_: object) -> tuple[int, int]:
            Away.asked += 1
            raise CacheAway("gone")

    rates = Rates(Away(), requests_per_s=100, burst=100)  # type: ignore[arg-type]
    began = time.monotonic()
    assert all([(await rates.take("anna")).passed for _ in range(50)])
    assert Away.asked == 1 and time.monotonic() - began < 0.5
    assert rates.counters == {"away": 1, "memory": 50}


def test_a_burst_is_the_limit_and_half_a_window_later_half_of_it() -> None:
    assert weigh(20, 2.0, 0, 20, 0.0).passed and not weigh(20, 2.0, 0, 21, 0.0).passed
    assert weigh(20, 2.0, 20, 10, 1.0).passed and not weigh(20, 2.0, 20, 11, 1.0).passed


def test_a_socket_in_a_deep_folder_goes_to_a_short_one_that_is_ours(tmp_path: Path) -> None:
    short, deep = Path("/s"), tmp_path / ("x" * 120)
    assert socket_path(short, "a.sock") == Path("/s/a.sock")
    found = socket_path(deep, "a.sock")
    assert found == socket_path(deep, "a.sock") and len(os.fsencode(found)) < 100 and found.parent != deep
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    try:
        make_private(tmp_path / "open")
    except NoServer as error:
        assert "not ours alone" in str(error)
    else:
        raise AssertionError("a folder that others may read was taken")


async def test_a_server_starts_in_a_deep_folder(tmp_path: Path) -> None:
    async with CacheServing(tmp_path / ("x" * 120)) as server:
        client = connect(server.url)
        assert await client.ask("SET", "a", 1)
        await client.aclose()


class CacheServing(CacheServer):
    async def __aenter__(self) -> "CacheServing":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def test_what_a_user_asked_long_ago_is_not_kept(tmp_path: Path) -> None:
    async with CacheServing(tmp_path) as server:
        client = connect(server.url)
        rates = CacheRates(client, "t")
        for slot in (1, 2, 3, 5, 8, 9):
            for _ in range(2):
                await rates.count("anna", slot, 60.0, 10, 0.0)
        # A gateway whose clock is a little behind takes nothing away from the one that is ahead.
        assert await rates.count("anna", 8, 60.0, 10, 0.0) == (0, 3)
        assert await rates.count("anna", 9, 60.0, 10, 0.0) == (3, 3)
        assert sorted(await client.ask("HKEYS", "{tb:t:rate:anna}")) == [b"8", b"9"]
        assert 0 < await client.ask("PTTL", "{tb:t:rate:anna}") <= 150_000
        await client.aclose()
