"""The scenarios by name, and how a seed becomes a plan: which faults, when, how long, and what of each is drawn."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from random import Random
from typing import Any

from msgspec import Struct

from chaos.faults import mixed
from chaos.faults.dying import POINTS, RARE
from chaos.faults.nemeses import NEMESES
from chaos.history.run import Planned

SHAPES = ("1+1+1", "2+2+1")
FIRST_S = (0.5, 1.5)
"""From the start of the faults to the first."""
MIXED_S_MIN = 15.0
"""A shorter mix would be no mix."""
TRADE = ("bank", "idempotence", "register", "list-append", "reads", "orders", "ap")
"""All that clients do, on both sides; most scenarios ask all of it."""


class UnknownScenario(ValueError):
    """No such scenario; the message names those that are spelled alike, or all."""


class Strike(Struct, frozen=True):
    """One kind of fault in a scenario. for_s: drawn between. detail: fixed. draw: by name, one of these."""

    nemesis: str
    for_s: tuple[float, float]
    detail: dict[str, Any] = {}
    draw: dict[str, Sequence[Any]] = {}

    def planned(self, rng: Random, number: int, at_s: float, for_s: float) -> Planned:
        detail = {**self.detail, **{name: rng.choice(list(values)) for name, values in self.draw.items()}}
        who = detail.get("who", detail.get("gateways", []))
        targets = [who] if isinstance(who, str) else list(who)
        return Planned(number, round(at_s, 2), round(for_s, 2), self.nemesis, targets, detail)


class Scenario(Struct, frozen=True):
    """line: for the list. story: for the report, to somebody who never saw the project.

    gap_s: between one fault's end and the next, drawn. expect: the kinds that must have bitten; empty: all of the plan.
    ok_per_s: fewer acknowledged operations in a second of faults show nothing. outage_ms_max: see Run. shapes: the
    first is the default. trim_often: logs and snapshots turn over fast. own_disks: each member's data lies on a file
    system of its own, whose power can be cut and that can be filled. own_proxy: it needs what toxiproxy can't do.
    mixed: several faults at once. screens: how many times the usual reads of gateways; more where these are down
    themselves for a part of the run, which does not count.
    """

    name: str
    line: str
    story: str
    strikes: tuple[Strike, ...]
    gap_s: tuple[float, float] = (3.0, 6.0)
    workloads: tuple[str, ...] = TRADE
    rate_per_s: float = 300.0
    ok_per_s: float = 30.0
    expect: tuple[str, ...] = ()
    outage_ms_max: int = 0
    shapes: tuple[str, ...] = SHAPES
    trim_often: bool = False
    own_disks: bool = False
    own_proxy: bool = False
    mixed: bool = False
    screens: float = 1.0

    def required(self, plan: Sequence[Planned]) -> list[str]:
        """The kinds of faults of a plan that must have bitten for the run to show anything."""
        return sorted({fault.nemesis for fault in plan if not self.expect or fault.nemesis in self.expect})


def draw_plan(scenario: Scenario, seed: int, seconds: float) -> list[Planned]:
    """The faults of a run: the same for the same seed, scenario and length, on every machine."""
    rng = Random(f"{scenario.name} {seed}")
    faults = _mixed(scenario, rng, seconds) if scenario.mixed else _one_by_one(scenario, rng, seconds)
    return list(faults)


def _one_by_one(scenario: Scenario, rng: Random, seconds: float) -> Iterator[Planned]:
    """One after the other, every kind before any comes again, as many as there is time for; one at least."""
    at_s, number = rng.uniform(*FIRST_S), 0
    while True:
        for strike in rng.sample(scenario.strikes, len(scenario.strikes)):
            shortest_s, longest_s = strike.for_s
            left_s = seconds - at_s
            if left_s < shortest_s and number:
                return
            number += 1
            for_s = rng.uniform(shortest_s, max(shortest_s, min(longest_s, left_s)))
            yield strike.planned(rng, number, at_s, for_s)
            at_s += for_s + rng.uniform(*scenario.gap_s)


def _mixed(scenario: Scenario, rng: Random, seconds: float) -> Iterator[Planned]:
    """A few at once that don't get in each other's way, drawn anew again and again; what each hits it draws itself."""
    kinds = [NEMESES[strike.nemesis] for strike in scenario.strikes]
    while not (drawn := mixed.plan(rng, max(seconds, MIXED_S_MIN), kinds)):
        """A run without any fault shows nothing."""
    for number, strike in enumerate(drawn, 1):
        yield Planned(number, strike.at_s, strike.for_s, strike.nemesis)


def scenario_named(name: str) -> Scenario:
    """Raises UnknownScenario."""
    found = SCENARIOS.get(name)
    if found is not None:
        return found
    near = get_close_matches(name, SCENARIOS, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(SCENARIOS)}"
    raise UnknownScenario(f"no scenario is called {name!r}; {hint}")


RECOVERS = "Killed processes are started again, and must come back by themselves."
RESUMES_MS = 5_000
"""Writes of the side that has a majority: well beyond an election of the chaos profile on a busy machine."""

_ALL = (
    Scenario(
        "dc-cut",
        "cut the two datacenters apart; the tiebreaker stays with A or with B",
        "Every link between the two datacenters is cut, those of the gateways too. The tiebreaker stays with one side. "
        "That side has a majority and must take writes again after one election; the other must refuse, and never "
        "acknowledge. Both gateways must go on answering.",
        (Strike("dc-cut", (5, 9), draw={"tiebreaker": ("a", "b")}),),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "dc-cut-neither",
        "cut both datacenters and the tiebreaker apart: nobody has a majority",
        "Both datacenters and the tiebreaker are cut apart, so no side has a majority. Nobody may acknowledge a write "
        "until the links heal; both gateways must go on answering.",
        (Strike("dc-cut", (4, 7), {"tiebreaker": "none"}),),
    ),
    Scenario(
        "leader-kill",
        "kill -9 of the leader, again and again",
        "The leader is killed without warning. The others must elect a new one and go on; nothing that was "
        f"acknowledged may be lost. {RECOVERS}",
        (Strike("kill", (1.5, 4), {"who": "leader"}),),
        gap_s=(2, 4),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "pauses",
        "stop processes in mid-air (SIGSTOP), the leader too, and let them go on",
        "Processes are stopped as a machine that hangs, and go on later without knowing it. A leader that wakes up "
        "must not serve a read or acknowledge a write that the others have moved beyond.",
        (Strike("pause", (5, 60), draw={"who": ("leader", "leader", "one", "minority")}),),
        gap_s=(2, 5),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "minority-kill",
        "kill -9 of a minority of the members",
        f"A minority of the members is killed; the rest must go on. {RECOVERS}",
        (Strike("kill", (2, 5), {"who": "minority"}),),
        gap_s=(2, 4),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "majority-kill",
        "kill -9 of a majority of the members: writes stop until they are back",
        "A majority of the members is killed at once. Whoever is left must refuse rather than answer wrongly, and "
        f"everything acknowledged must be there when they are back. {RECOVERS}",
        (Strike("kill", (2, 4), draw={"who": ("majority", "all")}),),
        gap_s=(4, 6),
    ),
    Scenario(
        "all-power-lost",
        "cut the power of every member's disk at once: what was not synced is gone",
        "The power of all members goes at the same moment. Each disk keeps what was synced to it and loses the rest, "
        "as a real one. Every acknowledged command must be there after the restart.",
        (Strike("power-cut", (1, 2), {"who": "all"}),),
        gap_s=(5, 7),
        own_disks=True,
        ok_per_s=15,
    ),
    Scenario(
        "majorities-ring",
        "five members in a ring: each sees a majority, no two see the same",
        "Links are cut so that each of five members reaches its two neighbours only. Each sees a majority, and no two "
        "see the same one. There may still be one leader per term and one order of commands.",
        (Strike("majorities-ring", (5, 9)),),
        shapes=("2+2+1",),
    ),
    Scenario(
        "one-way",
        "messages pass in one direction only",
        "A member hears the others and is not heard, or the other way round. It must neither disturb a healthy leader "
        "nor go on leading without being heard.",
        (Strike("one-way", (4, 8)),),
    ),
    Scenario(
        "hold-old",
        "old connections are held while new ones pass, then deliver late what they carried",
        "What a member's old connections carry is held, new connections pass, and later the old ones deliver. Late "
        "acknowledgements must not be taken for new ones.",
        (Strike("hold-old", (3, 6)), Strike("stall", (3, 6))),
        own_proxy=True,
    ),
    Scenario(
        "flapping",
        "links go down and up every 0.2 to 3 s",
        "The links of a member go down and up again and again. Elections may follow; nothing may be lost.",
        (Strike("flapping", (6, 10)),),
    ),
    Scenario(
        "broken-links",
        "slice messages, end connections in the middle of one, reset them",
        "Messages arrive in small pieces, connections end in the middle of a message or are reset.",
        (
            Strike("slicer", (3, 5)),
            Strike("mid-message-cut", (3, 5), draw={"size_bytes": (500, 5_000)}),
            Strike("reset", (0.5, 1)),
        ),
        gap_s=(1, 3),
        own_proxy=True,
    ),
    Scenario(
        "client-cut",
        "cut the clients' own connections with answers under way",
        "Connections between clients and members end while answers are under way. The outcome is unknown to the "
        "client; asked again with the same key, each command must have been done once or not at all.",
        (Strike("client-cut", (0.5, 1)),),
        gap_s=(1, 3),
    ),
    Scenario(
        "restart-storm",
        "a member is killed 20 to 500 ms after each start",
        "A member is killed again and again just after it was started, mostly before it is ready.",
        (Strike("restart-storm", (5, 9)),),
    ),
    Scenario(
        "kill-inside",
        "a member dies inside a step: around an append, a sync or an apply, before a reply",
        "Members are built to die at one exact place: around an append, a sync or an apply, or before a reply.",
        tuple(Strike("kill-inside", (6, 9), {"point": point}, {"nth": (1, 2, 5, 20)}) for point in POINTS),
        gap_s=(2, 4),
    ),
    Scenario(
        "kill-in-snapshot",
        "a member dies while it trims its log, stores its state, sends or takes a snapshot",
        "Logs are kept short. Members are built to die while they trim them, write their state to disk, or make, send, "
        "receive or install a snapshot. Whoever comes back must be whole.",
        tuple(Strike("kill-inside", (8, 12), {"point": point, "nth": 1}) for point in RARE),
        shapes=("1+1+1",),
        trim_often=True,
        gap_s=(3, 5),
    ),
    Scenario(
        "rolling-restart",
        "restart every member one after the other, as a deploy does",
        "Every member is restarted, one after the other, as in a deploy. Leadership is handed over; clients should "
        "hardly notice.",
        (Strike("rolling-restart", (12, 20)),),
        workloads=("upgrade", "bank", "idempotence", "reads", "ap"),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "member-replaced",
        "a member is gone for good and is replaced by a new one while writes go on",
        "A member is removed for good and a new one with an empty disk takes its place, by an entry in the log, while "
        "clients go on.",
        (Strike("replaced", (8, 14)),),
        trim_often=True,
    ),
    Scenario(
        "lost-disk",
        "a replica loses its whole disk and comes back empty",
        "A replica loses its disk and comes back empty. It may neither vote nor count before it has everything again.",
        (Strike("lost-disk", (3, 6)),),
        trim_often=True,
        gap_s=(5, 8),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "snapshot-storm",
        "logs are trimmed so often that whoever was away comes back by a snapshot",
        "Logs are kept so short that a member that was away for a few seconds finds its past gone, and must be brought "
        "back by a snapshot while writes go on.",
        (
            Strike("kill", (4, 7), {"who": "follower"}),
            Strike("isolate", (4, 7), {"who": "leader", "how": "drop"}),
            # However slow the machine is, this one needs a snapshot.
            Strike("lost-disk", (1, 3), {"who": "follower"}),
        ),
        workloads=("snapshot-storm", "bank", "idempotence", "reads"),
        trim_often=True,
        gap_s=(3, 5),
    ),
    Scenario(
        "clocks",
        "wall clocks jump, strobe and run at the wrong rate",
        "The wall clocks of members jump by up to an hour, go to and fro or run too fast. A member whose clock is off "
        "may not lead; no order, balance or read may depend on it.",
        (Strike("clock-jump", (4, 7)), Strike("clock-strobe", (4, 7)), Strike("clock-rate", (6, 9), {"rate": 1.5})),
    ),
    Scenario(
        "disk-full",
        "a member's disk fills up, and has room again later",
        "A disk fills up. The member must refuse writes, or leave, rather than acknowledge what it can't keep, and "
        "come back when there is room.",
        (Strike("disk-full", (4, 7)),),
        own_disks=True,
    ),
    Scenario(
        "slow-disk",
        "each sync of a member's disk takes 50 to 2,000 ms",
        "The disk of a member becomes very slow. Others must not wait for it.",
        (Strike("slow-sync", (4, 8)),),
    ),
    Scenario(
        "wan-latency",
        "1 to 300 ms more between the datacenters, with jitter",
        "The way between the datacenters takes up to 300 ms longer, with jitter. Everything is slower, and right.",
        (Strike("slow-wan", (6, 10)),),
        ok_per_s=10,
    ),
    Scenario(
        "cache-killed",
        "kill a gateway's cache, or cut it off",
        "The cache beside a gateway is killed or cut off. The gateway must go on from its own memory.",
        (Strike("cache-kill", (2, 4)), Strike("cache-cut", (2, 4))),
        workloads=("ap", "bank", "orders"),
        gap_s=(2, 4),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "feed-frozen",
        "a venue's connection stays, and no price comes",
        "The connection to the market's prices stays and nothing comes through it. Prices must be marked stale; "
        "everything else goes on.",
        (Strike("feed-frozen", (4, 8)),),
        workloads=("ap", "bank", "orders"),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "site-cut",
        "cut the gateways of the two sites apart while users write at both",
        "The two gateways can't reach each other, nor, at times, any member, while users change preferences and "
        "alerts at both. Both must go on, and agree soon after the heal, with no acknowledged change lost.",
        (Strike("site-cut", (4, 8)), Strike("gateway-cut", (3, 6))),
        workloads=("ap", "ap", "bank"),
        gap_s=(2, 4),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "gateway-killed",
        "kill -9 of a gateway while users write",
        "A gateway is killed while users write to it. What it acknowledged must be there when it is back.",
        (Strike("gateway-kill", (2, 4)),),
        screens=2.5,
        workloads=("ap", "ap", "bank"),
        gap_s=(4, 6),
        outage_ms_max=RESUMES_MS,
    ),
    Scenario(
        "mixed",
        "a random handful of all faults at once, drawn anew every 20 s",
        "A few faults of different kinds at once, drawn anew again and again, with quiet times in between.",
        (
            Strike("dc-cut", (5, 12)),
            Strike("isolate", (4, 10)),
            Strike("one-way", (4, 10)),
            Strike("flapping", (5, 12)),
            Strike("stall", (3, 8)),
            Strike("slow-wan", (5, 12)),
            Strike("kill", (1, 6)),
            Strike("pause", (1, 8)),
            Strike("restart-storm", (4, 9)),
            Strike("clock-jump", (4, 10)),
            Strike("site-cut", (4, 10)),
            Strike("gateway-cut", (4, 8)),
            Strike("feed-frozen", (4, 10)),
            Strike("cache-kill", (2, 6)),
            Strike("client-cut", (0.5, 1)),
        ),
        gap_s=(3, 5),
        mixed=True,
        ok_per_s=10,
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
