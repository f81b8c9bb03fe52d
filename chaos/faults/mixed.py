"""A plan of several faults at once, drawn anew every 20 to 30 s; a quarter of the time there are none."""

from collections.abc import Sequence
from random import Random

from msgspec import Struct

from chaos.faults.nemesis import Nemesis

DRAW_S = (20.0, 30.0)
QUIET = 0.25
COUNT_MAX = 4
HEAL_S = 3.0
"""At the end of each draw: what it began has ended when the next begins."""


class Strike(Struct, frozen=True):
    """at_s: from the beginning of the plan. What it is to hit is drawn when it strikes."""

    at_s: float
    for_s: float
    nemesis: str


def plan(rng: Random, seconds: float, nemeses: Sequence[type[Nemesis]]) -> list[Strike]:
    """Strikes of one draw share no part: two on one link would heal each other, and a proxy must not be told of
    a link whose reader is stopped."""
    strikes: list[Strike] = []
    at_s = 0.0
    while at_s < seconds - 2 * HEAL_S:
        until_s = min(seconds, at_s + rng.uniform(*DRAW_S))
        if rng.random() >= QUIET:
            strikes += _draw(rng, at_s, until_s - HEAL_S, nemeses)
        at_s = until_s
    return sorted(strikes, key=lambda strike: strike.at_s)


def _draw(rng: Random, from_s: float, until_s: float, nemeses: Sequence[type[Nemesis]]) -> list[Strike]:
    found: list[Strike] = []
    taken: set[str] = set()
    wanted = rng.randint(1, COUNT_MAX)
    for nemesis in rng.sample(list(nemeses), len(nemeses)):
        if len(found) < wanted and not taken & nemesis.parts:
            taken |= nemesis.parts
            at_s = rng.uniform(from_s, (from_s + until_s) / 2)
            for_s = rng.uniform((until_s - at_s) / 3, until_s - at_s)
            found.append(Strike(round(at_s, 2), round(for_s, 2), nemesis.name))
    return found
