"""Which handler reads a file is found out; a replay keeps the pace; what can't be read says why."""

import asyncio
import gzip
import json
import struct
import time
import zipfile
from pathlib import Path

import pytest

from gateway.feeds.binance import Binance
from gateway.feeds.coinbase import Coinbase
from gateway.feeds.handler import Handler
from gateway.feeds.iex import IexTops
from gateway.feeds.kraken import Kraken
from gateway.feeds.lean import LeanTicks
from gateway.feeds.lobster import Lobster
from gateway.feeds.recorded import RecordingError, as_if_at, open_recording
from gateway.feeds.ticks import Quote, Status, StatusKind, Tick
from tests.gateway.feeds.frames import (
    NOW_US,
    binance_diff,
    binance_snapshot,
    binance_ticker,
    coinbase_book,
    iex_quote,
    iex_segment,
    kraken_snapshot,
    quotes,
    recorded,
)


def pcap(payloads: list[bytes], *, magic: bytes = b"\xd4\xc3\xb2\xa1") -> bytes:
    """A capture of UDP packets, one a second."""
    parts = [magic + struct.pack("<HHIIII", 2, 4, 0, 0, 65535, 1)]
    for second, payload in enumerate(payloads):
        udp = struct.pack(">HHHH", 1, 2, len(payload) + 8, 0) + payload
        ip = b"\x45" + bytes(8) + b"\x11" + bytes(10)
        packet = bytes(12) + b"\x08\x00" + ip + udp + b"pad"
        parts.append(struct.pack("<IIII", 1_700_000_000 + second, 5, len(packet), len(packet)) + packet)
    return b"".join(parts)


def exchange(name: str, frames: list[bytes]) -> bytes:
    lines = [{"t": "header", "format": 2, "exchange": name}]
    lines += [{"t": "recv", "ts": 1_700_000_000 + at / 10, "data": frame.decode()} for at, frame in enumerate(frames)]
    return "\n".join(json.dumps(line, separators=(",", ":")) for line in lines).encode()


def test_each_kind_of_file_finds_its_handler(tmp_path: Path) -> None:
    lean = tmp_path / "ibm"
    lean.mkdir()
    with zipfile.ZipFile(lean / "20131007_trade.zip", "w") as archive:
        archive.writestr("20131007_ibm_Trade_Tick.csv", "2,1815200,283,P,1,0\n")
    with zipfile.ZipFile(lean / "20131007_quote.zip", "w") as archive:
        archive.writestr("20131007_ibm_Quote_Tick.csv", "1,1815200,283,0,0,P,1,0\n3,0,0,1815300,1,P,1,0\n")
    (tmp_path / "AAPL_2012-06-21_1_2_message_1.csv").write_bytes(b"34200.1,1,11,18,5853300,1\n")
    (tmp_path / "AAPL_2012-06-21_1_2_orderbook_1.csv").write_bytes(b"5859400,200,5853300,18\n")
    (tmp_path / "spot.gz").write_bytes(gzip.compress(
        b"1700000000000000000 " + binance_diff(5, 6) + b"\n"
        b"1700000000100000000 " + binance_snapshot(6, [("1", "1")], [("2", "1")]) + b"\n"
    ))  # fmt: skip
    (tmp_path / "iex.pcap").write_bytes(pcap([iex_segment(1, [iex_quote("A", 1, 2)])]))
    (tmp_path / "k.jsonl").write_bytes(exchange("KRAKEN", [kraken_snapshot([("1.0", "1.0")], [("2.0", "1.0")])]))
    (tmp_path / "c.jsonl").write_bytes(exchange("COINBASE", [coinbase_book(0, [("1", "1")], snapshot=True)]))
    expected: list[tuple[Path, type[Handler], list[str]]] = [
        (lean / "20131007_trade.zip", LeanTicks, ["Quote", "Trade", "Quote"]),
        (tmp_path / "AAPL_2012-06-21_1_2_message_1.csv", Lobster, ["BookSnapshot", "Quote"]),
        (tmp_path / "spot.gz", Binance, ["BookSnapshot"]),
        (tmp_path / "iex.pcap", IexTops, ["Quote"]),
        (tmp_path / "k.jsonl", Kraken, ["BookSnapshot", "Quote"]),
        (tmp_path / "c.jsonl", Coinbase, ["BookSnapshot", "Quote"]),
    ]
    for path, handler, names in expected:
        recording = open_recording(path)
        assert type(recording.handler) is handler
        ticks = [tick for _, batch in recording.batches() for tick in batch]
        assert [type(tick).__name__ for tick in ticks] == names
        # From the beginning, each time.
        assert sum(1 for _ in recording.frames()) == sum(1 for _ in recording.frames())


