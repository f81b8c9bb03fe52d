"""What a submitter says of each command is true: done, definitely not, or unknown; and each gets its own answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from cluster.consensus.engine import NoQuorum as EngineNoQuorum
from cluster.consensus.engine import NotLeader, Role
from node.batcher import clock_us
from node.config import NodeLimits, NodeTiming
from node.errors import (
    DiskLow,
    NodeError,
    NoLeader,
    NoQuorum,
    NotReady,
    OutcomeUnknown,
    Overloaded,
)
from node.submit import FORWARD, REFUSED, Forward, Outcome, Prepared, Refusal, Submitter
from statemachine.codec import Envelope, decode_batch, encode_batch, encode_command
from statemachine.commands import BeatSession, CancelOrder, Deposit, OpenAccount, TimeStep
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.results import AnyResult, Done, Refused
from tests.node.fakes import SoloEngine


class Bench:
    """A submitter on a solo engine, with a real machine behind it."""

    def __init__(self, **limits: int) -> None:
        self.engine = SoloEngine()
        self.backing = MemoryBacking()
        self.machine = Machine(self.backing)
        self.limits = NodeLimits(**limits)
        timing = NodeTiming(resend_ms=100)
        self.submitter = Submitter(self.engine, self, self.limits, timing, witnesses=["tiebreaker"])
        self.engine.on_committed = self.committed
        self.engine.on_role = self.submitter.role_changed
        self.submitter.role_changed()
        self.submitter.set_refusal(None)

    def result(self, index: int, ordinal: int) -> AnyResult | None:
        from statemachine.codec import decode_results  # noqa: PLC0415

        held = self.backing.results.get(index)
        return None if held is None else decode_results(held)[ordinal]

    def committed(self, index: int, payload: bytes) -> None:
        applied = self.machine.apply(index, payload)
        self.backing.write(applied)
        self.submitter.applied(applied, payload)

    async def submit(self, *prepared: Prepared, timeout_ms: int = 1_000) -> list[Outcome]:
        return await self.submitter.submit(prepared, timeout_ms=timeout_ms)

    def start(self, *prepared: Prepared, timeout_ms: int = 1_000) -> asyncio.Future[list[Outcome]]:
        return self.submitter.start(prepared, timeout_ms=timeout_ms)

    def follow(self, leader: str | None, term: int = 2) -> None:
        self.engine.changed(role=Role.follower, leader=leader, term=term)

    def forwarded(self, since: int = 0) -> list[Forward]:
        decode = msgspec.msgpack.Decoder(Forward).decode
        return [decode(body) for _, kind, body in self.engine.sent[since:] if kind == FORWARD]

    def commit(self, *envelopes: Envelope) -> None:
        """An entry of another leader."""
        self.engine.commit(encode_batch(clock_us(), list(envelopes)))


def account(number: int, *, key: str | None = None) -> Prepared:
    command = OpenAccount(f"account-{number}")
    return Prepared(Envelope("@custodian", f"k{number}" if key is None else key, 0, encode_command(command)))


def cancel(number: int, scope: str = "alice") -> Prepared:
    envelope = Envelope(scope, f"c{number}", 0, encode_command(CancelOrder(scope, number)))
    return Prepared(envelope, is_cancel=True)


def run(talk: Callable[[Bench], Awaitable[None]], **limits: int) -> None:
    async def main() -> None:
        await talk(Bench(**limits))

    asyncio.run(main())


def errors(outcomes: list[Outcome]) -> list[type[Any]]:
    return [type(outcome.result) for outcome in outcomes]


def test_a_leader_answers_in_order() -> None:
    async def talk(bench: Bench) -> None:
        outcomes = await bench.submit(account(1), account(1, key="other"), account(2))
        assert errors(outcomes) == [Done, Refused, Done]
        assert [outcome.index for outcome in outcomes] == [1, 1, 1]
        again = await bench.submit(account(1))
        assert (again[0].index, again[0].replay, type(again[0].result)) == (1, True, Done)
        assert bench.submitter.waiting == 0

    run(talk)


def test_what_waits_together_goes_into_one_batch() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.hold = True
        futures = [bench.start(account(number)) for number in range(3)]
        await asyncio.sleep(0.01)
        assert bench.engine.proposed == 1
        futures += [bench.start(account(number + 10 * batch)) for batch in (1, 2, 3) for number in range(1)]
        await asyncio.sleep(0.01)
        assert bench.engine.proposed == 2
        for batch in range(4, 10):
            futures.append(bench.start(account(batch * 10)))
            await asyncio.sleep(0.01)
        # The pipe holds four batches; the rest waits and leaves together.
        assert bench.engine.proposed == 4
        bench.engine.release()
        outcomes = await asyncio.gather(*futures)
        assert bench.engine.proposed == 5
        assert all(type(outcome[0].result) is Done for outcome in outcomes)

    run(talk, pipeline=4)


def test_an_answer_never_belongs_to_another_command() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        mine, twin, other = account(1, key="same"), account(1, key="same"), account(2, key="same")
        futures = [bench.start(one) for one in (mine, twin, other)]
        # Another node's command with our key and another body comes first.
        bench.commit(account(9, key="same").envelope)
        assert not any(future.done() for future in futures)
        bench.commit(other.envelope, mine.envelope)
        assert [errors(await future) for future in futures] == [[Refused]] * 3
        first = bench.start(account(5))
        second = bench.start(account(5))
        bench.commit(account(5).envelope)
        assert [(await future)[0].replay for future in (first, second)] == [False, True]

    run(talk)


def test_another_body_or_time_under_the_same_key_is_another_command() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        mine = account(1, key="same")
        body = encode_command(OpenAccount("account-1"))
        for stranger in (
            Envelope("@custodian", "same", 0, encode_command(OpenAccount("account-2"))),
            Envelope("@custodian", "same", clock_us(), body),
            Envelope("@operator", "same", 0, body),
        ):
            future = bench.start(mine, timeout_ms=500)
            bench.commit(stranger)
            await asyncio.sleep(0)
            assert not future.done()
            bench.commit(Envelope("@custodian", "same", 0, body))
            await future
            mine = account(1, key="same")

    run(talk)


def test_a_refusal_that_is_not_kept_is_definite_only_for_the_one_copy() -> None:
    """What was sent twice may be in the log twice: the second copy is not bound by what the first was told."""

    def early() -> Prepared:
        return Prepared(
            Envelope("@custodian", "k1", clock_us() + 660_000_000, encode_command(OpenAccount("account-1")))
        )

    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        once = early()
        future = bench.start(once)
        bench.commit(once.envelope)
        assert errors(await future) == [Refused]
        twice = early()
        future = bench.start(twice)
        bench.follow("dc-c", term=3)
        bench.commit(twice.envelope)
        assert errors(await future) == [OutcomeUnknown]
        # Its other copy comes later, when the time that it names is near enough.
        bench.engine.commit(encode_batch(twice.envelope.sent_at_us, [twice.envelope]))
        assert bench.machine.account("account-1") is not None
        # Stored under the key: definite, however often it was sent.
        again = account(1, key="other")
        future = bench.start(again)
        bench.follow("dc-b", term=4)
        bench.commit(again.envelope)
        assert errors(await future) == [Refused]

    run(talk)


def test_who_waits_for_a_link_is_not_overtaken() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        bench.engine.refuse_sends, bench.engine.connected = True, False
        futures = [bench.start(account(1))]
        bench.engine.refuse_sends, bench.engine.connected = False, True
        futures.append(bench.start(account(2)))
        await asyncio.sleep(0.08)
        sent = [one for forward in bench.forwarded() for one in forward.commands]
        assert [one.key for one in sent] == ["k1", "k2"]
        bench.commit(*sent)
        assert [errors(await future) for future in futures] == [[Done], [Done]]

    run(talk)


def test_a_full_link_is_definite() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        bench.engine.refuse_sends = True
        assert errors(await bench.submit(account(1), timeout_ms=500)) == [Overloaded]

    run(talk)


def test_a_full_queue_of_our_own_settles_nothing_that_was_sent_before() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        future = bench.start(*(account(number) for number in range(1_200)), timeout_ms=3_000)
        bench.engine.hold = True
        bench.engine.changed(role=Role.leader, leader="dc-a", term=3)
        await asyncio.sleep(0.02)
        assert not future.done()
        bench.engine.release()
        assert errors(await future) == [Done] * 1_200

    run(talk, queue_max=1_000, cancels_reserved=100)


def test_no_leader_and_no_quorum_are_definite() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow(None)
        assert errors(await bench.submit(account(1), timeout_ms=80)) == [NoLeader]
        bench.engine.connected = False
        assert errors(await bench.submit(account(1), timeout_ms=80)) == [NoQuorum]
        bench.engine.connected = True
        # A witness that leads takes no commands: wait until it has handed over.
        bench.follow("tiebreaker", term=3)
        assert errors(await bench.submit(account(1), timeout_ms=80)) == [NoLeader]
        assert bench.engine.sent == []
        assert bench.machine.applied_index == 0

    run(talk)


def test_a_leader_whose_engine_refuses_logs_nothing() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.refuse = EngineNoQuorum()
        bench.engine.connected = False
        assert errors(await bench.submit(account(1), timeout_ms=120)) == [NoQuorum]
        bench.engine.refuse = NotLeader()
        future = bench.start(account(2))
        await asyncio.sleep(0.02)
        bench.engine.refuse = None
        assert errors(await future) == [Done]

    run(talk)


def test_what_was_proposed_or_forwarded_ends_unknown() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.hold = True
        outcomes = await bench.submit(account(1), timeout_ms=50)
        assert errors(outcomes) == [OutcomeUnknown]
        assert isinstance(outcomes[0].result, NodeError)
        assert not outcomes[0].result.definite
        assert outcomes[0].result.key == "k1"
        bench.follow("dc-b")
        assert errors(await bench.submit(account(2), timeout_ms=50)) == [OutcomeUnknown]

    run(talk)


def test_what_only_queued_is_dropped_at_its_deadline() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.hold = True
        for number in range(4):
            bench.start(account(number))
            await asyncio.sleep(0.005)
        assert bench.engine.proposed == 4
        assert errors(await bench.submit(account(5), timeout_ms=50)) == [Overloaded]
        bench.engine.release()
        await asyncio.sleep(0.02)
        keys = [envelope.key for entry in bench.engine.log for envelope in decode_batch(entry).commands]
        assert keys == ["k0", "k1", "k2", "k3"]

    run(talk, pipeline=4)


def test_a_follower_forwards_and_answers_by_its_own_apply() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        future = bench.start(account(1), account(2))
        forwards = bench.forwarded()
        assert [[one.key for one in forward.commands] for forward in forwards] == [["k1", "k2"]]
        bench.commit(*forwards[0].commands)
        assert errors(await future) == [Done, Done]

    run(talk)


def test_explicit_refusals_of_the_leader_are_definite() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        future = bench.start(account(1), account(2), account(3))
        forward = bench.forwarded()[0]

        def refuse(word: str, *positions: int, attempt: int | None = None) -> None:
            refusal = Refusal(forward.frame, forward.attempt if attempt is None else attempt, word, list(positions))
            bench.submitter.received("dc-b", REFUSED, msgspec.msgpack.encode(refusal))

        refuse("overloaded", 2, attempt=forward.attempt + 7)
        refuse("overloaded", 0)
        refuse("disk_low", 1)
        bench.commit(account(3).envelope)
        refuse("overloaded", 2)
        assert errors(await future) == [Overloaded, DiskLow, Done]

    run(talk)


def test_a_refusal_after_a_lost_try_settles_nothing() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        future = bench.start(account(1), timeout_ms=400)
        bench.follow("dc-c", term=3)
        first, second = bench.forwarded()
        assert second.attempt > first.attempt
        refusal = Refusal(second.frame, second.attempt, "overloaded", [0])
        bench.submitter.received("dc-c", REFUSED, msgspec.msgpack.encode(refusal))
        assert not future.done()
        assert errors(await future) == [OutcomeUnknown]

    run(talk)


def test_a_refused_forward_waits_for_the_next_leader() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        future = bench.start(account(1), timeout_ms=200)
        forward = bench.forwarded()[0]
        refusal = Refusal(forward.frame, forward.attempt, "no_leader", [0])
        bench.follow(None, term=3)
        assert errors(await future) == [OutcomeUnknown]
        bench.follow("dc-b", term=4)
        future = bench.start(account(2), timeout_ms=120)
        forward = bench.forwarded()[-1]
        refusal = Refusal(forward.frame, forward.attempt, "no_leader", [0])
        bench.engine.refuse_sends = True
        bench.engine.connected = False
        bench.submitter.received("dc-b", REFUSED, msgspec.msgpack.encode(refusal))
        assert errors(await future) == [NoQuorum]

    run(talk)


def test_a_new_leader_gets_what_still_waits_in_order() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.hold = True
        futures = [bench.start(account(number)) for number in range(3)]
        await asyncio.sleep(0.01)
        futures.append(bench.start(account(3)))
        lost = bench.engine.held
        bench.engine.held = []
        bench.follow("dc-b")
        keys = [one.key for forward in bench.forwarded() for one in forward.commands]
        assert keys == ["k0", "k1", "k2", "k3"]
        # The old entry survived after all: its commands are answered once, and the repeats change nothing.
        bench.engine.commit(lost[0])
        bench.commit(*(account(number).envelope for number in range(4)))
        assert [errors(await future) for future in futures] == [[Done]] * 4
        assert len(bench.backing.buckets) == 1
        assert sum(len(keys) for keys in bench.backing.buckets.values()) == 4

    run(talk)


def test_a_forward_without_an_answer_is_sent_again() -> None:
    async def talk(bench: Bench) -> None:
        bench.follow("dc-b")
        future = bench.start(account(1), timeout_ms=2_000)
        await asyncio.sleep(0.25)
        forwards = bench.forwarded()
        assert len(forwards) >= 2
        assert {forward.attempt for forward in forwards} >= {1, 2}
        bench.commit(account(1).envelope)
        assert errors(await future) == [Done]

    run(talk)


def test_a_leader_takes_in_what_members_forward() -> None:
    async def talk(bench: Bench) -> None:
        body = msgspec.msgpack.encode(Forward(7, 1, "", [], [account(1).envelope, account(2).envelope]))
        bench.submitter.received("dc-b", FORWARD, body)
        await asyncio.sleep(0.01)
        assert bench.machine.applied_index == 1
        assert bench.engine.sent == []
        bench.follow("dc-b")
        bench.submitter.received("dc-c", FORWARD, body)
        member, kind, sent = bench.engine.sent[-1]
        refusal = msgspec.msgpack.decode(sent, type=Refusal)
        assert (member, kind, refusal.word, refusal.positions) == ("dc-c", REFUSED, "no_leader", [0, 1])

    run(talk)


def test_what_this_program_can_not_read_is_never_logged() -> None:
    async def talk(bench: Bench) -> None:
        good = account(1).envelope
        for envelope in (
            Envelope("@custodian", "k", 0, b"\x92\x7f\x00"),
            Envelope("@custodian", "k", 0, b""),
            Envelope("@custodian", "", 0, good.body),
        ):
            body = msgspec.msgpack.encode(Forward(7, 1, "", [], [envelope]))
            with pytest.raises(ValueError, match="dc-b"):
                bench.submitter.received("dc-b", FORWARD, body)
        with pytest.raises(ValueError, match="forward"):
            bench.submitter.received("dc-b", FORWARD, b"\xc1")
        mismatched = msgspec.msgpack.encode(Forward(7, 1, "", [0], [good, account(2).envelope]))
        with pytest.raises(ValueError, match="zip"):
            bench.submitter.received("dc-b", FORWARD, mismatched)
        await asyncio.sleep(0.01)
        assert bench.machine.applied_index == 0

    run(talk)


def test_bounds_keep_room_for_cancels() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.hold = True
        outcomes = bench.start(*(account(number) for number in range(1_200)))
        for _ in range(3):
            await asyncio.sleep(0.001)
        assert bench.submitter.waiting == 1_100
        late = await bench.submit(account(2_000), timeout_ms=50)
        assert errors(late) == [Overloaded]
        kept = bench.start(*(cancel(number) for number in range(100)))
        assert errors(await bench.submit(cancel(1_000), timeout_ms=50)) == [Overloaded]
        bench.engine.release()
        kinds = errors(await outcomes)
        assert (kinds.count(Done), kinds.count(Overloaded)) == (1_100, 100)
        assert kinds[1_100:] == [Overloaded] * 100
        assert all(kind is Refused for kind in errors(await kept))

    run(talk, waiting_max=1_200, cancels_reserved=100)


def test_refusals_of_the_node_come_at_once() -> None:
    async def talk(bench: Bench) -> None:
        bench.submitter.set_refusal(NotReady("leaving"))
        assert errors(await bench.submit(account(1), account(2))) == [NotReady, NotReady]
        bench.submitter.set_refusal(DiskLow("full"))
        assert errors(await bench.submit(account(1))) == [DiskLow]
        body = msgspec.msgpack.encode(Forward(7, 1, "", [], [account(1).envelope]))
        bench.submitter.received("dc-b", FORWARD, body)
        refusal = msgspec.msgpack.decode(bench.engine.sent[-1][2], type=Refusal)
        assert refusal.word == "disk_low"
        bench.submitter.set_refusal(None)
        assert errors(await bench.submit(account(1))) == [Done]

    run(talk)


def test_internal_commands_are_told_and_not_waited_for() -> None:
    async def talk(bench: Bench) -> None:
        bench.submitter.tell(TimeStep())
        await asyncio.sleep(0.01)
        assert bench.machine.applied_index == 1
        bench.follow("dc-b")
        bench.submitter.tell(BeatSession("alice", "s"))
        assert [one.key for one in bench.forwarded()[-1].commands] == [""]
        with pytest.raises(TypeError, match="Deposit"):
            bench.submitter.tell(Deposit("alice", "USD", 1))
        assert bench.submitter.waiting == 0

    run(talk)


def test_nothing_is_left_behind() -> None:
    async def talk(bench: Bench) -> None:
        bench.engine.hold = True
        futures = [
            bench.start(account(number), account(number, key=f"o{number}"), timeout_ms=60) for number in range(50)
        ]
        futures[0].cancel()
        await asyncio.gather(*futures, return_exceptions=True)
        assert bench.submitter.waiting == 0
        assert await bench.submitter.settled(timeout_ms=1)
        assert bench.submitter._waiting == {}
        bench.engine.release()
        assert bench.machine.applied_index > 0

    run(talk)
