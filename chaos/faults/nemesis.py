"""What every nemesis is: it strikes a cluster, shows that the strike is felt, and takes it back."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, ClassVar, Literal

from msgspec import Struct

from chaos.faults.target import Target
from chaos.net.links import NotCut

Part = Literal["peer links", "gateway links", "feed links", "cache links", "clients", "members", "gateways", "clocks"]
"""What a nemesis lays hands on. Two that share a part are not to strike at once: one would heal the other's fault."""
Detail = dict[str, Any]

BITE_S = 8.0
"""A fault that is not felt by then is not there."""
BACK_S = 30.0
"""How long a process has to answer again."""
LOOK_S = 0.05


class Struck(Struct, frozen=True):
    """What was done to whom, with all that was drawn: the same detail strikes the same again."""

    targets: list[str]
    detail: Detail


class Nemesis(ABC):
    """One strike. Make a new one for each.

    What `detail` leaves open is drawn from `rng`; see each class for what it may say.
    """

    name: ClassVar[str]
    line: ClassVar[str]
    """What it does, for people, in one line."""
    parts: ClassVar[frozenset[Part]]
    promised: ClassVar[bool] = True
    """Whether the cluster promises to live through it. What it does not is for showing that checkers see it."""
    told: str = ""
    """After the end: what came of it, where there is more to tell than that it is over."""

    def available(self, target: Target) -> str:
        """Why this can't be had on this machine, or with this cluster; empty when it can."""
        return ""

    @abstractmethod
    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        """Raises NotCut, or what starting a process raises. Call `end` in any case."""

    @abstractmethod
    async def bite(self, target: Target, struck: Struck) -> str:
        """What shows that it is felt, in words. Raises NotCut: nothing does."""

    @abstractmethod
    async def end(self, target: Target) -> None:
        """Undo what was done, also after a `begin` or `bite` that raised. Raises NotCut: not all of it came back."""


def drawn(detail: Detail, name: str, draw: Callable[[], Any]) -> Any:
    """What the detail says, else a draw. The draw is made in any case, so that later ones don't depend on it."""
    value = draw()
    return detail.get(name, value)


async def felt(look: Callable[[], Awaitable[str]], what: str, *, within_s: float = 0) -> str:
    """Look until something is seen, and return it. within_s: 0 for BITE_S. Raises NotCut."""
    within_s = within_s or BITE_S
    deadline = time.monotonic() + within_s
    while True:
        seen = await look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise NotCut(f"{what}: not seen within {within_s:g} s")
        await asyncio.sleep(LOOK_S)


async def choose(target: Target, rng: Random, who: str | Sequence[str]) -> list[str]:
    """Names by a word: leader, follower, one, replica, witness, minority, majority, site, all; or names as given.

    leader: any replica where nobody leads. site: the members and gateways of one datacenter.
    """
    if not isinstance(who, str):
        return list(who)
    members, replicas = target.members, target.replicas
    count = len(members)
    one, leader = rng.choice(replicas), await target.leader()
    leader = leader if leader in replicas else one
    match who:
        case "leader":
            return [leader]
        case "follower":
            return [rng.choice([name for name in replicas if name != leader])]
        case "one":
            return [rng.choice(members)]
        case "replica":
            return [one]
        case "witness":
            return [name for name in members if name not in replicas][:1] or [one]
        case "minority":
            return sorted(rng.sample(members, (count - 1) // 2))
        case "majority":
            return sorted(rng.sample(members, count // 2 + 1))
        case "site":
            site = target.site_of(one)
            return [name for name in (*members, *target.gateways) if target.site_of(name) == site]
        case "all":
            return list(members)
    if who in members or who in target.gateways:
        return [who]
    raise NotCut(f"nobody is called {who!r} here")
