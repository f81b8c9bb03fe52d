"""`tiebreak replay lobster`: send a recorded day of orders, through the bare rules or to a running cluster."""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.progress import Progress

from bench import datasets, flow, lobster
from bench.driver import FRAME, FRAMES_UNDER_WAY, Driver
from bench.flow import Act, Flow
from bench.lobster import LobsterError, Recording, Row
from bench.market import MAKERS, TAKERS, Market
from bench.replay import ExactReplay
from bench.stats import Spread, spread
from cluster.client import Client, ClientError, Done, Refused, members_of
from cluster.client_stream import StreamRefused
from cluster.folder import ClusterFolder, FolderError
from cluster.wire import AnyRequest
from node.auth import issue_token

app = typer.Typer(no_args_is_help=True, help="Send recorded order flow.")
out = Console(highlight=False)
talk = Console(stderr=True, highlight=False)


class Replayed(Struct):
    """What a replay came to. same_touch of compared: rows whose published best bid and ask were the engine's."""

    recording: str
    commands: int
    orders: int
    fills: int
    cancels: int
    refused: dict[str, int]
    seconds: float
    per_s: float
    compared: int = 0
    same_touch: int = 0
    certain_executions: int = 0
    certain_hits: int = 0
    unknown: int = 0
    latency: Spread | None = None


@app.callback()
def _group() -> None:
    pass


