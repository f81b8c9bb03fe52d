"""Pictures of what was measured: PNG to look at, SVG to keep. matplotlib is loaded only where one is drawn."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bench.compare import OURS, Cell
from bench.report import Curve

COLOURS = {OURS: "#0b6e4f", "postgres": "#336791", "etcd": "#d1495b", "books": "#8d6a9f", "centrifugo": "#e08e45"}
OTHER = "#777777"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#333333", "#bcbd22")
"""Told apart by those who see red and green alike, too."""
FAULT = "#d1495b"
DPI = 144
WIDTH, HEIGHT = 6.4, 4.2
"""Of one pair of axes, in inches."""
WORD_MAX = 12
"""Letters of a name under a bar; where one is longer, all are turned."""


class PlotMissing(Exception):
    """matplotlib is not installed. The message says how to get it."""


def _axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        import matplotlib  # noqa: PLC0415
    except ImportError as error:
        raise PlotMissing("plots need matplotlib: pip install 'tiebreak[plots]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # words stay words: they can be searched, and read aloud
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Any, where: Path) -> list[Path]:
    """Writes where.png and where.svg, and gives their paths."""
    paths = [where.with_suffix(".png"), where.with_suffix(".svg")]
    for path in paths:
        figure.savefig(path, dpi=DPI)
    from matplotlib import pyplot  # noqa: PLC0415

    pyplot.close(figure)
    return paths


def curves(found: Sequence[Curve], where: Path, *, title: str, caption: str = "") -> list[Path]:
    """One pair of axes for each picture, two in a row, in the order in which they come. Raises PlotMissing."""
    pictures = list(dict.fromkeys(curve.picture for curve in found))
    columns = min(2, len(pictures))
    rows = -(-len(pictures) // columns)
    figure, axes = _axes(rows, columns, (WIDTH * columns, HEIGHT * rows + 0.6))
    for axis, picture in zip_longest(axes.flat, pictures):
        if picture is None:
            axis.set_axis_off()
        else:
            _picture(axis, [curve for curve in found if curve.picture == picture])
    figure.suptitle(title, fontweight="bold")
    if caption:
        figure.supxlabel(caption, fontsize=8, color="#555555")
    return save(figure, where)


def _picture(axis: Any, mine: list[Curve]) -> None:
    first = mine[0]
    axis.set_title(first.picture)
    axis.set_xlabel(first.x_label)
    axis.set_ylabel(first.y_label)
    colours = [PALETTE[at % len(PALETTE)] for at in range(len(mine))]
    if first.kind == "distribution":
        _distributions(axis, mine, colours)
    elif first.kind == "line":
        for curve, colour in zip(mine, colours, strict=True):
            dots = "o" if len(curve.x) <= 30 else ""
            axis.plot(curve.x, curve.y, color=colour, label=curve.series, linewidth=1.8, marker=dots, markersize=4)
    else:
        _bars(axis, mine, colours, stacked=first.kind == "stacked")
    if first.log_x and first.kind == "line":
        axis.set_xscale("log")
        _plain_numbers(axis.xaxis)
    if any(curve.log_y for curve in mine) or first.kind == "distribution":
        axis.set_yscale("log")
        _plain_numbers(axis.yaxis)
    elif all(value >= 0 for curve in mine for value in curve.y):
        axis.set_ylim(bottom=0)
    _marks(axis, mine)
    if first.kind == "stacked":
        # Beside the bars, which leave no room, and in their order from the top.
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), reverse=True)
    elif len(mine) > 1 or mine[0].series:
        axis.legend(frameon=False, fontsize=8)


def _distributions(axis: Any, mine: list[Curve], colours: list[str]) -> None:
    """The x axis gives each further nine the same room: half of all, 90, 99, 99.9, 99.99 %."""

    def place(percent: float) -> float:
        return -math.log10(1 - min(percent, 99.9999) / 100)

    for curve, colour in zip(mine, colours, strict=True):
        axis.plot([place(float(x)) for x in curve.x], curve.y, color=colour, label=curve.series, linewidth=1.8)
    highest = max((float(x) for curve in mine for x in curve.x), default=99.0)
    ticks = [percent for percent in (0.0, 50.0, 90.0, 99.0, 99.9, 99.99) if percent <= highest]
    axis.set_xticks([place(percent) for percent in ticks], [f"{percent:g}" for percent in ticks])


def _bars(axis: Any, mine: list[Curve], colours: list[str], *, stacked: bool) -> None:
    """Bars by name; side by side, or each on those of the curves before."""
    names = list(dict.fromkeys(str(x) for curve in mine for x in curve.x))
    feet = [0.0] * len(names)
    width = 0.7 if stacked else 0.8 / len(mine)
    for number, (curve, colour) in enumerate(zip(mine, colours, strict=True)):
        heights = dict(zip(map(str, curve.x), curve.y, strict=True))
        values = [heights.get(name, 0.0) for name in names]
        shift = 0.0 if stacked else (number - (len(mine) - 1) / 2) * width
        places = [at + shift for at in range(len(names))]
        axis.bar(places, values, width, bottom=feet if stacked else None, color=colour, label=curve.series)
        if stacked:
            feet = [foot + value for foot, value in zip(feet, values, strict=True)]
    turned = any(len(name) > WORD_MAX for name in names)
    axis.set_xticks(range(len(names)), names, rotation=30 if turned else 0, ha="right" if turned else "center")


def _marks(axis: Any, mine: list[Curve]) -> None:
    """Faults, as bands behind the lines, with their words at the top."""
    for mark in dict.fromkeys((mark.begin, mark.end, mark.label) for curve in mine for mark in curve.marks):
        begin, end, label = mark
        axis.axvspan(begin, end, color=FAULT, alpha=0.18, zorder=0, linewidth=1)
        axis.annotate(
            label,
            (begin, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            fontsize=8,
            color=FAULT,
            rotation=90,
            va="top",
        )


def _plain_numbers(axis: Any) -> None:
    """A scale by powers, with numbers as people write them."""
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def compared(cells: Sequence[Cell], where: Path, *, caption: str = "") -> list[Path]:
    """Throughput and p99 by the number of clients, one order a request and batched. Turns are dots, means are joined.

    Raises PlotMissing.
    """
    batches = sorted({cell.point.batch for cell in cells})
    figure, axes = _axes(2, len(batches), (5.5 * len(batches), 7.5))
    for column, batch in enumerate(batches):
        top, bottom = axes[0][column], axes[1][column]
        for name in dict.fromkeys(cell.who for cell in cells):
            mine = [cell for cell in cells if cell.who == name and cell.point.batch == batch]
            if not mine:
                continue
            colour = COLOURS.get(name, OTHER)
            for axis, what in ((top, "per_s"), (bottom, "p99_ms")):
                clients = sorted({cell.point.clients for cell in mine})
                means = [_mean([getattr(c.measured, what) for c in mine if c.point.clients == n]) for n in clients]
                axis.plot(clients, means, color=colour, label=name, linewidth=2)
                axis.scatter(
                    [cell.point.clients for cell in mine],
                    [getattr(cell.measured, what) for cell in mine],
                    color=colour,
                    s=18,
                )
        top.set_title("one order a request" if batch == 1 else f"{batch} orders a request")
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted({cell.point.clients for cell in cells}))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_yscale("log")
            _plain_numbers(axis.yaxis)
        bottom.set_xlabel("clients, each with one request under way")
        if column == 0:
            top.set_ylabel("durable answers a second")
            bottom.set_ylabel("a request, p99, ms")
            top.legend(frameon=False)
    if caption:
        figure.supxlabel(caption, fontsize=8, color="#555555")
    return save(figure, where)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
