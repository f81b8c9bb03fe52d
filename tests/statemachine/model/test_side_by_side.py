"""Machine and naive model, driven side by side: same answers, trades, closings, books and balances.

The gate runs a fixed set of examples. TIEBREAK_MODEL_EXAMPLES=50000 looks further, with fresh chance.
"""

import os
from collections import Counter

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.statemachine.model.pair import Pair, shrunk
from tests.statemachine.model.scenario import FEES, STEP_BYTES, Shape

FURTHER = int(os.environ.get("TIEBREAK_MODEL_EXAMPLES", "0"))
EXAMPLES = FURTHER or 500

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


def test_the_machine_does_what_the_model_does() -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=not FURTHER,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(SHAPES, STEPS)
    def agree(shape: Shape, steps: list[bytes]) -> None:
        pair = Pair(shape)
        for step in steps:
            pair.step(step)
        pair.finish()
        seen.update(pair.seen)

    with shrunk():
        agree()
