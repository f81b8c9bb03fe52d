"""Sources of market data as a gateway's file names them: live venues, recorded on the way, and recordings replayed."""

import asyncio
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.config import Feed
from gateway.feeds.recorded import RecordingError, open_recording
from gateway.feeds.recorder import Recorder
from gateway.feeds.ticks import Quote, Tick
from gateway.sources import LiveSource, make_source
from gateway.tasks import end
from tests.gateway.api.sites import until
from tests.gateway.cli.test_commands import tiebreak
from tests.gateway.feeds.frames import binance_ticker, recorded
from tests.gateway.feeds.venue import listening, says


async def test_a_live_feed_is_recorded_and_its_recording_is_a_source(tmp_path: Path) -> None:
    async with listening(says(*(binance_ticker(number, f"{number}.0", "99.0") for number in range(10, 20)))) as venue:
        feed = Feed("live", venue="binance", url=venue.url, symbols=["BTCUSDT=BTC-USD"], record=True)
        heard: list[Tick] = []
        source = make_source(feed, heard.extend, tmp_path / "recordings")
        running = asyncio.create_task(source.run())
        await until(lambda: sum(isinstance(tick, Quote) for tick in heard) == 10)
        await end(running)
    [path] = (tmp_path / "recordings").iterdir()
    again: list[Tick] = []
    playing = Feed("recording", path=str(path), symbols=["BTCUSDT=BTC-USD"], speed=1_000.0)
    await make_source(playing, again.extend, tmp_path).run()
    bids = [[(tick.symbol, tick.bid_e9) for tick in ticks if isinstance(tick, Quote)] for ticks in (heard, again)]
    assert bids[0] == bids[1] != []


def test_what_a_killed_gateway_had_recorded_can_be_read(tmp_path: Path) -> None:
    path, killed = tmp_path / "x.jsonl.gz", tmp_path / "killed.jsonl.gz"
    recorder = Recorder(path, "binance", began_us=0)
    for number in range(10):
        recorder(binance_ticker(number, "1.0", "2.0"), "", number * 1_000_000)
    killed.write_bytes(path.read_bytes())  # what the disk had, without an end
    recorder.close()
    found: list[int] = []
    with pytest.raises(RecordingError, match="damaged"):
        for frame in open_recording(killed).frames():
            found.append(frame.receive_us)  # noqa: PERF401 - what came before the damage is wanted
    assert found[-1] >= 5_000_000


async def test_a_full_disk_ends_the_recording_and_not_the_feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "x.jsonl.gz", "binance", began_us=0)

    def full(_data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder._file, "write", full)
    for _ in range(2):
        recorder(b"{}", "", 1)
    assert recorder.is_full and recorder.frames == 1
    monkeypatch.undo()
    recorder.close()


def test_older_recordings_go_when_there_are_too_many(tmp_path: Path) -> None:
    feed = Feed("live", name="b/n", venue="binance", symbols=["X"], record=True, record_bytes_max=1 << 20)
    for number in range(4):
        (tmp_path / f"b-n.{number}.jsonl.gz").write_bytes(os.urandom(600 << 10))
    (tmp_path / "other.1.jsonl.gz").write_bytes(os.urandom(2 << 20))
    source = make_source(feed, lambda _: None, tmp_path)
    assert isinstance(source, LiveSource) and source.recorder is not None
    source.recorder.close()
    left = sorted(path.name.split(".")[:2] for path in tmp_path.iterdir())
    assert [name for name, _ in left] == ["b-n", "b-n", "other"]
    assert ["b-n", "3"] in left, "the newest of the older ones"


RECORDINGS = [
    ("binance/spot_btcusdt_20240808.gz", {"quote", "trade", "book", "diff"}),
    ("exchange_ws/BINANCE.jsonl.zst", {"quote"}),
    ("exchange_ws/KRAKEN.jsonl.zst", {"book", "diff", "quote"}),
    ("exchange_ws/COINBASE.jsonl.zst", {"book", "quote"}),
    ("iex/TOPS16.pcapng.gz", {"quote", "trade"}),
    ("lobster/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip", {"quote", "trade"}),
    ("lobster/LOBSTER_SampleFile_GOOG_2012-06-21_10.zip", {"quote", "trade", "book", "diff"}),
    ("lobster/AAPL_2012-06-21_34200000_37800000_message_50.csv.gz", {"quote", "trade"}),
    ("lean/tick/ibm/20131007_trade.zip", {"quote", "trade"}),
]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "kinds"), RECORDINGS)
async def test_feed_replay_plays_each_kind_of_recording(name: str, kinds: set[str]) -> None:
    found = await tiebreak("feed", "replay", str(recorded(name)), "--speed", "5000", "--seconds", "5", "--json")
    assert found.code == 0, found.err
    assert kinds <= found.body["ticks"].keys()
    # The capture of IEX ends with each quote withdrawn; what was traded stays.
    ends_with = ("last",) if name.startswith("iex") else ("bid", "ask")
    assert any(all(row[one] for one in ends_with) for row in found.body["quotes"])


@pytest.mark.real_data
async def test_ten_times_as_fast_is_no_faster(tmp_path: Path) -> None:
    path = recorded("exchange_ws/KRAKEN.jsonl.zst")
    found = await tiebreak("feed", "replay", str(path), "--speed", "10", "--seconds", "2", "--json")
    took_s = found.body["seconds"]
    first_us = 0
    due = 0
    for frame_us, ticks in open_recording(path).batches():
        first_us = first_us or frame_us
        if frame_us > first_us + (took_s + 0.1) * 10e6:
            break
        due += len(ticks)
    assert 0 < sum(found.body["ticks"].values()) <= due


@pytest.mark.real_data
async def test_a_replay_shows_the_symbols_asked_for_tick_by_tick_and_stops_when_told(tmp_path: Path) -> None:
    path = recorded("exchange_ws/KRAKEN.jsonl.zst")
    options = ("--symbol", "ETH/CHF=ETH-CHF", "--symbol", "ADA/XBT")
    found = await tiebreak("feed", "replay", str(path), "--speed", "5000", *options, "--json")
    assert (found.code, {row["symbol"] for row in found.body["quotes"]}) == (0, {"ETH-CHF", "ADA/XBT"})
    found = await tiebreak("feed", "replay", str(path), "--speed", "5000", "--ticks", *options)
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert found.code == 0 and {line["kind"] for line in lines} >= {"quote", "book", "diff"}
    prices = [price for line in lines if line["kind"] == "book" for price, _ in line["bids"]]
    assert prices and all(Decimal(price) < 10_000 for price in prices)  # decimals, not whole units of 1e-9
    # The next frame is days away at this speed; it ends all the same.
    found = await tiebreak("feed", "replay", str(path), "--speed", "0.001", "--seconds", "0.5", "--json")
    assert found.code == 0 and 0.4 < found.body["seconds"] < 10
