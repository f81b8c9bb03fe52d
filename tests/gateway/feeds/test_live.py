"""A live feed against a venue that drops, stalls, sends garbage and leaves gaps."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web

from gateway.feeds import binance
from gateway.feeds import recorder as recorder_file
from gateway.feeds.binance import Binance
from gateway.feeds.breaker import Breaker, BreakerSettings, State
from gateway.feeds.handler import Handler
from gateway.feeds.kraken import Kraken
from gateway.feeds.live import LIVE, LiveFeed, LiveSettings
from gateway.feeds.recorded import open_recording
from gateway.feeds.recorder import Recorder
from gateway.feeds.ticks import BookDiff, BookSnapshot, Status, StatusKind, Tick
from tests.gateway.feeds.frames import (
    binance_diff,
    binance_snapshot,
    binance_ticker,
    kinds,
    kraken_crc,
    kraken_snapshot,
    kraken_update,
    quotes,
    recorded,
)
from tests.gateway.feeds.venue import Venue, listening, says

FAST = LiveSettings(back_off_ms_min=5, back_off_ms_max=20, idle_ms=2_000, fetch_every_ms=5)
BIDS, ASKS = [("100.0", "1.00000000")], [("101.0", "1.00000000")]
UP, DOWN, GAP = StatusKind.UP, StatusKind.DOWN, StatusKind.GAP


class Watched:
    """A feed that runs, and what it gave."""

    def __init__(self, feed: LiveFeed, ticks: list[Tick], task: asyncio.Task[None]) -> None:
        self.feed = feed
        self.ticks = ticks
        self.task = task

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                assert not self.task.done(), "a feed ends only when it is told to"
                await asyncio.sleep(0.005)

    def kinds(self) -> list[StatusKind]:
        return [kind for kind in kinds(self.ticks) if kind is not StatusKind.ALIVE]


@asynccontextmanager
async def following(
    handler: Handler,
    url: str,
    settings: LiveSettings = FAST,
    breaker: Breaker | None = None,
    tap: Callable[[bytes, str, int], None] | None = None,
) -> AsyncIterator[Watched]:
    ticks: list[Tick] = []
    feed = LiveFeed(handler, url, ticks.extend, settings=settings, breaker=breaker, chance=random.Random(1), tap=tap)
    task = asyncio.create_task(feed.run())
    try:
        yield Watched(feed, ticks, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def text(frame: bytes) -> str:
    return frame.decode()


def test_it_subscribes_and_gives_what_comes() -> None:
    async def run() -> None:
        async with (
            listening(says(text(binance_ticker(1, "100.0", "101.0")), binance_ticker(2, "100.5", "101.0"))) as venue,
            following(Binance([("BTCUSDT", "BTC-USDT")]), venue.url) as watched,
        ):
            await watched.until(lambda: len(quotes(watched.ticks)) == 2)
            assert watched.kinds() == [UP]
            await watched.until(lambda: len(venue.received) == 1)
            assert '"SUBSCRIBE"' in venue.received[0]
            assert watched.feed.counts.is_up
        assert watched.kinds() == [UP, DOWN], "told when it is stopped, too"

    asyncio.run(run())


@pytest.mark.parametrize("then", ["close", "cut"])
def test_a_lost_connection_is_down_at_once_and_made_again(then: str) -> None:
    async def run() -> None:
        first = says(text(binance_ticker(1, "100.0", "101.0")), then=then)
        again = says(text(binance_ticker(2, "100.0", "101.0")))
        async with listening(first, again) as venue, following(Binance(None), venue.url) as watched:
            await watched.until(lambda: watched.kinds() == [UP, DOWN, UP])
            assert len(venue.received) <= venue.connections == 2
            assert watched.feed.counts.failures == 1

    asyncio.run(run())


def test_a_venue_that_is_not_there_is_tried_again_until_it_is() -> None:
    async def run() -> None:
        async with listening(says(text(binance_ticker(1, "1.0", "2.0")))) as venue:
            port = venue.port
        async with following(Binance(None), f"http://127.0.0.1:{port}/ws", breaker=patient()) as watched:
            await watched.until(lambda: watched.feed.counts.failures >= 3)
            assert watched.ticks == []
            async with listening(says(text(binance_ticker(1, "1.0", "2.0")))) as venue:
                watched.feed.url = venue.url
                await watched.until(lambda: len(quotes(watched.ticks)) == 1)

    asyncio.run(run())


def patient() -> Breaker:
    return Breaker(BreakerSettings(points_max=10_000))


def test_a_socket_that_falls_silent_is_given_up() -> None:
    """The other end is gone, or stalls: both look the same from here."""

    async def run() -> None:
        settings = LiveSettings(back_off_ms_min=5, back_off_ms_max=20, idle_ms=100)
        async with (
            listening(says(kraken_snapshot(BIDS, ASKS))) as venue,
            following(Kraken(None), venue.url, settings, patient()) as watched,
            following(Binance(None), venue.url, settings, patient()) as slow,
        ):
            await watched.until(lambda: watched.kinds()[:3] == [UP, DOWN, UP])
            assert watched.feed.counts.idle >= 1
            assert slow.feed.counts.connects == 1, "it may be silent for longer"

    asyncio.run(run())


def test_a_ping_that_is_not_answered_ends_the_connection() -> None:
    """Frames still come from somewhere on the way, but nobody answers: a half-open socket."""

    async def run() -> None:
        async def deaf(venue: Venue, socket: web.WebSocketResponse) -> None:
            # Not reading means not answering.
            for number in range(1, 1_000):
                await socket.send_bytes(binance_ticker(number, "1.0", "2.0"))
                await asyncio.sleep(0.5)

        settings = LiveSettings(back_off_ms_min=5, back_off_ms_max=20, idle_ms=60_000, ping_ms=100)
        async with listening(deaf) as venue:
            venue.answers_pings = False
            async with following(Binance(None), venue.url, settings, patient()) as watched:
                await watched.until(lambda: watched.kinds()[:2] == [UP, DOWN])

    asyncio.run(run())


def test_a_gap_is_resubscribed_on_the_same_connection() -> None:
    async def run() -> None:
        async def gap(venue: Venue, socket: web.WebSocketResponse) -> None:
            await socket.send_bytes(kraken_snapshot(BIDS, ASKS))
            await socket.send_bytes(kraken_update("1", [("99.0", "1.0")]))
            while not any('"unsubscribe"' in one for one in venue.received):
                venue.told.clear()
                await venue.told.wait()
            await socket.send_bytes(kraken_snapshot(BIDS, ASKS))
            better = [("100.5", "1.00000000"), *BIDS]
            await socket.send_bytes(kraken_update(kraken_crc(better, ASKS), better[:1]))
            await asyncio.sleep(60)

        async with listening(gap) as venue, following(Kraken([("XBT/USD", "X")]), venue.url) as watched:
            await watched.until(lambda: any(isinstance(tick, BookDiff) for tick in watched.ticks))
            assert watched.kinds() == [UP, GAP, StatusKind.RESUBSCRIBED]
            assert [quote.bid_e9 for quote in quotes(watched.ticks)] == [100 * 10**9, 100 * 10**9, 100_500_000_000]
            assert venue.connections == 1
            assert '"subscribe"' in venue.received[-1]

    asyncio.run(run())


def test_a_snapshot_is_fetched_with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answers are an error and a snapshot that is too old; the third serves."""

    async def run() -> None:
        diffs = says(*(binance_diff(number, number, [("99.0", "1.0")]) for number in range(10, 20)))
        async with listening(diffs) as venue:
            monkeypatch.setattr(binance, "SNAPSHOT_URL", f"http://127.0.0.1:{venue.port}/depth?symbol={{symbol}}")
            answers: list[bytes | int] = [503, binance_snapshot(3, BIDS, ASKS), binance_snapshot(15, BIDS, ASKS)]
            venue.body = lambda: answers.pop(0) if answers else 500
            async with following(Binance(None, quotes_from="book"), venue.url) as watched:
                await watched.until(lambda: bool(quotes(watched.ticks)))
                assert venue.fetched == 3
                assert watched.feed.counts.fetch_failures == 1
                assert watched.feed.handler.counts.gaps == 0

    asyncio.run(run())


