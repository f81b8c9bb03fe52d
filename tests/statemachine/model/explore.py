"""Many examples from plain seeds, each failure cut down to the few steps that it needs.

python -m tests.statemachine.model.explore --first 0 --count 100000: exit 1 at the first disagreement.
Hypothesis shrinks better; this reaches further in the same time.
"""

import argparse
import sys
from collections import Counter
from random import Random

from tests.statemachine.model.pair import Pair, shrunk
from tests.statemachine.model.scenario import FEES, STEP_BYTES, Shape

STEPS = 120


def example(seed: int) -> tuple[Shape, list[bytes]]:
    chance = Random(seed)
    shape = Shape(
        fees=chance.randrange(len(FEES)),
        band_bps=chance.choice((0, 500, 2_000)),
        collar_bps=chance.choice((0, 500, 2_000)),
        open_orders_max=chance.choice((3, 30)),
        calendar=chance.randrange(6),
        lot=chance.choice((1, 2)),
        cash=chance.choice((2_000, 6_000, 30_000)),
        reference=chance.choice((0, 10)),
    )
    return shape, [chance.randbytes(STEP_BYTES) for _ in range(STEPS)]


def run(shape: Shape, steps: list[bytes]) -> Pair:
    """Raises what the machine raises, or AssertionError where it disagrees with the model."""
    pair = Pair(shape)
    for step in steps:
        pair.step(step)
    pair.finish()
    return pair


def fails(shape: Shape, steps: list[bytes]) -> Exception | None:
    try:
        run(shape, steps)
    except Exception as error:
        return error
    return None


def smallest(shape: Shape, steps: list[bytes]) -> list[bytes]:
    """Leave out halves, quarters and single steps for as long as what remains still fails."""
    size = len(steps)
    while size := size // 2:
        start = 0
        while start < len(steps):
            without = steps[:start] + steps[start + size :]
            if fails(shape, without):
                steps = without
            else:
                start += size
    return steps


def explore(first: int, count: int, *, shrink: bool = True) -> Counter[str]:
    """Run the examples of `count` seeds; returns what came about in them. Raises the first failure, made small."""
    seen: Counter[str] = Counter()
    with shrunk():
        for seed in range(first, first + count):
            shape, steps = example(seed)
            try:
                seen.update(run(shape, steps).seen)
            except Exception as error:
                error.add_note(f"seed {seed}")
                shorter = (fails(shape, smallest(shape, steps)) if shrink else None) or error
                shorter.add_note(f"repeat: python -m tests.statemachine.model.explore --first {seed} --count 1")
                raise shorter from None
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--count", type=int, default=1_000, help="how many seeds")
    parser.add_argument("--whole", action="store_true", help="do not make a failure small")
    arguments = parser.parse_args()
    seen = explore(arguments.first, arguments.count, shrink=not arguments.whole)
    for what, count in sorted(seen.items()):
        print(f"{count:8} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
