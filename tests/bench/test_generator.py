"""The generator: the same for ever from one seed, consistent with itself, and shaped as its docstring says."""

from hashlib import blake2b
from itertools import islice

import pytest

from bench import fit
from bench.generator import Market, Random
from bench.lobster import ASK, BID, Kind


def test_the_draws_are_those_of_splitmix64() -> None:
    # First outputs for seed 1234567, as published with the algorithm.
    random = Random(1_234_567)
    assert [random.bits() for _ in range(3)] == [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
    ]


def test_one_seed_is_one_flow() -> None:
    def digest(seed: int) -> str:
        flow = repr([tuple(map(int, message)) for message in islice(Market(seed).messages(), 5_000)])
        return blake2b(flow.encode(), digest_size=8).hexdigest()

    assert digest(1) == digest(1) != digest(2)


def test_it_never_names_what_does_not_rest_and_never_crosses() -> None:
    left: dict[int, int] = {}
    where: dict[int, tuple[int, int]] = {}
    before_ns = 0
    for message in islice(Market(3).messages(), 20_000):
        assert message.time_ns >= before_ns
        before_ns = message.time_ns
        if message.kind == Kind.submit:
            opposite = [price for direction, price in where.values() if direction != message.direction]
            if opposite:
                assert message.price < min(opposite) if message.direction == BID else message.price > max(opposite)
            left[message.order_id] = message.size
            where[message.order_id] = (message.direction, message.price)
            continue
        assert where[message.order_id] == (message.direction, message.price)
        if message.kind == Kind.execute:
            side = [price for direction, price in where.values() if direction == message.direction]
            assert message.price == (min(side) if message.direction == ASK else max(side))
        left[message.order_id] -= message.size
        assert left[message.order_id] >= 0
        assert (left[message.order_id] == 0) >= (message.kind == Kind.delete)
        if not left[message.order_id]:
            del left[message.order_id], where[message.order_id]


def test_its_figures_are_close_to_the_recording_it_was_fitted_to() -> None:
    made = fit.marginals(islice(Market(7).messages(), 40_000))
    assert made.deletes == pytest.approx(92.7, abs=4)
    assert made.takes == pytest.approx(7.4, abs=1)
    assert made.improves == pytest.approx(20, abs=4)
    assert made.joins == pytest.approx(8, abs=4)
    assert made.deeper_than == pytest.approx((64, 40, 21, 9), abs=6)
    assert made.size_100 == pytest.approx(53, abs=2)
    assert 10 <= made.spread_cents[2] <= 30
    assert 250 <= made.resting <= 400
    assert made.life_ms[2] == pytest.approx(374, rel=0.4)