def test_fetches_take_turns_and_keep_apart_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many symbols at once, a refusal, and a Retry-After: nobody is banned."""

    async def run() -> None:
        symbols = [f"S{number}USDT" for number in range(6)]
        diffs = says(*(binance_diff(10, 10, symbol=symbol) for symbol in symbols))
        async with listening(diffs) as venue:
            monkeypatch.setattr(binance, "SNAPSHOT_URL", f"http://127.0.0.1:{venue.port}/depth?symbol={{symbol}}")
            answers: list[bytes | int] = [*[binance_snapshot(10, BIDS, ASKS)] * 3, 429]
            venue.body = lambda: answers.pop(0) if answers else binance_snapshot(10, BIDS, ASKS)
            venue.retry_after_s = 1
            settings = LiveSettings(back_off_ms_min=5, back_off_ms_max=20, fetch_every_ms=50)
            async with following(Binance(None, quotes_from="book"), venue.url, settings) as watched:
                await watched.until(lambda: len(quotes(watched.ticks)) == 6)
            apart = [after - before for before, after in pairwise(venue.fetched_at)]
            assert len(apart) == 6
            assert all(gap >= 0.049 for gap in apart)
            assert apart[3] >= 0.99, "what the venue said"
            assert max(venue.fetching_at_once) == 1

    asyncio.run(run())


def test_binance_limits_what_a_connection_may_carry() -> None:
    symbols = [(f"S{number}", f"S{number}") for number in range(binance.SYMBOLS_MAX + 1)]
    assert len(Binance(symbols[:-1]).opening()) == 1
    with pytest.raises(ValueError, match="342 symbols: a connection takes 341"):
        Binance(symbols)


def test_a_venue_that_sends_garbage_opens_the_breaker_and_is_left_alone() -> None:
    async def run() -> None:
        breaker = Breaker(BreakerSettings(open_us_min=300_000, open_us_max=300_000, probe_us=50_000))

        async def garbage(venue: Venue, socket: web.WebSocketResponse) -> None:
            await socket.send_bytes(binance_ticker(1, "1.0", "2.0"))
            for _ in range(50):
                await socket.send_bytes(b"\x00garbage")
            await asyncio.sleep(60)

        async def good(venue: Venue, socket: web.WebSocketResponse) -> None:
            for number in range(2, 1_000):
                await socket.send_bytes(binance_ticker(number, "1.0", "2.0"))
                await asyncio.sleep(0.02)

        async with (
            listening(garbage, good) as venue,
            following(Binance(None), venue.url, breaker=breaker) as watched,
        ):
            await watched.until(lambda: breaker.state is State.OPEN)
            await watched.until(lambda: watched.kinds()[-1] is DOWN)
            assert set(watched.kinds()[1:-1]) == {GAP}, "what can't be read may have been any symbol's"
            await asyncio.sleep(0.1)
            assert venue.connections == 1, "left alone"
            await watched.until(lambda: breaker.state is State.CLOSED)
            assert venue.connections == 2
            assert watched.kinds()[-2:] == [DOWN, UP]
            assert watched.feed.handler.counts.bad["garbage"] >= 20

    asyncio.run(run())


def test_what_comes_can_be_recorded_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of one's own gives what the live feed gave, snapshot by HTTP included."""
    path = tmp_path / "own.jsonl.gz"

    async def run() -> list[Tick]:
        frames = [binance_diff(number, number, [("99.0", f"{number}.0")]) for number in range(10, 20)]
        async with listening(says(*frames, b"\xff garbage")) as venue:
            monkeypatch.setattr(binance, "SNAPSHOT_URL", f"http://127.0.0.1:{venue.port}/depth?symbol={{symbol}}")
            venue.body = lambda: binance_snapshot(15, BIDS, ASKS)
            recorder = Recorder(path, "binance", began_us=1)
            async with following(Binance(None), venue.url, tap=recorder) as watched:
                await watched.until(lambda: watched.feed.handler.counts.frames == 12)
            recorder.close()
            assert recorder.frames == 13
            return watched.ticks

    live = [tick for tick in asyncio.run(run()) if not isinstance(tick, Status) or tick.kind is GAP]
    assert any(isinstance(tick, BookDiff | BookSnapshot) for tick in live)
    assert [tick for _, ticks in open_recording(path).batches() for tick in ticks] == live
    with pytest.raises(FileExistsError):
        Recorder(path, "binance", began_us=1)
    with pytest.raises(ValueError, match=r"\.jsonl\.gz"):
        Recorder(tmp_path / "own.txt", "binance", began_us=1)


