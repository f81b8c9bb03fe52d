"""Where the topics of a stream come from: this process's own market and feed, or the core that a worker is fed by."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from gateway.fanout.fragment import Fragment
from gateway.fanout.hub import Hub, Reader
from gateway.fanout.ring import After, Place, Rings
from gateway.fanout.topics import CHANNELS, Key, Kind


class Opened(Struct):
    """The answer to `open`. All behind `seq` comes to who subscribes in the same turn of the loop.

    states: the topics that exist, each with its newest state, if there is one. missed: what came behind `after`,
    in order, each with its sequence; None: it was not asked for, or not all is held.
    refused: what to say of each topic that does not exist.
    """

    seq: int
    states: dict[Key, Fragment | None]
    missed: list[tuple[int, Key, Fragment]] | None = None
    refused: dict[Key, str] = {}
    away: str = ""
    """Not empty: it could not be answered, and nothing was opened."""


Done = Callable[[Opened], None]
Provider = Callable[[str], Fragment | None]
"""The newest state of a symbol of one channel; None: there is none yet. Raises LookupError: there is no such symbol."""


class Source(Protocol):
    """is_live: it hears of what is new. age_ms: how long ago it last did."""

    @property
    def channels(self) -> Sequence[str]: ...

    @property
    def is_live(self) -> bool: ...

    @property
    def age_ms(self) -> int: ...

    def open(self, keys: Sequence[Key], formats: int, after: After | None, done: Done) -> None:
        """done is called once, now or later, in the very turn in which what it is told holds. All keys: one channel."""
        ...


class LocalSource:
    """Of the process that takes in the data. providers: by channel; one that is not named is not served."""

    def __init__(self, hub: Hub, rings: Rings, providers: Mapping[str, Provider]) -> None:
        self.hub = hub
        self.rings = rings
        self.providers = providers
        self.is_live = True
        self.age_ms = 0

    @property
    def channels(self) -> Sequence[str]:
        return [name for name in CHANNELS if name in self.providers]

    def open(self, keys: Sequence[Key], formats: int, after: After | None, done: Done) -> None:
        opened = Opened(self.rings.seq, {}, refused={})
        for key in keys:
            try:
                opened.states[key] = self.providers[key[0]](key[1])
            except LookupError as error:
                opened.refused[key] = str(error.args[0]) if error.args else "no such symbol"
        if after is not None and keys and CHANNELS[keys[0][0]].kind is Kind.every:
            missed = self.rings.since(keys[0][0], after, opened.states.keys())
            if missed is not None:
                opened.missed = [(one.seq, one.key, one.fragment) for one in missed]
        done(opened)


def subscribe(hub: Hub, reader: Reader, opened: Opened, *, formats: int, slow: bool = False) -> None:
    """Make the reader one of all topics that exist. Call it from `done`."""
    for key, fragment in opened.states.items():
        topic = hub.subscribe(reader, key, formats=formats, slow=slow)
        if fragment is not None and topic.channel.kind is Kind.newest:
            topic.fragment = fragment
            topic.encode()
            reader.dirty.add(topic)


def resume_seq(opened: Opened, after: After | None, now_seq: int) -> int:
    """Behind what a reader is that was just opened, before it is sent what it missed."""
    if not opened.missed:
        return now_seq
    return after.seq if isinstance(after, Place) else opened.missed[0][0] - 1
