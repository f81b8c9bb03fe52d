"""The best bid and ask across venues, of those quotes that can be trusted at a given time.

A quote counts while its venue gives signs of life (any tick, heartbeats too), the last less than its time to
live ago: on a feed that finds its own gaps, silence on one symbol means that nothing changed, and when the
venue is heard again without a gap its quotes are as good as before. Venues named in `silent_symbols` can't say
so: there each symbol must give its own sign of life. A gap, a halt, a lost connection and a quote that is
marked unusable take effect at once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

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
NOBODY: Best = (0, 0, "", 0, 0, "")


class _Symbol:
    """The trusted quotes of one symbol by venue, and their best, which is worked out when it is asked for:
    most quotes of a busy symbol are replaced before anybody looks.
    """

    __slots__ = ("best", "kept", "last", "quotes", "told")

    def __init__(self) -> None:
        self.quotes: dict[str, Quote] = {}
        self.best: Best | None = None
        self.told: Best = NOBODY
        """What `changed` last gave."""
        self.kept: Best = NOBODY
        """What `to_keep` last gave."""
        self.last: Nbbo | None = None
        """What was known when the last trusted quote went."""


class _Venue:
    """When a venue was last heard, and the symbols that it quotes; the one heard from longest ago is first."""

    __slots__ = ("alive_us", "by_symbol", "is_silent", "name", "quoted", "ttl_us")

    def __init__(self, name: str, ttl_us: int, by_symbol: bool) -> None:
        self.name = name
        self.ttl_us = ttl_us
        self.by_symbol = by_symbol
        self.alive_us = 0
        self.is_silent = False
        self.quoted: dict[str, None] = {}


class NbboBook:
    """All symbols' best prices. Times come in with the calls, in microseconds, and never go back."""

    def __init__(
        self, *, ttl_us: int = TTL_US, ttls_us: Mapping[str, int] | None = None, silent_symbols: Collection[str] = ()
    ) -> None:
        """ttls_us: of venues whose heartbeats are further apart; `Handler.ttl_us` says what each needs."""
        self.ttl_us = ttl_us
        self.now_us = 0
        self.fell_silent = 0
        """How often a venue (or a symbol, of those in `silent_symbols`) was not heard for its time to live."""
        self._ttls_us = dict(ttls_us or {})
        self._by_symbol = frozenset(silent_symbols)
        self._symbols: dict[str, _Symbol] = {}
        self._venues: dict[str, _Venue] = {}
        self._silent: set[str] = set()
        self._changed: dict[str, None] = {}
        self._kept: dict[str, None] = {}
        """What `to_keep` has given since `changed` was last called."""
        self._check_us = NEVER_US

    def apply(self, ticks: Iterable[Tick], now_us: int) -> None:
        """Take in quotes and statuses; other ticks are signs of life."""
        self.expire(now_us)
        symbols, venues, changed, now_us = self._symbols, self._venues, self._changed, self.now_us
        for tick in ticks:
            name = tick.venue
            venue = venues.get(name)
            if venue is None:
                venue = venues[name] = _Venue(name, self._ttls_us.get(name, self.ttl_us), name in self._by_symbol)
            if type(tick) is Quote:
                symbol = tick.symbol
                state = symbols.get(symbol)
                if state is None:
                    state = symbols[symbol] = _Symbol()
                if tick.marks & UNUSABLE or (venue.by_symbol and tick.receive_us + venue.ttl_us <= now_us):
                    self._drop(symbol, venue)
                else:
                    if venue.by_symbol:
                        venue.quoted.pop(symbol, None)
                    venue.quoted[symbol] = None
                    state.quotes[name] = tick
                    state.best = None
                    changed[symbol] = None
            elif type(tick) is Status:
                if tick.kind in DROPS:
                    for symbol in [tick.symbol] if tick.symbol else list(venue.quoted):
                        self._drop(symbol, venue)
                if tick.kind is StatusKind.DOWN:
                    continue
            if tick.receive_us > venue.alive_us:
                venue.alive_us = min(tick.receive_us, now_us)
                if venue.is_silent and venue.alive_us + venue.ttl_us > now_us:
                    self._speaks(venue, True)
                self._check_us = min(self._check_us, venue.alive_us + venue.ttl_us)

    def expire(self, now_us: int) -> None:
        """Let the clock say that it is now; what has been silent too long drops out."""
        self.now_us = max(self.now_us, now_us)
        if self.now_us < self._check_us:
            return
        due_us = [self._expire_venue(venue) for venue in self._venues.values() if not venue.is_silent]
        self._check_us = min(due_us, default=NEVER_US)

    def _expire_venue(self, venue: _Venue) -> int:
        """Drop what is due; gives when the next quote of this venue could be."""
        if not venue.by_symbol:
            due_us = venue.alive_us + venue.ttl_us
            if due_us > self.now_us:
                return due_us
            self._speaks(venue, False)
            return NEVER_US
        while venue.quoted:
            symbol = next(iter(venue.quoted))
            due_us = self._symbols[symbol].quotes[venue.name].receive_us + venue.ttl_us
            if due_us > self.now_us:
                return due_us
            self.fell_silent += 1
            self._drop(symbol, venue)
        return NEVER_US

    def _speaks(self, venue: _Venue, speaks: bool) -> None:
        """A venue falls silent, or is heard again; its quotes are kept meanwhile."""
        venue.is_silent = not speaks
        if speaks:
            self._silent.discard(venue.name)
        else:
            self._silent.add(venue.name)
            self.fell_silent += 1
        for symbol in venue.quoted:
            self._symbols[symbol].best = None
            self._changed[symbol] = None

    def _drop(self, symbol: str, venue: _Venue) -> None:
        """Forget a quote; what the symbol's last one said is kept for display."""
        if symbol not in venue.quoted:
            return
        del venue.quoted[symbol]
        state = self._symbols[symbol]
        if len(state.quotes) == 1:
            last = self._view(symbol, state, _best_of(state.quotes))
            if last.bid_e9 or last.ask_e9:
                state.last = msgspec.structs.replace(last, stale=True)
        del state.quotes[venue.name]
        state.best = None
        self._changed[symbol] = None

    def at(self, symbol: str, now_us: int) -> Nbbo | None:
        """The best prices now; None for a symbol that was never quoted."""
        self.expire(now_us)
        state = self._symbols.get(symbol)
        return None if state is None else self._view(symbol, state, self._best(state))

    def last(self, symbol: str, now_us: int) -> Nbbo | None:
        """The best prices now or, where nobody quotes the symbol any more, the last known, marked `stale`."""
        now = self.at(symbol, now_us)
        if now is None or now.bid_e9 or now.ask_e9:
            return now
        state = self._symbols[symbol]
        silent = _best_of(state.quotes)
        if silent != NOBODY:
            view = msgspec.structs.replace(self._view(symbol, state, silent), stale=True)
            if state.last is None or state.last.as_of_us <= view.as_of_us:
                return view
        return state.last or now

    def changed(self, now_us: int) -> list[Nbbo]:
        """The symbols whose best prices or sizes changed since the last call, each once, as they are now."""
        self.expire(now_us)
        names, self._changed = self._changed, {}
        if self._kept:
            names = self._kept | names
            self._kept = {}
        views = []
        for symbol in names:
            state = self._symbols[symbol]
            best = self._best(state)
            if best != state.told:
                state.told = best
                views.append(self._view(symbol, state, best))
        return views

    def to_keep(self, now_us: int) -> list[Nbbo]:
        """As `changed`, since its own last call: for a second reader who comes more often, and takes nothing from it.

        A symbol that nobody quotes any more is left out: what was kept of it is the last that is known.
        """
        self.expire(now_us)
        names, self._changed = self._changed, {}
        self._kept.update(names)
        views = []
        for symbol in names:
            state = self._symbols[symbol]
            best = self._best(state)
            if best not in (state.kept, NOBODY):
                state.kept = best
                views.append(self._view(symbol, state, best))
        return views

    def remember(self, known: Nbbo) -> None:
        """What was known elsewhere, or before a restart: `last` gives it, marked stale, if nothing newer is known."""
        state = self._symbols.get(known.symbol)
        if state is None:
            state = self._symbols[known.symbol] = _Symbol()
        if state.last is None or state.last.as_of_us < known.as_of_us:
            state.last = msgspec.structs.replace(known, stale=True)

    def quotes(self, symbol: str, now_us: int) -> list[Quote]:
        """The trusted quotes of all venues, by venue."""
        self.expire(now_us)
        state = self._symbols.get(symbol)
        if state is None:
            return []
        return [quote for venue, quote in sorted(state.quotes.items()) if venue not in self._silent]

    def symbols(self) -> Iterator[str]:
        return iter(self._symbols)

    def venues(self) -> dict[str, int]:
        """When each venue last gave a sign of life, in microseconds. For metrics."""
        return {venue.name: venue.alive_us for venue in self._venues.values()}

    def _best(self, state: _Symbol) -> Best:
        if state.best is None:
            quotes = state.quotes
            if self._silent:
                quotes = {venue: quote for venue, quote in quotes.items() if venue not in self._silent}
            state.best = _best_of(quotes)
        return state.best

    def _view(self, symbol: str, state: _Symbol, best: Best) -> Nbbo:
        bid_e9, bid_size_e9, bid_venue, ask_e9, ask_size_e9, ask_venue = best
        if bid_venue and ask_venue:
            as_of_us = min(self._sign_us(state, bid_venue), self._sign_us(state, ask_venue))
        elif bid_venue or ask_venue:
            as_of_us = self._sign_us(state, bid_venue or ask_venue)
        else:
            as_of_us = self.now_us
        crossed, locked = bid_e9 > ask_e9 > 0, bid_e9 == ask_e9 > 0
        return Nbbo(symbol, bid_e9, bid_size_e9, bid_venue, ask_e9, ask_size_e9, ask_venue, as_of_us, crossed, locked)

    def _sign_us(self, state: _Symbol, name: str) -> int:
        venue = self._venues[name]
        return state.quotes[name].receive_us if venue.by_symbol else venue.alive_us


def _best_of(quotes: Mapping[str, Quote]) -> Best:
    """Look at all quotes. A dozen venues at most: cheaper than keeping them sorted."""
    bid = bid_size = most_bid = ask = ask_size = most_ask = 0
    bid_venue = ask_venue = ""
    for venue, quote in quotes.items():
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
    return bid, bid_size, bid_venue, ask, ask_size, ask_venue
