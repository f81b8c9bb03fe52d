"""Takes what operators change about the cluster itself to the member that leads, and brings back how it ended.

Any member may be asked. A change is made once however often it is asked for, so whoever does not hear how it ended
asks again.
"""

import asyncio
import secrets
from typing import Protocol, TypeVar

import msgspec
import structlog
from msgspec import Struct

from cluster.consensus.engine import EngineStatus, Role
from cluster.membership import Change
from cluster.wire import ClusterView, LeadershipView
from node.errors import (
    ChangeRefused,
    ChangeTooEarly,
    ChangeUnknown,
    InternalError,
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
from node.leading import Asked, Leading, Look, Transfer

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.changes")

ASK = "change"
TOLD = "changed"
WAITING_MAX = 64
"""Changes that one member has under way, for itself or for others."""
LOOK_S = 0.02
ASK_AGAIN_S = 0.5
"""A question or its answer may be lost with a link."""
AGAIN = (NoLeader.error, NoQuorum.error)
"""Nothing was done, and it may go well in a moment: an election, most often."""

View = TypeVar("View", LeadershipView, ClusterView)


class Ask(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: int
    timeout_ms: int
    asked: Asked


class Told(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How it ended at the leader. word: of a NodeError, or empty and `outcome` holds a view, as msgpack."""

    number: int
    word: str
    message: str
    outcome: bytes = b""


class Sends(Protocol):
    """The part of the engine that is used here."""

    def status(self) -> EngineStatus: ...

    def send(self, member: str, kind: str, body: bytes) -> bool: ...


_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_decode_told = msgspec.msgpack.Decoder(Told).decode
_ERRORS: dict[str, type[NodeError]] = {
    kind.error: kind
    for kind in (
        ChangeRefused, ChangeTooEarly, ChangeUnknown, MemberBehind, MemberIsWitness, MemberNotFound, MemberNotReached,
        MemberNotVoter, NoLeader, NoQuorum, Overloaded,
    )
}  # fmt: skip


class Changes:
    """One member's side of it, as the one that was asked and as the one that leads. One event loop."""

    def __init__(self, engine: Sends, leading: Leading) -> None:
        self._engine = engine
        self._leading = leading
        # A member that starts again must not take an answer that was meant for its former self.
        self._number = secrets.randbits(48)
        self._asked: dict[int, asyncio.Future[Told]] = {}
        self._for_others: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._waiting = 0

    async def transfer(self, target: str = "", *, source: str = "", timeout_ms: int) -> LeadershipView:
        """Hand leadership to `target`, or to the replica that is furthest; returns who leads then.

        source: do so only while this member leads. When `target` leads, or `source` does not, all is well already.

        Raises MemberNotFound, MemberIsWitness, MemberNotVoter, MemberNotReached, MemberBehind, NoLeader, NoQuorum,
        Overloaded: nothing was done. ChangeUnknown: the time was over; it may yet happen.
        """
        return await self._ask(Transfer(target, source), LeadershipView, timeout_ms)

    async def change(self, change: Change, *, timeout_ms: int) -> ClusterView:
        """Change the members; returns them as they are then. One that holds already is done.

        Raises MemberNotFound, ChangeRefused, NoLeader, NoQuorum, Overloaded: nothing was logged.
        ChangeUnknown: the time was over; it may yet come to hold.
        """
        return await self._ask(change, ClusterView, timeout_ms)

    async def look(self, *, timeout_ms: int) -> ClusterView:
        """The members, as a leader that a majority confirms knows them. Raises NoLeader, NoQuorum, Overloaded."""
        try:
            return await self._ask(Look(), ClusterView, timeout_ms)
        except ChangeUnknown as error:
            raise NoLeader("the leader did not answer in time: try again, or ask another member") from error

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
        tasks = list(self._for_others.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the member that was asked ----

    async def _ask(self, asked: Asked, kind: type[View], timeout_ms: int) -> View:
        if self._waiting >= WAITING_MAX:
            raise Overloaded("too many changes of the cluster are under way; try again")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        self._number += 1
        number = self._number
        doubts: set[tuple[str, int]] = set()
        """(leader, term) of those who were asked and may have made the change, though none said so."""
        failed: NodeError = NoLeader("no leader in time; nothing was done: try again, or ask another member")
        self._waiting += 1
        try:
            while (left_s := deadline - loop.time()) > 0:
                status = self._engine.status()
                if asked == Transfer():
                    # Asked again, it must not move on from whoever took over.
                    asked = Transfer(source=status.leader or "")
                told, key = None, (status.leader or "", status.term)
                # A little less for a leader elsewhere: what it says at the end has yet to come back.
                if status.role is Role.leader:
                    told = await self._lead(number, asked, int(left_s * 1000))
                elif status.leader is not None and self._engine.send(
                    status.leader, ASK, _encode(Ask(number, int(left_s * 900), asked))
                ):
                    told = await self._answer(number, status, deadline)
                    if told is None:
                        doubts.add(key)
                if told is not None and not told.word:
                    return msgspec.msgpack.decode(told.outcome, type=kind)
                if told is not None:
                    failed = _ERRORS.get(told.word, InternalError)(told.message)
                    if not failed.definite:
                        doubts.add(key)
                    elif told.word not in AGAIN:
                        # What this leader says now is how it is, whatever it was asked before. Of others it knows not.
                        doubts.discard(key)
                        break
                    if not failed.definite and isinstance(asked, Transfer):
                        break  # another try would make commands wait once more
                await asyncio.sleep(LOOK_S)
        finally:
            self._waiting -= 1
        if doubts and failed.definite:
            raise ChangeUnknown(
                "the leader did not say in time how it ended: it may yet be made; ask for the same again, or look"
            )
        raise failed

    async def _answer(self, number: int, asked: EngineStatus, deadline: float) -> Told | None:
        """What the leader says that was asked; None: it is time to ask again, this one or another."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Told] = loop.create_future()
        self._asked[number] = told
        again_at = min(deadline, loop.time() + ASK_AGAIN_S)
        try:
            while loop.time() < again_at and not told.done():
                await asyncio.wait({told}, timeout=LOOK_S)
                status = self._engine.status()
                if (status.leader, status.term) != (asked.leader, asked.term):
                    break
            return told.result() if told.done() else None
        finally:
            del self._asked[number]

    # ---- the member that leads ----

    def _take_in(self, member: str, ask: Ask) -> None:
        if (member, ask.number) in self._for_others:
            return  # it asks again because it has heard nothing yet
        if len(self._for_others) >= WAITING_MAX:
            self._tell(member, Told(ask.number, Overloaded.error, "too many changes are under way; try again"))
            return
        task = asyncio.get_running_loop().create_task(self._lead_for(member, ask), name="change")
        self._for_others[member, ask.number] = task
        task.add_done_callback(lambda _: self._for_others.pop((member, ask.number), None))

    async def _lead_for(self, member: str, ask: Ask) -> None:
        self._tell(member, await self._lead(ask.number, ask.asked, ask.timeout_ms))

    def _tell(self, member: str, told: Told) -> None:
        # When this can't be sent, the other member asks again.
        self._engine.send(member, TOLD, _encode(told))

    async def _lead(self, number: int, asked: Asked, timeout_ms: int) -> Told:
        try:
            return Told(number, "", "", _encode(await self._leading.do(asked, timeout_ms=timeout_ms)))
        except NodeError as error:
            return Told(number, error.error, error.message)
        except Exception as error:
            log.exception("a change of the cluster failed", change=type(asked).__name__)
            return Told(number, InternalError.error, f"{type(error).__name__}: {error}")
