"""The figures that the generator was fitted to, of any flow: what `tiebreak bench fit` prints."""

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from bench.generator import CENT
from bench.lobster import ASK, BID, Kind, Message, Row

DISTANCES = (10, 20, 50, 100)


class Marginals(Struct, frozen=True):
    """One column of the table. Shares are of new orders, in percent, where not said otherwise."""

    events: int
    mean_gap_ms: float
    gap_us: tuple[float, ...]
    """Quantiles 10, 25, 50, 75, 90."""
    deletes: float
    reduces: float
    takes: float
    """Orders that traded at once: executions of one side at one instant."""
    hits_per_take: float
    improves: float
    joins: float
    deeper_than: tuple[float, ...]
    """Of those behind the touch: the share at least this many cents behind (DISTANCES)."""
    size_100: float
    size_odd: float
    size_quantiles: tuple[int, ...]
    """Quantiles 10, 25, 50, 75, 90."""
    life_ms: tuple[float, ...]
    """Age of deleted orders. Quantiles 10, 25, 50, 75, 90."""
    spread_cents: tuple[int, ...]
    """Before each event. Quantiles 10, 25, 50, 75, 90."""
    resting: int
    """Orders that rest on average, of those that the flow submitted."""


class _Touch:
    """Best bid and ask of a flow, by level arithmetic."""

    def __init__(self) -> None:
        self.lots: dict[int, dict[int, int]] = {BID: {}, ASK: {}}

    def show(self, row: Row) -> None:
        self.lots = {BID: {}, ASK: {}}
        for ask_price, ask_size, bid_price, bid_size in row:
            if ask_size:
                self.lots[ASK][ask_price] = ask_size
            if bid_size:
                self.lots[BID][bid_price] = bid_size

    def best(self, direction: int) -> int | None:
        side = self.lots[direction]
        return (max(side) if direction == BID else min(side)) if side else None

    def follow(self, message: Message) -> None:
        side = self.lots[message.direction]
        left = side.get(message.price, 0) + (message.size if message.kind == Kind.submit else -message.size)
        if left > 0:
            side[message.price] = left
        else:
            side.pop(message.price, None)


def quantiles(values: Iterable[int], percents: Sequence[int] = (10, 25, 50, 75, 90)) -> tuple[int, ...]:
    """Zeroes when there are no values."""
    ordered = sorted(values)
    return tuple(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] if ordered else 0 for p in percents)


def marginals(messages: Iterable[Message], rows: Iterable[Row] = ()) -> Marginals:
    """The figures of a flow. rows: the book after each message; where it ends, the flow goes on by arithmetic."""
    touch = _Touch()
    following = iter(rows)
    kinds: Counter[int] = Counter()
    gaps: list[int] = []
    distances: list[int] = []
    sizes: list[int] = []
    ages: list[int] = []
    spreads: list[int] = []
    born: dict[int, tuple[int, int]] = {}
    takes = resting = 0
    before: Message | None = None
    for message in messages:
        row = next(following, None)
        if message.kind not in (Kind.submit, Kind.reduce, Kind.delete, Kind.execute):
            continue
        kinds[message.kind] += 1
        own, other = touch.best(message.direction), touch.best(-message.direction)
        if before is not None:
            gaps.append(message.time_ns - before.time_ns)
        if own is not None and other is not None:
            spreads.append(abs(other - own) // CENT)
        if message.kind == Kind.submit:
            sizes.append(message.size)
            born[message.order_id] = (message.time_ns, message.size)
            if own is not None:
                distances.append((own - message.price) * message.direction // CENT)
        elif message.order_id in born:
            at_ns, left = born.pop(message.order_id)
            if message.kind == Kind.delete:
                ages.append(message.time_ns - at_ns)
            elif left > message.size:
                born[message.order_id] = (at_ns, left - message.size)
        if message.kind == Kind.execute and not _same_take(before, message):
            takes += 1
        resting += len(born)
        if row is None:
            touch.follow(message)
        else:
            touch.show(row)
        before = message
    events, submits = sum(kinds.values()), max(1, kinds[Kind.submit])
    deeper = [distance for distance in distances if distance > 0]
    return Marginals(
        events=events,
        mean_gap_ms=sum(gaps) / max(1, len(gaps)) / 1e6,
        gap_us=tuple(gap / 1e3 for gap in quantiles(gaps)),
        deletes=100 * kinds[Kind.delete] / submits,
        reduces=100 * kinds[Kind.reduce] / submits,
        takes=100 * takes / submits,
        hits_per_take=kinds[Kind.execute] / max(1, takes),
        improves=100 * sum(distance < 0 for distance in distances) / submits,
        joins=100 * sum(distance == 0 for distance in distances) / submits,
        deeper_than=tuple(100 * sum(d >= k for d in deeper) / max(1, len(deeper)) for k in DISTANCES),
        size_100=100 * sum(size == 100 for size in sizes) / submits,
        size_odd=100 * sum(size % 100 != 0 for size in sizes) / submits,
        size_quantiles=quantiles(sizes),
        life_ms=tuple(age / 1e6 for age in quantiles(ages)),
        spread_cents=quantiles(spreads),
        resting=resting // max(1, events),
    )


def _same_take(before: Message | None, message: Message) -> bool:
    return (
        before is not None
        and before.kind == Kind.execute
        and (before.time_ns, before.direction) == (message.time_ns, message.direction)
    )


def rows(columns: Sequence[Marginals]) -> list[tuple[str, list[str]]]:
    """The table: a name and a cell for each column."""

    def line(name: str, pick: str, text: str = "{:.1f}") -> tuple[str, list[str]]:
        cells: list[str] = []
        for column in columns:
            value = getattr(column, pick)
            cells.append(" / ".join(map(text.format, value)) if isinstance(value, tuple) else text.format(value))
        return name, cells

    return [
        line("visible events", "events", "{:,}"),
        line("mean gap, ms", "mean_gap_ms"),
        line("gap at 10/25/50/75/90 %, us", "gap_us", "{:.0f}"),
        line("deletions per 100 new orders", "deletes"),
        line("partial cancels per 100", "reduces"),
        line("takes per 100", "takes"),
        line("orders hit per take", "hits_per_take", "{:.2f}"),
        line("new orders that improve, %", "improves"),
        line("new orders that join, %", "joins"),
        line("of the deeper ones, at least 10/20/50/100 cents, %", "deeper_than", "{:.0f}"),
        line("size 100, %", "size_100"),
        line("size not a round lot, %", "size_odd"),
        line("size at 10/25/50/75/90 %", "size_quantiles", "{}"),
        line("age of deleted orders at 10/25/50/75/90 %, ms", "life_ms", "{:.0f}"),
        line("spread at 10/25/50/75/90 %, cents", "spread_cents", "{}"),
        line("resting orders, mean", "resting", "{:,}"),
    ]
