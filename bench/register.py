"""Judges reads of a counter that clients raised meanwhile: none may be older than what was acknowledged before it.

Times are of one clock on one machine (`time.monotonic_ns`), taken before a request is sent and after its answer came.
Every write adds one. So a read that was sent at t must show at least as many as were acknowledged before t, and at
most as many as were sent before its answer came; and it must show no less than a read that was over before t.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from msgspec import Struct


class Write(Struct):
    """One added. returned_ns 0: never acknowledged, so it may have happened or not, at any time after called_ns."""

    called_ns: int
    returned_ns: int = 0
    index: int = 0
    """Where in the log it is; 0 where it was not acknowledged."""


class Read(Struct, frozen=True):
    """value: what the counter was said to be; index: of the log, which the answer said that it reflects."""

    called_ns: int
    returned_ns: int
    value: int
    index: int
    member: str


class Verdict(Struct, frozen=True):
    """Each read counts once at most in each of them.

    stale: less than was acknowledged before it was sent. backwards: less than an earlier read saw.
    behind: its log index is below that of a write acknowledged before it was sent.
    ahead: more than was ever sent until its answer came: something was executed twice.
    mismatched: not what the counter was at the log index that it says.
    oldest_ms: by how much the worst stale read was out of date: the age of the first write that it missed.
    """

    reads: int
    writes: int
    stale: int
    backwards: int
    behind: int
    ahead: int
    mismatched: int
    oldest_ms: float

    @property
    def wrong(self) -> int:
        return self.stale + self.backwards + self.behind + self.ahead + self.mismatched


def judge(writes: Iterable[Write], reads: Sequence[Read], *, others: Iterable[Read] = ()) -> Verdict:
    """others: reads that are known to be right: what they saw before a read was sent, it must see as well."""
    written = list(writes)
    acknowledged = sorted((write.returned_ns, write.index) for write in written if write.returned_ns)
    returned_ns = [at for at, _ in acknowledged]
    called_ns = sorted(write.called_ns for write in written)
    indexes = _running_max(index for _, index in acknowledged)
    seen = sorted((read.returned_ns, read.value) for read in (*reads, *others))
    seen_ns, seen_values = [at for at, _ in seen], _running_max(value for _, value in seen)
    places = sorted(index for _, index in acknowledged)
    unknown = len(written) - len(acknowledged)
    stale = backwards = behind = ahead = mismatched = 0
    oldest_ns = 0
    for read in reads:
        must = bisect_left(returned_ns, read.called_ns)
        if read.value < must:
            stale += 1
            # A counter does not say which writes it holds. At best it misses the newest of them.
            oldest_ns = max(oldest_ns, read.called_ns - returned_ns[read.value])
        before = bisect_left(seen_ns, read.called_ns)
        backwards += bool(before and read.value < seen_values[before - 1])
        behind += bool(must and read.index < indexes[must - 1])
        ahead += read.value > bisect_right(called_ns, read.returned_ns)
        held = bisect_right(places, read.index)
        mismatched += not held <= read.value <= held + unknown
    return Verdict(len(reads), len(written), stale, backwards, behind, ahead, mismatched, round(oldest_ns / 1e6, 3))


def _running_max(values: Iterable[int]) -> list[int]:
    found: list[int] = []
    for value in values:
        found.append(max(value, found[-1]) if found else value)
    return found
