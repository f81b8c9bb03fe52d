"""Faults of a run: a list drawn beforehand, so that a failing run can be tried again with fewer of them."""

from __future__ import annotations

from msgspec import Struct

from chaos.sim.chance import Chance
from chaos.sim.member import Member, Surroundings
from chaos.sim.operators import Operators

TRAPS = (
    "appended",
    "sync_begun",
    "synced_untold",
    "synced_told",
    "stored_untold",
    "leading",
    "truncated",
)
"""Phases of a member's work in which its power may fail."""

MEMBERSHIP = {
    "add_learner": 3,
    "add_read_replica": 1,
    "demote": 3,
    "remove": 2,
    "replace": 3,
    "two_changes": 3,
    "change_and_crash": 3,
}
KINDS = {
    "cut_leader": 14,
    "cut_group": 8,
    "cut_site": 6,
    "cut_one_way": 8,
    "clog": 8,
    "reset": 10,
    "duplicate": 6,
    "crash": 8,
    "crash_leader": 8,
    "crash_many": 4,
    "crash_all": 3,
    "crash_in": 16,
    "restart_storm": 3,
    "pause": 6,
    "pause_leader": 4,
    "slow_disk": 10,
    "broken_disk": 3,
    "full_disk": 3,
    "clock_jump": 3,
    "clock_rate": 3,
    "transfer": 8,
    "wipe": 3,
    **MEMBERSHIP,
}

LEADER = -1
NUMBERS = 60  # of one or two members: counted round those that there are
GROUP = 12  # of a group: places; more than there are members at once


GROUPS = ("cut_group", "crash_many")


class Fault(Struct, frozen=True):
    """who: numbers of members, for a group their places; LEADER stands for whoever leads when it strikes.

    lasts_us: how long.
    """

    at_us: int
    kind: str
    who: tuple[int, ...]
    lasts_us: int
    what: int = 0

    def __str__(self) -> str:
        who = ",".join("leader" if number == LEADER else str(number) for number in self.who)
        return f"{self.at_us / 1e6:.3f} s: {self.kind} {who} for {self.lasts_us / 1e6:.3f} s ({self.what})"


