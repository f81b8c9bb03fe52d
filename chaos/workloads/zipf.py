"""Skewed choice: a few are asked for most of the time, as in life; contention is where bugs are."""

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

Item = TypeVar("Item")
SKEW = 0.9


class Zipf(Generic[Item]):
    """The n-th of the items is chosen in proportion to 1 / n**skew."""

    def __init__(self, items: Sequence[Item], skew: float = SKEW) -> None:
        self.items = list(items)
        self._weights = list(accumulate(1 / rank**skew for rank in range(1, len(self.items) + 1)))

    def one(self, chance: random.Random) -> Item:
        return chance.choices(self.items, cum_weights=self._weights)[0]

    def two(self, chance: random.Random) -> tuple[Item, Item]:
        """Two that differ; of one item there are none."""
        first = self.one(chance)
        while (second := self.one(chance)) == first:
            pass
        return first, second
