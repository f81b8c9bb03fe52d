"""The leader's queue: its order, its two lanes, its bounds."""

import asyncio
import time
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.consensus.engine import ConsensusError, NotLeader
from cluster.consensus.engine import Overloaded as EngineOverloaded
from node.batcher import GAP_S, QUEUED, SENT, Batcher, Item
from node.config import NodeLimits
from node.submit import Prepared
from statemachine.codec import Envelope, decode_batch, encode_command
from statemachine.commands import CancelOrder, OpenAccount


class Pipe:
    """Takes proposals while it has room."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.refuse: ConsensusError | None = None

    def propose(self, payload: bytes) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.payloads.append(payload)

    def sent(self) -> list[list[str]]:
        return [[envelope.key for envelope in decode_batch(payload).commands] for payload in self.payloads]


def order(scope: str, key: str) -> Prepared:
    return Prepared(Envelope(scope, key, 0, encode_command(OpenAccount("abc"))))


def cancel(scope: str, key: str) -> Prepared:
    return Prepared(Envelope(scope, key, 0, encode_command(CancelOrder(scope, 1))), is_cancel=True)


def run(talk: Callable[[Batcher, Pipe], object], clock: Callable[[], int] = lambda: 5, **limits: int) -> None:
    async def main() -> None:
        pipe = Pipe()
        failed: list[Item] = []
        batcher = Batcher(pipe, NodeLimits(**limits), lambda items, error: failed.extend(items), clock=clock)
        await talk(batcher, pipe)  # type: ignore[misc]

    asyncio.run(main())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_cancels_pass_others_but_never_their_own_account() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        batcher.put([order("alice", "full")])
        await asyncio.sleep(0)
        batcher.put([order("alice", "a1"), order("bob", "b1"), order("@custodian", "m1")])
        batcher.put([cancel("carol", "c-carol"), cancel("bob", "c-bob"), cancel("@operator", "c-all")])
        batcher.put([order("carol", "after-cancel")])
        batcher.applied(pipe.payloads[0])
        await asyncio.sleep(0)
        assert pipe.sent()[1:] == [["c-carol", "a1", "b1", "m1", "c-bob", "c-all", "after-cancel"]]

    run(talk, pipeline=1)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_each_account_keeps_its_order(commands: list[tuple[str, bool]], batch_max: int, pipeline: int) -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        settled = 0
        for number, (scope, is_cancel) in enumerate(commands):
            batcher.put([(cancel if is_cancel else order)(scope, str(number))])
            if number % 3 == 0:
                await asyncio.sleep(0)
            if number % 5 == 0 and settled < len(pipe.payloads):
                batcher.applied(pipe.payloads[settled])
                settled += 1
        while batcher.queued or settled < len(pipe.payloads):
            await asyncio.sleep(0)
            if settled < len(pipe.payloads):
                batcher.applied(pipe.payloads[settled])
                settled += 1
        sent = [envelope for payload in pipe.payloads for envelope in decode_batch(payload).commands]
        assert len(sent) == len(commands)
        assert max(len(keys) for keys in pipe.sent()) <= batch_max
        for scope in "abc":
            keys = [int(envelope.key) for envelope in sent if envelope.scope == scope]
            assert keys == sorted(keys)

    run(talk, batch_commands_max=batch_max, pipeline=pipeline)


def test_batches_are_bounded_in_bytes() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        big = [Prepared(Envelope("a", str(number), 0, bytes([0x91, 7]) + bytes(30_000))) for number in range(7)]
        batcher.put(big)
        await until(lambda: not batcher.queued)
        assert [len(keys) for keys in pipe.sent()] == [2, 2, 2, 1]
        assert max(map(len, pipe.payloads)) < 70_000

    run(talk, batch_bytes_max=70_000, pipeline=4)


def test_time_in_batches_never_stands_still() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        for number in range(3):
            batcher.put([order("a", str(number))])
            await until(lambda: not batcher.queued)
        assert [decode_batch(payload).stamp_us for payload in pipe.payloads] == [100, 101, 102]

    run(talk, clock=lambda: 100, pipeline=4)


def test_behind_one_under_way_the_next_batch_gathers_for_a_while() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        batcher.put([order("a", "0")])
        await asyncio.sleep(0)
        began = time.perf_counter()
        batcher.put([order("a", "1")])
        await asyncio.sleep(0)
        batcher.put([order("b", "2")])
        await until(lambda: len(pipe.payloads) == 2)
        assert time.perf_counter() - began > GAP_S * 0.9
        assert pipe.sent() == [["0"], ["1", "2"]]
        batcher.put([order("b", "3")])
        batcher.applied(pipe.payloads[0])
        await asyncio.sleep(0)
        assert len(pipe.payloads) == 2  # the other one is still under way
        batcher.applied(pipe.payloads[1])
        await asyncio.sleep(0)
        assert pipe.sent()[2:] == [["3"]]  # the pipe is empty: nothing is waited for

    run(talk, pipeline=4)


def test_what_one_batch_had_no_room_for_in_bytes_waits_for_nothing() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        big = [Prepared(Envelope("a", str(number), 0, bytes([0x91, 7]) + bytes(30_000))) for number in range(7)]
        batcher.put(big)
        await asyncio.sleep(0)
        assert [len(keys) for keys in pipe.sent()] == [2, 2, 2, 1]

    run(talk, batch_bytes_max=70_000, pipeline=4)


def test_cancels_that_were_put_back_keep_their_order() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        batcher.put([order("z", "first")])
        await asyncio.sleep(0)
        batcher.put([order("z", "0")])
        batcher.put([cancel("x", str(number)) for number in range(1, 7)])
        pipe.refuse = EngineOverloaded()
        batcher.applied(pipe.payloads[0])
        await asyncio.sleep(0)
        pipe.refuse = None
        while batcher.queued:
            for payload in pipe.payloads[1:]:
                batcher.applied(payload)
            await asyncio.sleep(0.005)
        assert [key for keys in pipe.sent()[1:] for key in keys] == ["1", "2", "3", "4", "5", "6", "0"]

    run(talk, pipeline=1, batch_commands_max=3)


def test_a_full_batch_waits_for_nothing() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        batcher.put([order("a", str(number)) for number in range(7)])
        await asyncio.sleep(0)
        assert [len(keys) for keys in pipe.sent()] == [3, 3]

    run(talk, pipeline=4, batch_commands_max=3)


def test_a_full_engine_is_asked_again_and_keeps_the_order() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        pipe.refuse = EngineOverloaded()
        items = [order("a", str(number)) for number in range(3)]
        batcher.put(items)
        await asyncio.sleep(0.005)
        assert [item.state for item in items] == [QUEUED] * 3
        pipe.refuse = None
        batcher.put([order("a", "3")])
        await asyncio.sleep(0.03)
        assert pipe.sent() == [["0", "1", "2", "3"]]
        assert [item.state for item in items] == [SENT] * 3

    run(talk)


def test_an_engine_that_does_not_lead_gives_everything_back() -> None:
    async def main() -> None:
        pipe = Pipe()
        pipe.refuse = NotLeader()
        failed: list[str] = []
        batcher = Batcher(pipe, NodeLimits(), lambda items, error: failed.extend(i.envelope.key for i in items))
        batcher.put([order("a", str(number)) for number in range(2_000)])
        await asyncio.sleep(0)
        assert failed == [str(number) for number in range(2_000)]
        assert (batcher.queued, batcher.under_way) == (0, 0)

    asyncio.run(main())


def test_the_queue_is_bounded_and_keeps_room_for_cancels() -> None:
    async def talk(batcher: Batcher, pipe: Pipe) -> None:
        pipe.refuse = EngineOverloaded()
        refused = batcher.put([order("a", str(number)) for number in range(1_000)])
        assert len(refused) == 100
        refused = batcher.put([cancel("b", "c"), order("b", "x"), cancel("b", "d")])
        assert [item.envelope.key for item in refused] == ["x"]
        refused = batcher.put([cancel("b", f"c{number}") for number in range(200)])
        assert len(refused) == 200 - 98
        assert batcher.queued == 1_000
        pipe.refuse = None
        await asyncio.sleep(0.05)

    run(talk, queue_max=1_000, cancels_reserved=100)
