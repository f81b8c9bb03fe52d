"""Machine and naive model, driven side by side: same answers, events, balances, orders, books and digests.

The gate runs a fixed set of examples. TIEBREAK_MODEL_EXAMPLES=50000 looks further, with fresh chance.
"""

import os
from collections import Counter
from itertools import product
from time import time_ns

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from statemachine.codes import Code
from statemachine.types import Reason, SelfTrade, Side
from tests.statemachine.model.explore import explore, run
from tests.statemachine.model.mutants import survivors
from tests.statemachine.model.pair import shrunk
from tests.statemachine.model.scenario import FEES, STEP_BYTES, Shape

FURTHER = int(os.environ.get("TIEBREAK_MODEL_EXAMPLES", "0"))

SHAPES = st.builds(
    Shape,
    fees=st.integers(0, len(FEES) - 1),
    band_bps=st.sampled_from((0, 500, 2_000)),
    collar_bps=st.sampled_from((500, 0, 2_000)),
    open_orders_max=st.sampled_from((30, 3)),
    calendar=st.integers(0, 5),
    lot=st.sampled_from((1, 2)),
    cash=st.sampled_from((30_000, 2_000, 6_000)),
    reference=st.sampled_from((10, 0)),
)
# A step of zeros is no step: what fails shrinks to few steps though every list is long.
STEPS = st.lists(st.binary(min_size=STEP_BYTES, max_size=STEP_BYTES), min_size=80, max_size=160)

NEVER = {Code.ok, Code.price_not_allowed}
"""Codes that no rule answers: a market order may name a price, and ok is not a refusal."""
ENTERS = ("limit gtc", "limit day", "limit gtd", "limit ioc", "market ioc", "budget")
DEAD = ("day_ended", "gtd_expired", "session_expired", "session_closed")
PLACED = ("filled buy", "filled sell", "unfilled buy", "unfilled sell")
HAS_TO_HAPPEN = {
    *(code.name for code in Code if code not in NEVER),
    *(f"closed: {reason.name}" for reason in Reason if reason != Reason.none),
    *(f"{enters} meets itself, {mode.name}" for enters, mode in product(ENTERS, SelfTrade)),
    *(f"fok meets itself, {mode.name}" for mode in SelfTrade),
    *(f"replaced {how}: {placed}" for how, placed in product(("anew", "in place"), PLACED)),
    *(
        f"{symbol}: {side} {kind} takes, {paid}"
        for symbol, side, kind, paid in product(
            ("AAA-USD", "BBB-AAA"), ("buy", "sell"), ("limit", "market"), ("both pay", "not both pay")
        )
    ),
    *(f"a taker meets a maker that is {reason}" for reason in DEAD),
    *(f"time closes: {reason}" for reason in ("day_ended", "gtd_expired", "session_expired")),
    *(f"rounding of {units}, {side.name}" for units, side in product((-1, 0, 1), Side)),
    "ReplaceOrder: session_not_found",
    "ReplaceOrder: expiry_in_past",
    "a budget buys a part of a maker",
    "a budget is spent, with fills",
    "a budget is spent, without fills",
    "a key is forgotten after its retention",
    "a key names an open order",
    "a mass cancel passes over a halted instrument",
    "a resting buy keeps less than a new one would hold",
    "a time step leaves more",
    "decrement: both end",
    "digests disagree, and more may come",
    "digests disagree, with a majority",
    "digests disagree, without a majority",
    "decrement: one ends",
    "fok looks beyond the band",
    "fok passes over an expired maker",
    "mass_cancel leaves orders for later",
    "post-only enters beside expired makers",
    "restarted",
    "two openings overlap",
}


def test_the_machine_does_what_the_model_does() -> None:
    """Shrunk by hypothesis when they disagree."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=FURTHER or 250,
        derandomize=not FURTHER,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(SHAPES, STEPS)
    def agree(shape: Shape, steps: list[bytes]) -> None:
        seen.update(run(shape, steps).seen)

    with shrunk():
        agree()
    assert seen["PlaceOrder: Placed"] > 1_000


def test_they_agree_on_every_meeting_of_features() -> None:
    """An agreement about what never happened would prove nothing: each meeting has to come about."""
    seen = explore(time_ns() % 10**9 if FURTHER else 0, FURTHER or 1_000)
    missing = sorted(HAS_TO_HAPPEN - set(seen))
    assert not missing, f"not a valid run: these never came about: {missing}"


def test_bugs_put_into_the_rules_are_noticed() -> None:
    assert not survivors()
