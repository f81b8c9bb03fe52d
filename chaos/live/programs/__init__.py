"""Programs that stand for a member of the cluster under test."""

import sys
from collections.abc import Collection, Sequence

from cluster.launcher import MEMBER_PROGRAM

SHIPPED, STOCK = "shipped", "stock"
FAILPOINTS = "TIEBREAK_FAILPOINTS"
"""The variable that `programs.member` reads, which is run in place of the shipped program when it is set."""
ARCHIVE = "TIEBREAK_ARCHIVE"
"""A file to which `programs.member` and `programs.mutant` append what they trim from the log."""
MUTANTS = {
    "no-sync": "no fsync at all: a power cut loses what was acknowledged",
    "lying-sync": "a group is called durable when the next one is written, one too early",
    "keys-not-in-snapshot": "the idempotency table is left out of the snapshots that a leader sends",
    "read-without-quorum": "a linearizable read is served without asking the quorum",
    "double-credit": "a repeated deposit or transfer gets its first answer, and moves the money again",
    "blind-digest": "the digest skips balances, and the last replica by name loses a unit now and then",
}
"""Faults of the product, each with what it leaves out."""

_HERE = "chaos.live.programs"


class UnknownProgram(ValueError):
    """No such program; the message names those there are."""


def program(name: str, *, environment: Collection[str] = ()) -> Sequence[str]:
    """What is run with the member's file as its last argument. environment: the variables that are set for it.

    Raises UnknownProgram.
    """
    python = (sys.executable, "-P", "-m")
    if name != SHIPPED and FAILPOINTS in environment:
        raise UnknownProgram(f"{name} has no failpoints: only {SHIPPED} has")
    if name == SHIPPED:
        return (*python, f"{_HERE}.member") if {FAILPOINTS, ARCHIVE} & set(environment) else MEMBER_PROGRAM
    if name == STOCK:
        # By its path: the benchmarks stand beside this room, so it can't be imported.
        return (*python, "bench.stock_member", "--forward")
    if name in MUTANTS:
        return (*python, f"{_HERE}.mutant", name)
    raise UnknownProgram(f"program {name!r}: one of {', '.join((SHIPPED, STOCK, *MUTANTS))}")
