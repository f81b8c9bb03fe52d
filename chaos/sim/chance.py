"""All chance of a run comes from one seed, in whole numbers; each part has a stream of its own."""

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream named after what draws from it, so that one draw more here changes nothing there."""

    __slots__ = ("_bits",)

    def __init__(self, seed: int, stream: str) -> None:
        digest = blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
        self._bits = random.Random(int.from_bytes(digest, "big")).getrandbits

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1; bound at most 2**32."""
        return self._bits(32) * bound >> 32

    def between(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return low + (self._bits(32) * (high - low + 1) >> 32)

    def happens(self, per_mille: int) -> bool:
        return self._bits(32) * 1000 >> 32 < per_mille

    def pick(self, sequence: Sequence[T]) -> T:
        return sequence[self.below(len(sequence))]

    def some(self, sequence: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in the order of the sequence."""
        left = list(range(len(sequence)))
        chosen = sorted(left.pop(self.below(len(left))) for _ in range(min(count, len(left))))
        return [sequence[i] for i in chosen]

    def weighted(self, weights: dict[T, int]) -> T:
        draw = self.below(sum(weights.values()))
        for one, weight in weights.items():
            draw -= weight
            if draw < 0:
                return one
        raise ValueError("no weights")

    def random(self) -> float:
        """What the library asks for its election timeouts."""
        return self._bits(53) / (1 << 53)