def test_a_recording_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_file, "FILE_BYTES_MAX", 200)
    recorder = Recorder(tmp_path / "own.jsonl.gz", "kraken", began_us=1)
    for _ in range(100):
        recorder(b"[1,2]", "", 1_000_000)
    recorder.close()
    assert recorder.is_full
    assert recorder.written_bytes <= 200
    assert len(list(open_recording(tmp_path / "own.jsonl.gz").frames())) == recorder.frames - 1


def test_back_off_doubles_with_jitter_up_to_its_limit() -> None:
    feed = LiveFeed(Binance(None), "", lambda ticks: None, chance=random.Random(5))
    waits = [feed.back_off_ms() for _ in range(40)]
    for attempt, wait in enumerate(waits):
        most = min(500 * 2**attempt, 30_000)
        assert most / 2 <= wait <= most
    assert len(set(waits)) == 40


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="back_off_ms_min 50 is above back_off_ms_max 20"):
        LiveSettings(back_off_ms_min=50, back_off_ms_max=20)
    with pytest.raises(ValueError, match="idle_ms 0"):
        LiveSettings(idle_ms=0)


def test_each_live_venue_has_a_handler_and_an_address() -> None:
    for name, (handler, url) in LIVE.items():
        made = handler([("A", "B")])
        assert made.venue == name
        assert made.opening()
        assert url.startswith("wss://")


@pytest.mark.real_data
def test_recorded_frames_over_a_real_socket_give_what_the_recording_gives() -> None:
    frames = [frame.data for frame in open_recording(recorded("exchange_ws/KRAKEN.jsonl.zst")).frames()]

    async def run() -> None:
        async with listening(says(*frames)) as venue, following(Kraken(None), venue.url) as watched:
            await watched.until(lambda: watched.feed.handler.counts.frames == len(frames))
            assert sum(isinstance(tick, BookDiff) for tick in watched.ticks) == 4_269
            assert watched.kinds() == [UP]
            assert not any(isinstance(tick, Status) and tick.kind is GAP for tick in watched.ticks)

    asyncio.run(run())
