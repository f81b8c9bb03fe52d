"""The benchmark of restarts: a real member's process, from its start to ready, against its state and its log's tail."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import host, progress
from bench.load import cpu_s
from bench.report import Curve, Figure, Report, exactly
from bench.running import LIMITS, RunError, Running, asked_of_process, run_loop, running
from bench.scaling.applying import Applying, Result, Spec, memory
from bench.scaling.points import check_sizes
from bench.scaling.traffic import Traffic
from bench.scaling.world import World, fill
from cluster.consensus.audited import NO_OP, REGULAR
from cluster.consensus.journal import Change, Committed, Disk, Put, Vote
from cluster.consensus.storage import LmdbStorage
from cluster.folder import ClusterFolder
from statemachine.inspection import inspect_store
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_copy import adopt

BEHIND = (0, 10_000, 100_000)
ACCOUNTS = (1_000, 100_000, 1_000_000)
OPEN_ORDERS = (1_000, 10_000, 100_000)
TRADERS = 10_000
RESTING = 1_000
BOOKS = 10
BATCH = 50
TERM = 1
GROUP = 500
"""Entries that are written to a journal at once."""
LOG_RESERVE = 1_000_000
LOOK_S = 0.01
READY_S_MAX = 300.0
HOUR_US = 3_600 * 1_000_000


class Restart(Struct, frozen=True):
    """Of one start. behind: entries of the log that were committed and not in its store.

    cpu_s, memory_mib: of the process when it was ready. alone: its store without the rest.
    """

    size: int
    behind: int
    ready_s: float
    cpu_s: float
    memory_mib: float
    alone: Result


def restart(
    folder: Path,
    *,
    sizes: Sequence[int] = BEHIND,
    accounts: int = max(ACCOUNTS),
    open_orders: int = max(OPEN_ORDERS),
    rounds: int = 2,
    seed: int = 1,
) -> Report:
    """A member's restart, process start to ready, against accounts, open orders, and commands in the log to replay."""
    began = time.monotonic()
    place = folder / "restart"
    start_us = time.time_ns() // 1_000 - HOUR_US
    by_accounts = {size: World(size, 1, RESTING, seed, start_us) for size in _up_to(ACCOUNTS, accounts)}
    by_orders = {size: World(TRADERS, BOOKS, size, seed, start_us) for size in _up_to(OPEN_ORDERS, open_orders)}
    behind = World(TRADERS, BOOKS, RESTING, seed, start_us)
    check_sizes(place, [*by_accounts.values(), *by_orders.values(), behind])
    with progress.steps("restart", len(by_accounts) + len(by_orders) + 1) as begin:
        states: dict[str, list[Restart]] = {}
        for what, worlds in (("accounts", by_accounts), ("open orders", by_orders)):
            states[what] = []
            for size, world in worlds.items():
                begin(f"{size:,} {what}")
                states[what].append(_with_state(place, size, world, rounds))
        begin("commands to replay")
        replays, findings, entries = _with_log(place, behind, sorted(sizes), rounds)
        states["commands to replay"] = replays
    return Report(
        benchmark="restart",
        figures=[
            *(figure for what, found in states.items() for figure in _figures(what, found)),
            exactly("findings of the audit after all replays", findings, 0),
        ],
        settings={
            "members": 3,
            "rounds": rounds,
            "with_accounts": f"{RESTING} open orders, 1 symbol, nothing to replay",
            "with_open_orders": f"{TRADERS} accounts, {BOOKS} symbols, nothing to replay",
            "with_commands": f"{TRADERS} accounts, {RESTING} open orders, {entries} entries of {BATCH} in the log",
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "one replica starts while the others run; ready: it has applied what was committed, and says so",
            "the middle one of the rounds; the files are in the page cache, as after a deploy or a crash",
            "the store alone: opened, and the machine restored, in a process that has its modules loaded",
            "the log holds traffic that the store at its end was made from, by the same rules; "
            "a member flushes every 250 ms, so much to replay is what a store that lost its flushes would have",
        ],
        curves=_curves(states),
    )


def _up_to(sizes: Sequence[int], largest: int) -> list[int]:
    return [*(size for size in sizes if size < largest), largest]


def _with_state(place: Path, size: int, world: World, rounds: int) -> Restart:
    root = place / f"state-{size}"

    def prepare(folder: ClusterFolder) -> None:
        for name in _replicas(folder):
            with _store(folder, name) as store:
                fill(store, world)

    with running(root, limits=LIMITS, prepare=prepare) as cluster:
        name = cluster.replicas[0]
        found = _middle([_restarted(cluster, name, size) for _ in range(rounds)])
    shutil.rmtree(root)
    return found