def draw_faults(
    chance: Chance,
    *,
    begin_us: int,
    end_us: int,
    every_us: int,
    election_us: int,
    weights: dict[str, int],
) -> list[Fault]:
    """Calm and storm by turns: a quarter of the time nothing is drawn."""
    faults: list[Fault] = []
    at_us = begin_us
    calm_until_us = 0
    while at_us < end_us:
        at_us += chance.between(1, 2 * every_us)
        if chance.happens(40):
            calm_until_us = at_us + 8 * every_us
        if at_us < calm_until_us or at_us >= end_us:
            continue
        kind = chance.weighted(weights)
        if kind in GROUPS:
            who = tuple(chance.some(range(GROUP), chance.between(1, GROUP - 1)))
        elif kind in ("reset", "clog", "cut_one_way", "duplicate"):
            pair = chance.some(range(NUMBERS), 2)
            if chance.happens(300):
                pair[0] = LEADER
            who = (pair[1], pair[0]) if chance.happens(500) else (pair[0], pair[1])
        elif kind in ("cut_leader", "crash_leader", "pause_leader", "transfer"):
            who = (LEADER,)
        elif kind == "crash_all":
            who = tuple(range(GROUP))
        else:
            who = (LEADER if chance.happens(300) else chance.below(NUMBERS),)
        lasts_us = chance.between(1, chance.pick((election_us // 4, election_us, 2 * election_us, 6 * election_us)))
        faults.append(Fault(at_us, kind, who, lasts_us, chance.below(1 << 16)))
    return faults


class Nemesis:
    """Strikes. Each kind is counted when it really did something."""

    def __init__(self, around: Surroundings, operators: Operators, faults: list[Fault], end_us: int) -> None:
        self.around = around
        self.operators = operators
        self.end_us = end_us
        for fault in faults:
            around.world.at(fault.at_us, self.strike, fault)

    @property
    def members(self) -> list[Member]:
        return [member for member in self.around.members.values() if not member.retired]

    def strike(self, fault: Fault) -> None:
        who = self._group(fault) if fault.kind in GROUPS else self._named(fault.who)
        self.around.world.trace("fault", fault.kind, *(member.name for member in who), fault.lasts_us)
        self.around.counters[f"fault_{fault.kind}"] += 1
        until_us = min(self.around.world.now_us + fault.lasts_us, self.end_us)
        match fault.kind:
            case "cut_leader" | "cut_group":
                self._cut(who, until_us)
            case "cut_site":
                self._cut([m for m in self.members if m.site == who[0].site], until_us)
            case "cut_one_way":
                if len(who) == 2:
                    self.around.network.block(who[0].name, who[1].name, until_us)
            case "clog":
                if len(who) == 2:
                    shorter_us = min(fault.lasts_us, self.around.network.weather.silent_us // 2)
                    self.around.network.block(who[0].name, who[1].name, self.around.world.now_us + shorter_us)
            case "reset":
                if len(who) == 2:
                    self.around.network.reset(who[0].name, who[1].name)
            case "duplicate":
                if len(who) == 2:
                    self.around.network.connect(who[0].name, who[1].name)
            case "crash" | "crash_leader" | "crash_many" | "crash_all":
                for member in who:
                    self._crash(member, fault)
            case "crash_in":
                who[0].trap = TRAPS[fault.what % len(TRAPS)]
                who[0].down_us = fault.lasts_us
            case "restart_storm":
                for again in range(3 + fault.what % 4):
                    self.around.world.at(again * (20_000 + fault.what), self._storm, who[0])
            case "wipe":
                if who[0].wipe():
                    self.around.counters["wiped"] += 1
                self.around.world.at(max(1_000, fault.lasts_us), who[0].start)
            case "pause" | "pause_leader":
                who[0].pause(until_us)
            case "slow_disk":
                who[0].weather.slow_until_us = until_us
                who[0].weather.slow_us = 1_000 * (1 + fault.what % 2_500)
            case "broken_disk":
                who[0].weather.fails = True
                who[0].down_us = fault.lasts_us
            case "full_disk":
                who[0].weather.full_until_us = until_us
            case "clock_jump":
                far = (300_000, 700_000, 2_000_000, 3_600_000_000)[fault.what % 4]
                who[0].clock_jump_us = far if fault.what & 4 else -far
            case "clock_rate":
                who[0].set_rate(500_000 + fault.what * 1_000_000 // (1 << 16))
            case "transfer":
                self._transfer(who[0], fault)
            case "add_learner" | "add_read_replica" | "demote" | "remove" | "replace" | "two_changes":
                self.operators.begin(fault.kind, who[0].name, fault.what)
            case "change_and_crash":
                self.operators.begin(
                    fault.kind, who[0].name, fault.what, lambda leader: self._crash_soon(leader, fault)
                )
            case other:
                raise ValueError(f"no fault {other!r}")

    def _group(self, fault: Fault) -> list[Member]:
        """Some, not all."""
        members = self.members
        some = [member for place, member in enumerate(members) if place in fault.who]
        return some if 0 < len(some) < len(members) else [members[fault.what % len(members)]]

    def _named(self, numbers: tuple[int, ...]) -> list[Member]:
        return list(dict.fromkeys(self._member(number) for number in numbers))

    def _member(self, number: int) -> Member:
        if number != LEADER:
            members = self.members
            return members[number % len(members)]
        leading = [m for m in self.members if m.alive and m.core.is_leader]
        return max(leading, key=lambda m: m.core.term) if leading else self.members[0]

    def _cut(self, group: list[Member], until_us: int) -> None:
        for one in group:
            for other in self.members:
                if other not in group:
                    self.around.network.block(one.name, other.name, until_us)
                    self.around.network.block(other.name, one.name, until_us)

    def _crash(self, member: Member, fault: Fault) -> None:
        member.crash("power")
        down_us = min(fault.lasts_us, self.end_us - self.around.world.now_us)
        self.around.world.at(max(1_000, down_us), member.start)

    def _crash_soon(self, member: Member, fault: Fault) -> None:
        self.around.world.at(fault.what % 7 * 2_000, self._crash, member, fault)

    def _storm(self, member: Member) -> None:
        member.crash("storm")
        self.around.world.at(20_000, member.start)

    def _transfer(self, leader: Member, fault: Fault) -> None:
        others = [m.name for m in self.members if m is not leader]
        target = None if fault.what % 3 == 0 else others[fault.what % len(others)]
        leader.transfer(target, 2 * self.around.timing.election_ms_max * 1000)

    def heal(self) -> None:
        """All faults end: links, disks and clocks are well again, everyone is started."""
        self.around.network.heal()
        for member in self.members:
            member.trap = None
            member.clock_jump_us = 0
            member.set_rate(1_000_000)
            member.paused_until_us = 0
            member.weather.fails = False
            member.weather.slow_until_us = member.weather.full_until_us = 0
            if not member.alive:
                member.start()
