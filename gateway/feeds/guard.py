"""What stands between a venue's numbers and ours: impossible ones are refused, improbable ones are marked.

A quote that is marked unusable takes its venue out of the NBBO until a good one comes: an unknown price is
shown as none, never as the one before it.
"""

from msgspec import Struct

from gateway.feeds.ticks import CROSSED, E9_MAX, LATE, RECEIVE_TIME, SUSPECT, Quote, Trade

AHEAD_US_MAX = 5_000_000
"""A venue time further ahead of our clock is taken for garbage, or for a clock that is not set."""
REFERENCE_US_MAX = 300_000_000
"""After five silent minutes any price may be true: splits and openings move it further than 50 %."""
CONFIRMATIONS = 3
"""So many prices in a row, within 10 % of each other, confirm a jump."""


class BadFrame(Exception):
    """A frame, or a part of one, that is dropped and counted. reason: one of a few words, for metrics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Counts(Struct, gc=False):
    """What a handler has seen since it was made. For metrics: whole numbers that only grow."""

    frames: int = 0
    frame_bytes: int = 0
    ticks: int = 0
    heartbeats: int = 0
    gaps: int = 0
    repeats: int = 0
    resubscribes: int = 0
    suspect: int = 0
    crossed: int = 0
    late: int = 0
    ahead: int = 0
    unwanted: int = 0
    """Of symbols that were not asked for."""
    bad: dict[str, int] = {}

    def count_bad(self, reason: str) -> None:
        self.bad[reason] = self.bad.get(reason, 0) + 1


class Known(Struct, gc=False):
    """What one venue last said of one symbol."""

    quote_us: int = 0
    trade_us: int = 0
    reference_e9: int = 0
    """The last trade, or the middle of a quote no wider than 10 %. 0: none yet."""
    reference_us: int = 0
    candidate_e9: int = 0
    seen: int = 0


class Guard:
    """Makes quotes and trades of one handler, in the order in which they came."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.known: dict[tuple[str, str], Known] = {}

    def quote(
        self,
        symbol: str,
        venue: str,
        bid_e9: int,
        bid_size_e9: int,
        ask_e9: int,
        ask_size_e9: int,
        venue_us: int,
        receive_us: int,
        marks: int = 0,
    ) -> Quote:
        """A quote, marked where it must be. venue_us 0: the venue gives no time.

        Raises:
            BadFrame: a number that no quote can have.
        """
        if not (0 <= bid_e9 <= E9_MAX and 0 <= ask_e9 <= E9_MAX):
            raise BadFrame("bad_price")
        if not (0 <= bid_size_e9 <= E9_MAX and 0 <= ask_size_e9 <= E9_MAX):
            raise BadFrame("bad_size")
        known = self.known.get((venue, symbol))
        if known is None:
            known = self.known[(venue, symbol)] = Known()
        if not 0 < venue_us <= receive_us + AHEAD_US_MAX:
            marks |= RECEIVE_TIME
            venue_us = self.time(venue_us, receive_us)
        if venue_us < known.quote_us:
            # The transport keeps order, so this is the newer quote, with a wrong time.
            marks |= LATE
            self.counts.late += 1
            venue_us = known.quote_us
        known.quote_us = venue_us
        if bid_e9 and ask_e9:
            if bid_e9 > ask_e9:
                marks |= CROSSED
                self.counts.crossed += 1
            elif known.reference_e9:
                marks |= self._judge(known, bid_e9, ask_e9, receive_us)
            elif (ask_e9 - bid_e9) * 20 <= ask_e9 + bid_e9:
                known.reference_e9 = (bid_e9 + ask_e9) >> 1
                known.reference_us = receive_us
        elif known.reference_e9 and (bid_e9 or ask_e9):
            marks |= self._judge(known, bid_e9, ask_e9, receive_us)
        self.counts.ticks += 1
        return Quote(symbol, venue, bid_e9, bid_size_e9, ask_e9, ask_size_e9, venue_us, receive_us, marks)

    def trade(
        self,
        symbol: str,
        venue: str,
        price_e9: int,
        size_e9: int,
        venue_us: int,
        receive_us: int,
        trade_id: str,
        eligible: bool = True,
        aggressor: str = "",
    ) -> Trade:
        """A trade, marked where it must be. A late one keeps its venue time.

        Raises:
            BadFrame: a number that no trade can have.
        """
        if not 0 < price_e9 <= E9_MAX:
            raise BadFrame("bad_price")
        if not 0 < size_e9 <= E9_MAX:
            raise BadFrame("bad_size")
        known = self.known.get((venue, symbol))
        if known is None:
            known = self.known[(venue, symbol)] = Known()
        marks = 0
        if not 0 < venue_us <= receive_us + AHEAD_US_MAX:
            marks |= RECEIVE_TIME
            venue_us = self.time(venue_us, receive_us)
        if venue_us < known.trade_us:
            marks |= LATE
            self.counts.late += 1
        else:
            known.trade_us = venue_us
        if eligible:
            if known.reference_e9:
                marks |= self._judge(known, price_e9, price_e9, receive_us)
            else:
                known.reference_e9, known.reference_us = price_e9, receive_us
        elif known.reference_e9 and _is_jump(known.reference_e9, price_e9, price_e9):
            # At a price of its own, such as an average: it neither confirms nor becomes what is known.
            marks |= SUSPECT
            self.counts.suspect += 1
        self.counts.ticks += 1
        return Trade(symbol, venue, price_e9, size_e9, venue_us, receive_us, trade_id, eligible, aggressor, marks)

    def time(self, venue_us: int, receive_us: int) -> int:
        """The venue's time, or ours where it gives none (0) or one that can't be; the latter is counted."""
        if 0 < venue_us <= receive_us + AHEAD_US_MAX:
            return venue_us
        if venue_us:
            self.counts.ahead += 1
        return receive_us

    def _judge(self, known: Known, bid_e9: int, ask_e9: int, receive_us: int) -> int:
        """SUSPECT, or 0 and what is known moves on.

        Only what would distort a best price is suspect: a bid far above, an ask far below. The other way
        lie stub quotes, which are common and harmless.
        """
        tight = bid_e9 > 0 and ask_e9 > 0 and (ask_e9 - bid_e9) * 20 <= ask_e9 + bid_e9
        middle_e9 = (bid_e9 + ask_e9) >> 1 if tight else 0
        if not _is_jump(known.reference_e9, bid_e9, ask_e9) or receive_us - known.reference_us > REFERENCE_US_MAX:
            if middle_e9:
                known.reference_e9, known.reference_us = middle_e9, receive_us
                known.seen = 0
            return 0
        price_e9 = middle_e9 or bid_e9 or ask_e9
        if known.seen and abs(price_e9 - known.candidate_e9) * 10 <= known.candidate_e9:
            known.seen += 1
            if known.seen >= CONFIRMATIONS:
                known.reference_e9, known.reference_us = price_e9, receive_us
                known.seen = 0
                return 0
        else:
            known.candidate_e9, known.seen = price_e9, 1
        self.counts.suspect += 1
        return SUSPECT


def _is_jump(reference_e9: int, bid_e9: int, ask_e9: int) -> bool:
    return bid_e9 * 2 > reference_e9 * 3 or 0 < ask_e9 * 2 < reference_e9
