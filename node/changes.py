"""Takes what operators change about the cluster itself to the member that leads, and brings back how it ended.

Any member may be asked. A change is made once however often it is asked for, so whoever does not hear how it ended
asks again.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from cluster.consensus.engine import ConsensusError, EngineStatus, PeerStatus, Role
from cluster.topology import Member, MemberRole
from cluster.wire import LeadershipView
from node.errors import (
    ChangeUnknown,
    InternalError,
    MemberBehind,
    MemberIsWitness,
    MemberNotFound,
    MemberNotReached,
    NodeError,
    NoLeader,
    Overloaded,
)

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.changes")

ASK = "change"
TOLD = "changed"
WAITING_MAX = 64
"""Changes that one member has under way or in its queue."""
LOOK_S = 0.02
ASK_AGAIN_S = 0.5
"""A question or its answer may be lost with a link."""
CLOSE_ENTRIES = 64
"""Entries that a successor may lack when the hand-over begins: new commands wait from then on."""
HAND_OVER_MS = 1_500
"""Longest that new commands wait for a hand-over. Another leader is elected well within it."""


class Transfer(Struct, frozen=True, forbid_unknown_fields=True, tag="transfer"):
    """target: empty for the replica that is furthest. source: only while this member leads; empty for whoever does."""

    target: str = ""
    source: str = ""


class Ask(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: int
    timeout_ms: int
    change: Transfer


class Told(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How it ended at the leader. word: of a NodeError, or empty and `outcome` holds."""

    number: int
    word: str
    message: str
    outcome: LeadershipView | None


class Group(Protocol):
    """The part of the engine that is used here."""

    def status(self) -> EngineStatus: ...

    def send(self, member: str, kind: str, body: bytes) -> bool: ...

    async def read_index(self, *, timeout_ms: int) -> int: ...

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool: ...


_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_decode_told = msgspec.msgpack.Decoder(Told).decode
_ERRORS: dict[str, type[NodeError]] = {
    kind.error: kind
    for kind in (ChangeUnknown, MemberBehind, MemberIsWitness, MemberNotFound, MemberNotReached, NoLeader, Overloaded)
}


