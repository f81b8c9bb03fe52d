"""Whole clusters in one process, where each message, each sync and the clock move only when a test says so."""

import copy
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, syncobj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from cluster.consensus.journal import (
    CONFIGURATION,
    Base,
    Change,
    Committed,
    CutFrom,
    Entry,
    Journal,
    Loaded,
    PeerDisks,
    Put,
    StartAfter,
    TrimTo,
    Vote,
)
from cluster.consensus.journal import Disk as DiskIdentity
from cluster.consensus.messages import decode, encode
from cluster.consensus.raft import RaftCore, RaftSettings
from cluster.membership import Configuration
from cluster.topology import Member, MemberRole, Standing, Timing

TIMING = Timing(heartbeat_ms=50, election_ms_min=300, election_ms_max=600)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def virtual_time(seed: int = 1) -> Iterator[Clock]:
    """The library's clock and ours are this one; its random timeouts repeat."""
    clock = Clock()
    original, state = syncobj.monotonicTime, random.getstate()
    syncobj.monotonicTime = clock
    random.seed(seed)
    try:
        yield clock
    finally:
        syncobj.monotonicTime = original
        random.setstate(state)


class Net:
    """One queue per direction and pair, in order. `down`: directions that lose everything, silently."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], deque[Any]] = {}
        self.down: set[tuple[str, str]] = set()
        self.receivers: dict[str, Callable[[str, Any], None]] = {}

    def put(self, source: str, target: str, message: Any) -> bool:
        if (source, target) not in self.down:
            self.queues.setdefault((source, target), deque()).append(message)
        return True

    def queued(self, source: str, target: str) -> list[Any]:
        return list(self.queues.get((source, target), ()))

    def deliver(self, source: str, target: str, count: int | None = None) -> None:
        queue = self.queues.get((source, target), deque())
        for _ in range(len(queue) if count is None else count):
            if not queue:
                return
            message = queue.popleft()
            if target in self.receivers:
                self.receivers[target](source, message)

    def drop(self, source: str, target: str) -> None:
        self.queues.pop((source, target), None)

    def run(self) -> None:
        """Deliver until nothing moves."""
        while pairs := [pair for pair, queue in self.queues.items() if queue]:
            for pair in pairs:
                self.deliver(*pair)

    def part(self, group: Iterable[str], others: Iterable[str]) -> None:
        for a in group:
            for b in others:
                self.down |= {(a, b), (b, a)}
                self.drop(a, b)
                self.drop(b, a)

    def heal(self) -> None:
        self.down.clear()


class Disk:
    """What survives a power cut. Without an identity it is taken for one that has always been there."""

    def __init__(self, identity: DiskIdentity | None = None) -> None:
        self.identity = identity or DiskIdentity()
        self.peer_disk_ids: dict[str, str] = {}
        self.base: Base | None = None
        self.entries: list[Entry] = []
        self.vote = Vote(0, None)
        self.commit_index = 0


class MemoryStorage:
    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def load(self, *, tail_bytes_max: int) -> Loaded:
        entries = self.disk.entries
        first, last = (entries[0][1], entries[-1][1]) if entries else (0, 0)
        return Loaded(
            first,
            last,
            list(entries),
            self.disk.vote,
            self.disk.commit_index,
            self.disk.identity,
            self.disk.peer_disk_ids,
            self.disk.base,
            [
                (index, command)
                for command, index, _ in entries
                if command[:1] == CONFIGURATION and (self.disk.base is None or index > self.disk.base.index)
            ],
        )

    def read(self, first_index: int, count: int) -> list[Entry]:
        offset = first_index - self.disk.entries[0][1]
        return self.disk.entries[offset : offset + count]

    def write(self, changes: Sequence[Change]) -> None:
        disk = self.disk
        for change in changes:
            match change:
                case Put(index, term, command):
                    assert not disk.entries or disk.entries[-1][1] == index - 1
                    disk.entries.append((command, index, term))
                case CutFrom(index):
                    disk.entries = [entry for entry in disk.entries if entry[1] < index]
                case TrimTo(index):
                    disk.entries = [entry for entry in disk.entries if entry[1] >= index]
                case StartAfter(index, term):
                    disk.entries = [(b"\1", index, term)]
                case Vote():
                    disk.vote = change
                case Committed(index):
                    disk.commit_index = index
                case DiskIdentity():
                    disk.identity = change
                case PeerDisks(disk_ids):
                    disk.peer_disk_ids = disk_ids
                case Base():
                    disk.base = change

    def used_bytes(self) -> int:
        return sum(len(entry[0]) for entry in self.disk.entries)

    def close(self) -> None:
        pass


class ManualCommitter:
    """A group waits in `jobs` until the test syncs it; what waits at a crash is lost."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = deque()

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.jobs.append((work, done))

    def sync(self) -> None:
        while self.jobs:
            work, done = self.jobs.popleft()
            work()
            done(None)

    def close(self) -> None:
        self.jobs.clear()


