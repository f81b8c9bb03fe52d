"""A venue that does not exist, for gateways to follow: `... -m chaos.live.venue PORT SEED SYMBOL=PRICE...`.

It speaks as Kraken's WebSocket v1 does, books with their CRC32, trades and heartbeats, so that a gateway's own live
handler is what runs behind a link that is cut. Prices are drawn from the seed. Listens on 127.0.0.1 only.
"""

import asyncio
import contextlib
import random
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import WSMsgType, web
from msgspec import Struct

LEVELS = 20
CHECKED_LEVELS = 10
STEP = 10
"""Cents between two levels."""
LOT = 10**8
UPDATES_PER_S = 50
HEARTBEAT_S = 1.0
WAITING_MAX = 10_000
"""Frames that wait for one follower; one that reads slower than that is cut off."""
NOTHING = 0

_encode = msgspec.json.Encoder().encode


class Update(Struct, frozen=True):
    """asks, bids: (price in cents, lots); 0 lots: the level is gone. trade: (price in cents, lots, side) or nothing."""

    asks: list[tuple[int, int]]
    bids: list[tuple[int, int]]
    trade: tuple[int, int, str] | None = None


class Book:
    """One symbol: as many levels on either side, some of which change, and prices that wander."""

    def __init__(self, symbol: str, price_cents: int, chance: random.Random) -> None:
        self.symbol = symbol
        self._chance = chance
        self._middle = max(price_cents // STEP, LEVELS + 1) * STEP
        self.asks = {self._middle + STEP * at: self._lots() for at in range(1, LEVELS + 1)}
        self.bids = {self._middle - STEP * at: self._lots() for at in range(1, LEVELS + 1)}

    def _lots(self) -> int:
        return self._chance.randrange(LOT // 100, 5 * LOT)

    def step(self) -> Update:
        drawn = self._chance.random()
        if drawn < 0.1:
            return self._move(STEP)
        if drawn < 0.2 and self._middle > (LEVELS + 2) * STEP:
            return self._move(-STEP)
        side = self.asks if drawn < 0.6 else self.bids
        price = self._chance.choice(list(side))
        side[price] = self._lots()
        changed = [(price, side[price])]
        return Update(changed, []) if side is self.asks else Update([], changed)

    def _move(self, by: int) -> Update:
        """A trade takes the best level of one side; everything follows."""
        before, side = self._middle, "b" if by > 0 else "s"
        taken, given = (self.asks, self.bids) if by > 0 else (self.bids, self.asks)
        self._middle += by
        price = before + by
        lots = taken.pop(price)
        far, last = price + by * LEVELS, before - by * LEVELS
        taken[far] = self._lots()
        given.pop(last)
        given[before] = self._lots()
        of_taken, of_given = [(price, NOTHING), (far, taken[far])], [(before, given[before]), (last, NOTHING)]
        asks, bids = (of_taken, of_given) if by > 0 else (of_given, of_taken)
        return Update(asks, bids, (price, lots, side))

    def checksum(self) -> int:
        best = [(price, self.asks[price]) for price in sorted(self.asks)[:CHECKED_LEVELS]]
        best += [(price, self.bids[price]) for price in sorted(self.bids, reverse=True)[:CHECKED_LEVELS]]
        return zlib.crc32("".join(f"{price}{lots}" for price, lots in best).encode())

    def snapshot(self, depth: int, at_us: int) -> bytes:
        asks = _rows(sorted(self.asks.items()), at_us)
        bids = _rows(sorted(self.bids.items(), reverse=True), at_us)
        return _encode([0, {"as": asks, "bs": bids}, f"book-{depth}", self.symbol])

    def frames(self, update: Update, depth: int, at_us: int) -> list[bytes]:
        """The messages of one step, after which the book is as it is now."""
        parts = [{name: _rows(rows, at_us)} for name, rows in (("a", update.asks), ("b", update.bids)) if rows]
        checked: list[dict[str, Any]] = [*parts[:-1], {**parts[-1], "c": str(self.checksum())}]
        frames = [_encode([0, *checked, f"book-{depth}", self.symbol])]
        if update.trade is not None:
            price, lots, side = update.trade
            row = [_price(price), _size(lots), _seconds(at_us), side, "l", ""]
            frames.append(_encode([1, [row], "trade", self.symbol]))
        return frames


def _rows(levels: Iterable[tuple[int, int]], at_us: int) -> list[list[str]]:
    return [[_price(price), _size(lots), _seconds(at_us)] for price, lots in levels]


def _price(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _size(lots: int) -> str:
    return f"{lots // LOT}.{lots % LOT:08d}"


def _seconds(at_us: int) -> str:
    return f"{at_us // 1_000_000}.{at_us % 1_000_000:06d}"


def now_us() -> int:
    return time.time_ns() // 1_000


class Venue:
    """Its books, and who follows them: each follower's books by symbol, with the depth that it asked for."""

    def __init__(self, prices: dict[str, float], seed: int) -> None:
        self.books = {
            symbol: Book(symbol, round(price * 100), random.Random(f"{seed} {symbol}"))
            for symbol, price in prices.items()
        }
        self._followers: dict[asyncio.Queue[bytes], dict[str, int]] = {}

    async def trade(self) -> None:
        """For ever: change books, tell of it."""
        pause_s = 1 / (UPDATES_PER_S * len(self.books))
        while True:
            for symbol, book in self.books.items():
                await asyncio.sleep(pause_s)
                update, at_us = book.step(), now_us()
                for queue, depths in self._followers.items():
                    if symbol in depths:
                        for frame in book.frames(update, depths[symbol], at_us):
                            _offer(queue, frame)

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for queue in self._followers:
                _offer(queue, b'{"event":"heartbeat"}')

    async def follow(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue(WAITING_MAX)
        queue.put_nowait(b'{"event":"systemStatus","status":"online","version":"1.9.0"}')
        self._followers[queue] = {}
        sender = asyncio.create_task(_send(socket, queue))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._asked(queue, message.data)
        finally:
            del self._followers[queue]
            sender.cancel()
        return socket

    def _asked(self, queue: "asyncio.Queue[bytes]", text: str) -> None:
        asked = msgspec.json.decode(text, type=Asked)
        for symbol in asked.pair:
            book, depths = self.books.get(symbol), self._followers[queue]
            told = {"event": "subscriptionStatus", "pair": symbol, "status": f"{asked.event}d"}
            if book is None:
                _offer(queue, _encode({**told, "status": "error", "errorMessage": "Currency pair not supported"}))
                continue
            _offer(queue, _encode(told))
            if asked.subscription.name != "book":
                continue
            depths.pop(symbol, None)
            if asked.event == "subscribe":
                depths[symbol] = asked.subscription.depth
                _offer(queue, book.snapshot(asked.subscription.depth, now_us()))


class Subscription(Struct, frozen=True):
    name: str
    depth: int = 100


class Asked(Struct, frozen=True):
    event: str
    pair: list[str] = []
    subscription: Subscription = Subscription("")


def _offer(queue: "asyncio.Queue[bytes]", frame: bytes) -> None:
    with contextlib.suppress(asyncio.QueueFull):
        queue.put_nowait(frame)


async def _send(socket: web.WebSocketResponse, queue: "asyncio.Queue[bytes]") -> None:
    with contextlib.suppress(ConnectionError):
        while not queue.full():
            await socket.send_str((await queue.get()).decode())
        await socket.close()


async def serve(port: int, seed: int, prices: dict[str, float]) -> None:
    venue = Venue(prices, seed)
    app = web.Application()
    app.router.add_get("/", venue.follow)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.gather(venue.trade(), venue.beat())


def main(arguments: Sequence[str]) -> None:
    port, seed, *symbols = arguments
    prices = {symbol: float(price) for symbol, _, price in (one.rpartition("=") for one in symbols)}
    asyncio.run(serve(int(port), int(seed), prices))


if __name__ == "__main__":
    main(sys.argv[1:])