def test_symbols_are_ours_where_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "iex.pcap"
    path.write_bytes(pcap([iex_segment(1, [iex_quote("A", 1, 2), iex_quote("B", 1, 2)])]))
    recording = open_recording(path, symbols=[("B", "our-b")])
    assert [quote.symbol for _, ticks in recording.batches() for quote in quotes(ticks)] == ["our-b"]


def test_a_capture_in_the_other_byte_order_and_in_nanoseconds(tmp_path: Path) -> None:
    body = pcap([iex_segment(1, [iex_quote("A", 1, 2)])], magic=b"\x4d\x3c\xb2\xa1")
    (tmp_path / "iex.pcap").write_bytes(body)
    assert [us for us, _ in open_recording(tmp_path / "iex.pcap").batches()] == [NOW_US]


@pytest.mark.parametrize(("name", "content"), [
    ("gone.gz", None),
    ("empty.gz", b""),
    ("words.txt", b"these are words"),
    ("not.gz", b"not packed"),
    ("20131007_trade.zip", b"not a zip"),
    ("some.jsonl", b'{"t":"header","exchange":"NOWHERE"}\n'),
])  # fmt: skip
def test_what_can_not_be_read_says_why(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=name):
        list(open_recording(path).batches())


def test_a_damaged_recording_gives_what_is_good_and_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "iex.pcap"
    path.write_bytes(pcap([iex_segment(1, [iex_quote("A", 1, 2)])] * 2)[:-5])
    taken = []
    with pytest.raises(RecordingError, match="cut short"):
        for _, ticks in open_recording(path).batches():
            taken.append(ticks)
    assert len(taken) == 1


def test_a_replay_keeps_the_pace_times_the_speed_and_speaks_of_now(tmp_path: Path) -> None:
    """Ten frames of 100 ms each at ten times the speed: 90 ms."""
    frames = [binance_ticker(number, "1", "2") for number in range(1, 11)]
    (tmp_path / "b.jsonl").write_bytes(exchange("BINANCE", frames))

    async def run() -> tuple[float, list[tuple[int, list[Tick]]]]:
        began = time.monotonic()
        given = [one async for one in open_recording(tmp_path / "b.jsonl").replay(speed=10.0)]
        return time.monotonic() - began, given

    took_s, given = asyncio.run(run())
    assert len(given) == 10
    assert 0.085 <= took_s < 2.0
    now_us = time.time_ns() // 1000
    assert all(0 <= now_us - at_us < 10_000_000 and quotes(ticks)[0].receive_us == at_us for at_us, ticks in given)


def test_a_replay_at_no_speed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(exchange("BINANCE", []))

    async def run() -> None:
        async for _ in open_recording(tmp_path / "b.jsonl").replay(speed=0):
            pass

    with pytest.raises(ValueError, match="above 0"):
        asyncio.run(run())


def test_a_tick_moved_in_time_keeps_its_delay() -> None:
    quote = Quote("A", "v", 1, 2, 3, 4, NOW_US - 700, NOW_US)
    moved = as_if_at(quote, 5_000_000)
    assert moved == Quote("A", "v", 1, 2, 3, 4, 5_000_000 - 700, 5_000_000)
    assert as_if_at(Status("v", StatusKind.GAP, NOW_US), 5) == Status("v", StatusKind.GAP, 5)


@pytest.mark.real_data
def test_recorded_snapshots_fetched_by_http_are_used() -> None:
    recording = open_recording(recorded("exchange_ws/BINANCE.jsonl.zst"))
    names = [type(tick).__name__ for _, ticks in recording.batches() for tick in ticks]
    assert {name: names.count(name) for name in set(names)} == {
        "BookSnapshot": 4, "BookDiff": 172, "Quote": 84, "Trade": 2,
    }  # fmt: skip
    assert (recording.handler.counts.gaps, recording.handler.counts.bad) == (0, {})
