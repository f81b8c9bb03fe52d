"""Partitions: who is cut off from whom, one way or both, and what is held meanwhile."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Sequence
from random import Random

from chaos.faults import processes, seeing, sides
from chaos.faults.nemesis import Detail, Nemesis, Part, Struck, choose, drawn, felt
from chaos.faults.target import Target
from chaos.net.links import Link, NotCut, Way

HOWS = ("stall", "drop", "refuse")
PEERS: frozenset[Part] = frozenset({"peer links"})


class LinkNemesis(Nemesis):
    """Strikes some links, and heals exactly these.

    detail: `how`: stall (held, and delivered at the end), drop (lost) or refuse (connections end, none is made).
    """

    parts = PEERS
    way: Way = "both"

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.ways: dict[str, Way] = {}
        self.how = ""

    @abstractmethod
    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        """The links, and what was drawn."""

    def draw_how(self, rng: Random) -> str:
        return rng.choice(HOWS)

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        how = drawn(detail, "how", lambda: self.draw_how(rng))
        links, more = await self.pick(target, rng, detail)
        if not links:
            raise NotCut(f"{self.name}: there is no link to cut")
        careful(target, links)
        self.how, self.links = how, links
        await together(self.strike(target, link) for link in links)
        return Struck([link.name for link in links], {"how": how, **more})

    async def strike(self, target: Target, link: Link) -> None:
        network, way = target.network, self.ways.get(link.name, self.way)
        match self.how:
            case "stall":
                await network.stall(link.name, way)
            case "drop":
                await network.drop(link.name, way)
            case "refuse" if way == "both":
                await network.refuse(link.name)
            case _:
                raise NotCut(f"{self.name}: no way to {self.how} {way}")

    async def bite(self, target: Target, struck: Struck) -> str:
        peers = [link for link in self.links if link.kind == "peer"]
        pairs = [pair for link in peers for pair in seeing.deaf_ends(link, self.ways.get(link.name, self.way))]
        others = [link for link in self.links if link.kind != "peer"]
        seen = []
        if pairs:
            seen.append(await felt(lambda: seeing.unheard(target, pairs), f"{self.name} between members"))
        if any(link.kind != "node" for link in others) or not pairs:
            seen.append(await felt(lambda: seeing.gateways_unheard(target, others), f"{self.name} of gateways"))
        return "; ".join(seen)

    async def end(self, target: Target) -> None:
        links, self.links = self.links, []
        await felt(lambda: _none_stopped(target, links), "the end of a pause at a link to heal", within_s=90)
        await together(target.network.heal(link.name) for link in links)


def _stopped(target: Target, links: Sequence[Link]) -> list[str]:
    ends = {name for link in links for name in (link.dialer, link.target) if name in target.addresses}
    return sorted(name for name in ends if processes.state(target.pid(name)) == processes.STOPPED)


def careful(target: Target, links: Sequence[Link]) -> None:
    """A proxy whose receiver reads nothing can deadlock when it is told something."""
    found = _stopped(target, links)
    if found:
        raise NotCut(f"{', '.join(found)} is stopped; its links are not to be touched")


async def _none_stopped(target: Target, links: Sequence[Link]) -> str:
    return "" if _stopped(target, links) else "nobody is stopped"


async def together(verbs: Iterable[Awaitable[None]]) -> None:
    """Do all at once; the first error is raised when all are done."""
    done = await asyncio.gather(*verbs, return_exceptions=True)
    for error in done:
        if isinstance(error, BaseException):
            raise error


class DatacenterCut(LinkNemesis):
    """detail: `tiebreaker`: a, b or none, the side that it is on."""

    name = "dc-cut"
    line = "cut every link between the datacenters, gateways' too; the tiebreaker is on A, on B or alone"
    parts = frozenset({"peer links", "gateway links"})

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        tiebreaker = drawn(detail, "tiebreaker", lambda: rng.choice(("a", "b", "none")))
        return sides.cut_in_two(target, tiebreaker), {"tiebreaker": tiebreaker}


class Isolate(LinkNemesis):
    """detail: `who`: see nemesis.choose; by itself a member, the leader or a minority."""

    name = "isolate"
    line = "cut one member, the leader or a minority off from all other members"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        who = drawn(detail, "who", lambda: rng.choice(("one", "leader", "minority")))
        names = await choose(target, rng, who)
        return sides.apart(target, names), {"who": names}


class MajoritiesRing(LinkNemesis):
    name = "majorities-ring"
    line = "each of five members sees a majority, and no two see the same"

    def available(self, target: Target) -> str:
        return "" if len(target.members) == 5 else "a ring of majorities needs five members"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        links = sides.ring(target.members, target.links, rng)
        if "links" in detail:
            links = [link for link in target.links if link.name in detail["links"]]
        return links, {"links": [link.name for link in links]}


class OneWay(LinkNemesis):
    """detail: `who`; `deaf`: true, it hears no member, false: no member hears it."""

    name = "one-way"
    line = "a member hears nobody and is heard, or is heard by nobody and hears"

    def draw_how(self, rng: Random) -> str:
        return rng.choice(("stall", "drop"))

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        who = drawn(detail, "who", lambda: rng.choice(("one", "leader")))
        deaf = bool(drawn(detail, "deaf", lambda: rng.random() < 0.5))
        name = (await choose(target, rng, who))[0]
        links = sides.around(target.links, name)
        self.ways = {link.name: "to_target" if (link.target == name) == deaf else "to_dialer" for link in links}
        return links, {"who": name, "deaf": deaf}


class StallAndRelease(Isolate):
    name = "stall"
    line = "hold what a member sends and is sent, and deliver all of it late"

    def draw_how(self, rng: Random) -> str:
        return "stall"


class Refused(Isolate):
    name = "refused"
    line = "end a member's connections and refuse new ones"

    def draw_how(self, rng: Random) -> str:
        return "refuse"


class HoldOld(LinkNemesis):
    """The restart makes new connections pass beside the held ones, which are delivered at the end.

    detail: `who`; `restart`: whether that member is killed and started meanwhile.
    """

    name = "hold-old"
    line = "hold what a member's old connections carry while new ones pass, restart it, then deliver the old"
    parts = frozenset({"peer links", "members"})

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, frozenset[int]] = {}
        self.restarted: list[str] = []

    def draw_how(self, rng: Random) -> str:
        return "hold_old"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        who = drawn(detail, "who", lambda: rng.choice(("leader", "replica")))
        restart = bool(drawn(detail, "restart", lambda: rng.random() < 0.5))
        name = (await choose(target, rng, who))[0]
        links = sides.around(target.links, name)
        self.before = await seeing.connections(target, links)
        self.restarted = [name] if restart else []
        return links, {"who": name, "restart": restart}

    async def strike(self, target: Target, link: Link) -> None:
        await target.network.hold_old(link.name)

    async def bite(self, target: Target, struck: Struck) -> str:
        for name in self.restarted:
            await target.kill(name)
            await processes.bring_back(target, [name])

        async def look() -> str:
            now = await seeing.connections(target, self.links)
            fresh = [name for name in now if now[name] - self.before.get(name, frozenset())]
            return f"new connections beside the held ones: {', '.join(fresh)}" if len(fresh) == len(self.links) else ""

        return await felt(look, f"{self.name}: new connections on all links", within_s=20)

    async def end(self, target: Target) -> None:
        await super().end(target)
        await processes.bring_back(target, self.restarted)
