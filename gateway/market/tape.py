"""The latest trades of each symbol, and its last price."""

from collections import deque
from collections.abc import Iterable

from gateway.feeds.ticks import SUSPECT, Tick, Trade

SYMBOLS_MAX = 50_000


class Tape:
    """Trades in the order in which they came, the newest `kept` of each symbol."""

    def __init__(self, *, kept: int = 50) -> None:
        """kept: of each symbol; 5,000 symbols x 50 take 100 MB."""
        self.kept = kept
        self.symbols_refused = 0
        self._trades: dict[str, deque[Trade]] = {}
        self._last: dict[str, Trade] = {}
        self._moved: dict[str, None] = {}

    def apply(self, ticks: Iterable[Tick]) -> None:
        for tick in ticks:
            if type(tick) is not Trade:
                continue
            trades = self._trades.get(tick.symbol)
            if trades is None:
                if len(self._trades) >= SYMBOLS_MAX:
                    self.symbols_refused += 1
                    continue
                trades = self._trades[tick.symbol] = deque(maxlen=self.kept)
            trades.append(tick)
            if not tick.eligible or tick.marks & SUSPECT:
                continue
            last = self._last.get(tick.symbol)
            if last is None or tick.venue_us >= last.venue_us:
                self._last[tick.symbol] = tick
                self._moved[tick.symbol] = None

    def moved(self) -> dict[str, None]:
        """The symbols whose last price changed since the last call. For one reader."""
        moved, self._moved = self._moved, {}
        return moved

    def remember(self, known: Trade) -> None:
        """A last price that was known elsewhere, or before a restart. It is in no list of trades."""
        last = self._last.get(known.symbol)
        if (last is None or last.venue_us < known.venue_us) and len(self._last) < SYMBOLS_MAX:
            self._last[known.symbol] = known

    def last(self, symbol: str) -> Trade | None:
        """The newest trade, by the venues' time, that may move a price and is not suspect."""
        return self._last.get(symbol)

    def recent(self, symbol: str, limit: int = 100) -> list[Trade]:
        """All kinds of trades, the newest last."""
        return list(self._trades.get(symbol, ()))[-limit:]
