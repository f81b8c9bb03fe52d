"""`tiebreak disk`: what journal, store and members do on real disks that lose power, fail, wait or fill up."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chaos.disk.children import Failed
from chaos.disk.mutants import MUTANTS
from chaos.disk.tracing import strace_missing

app = typer.Typer(no_args_is_help=True, help="Cut the power, fail disks, kill at the n-th write; see what is left.")
out = Console(highlight=False)
talk = Console(stderr=True, highlight=False)

EXIT_BROKEN = 1
EXIT_INVALID = 2


class FileSystem(StrEnum):
    ext4 = "ext4"
    xfs = "xfs"


class Kind(StrEnum):
    journal = "journal"
    store = "store"


class Beginning(StrEnum):
    new = "new"
    killed = "killed"
    copied = "copied"


Seed = Annotated[int, typer.Option(min=0, help="Draws what is written and when it strikes.")]
Mutant = Annotated[str, typer.Option(help=f"A fault to put in, which must be found: {', '.join(MUTANTS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("powercut")
def powercut(
    fs: Annotated[FileSystem, typer.Option(help="The file system under test.")] = FileSystem.ext4,
    cuts: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Seed = 1,
    mutant: Mutant = "none",
    as_json: Json = False,
) -> None:
    """Cut the power of a loop-mounted file system under a writer, mount it again, and look for what was acknowledged.

    Needs root and loop devices. Exit 0: nothing is lost. Exit 1: something is, or can't be opened. Exit 2: power cuts
    can't be had here, so nothing is proven. Also as a mutant: lying-sync, a disk that says it synced and did not.

    Example: tiebreak disk powercut --fs xfs --cuts 100
    """
    from chaos.disk.mounts import own_mounts, unavailable  # noqa: PLC0415 - before any thread is there
    from chaos.disk.powercut import LYING, Cuts, cut_power  # noqa: PLC0415

    _known(mutant, LYING)
    reason = unavailable(fs) or (strace_missing() if mutant == LYING else "")
    if reason:
        _not_available(f"power cuts on {fs}", reason)
    began = time.monotonic()
    total = Cuts(fs, seed, mutant)
    with _tool():
        own_mounts()
        with _progress(f"{fs}, {mutant}" if mutant != "none" else fs, cuts) as step:
            for cut in cut_power(fs, cuts, seed, mutant=mutant):
                total.add(cut)
                step(f"{total.acked_steps:,} groups acknowledged, {total.lost} lost, {total.unopenable} unopenable")
    total.seconds = round(time.monotonic() - began, 1)
    rows = [
        (f"{total.cuts}", f"power cuts on {fs}: {_counts(total.by_kind)}"),
        (f"{total.mid_write}", "with a group on its way to the disk"),
        (f"{total.fresh}", "while the folder was new"),
        (f"{total.acked_steps:,}", "groups and flushes acknowledged"),
        (f"{total.lost}", "left something acknowledged out, or held what was never written"),
        (f"{total.unopenable}", "left a folder that can't be opened"),
        ("", f"how writers left: {_counts(total.left)}"),
        (f"{total.seconds:.0f}", "seconds"),
    ]
    _end(total, rows, total.failures, as_json, valid=total.acked_steps > 0)


@app.command("enumerate")
def enumerate_(
    kind: Annotated[Kind, typer.Option(help="What writes.")] = Kind.journal,
    beginning: Annotated[list[Beginning] | None, typer.Option(help="How the folder began; all without it.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Groups of a journal; batches of a store.")] = 60,
    seed: Seed = 1,
    mutant: Mutant = "none",
    as_json: Json = False,
) -> None:
    """Build every disk that a power cut could leave, from a log of system calls, and have each judged.

    Needs strace, no root. Exit 0: each holds what was acknowledged. Exit 1: one does not. Exit 2: nothing proven.

    Example: tiebreak disk enumerate --kind store --steps 150
    """
    from chaos.disk.enumerate import Enumerated, enumerate_states  # noqa: PLC0415 - the list of commands needs none

    _known(mutant)
    if strace_missing():
        _not_available("crash states", strace_missing())
    found: list[Enumerated] = []
    with _tool(), _progress(f"{kind} states", None) as step:
        for one in beginning or list(Beginning):
            result = enumerate_states(
                kind,
                beginning=one,
                steps=steps,
                seed=seed,
                mutant=mutant,
                step=lambda one=one: step(one),  # type: ignore[misc]
            )
            found.append(result)
    rows = [
        (
            f"{one.states:,}",
            f"states of {one.calls:,} calls, {one.beginning}: {one.lost} lost, {one.unopenable} unopenable",
        )
        for one in found
    ]
    rows.append((f"{sum(one.seconds for one in found):.0f}", "seconds"))
    failures = [f"{one.beginning}: {example}" for one in found for example in one.examples]
    _end(found, rows, failures, as_json, valid=all(one.states for one in found))


@app.command("inject")
def inject(
    places: Annotated[int, typer.Option(min=1, help="Each fault strikes at the 1st to the so many-th call.")] = 12,
    fault: Annotated[list[str] | None, typer.Option(help="Only these; all without it.")] = None,
    members: Annotated[bool, typer.Option(help="Also whole members: slow, full and failing disks.")] = True,
    seconds: Annotated[float, typer.Option(min=1, help="How long a member is watched before and while.")] = 2.5,
    mutant: Mutant = "none",
    as_json: Json = False,
) -> None:
    """Let the n-th sync or write fail, wait or kill, under a journal, a store and a member of a real cluster.

    Needs strace, and root for the members. Exit 0: whoever hit an error left with its code, acknowledged nothing
    after it, and nothing is lost. Exit 1: not so. Exit 2: something can't be had here, so it proves nothing.

    Example: tiebreak disk inject --places 40
    """
    from chaos.disk import inject as injecting  # noqa: PLC0415 - the list of commands needs none of it

    _known(mutant)
    for name in fault or ():
        if name not in injecting.FAULTS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(injecting.FAULTS)}", param_hint="--fault")
    if strace_missing():
        _not_available("injected faults", strace_missing())
    names = fault or list(injecting.FAULTS)
    struck: list[injecting.Injected] = []
    with _tool(), _progress("faults", injecting.sweep_size(names, places)) as step:
        for one in injecting.sweep(names, places, mutant=mutant):
            struck.append(one)
            step(f"{one.kind}, {one.fault} at {one.nth}")
    seen = _members(seconds) if members else []
    rows = [
        (str(sum(one.fault == name for one in struck)), _said([o for o in struck if o.fault == name])) for name in names
    ]
    rows += [("1", _told(one)) for one in seen]
    failures = [f"{one.kind}, {one.fault} at {one.nth}: {one.wrong}" for one in struck if one.wrong]
    failures += [f"{one.case}: {one.wrong}" for one in seen if one.wrong]
    _end({"writers": struck, "members": seen}, rows, failures, as_json, valid=bool(struck))


@app.command("large-log")
def large_log(
    gib: Annotated[float, typer.Option(min=0.001, max=64, help="How much is written, in GiB of entries.")] = 5,
    entry_kib: Annotated[int, typer.Option(min=1, max=4096, help="The mean size of an entry, in KiB.")] = 16,
    tail_mib: Annotated[float, typer.Option(min=0.01, help="How much of the log is kept in memory, in MiB.")] = 16,
    folder: Annotated[Path | None, typer.Option(help="Where; a folder made in it is deleted at the end.")] = None,
    as_json: Json = False,
) -> None:
    """Write a log beyond 4 GiB and beyond memory; trim it, kill the writer, start over it, catch a follower up.

    Exit 0: all that was called durable is there, by content. Exit 1: it is not. Exit 2: no room, so nothing is proven.

    Example: tiebreak disk large-log --gib 5
    """
    from chaos.disk import large_log as large  # noqa: PLC0415 - it loads the whole engine

    payload_bytes = int(gib * (1 << 30))
    where = folder or Path(tempfile.gettempdir())
    if reason := large.no_room(where, payload_bytes):
        _not_available(f"a log of {gib:g} GiB", reason)
    with _tool(), _progress("large log", None) as step:
        found = large.run(
            where,
            payload_bytes=payload_bytes,
            entry_bytes=entry_kib << 10,
            tail_bytes=int(tail_mib * (1 << 20)),
            step=step,
        )
    _end(found, large.rows(found), found.wrong, as_json, valid=True)


def _members(seconds: float) -> list[Any]:
    from chaos.disk import members as on_members  # noqa: PLC0415 - they load the whole node
    from chaos.disk.mounts import own_mounts, unavailable  # noqa: PLC0415

    reason = unavailable("ext4")
    if reason:
        _not_available("members on small disks", reason)
    found: list[Any] = []

    async def run(cluster: on_members.Bench, step: Any) -> None:
        await cluster.open()
        for case in on_members.CASES:
            found.extend(await on_members.run_case(cluster, case))
            step(case)

    with _tool():
        own_mounts()
        with _progress("members", len(on_members.CASES)) as step, on_members.bench(seconds) as cluster:
            asyncio.run(run(cluster, step))
    return found


def _said(struck: list[Any]) -> str:
    codes: dict[str, int] = {}
    for one in struck:
        codes[str(one.exit_code)] = codes.get(str(one.exit_code), 0) + 1
    wrong = sum(bool(one.wrong) for one in struck)
    return f"{struck[0].fault}: exit codes {_counts(codes)}; {wrong} wrong"


def _told(seen: Any) -> str:
    return (
        f"{seen.case}: p50 {seen.before_p50} -> {seen.while_p50} ms, p99 {seen.before_p99} -> {seen.while_p99} ms, "
        f"{seen.terms} elections, {seen.done} done, {seen.unknown} unknown, refused {_counts(seen.refused) or 'none'}"
        + (f"; {seen.told}" if seen.told else "")
    )


# -- how they all talk -----------------------------------------------------------------------------


def _known(mutant: str, *others: str) -> None:
    if mutant not in (*MUTANTS, *others):
        raise typer.BadParameter(f"{mutant!r} is none of {', '.join((*MUTANTS, *others))}", param_hint="--mutant")


def _not_available(what: str, reason: str) -> None:
    talk.print(f"[bold red]NOT AVAILABLE HERE[/]: {what}: {reason}. Nothing was proven.")
    raise typer.Exit(EXIT_INVALID)


@contextmanager
def _tool() -> Iterator[None]:
    """A failure of the tool is no verdict on the disk."""
    try:
        yield
    except Failed as error:
        talk.print(f"[bold red]INVALID[/]: {error}", markup=True)
        raise typer.Exit(EXIT_INVALID) from error


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[said]}"), console=talk, transient=True) as progress:
        task = progress.add_task(what, total=total, said="")
        yield lambda said: progress.update(task, advance=1, said=said)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _end(found: Any, rows: list[tuple[str, str]], failures: list[str], as_json: bool, *, valid: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(justify="right")
        table.add_column()
        for row in rows:
            table.add_row(*row)
        out.print(table)
    for failure in failures[:10]:
        talk.print(f"[bold red]broken[/] {failure}", soft_wrap=True)
    verdict = "fail" if failures else "pass" if valid else "invalid"
    (talk if as_json else out).print(f"verdict: {verdict}")
    if verdict != "pass":
        raise typer.Exit(EXIT_BROKEN if failures else EXIT_INVALID)


if __name__ == "__main__":
    app()