@app.command("lobster")
def replay_lobster(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help=f"A .csv, .csv.gz, .zip or folder. Default: {datasets.DATA_ENV}."),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster",
            envvar="TIEBREAK_CLUSTER",
            metavar="DIR",
            help="Send it to this cluster, through its API. Without it the rules run here, and the book is compared.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many messages.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Replay a LOBSTER recording.

    Without --cluster: message by message through the rules, in this process; where the recording has a
    book, every row's best bid and ask are compared, and the order that each execution names.
    With --cluster: pipelined through the API; accounts and instrument are made where they are missing.

    Example: tiebreak replay lobster AAPL_2012-06-21_34200000_57600000_message_10.csv
    """
    where = path or datasets.data_folder()
    if where is None:
        talk.print(f"[bold red]error:[/] no recording: give a path, or set {datasets.DATA_ENV}")
        raise typer.Exit(2)
    try:
        found = datasets.recording(where)
        replayed = compare(found, limit) if cluster is None else uvloop.run(send(found, limit, ClusterFolder(cluster)))
    except (LobsterError, FolderError) as error:
        talk.print(f"[bold red]error:[/] {error}")
        raise typer.Exit(1) from None
    except (ClientError, StreamRefused) as error:
        talk.print(f"[bold red]error:[/] {error}")
        raise typer.Exit(4) from None
    if as_json:
        sys.stdout.write(msgspec.json.encode(replayed).decode() + "\n")
    else:
        _print(replayed)


def compare(found: Recording, limit: int | None = None) -> Replayed:
    """Through the rules, in this process. Raises LobsterError."""
    replay = ExactReplay(Market(found.messages.symbol), Flow(MAKERS, TAKERS))
    following = _rows(found, limit)
    published = found.book is not None and not datasets.seeds_only(found)
    compared = same = 0
    began = time.monotonic()
    with Progress(console=talk, transient=True) as bar:
        task = bar.add_task("replaying", total=limit)
        for number, message in enumerate(lobster.read_messages(found.messages, limit), 1):
            row = next(following, None)
            replay.step(message, row)
            if published and row is not None:
                replay.flush()
                compared += 1
                same += replay.touch() == touch(row)
            if number % 1_000 == 0:
                bar.update(task, completed=number)
        replay.flush()
    seconds = time.monotonic() - began
    counts = replay.counts
    return Replayed(
        recording=found.messages.name,
        commands=counts.commands,
        orders=counts.orders,
        fills=counts.fills,
        cancels=counts.canceled,
        refused=counts.refused,
        seconds=seconds,
        per_s=counts.commands / seconds,
        compared=compared,
        same_touch=same,
        certain_executions=replay.named,
        certain_hits=replay.hit,
    )


def touch(row: Row) -> tuple[int, int, int, int]:
    """Best ask price and size, best bid price and size; zeroes for an empty side."""
    best = row[0]
    ask = (best.ask_price, best.ask_size) if best.ask_size else (0, 0)
    bid = (best.bid_price, best.bid_size) if best.bid_size else (0, 0)
    return (*ask, *bid)


def _rows(found: Recording, limit: int | None) -> Iterator[Row]:
    if found.book is None:
        return iter(())
    return lobster.read_rows(found.book, 1 if datasets.seeds_only(found) else limit)


async def send(found: Recording, limit: int | None, folder: ClusterFolder) -> Replayed:
    """Through the API of a running cluster. Raises LobsterError, FolderError, ClientError, StreamRefused."""
    folder.topology()  # before anything is read from it: says what is wrong with it
    market = Market(found.messages.symbol)
    key = folder.token_key.read_text("utf-8")

    def client(role: str, *accounts: str) -> Client:
        token = issue_token(key, subject="replay", role=role, accounts=accounts)
        return Client(members_of(folder.topology_path), token=token, timeout_ms=20_000)

    async with client("operator") as operator:
        await _make(operator, market.listing_requests())
    async with client("custodian", "*") as custodian:
        if await _make(custodian, market.account_requests()):
            await _make(custodian, market.deposit_requests())
    asked = flow.intents(lobster.read_messages(found.messages, limit), _rows(found, limit), Flow(MAKERS, TAKERS))
    # A halt is an operator's business, and a trader's stream can't send it.
    intents = (intent for intent in asked if intent.act != Act.mode)
    async with client("trader", *market.accounts) as trader:
        driver = Driver(
            trader,
            market,
            intents,
            run=f"replay-{time.time_ns():x}",
            frame=FRAME,
            frames_under_way=FRAMES_UNDER_WAY,
        )
        with Progress(console=talk, transient=True) as bar:
            task = bar.add_task("sending", total=None)
            sending = asyncio.create_task(driver.send(1 << 60))
            while not sending.done():
                await asyncio.wait((sending,), timeout=0.1)
                bar.update(task, completed=driver.answered)
            await sending
    return Replayed(
        recording=found.messages.name,
        commands=driver.answered,
        orders=driver.acts[Act.place] + driver.acts[Act.take],
        fills=driver.filled,
        cancels=driver.acts[Act.cancel],
        refused=dict(driver.refused + driver.turned_away),
        seconds=driver.seconds,
        per_s=driver.answered / max(driver.seconds, 1e-9),
        unknown=len(driver.unknown),
        latency=spread(driver.latencies_ms),
    )


async def _make(client: Client, requests: list[AnyRequest]) -> bool:
    """Send what makes the market; what exists already is fine. True: something was made. Raises ClientError."""
    made = False
    for request in requests:
        outcome = await client.submit(request)
        if isinstance(outcome, Refused) and not outcome.error.endswith("_exists"):
            raise ClientError(f"refused: {outcome.error}: {outcome.message}")
        made = made or isinstance(outcome, Done)
    return made


def _print(replayed: Replayed) -> None:
    lines = [
        ("recording", replayed.recording),
        ("commands", f"{replayed.commands:,} in {replayed.seconds:.1f} s: {replayed.per_s:,.0f}/s"),
        ("orders", f"{replayed.orders:,}"),
        ("fills", f"{replayed.fills:,}"),
        ("cancels", f"{replayed.cancels:,}"),
    ]
    if replayed.refused:
        lines.append(("refused", ", ".join(f"{word} {count:,}" for word, count in sorted(replayed.refused.items()))))
    if replayed.compared:
        lines.append(("best bid and ask as published", f"{replayed.same_touch:,} of {replayed.compared:,} rows"))
    if replayed.certain_executions:
        hits = f"{replayed.certain_hits:,} of {replayed.certain_executions:,} executions"
        lines.append(("hit the order named", f"{hits} whose level is fully known"))
    if replayed.latency is not None:
        latency = replayed.latency
        lines.append(("latency of a frame", f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms"))
    if replayed.unknown:
        lines.append(("outcome unknown", f"{replayed.unknown:,}"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        out.print(f"[dim]{name:<{width}}[/]  {value}")
