"""Frames as the venues send them, made by hand, and where the recorded ones are."""

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from gateway.feeds.ticks import Quote, Status, StatusKind, Tick, Trade
from tests.conftest import data_folder

NOW_US = 1_700_000_000_000_000
NOW_MS = NOW_US // 1000
Levels = Sequence[tuple[str, str]]


def recorded(name: str) -> Path:
    """A file of the market data; for tests marked real_data."""
    folder = data_folder()
    assert folder is not None
    return folder / name


def quotes(ticks: Sequence[Tick]) -> list[Quote]:
    return [tick for tick in ticks if isinstance(tick, Quote)]


def trades(ticks: Sequence[Tick]) -> list[Trade]:
    return [tick for tick in ticks if isinstance(tick, Trade)]


def kinds(ticks: Sequence[Tick]) -> list[StatusKind]:
    return [tick.kind for tick in ticks if isinstance(tick, Status)]


def binance_diff(first: int, last: int, bids: Levels = (), asks: Levels = (), symbol: str = "BTCUSDT") -> bytes:
    data = {"e": "depthUpdate", "E": NOW_MS, "s": symbol, "U": first, "u": last, "b": bids, "a": asks}
    return json.dumps({"stream": f"{symbol.lower()}@depth@100ms", "data": data}).encode()


def binance_ticker(number: int, bid: str, ask: str, symbol: str = "BTCUSDT") -> bytes:
    data = {"u": number, "s": symbol, "b": bid, "B": "1.00000000", "a": ask, "A": "2.00000000"}
    return json.dumps({"stream": f"{symbol.lower()}@bookTicker", "data": data}).encode()


def binance_trade(number: int, price: str, size: str = "1.0", at_ms: int = NOW_MS, *, maker: bool = True) -> bytes:
    data = {"e": "trade", "E": at_ms, "s": "BTCUSDT", "t": number, "p": price, "q": size, "T": at_ms, "m": maker}
    return json.dumps({"stream": "btcusdt@trade", "data": data}).encode()


def binance_snapshot(last: int, bids: Levels, asks: Levels) -> bytes:
    return json.dumps({"lastUpdateId": last, "bids": bids, "asks": asks}).encode()


def kraken_crc(bids: Levels, asks: Levels) -> str:
    """By the venue's own words: without the dot, without leading zeros, asks first."""
    text = "".join(number.replace(".", "").lstrip("0") for level in (*asks, *bids) for number in level)
    return str(zlib.crc32(text.encode()))


def kraken_snapshot(bids: Levels, asks: Levels, pair: str = "XBT/USD", depth: int = 10) -> bytes:
    rows = {
        "as": [[*level, "1700000000.000001"] for level in asks],
        "bs": [[*level, "1700000000.000002"] for level in bids],
    }
    return json.dumps([1, rows, f"book-{depth}", pair]).encode()


def kraken_update(checksum: str, bids: Levels = (), asks: Levels = (), pair: str = "XBT/USD", depth: int = 10) -> bytes:
    part: dict[str, object] = {"c": checksum}
    if bids:
        part["b"] = [[*level, "1700000000.100000"] for level in bids]
    if asks:
        part["a"] = [[*level, "1700000000.100000"] for level in asks]
    return json.dumps([1, part, f"book-{depth}", pair]).encode()


def kraken_trade(price: str, size: str, side: str = "b", pair: str = "XBT/USD") -> bytes:
    return json.dumps([1, [[price, size, "1700000000.000000", side, "m", ""]], "trade", pair]).encode()


def coinbase(sequence: int, channel: str, events: Sequence[object], time: str = "2023-11-14T22:13:20Z") -> bytes:
    message = {"channel": channel, "timestamp": time, "sequence_num": sequence, "events": events}
    return json.dumps(message).encode()


def coinbase_book(sequence: int, bids: Levels = (), asks: Levels = (), *, snapshot: bool = False) -> bytes:
    rows = [("bid", level) for level in bids] + [("offer", level) for level in asks]
    updates = [
        {"side": side, "event_time": "2023-11-14T22:13:20Z", "price_level": price, "new_quantity": size}
        for side, (price, size) in rows
    ]
    kind = "snapshot" if snapshot else "update"
    return coinbase(sequence, "l2_data", [{"type": kind, "product_id": "BTC-USD", "updates": updates}])


def coinbase_trades(sequence: int, numbers: Sequence[int], price: str = "100") -> bytes:
    rows = [
        {"product_id": "BTC-USD", "trade_id": str(number), "price": price, "size": "1",
         "time": "2023-11-14T22:13:20.000001Z", "side": "SELL"}
        for number in numbers
    ]  # fmt: skip
    return coinbase(sequence, "market_trades", [{"type": "update", "trades": rows}])


def iex_quote(symbol: str, bid: int, ask: int, *, flags: int = 0, at_us: int = NOW_US) -> bytes:
    """Prices in units of 1e-4."""
    return struct.pack("<BBq8sIqqI", 0x51, flags, at_us * 1000, symbol.ljust(8).encode(), 100, bid, ask, 200)


def iex_trade(symbol: str, price: int, number: int, *, flags: int = 0, at_us: int = NOW_US) -> bytes:
    return struct.pack("<BBq8sIqq", 0x54, flags, at_us * 1000, symbol.ljust(8).encode(), 100, price, number)


def iex_segment(first: int, messages: Sequence[bytes], session: int = 7) -> bytes:
    body = b"".join(struct.pack("<H", len(message)) + message for message in messages)
    header = struct.pack("<BxHIIHHqqq", 1, 0x8003, 1, session, len(body), len(messages), 0, first, NOW_US * 1000)
    return header + body
