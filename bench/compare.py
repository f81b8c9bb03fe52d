"""What a user would pick instead, and us, doing the same job in turns, A B A B, in one run on one machine."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import msgspec
from msgspec import Struct

from bench import host, resting
from bench.market import CASH, CASH_EACH, Market
from bench.peers.etcd import VALUE_BYTES, Etcd
from bench.peers.peer import Measured, PeerFailed, PeerMissing
from bench.peers.postgres import ACCOUNTS, BATCH, CLIENTS_MAX, Postgres
from bench.report import Figure, Report, at_least
from bench.running import LIMITS, Running, asked_of_process, check, run_loop, running, send_all
from bench.watching import leader_of
from cluster.wire import OpenAccount, TransferFunds

SYMBOL = "BENCH"
CLIENTS = (1, 8, 32, 64)
OURS = "tiebreak"
PEERS = ("postgres", "etcd")
GOALS = {"postgres": 20.0, "postgres, batched": 5.0, "etcd": 3.0}
WORDS = {
    OURS: "three members, the witness one of them: an order is durable on two disks before it is answered",
    "postgres": "a primary and two synchronous standbys, ANY 1, default durability; a stored procedure; pgbench",
    "etcd": f"three members, puts of {VALUE_BYTES} bytes to the leader, durable on a majority; its own load generator",
}


class Point(Struct, frozen=True, order=True):
    """How it is asked. batch: orders in a request, all in one commit."""

    clients: int
    batch: int


def point_words(point: Point) -> str:
    """For people: `8 clients, 50 a request`."""
    clients = "1 client" if point.clients == 1 else f"{point.clients} clients"
    return clients + (f", {point.batch} a request" if point.batch > 1 else "")


class Cell(Struct, frozen=True):
    who: str
    point: Point
    turn: int
    measured: Measured


Measure = Callable[[Point], Measured]


def compare(
    folder: Path,
    *,
    seconds: float = 8,
    rounds: int = 2,
    peers: tuple[str, ...] = PEERS,
    clients: tuple[int, ...] = CLIENTS,
    on_cell: Callable[[Cell], None] = lambda _: None,
) -> tuple[Report, list[Cell]]:
    """Hold the money, store the order under its key, answer when it is durable: orders a second, us and others.

    Each turn starts servers anew and stops them, so that nobody measured has a neighbour. A peer that is not there, or
    fails, is named in the notes; the other rows run. Raises RunError: we ourselves could not be measured.
    """
    began = time.monotonic()
    points = [Point(count, batch) for batch in (1, BATCH) for count in clients]
    cells: list[Cell] = []
    notes = [f"{name}: {WORDS[name]}" for name in (OURS, *peers)]
    versions: dict[str, str] = {}
    left = list(dict.fromkeys(peers))
    for turn in range(rounds):
        for name in (OURS, *left):
            asked = [point for point in points if name != "etcd" or point.batch == 1]
            try:
                with contender(name, folder / f"compare-{turn}-{name}", seconds, versions) as measure:
                    for point in asked:
                        cells.append(Cell(name, point, turn, measure(point)))
                        on_cell(cells[-1])
            except (PeerMissing, PeerFailed) as error:
                notes.append(f"{name}, turn {turn + 1}: {error}")
                left = [one for one in left if one != name]
    return (
        Report(
            benchmark="compare",
            figures=figures(cells),
            settings={
                "turns": rounds,
                "order": ", ".join((OURS, *peers)),
                "seconds": seconds,
                "accounts": ACCOUNTS,
                **versions,
            },
            host=host.describe(folder),
            seconds=time.monotonic() - began,
            notes=[*notes, "latency is of a request, a batch being one; the load generators share the cores"],
        ),
        cells,
    )


def figures(cells: list[Cell]) -> list[Figure]:
    """Means over the turns; then each one's best, and how many times it we are."""
    found: list[Figure] = []
    best: dict[str, float] = {}
    for name in dict.fromkeys(cell.who for cell in cells):
        for point in sorted(
            {cell.point for cell in cells if cell.who == name}, key=lambda one: (one.batch, one.clients)
        ):
            mine = [cell.measured for cell in cells if (cell.who, cell.point) == (name, point)]
            per_s = fmean(one.per_s for one in mine)
            what = "puts" if name == "etcd" else "orders"
            found.append(Figure(f"{name}, {point_words(point)}: {what} a second", per_s, "/s"))
            found.append(Figure("  p50", fmean(one.p50_ms for one in mine), "ms"))
            found.append(Figure("  p99", fmean(one.p99_ms for one in mine), "ms"))
            found.append(Figure("  CPU of its servers for one", fmean(_cpu_us(one, per_s) for one in mine), "us"))
            kind = f"{name}, batched" if point.batch > 1 else name
            best[kind] = max(best.get(kind, 0.0), per_s)
    for kind, goal in GOALS.items():
        # Our batched orders are asked for by clients as well, and etcd's puts carry no command to batch.
        ours = best.get(OURS if kind == "postgres" else f"{OURS}, batched", 0.0)
        if best.get(kind) and ours:
            asked = "one order a request" if kind == "postgres" else f"{BATCH} orders a request"
            found.append(at_least(f"our best ({asked}) to the best of {kind}", ours / best[kind], goal, "x"))
    return found


