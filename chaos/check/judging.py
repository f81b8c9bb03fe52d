"""What checkers share in saying their word."""

from collections.abc import Mapping, Sequence
from typing import Any

from chaos.check.verdict import EXAMPLES_MAX, Check

Counts = Mapping[str, int | float]
Wrong = list[tuple[str, dict[str, Any]]]
"""A sentence, and what it is about."""


def judge(name: str, holds: str, wrong: Sequence[tuple[str, dict[str, Any]]], counts: Counts) -> Check:
    """Pass with `holds`, or fail with the first wrong thing's reason; the first few are the examples."""
    if not wrong:
        return Check(name, "pass", holds, dict(counts))
    examples = [{"why": why, **example} for why, example in wrong[:EXAMPLES_MAX]]
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return Check(name, "fail", f"{wrong[0][0]}{more}", {**counts, "wrong": len(wrong)}, examples)


def invalid(name: str, why: str, counts: Counts | None = None) -> Check:
    return Check(name, "invalid", why, dict(counts or {}))