def described(name: str, role: MemberRole, standing: Standing = Standing.voter) -> Member:
    """How the topology names a member; nobody dials anybody here, but no two may share an address."""
    return Member(name, f"site-{name}", role, name, 1, name, 2, standing)


class LabMember:
    """A RaftCore with a fake disk and net. `delivered`: what on_committed was told since the start."""

    def __init__(self, lab: "Lab", name: str, role: MemberRole) -> None:
        self.lab, self.name, self.role = lab, name, role
        self.disk = Disk()
        self.alive = False
        self.auto_sync = True
        self.delivered: list[tuple[int, bytes]] = []
        self.fail_at: bytes | None = None
        self.wakes = 0
        self.raft: RaftCore
        self.journal: Journal
        self.committer: ManualCommitter

    def start(self, *, applied_index: int = 0) -> None:
        self.delivered = []
        self.committer = ManualCommitter()
        self.journal = Journal(
            MemoryStorage(self.disk), self.committer, on_synced=self._synced, on_failed=self._disk_failed
        )
        self.alive = True
        self.raft = RaftCore(
            self.name,
            self.role,
            self.lab.first,
            journal=self.journal,
            owner=self,
            settings=self.lab.settings,
            applied_index=applied_index,
        )
        self.lab.net.receivers[self.name] = self.received

    def configured(self) -> None:
        pass

    def crash(self) -> None:
        """Power off: only what was synced is left."""
        self.alive = False
        self.committer.jobs.clear()
        self.lab.net.receivers.pop(self.name, None)
        for other in self.lab.members:
            self.lab.disconnect(self.name, other)

    def wipe(self) -> None:
        """The power goes, and the disk with it; an empty one takes its place."""
        self.crash()
        self.lab.disks += 1
        self.disk = Disk(DiskIdentity(f"{self.name}-disk-{self.lab.disks}", joined=False))

    def restart(self, *, applied_index: int = 0) -> None:
        """Start again and connect to whoever is up."""
        self.start(applied_index=applied_index)
        for other in self.lab.members:
            self.lab.connect(self.name, other)

    def received(self, source: str, message: Any) -> None:
        if self.alive:
            self.raft.received(source, message)

    def _synced(self) -> None:
        if self.alive:
            self.raft.synced()

    def _disk_failed(self, error: BaseException) -> None:
        raise error

    # Owner
    def say(self, member: str, message: Any) -> bool:
        return self.lab.net.put(self.name, member, decode(encode(message)))

    def deliver(self, index: int, payload: bytes) -> None:
        if payload == self.fail_at:
            raise ValueError("a bug in the state machine")
        self.delivered.append((index, payload))

    def wake(self) -> None:
        self.wakes += 1

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload in self.delivered]

    @property
    def log(self) -> list[tuple[int, int]]:
        return [(entry[1], entry[2]) for entry in self.journal[:]]


