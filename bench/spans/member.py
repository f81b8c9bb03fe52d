"""A member that notes when each order passes each of its stages: `python -m bench.spans.member FOLDER MEMBER.toml`.

The product has no such switch: as bench/unsafe_member.py, this program replaces what it is built from, before it is
built, by subclasses that note a moment and call the product's own method. Where the product has spans of its own
(node/tracing.py) they are used, kept instead of logged: frames whose number is a multiple of TRACED_EVERY are sampled.
On SIGUSR1 all goes to FOLDER/NAME.stamps.
"""

import asyncio
import signal
import sys
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import monotonic_ns, perf_counter_ns, thread_time_ns
from typing import Any, cast

import uvloop

from bench.spans.order_kinds import KINDS, SPANS, TRACED_EVERY
from bench.spans.stamps import Stamps, span_number
from cluster import wire
from cluster.consensus import hardened, transport
from cluster.consensus.connection import Connection as LinkConnection
from cluster.consensus.hardened import HardenedEngine
from cluster.consensus.journal import Journal
from cluster.consensus.messages import Append, AppendReply
from cluster.consensus.progress import Progress
from cluster.consensus.raft import RaftCore
from cluster.consensus.storage import LmdbStorage
from node import app, batcher, channel, guard, stream, submit
from node.config import read_config
from node.submit import Outcome
from node.tracing import TraceContext, configure_logging, new_trace
from statemachine.records import Applied

MASKED = 0x80
stamps = Stamps(KINDS)
add = stamps.add
members: dict[str, int] = {}
"""Numbers of the members, in the order of the topology."""


class Now:
    """What was noted in this turn of the loop, by who sees it first, for who knows what it belongs to."""

    link_received = 0
    tick = 0
    taking = taking_cpu = commands = 0
    frame = parsed = parsed_cpu = 0
    applied = applied_cpu = resolved = 0


# ---- the way in ----


class Arrivals:
    """When each whole message of a client's WebSocket was read: frames are counted, not looked into."""

    def __init__(self) -> None:
        self.times: deque[int] = deque()
        self._rest = b""

    def feed(self, data: bytes, now: int) -> None:
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= 2:
            size, begin = data[at + 1] & 0x7F, at + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                size, begin = int.from_bytes(data[begin : begin + wide], "big"), begin + wide
            begin += 4 if data[at + 1] & MASKED else 0
            if end - begin < size:
                break
            if data[at] & 0x0F < 8:
                self.times.append(now)
            at = begin + size
        self._rest = data[at:]


class GuardConnection(guard.Connection):
    arrivals: Arrivals | None = None
    """Since it became a stream."""

    def data_received(self, data: bytes) -> None:
        if self.arrivals is not None:
            self.arrivals.feed(data, monotonic_ns())
        super().data_received(data)


class StreamConnection(stream.Connection):
    def __init__(self, hub: stream.StreamHub, socket: Any, request: Any) -> None:
        super().__init__(hub, socket, request)
        self._sampled = new_trace(sampled=True)
        self._arrivals = Arrivals()
        guarded = request.transport.get_protocol() if request.transport is not None else None
        if isinstance(guarded, GuardConnection):
            guarded.arrivals = self._arrivals

    def _take(self, data: bytes) -> bool:
        times = self._arrivals.times
        received, taken = times.popleft() if times else 0, monotonic_ns()
        Now.frame = 0
        done = super()._take(data)
        if Now.frame:
            add("In", Now.frame, received, taken, Now.parsed, thread_time_ns() - Now.parsed_cpu)
        return done

    def _submit(
        self,
        number: int,
        requests: list[wire.AnyRequest],
        timeout_ms: int,
        malformed: dict[int, wire.Answer] | None,
        size: int,
        looked: bool = False,
    ) -> None:
        self._trace = None if number % TRACED_EVERY else self._sampled
        if self._trace is not None:
            Now.frame, Now.parsed, Now.parsed_cpu = number, monotonic_ns(), thread_time_ns()
        super()._submit(number, requests, timeout_ms, malformed, size, looked)

    def _answer(self, frame: "stream._Frame", outcomes: list[Outcome]) -> None:
        if frame.trace is None:
            super()._answer(frame, outcomes)
            return
        answering, cpu = monotonic_ns(), thread_time_ns()
        super()._answer(frame, outcomes)
        span = span_number(frame.trace.span_id)
        mine = cast(StampedChannel, self.channel)
        mine.unwritten.append((frame.id, span, answering, mine.sent, thread_time_ns() - cpu))


class Written:
    """A transport that says when it was written to."""

    def __init__(self, inner: asyncio.Transport, mine: "StampedChannel") -> None:
        self._inner = inner
        self._channel = mine
        self.is_closing = inner.is_closing
        self.abort = inner.abort
        self.get_write_buffer_size = inner.get_write_buffer_size

    def write(self, data: bytes) -> None:
        if not self._channel.unwritten:
            self._inner.write(data)
            return
        began, cpu = monotonic_ns(), thread_time_ns()
        self._inner.write(data)
        self._channel.was_written(began, monotonic_ns(), thread_time_ns() - cpu)


