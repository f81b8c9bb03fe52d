"""One simulated process: engine, journal on a modelled disk, state machine with a store, and a door for clients.

A crash drops it without clean-up; it starts anew from what its disk and its store hold durably. What the real
process does around the engine (batching, forwarding, asking the leader for reads, the clock guard, leaving when
the disk fails) is here in the shortest form that keeps the same promises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from chaos.sim.chance import Chance
from chaos.sim.checks import MONEY_EVERY, Checks, Violation
from chaos.sim.disk import Disk, DiskCommitter, DiskStorage
from chaos.sim.network import Network
from chaos.sim.world import World
from cluster.consensus.clocks import ClockGuard
from cluster.consensus.journal import Base, Committed, StartAfter
from cluster.consensus.messages import ReadAnswer, ReadAsk
from cluster.consensus.raft import NotYet
from cluster.membership import Change, Configuration, Demote, InvalidChange, Remove
from cluster.topology import Member as Described
from cluster.topology import MemberRole, Timing
from statemachine.codec import Envelope, decode_results, encode_batch
from statemachine.codes import Code
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.records import Applied
from statemachine.results import AnyResult, Moved, Refused, Repeat

GUARD_US = 500_000
SNAPSHOT_US = 500_000
ENGINE_COUNTERS = (
    "truncations",
    "pre_votes",
    "stale_reply",
    "refused_disruption",
    "refused_no_voter",
    "refused_admission",
    "membership_changes",
)
EPOCH_US = 1_700_000_000_000_000

# Words of an answer: (index, words as the model says them); None when the member refuses to take the command.
Answered = Callable[["tuple[int, tuple[object, ...]] | None"], None]
ReadAnswered = Callable[["tuple[int, int] | None"], None]


class Forward(Struct, frozen=True):
    envelopes: list[Envelope]


class Store(MemoryBacking):
    """A store's durable image, or what a member has of it in memory."""

    def copy(self) -> Store:
        copy = Store()
        copy.meta = self.meta
        copy.tables = {name: dict(table) for name, table in self.tables.items()}
        copy.buckets = {bucket: dict(keys) for bucket, keys in self.buckets.items()}
        copy.results = dict(self.results)
        return copy

    @property
    def traced(self) -> int:
        return self.meta.applied_index


class SnapshotCopy(Struct, frozen=True):
    """A leader's store after (index, index_term), all in one message: chunks and files are tested elsewhere."""

    term: int
    index: int
    index_term: int
    store: Store
    base: Base


class DiskWeather(Struct):
    """sync_us, flush_us: (least, most). Until slow_until_us a sync takes up to slow_us more. fails: the next one."""

    sync_us: tuple[int, int]
    flush_us: tuple[int, int]
    flush_every_us: int
    slow_until_us: int = 0
    slow_us: int = 0
    fails: bool = False
    full_until_us: int = 0


class Core(Protocol):
    """What a member needs of an engine; RaftCore has it, and so has the wrapped library."""

    journal: Any
    stored_index: int
    barred: str | None
    transferring: bool
    hold_index: int | None
    log_full: bool
    configuration: Configuration
    counters: Counter[str]

    @property
    def is_leader(self) -> bool: ...
    @property
    def caretaker(self) -> bool: ...
    @property
    def has_quorum(self) -> bool: ...
    @property
    def leader(self) -> str | None: ...
    @property
    def term(self) -> int: ...
    @property
    def joined(self) -> bool: ...
    @property
    def stranded(self) -> list[str]: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def configuration_committed(self) -> bool: ...
    @property
    def full_members(self) -> list[str]: ...
    @property
    def room_for_quorum(self) -> bool: ...

    def change(self, change: Change) -> int: ...
    def append(self, payload: bytes) -> Any: ...
    def read(self, answer: Callable[[int | None], None]) -> None: ...
    def received(self, member: str, message: Any) -> bool: ...
    def peer_connected(self, member: str) -> None: ...
    def peer_disconnected(self, member: str) -> None: ...
    def tick(self) -> None: ...
    def synced(self) -> bool: ...
    def transfer_to(self, member: str) -> None: ...
    def best_successor(self) -> str | None: ...
    def progress(self, member: str) -> Any: ...
    def disk_of(self, member: str) -> Any: ...