class Lab:
    """Members 'a', 'b', ... are replicas; names in `witnesses` are not."""

    def __init__(
        self,
        clock: Clock,
        names: str,
        *,
        witnesses: str = "",
        settings: RaftSettings | None = None,
        new_disks: bool = False,
    ) -> None:
        self.clock = clock
        self.net = Net()
        self.settings = settings or RaftSettings(timing=TIMING, trim_reserve=0)
        self.members = {
            name: LabMember(self, name, MemberRole.witness if name in witnesses else MemberRole.replica)
            for name in names
        }
        self.disks = 0
        self.first = Configuration(0, [described(member.name, member.role) for member in self.members.values()])
        for member in self.members.values():
            if new_disks:
                member.disk = Disk(DiskIdentity(f"{member.name}-disk-0", joined=False))
            member.start()
        self.connect_all()

    def __getitem__(self, name: str) -> LabMember:
        return self.members[name]

    @property
    def alive(self) -> list[LabMember]:
        return [member for member in self.members.values() if member.alive]

    def connect(self, a: str, b: str) -> None:
        if a != b and self[a].alive and self[b].alive:
            self[a].raft.peer_connected(b)
            self[b].raft.peer_connected(a)

    def disconnect(self, a: str, b: str) -> None:
        for source, target in ((a, b), (b, a)):
            self.net.drop(source, target)
            if source != target and self[source].alive:
                self[source].raft.peer_disconnected(target)

    def connect_all(self) -> None:
        names = list(self.members)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                self.connect(a, b)

    def step(self, seconds: float = 0.005) -> None:
        self.clock.now += seconds
        for member in self.alive:
            member.raft.tick()
        self.net.run()
        for member in self.alive:
            if member.auto_sync:
                member.committer.sync()
        self.net.run()

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.step()

    def run_until(self, holds: Callable[[], bool], *, within: float) -> float:
        """Seconds of virtual time that it took."""
        start = self.clock.now
        while not holds():
            assert self.clock.now - start < within, f"not within {within} s"
            self.step()
        return self.clock.now - start

    def leader(self) -> LabMember | None:
        leading = [member for member in self.alive if member.raft.is_leader]
        return max(leading, key=lambda member: member.raft.term, default=None)

    def elect(self, name: str) -> LabMember:
        """Make `name` lead by letting only its timer run out."""
        for member in self.alive:
            if member.raft.is_leader and member.name != name:
                member.raft.step_down()
        self.clock.now += self.settings.timing.election_ms_min / 1000
        for _ in range(200):
            for member in self.alive:
                late = -1.0 if member.name == name else 10.0
                member.raft._SyncObj__raftElectionDeadline = self.clock.now + late
            self.step()
            if self[name].raft.is_leader:
                self.run(0.1)
                return self[name]
        raise AssertionError(f"{name} does not win")

    def propose(self, name: str, *payloads: bytes) -> None:
        for payload in payloads:
            self[name].raft.append(payload)


# -- the library as published, for comparison ----------------------------------------------------


class StockTransport(Transport):
    def __init__(self, net: Net, name: str) -> None:
        super().__init__(None, None, None)
        self.net, self.name = net, name
        self.nodes: dict[str, Node] = {}
        net.receivers[name] = lambda source, message: self._onMessageReceived(self.node(source), message)

    def node(self, name: str) -> Node:
        return self.nodes.setdefault(name, Node(name))

    def send(self, node: Node, message: Any) -> bool:
        return self.net.put(self.name, node.id, copy.deepcopy(message))


class Stock(SyncObj):
    """PySyncObj 0.3.17 with a list as its state machine; commands are what `put` replicates."""

    def __init__(self, net: Net, name: str, others: list[str], **conf: Any) -> None:
        defaults: dict[str, Any] = {
            "autoTick": False,
            "raftMinTimeout": 0.3,
            "raftMaxTimeout": 0.6,
            "appendEntriesPeriod": 0.05,
            "logCompactionMinTime": 10**9,
            "logCompactionMinEntries": 10**9,
        }
        self.lab_name = name
        self.link = StockTransport(net, name)
        super().__init__(name, others, SyncObjConf(**(defaults | conf)), nodeClass=Node, transport=self.link)
        self.values: list[Any] = []

    @syncobj.replicated
    def put(self, value: Any) -> Any:
        self.values.append(value)
        return value

    @property
    def log(self) -> list[tuple[int, int]]:
        return [(entry[1], entry[2]) for entry in self._SyncObj__raftLog[:]]


class StockLab:
    def __init__(self, clock: Clock, names: str, cls: type[Stock] = Stock, **conf: Any) -> None:
        self.clock, self.net = clock, Net()
        self.members = {n: cls(self.net, n, [o for o in names if o != n], **conf) for n in names}
        for a in names:
            for b in names:
                if a != b:
                    link = self.members[a].link
                    link._onNodeConnected(link.node(b))

    def __getitem__(self, name: str) -> Stock:
        return self.members[name]

    def step(self, seconds: float = 0.005) -> None:
        self.clock.now += seconds
        for member in self.members.values():
            member.doTick(0)
        self.net.run()

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.step()

    def elect(self, name: str, among: str | None = None) -> Stock:
        for _ in range(200):
            for member in self.members.values():
                late = -1.0 if member.lab_name == name else 10.0
                member._SyncObj__raftElectionDeadline = self.clock.now + late
            self.step()
            if self[name]._isLeader():
                self.run(0.2)
                return self[name]
        raise AssertionError(f"{name} does not win")
