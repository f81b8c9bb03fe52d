"""The newest updates of the channels that lose none, for those who come back: by our sequence or the feed's place."""

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from msgspec import Struct

from gateway.events import Position
from gateway.fanout.fragment import Fragment
from gateway.fanout.topics import CHANNELS, Key


class Place(Struct, frozen=True):
    """Where a reader was: behind `seq` of the gateway's run that is named `epoch`. As text: epoch.seq."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.seq}"


After = Place | Position


def parse_after(text: str) -> After:
    """A place of a gateway (two numbers), or a position of the feed (four). Raises ValueError."""
    parts = text.split(".") if len(text) <= 64 else []
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        return Place(int(parts[0]), int(parts[1]))
    if len(parts) == 4:
        return Position.parse(text)
    raise ValueError(f"{text[:64]!r} is no position; one is epoch.seq, or group.epoch.index.seq of the feed")


class Kept(NamedTuple):
    """One update. mark: the feed's position, of private events only."""

    seq: int
    key: Key
    fragment: Fragment
    mark: Position | None


class Ring:
    """One channel's newest updates, in order."""

    def __init__(self, kept: int) -> None:
        self.updates: deque[Kept] = deque(maxlen=kept)
        self.gone_seq = 0
        """The newest that is no longer held."""
        self.gone_mark: Position | None = None
        """As a position; None: what came before the first update is not known."""

    def append(self, update: Kept) -> None:
        if len(self.updates) == self.updates.maxlen:
            gone = self.updates[0]
            self.gone_seq, self.gone_mark = gone.seq, gone.mark or self.gone_mark
        self.updates.append(update)

    def since(self, after: After, keys: Collection[Key], epoch: int) -> list[Kept] | None:
        """The updates of these topics behind `after`, in order; None: not all of them are held."""
        if isinstance(after, Place):
            if after.epoch != epoch or after.seq < self.gone_seq:
                return None
            found = []
            for one in reversed(self.updates):  # who comes back mostly missed little
                if one.seq <= after.seq:
                    break
                if one.key in keys:
                    found.append(one)
            found.reverse()
            return found
        gone = self.gone_mark
        if gone is None or (after.group, after.epoch) != (gone.group, gone.epoch) or after < gone:
            return None
        return [one for one in self.updates if one.key in keys and one.mark is not None and one.mark > after]


class Rings:
    """All rings of one gateway, and the sequence that numbers their updates. epoch: names this run of the gateway."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.seq = 0
        self.rings = {name: Ring(channel.kept) for name, channel in CHANNELS.items() if channel.kept}

    def append(self, key: Key, fragment: Fragment, mark: Position | None = None) -> Kept:
        """Number one update and keep it."""
        self.seq += 1
        kept = Kept(self.seq, key, fragment, mark)
        self.rings[key[0]].append(kept)
        return kept

    def begin(self, channel: str, mark: Position) -> None:
        """The feed is followed from here on: what came before is not held, what comes is. Drops what was held."""
        self.forget(channel)
        self.rings[channel].gone_mark = mark

    def forget(self, channel: str) -> None:
        """Nothing that came so far can be recovered."""
        ring = self.rings[channel]
        ring.updates.clear()
        ring.gone_seq, ring.gone_mark = self.seq, None

    def since(self, channel: str, after: After, keys: Collection[Key]) -> list[Kept] | None:
        """As Ring.since; a place that is ahead of us is of no run of ours."""
        if isinstance(after, Place) and after.seq > self.seq:
            return None
        return self.rings[channel].since(after, keys, self.epoch)
