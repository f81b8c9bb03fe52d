"""What a benchmark found: figures against their targets, with all that one needs to repeat it."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.host import Host, shortage
from bench.stats import Spread, percentile

NINES = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
"""The percents at which a distribution is kept."""


class Figure(Struct, frozen=True):
    """One number. target: what it is held against, as text; passed: None where there is no target."""

    name: str
    value: float
    unit: str = ""
    target: str = ""
    passed: bool | None = None


class Mark(Struct, frozen=True):
    """A band on the x axis, in its unit: a fault, from its beginning to its end."""

    begin: float
    end: float
    label: str


class Curve(Struct, frozen=True):
    """One line, or one colour of bars. Curves of one `picture` share a pair of axes, which has that title.

    kind: `distribution` has percents as x (see NINES) and milliseconds as y. `stacked` bars stand on those of the
    curves before. x: words where they are names and no numbers.
    """

    picture: str
    kind: Literal["line", "bars", "stacked", "distribution"]
    series: str
    x: list[float | str]
    y: list[float]
    x_label: str
    y_label: str
    marks: list[Mark] = []
    log_x: bool = False
    log_y: bool = False


class Report(Struct, frozen=True):
    """settings: everything that was chosen for this run. notes: what to know before believing it.

    percentiles: of all that was timed, unrounded by any table, by what it is the latency of. curves: what is drawn.
    """

    benchmark: str
    figures: list[Figure]
    settings: dict[str, str | int | float | bool]
    host: Host
    seconds: float
    notes: list[str] = []
    curves: list[Curve] = []
    percentiles: dict[str, Spread] = {}

    @property
    def passed(self) -> bool:
        return all(figure.passed is not False for figure in self.figures)


def at_least(name: str, value: float, target: float, unit: str = "") -> Figure:
    return Figure(name, value, unit, f">= {target:,.10g}", value >= target)


def at_most(name: str, value: float, target: float, unit: str = "") -> Figure:
    return Figure(name, value, unit, f"< {target:,.10g}", value < target)


def exactly(name: str, value: float, target: float, unit: str = "") -> Figure:
    return Figure(name, value, unit, f"{target:,.10g}", value == target)


def distribution(picture: str, series: str, values_ms: Sequence[float]) -> Curve:
    """How long it took, by percent of all samples, up to 99.99 as far as there are samples for it."""
    ordered = sorted(values_ms)
    percents = [percent for percent in NINES if percent <= 99 or (100 - percent) / 100 * len(ordered) >= 1]
    return Curve(
        picture,
        "distribution",
        series,
        [*percents],
        [round(percentile(ordered, percent), 4) for percent in percents],
        "percent of all",
        "ms",
    )


def number(value: float) -> str:
    """For people: three decimals where they matter."""
    if value == int(value) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.3g}" if abs(value) >= 1 else f"{value:.3f}"


def print_report(console: Console, report: Report) -> None:
    verdict = "" if report.passed else "  [bold red]below target[/]"
    table = Table(
        title=f"{report.benchmark}{verdict}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right", style="dim")
    for figure in report.figures:
        colour = {True: "green", False: "bold red", None: "default"}[figure.passed]
        unit = f" {figure.unit}" if figure.unit else ""
        table.add_row(escape(figure.name), f"[{colour}]{number(figure.value)}{unit}[/]", escape(figure.target))
    console.print()
    console.print(table)
    console.print("[dim]" + escape(", ".join(f"{name} {value}" for name, value in report.settings.items())) + "[/]")
    host = report.host
    console.print(
        f"[dim]commit {host.commit}; {escape(host.cpu)}, {host.cores} cores, {host.memory_gib} GiB; {host.system}; "
        f"Python {host.python}; fdatasync p50 {host.fdatasync_p50_ms} ms, p99 {host.fdatasync_p99_ms} ms; "
        f"took {report.seconds:.1f} s[/]"
    )
    if short := shortage(host):
        console.print(f"[yellow]{short}[/]")
    for note in report.notes:
        console.print(f"[dim]note: {escape(note)}[/]")


def as_data(report: Report) -> dict[str, Any]:
    """All of it as JSON has it, with the verdict."""
    return {**msgspec.to_builtins(report), "passed": report.passed}


def as_json(reports: Sequence[Report]) -> str:
    """One JSON document with all of them."""
    return json.dumps([as_data(report) for report in reports], indent=2)
