"""Prices over HTTP: marked when they are old, refused when nobody knows them, cached where they can't change."""

from pathlib import Path

from gateway.feeds.clock import now_us
from gateway.feeds.ticks import BookDiff, BookSnapshot, Status, StatusKind, Trade
from tests.gateway.api.sites import E9, Site, market, sites, trades, until
from tests.node.solo import order

MINUTE_US = 60_000_000
NOWHERE = "http://127.0.0.1:9"


async def test_a_quote_has_its_age_and_is_marked_when_its_venue_falls_silent() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "189.98", "190.02")
        site.trade("AAPL", "190.01")
        found = await site.ask("/v1/market/quotes?symbols=AAPL")
        (row,) = found.body["items"]
        assert (row["bid"], row["ask"], row["last"], row["stale"]) == ("189.98", "190.02", "190.01", False)
        assert 0 <= found.staleness_ms < 1_000 and found.headers["Cache-Control"] == "public, max-age=1"

        site.core.market.nbbo.ttl_us = 1  # from now on its quotes are older than their time to live
        for venue in site.core.market.nbbo._venues.values():
            venue.ttl_us = 1
        site.core.market.nbbo._check_us = 0
        (row,) = (await site.ask("/v1/market/quotes?symbols=AAPL")).body["items"]
        assert (row["bid"], row["stale"]) == ("189.98", True)


async def test_unknown_symbols_are_named_and_when_all_are_it_is_an_error() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "189.98", "190.02")
        found = await site.ask("/v1/market/quotes?symbols=AAPL,NOPE")
        assert [one["symbol"] for one in found.body["items"]] == ["AAPL"] and found.body["unknown"] == ["NOPE"]
        for path in ("quotes?symbols=NOPE", "trades?symbol=NOPE", "candles?symbol=NOPE", "book?symbol=NOPE"):
            refused = await site.ask(f"/v1/market/{path}")
            assert (refused.status, refused.body["error"]) == (404, "symbol_not_found"), path


async def test_bad_parameters_are_refused_with_the_field() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "1", "2")
        many = ",".join(f"S{number}" for number in range(201))
        for path, field in (
            ("quotes", "symbols"),
            (f"quotes?symbols={many}", "symbols"),
            (f"quotes?symbols={'A' * 81}", "symbols"),
            ("quotes?symbols=AAPL&depth=3", "depth"),
            ("candles?symbol=AAPL&interval=2m", "interval"),
            ("candles?symbol=AAPL&limit=0", "limit"),
            ("candles?symbol=AAPL&limit=1001", "limit"),
            ("candles?symbol=AAPL&start=yesterday", "start"),
            ("candles?symbol=AAPL&start=2026-11-20T09:30:00", "start"),
            ("candles?symbol=AAPL&page_token=-1", "page_token"),
            ("book?symbol=AAPL&since=x", "since"),
            ("book?symbol=AAPL&symbol=MSFT", "symbol"),
            ("trades?limit=5", "symbol"),
        ):
            refused = await site.ask(f"/v1/market/{path}")
            assert (refused.status, refused.body["error"], refused.body["field"]) == (422, "invalid_field", field), path


async def test_the_nbbo_is_over_venues_and_shows_when_they_cross() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "189.98", "190.02")
        site.quote("AAPL", "190.05", "190.07", venue="sim-b")
        (row,) = (await site.ask("/v1/market/nbbo?symbols=AAPL")).body["items"]
        assert (row["bid"], row["bid_venue"], row["ask"], row["ask_venue"]) == ("190.05", "sim-b", "190.02", "sim-a")
        assert row["crossed"] and [one["venue"] for one in row["venues"]] == ["sim-a", "sim-b"]
        site.silence("sim-b")
        (row,) = (await site.ask("/v1/market/nbbo?symbols=AAPL")).body["items"]
        assert (row["bid"], row["crossed"]) == ("189.98", False)


async def test_candles_are_paged_and_closed_ones_may_be_cached() -> None:
    async with sites(NOWHERE) as (site,):
        start_us = now_us() // MINUTE_US * MINUTE_US
        # Bars of the past, as they are there after an hour of trading.
        candles = site.core.market.candles
        candles.now_us = start_us - 5 * MINUTE_US
        clock = {"us": candles.now_us}
        site.core.market.clock = lambda: clock["us"]
        for minute in range(5):
            clock["us"] = start_us - (5 - minute) * MINUTE_US
            site.trade("AAPL", str(100 + minute), at_us=clock["us"])
        clock["us"] = start_us + MINUTE_US
        site.trade("AAPL", "200", at_us=start_us + MINUTE_US - 1)
        pages, path = [], "/v1/market/candles?symbol=AAPL&start=2020-01-01T00:00:00Z&limit=2"
        token = ""
        while True:
            found = await site.ask(path + (f"&page_token={token}" if token else ""))
            pages.append(found)
            token = found.body["next_page_token"]
            if not token:
                break
        assert [bar["close"] for page in pages for bar in page.body["items"]] == [
            "100",
            "101",
            "102",
            "103",
            "104",
            "200",
        ]
        assert pages[0].headers["Cache-Control"] == "public, max-age=3600"
        assert pages[-1].headers["Cache-Control"] == "public, max-age=1" and not pages[-1].body["items"][-1]["closed"]
        again = await site.ask(path, If_None_Match=pages[0].headers["ETag"])
        assert (again.status, again.raw) == (304, b"")


