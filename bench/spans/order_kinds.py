"""The rows that a stamping member writes: their kinds, and what the numbers of each are. Times in nanoseconds."""

from typing import NamedTuple


class In(NamedTuple):
    """A frame of commands at its member. received: its last byte was read; taken: its stream's reader has it;
    parsed: decoded. door_cpu: CPU time of checking and queueing."""

    frame: int
    received: int
    taken: int
    parsed: int
    door_cpu: int


class Span(NamedTuple):
    """A span of the product (node/tracing.py). kind: place in SPANS. entry: of the log, 0 where it has none."""

    kind: int
    span: int
    parent: int
    began: int
    ended: int
    entry: int


class Out(NamedTuple):
    """The answers to a frame. span: the frame's `stream submit`. answering: its commands are done and the loop has
    come round to it; encoded: in its connection's queue; writing, written: around the write to the socket."""

    frame: int
    span: int
    answering: int
    encoded: int
    writing: int
    written: int
    answer_cpu: int
    write_cpu: int


class Batch(NamedTuple):
    """A leader's log entry. taking: the queue has its turn; proposing: encoded; appended: in the log in memory."""

    entry: int
    taking: int
    proposing: int
    appended: int
    commands: int
    encode_cpu: int


class Sent(NamedTuple):
    """Entries first to last, by a leader to a member, around encoding and the write to its link."""

    member: int
    first: int
    last: int
    writing: int
    written: int
    cpu: int


class Arrived(NamedTuple):
    """Entries first to last, at a follower. received: their last byte was read and deciphered; taken: decoded."""

    first: int
    last: int
    received: int
    taken: int


class Disk(NamedTuple):
    """A group of the journal, up to entry last. handed: to the thread; began: there; put: all is in the transaction;
    synced: committed; told: the loop knows."""

    last: int
    handed: int
    began: int
    put: int
    synced: int
    told: int
    put_cpu: int
    sync_cpu: int


class Replied(NamedTuple):
    """A follower's acknowledgement has left: matched is what it covers."""

    matched: int
    written: int


class Acked(NamedTuple):
    """A follower's acknowledgement, at the leader."""

    member: int
    matched: int
    received: int
    taken: int


class Applied(NamedTuple):
    """A log entry on a replica. tick: the turn of the loop in which it was found committed; begun: its turn; applied:
    the machine and the store's memory have it; resolved: who waits has an outcome; told: who listens, too;
    tick_ended: that turn of the loop is over."""

    entry: int
    tick: int
    begun: int
    applied: int
    resolved: int
    told: int
    tick_ended: int
    apply_cpu: int
    tell_cpu: int


class Asked(NamedTuple):
    """The load generator's own. began: before the frame was encoded; written: to its socket; received: its answers
    were read."""

    frame: int
    began: int
    written: int
    received: int
    orders: int
    refused: int


TRACED_EVERY = 4
"""Only frames whose number is a multiple of it are traced. A span costs some 10 us, a look at the CPU clock up to 3."""
SPANS = ("stream submit", "submit", "batch")
"""Of the product's spans those that lie on an order's way through a leader."""
KINDS: dict[str, int] = {
    kind.__name__: len(kind._fields)
    for kind in (In, Span, Out, Batch, Sent, Arrived, Disk, Replied, Acked, Applied, Asked)
}
