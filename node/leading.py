"""What a leader does when operators change the cluster itself: hands leadership over, and changes the members."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog
from msgspec import Struct

from cluster.consensus import engine as consensus
from cluster.consensus.engine import ConsensusError, EngineStatus, GroupStatus, PeerStatus, Role
from cluster.membership import Add, Change, Configuration, Demote, Promote, Remove
from cluster.topology import Member, MemberRole, Standing
from cluster.wire import ClusterMember, ClusterView, LeadershipView
from node.errors import (
    ChangeRefused,
    ChangeTooEarly,
    ChangeUnknown,
    MemberBehind,
    MemberIsWitness,
    MemberNotFound,
    MemberNotReached,
    MemberNotVoter,
    NodeError,
    NoLeader,
    NoQuorum,
    Overloaded,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.leading")

LOOK_S = 0.02
CLOSE_ENTRIES = 64
"""Entries that a successor may lack when the hand-over begins: new commands wait from then on."""
HAND_OVER_MS = 1_500
"""Longest that new commands wait for a hand-over. Another leader is elected well within it."""


class Transfer(Struct, frozen=True, forbid_unknown_fields=True, tag="transfer"):
    """target: empty for the replica that is furthest. source: only while this member leads; empty for whoever does."""

    target: str = ""
    source: str = ""


class Look(Struct, frozen=True, forbid_unknown_fields=True, tag="look"):
    """Changes nothing: who the members are, as the leader knows."""


Asked = Transfer | Look | Add | Promote | Demote | Remove
View = LeadershipView | ClusterView


class Group(Protocol):
    """The part of the engine that is used here."""

    def status(self) -> EngineStatus: ...

    def group(self) -> GroupStatus: ...

    async def read_index(self, *, timeout_ms: int) -> int: ...

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool: ...

    async def change_membership(self, change: Change, *, timeout_ms: int) -> GroupStatus: ...


class Leading:
    """What is asked of a leader. One event loop; any number may be asked for at once."""

    def __init__(self, engine: Group, successors: Callable[[], list[str]]) -> None:
        """successors: full replicas that vote, are connected and stay, the one that is furthest first."""
        self._engine = engine
        self._successors = successors
        self._handing_over = asyncio.Lock()

    async def do(self, asked: Asked, *, timeout_ms: int) -> View:
        """Do it, if this member leads, and return how things stand then. Whatever holds already is done.

        Raises NoLeader or NoQuorum (ask again, here or at another), ChangeUnknown, or the NodeError that says why not.
        """
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        status = self._engine.status()
        if status.role is not Role.leader or self._member(status.member).role is MemberRole.witness:
            raise NoLeader(f"{status.member} does not lead")
        try:
            match asked:
                case Transfer():
                    return await self._one_hand_over(asked, deadline)
                case Look():
                    await self._engine.read_index(timeout_ms=_left_ms(deadline))
                case _:
                    self._check_known(asked)
                    await self._engine.change_membership(asked, timeout_ms=_left_ms(deadline))
                    log.info("members", change=type(asked).__name__.lower(), of=_name(asked))
            return cluster_view(self._engine)
        except ConsensusError as error:
            raise _of_consensus(error) from error

    # ---- members ----

    def _check_known(self, change: Change) -> None:
        """A name that was removed is known: what is asked of it is answered as the first time."""
        configuration = self._engine.group().configuration
        if isinstance(change, Add) or change.name in configuration.removed:
            return
        self._member(change.name)

    def _member(self, name: str) -> Member:
        configuration = self._engine.group().configuration
        member = configuration.member(name)
        if member is None:
            raise MemberNotFound(f"no member {name[:64]!r}; there are {_names(configuration)}")
        return member

    # ---- leadership ----

    async def _one_hand_over(self, asked: Transfer, deadline: float) -> LeadershipView:
        try:
            async with asyncio.timeout_at(deadline):
                await self._handing_over.acquire()
        except TimeoutError:
            raise Overloaded("leadership is being handed over already: try again") from None
        try:
            return await self._hand_over(asked, deadline)
        finally:
            self._handing_over.release()

    async def _hand_over(self, asked: Transfer, deadline: float) -> LeadershipView:
        engine = self._engine
        status = engine.status()
        me = status.member
        if status.role is not Role.leader:
            raise NoLeader(f"{me} leads no more")
        if asked.target:
            self._check_may_lead(asked.target)
        if asked.target == me or asked.source not in ("", me):
            await engine.read_index(timeout_ms=_left_ms(deadline))
            return self._leadership()
        target = await self._caught_up(asked.target, deadline)
        log.info("hands leadership over", target=target, asked_for=asked.target)
        moved = await engine.transfer_leadership(target, timeout_ms=min(_left_ms(deadline), HAND_OVER_MS))
        found = self._leadership()
        if not moved or not found.leader:
            raise ChangeUnknown(f"{target} does not lead yet, and may yet take over: look who leads, or ask again")
        if asked.target and found.leader != asked.target:
            raise ChangeUnknown(f"{found.leader} leads now, not {asked.target}: look who leads, or ask again")
        return found

    def _leadership(self) -> LeadershipView:
        status = self._engine.status()
        return LeadershipView(status.leader or "", status.term)

    def _check_may_lead(self, target: str) -> None:
        member = self._member(target)
        if member.role is MemberRole.witness:
            raise MemberIsWitness(f"{target} is a witness: it keeps no state, so it can't lead for clients")
        if member.standing is not Standing.voter:
            raise MemberNotVoter(f"{target} does not vote ({_words(member.standing)}), so it can't lead")

    async def _caught_up(self, wanted: str, deadline: float) -> str:
        """Who takes over, once it has nearly all: commands wait only while it gets the rest."""
        while True:
            successors = self._successors()
            target = wanted or (successors[0] if successors else "")
            if not target:
                raise MemberNotReached("no other full replica is connected and stays: there is nobody to hand over to")
            status = self._engine.status()
            peer = next((peer for peer in status.peers if peer.name == target), None)
            if target not in successors or peer is None:
                raise MemberNotReached(f"{status.member} leads and has no connection to {target}, or {target} leaves")
            lag = _lag(status, peer)
            if peer.joined and lag <= CLOSE_ENTRIES:
                return target
            if _left_ms(deadline) <= HAND_OVER_MS:
                raise MemberBehind(f"{target} lacks {lag} entries of the log: try again when it has caught up")
            await asyncio.sleep(LOOK_S)


def cluster_view(engine: Group) -> ClusterView:
    """The members as this member sees them."""
    status, group = engine.status(), engine.group()
    leads = status.role is Role.leader
    peers = {peer.name: peer for peer in status.peers}
    return ClusterView(
        member=status.member,
        leader=status.leader or "",
        term=status.term,
        configuration_index=group.index,
        committed=group.committed,
        generation=group.configuration.generation,
        members=[_seen(one, status, peers.get(one.name), leads=leads) for one in group.configuration.members],
        removed=list(group.configuration.removed),
    )


def _seen(member: Member, status: EngineStatus, peer: PeerStatus | None, *, leads: bool) -> ClusterMember:
    here = member.name == status.member
    return ClusterMember(
        name=member.name,
        site=member.site,
        role=member.role.value,
        standing=member.standing.value,
        peer_host=member.peer_host,
        peer_port=member.peer_port,
        api_host=member.api_host,
        api_port=member.api_port,
        connected=here or (peer is not None and peer.connected),
        joined=status.joined if here else peer is not None and peer.joined,
        lag=(0 if here else _lag(status, peer)) if leads else None,
        heard_ms_ago=0 if here or peer is None else peer.heard_ms_ago,
    )


def _lag(status: EngineStatus, peer: PeerStatus | None) -> int:
    return max(0, status.last_index - (0 if peer is None else peer.matched_index))


def _left_ms(deadline: float) -> int:
    return max(1, int((deadline - asyncio.get_running_loop().time()) * 1000))


def _name(change: Change) -> str:
    return change.member.name if isinstance(change, Add) else change.name


def _names(configuration: Configuration) -> str:
    return ", ".join(member.name for member in configuration.members)


def _words(standing: Standing) -> str:
    return standing.value.replace("_", " ")


def _of_consensus(error: ConsensusError) -> NodeError:
    match error:
        case consensus.ChangeTooEarly():
            return ChangeTooEarly(str(error))
        case consensus.ChangeRefused():
            return ChangeRefused(str(error))
        case consensus.ChangeUnknown():
            return ChangeUnknown(f"{error}: ask again for the same, or look")
        case consensus.NoQuorum():
            return NoQuorum(f"{error}; nothing was logged")
        case consensus.Overloaded():
            return Overloaded(str(error))
        case _:
            return NoLeader(str(error))