class Engine(Protocol):
    """Makes cores. durable: it syncs before it speaks, has a store beside it, and survives a power cut."""

    name: str
    durable: bool

    def start(self, member: Member, storage: DiskStorage, committer: DiskCommitter, applied_index: int) -> Core: ...


class Surroundings(Struct):
    """What all members of a run share."""

    world: World
    network: Network
    checks: Checks
    counters: Counter[str]
    engine: Engine
    timing: Timing
    members: dict[str, Member]
    accounts: list[str]
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


class Member:
    """See the module. `trap`: the member's power fails when it next reaches this phase of its work.

    first: who the members were when it was made. retired: it was removed, and has left for good.
    """

    def __init__(
        self, around: Surroundings, described: Described, first: Configuration, chance: Chance, weather: DiskWeather
    ) -> None:
        self.around = around
        self._clock = around.world.clock
        self.name = name = described.name
        self.role = described.role
        self.site = described.site
        self.first = first
        self.retired = False
        self.stays = chance.happens(around.stays)  # it does not leave when it is removed
        self.chance = chance
        self.weather = weather
        self.alive = False
        self.incarnation = 0
        self.disks = 1
        self.disk = Disk(f"{name}-1")
        self.lost_disks: list[Disk] = []
        self.must_hold = 0  # what was committed when the disk was put in
        self.store = Store()
        self.clock_base_us = chance.between(0, 10**9)
        self.clock_rate_ppm = 1_000_000
        self.clock_jump_us = 0
        self.paused_until_us = 0
        self.trap: str | None = None
        self.down_us = 0
        self.core: Core
        self.machine: Machine
        self.backing: Store

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.alive or self.retired:
            return
        around = self.around
        self.incarnation += 1
        self.alive = True
        self.trap = None
        self.paused_until_us = 0
        self._storage = DiskStorage(self.disk)
        self._works: list[Callable[[], None]] = []
        self._woken = self._tick_due = False
        self._waiting: dict[tuple[str, str], list[Answered]] = {}
        self._asks: dict[int, ReadAnswered] = {}
        self._ask = self.incarnation << 32
        self._reads_at: list[tuple[int, ReadAnswered, str]] = []
        self._unstored: list[Applied] = []
        self._flushing = False
        self._transfer_to: str | None = None
        self._transfer_until_us = self._transfer_again_us = 0
        self._truncations = 0
        self._led = False
        self._copying = False
        self._guard = ClockGuard(around.timing.clock_offset_ms_max)
        if around.engine.durable:
            self.backing = self.store.copy()
        else:
            self.backing = self.store = Store()
        self.machine = Machine(self.backing, self.backing.state())
        around.world.trace(
            self.name, "starts", self.incarnation, "disk", self.disk.last_index, "store", self.machine.applied_index
        )
        around.world.clock[0] = self.seconds()
        try:
            self.core = around.engine.start(self, self._storage, DiskCommitter(self), self.machine.applied_index)
        except Violation:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise Violation("starts", f"{self.name} does not start: {error!r}") from error
        self._first_index = self.core.journal.first_index
        self.core.stored_index = self.machine.applied_index
        around.checks.started(self)
        me = self.incarnation
        around.network.dial_all(self.name)
        around.world.at(self.chance.between(0, around.tick_us), self._timer, me)
        around.world.at(GUARD_US, self._judge_clock, me)
        if self.role is MemberRole.replica and around.engine.durable:
            around.world.at(self.chance.between(1, self.weather.flush_every_us), self._flush, me)
            around.world.at(self.chance.between(1, SNAPSHOT_US), self._help_stranded, me)

    def crash(self, why: str) -> None:
        """Power off. What was under way to the disk is there or not; what was not is lost."""
        if not self.alive:
            return
        around = self.around
        lost = len(getattr(self.core.journal, "_pending", ()))
        for work in self._works:
            if self.chance.happens(300):
                work()
                around.counters["writes_done_at_crash"] += 1
            else:
                around.counters["writes_lost_at_crash"] += 1
                lost += 1
        if lost:
            around.counters["unsynced_losses"] += 1
        self._works.clear()
        self.disk.power_cut()
        self.gather()
        self.alive = False
        around.counters["crashes"] += 1
        around.counters[f"crash_{why}"] += 1
        around.world.trace(self.name, "crashes", why, "disk", self.disk.last_index, "of", self.core.journal.last_index)
        around.network.crashed(self.name)

    def gather(self) -> None:
        """Add what this incarnation's engine counted to the run's counters."""
        counters, core = self.around.counters, self.core
        for name in ENGINE_COUNTERS:
            counters[name] += core.counters[name]
        if core.counters["disk_forgot"]:
            raise Violation("nobody_forgets", f"{self.name} blames an honest disk")
        counters["trimmed"] += core.journal.first_index - self._first_index

    def configured(self) -> None:
        """The engine says that another configuration is in force, or the one in force committed."""
        core = self.core
        if core.configuration_committed and self.name in core.configuration.removed:
            self._told_of_removal()

    def _told_of_removal(self) -> None:
        if not self.stays:
            self.around.world.at(self.chance.between(0, 1_000_000), self._retire)

    def _retire(self) -> None:
        """For good, as the real process does, which leaves with a code of its own."""
        if not self.retired:
            self.retired = True
            self.around.counters["retired"] += 1
            self.crash("removed")

    def pause(self, until_us: int) -> None:
        self.paused_until_us = max(self.paused_until_us, until_us)

    def _phase(self, phase: str) -> None:
        if self.trap == phase and self.alive:
            self.crash(phase)
            self.around.world.at(self.down_us, self.start)

    # -- clocks ----------------------------------------------------------------------------------

    def seconds(self) -> float:
        now_us, rate_ppm = self.around.world.now_us, self.clock_rate_ppm
        if rate_ppm == 1_000_000:
            return (self.clock_base_us + now_us) / 1_000_000
        return (self.clock_base_us + now_us * rate_ppm // 1_000_000) / 1_000_000

    def wall_us(self) -> int:
        return EPOCH_US + self.around.world.now_us + self.clock_jump_us

    def set_rate(self, ppm: int) -> None:
        """A monotonic clock changes its pace, never its value."""
        now_us = self.around.world.now_us
        self.clock_base_us += now_us * self.clock_rate_ppm // 1_000_000 - now_us * ppm // 1_000_000
        self.clock_rate_ppm = ppm

    def _judge_clock(self, incarnation: int) -> None:
        if self._gone(incarnation):
            return
        around = self.around
        offsets = [
            (other.wall_us() - self.wall_us()) // 1000
            for other in around.members.values()
            if (self.name, other.name) in around.network.seen and other.alive
        ]
        before, self.core.barred = self.core.barred, self._guard.judge(offsets)
        if self.core.barred and not before:
            around.counters["barred_by_clock"] += 1
        around.world.at(GUARD_US, self._judge_clock, incarnation)

    # -- running ---------------------------------------------------------------------------------

    def _gone(self, incarnation: int) -> bool:
        return not self.alive or self.incarnation != incarnation

    def do(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Let the process run: one call, a tick when it asked for one, then the checks."""
        around = self.around
        self._clock[0] = self.seconds()
        core = self.core
        try:
            call(*arguments)
            if self._woken and self.alive:
                self._woken = False
                if not around.lazy_tick or self.chance.below(1000) >= around.lazy_tick:
                    core.tick()
                    self._after_tick()
                elif not self._tick_due:
                    self._tick_due = True
                    around.world.at(self.chance.between(0, around.tick_us // 2), self._tick, self.incarnation)
        except Violation:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            cause = error.__cause__
            if isinstance(cause, Violation):
                raise cause from None
            raise Violation("no_fail_stop", f"{self.name} leaves: {type(error).__name__}: {error}") from error
        if self.alive:
            around.checks.after(self)
            if self.trap is not None:
                self._spring()

    def _spring(self) -> None:
        core = self.core
        truncations = core.counters["truncations"]
        if core.is_leader and not self._led:
            self._phase("leading")
        if truncations > self._truncations:
            self._phase("truncated")
        self._led, self._truncations = core.is_leader, truncations

    def _tick(self, incarnation: int) -> None:
        if self._gone(incarnation) or self._postponed(self._tick, incarnation):
            return
        self._tick_due = False
        self._woken = False
        self.do(self._tick_now)

    def _tick_now(self) -> None:
        self._woken = False
        self.core.tick()
        self._after_tick()

    def _timer(self, incarnation: int) -> None:
        if self._gone(incarnation) or self._postponed(self._timer, incarnation):
            return
        if self.role is MemberRole.witness:
            self.core.log_full = len(self.core.journal) > self.around.witness_entries_max
        self.around.world.at(self.around.tick_us, self._timer, incarnation)
        self.do(self._tick_now)

    def _postponed(self, action: Callable[..., None], *arguments: Any) -> bool:
        """While it is paused, everything waits for it."""
        pause_us = self.paused_until_us - self.around.world.now_us
        if pause_us <= 0:
            return False
        self.around.world.at(pause_us, action, *arguments)
        return True

    # -- what the network calls ------------------------------------------------------------------

    def link_up(self, other: str) -> None:
        self.do(self._link, self.core.peer_connected, other)
        if self.around.checks.removed(self.name, as_seen_by=other):
            self._told_of_removal()

    def link_down(self, other: str) -> None:
        self.do(self._link, self.core.peer_disconnected, other)

    def _link(self, change: Callable[[str], None], other: str) -> None:
        change(other)
        self._woken = True

    def message(self, source: str, incarnation: int, message: Any, late: bool) -> None:
        if self._gone(incarnation) or self._postponed(self.message, source, incarnation, message, late):
            return
        if late:
            self.around.counters["late_deliveries"] += 1
        self.around.world.trace(self.name, "<-", source, message)
        self.do(self._receive, source, message)

    def _receive(self, source: str, message: Any) -> None:
        match message:
            case Forward(envelopes):
                self._take(envelopes, forward=False)
            case SnapshotCopy():
                self._take_snapshot(source, message)
            case ReadAsk(ask):
                self.core.read(lambda index: self._say_read(source, ask, index))
            case ReadAnswer(ask, index):
                answer = self._asks.pop(ask, None)
                if answer is not None:
                    self._read_at(index if index >= 0 else None, answer, "reads_by_followers")
            case _:
                self._woken = self.core.received(source, message) or self._woken

    def _say_read(self, target: str, ask: int, index: int | None) -> None:
        self.around.network.send(self.name, target, ReadAnswer(ask, -1 if index is None else index))

    # -- what the engine calls -------------------------------------------------------------------

    def say(self, member: str, message: Any) -> bool:
        if not self.alive:
            return False
        self.around.checks.said(self, member, message)
        return self.around.network.send(self.name, member, message)

    def wake(self) -> None:
        self._woken = True

    def deliver(self, index: int, payload: bytes) -> None:
        """Apply one committed batch, tell who waits for its commands."""
        checks, counters = self.around.checks, self.around.counters
        applied = self.machine.apply(index, payload)
        checks.applied_payload(self, index, payload, applied.digest)
        self.backing.write(applied)
        if self.around.engine.durable:
            self._unstored.append(applied)
        counters["applied"] += 1
        if index % MONEY_EVERY == 0:
            checks.money(self.name, index, self._sums())
        for position, key in enumerate(applied.scopes_and_keys):
            callbacks = self._waiting.pop(key, None)
            if callbacks:
                answer = self._words(index, applied.results[position])
                for callback in callbacks:
                    callback(answer)
        if self._reads_at:
            self._serve_reads()

    def _words(self, index: int, result: AnyResult) -> tuple[int, tuple[object, ...]]:
        match result:
            case Repeat(first, ordinal):
                self.around.counters["repeats"] += 1
                return self._words(first, decode_results(self.backing.results[first])[ordinal])
            case Refused(code):
                return index, (Code(code).name,)
            case Moved():
                words = (
                    (result.target_units,)
                    if result.source.startswith("@")
                    else (
                        result.source_units,
                        result.target_units,
                    )
                )
                return index, ("ok", *words)
            case _:
                return index, ("ok",)

    def _sums(self) -> dict[str, int]:
        sums: dict[str, int] = {}
        for name in self.around.accounts:
            record = self.machine.account(name)
            for asset, available, held in record.balances if record is not None else ():
                sums[asset] = sums.get(asset, 0) + available + held
        return sums

    # -- the disk --------------------------------------------------------------------------------

    def disk_works(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """A group goes to the disk: some time later it is there, and a little later still we are told."""
        self._works.append(work)
        self.around.world.at(self._sync_us(), self._written, self.incarnation, work, done)
        if self.trap == "sync_begun":
            self.around.world.at(0, self._crash_in, self.incarnation, "sync_begun")

    def _crash_in(self, incarnation: int, phase: str) -> None:
        if not self._gone(incarnation):
            self._phase(phase)

    def _sync_us(self) -> int:
        weather = self.weather
        delay_us = self.chance.between(*weather.sync_us)
        if weather.slow_until_us > self.around.world.now_us:
            delay_us += self.chance.between(0, weather.slow_us)
        return delay_us

    def _written(
        self, incarnation: int, work: Callable[[], None], done: Callable[[BaseException | None], None]
    ) -> None:
        if self._gone(incarnation):
            return
        if self.weather.fails:
            self.weather.fails = False
            self._storage.broken = OSError(5, "input/output error")
        self._works.remove(work)
        try:
            work()
        except OSError as error:
            self.do(done, error)
            return
        self._phase("synced_untold")
        if self.alive:
            self._told(incarnation, done)

    def _told(self, incarnation: int, done: Callable[[BaseException | None], None]) -> None:
        if self._gone(incarnation) or self._postponed(self._told, incarnation, done):
            return
        self.do(self._done, done)
        self._phase("synced_told")

    def _done(self, done: Callable[[BaseException | None], None]) -> None:
        done(None)

    def synced(self) -> None:
        self._woken = self.core.synced() or self._woken

    def disk_failed(self, error: BaseException) -> None:
        """After a failed sync the process leaves; someone gives it a working disk later."""
        self.around.counters["left_for_disk"] += 1
        self.crash("disk_failed")
        self.around.world.at(self.down_us or 1_000_000, self.start)

    @property
    def disk_full(self) -> bool:
        return self.weather.full_until_us > self.around.world.now_us

    # -- the store -------------------------------------------------------------------------------

    def _flush(self, incarnation: int) -> None:
        if self._gone(incarnation):
            return
        world = self.around.world
        world.at(self.weather.flush_every_us, self._flush, incarnation)
        if self._flushing or not self._unstored or self.paused_until_us > world.now_us:
            return
        self._flushing = True
        batches, self._unstored = self._unstored, []
        changes = self.machine.collect()
        self.backing.store(changes)

        def work() -> None:
            for applied in batches:
                self.store.write(applied)
            self.store.store(changes)

        self._works.append(work)
        world.at(
            self.chance.between(*self.weather.flush_us), self._flushed, incarnation, work, changes.meta.applied_index
        )

    def _flushed(self, incarnation: int, work: Callable[[], None], index: int) -> None:
        if self._gone(incarnation):
            return
        self._works.remove(work)
        work()
        self._flushing = False
        self._phase("stored_untold")
        if self.alive:
            self.core.stored_index = max(self.core.stored_index, index)
            self.around.counters["flushes"] += 1

    # -- snapshots and lost disks ----------------------------------------------------------------

    def _help_stranded(self, incarnation: int) -> None:
        """A leader copies its store for a replica that needs entries which are trimmed everywhere."""
        if self._gone(incarnation) or self._postponed(self._help_stranded, incarnation):
            return
        world, core = self.around.world, self.core
        world.at(SNAPSHOT_US, self._help_stranded, incarnation)
        stranded = core.stranded if core.is_leader else []
        index = self.store.meta.applied_index
        if not stranded or self._copying or index < max(2, core.journal.first_index):
            if not self._copying:
                core.hold_index = None
            return
        self._copying = True
        core.hold_index = index
        journal = core.journal
        copy = SnapshotCopy(core.term, index, journal.term_at(index), self.store.copy(), journal.base_at(index))
        world.at(self.chance.between(10_000, 1_000_000), self._copied, incarnation, self.chance.pick(stranded), copy)

    def _copied(self, incarnation: int, target: str, copy: SnapshotCopy) -> None:
        if self._gone(incarnation):
            return
        self._copying = False
        if self.core.is_leader and self.core.term == copy.term:
            self.around.counters["snapshots_sent"] += 1
            self.around.network.send(self.name, target, copy)

    def _take_snapshot(self, source: str, copy: SnapshotCopy) -> None:
        """Believed only from the leader, and when the own log does not lead there. The process stops, then installs."""
        core = self.core
        if copy.term != core.term or source != core.leader or not self._needs(copy):
            self.around.counters["snapshots_refused"] += 1
            return
        self.crash("snapshot")
        disk = self.disk
        decided = self.chance.happens(800)  # else the power failed before the wish was on disk
        if decided and disk.commit_index < copy.index:
            self.around.counters["snapshots_installed"] += 1
            self.store = copy.store.copy()
            if not (disk.first_index <= copy.index and disk.holds(copy.index, copy.index_term)):
                disk.put([StartAfter(copy.index, copy.index_term), Committed(copy.index), copy.base])
        self.around.world.at(self.chance.between(20_000, 500_000), self.start)

    def _needs(self, copy: SnapshotCopy) -> bool:
        core, journal = self.core, self.core.journal
        if copy.index <= max(core.commit_index, core.applied_index):
            return False
        return not journal.first_index <= copy.index <= journal.last_index

    def wipe(self) -> bool:
        """The disk is lost, and a new one is put in: only where the members promise to survive that."""
        around = self.around
        if not around.engine.durable or not self.disk.record.joined:
            return False
        if not around.checks.can_spare(self.name):
            return False
        self.crash("wiped")
        self.disks += 1
        self.lost_disks.append(self.disk)
        self.must_hold = len(self.around.checks.committed) - 1
        self.disk = Disk(f"{self.name}-{self.disks}")
        self.store = Store()
        return True

    # -- clients ---------------------------------------------------------------------------------

    def submit(self, incarnation: int, envelope: Envelope, answered: Answered) -> None:
        """A client's command came in. answered(None): refused, and nothing was logged or sent on by this member."""
        if self._gone(incarnation) or self._postponed(self.submit, incarnation, envelope, answered):
            return
        self.do(self._submit, envelope, answered)

    def _submit(self, envelope: Envelope, answered: Answered) -> None:
        key = (envelope.scope, envelope.key)
        self._waiting.setdefault(key, []).append(answered)
        if not self._take([envelope], forward=True):
            self._waiting[key].remove(answered)
            self.around.counters["refused"] += 1
            answered(None)

    def _take(self, envelopes: list[Envelope], *, forward: bool) -> bool:
        core, around = self.core, self.around
        if core.is_leader:
            if (
                core.caretaker
                or core.transferring
                or not core.has_quorum
                or self.disk_full
                or (core.full_members and not core.room_for_quorum)
                or self.role is MemberRole.witness
            ):
                return False
            core.append(encode_batch(self.wall_us(), envelopes))
            self._woken = True
            self._phase_later("appended")
            return True
        leader = core.leader
        if not forward or leader is None or leader == self.name:
            return False
        return around.network.send(self.name, leader, Forward(envelopes))

    def _phase_later(self, phase: str) -> None:
        if self.trap == phase:
            self.around.world.at(0, self._crash_in, self.incarnation, phase)

    def read(self, incarnation: int, account: str, asset: str, answered: ReadAnswered) -> None:
        """A linearizable read of one balance: answered((index, units)) or answered(None)."""
        if self._gone(incarnation) or self._postponed(self.read, incarnation, account, asset, answered):
            return

        def serve(found: tuple[int, int] | None) -> None:
            answered(None if found is None else (found[0], self._balance(account, asset)))

        self.do(self._read, serve)

    def _read(self, answered: ReadAnswered) -> None:
        core = self.core
        if core.is_leader:
            core.read(lambda index: self._read_at(index, answered, "reads_by_leaders"))
            self._woken = True
            return
        leader = core.leader
        if leader is not None and leader != self.name:
            self._ask += 1
            if self.around.network.send(self.name, leader, ReadAsk(self._ask)):
                self._asks[self._ask] = answered
                return
        answered(None)

    def _read_at(self, index: int | None, answered: ReadAnswered, who: str) -> None:
        if index is None:
            answered(None)
            return
        self._reads_at.append((index, answered, who))
        self._serve_reads()

    def _serve_reads(self) -> None:
        applied = self.machine.applied_index
        ready = [read for read in self._reads_at if read[0] <= applied]
        if not ready:
            return
        self._reads_at = [read for read in self._reads_at if read[0] > applied]
        for _, answered, who in ready:
            self.around.counters[who] += 1
            answered((applied, 0))

    def _balance(self, account: str, asset: str) -> int:
        record = self.machine.account(account)
        if record is None:
            return 0
        return sum(available + held for name, available, held in record.balances if name == asset)

    # -- who the members are ---------------------------------------------------------------------

    def change(self, change: Change) -> tuple[str, int]:
        """An operator asks: ('logged', index), or ('refused' for good, 'not_yet', 'not_leader', 'hands_over'; 0)."""
        core = self.core
        if not self.alive or not core.is_leader or core.caretaker or core.transferring or not core.has_quorum:
            return "not_leader", 0
        own = isinstance(change, Demote | Remove) and change.name == self.name
        if own and self.chance.happens(500):  # else the engine itself has to refuse
            self.transfer(None, 2 * self.around.timing.election_ms_max * 1000)
            return "hands_over", 0
        answers: list[tuple[str, int]] = []
        self.do(self.log_change, change, answers)
        return answers[0]

    def log_change(self, change: Change, answers: list[tuple[str, int]]) -> None:
        try:
            answers.append(("logged", self.core.change(change)))
        except InvalidChange:
            answers.append(("refused", 0))
        except NotYet:
            answers.append(("not_yet", 0))

    # -- handing leadership over -----------------------------------------------------------------

    def transfer(self, target: str | None, within_us: int) -> None:
        if not self.alive or not self.core.is_leader or self.core.transferring or self.role is MemberRole.witness:
            return
        self.core.transferring = True
        self.around.counters["transfers_asked"] += 1
        self._transfer_to, self._transfer_until_us = target, self.around.world.now_us + within_us
        self._transfer_again_us = 0
        self.do(self._after_tick)

    def _after_tick(self) -> None:
        core = self.core
        if not core.transferring:
            return
        now_us = self.around.world.now_us
        if not core.is_leader or now_us > self._transfer_until_us:
            core.transferring = False
            if not core.is_leader:
                self.around.counters["transfers_done"] += 1
            return
        target = self._transfer_to or core.best_successor()
        progress = core.progress(target) if target is not None else None
        if target is None or progress is None or progress.matched_index != core.journal.last_index:
            return
        if now_us >= self._transfer_again_us:
            self._transfer_again_us = now_us + self.around.timing.election_ms_max * 1000
            core.transfer_to(target)
            self._woken = True