class StampedChannel(channel.Channel):
    def __init__(self, transport: asyncio.Transport | None, **options: Any) -> None:
        super().__init__(transport, **options)
        self.sent = 0
        self.unwritten: list[tuple[int, int, int, int, int]] = []
        if transport is not None:
            self._transport = cast(asyncio.Transport, Written(transport, self))

    def send(self, data: bytes, opcode: Any) -> None:
        super().send(data, opcode)
        self.sent = monotonic_ns()

    def was_written(self, began: int, ended: int, cpu: int) -> None:
        unwritten, self.unwritten = self.unwritten, []
        for frame, span, answering, encoded, answer_cpu in unwritten:
            add("Out", frame, span, answering, encoded, began, ended, answer_cpu, cpu // len(unwritten))


def keep_span(name: str, context: TraceContext, began_ns: int, **fields: object) -> None:
    """Stands for tracing.record: the same span, kept instead of logged."""
    if name in SPANS:
        index = fields.get("index", 0)
        ids = span_number(context.span_id), span_number(context.parent_id)
        add("Span", SPANS.index(name), *ids, began_ns, perf_counter_ns(), index if isinstance(index, int) else 0)


# ---- the log ----


class StampedBatcher(batcher.Batcher):
    def _take(self) -> list[batcher.Item]:
        Now.taking, Now.taking_cpu = monotonic_ns(), thread_time_ns()
        items = super()._take()
        Now.commands = len(items)
        return items


class StampedSubmitter(submit.Submitter):
    def applied(self, applied: Applied, payload: bytes) -> None:
        Now.applied, Now.applied_cpu = monotonic_ns(), thread_time_ns()
        super().applied(applied, payload)
        Now.resolved = monotonic_ns()


class StampedEngine(HardenedEngine):
    def propose(self, payload: bytes) -> None:
        proposing, cpu = monotonic_ns(), thread_time_ns() - Now.taking_cpu
        super().propose(payload)
        add("Batch", self._journal.last_index, Now.taking, proposing, monotonic_ns(), Now.commands, cpu)

    def deliver(self, index: int, payload: bytes) -> None:
        begun, cpu = monotonic_ns(), thread_time_ns()
        super().deliver(index, payload)
        told, told_cpu = monotonic_ns(), thread_time_ns()
        self._delivered.append(
            (index, Now.tick, begun, Now.applied, Now.resolved, told, Now.applied_cpu - cpu, told_cpu - Now.applied_cpu)
        )

    def _tick(self) -> None:
        Now.tick = monotonic_ns()
        self._delivered: list[tuple[int, ...]] = []
        super()._tick()
        ended = monotonic_ns()
        for *times, apply_cpu, tell_cpu in self._delivered:
            add("Applied", *times, ended, apply_cpu, tell_cpu)


class StampedRaft(RaftCore):
    def _append_to(self, member: str, progress: Progress, **how: Any) -> bool:
        first, writing, cpu = progress.next_index, monotonic_ns(), thread_time_ns()
        sent = super()._append_to(member, progress, **how)
        if progress.next_index > first:
            add(
                "Sent", members[member], first, progress.next_index - 1, writing, monotonic_ns(), thread_time_ns() - cpu
            )
        return sent

    def _on_append(self, member: str, message: Append) -> Any:
        if message.entries:
            first = message.previous_index + 1
            add("Arrived", first, message.previous_index + len(message.entries), Now.link_received, monotonic_ns())
        return super()._on_append(member, message)

    def _reply(self, **what: Any) -> Any:
        found = super()._reply(**what)
        add("Replied", self._acked_index, monotonic_ns())
        return found

    def _on_append_reply(self, member: str, reply: AppendReply) -> Any:
        add("Acked", members[member], reply.matched_index, Now.link_received, monotonic_ns())
        return super()._on_append_reply(member, reply)


class StampedLink(LinkConnection):
    def data_received(self, data: bytes) -> None:
        Now.link_received = monotonic_ns()
        super().data_received(data)


class StampedJournal(Journal):
    _handed = 0

    def flush(self) -> None:
        if not self._busy:
            # Before, as the thread may be done before the product's own method is.
            self._handed = monotonic_ns()
        super().flush()

    def _done(self, error: BaseException | None) -> None:
        last, storage = self._cut_index, cast(StampedStorage, self._storage)
        told = monotonic_ns()
        add("Disk", last, self._handed, *storage.times[:3], told, *storage.times[3:])
        super()._done(error)


class StampedStorage(LmdbStorage):
    times = (0, 0, 0, 0, 0)
    """Of the newest group: began, put, synced, and CPU time until it was put, and synced."""

    def write(self, changes: Sequence[Any]) -> None:
        began, cpu = monotonic_ns(), thread_time_ns()
        self._put_at = self._put_cpu = 0
        super().write(changes)
        put, put_cpu = self._put_at, self._put_cpu
        self.times = began, put, monotonic_ns(), put_cpu - cpu, thread_time_ns() - put_cpu

    def _put(self, transaction: Any, key: bytes, value: object) -> None:
        super()._put(transaction, key, value)
        if key == b"written":  # the last of a group: what follows is the commit
            self._put_at, self._put_cpu = monotonic_ns(), thread_time_ns()


def install() -> None:
    """From here on the product is built from these."""
    vars(guard)["Connection"] = GuardConnection
    vars(stream)["Connection"] = StreamConnection
    vars(stream)["Channel"] = StampedChannel
    vars(submit)["Batcher"] = StampedBatcher
    vars(app)["Submitter"] = StampedSubmitter
    vars(app)["HardenedEngine"] = StampedEngine
    engine = vars(hardened)
    engine["RaftCore"], engine["Journal"], engine["LmdbStorage"] = StampedRaft, StampedJournal, StampedStorage
    vars(transport)["Connection"] = StampedLink
    for module in (stream, submit, batcher):
        vars(module)["record"] = keep_span


def main(arguments: Sequence[str]) -> int:
    folder, path = arguments
    config = read_config(Path(path))
    configure_logging(config.log_level, member=config.name)
    members.update({member.name: number for number, member in enumerate(config.topology.members)})
    install()

    async def serve() -> int:
        write = partial(stamps.write, Path(folder) / f"{config.name}.stamps")
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write)
        return await app.serve(config)

    return uvloop.run(serve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
