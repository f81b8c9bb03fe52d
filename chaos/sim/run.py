"""One run: everything is drawn from its seed; it ends at the first broken promise, or quiet and agreed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from chaos.sim.chance import Chance
from chaos.sim.checks import Checks, Violation
from chaos.sim.clients import Clients, Load
from chaos.sim.faults import KINDS, MEMBERSHIP, Fault, Nemesis, draw_faults
from chaos.sim.member import DiskWeather, Engine, Member, Surroundings
from chaos.sim.network import Network, Weather
from chaos.sim.operators import Operators
from chaos.sim.world import World
from cluster.consensus.audited import driven_by
from cluster.membership import Configuration
from cluster.topology import TIEBREAKER_SITE, MemberRole, Standing, Timing
from cluster.topology import Member as Described
from statemachine.types import SYSTEM_ACCOUNTS

SHAPES = {
    "1+1+1": (("a1", "dc-a"), ("b1", "dc-b"), ("t1", TIEBREAKER_SITE)),
    "2+2+1": (("a1", "dc-a"), ("a2", "dc-a"), ("b1", "dc-b"), ("b2", "dc-b"), ("t1", TIEBREAKER_SITE)),
}

LAN = Timing()
MIDDLE = Timing(heartbeat_ms=100, election_ms_min=500, election_ms_max=900, link_silent_ms_max=1_500)
WAN = Timing(
    heartbeat_ms=150,
    election_ms_min=1000,
    election_ms_max=2000,
    ping_ms=500,
    link_silent_ms_max=3000,
    disk_stall_ms=5000,
)


class Plan(Struct, frozen=True):
    """What a seed stands for. faults: what strikes; a shrunk plan has fewer."""

    seed: int
    shape: str
    timing: Timing
    weather: Weather
    sync_us: tuple[int, int]
    flush_us: tuple[int, int]
    flush_every_us: int
    load: Load
    tick_us: int
    tail_bytes_max: int
    trim_reserve: int
    laggard_entries: int
    laggard_ms: int
    batch_bytes: int
    lazy_tick: int
    promote_lag: int
    witness_entries_max: int
    stays: int
    faulty_us: int
    bound_us: int
    faults: list[Fault]

    def with_faults(self, faults: list[Fault]) -> Plan:
        return replace(self, faults=faults)


class Outcome(Struct, frozen=True):
    """broken: '' or the promise that did not hold. virtual_us: how long the cluster lived."""

    seed: int
    shape: str
    broken: str
    detail: str
    virtual_us: int
    events: int
    digest: str
    counters: dict[str, int]
    cpu_s: float


def draw_plan(seed: int, shape: str | None = None) -> Plan:
    """Each seed is another cluster: its shape, its links, its disks, its load and its luck."""
    chance = Chance(seed, "plan")
    drawn = chance.weighted({"1+1+1": 55, "2+2+1": 45})
    shape = shape or drawn
    timing = chance.weighted({"lan": 1, "middle": 1, "wan": 4})
    times = {"lan": LAN, "middle": MIDDLE, "wan": WAN}[timing]
    election_us = times.election_ms_max * 1000
    near = {"lan": (100, 1_500), "middle": (500, 8_000), "wan": (500, 5_000)}[timing]
    far = {"lan": (200, 4_000), "middle": (4_000, 25_000), "wan": (20_000, 90_000)}[timing]
    weather = Weather(
        delay_us=far,
        site_delay_us=near,
        spike=chance.pick((0, 5, 30)),
        spike_us=chance.pick((election_us // 4, election_us)),
        twice=chance.pick((0, 0, 20)),
        late=chance.pick((0, 100, 500)),
        late_us_max=2 * election_us,
        silent_us=times.link_silent_ms_max * 1000,
        redial_us=(times.redial_ms_min * 1000, times.redial_ms_max * 1000),
    )
    load = Load(
        clients=chance.between(2, 6),
        accounts=chance.between(3, 12),
        think_us=chance.pick((30_000, 150_000, 600_000)) * (3 if timing == "wan" else 1),
        reads=chance.pick((100, 300)),
        repeats=chance.pick((0, 100)),
        patience_us=chance.pick((election_us, 3 * election_us)),
        way_us=(200, 3_000),
    )
    reserve = chance.pick((0, 0, 20, 10_000))
    # A third of the runs see a few kinds only, and those often; in a third the members stay the same.
    kinds = list(KINDS)
    weights = dict(KINDS) if chance.happens(667) else {kind: KINDS[kind] for kind in chance.some(kinds, 5)}
    if chance.happens(333):
        weights = {kind: weight for kind, weight in weights.items() if kind not in MEMBERSHIP} or {"crash": 1}
    faulty_us = election_us * chance.pick((8, 25, 60))
    return Plan(
        seed=seed,
        shape=shape,
        timing=times,
        weather=weather,
        sync_us=chance.pick(((100, 800), (500, 8_000), (5_000, 40_000))),
        flush_us=(2_000, 60_000),
        flush_every_us=chance.pick((200_000, 600_000, 2_000_000)),
        load=load,
        tick_us=times.heartbeat_ms * chance.pick((300, 900, 900)),
        tail_bytes_max=chance.pick((300, 3_000, 64 << 20)),
        trim_reserve=reserve,
        laggard_entries=chance.pick((10, 100, 1_000_000)),
        laggard_ms=chance.pick((2 * times.link_silent_ms_max, 3_600_000)),
        batch_bytes=chance.pick((250, 1_000, 1 << 20)),
        lazy_tick=chance.pick((0, 200, 600)),
        promote_lag=chance.pick((0, 5, 1_000)),
        # More than is kept in reserve: else a witness's log would be full for ever.
        witness_entries_max=reserve + chance.pick((60, 120, 1_000_000)),
        stays=chance.pick((0, 0, 300)),
        faulty_us=faulty_us,
        bound_us=14 * election_us + 4_000_000,
        faults=draw_faults(
            chance,
            begin_us=2 * election_us,
            end_us=faulty_us,
            every_us=election_us * chance.between(2, 12) // 8,
            election_us=election_us,
            weights=weights,
        ),
    )


def described(name: str, site: str, *, witness: bool = False, standing: Standing = Standing.voter) -> Described:
    """Nobody dials anybody here: the addresses only have to differ."""
    role = MemberRole.witness if witness else MemberRole.replica
    return Described(name, site, role, name, 1, name, 2, standing)


class Run:
    """A plan brought to life. `play` goes through all of it; scripts drive it themselves."""

    def __init__(self, plan: Plan, engine: Engine, tell: Callable[[str], None] | None = None) -> None:
        shape = SHAPES[plan.shape]
        self.plan = plan
        self.engine = engine
        self.counters: Counter[str] = Counter()
        self.world = World(tell)
        self.checks = Checks(self.counters, self.world.trace, durable=engine.durable)
        self.network = Network(self.world, Chance(plan.seed, "network"), plan.weather, self.counters)
        self.library_chance = Chance(plan.seed, "library")
        self.around = Surroundings(
            world=self.world,
            network=self.network,
            checks=self.checks,
            counters=self.counters,
            engine=engine,
            timing=plan.timing,
            members={},
            accounts=list(SYSTEM_ACCOUNTS),
            tick_us=plan.tick_us,
            tail_bytes_max=plan.tail_bytes_max,
            trim_reserve=plan.trim_reserve,
            laggard_entries=plan.laggard_entries,
            laggard_ms=plan.laggard_ms,
            batch_bytes=plan.batch_bytes,
            lazy_tick=plan.lazy_tick,
            promote_lag=plan.promote_lag,
            witness_entries_max=plan.witness_entries_max,
            stays=plan.stays,
        )
        # The library as published has no witnesses: all its members are replicas.
        initial = [described(name, site, witness=site == TIEBREAKER_SITE and engine.durable) for name, site in shape]
        first = Configuration(0, initial)
        for one in initial:
            self.recruit(one, first)
        self.clients = Clients(self.around, Chance(plan.seed, "clients"), plan.load)
        self.around.accounts.extend(self.clients.names)

    def recruit(self, one: Described, first: Configuration) -> Member:
        """A machine with the programs and a folder; nobody has started it yet."""
        plan = self.plan
        disk = DiskWeather(plan.sync_us, plan.flush_us, plan.flush_every_us)
        member = Member(self.around, one, first, Chance(plan.seed, one.name), disk)
        self.around.members[one.name] = member
        self.network.join(member)
        self.checks.join(member)
        return member

    @property
    def members(self) -> dict[str, Member]:
        return self.around.members

    def play(self) -> Outcome:
        began = time.process_time()
        broken = detail = ""
        with driven_by(self.world.clock.read, self.library_chance):
            try:
                self._play()
            except Violation as violation:
                broken, detail = violation.promise, str(violation)
                self.world.trace("BROKEN", detail)
        for member in self.members.values():
            if member.alive:
                member.gather()
        return Outcome(
            seed=self.plan.seed,
            shape=self.plan.shape,
            broken=broken,
            detail=detail,
            virtual_us=self.world.now_us,
            events=self.world.events,
            digest=self.world.digest,
            counters=dict(sorted(self.counters.items())),
            cpu_s=time.process_time() - began,
        )

    def _play(self) -> None:
        plan = self.plan
        for member in self.members.values():
            member.start()
        self.clients.start()
        operators = Operators(self.around, Chance(plan.seed, "operators"), self.recruit, plan.faulty_us)
        nemesis = Nemesis(self.around, operators, plan.faults, plan.faulty_us)
        self.world.run_until(plan.faulty_us)
        nemesis.heal()
        self.world.trace("healed")
        self.settle(plan.bound_us)

    def settle(self, within_us: int) -> None:
        """No more operations begin. What is under way must end, and all must agree, within the bound.

        Where every voter that counts is needed, messages that take long now and then cost one leader after the other:
        so, once more, without those.
        """
        self.clients.stopped = True
        if self._settled(within_us):
            self.counters["settled_late"] += 1
            self.network.calm()
            why = self._settled(within_us)
            if why:
                raise Violation("converges", f"{2 * within_us / 1e6:.1f} s after the last fault {why}")
        self.counters["converged"] += 1
        self.clients.finish(self.checks.applied, len(self.checks.committed) - 1)

    def _settled(self, within_us: int) -> str:
        """'' or what is still amiss then."""
        end_us = self.world.now_us + within_us
        while self.world.now_us < end_us:
            self.world.run_until(min(end_us, self.world.now_us + 100_000))
            if not self.why_unsettled():
                break
        return self.why_unsettled()

    def why_unsettled(self) -> str:
        """What is still amiss, or ''."""
        leaders = [m for m in self.members.values() if m.alive and m.core.is_leader and not m.core.caretaker]
        if not leaders:
            return "nobody leads"
        leader = max(leaders, key=lambda m: m.core.term)
        members = list(self.members.values())
        if self.engine.durable:
            members = [self.members[one.name] for one in leader.core.configuration.members]
        log, commit = leader.core.journal, leader.core.commit_index
        if self.clients.busy:
            return f"{self.clients.busy} operations are not answered"
        if commit != log.last_index:
            return f"{leader.name} has committed {commit} of {log.last_index}"
        for member in members:
            if not member.alive:
                return f"{member.name} is down"
            core = member.core
            if core.journal.last_index != log.last_index or core.commit_index != commit:
                return f"{member.name} has {core.journal.last_index}, committed {core.commit_index}, of {commit}"
            if self.engine.durable and not member.disk.record.joined:
                return f"{member.name} is not admitted on its new disk"
            if member.role is MemberRole.replica and core.applied_index != commit:
                return f"{member.name} has applied {core.applied_index} of {commit}"
        return ""


def shrink(plan: Plan, engine: Engine, broken: str, tries: int = 200, step: Callable[[], None] | None = None) -> Plan:
    """Drop faults, halves first, then one by one, as long as the same promise is broken."""
    faults = list(plan.faults)
    size = max(1, len(faults) // 2)
    while tries > 0 and faults:
        at = 0
        dropped = False
        while at < len(faults) and tries > 0:
            tries -= 1
            fewer = faults[:at] + faults[at + size :]
            if step is not None:
                step()
            if Run(plan.with_faults(fewer), engine).play().broken == broken:
                faults, dropped = fewer, True
            else:
                at += size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return plan.with_faults(faults)
