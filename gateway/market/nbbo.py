"""The best bid and ask across venues, of those quotes that can be trusted at a given time.

A quote counts while its venue gives signs of life (any tick, heartbeats too), at most `ttl_us` ago: on a
feed that finds its own gaps, silence on one symbol means that nothing changed. For venues named in
`silent_symbols` each symbol must give its own sign of life. A gap, a halt, a lost connection and a quote that
is marked unusable take effect at once.
"""

from collections.abc import Collection, Iterable, Iterator

import msgspec
from msgspec import Struct

from gateway.feeds.ticks import UNUSABLE, Quote, Status, StatusKind, Tick

TTL_US = 1_000_000
NEVER_US = 1 << 62
DROPS = frozenset({StatusKind.GAP, StatusKind.HALTED, StatusKind.DOWN})


class Nbbo(Struct, frozen=True, gc=False, array_like=True):
    """The best bid and ask of a symbol at `as_of_us`. A side that nobody quotes has price and size 0.

    A size is the sum over all venues at that price; the venue named is the one with the most (the first by
    name where equal). `crossed`: bid above ask, `locked`: equal; both happen between venues, and are shown.
    `as_of_us` is when the sides' venues last gave a sign of life: the older of the two.
    """

    symbol: str
    bid_e9: int
    bid_size_e9: int
    bid_venue: str
    ask_e9: int
    ask_size_e9: int
    ask_venue: str
    as_of_us: int
    crossed: bool = False
    locked: bool = False
    stale: bool = False


Best = tuple[int, int, str, int, int, str]
"""bid, its size and venue, ask, its size and venue."""


class _Symbol:
    """The trusted quotes of one symbol by venue, and their best, which is worked out when it is asked for:
    most quotes of a busy symbol are replaced before anybody looks.
    """

    __slots__ = ("best", "last", "quotes", "told")

    def __init__(self) -> None:
        self.quotes: dict[str, Quote] = {}
        self.best: Best | None = None
        self.told: Best | None = None
        """What `changed` last gave."""
        self.last: Nbbo | None = None
        """What was known when the last trusted quote went."""

    def find_best(self) -> Best:
        """Look at all quotes. A dozen venues at most: cheaper than keeping them sorted."""
        if self.best is not None:
            return self.best
        bid = bid_size = most_bid = ask = ask_size = most_ask = 0
        bid_venue = ask_venue = ""
        for venue, quote in self.quotes.items():
            price, size = quote.bid_e9, quote.bid_size_e9
            if price:
                if price > bid:
                    bid, bid_size, most_bid, bid_venue = price, size, size, venue
                elif price == bid:
                    bid_size += size
                    if size > most_bid or (size == most_bid and venue < bid_venue):
                        most_bid, bid_venue = size, venue
            price, size = quote.ask_e9, quote.ask_size_e9
            if price:
                if price < ask or not ask:
                    ask, ask_size, most_ask, ask_venue = price, size, size, venue
                elif price == ask:
                    ask_size += size
                    if size > most_ask or (size == most_ask and venue < ask_venue):
                        most_ask, ask_venue = size, venue
        self.best = bid, bid_size, bid_venue, ask, ask_size, ask_venue
        return self.best


