"""Price alerts against ticks, without I/O: which fire now, at this site, under which arming.

An alert fires at the first fresh price that meets it, so one that is met when it is set fires at once. A repeating one
then rests until the price has gone back by its hysteresis and its cool-down has passed. Both sites watch every alert;
its owner fires at once, the other only when nothing was heard of a firing for `takeover_ms`, or the owner is away.
"""

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from heapq import heappop, heappush

from msgspec import Struct

from gateway.alerts.ladder import Key, Ladder
from gateway.alerts.ownership import owner
from gateway.alerts.window import BPS, Window
from gateway.prefs.alert import MOVES, Condition, Terms
from gateway.prefs.crdt import Dot, Version

STALE_MS = 1_000
"""A price older than this fires nothing; nor does one so far ahead of our clock."""
TAKEOVER_MS = 3_000
RETRY_MS = 1_000
US = 1_000


class Firing(Struct, frozen=True):
    """An alert is met. arming: how often it fired before under this dot. value: the price, or the move in bps."""

    user: str
    alert_id: str
    dot: Dot
    arming: int
    terms: Terms
    at_us: int
    price_e9: int
    value: int

    @property
    def key(self) -> Key:
        return self.user, self.alert_id

    @property
    def firing_id(self) -> str:
        """The same at both sites for the same arming: receivers drop repeats by it."""
        return f"{self.alert_id}/{self.dot.writer}/{self.dot.number}/{self.arming}"


class Stage(Enum):
    armed = 1
    fired = 2
    """Met; the store, or the other site, has not said yet that it was counted."""
    resting = 3
    cooling = 4
    done = 5


class Watch(Struct):
    dot: Dot
    fired: int
    fired_at_us: int
    terms: Terms
    stage: Stage = Stage.done

    @property
    def cool_at_us(self) -> int:
        return self.fired_at_us + self.terms.cooldown_s * 1_000_000


class Book:
    """The alerts on one symbol."""

    def __init__(self) -> None:
        self.above = Ladder()
        self.below = Ladder()
        self.windows: dict[int, Window] = {}
        self.moves: dict[tuple[int, Condition], Ladder] = {}
        self.last_us = 0
        self.watches = 0
        """Alerts that may still fire; with none the book goes."""

    def ladder(self, terms: Terms) -> Ladder:
        if terms.condition is Condition.above:
            return self.above
        if terms.condition is Condition.below:
            return self.below
        self.windows.setdefault(terms.window_s, Window(terms.window_s))
        return self.moves.setdefault((terms.window_s, terms.condition), Ladder())

    def moved(self, price_e9: int, time_us: int) -> Iterable[tuple[Ladder, int]]:
        """Each ladder of moves with what it measures now, in basis points."""
        for seconds, window in self.windows.items():
            window.add(price_e9, time_us)
            risen, fallen = window.risen_bps(price_e9), window.fallen_bps(price_e9)
            moved = {Condition.rises: risen, Condition.falls: fallen, Condition.moves: max(risen, fallen)}
            for condition, value in moved.items():
                if ladder := self.moves.get((seconds, condition)):
                    yield ladder, value


def level(terms: Terms) -> int:
    if terms.condition in MOVES:
        return terms.move_bps
    return terms.price_e9 if terms.condition is Condition.above else -terms.price_e9


