"""Pictures of what was measured: PNG to look at, SVG to keep. matplotlib is loaded only where one is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.compare import OURS, Cell

COLOURS = {OURS: "#0b6e4f", "postgres": "#336791", "etcd": "#d1495b", "books": "#8d6a9f", "centrifugo": "#e08e45"}
OTHER = "#777777"
DPI = 144


class PlotMissing(Exception):
    """matplotlib is not installed. The message says how to get it."""


def _axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        import matplotlib  # noqa: PLC0415
    except ImportError as error:
        raise PlotMissing("plots need matplotlib: pip install 'tiebreak[plots]'") from error
    matplotlib.use("Agg")
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


def compared(cells: Sequence[Cell], where: Path, *, caption: str = "") -> list[Path]:
    """Throughput and p99 by the number of clients, one order a request and batched. Turns are dots, means are joined.

    Raises PlotMissing.
    """
    batches = sorted({cell.point.batch for cell in cells})
    figure, axes = _axes(2, len(batches), (5.5 * len(batches), 7.5))
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415

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
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
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
