"""Which links a partition cuts: sides of processes, and the links between them."""

from collections.abc import Collection, Sequence
from random import Random

from chaos.faults.target import Target
from chaos.net.links import Link


def across(links: Sequence[Link], *sides: Collection[str]) -> list[Link]:
    """Links between two sides. Who is on no side, a venue say, keeps its links."""
    place = {name: number for number, side in enumerate(sides) for name in side}
    return [
        link
        for link in links
        if link.dialer in place and link.target in place and place[link.dialer] != place[link.target]
    ]


def around(links: Sequence[Link], name: str) -> list[Link]:
    """Links between members that lead to or from this one."""
    return [link for link in links if link.kind == "peer" and name in (link.dialer, link.target)]


def datacenters(target: Target) -> tuple[list[str], list[str]]:
    """The members and gateways of the first and of the second datacenter."""
    first, second = sorted({target.site_of(name) for name in target.replicas})[:2]
    everybody = [*target.members, *target.gateways]
    a = [name for name in everybody if target.site_of(name) == first]
    return a, [name for name in everybody if target.site_of(name) == second]


def between_datacenters(target: Target) -> list[Link]:
    """The WAN: every link of members and gateways that leads from one datacenter to the other."""
    return across(target.links, *datacenters(target))


def cut_in_two(target: Target, tiebreaker: str) -> list[Link]:
    """A cut between the datacenters, gateways included, with the tiebreaker on side `a`, `b` or `none`."""
    a, b = datacenters(target)
    third = [name for name in target.members if name not in (*a, *b)]
    sides = {"a": ([*a, *third], b), "b": (a, [*b, *third]), "none": (a, b, third)}[tiebreaker]
    return across(target.links, *sides)


def apart(target: Target, names: Collection[str]) -> list[Link]:
    """These members on one side, all other members on the other; gateways reach everybody."""
    rest = [name for name in target.members if name not in names]
    return across(target.links, names, rest)


def ring(members: Sequence[str], links: Sequence[Link], rng: Random) -> list[Link]:
    """Five members in a ring, each linked with its two neighbours: each sees a majority, no two see the same."""
    order = rng.sample(list(members), len(members))
    place = {name: number for number, name in enumerate(order)}

    def far(link: Link) -> bool:
        apart = abs(place[link.dialer] - place[link.target])
        return min(apart, len(order) - apart) > 1

    return [link for link in links if link.kind == "peer" and far(link)]
