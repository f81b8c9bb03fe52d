"""`tiebreak chaos`: real processes under real faults, a verdict that can be trusted, and a report of what happened."""

import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos.check.verdict import Verdict
from chaos.history.run import RunUnreadable, read_run
from chaos.live import ledger as ledgers
from chaos.live.playing import NETWORKS, Asked
from chaos.live.programs import MUTANTS, SHIPPED, STOCK
from chaos.live.scenarios import SCENARIOS, SHAPES, Scenario, UnknownScenario, scenario_named
from chaos.report.words import busy_words

app = typer.Typer(no_args_is_help=True, help="Break a cluster of real processes on purpose, and judge what it did.")
PIPED_COLUMNS = 200
"""A line stays a line where nobody looks at a screen."""
out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_COLUMNS)
talk = Console(stderr=True, highlight=False)

EXIT_PASS, EXIT_FAIL, EXIT_USAGE, EXIT_INVALID, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
EXITS = {"pass": EXIT_PASS, "fail": EXIT_FAIL, "invalid": EXIT_INVALID}
COLOURS = {"pass": "green", "fail": "red", "invalid": "yellow"}
RUNS = Path("chaos-runs")

Json = Annotated[bool, typer.Option("--json", envvar="TIEBREAK_JSON", show_envvar=False, help="Print JSON on stdout.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Ledger = Annotated[Path, typer.Option(help="Where each run adds a line.", show_default="chaos/ledger.jsonl")]


@app.command("list")
def list_scenarios(as_json: Json = False) -> None:
    """List the scenarios, a line each.

    Example: tiebreak chaos list
    """
    if as_json:
        _json([{"name": one.name, "line": one.line, "story": one.story, "shapes": one.shapes} for one in _all()])
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for one in _all():
        table.add_row(one.name, one.line)
    out.print(table)


@app.command("run")
def run_scenario(
    name: Annotated[str, typer.Argument(metavar="SCENARIO", help="One of `tiebreak chaos list`.")],
    seconds: Annotated[float, typer.Option(min=5, max=86_400, help="How long faults are put in.")] = 60,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws the faults and the load; drawn when left out.")] = None,
    shape: Annotated[str, typer.Option(help="1+1+1 or 2+2+1; the scenario's own when left out.")] = "",
    engine: Annotated[
        str, typer.Option(help=f"{SHIPPED}, {STOCK} (PySyncObj as published) or a mutant: {', '.join(MUTANTS)}.")
    ] = SHIPPED,
    network: Annotated[
        str, typer.Option(help=f"What links are cut by: {', '.join(NETWORKS)}; what the scenario needs when left out.")
    ] = "",
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="A folder that is not there yet, for what is recorded.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the members' disks after a run that passed, too.")] = False,
    as_json: Json = False,
) -> None:
    """Start a cluster, drive it, break it by a plan drawn from the seed, heal it, read everything back, and judge.

    Exit 0: pass. Exit 1: fail, a promise was broken. Exit 2: wrong usage. Exit 3: invalid, the run shows nothing: a
    fault did not take hold, too little was asked, the cluster did not start.

    Example: tiebreak chaos run dc-cut --seconds 60 --seed 7
    """
    from chaos.live.running import run  # noqa: PLC0415 - the list of commands needs no cluster
    from chaos.live.view import view_for  # noqa: PLC0415

    _check(name, shape, engine, network)
    seed = int(time.time()) % 1_000_000 if seed is None else seed
    folder = folder or RUNS / f"{name}-{seed}-{time.strftime('%H%M%S')}"
    if folder.exists():
        raise typer.BadParameter(f"{folder} is there already: name another folder, or remove it", param_hint="--out")
    asked = Asked(name, seed, seconds, folder, shape, engine, network, keep)
    view = view_for(talk)
    with _explained():
        try:
            verdict = run(asked, view)
        except KeyboardInterrupt:
            view.close()
            talk.print(f"interrupted; nothing is left running, and {escape(str(folder))} has what was recorded")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        finally:
            view.close()
    _end(folder, verdict, as_json=as_json)


