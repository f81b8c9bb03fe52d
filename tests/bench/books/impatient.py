"""A book with a wrong rule, for the test that must notice it: of one price, the newest order trades first."""

from collections.abc import Iterator

from bench.books.harness import Fill, play


class Book:
    def __init__(self) -> None:
        self._resting: dict[int, list[int]] = {}
        self._fills: list[Fill] = []

    def place(self, order: int, buys: int, price: int, lots: int) -> None:
        self.take(order, buys, price, lots)
        if lots:
            self._resting[order] = [buys, price, lots]

    def take(self, order: int, buys: int, price: int, lots: int) -> None:
        others = [(price, order) for order, (other, price, _) in self._resting.items() if other != buys]
        for at, maker in sorted(others, key=lambda one: (-one[0] if not buys else one[0], -one[1])):
            if not lots or (at > price if buys else at < price):
                return
            traded = min(lots, self._resting[maker][2])
            lots -= traded
            self._resting[maker][2] -= traded
            self._fills.append(Fill(maker, at, traded))
            if not self._resting[maker][2]:
                del self._resting[maker]

    def cancel(self, order: int) -> None:
        self._resting.pop(order, None)

    def fills(self) -> Iterator[Fill]:
        return iter(self._fills)


if __name__ == "__main__":
    play("tiebreak", Book)
