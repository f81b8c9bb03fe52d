"""The lowest and highest price of the last seconds: what a move is measured from, in constant time per tick."""

from collections import deque

BPS = 10_000
SECOND_US = 1_000_000


class Window:
    """Of one symbol, over `seconds`, in steps of one second: at most two entries per second are kept."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._lows: deque[tuple[int, int]] = deque()  # (second, price), prices rising: the first is the lowest
        self._highs: deque[tuple[int, int]] = deque()  # prices falling: the first is the highest

    def add(self, price: int, time_us: int) -> None:
        """Times must not go back."""
        second = time_us // SECOND_US
        oldest = second - self._seconds
        lows, highs = self._lows, self._highs
        while lows and lows[0][0] < oldest:
            lows.popleft()
        while highs and highs[0][0] < oldest:
            highs.popleft()
        if not lows or price < lows[-1][1] or lows[-1][0] != second:
            while lows and lows[-1][1] >= price:
                lows.pop()
            lows.append((second, price))
        if not highs or price > highs[-1][1] or highs[-1][0] != second:
            while highs and highs[-1][1] <= price:
                highs.pop()
            highs.append((second, price))

    def risen_bps(self, price: int) -> int:
        """How far the price is above the lowest of the window, itself included, rounded down."""
        low = self._lows[0][1]
        return (price - low) * BPS // low

    def fallen_bps(self, price: int) -> int:
        high = self._highs[0][1]
        return (high - price) * BPS // high
