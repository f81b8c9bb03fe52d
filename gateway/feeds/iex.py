"""IEX TOPS 1.6: binary quotes, trades and trading statuses in numbered segments (IEX-TP), one per UDP packet.

A quote message is the symbol's whole state, so after a gap each symbol is whole again with its next quote.
Multicast has no one to ask; `wants` stays empty.
"""

from collections.abc import Iterable
from struct import Struct as Layout

from gateway.feeds.guard import BadFrame
from gateway.feeds.handler import Handler
from gateway.feeds.ticks import HALTED, StatusKind, Tick

SEGMENT = Layout("<BxHIIHHqqq")
"""version, protocol, channel, session, payload bytes, messages, stream offset, first message, send time."""
TOPS_16 = 0x8003
QUOTE = Layout("<BBq8sIqqI")
TRADE = Layout("<BBq8sIqq")
STATUS = Layout("<BBq8s")
PRICE_UNIT_E9 = 100_000
"""Prices have four implied decimals."""

NOT_ACTIVE = 0x80  # of a quote: halted, paused or not there
NOT_ELIGIBLE = 0x40 | 0x20  # of a trade: extended hours, odd lot; they move neither last price nor high and low
E9 = 1_000_000_000


class IexTops(Handler):
    """feed() takes one segment: the payload of one UDP packet."""

    ttl_us = 2_500_000

    def __init__(self, symbols: Iterable[tuple[str, str]] | None = None, *, venue: str = "iex") -> None:
        super().__init__(venue, symbols)
        self._names: dict[bytes, str | None] = {}
        self.reset()

    def reset(self) -> None:
        self._session = -1
        self._next = 0

    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        if len(frame) < SEGMENT.size:
            raise BadFrame("truncated")
        version, protocol, _, session, payload_bytes, count, _, first, _ = SEGMENT.unpack_from(frame)
        if version != 1 or protocol != TOPS_16:
            raise BadFrame("wrong_version")
        if len(frame) != SEGMENT.size + payload_bytes:
            raise BadFrame("truncated")
        messages = _messages(frame, count)
        ticks: list[Tick] = []
        if session != self._session:
            self._session = session
        elif first < self._next:
            self.counts.repeats += 1
            return []
        elif first > self._next:
            self.counts.gaps += 1
            ticks.append(self._status(StatusKind.GAP, receive_us, detail=f"{first - self._next} messages"))
        self._next = first + count
        if not messages:
            self.counts.heartbeats += 1
            ticks.append(self._status(StatusKind.ALIVE, receive_us))
        for at, length in messages:
            try:
                self._message(frame, at, length, receive_us, ticks)
            except BadFrame as error:
                # The messages of a segment are independent: the others are good. What this one spoke of is unknown.
                self.counts.count_bad(error.reason)
                self.counts.gaps += 1
                kind = StatusKind.TRADE_GAP if frame[at] in b"TB" else StatusKind.GAP
                ticks.append(self._status(kind, receive_us, self._named(frame, at, length), error.reason))
        return ticks

    def _message(self, frame: bytes, at: int, length: int, receive_us: int, ticks: list[Tick]) -> None:
        kind = frame[at]
        if kind == 0x51 and length >= QUOTE.size:
            _, flags, ns, raw, bid_size, bid, ask, ask_size = QUOTE.unpack_from(frame, at)
            symbol = self._name(raw)
            if symbol is None:
                return
            marks = HALTED if flags & NOT_ACTIVE else 0
            ticks.append(
                self.guard.quote(
                    symbol, self.venue, bid * PRICE_UNIT_E9, bid_size * E9, ask * PRICE_UNIT_E9, ask_size * E9,
                    ns // 1000, receive_us, marks,
                )
            )  # fmt: skip
        elif kind == 0x54 and length >= TRADE.size:
            _, flags, ns, raw, size, price, number = TRADE.unpack_from(frame, at)
            symbol = self._name(raw)
            if symbol is None:
                return
            eligible = not flags & NOT_ELIGIBLE
            ticks.append(
                self.guard.trade(
                    symbol, self.venue, price * PRICE_UNIT_E9, size * E9, ns // 1000, receive_us, str(number), eligible
                )
            )
        elif kind == 0x48 and length >= STATUS.size:
            _, status, _, raw = STATUS.unpack_from(frame, at)
            symbol = self._name(raw)
            if symbol is not None:
                # H halted, O paused by the opening auction, P paused; T trades.
                halted = status in b"HOP"
                kind_of = StatusKind.HALTED if halted else StatusKind.RESUMED
                ticks.append(self._status(kind_of, receive_us, symbol, chr(status) if status < 128 else ""))
        elif kind == 0x42 and length >= TRADE.size:
            _, _, _, raw, _, _, number = TRADE.unpack_from(frame, at)
            symbol = self._name(raw)
            if symbol is not None:
                ticks.append(self._status(StatusKind.TRADE_BROKEN, receive_us, symbol, str(number)))
        elif kind in b"QTHB":
            raise BadFrame("truncated")

    def _named(self, frame: bytes, at: int, length: int) -> str:
        """The symbol of a message that is otherwise bad; empty (all symbols) where even that can't be read."""
        raw = frame[at + 10 : at + 18]
        if length < STATUS.size or raw not in self._names:
            return ""
        return self._names[raw] or ""

    def _name(self, raw: bytes) -> str | None:
        if raw not in self._names:
            text = raw.decode("ascii", "replace").rstrip()
            if not text.isascii() or not text.isprintable():
                raise BadFrame("bad_symbol")
            self._names[raw] = self._ours(text)
        return self._names[raw]


def _messages(frame: bytes, count: int) -> list[tuple[int, int]]:
    """(offset, length) of each message of a segment."""
    messages, at = [], SEGMENT.size
    for _ in range(count):
        if at + 2 > len(frame):
            raise BadFrame("truncated")
        length = frame[at] | frame[at + 1] << 8
        at += 2
        if not length or at + length > len(frame):
            raise BadFrame("truncated")
        messages.append((at, length))
        at += length
    return messages
