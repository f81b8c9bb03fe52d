"""What users and addresses hold of one gateway, whichever of its processes serves them: counted in one place."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from gateway.stream.admission import Admission, StreamLimits
from node.guard import HttpLimits

STREAM = "stream"
SUBSCRIPTION = "subscription"
CONNECTION = "connection"
Row = tuple[str, str, int]
"""A kind, whose (a user's or an address's), and how many."""
Done = Callable[[bool], None]
"""Told whether there was room, at once or when the core has answered."""


class Door(Protocol):
    """Who asks for places: a process that serves clients. admission: its own, for when it is on its own."""

    admission: Admission

    def take(self, kind: str, name: str, count: int, done: Done) -> None: ...

    def free(self, kind: str, name: str, count: int) -> None: ...

    async def admit(self) -> float:
        """0: a new stream may come in. Else the seconds to wait before coming back."""
        ...


class Caps:
    """most: by kind, what one user or address may hold. connections_max: of all addresses together."""

    def __init__(self, limits: StreamLimits, http: HttpLimits | None = None) -> None:
        http = http or HttpLimits()
        self.connections_max = http.connections_max
        self.most = {
            STREAM: limits.connections_per_user_max,
            SUBSCRIPTION: limits.subscriptions_per_user_max,
            CONNECTION: http.connections_per_address_max,
        }


class Places:
    """Nobody holds more than a cap says, but for what processes gave out while they could not ask.

    holder: a process. What it holds is free again when it is gone, however it went.
    """

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.totals: Counter[str] = Counter()
        """By kind."""
        self._taken: dict[str, Counter[str]] = {kind: Counter() for kind in caps.most}
        self._of: dict[Hashable, Counter[tuple[str, str]]] = {}

    def take(self, holder: Hashable, kind: str, name: str, count: int) -> bool:
        """False: there is no room; nothing was taken. Raises KeyError: there is no such kind."""
        if self._taken[kind][name] + count > self.caps.most[kind]:
            return False
        if kind == CONNECTION and self.totals[kind] + count > self.caps.connections_max:
            return False
        self._add(holder, kind, name, count)
        return True

    def free(self, holder: Hashable, kind: str, name: str, count: int) -> None:
        """Never more than the holder has."""
        self._add(holder, kind, name, -min(count, self._of.get(holder, Counter())[kind, name]))

    def hold(self, holder: Hashable, rows: Iterable[Row]) -> None:
        """This is what a process holds that was out of reach: it can't be asked to give it back."""
        self.left(holder)
        for kind, name, count in rows:
            self._add(holder, kind, name, count)

    def left(self, holder: Hashable) -> None:
        for (kind, name), count in list(self._of.pop(holder, Counter()).items()):
            self._count(kind, name, -count)

    def _add(self, holder: Hashable, kind: str, name: str, count: int) -> None:
        self._count(kind, name, count)
        held = self._of.setdefault(holder, Counter())
        held[kind, name] += count
        if not held[kind, name]:
            del held[kind, name]
        if not held:
            del self._of[holder]

    def _count(self, kind: str, name: str, count: int) -> None:
        taken = self._taken[kind]
        taken[name] += count
        if not taken[name]:
            del taken[name]
        self.totals[kind] += count


class OwnDoor:
    """Of a process that serves alone."""

    def __init__(self, limits: StreamLimits) -> None:
        self.admission = Admission(limits)
        self._places = Places(Caps(limits))

    def take(self, kind: str, name: str, count: int, done: Done) -> None:
        done(self._places.take(None, kind, name, count))

    def free(self, kind: str, name: str, count: int) -> None:
        self._places.free(None, kind, name, count)

    async def admit(self) -> float:
        return self.admission.admit()
