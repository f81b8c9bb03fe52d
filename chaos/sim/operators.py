"""Operators of a run: they add, promote, demote, remove and replace members while faults strike, and try again."""

from __future__ import annotations

from collections.abc import Callable

from chaos.sim.chance import Chance
from chaos.sim.member import Member, Surroundings
from cluster.membership import Add, Change, Configuration, Demote, Promote, Remove
from cluster.topology import TIEBREAKER_SITE, MemberRole, Standing
from cluster.topology import Member as Described

MEMBERS_MAX = 7
AGAIN_US = (20_000, 200_000)

Recruit = Callable[[Described, Configuration], Member]


class Operators:
    """Each operation is a list of changes, one after the other; each is asked for until it is committed or refused."""

    def __init__(self, around: Surroundings, chance: Chance, recruit: Recruit, end_us: int) -> None:
        self.around = around
        self.chance = chance
        self.recruit = recruit
        self.end_us = end_us
        self._added = 0

    def begin(self, kind: str, name: str, what: int, logged: Callable[[Member], None] | None = None) -> None:
        """name: of a member, where the operation is about one. logged: called at once with a leader that logged."""
        if not self.around.engine.durable:
            return  # the library as published has its own way, which is off
        configuration = self._configuration()
        if kind == "two_changes":
            self._next([Demote(name), Promote(name)], logged)
            self._next(self._additions(configuration, what), logged)
            return
        if kind == "change_and_crash":
            kind = ("add_learner", "demote", "remove", "replace")[what % 4]
        self._next(self._steps(kind, name, what, configuration), logged)

    def _steps(self, kind: str, name: str, what: int, configuration: Configuration) -> list[Change]:
        match kind:
            case "add_learner":
                return self._additions(configuration, what)
            case "add_read_replica":
                return self._additions(configuration, what, Standing.read_replica)
            case "demote":
                return [Demote(name), Promote(name)]
            case "remove":
                return [Remove(name)]
            case "replace":
                return [*self._additions(configuration, what), Remove(name)]
            case other:
                raise ValueError(f"no operation {other!r}")

    def _additions(
        self, configuration: Configuration, what: int, standing: Standing = Standing.learner
    ) -> list[Change]:
        """A new machine. Most are started when a leader has logged them, some before."""
        if len(configuration.members) >= MEMBERS_MAX:
            return []
        self._added += 1
        name = f"n{self._added}"
        witness = standing is Standing.learner and what % 8 == 7
        site = TIEBREAKER_SITE if witness else ("dc-a", "dc-b")[what % 2]
        role = MemberRole.witness if witness else MemberRole.replica
        one = Described(name, site, role, name, 1, name, 2, standing)
        # Its own topology says what the operator believes, itself included: it may be out of date, or come to nothing.
        first = Configuration(configuration.generation, [*configuration.members, one], configuration.removed)
        member = self.recruit(one, first)
        if self.chance.happens(300):
            self.around.world.at(self.chance.between(0, 500_000), member.start)
        return [Add(one)] if standing is Standing.read_replica else [Add(one), Promote(name)]

    # -- asking ----------------------------------------------------------------------------------

    def _next(self, steps: list[Change], logged: Callable[[Member], None] | None) -> None:
        if steps:
            self._ask(steps, logged)

    def _ask(self, steps: list[Change], logged: Callable[[Member], None] | None) -> None:
        world, counters = self.around.world, self.around.counters
        if world.now_us >= self.end_us:
            self._give_up(steps[0])
            return
        leader = self._leader()
        answer, index = leader.change(steps[0]) if leader is not None else ("not_leader", 0)
        counters[f"change_{answer}"] += 1
        if answer == "refused":
            self._give_up(steps[0])
            return
        if leader is not None and answer == "logged":
            world.trace("operator", type(steps[0]).__name__, "logged", leader.name, index)
            if isinstance(steps[0], Add):
                world.at(self.chance.between(0, 500_000), self.around.members[steps[0].member.name].start)
            if logged is not None:
                logged(leader)
            world.at(self.chance.between(*AGAIN_US), self._committed, steps, leader, leader.core.term, index)
            return
        world.at(self.chance.between(*AGAIN_US), self._ask, steps, logged)

    def _give_up(self, change: Change) -> None:
        """A machine that no leader has logged is of no use."""
        if isinstance(change, Add):
            member = self.around.members[change.member.name]
            if not any(m.alive and m.core.configuration.member(member.name) for m in self.around.members.values()):
                member.retired = True
                member.crash("given_up")

    def _committed(self, steps: list[Change], leader: Member, term: int, index: int) -> None:
        """Whether it was; where that can't be known, the same is asked for again, which does no harm."""
        core = leader.core
        if not leader.alive or not core.is_leader or core.term != term:
            self._ask(steps, None)
        elif core.commit_index < index:
            self.around.world.at(self.chance.between(*AGAIN_US), self._committed, steps, leader, term, index)
        else:
            self.around.counters[f"changed_{type(steps[0]).__name__.lower()}"] += 1
            self._next(steps[1:], None)

    def _leader(self) -> Member | None:
        """Mostly the newest of those that believe to lead, and that listen."""
        now_us = self.around.world.now_us
        leading = [
            m for m in self.around.members.values() if m.alive and m.core.is_leader and m.paused_until_us <= now_us
        ]
        if not leading:
            return None
        return self.chance.pick(leading) if self.chance.happens(300) else max(leading, key=lambda m: m.core.term)

    def _configuration(self) -> Configuration:
        leader = self._leader()
        return next(iter(self.around.members.values())).first if leader is None else leader.core.configuration
