"""What workloads share in one run: whom to ask, with which token, where each call is written, what was ever used."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from chaos.history.file import HistoryWriter
from node.auth import ALL, issue_token

DEADLINE_MS = 1_000
"""How long one call may take. Members are asked to answer a little earlier: what they say beats silence."""
SYMBOLS = ("BTC-USD",)
"""What the venue of a run quotes."""
TOKEN_S = 30 * 86_400
"""Longer than any clock fault jumps."""


class Tokens:
    """Tokens of the cluster under test, signed when first asked for. Gateways and members count requests by subject,
    so each process has its own."""

    def __init__(self, signing_key_pem: str) -> None:
        self._pem = signing_key_pem
        self._made: dict[tuple[str, str, tuple[str, ...]], str] = {}

    @classmethod
    def of(cls, cluster: Path) -> Self:
        """Of a cluster's folder. Raises OSError."""
        return cls((cluster / "keys" / "token.key").read_text("ascii"))

    def token(self, role: str, accounts: Sequence[str] = (), *, subject: str = "chaos") -> str:
        """accounts: those that it is good for, at most 64. None: all of them, where the role may."""
        named = tuple(accounts) or ((ALL,) if role in ("custodian", "operator") else ())
        found = self._made.get((role, subject, named))
        if found is None:
            found = issue_token(self._pem, subject=subject, role=role, accounts=named, lifetime_s=TOKEN_S)
            self._made[role, subject, named] = found
        return found


class Context:
    """One run's. members: the API of each full replica by its name, witnesses left out: they hold no state. gateways:
    by their names too (`gateway-dc-a`). All addresses are direct (`http://127.0.0.1:7710`), no proxy between.

    symbols: what gateways have quotes of.
    tally: how many calls ended how, by target and outcome. keys: every key that was ever sent, with the scope that it
    is kept in. accounts, users: all that were ever named; users are whose preferences and alerts gateways keep.
    """

    def __init__(
        self,
        writer: HistoryWriter,
        *,
        members: Mapping[str, str],
        gateways: Mapping[str, str],
        tokens: Tokens,
        seed: int,
        symbols: Sequence[str] = SYMBOLS,
        deadline_ms: int = DEADLINE_MS,
    ) -> None:
        self.writer = writer
        self.members = dict(members)
        self.gateways = dict(gateways)
        self.tokens = tokens
        self.seed = seed
        self.symbols = tuple(symbols)
        self.deadline_ms = deadline_ms
        self.tally: Counter[tuple[str, str]] = Counter()
        self.keys: dict[str, str] = {}
        self.accounts: set[str] = set()
        self.users: set[str] = set()
        self._processes = 0

    def address(self, target: str) -> str:
        """Raises KeyError: no such member or gateway."""
        return self.members.get(target) or self.gateways[target]

    def fresh_process(self) -> int:
        """The next process id; none is ever used twice."""
        self._processes += 1
        return self._processes

    def chance(self, *of: object) -> random.Random:
        """Chance that depends on the run's seed and on what it is for, and on nothing else."""
        return random.Random(" ".join(map(str, (self.seed, *of))))
