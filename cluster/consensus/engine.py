"""The one interface that the rest of Tiebreak has to consensus: a log of batches, and who leads it.

Behind it stand PySyncObj hardened (`hardened.py`, what runs), the library as published (`bench/stock_member.py`) and
what tests put in its place. The simulator runs whole clusters without sockets: below this interface it puts its own
network, disk and clock around `raft.py` and `journal.py`, or around the library (`chaos/sim/engines.py`).
"""

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from cluster.consensus.messages import SnapshotOffer
from cluster.consensus.snapshots import SnapshotHome
from cluster.membership import Change, Configuration
from cluster.topology import Standing


class Role(StrEnum):
    leader = "leader"
    follower = "follower"
    candidate = "candidate"


class ConsensusError(Exception):
    """Base. `definite`: nothing was logged, so the command can't take effect."""

    definite = True
    code = "consensus_error"


class NoLeader(ConsensusError):
    """No leader is known. Nothing was logged."""

    code = "no_leader"


class NotLeader(ConsensusError):
    """This member does not lead. Nothing was logged."""

    code = "no_leader"


class NoQuorum(ConsensusError):
    """A leader without a majority in reach: nothing was logged, no read may be served."""

    code = "no_quorum"


class Overloaded(ConsensusError):
    """A bounded queue is full. Nothing was logged."""

    code = "overloaded"


class ChangeRefused(ConsensusError):
    """The members stay as they are: this change can't be, or not now. Nothing was logged."""

    code = "change_refused"


class ChangeTooEarly(ChangeRefused):
    """Not within the time: another change is under way, or a learner has not caught up. Nothing was logged."""

    code = "change_too_early"


class ChangeUnknown(ConsensusError):
    """The change of the members was logged, and is not known to be committed. It may still come to hold."""

    definite = False
    code = "outcome_unknown"


class GroupStatus(Struct, frozen=True):
    """The members as this member's log has them. index: of the entry that says so, 0 when none did."""

    index: int
    committed: bool
    configuration: Configuration


class PeerStatus(Struct, frozen=True):
    """What this member knows of another. matched_index is known to a leader only, else 0.

    joined: False on a new disk that has not caught up: it counts for nothing yet.
    """

    name: str
    connected: bool
    matched_index: int
    stored_index: int
    heard_ms_ago: int
    clock_offset_ms: int | None = None
    joined: bool = True
    log_full: bool = False
    standing: Standing = Standing.voter


class EngineStatus(Struct, frozen=True):
    """Indexes: first and last in the log, durable (synced here), committed, applied here, stored here.

    joined: False on a new disk, until this member has caught up: it counts for nothing yet.
    refusal: why a leader takes no proposals, or a witness's log is at its limit; empty when all is well.
    barred: why this member may not lead, because of its clock; empty when it may.
    """

    member: str
    role: Role
    leader: str | None
    term: int
    has_quorum: bool
    first_index: int
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    stored_index: int
    peers: list[PeerStatus]
    joined: bool = True
    refusal: str = ""
    standing: Standing = Standing.voter
    barred: str = ""


class Engine(Protocol):
    """Consensus on one event loop. All calls and callbacks happen on that loop.

    on_committed(index, payload): every committed entry of ours, in order, exactly once, only after it is
        synced here. It must not raise: if it does, the process stops. A witness never calls it.
    on_role(): role, leader or quorum changed.
    on_message(member, kind, body): an application message from another member.
    on_configuration(): the members changed, or a change of them was committed.
    snapshots: where snapshots come from and go to; set before `start`. Without it none is sent or taken.
    """

    on_committed: Callable[[int, bytes], None]
    on_role: Callable[[], None]
    on_message: Callable[[str, str, bytes], None]
    on_configuration: Callable[[], None]
    snapshots: SnapshotHome | None

    async def start(self, *, applied_index: int) -> None:
        """Open the journal and the links; the first entry delivered is applied_index + 1."""
        ...

    async def stop(self) -> None: ...

    def propose(self, payload: bytes) -> None:
        """Put one entry in the log. Its outcome is told by on_committed, or never.

        Raises NotLeader, NoQuorum or Overloaded: nothing was logged.
        """
        ...

    async def read_index(self, *, timeout_ms: int) -> int:
        """An index such that whoever has applied it may answer a linearizable read that began before this call.

        A leader confirms with a majority that it still leads; many calls share one round. A follower asks
        the leader. Raises NoLeader or NoQuorum, within the timeout.
        """
        ...

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        """Hand leadership to `target`, or to the replica that is furthest. True when another member leads."""
        ...

    async def change_membership(self, change: Change, *, timeout_ms: int) -> GroupStatus:
        """Add, promote, demote or remove one member; returns when that is committed. A repeat changes nothing.

        It waits for a change that is under way, and for a learner to catch up before it becomes a voter. A leader
        that is asked to remove or demote itself hands leadership over, and raises NotLeader: ask the next one.
        Raises NotLeader, NoQuorum, ChangeRefused (nothing was logged); ChangeUnknown (logged, perhaps in vain).
        """
        ...

    def group(self) -> GroupStatus: ...

    def needs_snapshot(self, offer: SnapshotOffer) -> bool:
        """This member's log does not lead to the snapshot's index. Also after `stop`."""
        ...

    def set_stored_index(self, index: int) -> None:
        """Tell what the store holds durably: the log may be trimmed up to the least of all full replicas'."""
        ...

    def send(self, member: str, kind: str, body: bytes) -> bool:
        """Send an application message to another member. False: not connected or its buffer is full; not sent."""
        ...

    def status(self) -> EngineStatus: ...

    @property
    def counters(self) -> Counter[str]:
        """What was refused, and other rare things, since the start. For metrics."""
        ...
