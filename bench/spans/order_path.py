"""Joins what members and clients noted of each order into the stages that it passed, one after the other.

Replication and the leader's own journal run beside each other. An entry is committed when the leader's disk has it and
as many others as make a majority; of the two the later one is on the critical path, and its stages are the order's.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from msgspec import Struct

from bench.spans.order_kinds import (
    SPANS,
    Acked,
    Applied,
    Arrived,
    Asked,
    Batch,
    Disk,
    In,
    Out,
    Replied,
    Sent,
    Span,
)
from bench.spans.staged import Passed, Stage, passed, sent_on
from bench.spans.stamps import Stamps

GROUPS: dict[str, tuple[str, ...]] = {
    "way in": ("client encodes and writes", "waits for the leader's loop"),
    "parse": ("WebSocket frame", "decode", "door: checks, envelopes", "queued"),
    "queue": ("waits for the batch before",),
    "propose": ("batch taken and encoded", "into the log in memory", "waits for the turn of the log"),
    "replicate": (
        "encode, cipher, write to the links",
        "on the way to the other member",
        "other member takes it in",
        "acknowledged",
    ),
    "journal": ("the journal's thread wakes", "written to the transaction", "the loop hears of it"),
    "sync": ("synced",),
    "apply": (
        "waits for its turn to be committed",
        "commit",
        "machine and store in memory",
        "outcomes",
        "listeners, driver",
    ),
    "answer": (
        "rest of the turn: links, journal",
        "turn of the answer",
        "answer encoded",
        "turn of the writer",
        "written",
    ),
    "way back": ("client reads it",),
}
"""Every stage, in order, under the word for it in a picture."""
LAST: Callable[[Any], int] = attrgetter("last")
MATCHED: Callable[[Any], int] = attrgetter("matched")
T = TypeVar("T")
STAGES = [name for names in GROUPS.values() for name in names]


class Noted:
    """One member's rows, to be looked up by the entry that they are of."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        self.sent: dict[int, list[Sent]] = defaultdict(list)
        self.acked: dict[int, list[Acked]] = defaultdict(list)
        for sent in map(Sent._make, stamps.rows("Sent")):
            self.sent[sent.member].append(sent)
        for acked in map(Acked._make, stamps.rows("Acked")):
            self.acked[acked.member].append(acked)
        for member, acks in self.acked.items():
            self.acked[member] = _rising(acks, MATCHED)
        self.arrived = _rising(map(Arrived._make, stamps.rows("Arrived")), LAST)
        self.disk = _rising(map(Disk._make, stamps.rows("Disk")), LAST)
        self.replied = _rising(map(Replied._make, stamps.rows("Replied")), MATCHED)
        self.batches = {batch.entry: batch for batch in map(Batch._make, stamps.rows("Batch"))}
        self.applied = {applied.entry: applied for applied in map(Applied._make, stamps.rows("Applied"))}


def _rising(rows: Iterable[T], covers: Callable[[T], int]) -> list[T]:
    """Without those that cover nothing new."""
    found: list[T] = []
    for row in rows:
        if not found or covers(row) > covers(found[-1]):
            found.append(row)
    return found


def _covering(rows: Sequence[T], entry: int, covers: Callable[[T], int]) -> T | None:
    """The first row that covers an entry, of rows that rise."""
    at = bisect_left(rows, entry, key=covers)
    return rows[at] if at < len(rows) else None


class Entry(Struct):
    """How one entry of the log became committed. own_ns, other_ns: from its proposal until the leader's disk has it,
    and until enough others have said that theirs do. stages: of the later one, from the proposal on."""

    own_ns: int
    other_ns: int
    stages: list[Stage]
    ready: int


