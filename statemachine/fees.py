"""Fees, and the holds that always cover them. One rounding rule: the fee so far is rounded up."""

from statemachine.types import BPS


def charge(notional_before_units: int, notional_units: int, bps: int) -> tuple[int, int]:
    """What a fill of `notional_units` costs, after `notional_before_units` in the same role.

    Returns (charged, earned): the payer pays `charged`, `earned` belongs to the fees account, and the
    difference of -1, 0 or 1 to the rounding account, whose total per order and role is 0 or 1.
    """
    before = notional_before_units * bps
    after = before + notional_units * bps
    return (after + BPS - 1) // BPS - (before + BPS - 1) // BPS, after // BPS - before // BPS


def hold_for_buy(notional_units: int, bps: int) -> int:
    """The worst that a buy of this notional can cost; `bps` is the higher of its two rates.

    One unit more covers both roles being rounded up: ceil(a) + ceil(b) <= ceil(a + b) + 1.
    """
    if bps == 0:
        return notional_units
    return notional_units + (notional_units * bps + BPS - 1) // BPS + 1


def spendable_notional(budget_units: int, bps: int) -> int:
    """The largest notional that, with its fee rounded up, stays within a budget.

    n + ceil(n * bps / BPS) <= budget holds exactly when n * (BPS + bps) <= budget * BPS.
    """
    return budget_units * BPS // (BPS + bps)
