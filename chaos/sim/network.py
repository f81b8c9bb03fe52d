"""The network between members: connections with two ends that learn of their fate at different times.

Inside a connection messages come in order, delayed, or not at all once it breaks. What an old connection still
carried may come late to a receiver that lives on, never to one that was started anew.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from chaos.sim.chance import Chance
from chaos.sim.world import World


class Weather(Struct, frozen=True):
    """delay_us: (least, most) inside a site and between sites. spike: per mille of messages that take far longer.

    twice: per mille of messages that come twice.
    late: per mille of broken connections whose last messages still come, up to late_us_max later.
    silent_us: a link that is blocked for so long is closed. redial_us: (least, most) until it is dialed anew.
    """

    delay_us: tuple[int, int]
    site_delay_us: tuple[int, int]
    spike: int
    spike_us: int
    twice: int
    late: int
    late_us_max: int
    silent_us: int
    redial_us: tuple[int, int]


class End(Protocol):
    """What the network needs of a member."""

    name: str
    site: str
    alive: bool
    incarnation: int

    def link_up(self, other: str) -> None: ...

    def link_down(self, other: str) -> None: ...

    def message(self, source: str, incarnation: int, message: Any, late: bool) -> None: ...


class Connection:
    __slots__ = ("incarnations", "number", "open", "pumping", "queues")

    def __init__(self, number: int, incarnations: dict[str, int]) -> None:
        self.number = number
        self.incarnations = incarnations
        self.open = True
        self.queues: dict[str, deque[tuple[int, Any]]] = {name: deque() for name in incarnations}
        self.pumping: dict[str, bool] = dict.fromkeys(incarnations, False)


Pair = tuple[str, str]


class Network:
    """blocked: direction -> until when nothing passes there."""

    def __init__(self, world: World, chance: Chance, weather: Weather, counters: Counter[str]) -> None:
        self.world = world
        self.chance = chance
        self.weather = weather
        self.counters = counters
        self.ends: dict[str, End] = {}
        self.blocked: dict[Pair, int] = {}
        self.newest: dict[Pair, Connection | None] = {}
        self.seen: dict[Pair, Connection] = {}  # (own end, other) -> what that end uses
        self._ways: dict[Pair, tuple[int, int]] = {}  # the least and the most that a message takes
        self._numbers = 0

    def join(self, end: End) -> None:
        for other in self.ends.values():
            self.newest[_pair(end.name, other.name)] = None
            way = self.weather.site_delay_us if end.site == other.site else self.weather.delay_us
            self._ways[end.name, other.name] = self._ways[other.name, end.name] = way
        self.ends[end.name] = end

    # -- connections -----------------------------------------------------------------------------

    def is_blocked(self, source: str, target: str) -> bool:
        return self.blocked.get((source, target), 0) > self.world.now_us

    def dial_all(self, name: str) -> None:
        for other in self.ends:
            if other != name:
                self.world.at(self.chance.between(1_000, 20_000), self.dial, name, other)

    def dial(self, a: str, b: str) -> None:
        """Connect the pair unless it is; try again while it can't be."""
        current = self.newest[_pair(a, b)]
        if (current is not None and current.open) or not (self.ends[a].alive and self.ends[b].alive):
            return
        if self.is_blocked(a, b) or self.is_blocked(b, a):
            self.world.at(self.chance.between(*self.weather.redial_us), self.dial, a, b)
            return
        self.connect(a, b)

    def connect(self, a: str, b: str) -> None:
        """A new connection, whether or not there is one: an older one is superseded at each end when it learns."""
        if not (self.ends[a].alive and self.ends[b].alive):
            return
        older = self.newest[_pair(a, b)]
        if older is not None and older.open:
            self.counters["duplicate_connections"] += 1
            self._abandon(a, b, older)
        self._numbers += 1
        connection = Connection(self._numbers, {a: self.ends[a].incarnation, b: self.ends[b].incarnation})
        self.newest[_pair(a, b)] = connection
        for me, other in ((a, b), (b, a)):
            self.world.at(self._delay(me, other), self._up, me, other, connection)

    def _up(self, me: str, other: str, connection: Connection) -> None:
        end = self.ends[me]
        if not connection.open or not end.alive or end.incarnation != connection.incarnations[me]:
            return
        if (me, other) in self.seen:
            end.link_down(other)
        self.seen[me, other] = connection
        end.link_up(other)

    def reset(self, a: str, b: str) -> None:
        """Break the pair's connection; both ends learn soon and dial anew."""
        connection = self.newest[_pair(a, b)]
        if connection is None or not connection.open:
            return
        self._abandon(a, b, connection)
        for me, other in ((a, b), (b, a)):
            self.world.at(self._delay(me, other), self._down, me, other, connection)
        self.world.at(self.chance.between(*self.weather.redial_us), self.dial, a, b)

    def _down(self, me: str, other: str, connection: Connection) -> None:
        end = self.ends[me]
        if self.seen.get((me, other)) is not connection:
            return
        del self.seen[me, other]
        if end.alive and end.incarnation == connection.incarnations[me]:
            end.link_down(other)

    def _abandon(self, a: str, b: str, connection: Connection) -> None:
        connection.open = False
        for source, target in ((a, b), (b, a)):
            queue = connection.queues[target]
            if queue and self.chance.happens(self.weather.late):
                delay_us = self.chance.between(1_000, self.weather.late_us_max)
                incarnation = connection.incarnations[target]
                for position, (_, message) in enumerate(queue):
                    self.world.at(delay_us + position, self._late, source, target, incarnation, message)
            queue.clear()

    def _late(self, source: str, target: str, incarnation: int, message: Any) -> None:
        if self.is_blocked(source, target):
            return
        end = self.ends[target]
        if end.alive and end.incarnation == incarnation:
            end.message(source, incarnation, message, True)

    def crashed(self, name: str) -> None:
        """The others' kernels say so soon, unless they are cut off: then silence says so later."""
        for other in self.ends:
            if other == name:
                continue
            self.seen.pop((name, other), None)
            connection = self.newest[_pair(name, other)]
            if connection is not None and connection.open:
                self._abandon(name, other, connection)
                delay_us = self._delay(name, other)
                if self.is_blocked(name, other):
                    delay_us += self.weather.silent_us
                self.world.at(delay_us, self._down, other, name, connection)

    def block(self, source: str, target: str, until_us: int) -> None:
        """Nothing passes in this direction; a block longer than the silence that links bear closes the link."""
        self.blocked[source, target] = max(until_us, self.blocked.get((source, target), 0))
        connection = self.newest[_pair(source, target)]
        if connection is not None:
            self.world.at(self.weather.silent_us, self._silent, source, target, connection)

    def _silent(self, source: str, target: str, connection: Connection) -> None:
        if connection.open and self.is_blocked(source, target):
            self.reset(source, target)

    def calm(self) -> None:
        """From now on no message takes much longer than others, and none comes twice."""
        self.weather = replace(self.weather, spike=0, twice=0)

    def heal(self, but: Iterable[Pair] = ()) -> None:
        """Whatever is blocked passes again, what waited first; `but` these directions."""
        kept = dict.fromkeys(but)
        healed = [pair for pair in self.blocked if pair not in kept]
        for pair in healed:
            del self.blocked[pair]
        for source, target in healed:
            connection = self.newest[_pair(source, target)]
            if connection is not None and connection.open:
                self._pump(source, target, connection)

    # -- messages --------------------------------------------------------------------------------

    def send(self, source: str, target: str, message: Any) -> bool:
        """False: there is no link."""
        connection = self.seen.get((source, target))
        if connection is None:
            return False
        if connection.open:
            delay_us = self._delay(source, target)
            due_us = self.world.now_us + delay_us
            queue = connection.queues[target]
            queue.append((due_us, message))
            if self.weather.twice and self.chance.happens(self.weather.twice):
                self.counters["doubled_messages"] += 1
                queue.append((due_us + 1, message))
            if not connection.pumping[target]:
                connection.pumping[target] = True
                self.world.at(delay_us, self._pump, source, target, connection)
        return True

    def _pump(self, source: str, target: str, connection: Connection) -> None:
        connection.pumping[target] = False
        if not connection.open:
            return
        now_us = self.world.now_us
        until_us = self.blocked.get((source, target), 0)
        queue = connection.queues[target]
        if until_us > now_us:
            connection.pumping[target] = True
            self.world.at(until_us - now_us, self._pump, source, target, connection)
            return
        end = self.ends[target]
        while queue and queue[0][0] <= now_us:
            message = queue.popleft()[1]
            if end.alive and end.incarnation == connection.incarnations[target]:
                end.message(source, end.incarnation, message, False)
        if queue and not connection.pumping[target]:
            connection.pumping[target] = True
            self.world.at(queue[0][0] - now_us, self._pump, source, target, connection)

    def _delay(self, a: str, b: str) -> int:
        weather = self.weather
        delay_us = self.chance.between(*self._ways[a, b])
        if weather.spike and self.chance.happens(weather.spike):
            delay_us += self.chance.between(0, weather.spike_us)
        return delay_us


def _pair(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)
