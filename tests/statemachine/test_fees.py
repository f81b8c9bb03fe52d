"""Fees add up however a quantity is cut, and holds pay for all of it."""

from hypothesis import given
from hypothesis import strategies as st

from statemachine.fees import charge, hold_for_buy, spendable_notional

BPS = st.integers(0, 1_000)
NOTIONAL = st.integers(1, 10**15)


def fees(fills: list[int], bps: int) -> tuple[int, int]:
    """(charged, earned) over all fills, each checked on its own."""
    so_far = charged = earned = 0
    for notional in fills:
        fee, part = charge(so_far, notional, bps)
        assert 0 <= fee <= notional, "a seller never pays more than the fill brings"
        assert fee - part in (-1, 0, 1)
        so_far += notional
        charged += fee
        earned += part
        assert charged - earned in (0, 1), "rounding never owes"
    return charged, earned


@given(st.lists(NOTIONAL, min_size=1, max_size=20), BPS)
def test_a_fee_does_not_depend_on_how_it_was_cut(fills: list[int], bps: int) -> None:
    total = sum(fills) * bps
    assert fees(fills, bps) == (-(-total // 10_000), total // 10_000)


@given(st.lists(NOTIONAL, max_size=9), st.lists(NOTIONAL, max_size=9), BPS, BPS)
def test_a_hold_pays_both_roles(taken: list[int], made: list[int], maker_bps: int, taker_bps: int) -> None:
    notional = sum(taken) + sum(made)
    cost = notional + fees(taken, taker_bps)[0] + fees(made, maker_bps)[0]
    assert cost <= hold_for_buy(notional, max(maker_bps, taker_bps))


def test_the_spare_unit_of_a_hold_is_needed() -> None:
    # 0.5 and 0.5 units of fee are rounded up to 1 each; together they would be 1.
    assert 1_000 + fees([500], 10)[0] + fees([500], 10)[0] == hold_for_buy(1_000, 10)


@given(st.integers(0, 2**62), BPS)
def test_a_budget_is_spent_to_the_last_unit_that_fits(budget: int, bps: int) -> None:
    def cost(notional: int) -> int:
        return notional + -(-notional * bps // 10_000)

    most = spendable_notional(budget, bps)
    assert cost(most) <= budget < cost(most + 1)