class Changes:
    """One member's side of it, as the one that was asked and as the one that leads. One event loop."""

    def __init__(
        self, engine: Group, *, members: Callable[[], Mapping[str, Member]], successors: Callable[[], list[str]]
    ) -> None:
        """members: by name, of now. successors: full replicas that may lead next, the one that is furthest first."""
        self._engine = engine
        self._members = members
        self._successors = successors
        self._one_at_a_time = asyncio.Lock()
        # A member that starts again must not take an answer that was meant for its former self.
        self._number = secrets.randbits(48)
        self._asked: dict[int, asyncio.Future[Told]] = {}
        self._leading: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._waiting = 0

    async def transfer(self, target: str = "", *, source: str = "", timeout_ms: int) -> LeadershipView:
        """Hand leadership to `target`, or to the replica that is furthest; returns who leads then.

        source: do so only while this member leads. When `target` leads, or `source` does not, all is well already.

        Raises MemberNotFound, MemberIsWitness, MemberNotReached, MemberBehind, NoLeader, Overloaded: nothing was done.
        ChangeUnknown: the time was over; it may yet happen.
        """
        return await self._ask(Transfer(target, source), timeout_ms)

    def received(self, member: str, kind: str, body: bytes) -> bool:
        """A message of another member; False: not one of ours. Raises ValueError: it can't be read."""
        try:
            if kind == ASK:
                self._take_in(member, _decode_ask(body))
            elif kind == TOLD:
                told = _decode_told(body)
                asked = self._asked.get(told.number)
                if asked is not None and not asked.done():
                    asked.set_result(told)
            else:
                return False
        except msgspec.MsgspecError as error:
            raise ValueError(f"message {kind!r} of {member}: {error}") from error
        return True

    async def stop(self) -> None:
        tasks = list(self._leading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the member that was asked ----

    async def _ask(self, change: Transfer, timeout_ms: int) -> LeadershipView:
        if self._waiting >= WAITING_MAX:
            raise Overloaded("too many changes of the cluster are under way; try again")
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        self._number += 1
        number = self._number
        unsure = False
        self._waiting += 1
        try:
            while (left_ms := self._left_ms(deadline)) > 0:
                status = self._engine.status()
                if change == Transfer():
                    # Asked again, it must not move on from whoever took over.
                    change = Transfer(source=status.leader or "")
                told: Told | None = None
                if status.role is Role.leader:
                    told = await self._lead(number, change, left_ms)
                elif status.leader is not None and self._engine.send(
                    status.leader, ASK, _encode(Ask(number, left_ms, change))
                ):
                    told = await self._answer(number, status, deadline)
                    unsure = unsure or told is None
                if told is not None and told.outcome is not None:
                    return told.outcome
                if told is not None and told.word != NoLeader.error:
                    raise _ERRORS.get(told.word, InternalError)(told.message)
                await asyncio.sleep(LOOK_S)
        finally:
            self._waiting -= 1
        if unsure:
            raise ChangeUnknown(
                "the leader did not say in time how it ended: it may yet be made; ask for the same again, or look"
            )
        raise NoLeader("no leader in time; nothing was done: try again, or ask another member")

    async def _answer(self, number: int, asked: EngineStatus, deadline: float) -> Told | None:
        """What the leader says that was asked; None: it is time to ask again, this one or another."""
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._asked[number] = told
        again_at = min(deadline, asyncio.get_running_loop().time() + ASK_AGAIN_S)
        try:
            while self._left_ms(again_at) > 0 and not told.done():
                await asyncio.wait({told}, timeout=LOOK_S)
                status = self._engine.status()
                if (status.leader, status.term) != (asked.leader, asked.term):
                    break
            return told.result() if told.done() else None
        finally:
            del self._asked[number]

    @staticmethod
    def _left_ms(deadline: float) -> int:
        return int((deadline - asyncio.get_running_loop().time()) * 1000)

    # ---- the member that leads ----

    def _take_in(self, member: str, ask: Ask) -> None:
        if (member, ask.number) in self._leading:
            return  # it asks again because it has heard nothing yet
        if len(self._leading) >= WAITING_MAX:
            self._tell(member, Told(ask.number, Overloaded.error, "too many changes are under way; try again", None))
            return
        task = asyncio.get_running_loop().create_task(self._lead_for(member, ask), name="change")
        self._leading[member, ask.number] = task
        task.add_done_callback(lambda _: self._leading.pop((member, ask.number), None))

    async def _lead_for(self, member: str, ask: Ask) -> None:
        self._tell(member, await self._lead(ask.number, ask.change, ask.timeout_ms))

    def _tell(self, member: str, told: Told) -> None:
        # When this can't be sent, the other member asks again.
        self._engine.send(member, TOLD, _encode(told))

    async def _lead(self, number: int, change: Transfer, timeout_ms: int) -> Told:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._one_at_a_time.acquire()
        except TimeoutError:
            return Told(number, Overloaded.error, "another change is under way: try again", None)
        try:
            outcome = await self._hand_over(change, asyncio.get_running_loop().time() + timeout_ms / 1000)
        except NodeError as error:
            return Told(number, error.error, error.message, None)
        except ConsensusError as error:
            return Told(number, NoLeader.error, str(error), None)
        finally:
            self._one_at_a_time.release()
        log.info("leadership", leader=outcome.leader, term=outcome.term)
        return Told(number, "", "", outcome)

    async def _hand_over(self, change: Transfer, deadline: float) -> LeadershipView:
        engine = self._engine
        status = engine.status()
        me = status.member
        if status.role is not Role.leader or self._members()[me].role is MemberRole.witness:
            raise NoLeader(f"{me} does not lead")
        self._check(change.target)
        if change.target == me or change.source not in ("", me):
            await engine.read_index(timeout_ms=max(1, self._left_ms(deadline)))
            return self._leadership()
        target = await self._caught_up(change.target, deadline)
        left_ms = max(1, self._left_ms(deadline))
        log.info("hands leadership over", target=target, asked_for=change.target)
        moved = await engine.transfer_leadership(target, timeout_ms=min(left_ms, HAND_OVER_MS))
        if not moved or engine.status().leader is None:
            raise ChangeUnknown(f"{target} does not lead yet, and may yet take over: look who leads, or ask again")
        found = self._leadership()
        if change.target and found.leader != change.target:
            raise ChangeUnknown(f"{found.leader} leads now, not {change.target}: look who leads, or ask again")
        return found

    def _leadership(self) -> LeadershipView:
        status = self._engine.status()
        return LeadershipView(status.leader or "", status.term)

    def _check(self, target: str) -> None:
        if not target:
            return
        member = self._members().get(target)
        if member is None:
            raise MemberNotFound(f"no member {target[:64]!r}; there are {', '.join(self._members())}")
        if member.role is MemberRole.witness:
            raise MemberIsWitness(f"{target} is a witness: it keeps no state, so it can't lead for clients")

    async def _caught_up(self, wanted: str, deadline: float) -> str:
        """Who takes over, once it has nearly all: commands wait only while it gets the rest."""
        loop = asyncio.get_running_loop()
        while True:
            successors = self._successors()
            target = wanted or (successors[0] if successors else "")
            if not target:
                raise MemberNotReached("no other full replica is connected and stays: there is nobody to hand over to")
            status = self._engine.status()
            peer = next((peer for peer in status.peers if peer.name == target), None)
            if target not in successors or peer is None:
                raise MemberNotReached(f"{status.member} leads and has no connection to {target}, or {target} leaves")
            lag = self._lag(status, peer)
            if lag <= CLOSE_ENTRIES:
                return target
            if loop.time() + HAND_OVER_MS / 1000 >= deadline:
                raise MemberBehind(f"{target} lacks {lag} entries of the log: try again when it has caught up")
            await asyncio.sleep(LOOK_S)

    @staticmethod
    def _lag(status: EngineStatus, peer: PeerStatus) -> int:
        return status.last_index if not peer.joined else max(0, status.last_index - peer.matched_index)
