"""Our whole machine as one of the books: the steps as batches, with money, fees, keys, events, ledger and digest."""

import sys
from pathlib import Path

from bench.books.harness import SLICE, read, tell, timed
from bench.books.steps import SYMBOL, fills_of, payloads
from bench.market import Market
from bench.replay import Engine
from statemachine.records import Applied

BATCH = 50


def main() -> None:
    steps = read(Path(sys.argv[1]))
    batches = payloads(steps, BATCH)
    engine = Engine(Market(SYMBOL))
    engine.open()
    answers: list[Applied] = []

    def some(part: list[bytes]) -> None:
        answers.extend(map(engine.apply, part))

    per_slice = SLICE // BATCH
    parts = [batches[at : at + per_slice] for at in range(0, len(batches), per_slice)]
    took = timed(some, parts)
    tell(f"in batches of {BATCH}", len(steps), took, fills_of(answers))


if __name__ == "__main__":
    main()
