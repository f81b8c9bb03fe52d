"""What all feed handlers share: frames in, ticks out, no I/O, and never an exception.

A handler parses a whole frame before it changes anything, so a frame that is refused has no effect. On a
numbered feed the hole that it leaves is then found like any other gap.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta, Struct

from gateway.feeds.guard import BadFrame, Counts, Guard
from gateway.feeds.ticks import Status, StatusKind, Tick

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.feeds")

FRAME_BYTES_MAX = 16 << 20
"""Coinbase's largest snapshot is some 4 MiB."""
SYMBOLS_MAX = 50_000
"""A venue that names more is sending garbage."""


Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""What a venue may use to count or to tell the time: never below 0, never beyond 64 bits."""


class Send(Struct, frozen=True):
    """A frame to send to the venue."""

    text: str


class Fetch(Struct, frozen=True):
    """A body to fetch by HTTP and hand to `Handler.fetched` with the same `key`."""

    url: str
    key: str


Request = Send | Fetch


class Handler(ABC):
    """One venue's feed. `venue` and `counts` are for everyone to read; a subclass gives `_feed`."""

    venue: str = ""
    ttl_us: int = 1_000_000
    """After so long without a sign of life the venue is taken for silent: more than twice its heartbeat."""
    idle_ms: int = 0
    """A live connection may be silent for at least so long."""

    def __init__(self, venue: str, symbols: Iterable[tuple[str, str]] | None) -> None:
        """symbols: (the venue's name, ours) of those wanted; None takes every symbol under its own name."""
        self.venue = venue
        self.symbols = None if symbols is None else dict(symbols)
        self.counts = Counts()
        self.guard = Guard(self.counts)
        self._seen: set[str] = set()
        self._requests: list[Request] = []

    def opening(self) -> list[Request]:
        """What to send on a new connection; everything that an older one said is forgotten."""
        self.reset()
        self._requests.clear()
        return self._subscribe()

    def feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        """What one frame says. A bad frame gives what it must (a gap) or nothing, and is counted."""
        return self._guarded(frame, receive_us, "")

    def fetched(self, key: str, body: bytes, receive_us: int) -> list[Tick]:
        """What an HTTP body says that `wants` asked for, or that a recording holds."""
        return self._guarded(body, receive_us, key)

    def wants(self) -> list[Request]:
        """What to send or fetch now, such as a new subscription after a gap. Each is handed out once."""
        wanted, self._requests = self._requests, []
        return wanted

    def reset(self) -> None:  # noqa: B027 - those that keep nothing have nothing to forget
        """Forget what a connection said: books, numbers. Counts and the guard's memory of prices stay."""

    def _subscribe(self) -> list[Request]:
        return []

    @abstractmethod
    def _feed(self, frame: bytes, receive_us: int) -> list[Tick]:
        """What one frame of the venue says. Raises BadFrame."""

    def _fetched(self, key: str, body: bytes, receive_us: int) -> list[Tick]:
        raise BadFrame("not_asked_for")

    def _lost(self, reason: str, receive_us: int) -> list[Tick]:
        """What to tell when a frame was dropped. Numbered feeds find the gap by themselves."""
        return []

    def _guarded(self, frame: bytes, receive_us: int, key: str) -> list[Tick]:
        self.counts.frames += 1
        self.counts.frame_bytes += len(frame)
        try:
            if len(frame) > FRAME_BYTES_MAX:
                raise BadFrame("too_large")
            return self._fetched(key, frame, receive_us) if key else self._feed(frame, receive_us)
        except BadFrame as error:
            reason = error.reason
        except msgspec.ValidationError:
            reason = "wrong_type"
        except (msgspec.DecodeError, UnicodeDecodeError):
            reason = "garbage"
        except RecursionError:
            reason = "too_deep"
        except Exception:
            # We were wrong. One venue's odd frame must not take every other venue down with it.
            log.exception("feed handler failed", venue=self.venue, frame_bytes=len(frame))
            reason = "handler_failed"
        self.counts.count_bad(reason)
        return self._lost(reason, receive_us)

    def _ours(self, symbol: str) -> str | None:
        """Our name of a venue's symbol; None, and counted, if it is not wanted."""
        if self.symbols is not None:
            ours = self.symbols.get(symbol)
            if ours is None:
                self.counts.unwanted += 1
            return ours
        if symbol not in self._seen:
            if not symbol or len(symbol) > 32 or not symbol.isprintable() or len(self._seen) >= SYMBOLS_MAX:
                raise BadFrame("bad_symbol")
            self._seen.add(symbol)
        return symbol

    def _status(self, kind: StatusKind, receive_us: int, symbol: str = "", detail: str = "") -> Status:
        return Status(self.venue, kind, receive_us, symbol, detail)
