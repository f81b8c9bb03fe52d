"""The availability timeline as one SVG: faults, who led, and what each process answered, over one axis of time."""

import math
from collections.abc import Callable, Iterable
from html import escape
from itertools import pairwise

from chaos.report.timeline import OUTCOMES, Band, Lane, Timeline

WIDTH = 1120
LEFT = 150
RIGHT = 16
TOP = 26
ROW = 20
"""Of the strips on top, one line of text high."""
LANE = 76
GAP = 14
SITE_GAP = 26
ROWS_MAX = 12
"""Rows of faults at most; what has no room shares the last."""
LABEL_PX = 6.3
"""A letter of a label is about so wide."""
SITE_TITLES = {"dc-a": "Datacenter A", "dc-b": "Datacenter B", "any": "Any member", "tiebreaker": "Tiebreaker"}
PHASE_TITLES = {
    "start": "start",
    "warmup": "warm-up",
    "faults": "faults",
    "healing": "healing",
    "final": "",
    "end": "",
}
OUTCOME_TITLES = {"ok": "answered", "fail": "refused", "unknown": "outcome unknown"}


def draw(made: Timeline) -> str:
    """One <svg> element; its colours are classes of the page. All names in it are escaped."""
    return _Drawing(made).svg()


class _Drawing:
    def __init__(self, made: Timeline) -> None:
        self.made = made
        self.parts: list[str] = []
        self.bottom = 0.0
        self.scale = (WIDTH - LEFT - RIGHT) / max(made.seconds, 1e-9)

    def svg(self) -> str:
        y = float(TOP)
        y = self._strip("phase", y, self._phases)
        y = self._strip("faults", y, self._faults)
        y = self._strip("leader", y, self._reigns)
        lanes_from = y + 6
        body_at = len(self.parts)
        y = self._lanes(lanes_from)
        self.bottom = y
        # Behind the bars, so that they stay readable.
        self.parts[body_at:body_at] = self._shadows(lanes_from)
        self._axis()
        label = f"Answers per second of each process over {self.made.seconds:.0f} seconds, with faults as bands"
        return (
            f'<svg viewBox="0 0 {WIDTH} {y + 26:.0f}" role="img" aria-label="{escape(label)}" '
            f'xmlns="http://www.w3.org/2000/svg">{"".join(self.parts)}</svg>'
        )

    def x(self, at_s: float) -> float:
        return LEFT + min(max(at_s, 0.0), self.made.seconds) * self.scale

    def _strip(self, title: str, y: float, fill: Callable[[float], float]) -> float:
        bottom = fill(y)
        if bottom > y:
            self._text(LEFT - 10, y + 14, title, "end", "strip")
            return bottom + 4
        return y

    def _phases(self, y: float) -> float:
        for name, from_s, to_s in self.made.phases:
            title = PHASE_TITLES.get(name, name)
            if title and to_s > from_s:
                self._box(from_s, to_s, y, f"phase {name}", title, f"{title}: {from_s:.1f} s to {to_s:.1f} s")
        return y + ROW if self.made.phases else y

    def _faults(self, y: float) -> float:
        ends: list[float] = []
        for band in self.made.bands:
            label = f"{band.number} {fault_label(band)}"
            # A label stands behind a fault that is too short for it, or before it where the page ends.
            needs_from, needs_to, needs_px = self.x(band.from_s), self.x(band.to_s), len(label) * LABEL_PX + 8
            if needs_to - needs_from < needs_px:
                before = needs_to + needs_px > WIDTH - RIGHT
                needs_from, needs_to = needs_from - before * needs_px, needs_to + (not before) * needs_px
            free = (row for row, end in enumerate(ends) if end + 3 <= needs_from)
            row = next(free, min(len(ends), ROWS_MAX - 1))
            ends[row : row + 1] = [needs_to]
            told = "seen to bite" if band.bit else "could not be put in" if band.failed else "NOT seen to bite"
            long = f"{label}: {band.from_s:.1f} s to {band.to_s:.1f} s, {told}"
            kind = "fault" if band.bit else "fault unseen"
            self._box(band.from_s, band.to_s, y + row * ROW, kind, label, long, spill=True)
        return y + len(ends) * ROW

    def _reigns(self, y: float) -> float:
        for reign in self.made.reigns:
            site = "a" if "dc-a" in reign.name else "b" if "dc-b" in reign.name else "t"
            label = f"{reign.name} · term {reign.term}"
            long = f"{label}: {reign.from_s:.1f} s to {reign.to_s:.1f} s"
            self._box(reign.from_s, reign.to_s, y, f"reign {site}", label, long)
        return y + ROW if self.made.reigns else y

    def _box(
        self, from_s: float, to_s: float, y: float, kind: str, label: str, title: str, *, spill: bool = False
    ) -> None:
        left, width = self.x(from_s), max(self.x(to_s) - self.x(from_s), 1.5)
        self.parts.append(
            f'<g><title>{escape(title)}</title><rect class="{kind}" x="{left:.1f}" y="{y:.1f}" '
            f'width="{width:.1f}" height="{ROW - 3}" rx="2"/></g>'
        )
        fits = int((width - 8) / LABEL_PX)
        if len(label) <= fits:
            self._text(left + 5, y + 13, label, "start", "label")
        elif spill and left + width + len(label) * LABEL_PX + 8 > WIDTH - RIGHT:
            # It would leave the page: let it end where the fault begins.
            self._text(max(left, LEFT) - 4, y + 13, label, "end", "label")
        elif spill:
            self._text(left + width + 4, y + 13, label, "start", "label")
        elif fits >= 6:
            self._text(left + 5, y + 13, label[: fits - 1] + "…", "start", "label")

    def _shadows(self, from_y: float) -> Iterable[str]:
        for band in self.made.bands:
            left, width = self.x(band.from_s), max(self.x(band.to_s) - self.x(band.from_s), 1.0)
            height = self.bottom - from_y
            yield (f'<rect class="shadow" x="{left:.1f}" y="{from_y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
        for before, after in pairwise(self.made.reigns):
            if before.term != after.term:
                x = self.x(after.from_s)
                title = escape(f"{after.name} leads term {after.term} from {after.from_s:.1f} s on")
                yield (
                    f'<line class="change" x1="{x:.1f}" y1="{from_y:.1f}" x2="{x:.1f}" y2="{self.bottom:.1f}">'
                    f"<title>{title}</title></line>"
                )

    def _lanes(self, y: float) -> float:
        site = ""
        peaks = {
            kind: max((_peak(lane) for lane in self.made.lanes if lane.is_gateway is kind), default=1)
            for kind in (False, True)
        }
        for lane in self.made.lanes:
            if lane.site != site:
                site = lane.site
                y += SITE_GAP
                self._text(8, y - 6, SITE_TITLES.get(site, site), "start", "site")
                self.parts.append(f'<line class="rule" x1="8" y1="{y - 1:.1f}" x2="{WIDTH - RIGHT}" y2="{y - 1:.1f}"/>')
                y += 6
            self._lane(lane, y, peaks[lane.is_gateway])
            y += LANE + GAP
        return y

    def _lane(self, lane: Lane, y: float, peak: int) -> None:
        """Members share one scale, and so do gateways: a side that does less is seen to do less."""
        bin_s, base = self.made.bin_s, y + LANE
        top = nice(peak / bin_s)
        kind = "gateway" if lane.is_gateway else "member"
        self._text(LEFT - 40, y + 26, lane.name, "end", "name")
        self._text(LEFT - 40, y + 42, kind, "end", "small")
        self._text(LEFT - 6, y + 8, f"{top:g}/s", "end", "small")
        self._text(LEFT - 6, base, "0", "end", "small")
        for height in (0.0, 0.5, 1.0):
            at = base - height * LANE
            self.parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}"/>')
        for place in range(self.made.bins):
            self._bar(lane, place, base, LANE / (top * bin_s))
        for from_s, to_s in lane.down:
            left, width = self.x(from_s), max(self.x(to_s) - self.x(from_s), 1.5)
            self.parts.append(
                f'<rect class="down" x="{left:.1f}" y="{base + 1.5:.1f}" width="{width:.1f}" height="4">'
                f"<title>{escape(lane.name)} not reached: {from_s:.1f} s to {to_s:.1f} s</title></rect>"
            )

    def _bar(self, lane: Lane, place: int, base: float, per_op: float) -> None:
        counts = {outcome: lane.per_bin[outcome][place] for outcome in OUTCOMES}
        if not any(counts.values()):
            return
        from_s = place * self.made.bin_s
        left, right = self.x(from_s), self.x(from_s + self.made.bin_s)
        told = ", ".join(f"{count} {OUTCOME_TITLES[outcome]}" for outcome, count in counts.items() if count)
        self.parts.append(f"<g><title>{escape(lane.name)}, {from_s:g} s: {told}</title>")
        y = base
        for outcome, count in counts.items():
            if count:
                height = count * per_op
                y -= height
                self.parts.append(
                    f'<rect class="{outcome}" x="{left:.1f}" y="{y:.1f}" '
                    f'width="{max(right - left - 0.8, 0.8):.1f}" height="{height:.1f}"/>'
                )
        self.parts.append("</g>")

    def _axis(self) -> None:
        step = nice(self.made.seconds / 10)
        at = 0.0
        while at <= self.made.seconds + 1e-9:
            self._text(self.x(at), self.bottom + 16, f"{at:g} s", "middle", "small")
            at += step

    def _text(self, x: float, y: float, text: str, anchor: str, kind: str) -> None:
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')


def fault_label(band: Band) -> str:
    """`pause: dc-a`; where it is about many links or processes, its name alone."""
    return f"{band.nemesis}: {', '.join(band.targets)}" if 0 < len(band.targets) <= 2 else band.nemesis


def nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below."""
    if value <= 1:
        return 1
    power = 10 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999))


def _peak(lane: Lane) -> int:
    sums = [sum(column) for column in zip(*(lane.per_bin[outcome] for outcome in OUTCOMES), strict=True)]
    return max(sums, default=0) or 1