class NbboBook:
    """All symbols' best prices. Times come in with the calls, in microseconds, and never go back."""

    def __init__(self, *, ttl_us: int = TTL_US, silent_symbols: Collection[str] = ()) -> None:
        self.ttl_us = ttl_us
        self.silent_symbols = frozenset(silent_symbols)
        self.now_us = 0
        self.dropped = 0
        """Quotes dropped because their venue fell silent."""
        self._symbols: dict[str, _Symbol] = {}
        self._alive: dict[str, int] = {}
        self._by_venue: dict[str, dict[str, None]] = {}
        """The symbols that a venue has a quote of; the one heard from longest ago is first."""
        self._changed: dict[str, None] = {}
        self._check_us = NEVER_US

    def apply(self, ticks: Iterable[Tick], now_us: int) -> None:
        """Take in quotes and statuses; other ticks are signs of life."""
        self.expire(now_us)
        symbols, alive, by_venue, changed = self._symbols, self._alive, self._by_venue, self._changed
        now_us = self.now_us
        for tick in ticks:
            venue = tick.venue
            if tick.receive_us + self.ttl_us <= now_us:
                # It waited too long on its way to us: too old to be shown as fresh, and no sign of life.
                if type(tick) is Quote:
                    self._drop(tick.symbol, venue)
                elif type(tick) is Status and tick.kind in DROPS:
                    self._status(tick)
                continue
            if type(tick) is Quote:
                symbol = tick.symbol
                state = symbols.get(symbol)
                if state is None:
                    state = symbols[symbol] = _Symbol()
                if tick.marks & UNUSABLE:
                    self._drop(symbol, venue)
                else:
                    state.quotes[venue] = tick
                    quoted = by_venue.get(venue)
                    if quoted is None:
                        quoted = by_venue[venue] = {}
                    if venue in self.silent_symbols:
                        quoted.pop(symbol, None)
                    quoted[symbol] = None
                    state.best = None
                    changed[symbol] = None
            elif type(tick) is Status:
                self._status(tick)
                if tick.kind is StatusKind.DOWN:
                    continue
            if tick.receive_us > alive.get(venue, 0):
                alive[venue] = min(tick.receive_us, now_us)
                if self._check_us == NEVER_US:
                    self._check_us = now_us + self.ttl_us

    def expire(self, now_us: int) -> None:
        """Let the clock say that it is now; what has been silent too long drops out."""
        self.now_us = max(self.now_us, now_us)
        if self.now_us < self._check_us:
            return
        self._check_us = NEVER_US
        for venue, quoted in self._by_venue.items():
            due_us = self._expire_venue(venue, quoted)
            self._check_us = min(self._check_us, due_us)

    def _expire_venue(self, venue: str, quoted: dict[str, None]) -> int:
        """Drop what is due; gives when the next quote of this venue could be."""
        alive_us = self._alive.get(venue, 0)
        if alive_us + self.ttl_us <= self.now_us:
            self.dropped += len(quoted)
            for symbol in list(quoted):
                self._drop(symbol, venue)
            return NEVER_US
        if venue in self.silent_symbols:
            while quoted:
                symbol = next(iter(quoted))
                due_us = self._symbols[symbol].quotes[venue].receive_us + self.ttl_us
                if due_us > self.now_us:
                    return due_us
                self.dropped += 1
                self._drop(symbol, venue)
        return alive_us + self.ttl_us if quoted else NEVER_US

    def _status(self, status: Status) -> None:
        if status.kind in DROPS:
            quoted = self._by_venue.get(status.venue, {})
            for symbol in [status.symbol] if status.symbol else list(quoted):
                self._drop(symbol, status.venue)

    def _drop(self, symbol: str, venue: str) -> None:
        quoted = self._by_venue.get(venue)
        if quoted is not None and symbol in quoted:
            del quoted[symbol]
            state = self._symbols[symbol]
            if len(state.quotes) == 1:
                last = self._view(symbol, state)
                if last.bid_e9 or last.ask_e9:
                    state.last = msgspec.structs.replace(last, stale=True)
            del state.quotes[venue]
            state.best = None
            self._changed[symbol] = None

    def at(self, symbol: str, now_us: int) -> Nbbo | None:
        """The best prices now; None for a symbol that was never quoted."""
        self.expire(now_us)
        state = self._symbols.get(symbol)
        return None if state is None else self._view(symbol, state)

    def last(self, symbol: str, now_us: int) -> Nbbo | None:
        """The best prices now or, where nobody quotes the symbol any more, the last known, marked `stale`."""
        now = self.at(symbol, now_us)
        if now is None or now.bid_e9 or now.ask_e9:
            return now
        return self._symbols[symbol].last or now

    def changed(self, now_us: int) -> list[Nbbo]:
        """The symbols whose best prices or sizes changed since the last call, each once, as they are now."""
        self.expire(now_us)
        names, self._changed = self._changed, {}
        views = []
        for symbol in names:
            state = self._symbols[symbol]
            if state.find_best() != state.told:
                state.told = state.best
                views.append(self._view(symbol, state))
        return views

    def quotes(self, symbol: str, now_us: int) -> list[Quote]:
        """The trusted quotes of all venues, by venue."""
        self.expire(now_us)
        state = self._symbols.get(symbol)
        return [] if state is None else [state.quotes[venue] for venue in sorted(state.quotes)]

    def symbols(self) -> Iterator[str]:
        return iter(self._symbols)

    def venues(self) -> dict[str, int]:
        """When each venue last gave a sign of life, in microseconds. For metrics."""
        return dict(self._alive)

    def _view(self, symbol: str, state: _Symbol) -> Nbbo:
        bid_e9, bid_size_e9, bid_venue, ask_e9, ask_size_e9, ask_venue = state.find_best()
        if bid_venue and ask_venue:
            as_of_us = min(self._sign_us(state, bid_venue), self._sign_us(state, ask_venue))
        elif bid_venue or ask_venue:
            as_of_us = self._sign_us(state, bid_venue or ask_venue)
        else:
            as_of_us = self.now_us
        crossed, locked = bid_e9 > ask_e9 > 0, bid_e9 == ask_e9 > 0
        return Nbbo(symbol, bid_e9, bid_size_e9, bid_venue, ask_e9, ask_size_e9, ask_venue, as_of_us, crossed, locked)

    def _sign_us(self, state: _Symbol, venue: str) -> int:
        return state.quotes[venue].receive_us if venue in self.silent_symbols else self._alive[venue]
