"""`tiebreak bench compare` and `plot`: us beside what a user would pick instead, as a table, JSON and pictures."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import plots, results
from bench.compare import CLIENTS, OURS, PEERS, Cell, compare, point_words
from bench.host import shortage
from bench.report import Report, number
from bench.running import RunError
from cluster.launcher import LaunchError

RESULT = "compare.json"
out = Console(highlight=False)
talk = Console(stderr=True, highlight=False)


class Compared(Struct, frozen=True):
    """compare.json: all that was measured, each turn of its own."""

    report: Report
    cells: list[Cell]


def compare_peers(
    peers: Annotated[
        list[str] | None, typer.Argument(metavar="[PEER]...", help=f"Beside whom: {', '.join(PEERS)}; all without.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long each cell is measured, after 2 s of warm-up.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each has its turn.")] = 2,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=64, help="How many clients; may be given more than once.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where JSON and pictures go.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Do the same job as others, in turns, on this machine: hold the money, store the order, answer when it is durable.

    A peer that is not installed is named, and the other rows run; `make peers` gets them. Exit 1: a goal was missed.

    Example: tiebreak bench compare postgres --seconds 5 --out compared
    """
    wanted = tuple(peers or PEERS)
    for name in wanted:
        if name not in PEERS:
            raise typer.BadParameter(f"{name}: one of {', '.join(PEERS)}")
    counts = tuple(sorted(set(clients or CLIENTS)))
    cells_max = rounds * len(counts) * sum(1 if name == "etcd" else 2 for name in (OURS, *wanted))
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=talk
    )
    with tempfile.TemporaryDirectory(prefix="tiebreak-bench-") as root, progress:
        bar = progress.add_task("starting", total=cells_max)

        def on_cell(cell: Cell) -> None:
            progress.update(bar, advance=1, description=f"{cell.who}, {point_words(cell.point)}")

        try:
            report, cells = compare(
                Path(root), seconds=seconds, rounds=rounds, peers=wanted, clients=counts, on_cell=on_cell
            )
        except (RunError, LaunchError) as error:
            talk.print(f"[bold red]compare failed:[/] {escape(str(error))}")
            raise typer.Exit(1) from error
    found = Compared(report, cells)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
        talk.print(f"[dim]{folder / RESULT}[/]")
        _draw(found, folder)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    else:
        print_table(found)
    raise typer.Exit(0 if report.passed else 1)


def plot(
    folder: Annotated[Path, typer.Argument(help="What `bench run --out` or `bench compare --out` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON on stdout.")] = False,
) -> None:
    """Draw again all that has pictures, from the JSON alone: PNG and SVG.

    Example: tiebreak bench plot results
    """
    found = sorted(folder.glob("*.json"))
    if not found:
        raise typer.BadParameter(f"{folder}: no benchmark left its JSON here")
    try:
        # All are read before one is drawn, so that half a file leaves the pictures as they are.
        compared = [read_compared(path) for path in found if path.name == RESULT]
        reports = [results.read(path) for path in found if path.name != RESULT]
    except results.ResultUnreadable as error:
        raise typer.BadParameter(str(error)) from error
    paths = [path for one in compared for path in _draw(one, folder)]
    paths += [path for report in reports for path in results.draw(report, folder, talk)]
    if as_json:
        sys.stdout.write(msgspec.json.encode([str(path) for path in paths]).decode() + "\n")


def read_compared(path: Path) -> Compared:
    """Raises ResultUnreadable."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Compared)
    except OSError as error:
        raise results.ResultUnreadable(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise results.ResultUnreadable(f"{path} is no comparison, or only half of one: {error}") from error
    if not found.cells:
        raise results.ResultUnreadable(f"{path}: nothing was measured")
    return found


def _draw(found: Compared, folder: Path) -> list[Path]:
    try:
        paths = plots.compared(found.cells, folder / "compare", caption=results.caption(found.report))
    except plots.PlotMissing as error:
        talk.print(f"[yellow]{error}[/]")
        return []
    for path in paths:
        talk.print(f"[dim]{path}[/]")
    return paths


def print_table(found: Compared) -> None:
    """A row for each way of asking, a column for each who was asked; then the ratios with their goals."""
    names = list(dict.fromkeys(cell.who for cell in found.cells))
    table = Table(title="durable answers a second (a request, p50 / p99 ms)", title_justify="left", box=None)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for point in sorted({cell.point for cell in found.cells}, key=lambda one: (one.batch, one.clients)):
        row = [point_words(point)]
        for name in names:
            mine = [cell.measured for cell in found.cells if (cell.who, cell.point) == (name, point)]
            row.append(
                f"{sum(one.per_s for one in mine) / len(mine):,.0f}  [dim]"
                f"({number(sum(one.p50_ms for one in mine) / len(mine))} / "
                f"{number(sum(one.p99_ms for one in mine) / len(mine))})[/]"
                if mine
                else "[dim]-[/]"
            )
        table.add_row(*row)
    out.print(table)
    for figure in found.report.figures:
        if figure.passed is not None:
            word = "[green]reached[/]" if figure.passed else "[bold red]missed[/]"
            out.print(
                f"{escape(figure.name)}: {number(figure.value)}{figure.unit}, goal {escape(figure.target)}: {word}"
            )
    host = found.report.host
    out.print(
        f"[dim]commit {host.commit}; {escape(host.cpu)}, {host.cores} cores, load included; {host.system}; "
        f"fdatasync p50 {host.fdatasync_p50_ms} ms, p99 {host.fdatasync_p99_ms} ms; "
        f"took {found.report.seconds:.0f} s[/]"
    )
    if short := shortage(host):
        out.print(f"[yellow]{short}[/]")
    for note in found.report.notes:
        out.print(f"[dim]note: {escape(note)}[/]")