class Cluster:
    """What all members noted. leader: its number; needed: how many of the others make a majority with it."""

    def __init__(self, members: Mapping[int, Stamps], leader: int) -> None:
        self.leader = Noted(members[leader])
        self.others = {number: Noted(stamps) for number, stamps in members.items() if number != leader}
        self.needed = len(members) // 2
        self._entries: dict[int, Entry | None] = {}

    def entry(self, index: int) -> Entry | None:
        if index not in self._entries:
            self._entries[index] = self._entry(index)
        return self._entries[index]

    def _entry(self, index: int) -> Entry | None:
        batch = self.leader.batches.get(index)
        own = _covering(self.leader.disk, index, LAST)
        acks = []
        for number in self.others:
            acked = _covering(self.leader.acked[number], index, MATCHED)
            if acked is not None:
                acks.append((acked.taken, number, acked))
        if batch is None or own is None or len(acks) < self.needed:
            return None
        acked_at, number, acked = sorted(acks)[self.needed - 1]
        stages = self._own(index, batch, own) if own.told > acked_at else self._other(index, batch, number, acked)
        ready = max(own.told, acked_at)
        return Entry(own.told - batch.proposing, acked_at - batch.proposing, stages, ready)

    def _own(self, index: int, batch: Batch, own: Disk) -> list[Stage]:
        """The leader's own journal was last. Before it is handed on, the links are written to."""
        sent = [one for number in self.others if (one := _covering(self.leader.sent[number], index, LAST))]
        links = min([one.writing for one in sent if one.writing < own.handed], default=own.handed)
        return [
            ("waits for the turn of the log", batch.appended, links),
            ("encode, cipher, write to the links", links, own.handed),
            *_journal(own),
        ]

    def _other(self, index: int, batch: Batch, number: int, acked: Acked) -> list[Stage]:
        other = self.others[number]
        sent = _covering(self.leader.sent[number], index, LAST)
        arrived = _covering(other.arrived, index, LAST)
        disk = _covering(other.disk, index, LAST)
        replied = _covering(other.replied, index, MATCHED)
        if sent is None or arrived is None or disk is None or replied is None:
            return []
        return [
            ("waits for the turn of the log", batch.appended, sent.writing),
            *sent_on(
                "encode, cipher, write to the links",
                sent.writing,
                sent.written,
                "on the way to the other member",
                arrived.received,
            ),
            ("other member takes it in", arrived.received, disk.handed),
            *_journal(disk),
            ("acknowledged", disk.told, acked.taken),
        ]


def _journal(disk: Disk) -> list[Stage]:
    return [
        ("the journal's thread wakes", disk.handed, disk.began),
        ("written to the transaction", disk.began, disk.put),
        ("synced", disk.put, disk.synced),
        ("the loop hears of it", disk.synced, disk.told),
    ]


class Orders:
    """Frames by number, joined with what the cluster noted."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        noted = cluster.leader.stamps
        self.ins = {row.frame: row for row in map(In._make, noted.rows("In"))}
        self.outs = {row.frame: row for row in map(Out._make, noted.rows("Out"))}
        spans = [Span._make(row) for row in noted.rows("Span")]
        submits, batches = (
            {span.parent: span for span in spans if span.kind == SPANS.index(name)} for name in ("submit", "batch")
        )
        self.streams = {span.span: span for span in spans if span.kind == SPANS.index("stream submit")}
        self.queued = {
            parent: batches[submit.span].began for parent, submit in submits.items() if submit.span in batches
        }
        """By the span of the frame: when its first command came into the queue."""

    def index_of(self, asked: Asked) -> int:
        """The entry that decided the last of a frame's orders; 0: not known."""
        out = self.outs.get(asked.frame)
        span = self.streams.get(out.span) if out is not None else None
        return span.entry if span is not None else 0

    def passed(self, asked: Asked) -> Passed:
        """The stages of one frame; those that are not known are left out, and then it does not add up."""
        return passed(asked.received - asked.began, self.stages(asked), orders=asked.orders, at=asked.began)

    def stages(self, asked: Asked) -> list[Stage]:
        stages: list[Stage] = [("client encodes and writes", asked.began, asked.written)]
        came, out = self.ins.get(asked.frame), self.outs.get(asked.frame)
        span = self.streams.get(out.span) if out is not None else None
        if came is None or out is None or span is None:
            return stages
        queued = self.queued.get(out.span, 0)
        stages = [
            *sent_on(
                "client encodes and writes", asked.began, asked.written, "waits for the leader's loop", came.received
            ),
            ("WebSocket frame", came.received, came.taken),
            ("decode", came.taken, came.parsed),
            ("door: checks, envelopes", came.parsed, span.began),
            ("queued", span.began, queued),
        ]
        batch, entry = self.cluster.leader.batches.get(span.entry), self.cluster.entry(span.entry)
        applied = self.cluster.leader.applied.get(span.entry)
        if batch is None or entry is None or applied is None:
            return stages
        return [
            *stages,
            ("waits for the batch before", queued, batch.taking),
            ("batch taken and encoded", batch.taking, batch.proposing),
            ("into the log in memory", batch.proposing, batch.appended),
            *entry.stages,
            ("waits for its turn to be committed", entry.ready, applied.tick),
            ("commit", applied.tick, applied.begun),
            ("machine and store in memory", applied.begun, applied.applied),
            ("outcomes", applied.applied, applied.resolved),
            ("listeners, driver", applied.resolved, applied.told),
            ("rest of the turn: links, journal", applied.told, applied.tick_ended),
            ("turn of the answer", applied.tick_ended, out.answering),
            ("answer encoded", out.answering, out.encoded),
            ("turn of the writer", out.encoded, out.writing),
            *sent_on("written", out.writing, out.written, "client reads it", asked.received),
        ]
