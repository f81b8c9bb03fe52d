"""`tiebreak sim`: whole clusters from seeds, in one process; what broke, and how to see it again."""

from __future__ import annotations

import functools
import sys
import time
from itertools import count
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chaos.sim import batch as batches
from chaos.sim import mutants, real_mutants, scripts
from chaos.sim.batch import Batch, workers
from chaos.sim.engines import engine_named
from chaos.sim.quiet import quiet
from chaos.sim.run import SHAPES, Outcome, Plan, Run, draw_plan, shrink

app = typer.Typer(no_args_is_help=True, help="Run whole clusters in virtual time, with faults, from seeds.")
out = Console(highlight=False)
talk = Console(stderr=True, highlight=False)

EXIT_BROKEN = 1
EXIT_INVALID = 2
TABLE_SEEDS = 200
LEDGER = Path("sim-ledger.jsonl")

Engine = Annotated[str, typer.Option(help="hardened (ours) or stock (PySyncObj as published).")]
Shape = Annotated[str | None, typer.Option(help="1+1+1 or 2+2+1; without it each seed draws its own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("run")
def run_seeds(
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; 100 unless --minutes is given.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Stop after so many minutes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 1,
    engine: Engine = "hardened",
    shape: Shape = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Don't stop at the first seed that fails.")] = False,
    shrinks: Annotated[int, typer.Option(min=0, help="Runs spent on finding which faults are enough.")] = 200,
    ledger: Annotated[Path, typer.Option(help="Where to add a line about this batch.")] = LEDGER,
    as_json: Json = False,
) -> None:
    """Run seeds one after the other, and check every promise after every event.

    Exit 0: all held. Exit 1: one was broken; the seed, the command that repeats it and a shrunk list of faults are
    printed. Exit 2: all held, but something that a batch must contain never happened, so that it proves nothing.

    Example: tiebreak sim run --seeds 1000
    """
    _check(engine, shape)
    total = seeds if seeds is not None else None if minutes is not None else 100
    until = time.monotonic() + minutes * 60 if minutes is not None else float("inf")
    batch = Batch(engine, seed, shape)
    numbers = count(seed) if total is None else range(seed, seed + total)
    with _progress() as progress:
        task = progress.add_task(f"{engine} from seed {seed}", total=total, said="")
        try:
            for outcome in batches.outcomes(engine, numbers, shape, jobs):
                batch.add(outcome)
                said = f"{batch.virtual_us / 3.6e9:.2f} h simulated, {batch.speed:.0f} x, {len(batch.broken)} broken"
                progress.update(task, advance=1, said=said)
                if (outcome.broken and not keep_going) or time.monotonic() > until:
                    break
        except KeyboardInterrupt:
            talk.print("stopped; what ran until now counts")
    entry = batch.entry()
    batches.append(ledger, entry)
    if batch.broken:
        _explain(batch.broken[0], draw_plan(batch.broken[0].seed, shape), engine, shrinks)
    if as_json:
        sys.stdout.write(msgspec.json.encode(entry).decode() + "\n")
    else:
        _summary(batch)
    if batch.verdict != "pass":
        raise typer.Exit(EXIT_BROKEN if batch.broken else EXIT_INVALID)


@app.command("show")
def show(
    seed: Annotated[int, typer.Argument(min=0, help="The seed.")],
    engine: Engine = "hardened",
    shape: Shape = None,
    only: Annotated[str | None, typer.Option(help="Only these faults, by number: 3,7. '' for none.")] = None,
    as_json: Json = False,
) -> None:
    """Print everything that happens in one run, one line each: seconds, who, what; first its faults, numbered.

    Exit 1 when a promise is broken; it is the last line.

    Example: tiebreak sim show 42 | less
    """
    _check(engine, shape)
    plan = _only(draw_plan(seed, shape), only)
    tell = None if as_json else _write
    if tell is not None:
        tell(f"# seed {seed}: {plan.shape}, {plan.timing}")
        for number, fault in enumerate(plan.faults):
            tell(f"# {number}: {fault}")
    with quiet():
        outcome = Run(plan, engine_named(engine), tell).play()
    if as_json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    talk.print(f"seed {seed} ({plan.shape}): {outcome.detail or 'all promises held'}; digest {outcome.digest}")
    if outcome.broken:
        raise typer.Exit(EXIT_BROKEN)


@app.command("mutants")
def hunt_mutants(
    names: Annotated[list[str] | None, typer.Argument(help="Parts of names; all without.")] = None,
    seeds: Annotated[int | None, typer.Option(min=0, help="Seeds for each, instead of its own budget.")] = None,
    seeds_only: Annotated[bool, typer.Option("--seeds-only", help="Without the scripts.")] = False,
    as_table: Annotated[
        bool, typer.Option("--table", help="For each, both the script and the random seeds it takes, as Markdown.")
    ] = False,
    real: Annotated[
        bool, typer.Option("--real", help="Those in what runs on real files and sockets; tests must notice.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, with --table.")] = 1,
    as_json: Json = False,
) -> None:
    """Put known faults into copies of the engine, one at a time; scripts and seeds must notice each.

    Exit 1: one survived its budget.

    Example: tiebreak sim mutants vote
    """
    if real:
        _hunt_real(names, as_json=as_json)
        return
    chosen = [m for m in mutants.MUTANTS if not names or any(name in m.name for name in names)]
    if as_table:
        _survey([mutant.name for mutant in chosen], TABLE_SEEDS if seeds is None else seeds, jobs)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("mutant", "noticed by", "seeds", "promise", "CPU s"):
        table.add_column(title)
    results: dict[str, mutants.Killed | None] = {}
    with _progress() as progress:
        task = progress.add_task("mutants", total=len(chosen), said="")
        for mutant in chosen:
            progress.update(task, said=mutant.name)
            killed = results[mutant.name] = mutants.hunt(mutant, seeds=seeds, scripts=not seeds_only)
            progress.advance(task)
            if killed is None:
                table.add_row(mutant.name, "[bold red]SURVIVED[/]", str(seeds or mutant.budget), "", "")
            else:
                by = killed.by or "seeds"
                table.add_row(mutant.name, by, str(killed.seeds or "-"), killed.promise, f"{killed.cpu_s:.1f}")
    survivors = [name for name, killed in results.items() if killed is None]
    if as_json:
        sys.stdout.write(msgspec.json.encode(results).decode() + "\n")
    else:
        out.print(table)
        out.print(f"{len(results) - len(survivors)} of {len(results)} noticed")
    if survivors:
        raise typer.Exit(EXIT_BROKEN)


def _survey(names: list[str], seeds: int, jobs: int) -> None:
    """Random seeds first come first served; a mutant that neither way notices is a failure."""
    rows: list[mutants.Row] = []
    with _progress() as progress, workers(jobs) as pool:
        task = progress.add_task("mutants", total=len(names), said="")
        for row in pool.imap(functools.partial(mutants.survey, seeds=seeds), names):
            rows.append(row)
            progress.update(task, advance=1, said=row.name)
    _write(f"| mutant | in | script | it breaks | random seeds, of {seeds} | they break |")
    _write("|---|---|---|---|---|---|")
    for row in rows:
        seeds_needed = str(row.seeds or "-")
        _write(
            f"| {row.name} | {row.module} | {row.script or '-'} | {row.script_promise or '-'} "
            f"| {seeds_needed} | {row.seeds_promise or '-'} |"
        )
    survivors = [row.name for row in rows if not row.killed]
    by_seeds = sum(row.seeds > 0 for row in rows)
    talk.print(f"{len(rows) - len(survivors)} of {len(rows)} noticed, {by_seeds} of them by random seeds too")
    if survivors:
        talk.print(f"[bold red]survived[/]: {', '.join(survivors)}")
        raise typer.Exit(EXIT_BROKEN)


def _hunt_real(names: list[str] | None, *, as_json: bool) -> None:
    chosen = [m for m in real_mutants.MUTANTS if not names or any(name in m.name for name in names)]
    results: dict[str, mutants.Killed | None] = {}
    with _progress() as progress:
        task = progress.add_task("real mutants", total=len(chosen), said="")
        for mutant in chosen:
            progress.update(task, said=mutant.name)
            results[mutant.name] = real_mutants.hunt_real(mutant)
            progress.advance(task)
    survivors = [name for name, killed in results.items() if killed is None]
    if as_json:
        sys.stdout.write(msgspec.json.encode(results).decode() + "\n")
    else:
        _write("| mutant | in | test |")
        _write("|---|---|---|")
        for mutant in chosen:
            killed = results[mutant.name]
            _write(f"| {mutant.name} | `{mutant.path}` | {'**survived**' if killed is None else f'`{killed.by}`'} |")
        talk.print(f"{len(results) - len(survivors)} of {len(results)} noticed")
    if survivors:
        raise typer.Exit(EXIT_BROKEN)


@app.command("scripts")
def play_scripts(as_json: Json = False) -> None:
    """Play the scripted schedules: figure 8 of Raft, votes lost in an election, the audit's programs.

    Exit 1: a promise was broken in one.

    Example: tiebreak sim scripts
    """
    with quiet():
        results = {name: scripts.play(name) for name in scripts.SCRIPTS}
    if as_json:
        sys.stdout.write(msgspec.json.encode(results).decode() + "\n")
    else:
        for name, broken in results.items():
            out.print(f"{name}: {broken or 'held'}")
    if any(results.values()):
        raise typer.Exit(EXIT_BROKEN)


@app.command("ledger")
def show_ledger(ledger: Annotated[Path, typer.Option(help="The file.")] = LEDGER, as_json: Json = False) -> None:
    """Sum up all batches in the ledger, by engine and by the sources that they ran.

    Example: tiebreak sim ledger
    """
    entries = batches.read(ledger)
    if as_json:
        sys.stdout.write(msgspec.json.encode(entries).decode() + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("engine", "sources", "batches", "seeds", "hours", "broken", "invalid"):
        table.add_column(title, justify="left" if title in ("engine", "sources") else "right")
    for engine, sources in dict.fromkeys((entry.engine, entry.versions["sources"]) for entry in entries):
        own = [e for e in entries if e.engine == engine and e.versions["sources"] == sources]
        table.add_row(
            engine,
            sources,
            str(len(own)),
            f"{sum(e.seeds for e in own):,}",
            f"{sum(e.virtual_hours for e in own):,.1f}",
            str(sum(sum(e.broken.values()) for e in own)),
            str(sum(e.verdict == "invalid" for e in own)),
        )
    out.print(table)


def _check(engine: str, shape: str | None) -> None:
    if engine not in ("hardened", "stock"):
        raise typer.BadParameter(f"engine {engine!r}: hardened or stock")
    if shape is not None and shape not in SHAPES:
        raise typer.BadParameter(f"shape {shape!r}: one of {', '.join(SHAPES)}")


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _only(plan: Plan, only: str | None) -> Plan:
    if only is None:
        return plan
    try:
        numbers = [int(number) for number in only.split(",") if number]
    except ValueError:
        raise typer.BadParameter(f"--only {only!r}: numbers of faults with commas between, such as 3,7") from None
    beyond = [number for number in numbers if not 0 <= number < len(plan.faults)]
    if beyond:
        raise typer.BadParameter(f"--only {beyond[0]}: seed {plan.seed} has faults 0 to {len(plan.faults) - 1}")
    return plan.with_faults([plan.faults[number] for number in numbers])


def _explain(outcome: Outcome, plan: Plan, engine: str, tries: int) -> None:
    chosen = "" if engine == "hardened" else f" --engine {engine}"
    talk.print(f"[bold red]seed {outcome.seed} ({outcome.shape})[/]: {outcome.detail}")
    talk.print(f"repeat it with: tiebreak sim show {outcome.seed}{chosen} --shape {outcome.shape}")
    with _progress() as progress:
        task = progress.add_task("shrinking", total=None, said="")
        fewer = shrink(plan, engine_named(engine), outcome.broken, tries, step=lambda: progress.advance(task))
    numbers = ",".join(str(plan.faults.index(fault)) for fault in fewer.faults)
    talk.print(f"{len(fewer.faults)} of its {len(plan.faults)} faults are enough:")
    for fault in fewer.faults:
        talk.print(f"  {fault}")
    talk.print(f"repeat it with: tiebreak sim show {outcome.seed}{chosen} --shape {outcome.shape} --only '{numbers}'")


def _summary(batch: Batch) -> None:
    counters = batch.counters
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{batch.seeds:,}", f"seeds from {batch.first_seed}, engine {batch.engine}")
    table.add_row(f"{batch.virtual_us / 3.6e9:.2f}", "simulated hours")
    table.add_row(f"{batch.speed:.0f}", f"simulated seconds for each of {batch.cpu_s:.0f} s of CPU")
    for name in ("acknowledged", "reads", "elections", "crashes", "truncations", "transfers_done", "unsynced_losses"):
        table.add_row(f"{counters[name]:,}", name.replace("_", " "))
    strikes = sum(value for name, value in counters.items() if name.startswith("fault_"))
    table.add_row(f"{strikes:,}", "faults")
    table.add_row(f"{len(batch.broken)}", "seeds in which a promise was broken")
    out.print(table)
    if batch.missing:
        talk.print(f"invalid: this never happened: {', '.join(batch.missing)}")
    out.print(f"verdict: {batch.verdict}")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[said]}"), console=talk, transient=True)