async def test_a_book_is_a_snapshot_then_diffs_and_one_that_missed_something_is_not_shown() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "100", "101")
        at_us = now_us()
        site.core.take([BookSnapshot("AAPL", "sim-a", 7, ((100 * E9, E9),), ((101 * E9, 2 * E9),), at_us, at_us)])
        book = await site.ask("/v1/market/book?symbol=AAPL&venue=sim-a")
        assert (book.body["type"], book.body["seq"], book.body["bids"]) == ("snapshot", 7, [["100", "1"]])
        site.core.take([BookDiff("AAPL", "sim-a", 8, ((100 * E9, 3 * E9),), (), at_us, at_us)])
        more = await site.ask("/v1/market/book?symbol=AAPL&venue=sim-a&since=7")
        assert (more.body["type"], more.body["seq"], more.body["diffs"][0]["bids"]) == ("diffs", 8, [["100", "3"]])
        whole = await site.ask("/v1/market/book?symbol=AAPL&venue=sim-a")
        assert more.body["checksum"] == whole.body["checksum"] != book.body["checksum"]
        # What lies before all that is held: the book again, and it is said.
        lost = await site.ask("/v1/market/book?symbol=AAPL&venue=sim-a&since=3")
        assert (lost.body["type"], lost.body["recovered"]) == ("snapshot", False)
        site.core.take([Status("sim-a", StatusKind.BOOK_GAP, at_us)])
        broken = await site.ask("/v1/market/book?symbol=AAPL&venue=sim-a")
        assert (broken.status, broken.body["error"]) == (503, "book_not_whole") and broken.headers["Retry-After"]


async def test_our_own_venue_is_one_of_them(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        empty = await site.ask("/v1/market/book?symbol=AAPL-USD")
        # A venue that never gave one, or that nobody knows, is not worth coming back for.
        for venue in ("sim-a", "nowhere"):
            never = await site.ask(f"/v1/market/book?symbol=AAPL-USD&venue={venue}")
            assert (never.status, never.body["error"], never.body["field"]) == (404, "book_not_found", "venue")
        assert (empty.status, empty.body["bids"], empty.body["asks"]) == (200, [], [])
        await trades(solo)
        bert = await solo.stream("trader", "bert")
        await bert.submit(order("sell", 5, "101.00"))
        await bert.close()
        await site.reaches(solo.log.index)
        book = await site.ask("/v1/market/book?symbol=AAPL-USD")
        assert (book.body["venue"], book.body["asks"]) == ("tiebreak", [["101", "5"]])
        await until(lambda: not site.core.market.nbbo.last("AAPL-USD", now_us()).stale)
        (row,) = (await site.ask("/v1/market/quotes?symbols=AAPL-USD")).body["items"]
        assert (row["bid"], row["ask"], row["last"], row["last_venue"]) == (None, "101", "100", "tiebreak")
        (bar,) = (await site.ask("/v1/market/candles?symbol=AAPL-USD")).body["items"]
        assert (bar["close"], bar["volume"]) == ("100", "10")


async def test_bars_and_the_last_price_are_back_after_a_restart() -> None:
    async with sites(NOWHERE, start=False) as (site,):
        await site.app.start()
        minute_us = now_us() // MINUTE_US * MINUTE_US
        for price in ("100", "102", "101"):
            site.trade("AAPL", price)
        before = await site.ask("/v1/market/candles?symbol=AAPL&start=2020-01-01T00:00:00Z")
        await site.app.stop()

        again = Site(site.config, site.session)
        await again.app.start()
        after = await again.ask("/v1/market/candles?symbol=AAPL&start=2020-01-01T00:00:00Z")
        (row,) = (await again.ask("/v1/market/quotes?symbols=AAPL")).body["items"]
        await again.app.stop()
        assert [bar["high"] for bar in before.body["items"]] and now_us() - minute_us < 10 * MINUTE_US
        same = ("start", "open", "high", "low", "close", "volume", "trades", "vwap")
        assert [[bar[name] for name in same] for bar in after.body["items"]] == [
            [bar[name] for name in same] for bar in before.body["items"]
        ]
        assert (row["last"], row["stale"]) == ("101", True)  # known, and not taken for fresh


async def test_as_many_closed_bars_are_kept_as_the_file_says() -> None:
    async with sites(NOWHERE, more="[market]\nbars_1m = 3", start=False) as (site,):
        candles, now = site.core.market.candles, now_us()
        for minutes in range(9, 1, -1):
            at_us = now - minutes * MINUTE_US
            candles.apply([Trade("AAPL", "x", E9, E9, at_us, at_us, str(minutes))], at_us)
        candles.advance(now - MINUTE_US)
        assert 1 <= len(candles.bars("AAPL", "1m")) <= 4
        await site.core.stop()
