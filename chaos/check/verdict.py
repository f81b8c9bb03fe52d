"""What a checker says: pass, fail, or that the run shows nothing either way."""

from typing import Any, Literal

from msgspec import Struct

Word = Literal["pass", "fail", "invalid"]
"""invalid: faults did not bite, too few operations, final reads incomplete, a checker gave up. Counts as a failure."""
EXAMPLES_MAX = 5


class Check(Struct, frozen=True, omit_defaults=True):
    """One checker's word. why: a sentence for a person. counts: what it looked at. examples: the first wrong ones."""

    name: str
    verdict: Word
    why: str
    counts: dict[str, int | float] = {}
    examples: list[dict[str, Any]] = []


class Verdict(Struct, frozen=True, omit_defaults=True):
    """verdict.json. figures: outages, convergence, rates."""

    verdict: Word
    checks: list[Check]
    figures: dict[str, float | int | str | None] = {}


def overall(checks: list[Check]) -> Word:
    """No checks at all is invalid: nothing was judged."""
    words = {check.verdict for check in checks}
    if "fail" in words:
        return "fail"
    return "invalid" if "invalid" in words or not checks else "pass"
