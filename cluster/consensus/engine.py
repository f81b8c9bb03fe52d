"""The one interface that the rest of Tiebreak has to consensus: a log of batches, and who leads it.

Three things stand behind it: PySyncObj hardened (what runs), the stock library and the simulator
(what tests compare with).
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from msgspec import Struct


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


class PeerStatus(Struct, frozen=True):
    """What this member knows of another. matched_index is known to a leader only, else 0."""

    name: str
    connected: bool
    matched_index: int
    stored_index: int
    heard_ms_ago: int
    clock_offset_ms: int | None = None
    voter: bool = True
    log_full: bool = False


class EngineStatus(Struct, frozen=True):
    """Indexes: first and last in the log, durable (synced here), committed, applied here, stored here.

    voter: False on a new disk, until this member has caught up: it counts for nothing yet.
    refusal: why a leader takes no proposals, or a witness's log is at its limit; empty when all is well.
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
    voter: bool = True
    refusal: str = ""


class Engine(Protocol):
    """Consensus on one event loop. All calls and callbacks happen on that loop.

    on_committed(index, payload): every committed entry of ours, in order, exactly once, only after it is
        synced here. It must not raise: if it does, the process stops. A witness never calls it.
    on_role(): role, leader or quorum changed.
    on_message(member, kind, body): an application message from another member.
    """

    on_committed: Callable[[int, bytes], None]
    on_role: Callable[[], None]
    on_message: Callable[[str, str, bytes], None]

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

    def set_stored_index(self, index: int) -> None:
        """Tell what the store holds durably: the log may be trimmed up to the least of all full replicas'."""
        ...

    def send(self, member: str, kind: str, body: bytes) -> bool:
        """Send an application message to another member. False: not connected or its buffer is full; not sent."""
        ...

    def status(self) -> EngineStatus: ...