def _cpu_us(measured: Measured, per_s: float) -> float:
    return measured.cpu_s / per_s * 1e6 if per_s else 0.0


@contextmanager
def contender(name: str, folder: Path, seconds: float, versions: dict[str, str]) -> Iterator[Measure]:
    """Servers that are up. CPU times of what it yields are for one second. Raises PeerMissing, PeerFailed, RunError."""

    def per_second(measured: Measured) -> Measured:
        return msgspec.structs.replace(measured, cpu_s=measured.cpu_s / seconds)

    with contextlib.ExitStack() as stack:
        if name == "postgres":
            postgres = stack.enter_context(Postgres(folder))
            versions[name] = postgres.version
            yield lambda point: per_second(postgres.measure(clients=point.clients, batch=point.batch, seconds=seconds))
        elif name == "etcd":
            etcd = stack.enter_context(Etcd(folder))
            versions[name] = etcd.version
            yield lambda point: per_second(etcd.measure(clients=point.clients, seconds=seconds))
        else:
            cluster = stack.enter_context(running(folder, limits=LIMITS))
            accounts = [f"client-{number:04}" for number in range(ACCOUNTS)]
            run_loop(_open(cluster, accounts))
            yield lambda point: per_second(run_loop(_ours(cluster, accounts, point, seconds)))


async def _open(cluster: Running, accounts: list[str]) -> None:
    async with cluster.client("operator") as operator:
        for request in Market(SYMBOL).listing_requests():
            check(await operator.submit(request))
    async with cluster.client("custodian", ("*",)) as custodian:
        for outcome in await send_all(custodian, [OpenAccount(account=account) for account in accounts]):
            check(outcome)
        funds = [TransferFunds(kind="deposit", account=one, asset=CASH, amount=str(CASH_EACH)) for one in accounts]
        for outcome in await send_all(custodian, [*funds]):
            check(outcome)


async def _ours(cluster: Running, accounts: list[str], point: Point, seconds: float) -> Measured:
    async with cluster.client("auditor", ("*",)) as auditor:
        leader = await leader_of(cluster, auditor)
    members = cluster.launcher.members
    share = len(accounts) // CLIENTS_MAX
    shares = [accounts[at : at + share] for at in range(0, len(accounts), share)]
    spec = resting.Spec(
        url=cluster.url(leader),
        symbol=SYMBOL,
        clients=[(cluster.token("trader", mine), mine) for mine in shares[: point.clients]],
        batch=point.batch,
        run=f"{time.time_ns():x}",
        seconds=seconds,
        pids=[pid for name in members if (pid := cluster.launcher.running(name)) is not None],
    )
    result = await asked_of_process("bench.resting", spec, resting.Result)
    return Measured(
        per_s=result.orders / result.seconds,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        cpu_s=result.cpu_s,
        wrong=sum(result.refused.values()),
    )