def _with_log(place: Path, world: World, sizes: Sequence[int], rounds: int) -> tuple[list[Restart], int, int]:
    """One log for all; the member's store is put back to where so many commands are behind it."""
    root, stores = place / "log", place / "stores"
    commands = max(sizes)
    entries = -(-commands // BATCH)

    def prepare(folder: ClusterFolder) -> None:
        payloads = list(Traffic(world).batches(commands, BATCH))
        for member in folder.topology().members:
            _write_log(folder, member.name, payloads)
        first, *others = _replicas(folder)
        with _store(folder, first) as store:
            fill(store, world)
        _apply(folder, first, payloads, {entries - -(-size // BATCH): stores / str(size) for size in sizes})
        for other in others:
            _put_back(folder, other, stores / str(min(sizes)))

    found = []
    with running(root, limits={**LIMITS, "log_reserve": LOG_RESERVE}, prepare=prepare) as cluster:
        name = cluster.replicas[0]
        for size in sizes:
            starts = [_restarted(cluster, name, size, stores / str(size)) for _ in range(rounds)]
            found.append(_middle(starts))
        cluster.launcher.stop()
        findings = sum(len(inspect_store(cluster.folder.data(one) / "store").findings) for one in cluster.replicas)
    shutil.rmtree(place)
    return found, findings, entries


def _replicas(folder: ClusterFolder) -> list[str]:
    return [member.name for member in folder.topology().members if member.role.value == "replica"]


@contextmanager
def _store(folder: ClusterFolder, name: str) -> Iterator[Store]:
    store = Store(folder.data(name) / "store", cluster_id=folder.topology().cluster_id, member=name)
    try:
        yield store
    finally:
        store.close()


def _write_log(folder: ClusterFolder, name: str, payloads: Sequence[bytes]) -> None:
    """A journal of a member that has voted and acknowledged: a no-op, and behind it each payload, all committed."""
    storage = LmdbStorage(folder.data(name) / "journal", cluster_id=folder.topology().cluster_id, member=name)
    try:
        # The entry of index 1 is the library's own, without a term's leader.
        puts: list[Change] = [Put(1, TERM, NO_OP)]
        puts += [Put(index, TERM, REGULAR + payload) for index, payload in enumerate(payloads, 2)]
        for start in range(0, len(puts), GROUP):
            storage.write(puts[start : start + GROUP])
        storage.write([Vote(TERM, None), Committed(len(puts)), Disk(f"{name}-disk")])
    finally:
        storage.close()


def _apply(folder: ClusterFolder, name: str, payloads: Sequence[bytes], copies: dict[int, Path]) -> None:
    """Apply the log to a member's store as the member would; copy the store where `copies` says, by entries applied."""
    with _store(folder, name) as store:
        applying = Applying(store, Machine(store, store.load()))
        for number in range(len(payloads) + 1):
            if number in copies:
                applying.flush_all()
                shutil.copytree(store.path, copies[number])
            if number < len(payloads):
                applying.apply(number + 2, payloads[number])
                if store.pending_full:
                    applying.flush_all()
        applying.stop()
    if applying.refused:
        raise RunError(f"the rules refused what traffic counts on: {applying.refused}")


def _put_back(folder: ClusterFolder, name: str, copy: Path) -> None:
    target = folder.data(name) / "store"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(copy, target)
    adopt(target, cluster_id=folder.topology().cluster_id, member=name)


def _restarted(cluster: Running, name: str, size: int, store: Path | None = None) -> Restart:
    """Stop a member, put its store back where one is given, measure that alone, and start the member again."""
    launcher, folder = cluster.launcher, cluster.folder
    launcher.stop([name])
    if store is not None:
        _put_back(folder, name, store)
    none = folder.root / "none"
    none.write_bytes(msgspec.msgpack.encode([]))
    spec = Spec(str(folder.data(name) / "store"), str(none), 0, folder.topology().cluster_id, name)
    alone = run_loop(asked_of_process("bench.scaling.applying", spec, Result))
    behind = _committed(folder, name) - alone.opened_index
    began = time.monotonic()
    pid = launcher.start(name, die_with_us=True)
    while not launcher.is_ready(name):
        if launcher.running(name) is None or time.monotonic() - began > READY_S_MAX:
            raise RunError(f"{name} was not ready {time.monotonic() - began:.1f} s after its start: {folder.log(name)}")
        time.sleep(LOOK_S)
    return Restart(size, behind, time.monotonic() - began, cpu_s(pid), memory(pid).own_mib, alone)


def _committed(folder: ClusterFolder, name: str) -> int:
    """The last log index that a stopped member knows to be committed."""
    storage = LmdbStorage(folder.data(name) / "journal", cluster_id=folder.topology().cluster_id, member=name)
    try:
        return storage.load(tail_bytes_max=0).commit_index
    finally:
        storage.close()


def _middle(found: list[Restart]) -> Restart:
    return sorted(found, key=lambda one: one.ready_s)[(len(found) - 1) // 2]


def _figures(what: str, found: Sequence[Restart]) -> Iterator[Figure]:
    for one in found:
        yield Figure(f"{one.size:,} {what}: ready after", one.ready_s, "s")
        yield Figure("  entries of the log that its store lacked", one.behind)
        yield Figure("  CPU of the process until then", one.cpu_s, "s")
        yield Figure("  its own memory", one.memory_mib, "MiB")
        yield Figure("  the store and the machine alone", one.alone.open_s, "s")


def _curves(states: dict[str, list[Restart]]) -> list[Curve]:
    curves = []
    for what, found in states.items():
        for series, values in (
            ("process start to ready", [one.ready_s for one in found]),
            ("CPU of the process", [one.cpu_s for one in found]),
            ("the store and the machine alone", [one.alone.open_s for one in found]),
        ):
            # A log axis has no place for nothing to replay: it stands at one.
            sizes: list[float | str] = [float(max(1, one.size)) for one in found]
            curves.append(Curve(f"restart by {what}", "line", series, sizes, values, what, "s", log_x=True))
    return curves
