"""PySyncObj as published, behind the seam of the simulator: what the same faults do to it.

It is treated kindly: its journal keeps every write through a crash, as a process crash does, though the library
never syncs and a power cut would take them. All members are replicas, compaction is off, and members start as the
library has it: by applying the whole log anew.
"""

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from chaos.sim.disk import Disk, DiskCommitter, DiskStorage
from chaos.sim.member import Core, Member
from cluster.consensus.audited import LibraryJournal, construct_with_journal
from cluster.consensus.journal import Entry, Vote

Told = Callable[[Any, Any], None]


class WrittenJournal(LibraryJournal):  # type: ignore[misc]
    """Every write is on the disk at once."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    @property
    def first_index(self) -> int:
        return self.disk.first_index

    @property
    def last_index(self) -> int:
        return self.disk.last_index

    def entry(self, index: int) -> Entry:
        return self.disk.entries[index - self.disk.first_index]

    def add(self, command: bytes, idx: int, term: int) -> None:
        self.disk.entries.append((command, idx, term))

    def clear(self) -> None:
        self.disk.entries.clear()

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        del self.disk.entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:
        del self.disk.entries[:entryTo]

    def __len__(self) -> int:
        return len(self.disk.entries)

    def __getitem__(self, item: Any) -> Any:
        return self.disk.entries[item]

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        self.disk.vote = Vote(term, votedForNodeId)

    def getCurrentTerm(self) -> int:
        return self.disk.vote.term

    def getVotedForNodeId(self) -> str | None:
        return self.disk.vote.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self.disk.commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return max(1, self.disk.commit_index)

    def onOneSecondTimer(self) -> None:
        pass

    def _destroy(self) -> None:
        pass


class StockLink(Transport):  # type: ignore[misc]
    def __init__(self, member: Member) -> None:
        super().__init__(None, None, None)
        self.member = member
        self.nodes: dict[str, Node] = {}

    def node(self, name: str) -> Node:
        return self.nodes.setdefault(name, Node(name))

    def send(self, node: Node, message: Any) -> bool:
        # A send takes time; without it, the library's loop that ends by the clock would never end here.
        self.member.around.world.clock[0] += 2e-5
        return self.member.say(node.id, StockMessage(pickle.dumps(message)))


class StockMessage(Struct, frozen=True):
    frame: bytes


class StockCore(SyncObj):  # type: ignore[misc]
    """The published class; its commands are batches."""

    def __init__(self, member: Member) -> None:
        timing = member.around.timing
        self.member = member
        self.journal = WrittenJournal(member.disk)
        self.link = StockLink(member)
        self.counters: Counter[str] = Counter()
        self.stored_index = 0
        self.barred: str | None = None
        self.transferring = False
        self.hold_index: int | None = None
        self.stranded: list[str] = []
        self.full_members: list[str] = []
        self.joined = True
        conf = SyncObjConf(
            autoTick=False,
            dynamicMembershipChange=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=timing.heartbeat_ms / 1000,
            raftMinTimeout=timing.election_ms_min / 1000,
            raftMaxTimeout=timing.election_ms_max / 1000,
            leaderFallbackTimeout=timing.election_ms_min / 1000,
            appendEntriesBatchSizeBytes=max(1_000, member.around.batch_bytes),
            logCompactionMinTime=10**9,
            logCompactionMinEntries=10**9,
        )
        others = [name for name in member.around.members if name != member.name]
        construct_with_journal(
            self.journal,
            lambda: super(StockCore, self).__init__(member.name, others, conf, nodeClass=Node, transport=self.link),
        )
        self._poller.poll = lambda _timeout: None

    @replicated  # type: ignore[untyped-decorator]
    def put(self, payload: bytes) -> None:
        self.member.deliver(self.applied_index + 1, payload)

    @property
    def is_leader(self) -> bool:
        return bool(self._isLeader())

    @property
    def caretaker(self) -> bool:
        return False

    @property
    def has_quorum(self) -> bool:
        return len(self._SyncObj__connectedNodes) * 2 > len(self._SyncObj__otherNodes)

    @property
    def leader(self) -> str | None:
        node = self._getLeader()
        return None if node is None else str(node.id)

    @property
    def term(self) -> int:
        return int(self.raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self.raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self.raftLastApplied)

    def append(self, payload: bytes) -> None:
        self.put(payload)

    def read(self, answer: Callable[[int | None], None]) -> None:
        """The library has no linearizable read; whoever believes that it leads answers."""
        answer(self.applied_index if self.is_leader else None)

    def received(self, member: str, message: StockMessage) -> bool:
        self.link._onMessageReceived(self.link.node(member), pickle.loads(message.frame))
        return True

    def peer_connected(self, member: str) -> None:
        self.link._onNodeConnected(self.link.node(member))

    def peer_disconnected(self, member: str) -> None:
        self.link._onNodeDisconnected(self.link.node(member))

    def tick(self) -> None:
        self.doTick(0)

    def synced(self) -> bool:
        return True

    def transfer_to(self, member: str) -> None:
        self.transferLeadership(self.link.node(member))

    def best_successor(self) -> str | None:
        found = [(self._SyncObj__raftMatchIndex.get(node, 0), node.id) for node in self._SyncObj__connectedNodes]
        return max(found)[1] if found else None

    def disk_of(self, member: str) -> Any:
        return None

    def progress(self, member: str) -> Any:
        return StockProgress(self._SyncObj__raftMatchIndex.get(self.link.node(member), 0))


class StockProgress:
    def __init__(self, matched_index: int) -> None:
        self.matched_index = matched_index


class Stock:
    name = "stock"
    durable = False

    def start(self, member: Member, storage: DiskStorage, committer: DiskCommitter, applied_index: int) -> Core:
        return StockCore(member)
