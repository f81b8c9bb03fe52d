"""`tiebreak bench table FOLDER`: all that a folder of results says, as one page of Markdown with its pictures."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench import results
from bench.compare import OURS, Cell, point_words
from bench.compare_cli import RESULT, Compared, read_compared
from bench.report import Figure, Report, number

MISSED = "**missed**"


def table(
    folder: Annotated[Path, typer.Argument(help="What `bench run --out` and `bench compare --out` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON document on stdout.")] = False,
) -> None:
    """Print one page of Markdown: each figure beside its target, on what it was measured, and the pictures.

    Example: tiebreak bench table results > results/README.md
    """
    try:
        compared = [read_compared(path) for path in sorted(folder.glob(RESULT))]
        reports = [results.read(path) for path in sorted(folder.glob("*.json")) if path.name != RESULT]
    except results.ResultUnreadable as error:
        raise typer.BadParameter(str(error)) from error
    if not compared and not reports:
        raise typer.BadParameter(f"{folder}: no benchmark left its JSON here")
    if as_json:
        sys.stdout.write(msgspec.json.encode({"compared": compared, "reports": reports}).decode() + "\n")
        return
    sys.stdout.write("\n".join(page(folder, compared, reports)) + "\n")


def page(folder: Path, compared: Sequence[Compared], reports: Sequence[Report]) -> Iterator[str]:
    """Lines of Markdown. folder: where the pictures are."""
    yield "# Measured"
    for one in compared:
        yield ""
        yield "## Beside others: durable answers a second (a request, p50 / p99 ms)"
        yield ""
        yield from _cells(one.cells)
        yield ""
        yield from _figures([figure for figure in one.report.figures if figure.passed is not None])
        yield from _conditions(one.report, folder / "compare.png")
    for report in sorted(reports, key=lambda one: one.benchmark):
        yield ""
        yield f"## {report.benchmark}"
        yield ""
        yield from _figures(report.figures)
        yield from _conditions(report, folder / f"{report.benchmark}.png")


def _cells(cells: Sequence[Cell]) -> Iterator[str]:
    names = sorted({cell.who for cell in cells}, key=lambda name: (name != OURS, name))
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for point in sorted({cell.point for cell in cells}, key=lambda one: (one.batch, one.clients)):
        row = [point_words(point)]
        for name in names:
            mine = [cell.measured for cell in cells if (cell.who, cell.point) == (name, point)]
            row.append(
                f"{_mean([one.per_s for one in mine]):,.0f} ({number(_mean([one.p50_ms for one in mine]))} / "
                f"{number(_mean([one.p99_ms for one in mine]))})"
                if mine
                else "-"
            )
        yield "| " + " | ".join(row) + " |"


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| figure | measured | target | |"
    yield "|---|---|---|---|"
    for figure in figures:
        unit = f" {figure.unit}" if figure.unit else ""
        met = {True: "met", False: MISSED, None: ""}[figure.passed]
        cells = (figure.name, f"{number(figure.value)}{unit}", figure.target or "-", met)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _conditions(report: Report, picture: Path) -> Iterator[str]:
    host = report.host
    yield ""
    if picture.exists():
        yield f"![{report.benchmark}]({picture.name})"
        yield ""
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    yield (
        f"Commit `{host.commit}`; {host.cpu}, {host.cores} cores, {host.memory_gib} GiB, load included; "
        f"{host.system}; Python {host.python}; fdatasync of 4 KiB p50 {host.fdatasync_p50_ms} ms, "
        f"p99 {host.fdatasync_p99_ms} ms; took {report.seconds:.0f} s. {settings}."
    )
    for note in report.notes:
        yield ""
        yield f"Note: {note}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
