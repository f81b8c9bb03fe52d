"""Benchmarks with their targets: `tiebreak bench run engine`. Each prints what it was measured on."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from bench import (
    cases,
    cluster_cases,
    compare_cli,
    datasets,
    fanout_case,
    fit,
    gateway_ingest,
    gateway_partition,
    gateway_preferences,
    gateway_projection,
    gateway_quote,
    hardening_case,
    lobster,
    membership_case,
    pause_case,
    progress,
    results,
    table,
    transfer_case,
)
from bench.books import case as books_case
from bench.generator import Market as MadeUpMarket
from bench.lobster import LobsterError
from bench.peers import fanout
from bench.report import Report, as_json, print_report
from bench.running import RunError
from bench.scaling import disk_case, machine_cases, restart_case
from bench.spans import order_case, quote_case
from bench.sweep import load_cases
from bench.timeline import faults, opening, soak
from cluster.folder import SHAPES
from cluster.launcher import LaunchError

app = typer.Typer(no_args_is_help=True, help="Measure Tiebreak on this machine, against its targets.")
out = Console(highlight=False)
talk = Console(stderr=True, highlight=False)

Benchmark = Callable[..., Report]
Way = Literal["api", "sigterm"]
BENCHMARKS: dict[str, Benchmark] = {
    "engine": cases.engine,
    "books": books_case.books,
    "cluster-pipelined": cluster_cases.pipelined,
    "cluster-single": cluster_cases.single,
    "cluster-one": cluster_cases.one,
    "load-doors": load_cases.doors,
    "load-latency": load_cases.latency,
    "load-wan": load_cases.wan,
    "spans-order": order_case.order,
    "spans-quote": quote_case.quote,
    "kill": cluster_cases.kill,
    "pause": pause_case.pause,
    "transfer": transfer_case.transfer,
    "membership": membership_case.membership,
    "hardening": hardening_case.hardening,
    "store-start": cases.store_start,
    "disk": cluster_cases.disk,
    "disk-growth": disk_case.disk_growth,
    "restart": restart_case.restart,
    "scale-accounts": machine_cases.accounts,
    "scale-symbols": machine_cases.symbols,
    "scale-open-orders": machine_cases.open_orders,
    "gateway-ingest": gateway_ingest.ingest,
    "gateway-projection": gateway_projection.projection,
    "gateway-partition": gateway_partition.partition,
    "gateway-preferences": gateway_preferences.preferences,
    "gateway-quote": gateway_quote.quote,
    "gateway-fanout": fanout_case.fanout,
    "gateway-sockets": fanout_case.many_sockets,
    "fanout-peers": fanout.fanout_peers,
    "time-snapshot": faults.time_snapshot,
    "time-leader-kill": faults.time_leader_kill,
    "time-partition": faults.time_partition,
    "market-open": opening.market_open,
    "soak": soak.soak,
}
OPTIONS = {
    "engine": {"commands", "batch", "seed", "path"},
    "books": {"commands", "rounds", "seed", "path"},
    "cluster-pipelined": {"seconds", "seed", "path", "frame"},
    "cluster-single": {"seconds", "seed", "path", "rate_per_s"},
    "cluster-one": {"seconds", "seed", "path"},
    "load-doors": {"seconds", "clients", "offered"},
    "load-latency": {"seconds", "offered", "shapes", "connections", "frame"},
    "load-wan": {"seconds", "round_trip_ms", "fills", "makers", "connections", "frame", "pipeline"},
    "spans-order": {"seconds", "round_trip_ms"},
    "spans-quote": {"seconds", "workers"},
    "kill": {"kills", "rate_per_s", "seed", "path"},
    "pause": {"pause_s", "rounds", "rate_per_s"},
    "transfer": {"transfers", "by", "rate_per_s", "seed", "path"},
    "membership": {"commands", "rate_per_s", "seed", "path"},
    "hardening": {"seconds", "rounds", "variants", "seed", "path"},
    "store-start": {"accounts"},
    "disk": {"commands", "seed", "path"},
    "disk-growth": {"commands", "seed"},
    "restart": {"sizes", "accounts", "open_orders", "rounds", "seed"},
    "scale-accounts": {"sizes", "commands", "batch", "seed"},
    "scale-symbols": {"sizes", "commands", "batch", "seed"},
    "scale-open-orders": {"sizes", "commands", "batch", "seed"},
    "gateway-ingest": {"seconds", "symbols", "seed"},
    "gateway-projection": {"seconds", "rate_per_s", "seed", "path"},
    "gateway-partition": {"runs", "cut_s", "rate_per_s", "seed"},
    "gateway-preferences": {"seconds", "accounts"},
    "gateway-quote": {"seconds", "rate_per_s", "seed"},
    "gateway-fanout": {"seconds", "sockets", "workers"},
    "gateway-sockets": {"seconds", "sockets", "workers"},
    "fanout-peers": {"seconds", "sockets", "workers", "rounds"},
    "time-snapshot": {"commands", "rate_per_s", "seed"},
    "time-leader-kill": {"rate_per_s", "seed"},
    "time-partition": {"cut_s", "rate_per_s", "seed"},
    "market-open": {"seconds", "rate_per_s", "seed"},
    "soak": {"seconds", "rate_per_s", "seed"},
}
"""Which options each of them has; the others are refused rather than ignored."""


@app.command("list")
def list_benchmarks(as_json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """Say what can be measured."""
    lines = {name: (function.__doc__ or "").strip().split("\n")[0] for name, function in BENCHMARKS.items()}
    if as_json_:
        sys.stdout.write(msgspec.json.encode(lines).decode() + "\n")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, text in lines.items():
        table.add_row(f"[bold]{name}[/]", text)
    out.print(table)


@app.command("run")
def run_benchmarks(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Benchmarks, or `all`.")],
    seconds: Annotated[float | None, typer.Option(min=0.5, help="How long to measure, after the warm-up.")] = None,
    commands: Annotated[int | None, typer.Option(min=1_000, help="How many commands to send.")] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Commands a second.")] = None,
    offered: Annotated[
        list[int] | None, typer.Option(min=1, help="Orders a second that are offered; may be given more than once.")
    ] = None,
    fills: Annotated[
        list[int] | None, typer.Option(min=1, help="Trades a second that are offered; may be given more than once.")
    ] = None,
    makers: Annotated[int | None, typer.Option(min=1, max=100, help="Resting orders that one takes.")] = None,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, max=9_000, help="How many clients; may be given more than once.")
    ] = None,
    connections: Annotated[int | None, typer.Option(min=1, max=9_000, help="How many WebSockets the load has.")] = None,
    shapes: Annotated[
        list[str] | None, typer.Option("--shape", help="Members by site: 1+1+1, 2+2+1; may be given more than once.")
    ] = None,
    round_trip_ms: Annotated[
        list[float] | None, typer.Option(min=0.0, max=200.0, help="Between sites; may be given more than once.")
    ] = None,
    pipeline: Annotated[int | None, typer.Option(min=1, max=64, help="Batches that a leader has under way.")] = None,
    kills: Annotated[int | None, typer.Option(min=1, help="How often the leader is killed.")] = None,
    transfers: Annotated[int | None, typer.Option(min=1, help="How often leadership is handed over.")] = None,
    by: Annotated[Way | None, typer.Option(help="Hand over by the API, or by SIGTERM to the leader.")] = None,
    pause_s: Annotated[
        list[float] | None, typer.Option(min=1.0, help="How long the leader is paused; may be given more than once.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each is done.")] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", help="What is compared with the product as shipped; may be given more than once."),
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="How often the sites are cut apart.")] = None,
    cut_s: Annotated[float | None, typer.Option(min=0.5, help="How long the sites are cut apart.")] = None,
    symbols: Annotated[
        list[int] | None, typer.Option(min=1, help="How many symbols; may be given more than once.")
    ] = None,
    sockets: Annotated[int | None, typer.Option(min=1, help="How many sockets the gateway's streams have.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="How many processes serve them.")] = None,
    accounts: Annotated[int | None, typer.Option(min=1, help="Accounts in the store.")] = None,
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            min=0,
            help="What is scaled: accounts, symbols, open orders, commands to replay; may be given more than once.",
        ),
    ] = None,
    open_orders: Annotated[int | None, typer.Option(min=1, help="Open orders that rest in books, at most.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=4_096, help="Commands in a batch of the bare engine.")] = None,
    frame: Annotated[int | None, typer.Option(min=1, max=500, help="Commands in a WebSocket frame.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the made-up flow.")] = None,
    path: Annotated[Path | None, typer.Option(help="A LOBSTER recording, instead of the made-up flow.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to put the files: the disk that is measured.")] = None,
    saved: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Keep each report there as JSON, with its pictures.")
    ] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Run benchmarks one after the other. Exit 0: all targets met. Exit 1: one was missed, or a run failed.

    Example: tiebreak bench run engine cluster-pipelined --seconds 10 --out results
    """
    wanted = list(BENCHMARKS) if names == ["all"] else names
    for name in wanted:
        if name not in BENCHMARKS:
            raise typer.BadParameter(f"{name}: one of {', '.join(BENCHMARKS)}, or all")
    for one in variants or ():
        if one not in hardening_case.VARIANTS:
            raise typer.BadParameter(f"{one}: one of {', '.join(hardening_case.VARIANTS)}")
    for one in shapes or ():
        if one not in SHAPES:
            raise typer.BadParameter(f"{one}: one of {', '.join(SHAPES)}")
    given = {
        "seconds": seconds,
        "commands": commands,
        "rate_per_s": rate,
        "offered": tuple(offered) if offered else None,
        "fills": tuple(fills) if fills else None,
        "makers": makers,
        "clients": tuple(clients) if clients else None,
        "connections": connections,
        "shapes": tuple(shapes) if shapes else None,
        "round_trip_ms": tuple(round_trip_ms) if round_trip_ms else None,
        "pipeline": pipeline,
        "kills": kills,
        "pause_s": tuple(pause_s) if pause_s else None,
        "rounds": rounds,
        "variants": tuple(variants) if variants else None,
        "transfers": transfers,
        "by": by,
        "runs": runs,
        "cut_s": cut_s,
        "symbols": tuple(symbols) if symbols else None,
        "sockets": sockets,
        "workers": workers,
        "accounts": accounts,
        "sizes": tuple(sizes) if sizes else None,
        "open_orders": open_orders,
        "batch": batch,
        "frame": frame,
        "seed": seed,
        "path": None if path is None else str(path),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if not any(name in OPTIONS[one] for one in wanted):
            raise typer.BadParameter(f"{_flag(name)} means nothing to {', '.join(wanted)}")
    reports: list[Report] = []
    failed = False
    with _workspace(folder) as root:
        for name in wanted:
            fitting = {option: value for option, value in chosen.items() if option in OPTIONS[name]}
            try:
                with progress.shown(talk, f"measuring {name}"):
                    report = BENCHMARKS[name](root, **fitting)
            except (RunError, LaunchError, LobsterError, subprocess.CalledProcessError) as error:
                talk.print(f"[bold red]{name} failed:[/] {error}")
                failed = True
                continue
            finally:
                shutil.rmtree(root / name, ignore_errors=True)
            reports.append(report)
            if not as_json_:
                print_report(out, report)
            if saved is not None:
                talk.print(f"[dim]{results.save(report, saved)}[/]")
                results.draw(report, saved, talk)
    if as_json_:
        sys.stdout.write(as_json(reports) + "\n")
    raise typer.Exit(0 if not failed and all(report.passed for report in reports) else 1)


def _flag(name: str) -> str:
    """The option as it is typed, without its dashes in front."""
    return name.replace("_per_s", "").replace("_", "-")


@contextmanager
def _workspace(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
        return
    with tempfile.TemporaryDirectory(prefix="tiebreak-bench-") as root:
        yield Path(root)


app.command("compare")(compare_cli.compare_peers)
app.command("plot")(compare_cli.plot)
app.command("table")(table.table)


@app.command("fit")
def show_fit(
    path: Annotated[Path | None, typer.Option(help=f"A LOBSTER file or folder. Default: {datasets.DATA_ENV}.")] = None,
    events: Annotated[int, typer.Option(min=1_000, help="Made-up events.")] = 90_000,
    seed: Annotated[int, typer.Option(help="Seed of the made-up flow.")] = 7,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Print the figures that the generator was fitted to: of a recording, and of what it makes, side by side."""
    columns: dict[str, fit.Marginals] = {}
    where = path or datasets.data_folder()
    if where is None:
        talk.print(f"[yellow]no recording to compare with: give --path or set {datasets.DATA_ENV}[/]")
    else:
        found = datasets.recording(where)
        rows: Iterator[lobster.Row] = iter(())
        if found.book is not None:
            rows = lobster.read_rows(found.book, 1 if datasets.seeds_only(found) else None)
        columns[found.messages.symbol] = fit.marginals(lobster.read_messages(found.messages), rows)
    columns[f"generator, seed {seed}"] = fit.marginals(islice(MadeUpMarket(seed).messages(), events))
    if as_json_:
        sys.stdout.write(msgspec.json.encode(columns).decode() + "\n")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for name, cells in fit.rows(list(columns.values())):
        table.add_row(name, *cells)
    out.print(table)
