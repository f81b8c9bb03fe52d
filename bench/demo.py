"""`make demo`: members, gateways, a real order flow, the leader killed midway, and the proof that nothing was lost.

`python -m bench.demo --help` says what can be chosen. Everything that is started is gone at the end,
also after Ctrl-C or a failure.
"""

import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from bench import datasets
from bench.demo_run import Demo, Outcome, Source, step, talk
from bench.load import intents_of
from bench.lobster import LobsterError
from bench.running import RunError, ending_on_signals, run_loop, running
from cluster.client import ClientError
from cluster.client_stream import StreamRefused
from cluster.folder import FolderError
from cluster.launcher import LaunchError

COMMANDS = 90_000
COMMANDS_MIN = 1_000
SEED = 1
MADE_UP_SYMBOL = "DEMO"
FAILURES = (RunError, LaunchError, FolderError, LobsterError, ClientError, StreamRefused, ExceptionGroup)

out = Console(highlight=False)


def source_of(path: Path | None) -> Source:
    """The recording at `path`, else in TIEBREAK_DATA, else the generator. Raises LobsterError for a bad path."""
    where = path or datasets.data_folder()
    if where is None:
        return Source(
            f"made up by the built-in generator, seed {SEED} (no --path, no {datasets.DATA_ENV})", MADE_UP_SYMBOL, False
        )
    found = datasets.recording(where)
    return Source(f"recorded, {found.messages.path.name}", found.messages.symbol, True, str(where))


def demo(
    path: Annotated[
        Path | None,
        typer.Option(
            help="A LOBSTER recording (.csv, .csv.gz, .zip) or a folder of some. "
            f"Default: {datasets.DATA_ENV}, else made-up flow."
        ),
    ] = None,
    commands: Annotated[int, typer.Option(min=COMMANDS_MIN, help="How many commands to send.")] = COMMANDS,
    folder: Annotated[
        Path | None, typer.Option(help="Keep the cluster's files in this new folder, to look at afterwards.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Start three members, send a day's orders, kill the leader, check that nothing was lost; then gateways."""
    began = time.monotonic()
    outcome = Outcome(Source("", "", False))
    with ExitStack() as stack:
        stack.enter_context(ending_on_signals())
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiebreak-demo-"))) / "cluster"
        try:
            outcome = run(root, source_of(path), commands, outcome)
        except KeyboardInterrupt:
            talk.print("[yellow]stopped; nothing is left running[/]")
            raise typer.Exit(130) from None
        except FAILURES as error:
            outcome.failure = _words(error)
            if folder is None and (root / "log").is_dir():
                outcome.failure += f"; the members' logs are in {_save_logs(root)}"
    outcome.total_s = time.monotonic() - began
    if as_json:
        document = {**msgspec.to_builtins(outcome), "ok": outcome.ok}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    else:
        print_outcome(outcome)
    raise typer.Exit(0 if outcome.ok else 1)


def run(root: Path, source: Source, commands: int, outcome: Outcome) -> Outcome:
    """All steps, in order. What was found so far is in `outcome` also when a step fails."""
    outcome.source = source
    talk.print(f"[bold]Tiebreak demo[/] [dim]· orders {escape(source.text)}[/]")
    began = time.monotonic()
    intents = list(islice(intents_of(source.path, SEED), commands))
    if len(intents) < COMMANDS_MIN:
        raise RunError(f"only {len(intents)} commands come of this recording; the demo needs {COMMANDS_MIN:,}")
    with running(root) as cluster:
        names = ", ".join(member.name + (" (witness)" if member.witness else "") for member in cluster.members)
        step(f"three members up on this machine: {names}", time.monotonic() - began)
        play = Demo(cluster, outcome, intents)
        run_loop(play.run())
        play.audit()
    return outcome


def _words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_words(one) for one in error.exceptions)
    return f"{type(error).__name__}: {error}"


def _save_logs(root: Path) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="tiebreak-demo-logs-"))
    shutil.copytree(root / "log", kept, dirs_exist_ok=True)
    return kept


def print_outcome(found: Outcome) -> None:
    """The table that people read, and the verdict."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    rows: list[tuple[str, str]] = [("order flow", escape(found.source.text))]
    if found.commands:
        rows += _figures(found)
    for name, value in rows:
        table.add_row(name, value)
    out.print()
    out.print(table)
    good = (
        "[bold green]PASSED[/] all acknowledged commands are there, once; replicas agree; no cent is missing; "
        "both gateways serve"
    )
    out.print(Panel(good if found.ok else f"[bold red]FAILED[/] {escape(why(found))}", expand=False))


def _figures(found: Outcome) -> list[tuple[str, str]]:
    latency, checked = found.latency, found.checked
    rows = [
        ("commands", f"{found.commands:,} in {found.seconds:.1f} s, the outage included: {found.per_s:,.0f}/s"),
        ("orders", f"{found.orders:,}"),
        ("fills", f"{found.fills:,}"),
        ("cancels", f"{found.cancels:,}, and {found.reductions:,} reductions"),
    ]
    if found.refused:
        reasons = ", ".join(f"{word} {count:,}" for word, count in sorted(found.refused.items()))
        rows.append(("refused", f"{reasons} [dim](filled before it came)[/]"))
    if latency is not None:
        rows.append(
            (
                "latency",
                f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, max {latency.max_ms:,.0f} ms "
                "[dim](50 commands, durable)[/]",
            )
        )
    if found.killed:
        rows.append(("leader killed", f"{found.killed}, by SIGKILL; {found.leads} took over"))
        rows.append(("outage", f"{found.outage_ms:,.0f} ms without an answer"))
        rows.append(("restarted member", f"caught up {found.caught_up_s:.1f} s after its start"))
    for name, digest in found.digests.items():
        mark = "[green]same[/]" if found.digests_agree else "[red]differs[/]"
        rows.append((f"digest of {name}", f"{digest[:24]} at index {found.digest_index:,}  {mark}"))
    for name, findings in found.audits.items():
        text = (
            f"[red]{escape(findings[0])}[/]"
            if findings
            else "[green]holds[/] sums are zero, holds match orders, ledger matches"
        )
        rows.append((f"audit of {name}'s disk", text))
    if checked is not None:
        rows.append(("asked again by key", f"{checked.asked:,} commands"))
        for name, count in (
            ("acknowledged, then lost", checked.lost + checked.changed),
            ("executed twice", checked.twice),
        ):
            rows.append((name, f"[{'red' if count else 'green'}]{count}[/]"))
    for one in found.shown:
        rows.append((one.name, f"[{'green' if one.ok else 'red'}]{'✓' if one.ok else '✗'}[/] {escape(one.text)}"))  # noqa: PERF401
    rows.append(("took", f"{found.total_s:.1f} s in all"))
    return rows


def why(found: Outcome) -> str:
    """The first thing that is wrong."""
    if found.failure:
        return found.failure
    if found.checked is None or not found.checked.holds:
        return f"acknowledged commands are not what was acknowledged: {found.checked}"
    if not found.digests_agree:
        return f"the replicas' digests differ: {found.digests}"
    if not found.conserved:
        return f"the audit found: {found.audits}"
    failed = "; ".join(f"{one.name}: {one.text}" for one in found.shown if not one.ok)
    return f"a gateway did not show what it should: {failed or 'nothing was shown'}"


def main() -> None:
    typer.run(demo)


if __name__ == "__main__":
    main()
