"""The rows that a stamping gateway and its workers write, and the load's own. Times in nanoseconds.

A quote is known everywhere by the size of its bid: the venue counts its quotes, and sends the count as that size.
"""

from typing import NamedTuple

from gateway.feeds.ticks import E9

TRACED_HOST = "127.0.0.2"
"""Clients from here are noted; all others come from 127.0.0.1."""


class Fed(NamedTuple):
    """A quote in the core. taken: the feed has its frame; fed: normalised; nbbo: the best prices have it; took: bars,
    tape, books and log, too; noted: the fan-out knows of it."""

    quote: int
    taken: int
    fed: int
    nbbo: int
    took: int
    noted: int
    feed_cpu: int
    take_cpu: int


class Published(NamedTuple):
    """ticked: the turn of publishing what changed has come; published: the hub has its new best price."""

    quote: int
    ticked: int
    published: int


class Handed(NamedTuple):
    """To a worker. began: the core's round of sending; marked: encoded, once for all; writing, written: around all that
    this worker gets."""

    quote: int
    worker: int
    began: int
    marked: int
    writing: int
    written: int


class Cached(NamedTuple):
    """All that was taken in until `taken` was in the cache at `written`."""

    taken: int
    written: int


class Reached(NamedTuple):
    """A quote in a worker. received: the core's message was read; published: this worker's hub has it."""

    quote: int
    received: int
    published: int


class Turn(NamedTuple):
    """A worker's round of sending, by the time that its frames bear."""

    at_us: int
    began: int
    marked: int


class Wrote(NamedTuple):
    """One frame to the client at this port."""

    port: int
    at_us: int
    writing: int
    written: int
    cpu: int


class Asked(NamedTuple):
    """The venue's own: around the write of a quote."""

    quote: int
    began: int
    written: int


class Got(NamedTuple):
    """A client's own: a quote in a frame that was read."""

    quote: int
    port: int
    at_us: int
    received: int


KINDS: dict[str, int] = {
    kind.__name__: len(kind._fields) for kind in (Fed, Published, Handed, Cached, Reached, Turn, Wrote, Asked, Got)
}


def number_of(bid_size_e9: int) -> int:
    """Which quote this is."""
    return bid_size_e9 // E9
