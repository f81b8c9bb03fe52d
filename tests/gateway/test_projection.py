"""What a gateway shows is what the nodes have at that index: from the start, a snapshot, the cache, and midway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.consensus.engine import Role
from gateway.cache.client import CacheAway, connect
from gateway.cache.server import CacheServer
from gateway.cache.state import Elsewhere, StateCache
from gateway.events import Position, UnknownEvent, decode
from gateway.feeds.ticks import BookDiff, BookSnapshot, Quote, Trade
from gateway.projection.host import micros
from tests.gateway.feeding import Gateway, batches, feed, shown_by_gateway, shown_by_node, until, url
from tests.node.solo import SharedLog, Solo, run

KINDS = ("accounts", "books")


@asynccontextmanager
async def cached(folder: Path) -> AsyncIterator[tuple[CacheServer, StateCache]]:
    server = CacheServer(folder / "c")
    await server.start()
    client = connect(server.url)
    try:
        yield server, StateCache(client, "dc-a:test", KINDS)
    finally:
        await client.aclose()
        await server.stop()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_shows_what_the_node_has_at_every_look(tmp_path: Path, seed: int) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            flow, gateway = batches(seed, 400), Gateway()
            async with gateway.following(url(solo)):
                for _ in range(8):
                    feed(solo, flow, 50)
                    await gateway.catches_up(solo)
                    assert shown_by_gateway(gateway) == shown_by_node(solo)
            trades = [tick for tick in gateway.ticks if isinstance(tick, Trade)]
            assert len(trades) > 50
            assert len({trade.trade_id for trade in trades}) == len(trades)

    run(talk())


def test_what_a_node_adds_by_itself_at_the_last_moment_is_there_as_well(tmp_path: Path) -> None:
    """Orders that expire: the step comes when what was fed is there, before whoever waits for that is told."""

    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            gateway = Gateway()
            solo.log.hold = True

            def at_last(_batch: object) -> None:
                if solo.log.held and gateway.projection.standing.index == solo.log.index:
                    solo.log.release()

            gateway.projection.on_batch.append(at_last)
            feed(solo, batches(1, 50))
            await until(lambda: bool(solo.log.held))
            async with gateway.following(url(solo)):
                await gateway.catches_up(solo)
                assert shown_by_gateway(gateway) == shown_by_node(solo)
            assert not solo.log.held

    run(talk())


def test_diffs_add_up_to_the_book_and_quotes_to_its_best(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            gateway = Gateway()
            async with gateway.following(url(solo)):
                feed(solo, batches(4, 300))
                await gateway.catches_up(solo)
            for symbol, book in gateway.books.books.items():
                [first] = [tick for tick in gateway.ticks if isinstance(tick, BookSnapshot) and tick.symbol == symbol]
                sides: list[dict[int, int]] = [dict(first.bids), dict(first.asks)]
                diffs = [tick for tick in gateway.ticks if isinstance(tick, BookDiff) and tick.symbol == symbol]
                assert [diff.seq for diff in diffs] == list(range(2, len(diffs) + 2))
                for diff in diffs:
                    for side, levels in zip(sides, (diff.bids, diff.asks), strict=True):
                        for price, size in levels:
                            side[price] = size
                            if not size:
                                del side[price]
                assert tuple(sorted(sides[0].items(), reverse=True)) == book.levels("buy")
                assert tuple(sorted(sides[1].items())) == book.levels("sell")
                quotes = [tick for tick in gateway.ticks if isinstance(tick, Quote) and tick.symbol == symbol]
                assert (quotes[-1].bid_e9, quotes[-1].ask_e9) == (
                    max(sides[0], default=0),
                    min(sides[1], default=0),
                )

    run(talk())


def test_a_gateway_that_comes_late_begins_with_a_snapshot(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            flow, gateway = batches(5, 400), Gateway()
            feed(solo, flow, 200)
            solo.flush()
            gateway.projection.begin_snapshot()
            gateway.projection.rebuilding = False
            async with gateway.following(url(solo)):
                gateway.follower._snapshot_needed = True
                feed(solo, flow, 50)
                await gateway.catches_up(solo)
                assert gateway.follower.counters["snapshots"] == 1
                assert gateway.projection.rows > 10
                assert shown_by_gateway(gateway) == shown_by_node(solo)
                feed(solo, flow)
                await gateway.catches_up(solo)
                assert shown_by_gateway(gateway) == shown_by_node(solo)

    run(talk())


def test_it_goes_over_to_another_node_in_the_middle_and_back(tmp_path: Path) -> None:
    async def talk() -> None:
        log = SharedLog()
        async with Solo(tmp_path / "a", log=log) as first:
            gateway, flow = Gateway(), batches(6, 400)
            async with Solo(tmp_path / "b", follows=log) as second:
                async with gateway.following(url(first), url(second)):
                    for i in range(6):
                        feed(first, flow, 40)
                        await gateway.catches_up(first)
                        assert shown_by_gateway(gateway) == shown_by_node(first)
                        leaving, other = (first, url(second)) if i % 2 == 0 else (second, url(first))
                        # Every connection to one node is cut, as a crash would.
                        for socket in list(leaving.feed.followers):
                            transport = socket._req.transport if socket._req is not None else None
                            assert transport is not None
                            transport.abort()
                        await until(lambda other=other: gateway.follower.node == other)  # type: ignore[misc]
                assert gateway.follower.counters["connected"] >= 6

    run(talk())


def test_the_cache_makes_the_next_start_go_on_from_there(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo, cached(tmp_path) as (_, cache):
            flow, gateway = batches(7, 400), Gateway(cache)
            async with gateway.following(url(solo)):
                feed(solo, flow, 200)
                await gateway.catches_up(solo)
                await until(lambda: cache.stored == str(gateway.projection.position))
            assert gateway.projection.cache_state == "ok"
            feed(solo, flow, 100)
            again = Gateway(StateCache(cache._client, "dc-a:test", KINDS))
            assert await again.projection.start_from_cache()
            begun = again.projection.position
            assert begun == gateway.projection.position
            again.books.begin_with(again.accounts.orders.values())
            async with again.following(url(solo)):
                await again.catches_up(solo)
                assert again.follower.counters["snapshots"] == 0
                assert shown_by_gateway(again) == shown_by_node(solo)

    run(talk())


def test_a_lost_cache_is_filled_again_and_served_round_meanwhile(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo, cached(tmp_path) as (server, cache):
            flow, gateway = batches(8, 400), Gateway(cache)
            async with gateway.following(url(solo)):
                feed(solo, flow, 100)
                await gateway.catches_up(solo)
                await until(lambda: cache.stored == str(gateway.projection.position))
                await server.stop()
                feed(solo, flow, 100)
                await gateway.catches_up(solo)
                assert shown_by_gateway(gateway) == shown_by_node(solo)
                await until(lambda: gateway.projection.cache_state.startswith("away"))
                await server.start()
                await until(lambda: gateway.projection.cache_state == "ok", within_s=10)
                await until(lambda: cache.stored == str(gateway.projection.position))
            again = Gateway(StateCache(cache._client, "dc-a:test", KINDS))
            assert await again.projection.start_from_cache()
            assert again.accounts.accounts == gateway.accounts.accounts
            assert again.accounts.instruments == gateway.accounts.instruments

    run(talk())


def test_only_what_continues_the_stored_position_is_written(tmp_path: Path) -> None:
    async def talk() -> None:
        async with cached(tmp_path) as (_, one):
            two = StateCache(one._client, "dc-a:test", KINDS)
            first, second, third = (Position(0, 1, index, 0) for index in (1, 2, 3))
            await one.write({"accounts": {"a": b"1"}}, first)
            assert await two.position() == first
            await two.write({"accounts": {"a": b"2", "b": b"2"}}, second)
            with pytest.raises(Elsewhere, match=r"the cache is at '0\.1\.2\.0'"):
                await one.write({"accounts": {"a": b"3"}}, third)
            assert {field: value async for _, field, value in two.load()} == {"a": b"2", "b": b"2"}
            await two.write({"accounts": {"a": None}}, third)
            assert {field: value async for _, field, value in two.load()} == {"b": b"2"}

    run(talk())


def test_a_large_write_that_is_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    async def talk() -> None:
        async with cached(tmp_path) as (_, cache):
            many: dict[str, bytes | None] = {f"field {i}": b"x" * 100 for i in range(20_000)}
            client = cache._client
            run, answers = client.run, iter(range(3))

            async def three_times(*words: Any, **options: Any) -> Any:
                if next(answers, None) is None:
                    raise CacheAway("cut off")
                return await run(*words, **options)

            client.run = three_times  # type: ignore[method-assign]
            with pytest.raises(CacheAway):
                await cache.write({"accounts": many}, Position(0, 1, 9, 0))
            client.run = run  # type: ignore[method-assign]
            other = StateCache(cache._client, "dc-a:test", KINDS)
            assert await other.position() is None
            assert "~" in other.stored
            await other.clear()
            await other.write({"accounts": many}, Position(0, 1, 9, 0))
            assert len([field async for _, field, _ in other.load()]) == 20_000

    run(talk())


def test_a_cache_that_is_not_there_is_said(tmp_path: Path) -> None:
    async def talk() -> None:
        client = connect(f"unix://{tmp_path}/nobody.sock")
        with pytest.raises(CacheAway, match="ConnectionError"):
            await StateCache(client, "x", KINDS).position()
        await client.aclose()

    run(talk())


def test_a_feed_that_jumps_or_repeats_is_not_believed(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            gateway = Gateway()
            async with gateway.following(url(solo)):
                feed(solo, batches(9, 20))
                await gateway.catches_up(solo)
            position = gateway.projection.position
            assert position is not None
            event = '{"type":"account_opened","position":"%s","at":"2026-01-01T00:00:00Z","account":"x"}'
            for text, why in (
                (f'{{"stream":"feed","position":"0.1.{position.index - 3}.0","events":[]}}', "the feed went back"),
                (
                    f'{{"stream":"feed","position":"0.1.{position.index + 1}.0","events":[{event % "0.1.2.0"}]}}',
                    "the feed repeats 0.1.2.0",
                ),
            ):
                with pytest.raises(ValueError, match=why):
                    gateway.projection.apply(decode(text))
            assert gateway.projection.position == position

    run(talk())


def test_an_event_of_an_unknown_kind_is_not_left_out_in_silence() -> None:
    with pytest.raises(UnknownEvent):
        decode('{"stream":"feed","position":"0.1.1.0","events":[{"type":"new","position":"0.1.1.0","at":"x"}]}')


def test_times_are_exact_to_the_microsecond() -> None:
    assert micros("2026-01-02T03:04:05.678901Z") == 1_767_323_045_678_901


def test_a_node_that_is_cut_off_makes_nothing_look_fresh(tmp_path: Path) -> None:
    async def talk() -> None:
        log, gateway = SharedLog(), Gateway()
        async with Solo(tmp_path / "a", log=log) as first, Solo(tmp_path / "b", follows=log) as second:
            feed(first, batches(3, 20))
            async with gateway.following(url(first), url(second)):
                await gateway.reaches(first.node.machine.applied_index)
                first.log.changed(role=Role.follower, leader=None, term=2, has_quorum=False)
                # Another node is with the majority: it is followed now.
                await until(lambda: gateway.follower.node == url(second), within_s=15)
                second.log.changed(role=Role.follower, leader=None, term=2, has_quorum=False)
                await until(lambda: gateway.follower.node != url(second), within_s=15)
                before_us = gateway.projection.standing.as_of_us
                await asyncio.sleep(2.5)
                assert gateway.projection.standing.as_of_us == before_us
                assert gateway.projection.standing.staleness_ms >= 2_500
                second.log.changed(role=Role.follower, leader="dc-a", term=2)
                await until(lambda: gateway.projection.standing.staleness_ms < 2_000, within_s=15)

    run(talk())
