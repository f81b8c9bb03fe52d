"""A stage for scripted schedules: a quiet cluster in which only what the script says goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from chaos.sim.checks import Violation
from chaos.sim.clients import Load
from chaos.sim.member import Engine, Member
from chaos.sim.network import Weather
from chaos.sim.run import LAN, Plan, Run, described
from cluster.consensus.audited import driven_by
from cluster.membership import Add, Change
from cluster.topology import Standing
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import OpenAccount

QUIET = Weather(
    delay_us=(200, 300),
    site_delay_us=(200, 300),
    spike=0,
    spike_us=0,
    twice=0,
    late=0,
    late_us_max=1,
    silent_us=1_000_000,
    redial_us=(20_000, 30_000),
)
ELECTION_MS = LAN.election_ms_max
FAR_S = 3600.0


class Stage:
    """Members by name: a1, b1, t1 (witness), and a2, b2 in 2+2+1. All its waiting is in virtual milliseconds."""

    def __init__(self, engine: Engine, shape: str, *, batch_bytes: int = 1 << 20, tell: Callable[[str], None] | None):
        plan = Plan(
            seed=1,
            shape=shape,
            timing=LAN,
            weather=QUIET,
            sync_us=(300, 400),
            flush_us=(1_000, 2_000),
            flush_every_us=100_000,
            load=Load(0, 2, 1_000, 0, 0, 1_000_000, (200, 300)),
            tick_us=10_000,
            tail_bytes_max=64 << 20,
            trim_reserve=0,
            laggard_entries=1_000_000,
            laggard_ms=3_600_000,
            batch_bytes=batch_bytes,
            lazy_tick=0,
            promote_lag=5,
            witness_entries_max=1_000_000,
            stays=1_000,
            faulty_us=0,
            bound_us=8 * ELECTION_MS * 1000,
            faults=[],
        )
        self.run = Run(plan, engine, tell)
        self._proposed = 0
        self._held: set[str] = set()

    def __getitem__(self, name: str) -> Member:
        return self.run.members[name]

    @property
    def members(self) -> list[Member]:
        return list(self.run.members.values())

    # -- time ------------------------------------------------------------------------------------

    def wait(self, ms: float) -> None:
        world = self.run.world
        world.run_until(world.now_us + int(ms * 1000))

    def until(self, holds: Callable[[], bool], what: str, *, within_ms: float = 3_000) -> None:
        """Go on, event by event, until it holds."""
        world = self.run.world
        if holds():
            return
        world.run_until(world.now_us + int(within_ms * 1000), done=holds)
        self.must(holds(), f"not within {within_ms} ms: {what}")

    def must(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation("script", what)

    # -- who leads -------------------------------------------------------------------------------

    def leads(self, name: str) -> bool:
        return self[name].alive and bool(self[name].core.is_leader)

    def elect(self, name: str) -> None:
        """Only this member's patience ends. Stops at the event at which it wins."""
        for _ in range(300):
            for member in self.members:
                if not member.alive:
                    continue
                core: Any = member.core
                if member.name != name and core.is_leader and (name, member.name) in self.run.network.seen:
                    core.step_down()
                late_s = -1.0 if member.name == name else FAR_S
                core._SyncObj__raftElectionDeadline = member.seconds() + late_s
            world = self.run.world
            world.run_until(world.now_us + 5_000, done=lambda: self.leads(name))
            if self.leads(name):
                self.patient()
                return
        raise Violation("script", f"{name} does not win")

    def patient(self) -> None:
        """Election timers run as they would after hearing a leader just now."""
        for member in self.members:
            if member.alive:
                core: Any = member.core
                core._SyncObj__raftElectionDeadline = member.seconds() + ELECTION_MS / 1000

    def frozen(self) -> None:
        """Nobody campaigns by itself."""
        for member in self.members:
            if member.alive:
                core: Any = member.core
                core._SyncObj__raftElectionDeadline = member.seconds() + FAR_S

    # -- what goes wrong -------------------------------------------------------------------------

    def cut(self, *groups: str) -> None:
        """Nothing passes between members of different groups ('a1 t1', 'b1'), until healed."""
        named = [group.split() for group in groups]
        pairs = [(a, b) for group in named for other in named if group is not other for a in group for b in other]
        for source, target in pairs:
            self.block(source, target)
        self.run.network.heal(but=pairs)

    def block(self, source: str, target: str) -> None:
        self.run.network.block(source, target, self.run.world.now_us + 3_600_000_000)

    def heal(self) -> None:
        self.run.network.heal()

    def crash(self, *names: str) -> None:
        for name in names:
            self[name].crash("script")

    def restart(self, *names: str) -> None:
        for name in names:
            self[name].start()

    def stall_disk(self, name: str, ms: float) -> None:
        weather = self[name].weather
        weather.sync_us = (int(ms * 1000), int(ms * 1000)) if ms else (300, 400)

    def lie(self, name: str) -> None:
        """Its disk says of what comes that it is there, until the next power cut takes that back."""
        self[name].disk.lie()

    def inject(self, target: str, source: str, message: Any) -> None:
        """A message from the past, or from nowhere."""
        member = self[target]
        member.message(source, member.incarnation, message, True)

    # -- who the members are ---------------------------------------------------------------------

    def core(self, name: str) -> Any:
        """The engine, with what only ours has."""
        return self[name].core

    def change(self, name: str, change: Change) -> str:
        """What the engine of a member that leads says: 'logged', 'not_yet' or 'refused'."""
        answers: list[tuple[str, int]] = []
        self[name].do(self[name].log_change, change, answers)
        return answers[0][0]

    def changed(self, name: str, change: Change) -> None:
        """Logged as soon as it may be, and committed."""
        self.until(lambda: self.change(name, change) == "logged", f"{name} logs {change}")
        index = self[name].core.journal.last_index
        self.until(lambda: self.committed(name, index), f"{change} is committed")

    def machine(self, name: str, standing: Standing = Standing.learner) -> Add:
        """A new member, started, of which nobody was told yet."""
        leader = max((m for m in self.members if m.alive), key=lambda m: (m.core.is_leader, m.core.term))
        one = described(name, "dc-a", standing=standing)
        configuration = leader.core.configuration
        self.run.recruit(one, replace(configuration, members=[*configuration.members, one])).start()
        self.patient()
        return Add(one)

    def learner(self, leader: str, name: str) -> None:
        """A new learner that has all that the leader has, and whose disk counts."""
        self.changed(leader, self.machine(name))
        self.until(lambda: self[name].disk.record.joined, f"{name} joins")
        self.until(lambda: self.on_disk(name, self[leader].core.journal.last_index), f"{name} has it all")
        self.wait(50)

    # -- work ------------------------------------------------------------------------------------

    def propose(self, name: str, count: int = 1, *, size: int = 40) -> list[int]:
        """Entries that are in no client's mind; their indexes."""
        indexes: list[int] = []
        for _ in range(count):
            self._proposed += 1
            command = encode_command(OpenAccount(f"acc-{self._proposed:0{size}d}"[:64]))
            payload = encode_batch(self[name].wall_us(), [Envelope("@custodian", f"s{self._proposed}", 0, command)])
            self[name].do(self[name].core.append, payload)
            indexes.append(self[name].core.journal.last_index)
        self[name].do(self[name].core.tick)
        return indexes

    def committed(self, name: str, index: int) -> bool:
        return self[name].alive and self[name].core.commit_index >= index

    def on_disk(self, name: str, index: int) -> bool:
        return self[name].disk.last_index >= index

    def term_at(self, name: str, index: int) -> int:
        journal = self[name].core.journal
        return int(journal.entry(index)[2]) if journal.first_index <= index <= journal.last_index else 0

    def converge(self, *, within_ms: float = 8 * ELECTION_MS) -> None:
        """Everything is healed and started; everybody must agree."""
        self.heal()
        for member in self.members:
            self.restart(member.name)
        self.until(lambda: not self.run.why_unsettled(), "converged", within_ms=within_ms)


@contextmanager
def staged(
    engine: Engine, shape: str, *, batch_bytes: int = 1 << 20, tell: Callable[[str], None] | None = None
) -> Iterator[Stage]:
    """A started cluster whose links are up, and in which nobody has campaigned yet."""
    stage = Stage(engine, shape, batch_bytes=batch_bytes, tell=tell)
    with driven_by(stage.run.world.clock.read, stage.run.library_chance):
        for member in stage.members:
            member.start()
        stage.frozen()
        stage.wait(100)
        yield stage