@app.command("check")
def check_again(
    path: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run's folder; with --format a history.")],
    form: Annotated[
        Literal["porcupine", "knossos"] | None, typer.Option("--format", help="FILE is a history of others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge again what a run recorded, or a history of others. Exit codes as of `tiebreak chaos run`.

    Example: tiebreak chaos check chaos-runs/dc-cut-7

    Example: tiebreak chaos check --format knossos history.edn
    """
    from chaos.check.outside import check_outside  # noqa: PLC0415
    from chaos.live.running import judge  # noqa: PLC0415

    with _explained():
        verdict = check_outside(path, form) if form is not None else judge(path)
    _end(path if form is None else None, verdict, as_json=as_json)


@app.command("report")
def report(
    folder: RunFolder,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write report.html into a run's folder and print its path; a run that was cut off is shown as far as it got.

    Example: tiebreak chaos report chaos-runs/dc-cut-7 --open
    """
    from chaos.report.page import build_report  # noqa: PLC0415

    with _explained():
        path = build_report(folder)
    if as_json:
        _json({"report": str(path)})
    else:
        out.print(str(path), soft_wrap=True)
    if open_it:
        webbrowser.open(path.resolve().as_uri())


@app.command("nightly")
def nightly(
    minutes: Annotated[float, typer.Option(min=0.1, help="No run is begun after this long.")] = 150,
    seconds: Annotated[float, typer.Option(min=5, help="Of faults in each run.")] = 90,
    only: Annotated[list[str] | None, typer.Argument(metavar="SCENARIO...", help="Only these; all without.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Runs that do not pass are kept here.")] = RUNS,
    ledger: Ledger = ledgers.LEDGER,
    as_json: Json = False,
) -> None:
    """Run all scenarios in turn, each time with a fresh seed, until the time is over; a line in the ledger for each.

    Exit 1: one failed. Exit 3: none failed, and one was invalid.

    Example: tiebreak chaos nightly --minutes 30 dc-cut leader-kill
    """
    from chaos.live.nightly import run_nightly  # noqa: PLC0415

    names = [_named(name) for name in only or SCENARIOS]
    try:
        entries = run_nightly(names, minutes=minutes, seconds=seconds, folder=folder, ledger=ledger, console=talk)
    except KeyboardInterrupt:
        talk.print("interrupted; what ran until now is in the ledger")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        _json(entries)
    else:
        _summed(entries)
    words = {entry.verdict for entry in entries}
    if words - {"pass"} or not entries:
        raise typer.Exit(EXIT_FAIL if "fail" in words else EXIT_INVALID)


@app.command("ledger")
def show_ledger(ledger: Ledger = ledgers.LEDGER, as_json: Json = False) -> None:
    """Sum up all runs of the ledger, by scenario.

    Example: tiebreak chaos ledger
    """
    with _explained():
        entries = ledgers.read(ledger)
    if as_json:
        _json(entries)
    else:
        _summed(entries)


@app.command("teeth")
def bite(
    names: Annotated[list[str] | None, typer.Argument(metavar="MUTANT...", help="Only these; all without.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the runs go.")] = RUNS,
    as_json: Json = False,
) -> None:
    """Run the library as published and known faults of the product; each must fail where it is said to.

    Exit 1: one was not noticed. Exit 3: one run showed nothing.

    Example: tiebreak chaos teeth double-credit
    """
    from chaos.live.teeth import TEETH, run_teeth  # noqa: PLC0415

    unknown = [name for name in names or () if name not in {tooth.program for tooth in TEETH}]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}: one of {', '.join(tooth.program for tooth in TEETH)}")
    try:
        bitten = run_teeth(names or [], folder=folder, console=talk)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        _json(bitten)
    else:
        table = Table(box=None, pad_edge=False)
        for title in ("program", "scenario", "seed", "noticed by", "s"):
            table.add_column(title)
        for one in bitten:
            found = ", ".join(one.red) if one.noticed else f"[bold red]{'SURVIVED' if not one.red else one.verdict}[/]"
            table.add_row(one.program, one.scenario, str(one.seed), found, f"{one.took_s:.0f}")
        out.print(table)
        out.print(f"{sum(one.noticed for one in bitten)} of {len(bitten)} noticed")
    if not all(one.noticed for one in bitten):
        raise typer.Exit(EXIT_FAIL if any(not one.noticed and one.verdict != "invalid" for one in bitten) else 3)


# -- how they all talk -----------------------------------------------------------------------------


def _all() -> list[Scenario]:
    return list(SCENARIOS.values())


def _named(name: str) -> str:
    try:
        return scenario_named(name).name
    except UnknownScenario as error:
        raise typer.BadParameter(str(error), param_hint="SCENARIO") from error


def _check(name: str, shape: str, engine: str, network: str) -> None:
    _named(name)
    if shape and shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r}: one of {', '.join(SHAPES)}", param_hint="--shape")
    if shape and shape not in SCENARIOS[name].shapes:
        needed = " or ".join(SCENARIOS[name].shapes)
        raise typer.BadParameter(f"{name} needs {needed}, not {shape}", param_hint="--shape")
    programs = (SHIPPED, STOCK, *MUTANTS)
    if engine not in programs:
        raise typer.BadParameter(f"{engine!r}: one of {', '.join(programs)}", param_hint="--engine")
    if network and network not in NETWORKS:
        raise typer.BadParameter(f"{network!r}: one of {', '.join(NETWORKS)}", param_hint="--network")


@contextmanager
def _explained() -> Iterator[None]:
    """What could not be run or read shows nothing either way."""
    from chaos.live.running import RunFailed  # noqa: PLC0415

    try:
        yield
    except (RunFailed, RunUnreadable) as error:
        talk.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(EXIT_INVALID) from error


def _end(folder: Path | None, verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        _json(verdict)
    else:
        _print_verdict(verdict)
        if folder is not None:
            run = read_run(folder)
            notes = [f"{said}; its connections ended" for said in run.restarts]
            for said in [*notes, busy_words(run)]:
                if said:
                    out.print(f"[yellow]note[/]:   {escape(said)}", soft_wrap=True)
            out.print(f"report: {folder / 'report.html'}", soft_wrap=True)
            out.print(f"again:  {run.repeat_with}", soft_wrap=True)
    if verdict.verdict != "pass":
        raise typer.Exit(EXITS[verdict.verdict])


def _print_verdict(verdict: Verdict) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check in verdict.checks:
        colour = COLOURS[check.verdict]
        table.add_row(f"[{colour}]{check.verdict}[/]", check.name.replace("_", " "), escape(check.why))
    out.print(table)
    for check in verdict.checks:
        for example in check.examples if check.verdict == "fail" else ():
            shown = msgspec.json.encode(example).decode()
            out.print(f"  {check.name}: {escape(shown)}", soft_wrap=True, style="dim")
    figures = [f"{name.replace('_', ' ')} {value}" for name, value in verdict.figures.items() if value is not None]
    if figures:
        out.print(f"[dim]{escape(', '.join(figures))}[/]", soft_wrap=True)
    out.print(f"verdict: [bold {COLOURS[verdict.verdict]}]{verdict.verdict}[/]")


def _summed(entries: list[ledgers.Entry]) -> None:
    table = Table(box=None, pad_edge=False)
    titles = ("scenario", "runs", "pass", "fail", "inv.", "min", "faults", "answered", "refused", "unknown")
    for title in titles:
        table.add_column(title, justify="left" if title == "scenario" else "right", no_wrap=title == "scenario")
    for row in ledgers.summed(entries):
        table.add_row(row[0], *(f"{value:,}" for value in row[1:]))
    out.print(table)
    if words := ledgers.told(entries):
        out.print(words, soft_wrap=True)


def _json(data: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n")
