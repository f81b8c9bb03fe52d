"""What assets are worth now, for portfolios and ranks: by the NBBO of what prices them, else the tape."""

from collections.abc import Callable, Mapping
from decimal import Decimal

from gateway.market.intake import MarketData
from gateway.projection.accounts import Instrument
from gateway.views.portfolio import Mark


class Marks:
    """currency: what everything is counted in. cash(): the assets that are money.

    The middle of a fresh NBBO that is neither crossed nor one-sided; else the last trade, else the last NBBO, both
    marked stale when they are older than the quotes' time to live.
    """

    def __init__(
        self, market: MarketData, instruments: Mapping[str, Instrument], cash: Callable[[], set[str]], currency: str
    ) -> None:
        self._market = market
        self._instruments = instruments
        self._cash = cash
        self.currency = currency
        self._symbols: dict[str, str] = {}
        self._known = 0

    def _symbol(self, asset: str) -> str | None:
        """The instrument that prices the asset in the currency."""
        if self._known != len(self._instruments):
            self._known = len(self._instruments)
            self._symbols = {one.base: one.symbol for one in self._instruments.values() if one.quote == self.currency}
        return self._symbols.get(asset)

    def mark(self, asset: str) -> Mark | None:
        symbol = self._symbol(asset)
        return None if symbol is None else self.of_symbol(symbol)

    def of_symbol(self, symbol: str) -> Mark | None:
        market = self._market
        now_us = market.clock()
        best = market.nbbo.last(symbol, now_us)
        if best is not None and best.bid_e9 and best.ask_e9 and not best.crossed and not best.stale:
            return self._mark((best.bid_e9 + best.ask_e9) // 2, best.as_of_us, stale=False)
        trade = market.tape.last(symbol)
        if trade is not None:
            stale = now_us - trade.receive_us > market.nbbo.ttl_us
            return self._mark(trade.price_e9, trade.venue_us, stale=stale)
        if best is not None and best.bid_e9 and best.ask_e9:
            return self._mark((best.bid_e9 + best.ask_e9) // 2, best.as_of_us, stale=True)
        return None

    def _mark(self, price_e9: int, as_of_us: int, *, stale: bool) -> Mark:
        return Mark(Decimal(price_e9).scaleb(-9), self.currency, as_of_us, stale)

    def price(self, asset: str) -> float | None:
        """In the currency, for ranks; a stale price still counts."""
        if asset == self.currency:
            return 1.0
        found = self.mark(asset)
        if found is not None:
            return float(found.price)
        # Other money, which nothing prices here, is left out rather than taken for a loss.
        return 0.0 if asset in self._cash() else None