def level_back(terms: Terms) -> int:
    """Where the value must have gone back to before the alert is armed again."""
    if terms.condition in MOVES:
        return max(terms.move_bps // 2, terms.move_bps - terms.hysteresis_bps)
    return level(terms) - max(1, terms.price_e9 * terms.hysteresis_bps // BPS)


class Engine:
    """All alerts of all users, as one site sees them. What a method returns is to be fired: counted in the store and
    delivered; `put` then tells what became of it."""

    def __init__(self, site: str, *, stale_ms: int = STALE_MS, takeover_ms: int = TAKEOVER_MS) -> None:
        self._site = site
        self._live = [site]
        self._stale_us = stale_ms * US
        self._takeover_us = takeover_ms * US
        self._books: dict[str, Book] = {}
        self._users: dict[str, dict[str, Watch]] = {}
        self._cooling: list[tuple[int, Key]] = []
        self._held: dict[Key, tuple[int, Firing]] = {}
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    # -- what users wrote ----------------------------------------------------------------------

    def put(self, user: str, alerts: Iterable[tuple[str, Version]]) -> None:
        """These are all alerts of the user now."""
        known = self._users.get(user, {})
        wanted = dict(alerts)
        symbols = {watch.terms.symbol for watch in known.values()}
        for alert_id in [alert_id for alert_id in known if alert_id not in wanted]:
            self._drop((user, alert_id), known.pop(alert_id))
        for alert_id, version in wanted.items():
            watch = known.get(alert_id)
            if watch is not None and watch.dot == version.dot and watch.fired == version.fired:
                continue
            if watch is not None:
                self._drop((user, alert_id), watch)
            known[alert_id] = self._watch((user, alert_id), version)
        if known:
            self._users[user] = known
        else:
            self._users.pop(user, None)
        # Only now: what is replaced on the same symbol goes on with its windows.
        for symbol in symbols:
            if (book := self._books.get(symbol)) is not None and not book.watches:
                del self._books[symbol]

    def _watch(self, key: Key, version: Version) -> Watch:
        watch = Watch(version.dot, version.fired, version.fired_at_us, version.terms)
        if not version.armed:
            return watch
        book = self._books.setdefault(version.terms.symbol, Book())
        book.watches += 1
        if version.fired:
            watch.stage = Stage.resting
            book.ladder(version.terms).rest(key, level_back(version.terms))
        else:
            self._arm(key, watch)
        return watch

    def _drop(self, key: Key, watch: Watch) -> None:
        self._held.pop(key, None)
        if watch.stage is Stage.done:
            return
        book = self._books[watch.terms.symbol]
        book.ladder(watch.terms).remove(key)
        book.watches -= 1

    # -- what happens --------------------------------------------------------------------------

    def tick(self, symbol: str, price_e9: int, time_us: int, now_us: int) -> list[Firing]:
        """A price of the symbol, as of time_us. Stale ones and no prices are passed over. Venues' trades come a little
        out of order: one that is a moment older than the last is as fresh, and counts as now for a move."""
        book = self._books.get(symbol)
        if book is None:
            return []
        if price_e9 <= 0 or abs(now_us - time_us) > self._stale_us:
            self.counters["ticks_passed_over"] += 1
            return []
        book.last_us = max(book.last_us, time_us)
        found: list[Firing] = []
        # Spelled out: this is what nearly every tick of every symbol costs.
        above, below = book.above, book.below
        if not above.highest_resting < price_e9 < above.lowest_armed:
            self._passed(above, price_e9, price_e9, time_us, now_us, found)
        if not below.highest_resting < -price_e9 < below.lowest_armed:
            self._passed(below, -price_e9, price_e9, time_us, now_us, found)
        if book.windows:
            for ladder, value in book.moved(price_e9, book.last_us):
                self._passed(ladder, value, price_e9, time_us, now_us, found)
        return found

    def _passed(
        self, ladder: Ladder, value: int, price_e9: int, time_us: int, now_us: int, found: list[Firing]
    ) -> None:
        for key in ladder.fallen(value):
            self._went_back(key, now_us)
        for key in ladder.reached(value):
            firing = self._met(key, time_us, price_e9, value, now_us)
            if firing is not None:
                found.append(firing)

    def _met(self, key: Key, time_us: int, price_e9: int, value: int, now_us: int) -> Firing | None:
        user, alert_id = key
        watch = self._users[user][alert_id]
        watch.stage = Stage.fired
        value = value if watch.terms.condition in MOVES else price_e9
        firing = Firing(user, alert_id, watch.dot, watch.fired, watch.terms, time_us, price_e9, value)
        if self._owned(key):
            return firing
        self._held[key] = now_us + self._takeover_us, firing
        return None

    def _went_back(self, key: Key, now_us: int) -> None:
        watch = self._users[key[0]][key[1]]
        if watch.cool_at_us > now_us:
            watch.stage = Stage.cooling
            heappush(self._cooling, (watch.cool_at_us, key))
        else:
            self._arm(key, watch)

    def _arm(self, key: Key, watch: Watch) -> None:
        watch.stage = Stage.armed
        self._books[watch.terms.symbol].ladder(watch.terms).arm(key, level(watch.terms))

    def due(self, now_us: int) -> list[Firing]:
        """To be called a few times a second: cool-downs that end, owners that said nothing, firings that were held."""
        while self._cooling and self._cooling[0][0] <= now_us:
            at_us, key = heappop(self._cooling)
            watch = self._users.get(key[0], {}).get(key[1])
            # Replaced, or fired again at the other site, it is not the cooling that this entry stands for.
            if watch is not None and watch.stage is Stage.cooling and watch.cool_at_us == at_us:
                self._arm(key, watch)
        found = [firing for at_us, firing in self._held.values() if at_us <= now_us]
        for firing in found:
            del self._held[firing.key]
            self.counters["takeovers"] += not self._owned(firing.key)
        return found

    def hold(self, firing: Firing, now_us: int) -> None:
        """It could not be counted now; `due` gives it again, unless the alert is another by then."""
        watch = self._users.get(firing.user, {}).get(firing.alert_id)
        if watch is not None and watch.dot == firing.dot and watch.fired == firing.arming:
            self._held[firing.key] = now_us + RETRY_MS * US, firing

    def set_live(self, sites: Iterable[str]) -> list[Firing]:
        """These sites are heard now, this one included. What an absent owner has seen and not fired is fired."""
        self._live = sorted({self._site, *sites})
        found = [firing for _, firing in self._held.values() if self._owned(firing.key)]
        for firing in found:
            del self._held[firing.key]
        return found

    def _owned(self, key: Key) -> bool:
        return owner("/".join(key), self._live) == self._site

    def stage(self, user: str, alert_id: str) -> Stage | None:
        watch = self._users.get(user, {}).get(alert_id)
        return watch.stage if watch is not None else None
