"""The processes of a large log: one that writes it until it is killed, one that opens it, two members over it.

Usage: python -m chaos.disk.large_log_child write|open|follow FOLDER, and then: write BYTES ENTRY_BYTES TAIL_BYTES TRIM
(the part of BYTES that is trimmed on the way), open TAIL_BYTES ENTRY_BYTES, follow TAIL_BYTES ENTRY_BYTES FROM_INDEX.
Each says what it sees in lines of JSON.
"""

import asyncio
import random
import socket
import sys
import time
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import msgspec
from msgspec import Struct

from cluster.certificates import make_all, tls_files
from cluster.consensus.audited import REGULAR
from cluster.consensus.hardened import HardenedEngine
from cluster.consensus.journal import Committed, Disk, Journal, StartAfter, Vote
from cluster.consensus.settings import EngineSettings, Limits
from cluster.consensus.storage import LmdbStorage, ThreadCommitter
from cluster.topology import Topology, new_topology

CLUSTER, MEMBER, OTHER = "large-log", "a1", "b1"
GROUP_BYTES = 1 << 20
TERM = 1
READS = 1000
STUCK_SECONDS = 60
FIRST_PORT, LAST_PORT = 20_000, 30_000


class Writing(Struct):
    """anon_mib: memory that no file stands behind, at most so far."""

    entries: int = 0
    payload_bytes: int = 0
    durable_index: int = 0
    first_index: int = 0
    groups: int = 0
    seconds: float = 0
    anon_mib: float = 0
    done: bool = False


class Opened(Struct):
    seconds: float
    anon_mib: float
    first_index: int
    last_index: int
    commit_index: int
    term: int
    file_mib: float
    reads: int = 0
    read_p50_us: float = 0
    read_p99_us: float = 0
    wrong: str = ""


class Following(Struct):
    from_index: int
    entries: int
    payload_mib: float
    seconds: float
    anon_mib: float
    started_anon_mib: float
    wrong: str = ""


def payload(index: int, entry_bytes: int) -> bytes:
    """What entry `index` holds: from half of entry_bytes to one and a half, and not like any other."""
    size = entry_bytes // 2 + index * 2_654_435_761 % entry_bytes
    return (sha256(b"%d" % index).digest() * (size // 32 + 1))[:size]


def anon_mib() -> float:
    """Memory of this process that is no file's: pages of the map are the system's to take back."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def say(record: Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
    sys.stdout.buffer.flush()


def storage_of(folder: Path, member: str, map_bytes: int) -> LmdbStorage:
    return LmdbStorage(folder, cluster_id=CLUSTER, member=member, map_bytes=map_bytes)


def map_bytes_for(payload_bytes: int) -> int:
    return 2 * payload_bytes + (1 << 30)


async def write(folder: Path, payload_bytes: int, entry_bytes: int, tail_bytes: int, trim: float) -> None:
    """Groups of 1 MiB as a member forms them: one is written while the next is added. Goes on until it is killed."""
    failed: list[BaseException] = []
    synced = asyncio.Event()

    def fail(error: BaseException) -> None:
        failed.append(error)
        synced.set()

    journal = Journal(
        storage_of(folder, MEMBER, map_bytes_for(payload_bytes)),
        ThreadCommitter(asyncio.get_running_loop()),
        on_synced=synced.set,
        on_failed=fail,
        tail_bytes_max=tail_bytes,
    )
    journal.setCurrentTerm(TERM, MEMBER)
    told = Writing()
    began = said_at = time.monotonic()
    trim_index = 0
    while not failed:
        size = 0
        while size < GROUP_BYTES:
            index = journal.last_index + 1
            command = REGULAR + payload(index, entry_bytes)
            journal.add(command, index, TERM)
            size += len(command)
        told.payload_bytes += size
        told.entries = journal.last_index
        journal.setRaftCommitIndex(max(1, journal.durable_index))
        if not trim_index and told.payload_bytes > trim * payload_bytes:
            trim_index = journal.durable_index
        if trim_index and told.payload_bytes > payload_bytes / 2:
            journal.trim_to(trim_index)
        if journal.sync_age:
            await synced.wait()
        synced.clear()
        journal.flush()
        told.groups += 1
        await asyncio.sleep(0)
        told.anon_mib = max(told.anon_mib, anon_mib()) if told.groups % 8 == 0 else told.anon_mib
        trimmed = trim_index and journal.first_index >= trim_index
        told.done = bool(trimmed and told.payload_bytes >= payload_bytes)
        if told.done or time.monotonic() - said_at > 0.2:
            said_at = time.monotonic()
            told.seconds = round(said_at - began, 2)
            told.durable_index, told.first_index = journal.durable_index, journal.first_index
            say(told)
    raise SystemExit(f"the journal could not be written: {failed[0]!r}")


def open_again(folder: Path, tail_bytes: int, entry_bytes: int) -> None:
    """As at a member's start: every record's checksum is verified. Then entries from all over are read back."""
    began = time.monotonic()
    storage = storage_of(folder, MEMBER, 1 << 40)
    loaded = storage.load(tail_bytes_max=tail_bytes)
    opened = Opened(
        round(time.monotonic() - began, 3),
        anon_mib(),
        loaded.first_index,
        loaded.last_index,
        loaded.commit_index,
        loaded.vote.term,
        round((folder / "data.mdb").stat().st_size / (1 << 20), 1),
    )
    chance = random.Random(1)
    took = []
    for _ in range(READS):
        index = chance.randint(loaded.first_index, loaded.last_index)
        at = time.perf_counter()
        [(command, found, term)] = storage.read(index, 1)
        took.append(time.perf_counter() - at)
        if (command, found, term) != (REGULAR + payload(index, entry_bytes), index, TERM):
            opened.wrong = f"entry {index} is not what was written"
    took.sort()
    opened.reads = len(took)
    opened.read_p50_us = round(took[len(took) // 2] * 1e6, 1)
    opened.read_p99_us = round(took[len(took) * 99 // 100] * 1e6, 1)
    opened.anon_mib = max(opened.anon_mib, anon_mib())
    storage.close()
    say(opened)


async def follow(folder: Path, tail_bytes: int, entry_bytes: int, from_index: int) -> None:
    """Two real members over TLS: one has the large log, the other only what is before `from_index`, and catches up."""
    topology = msgspec.structs.replace(new_topology("1+1+1", free_base_port()), cluster_id=CLUSTER)
    others = folder.parent / "others"
    make_all(others / "certificates", topology.history, [member.name for member in topology.members])
    big = storage_of(folder, MEMBER, 1 << 40)
    last_index = big.load(tail_bytes_max=0).last_index
    # Both have taken part before: neither is a new disk that a leader would have to admit.
    big.write([Disk(uuid4().hex, joined=True)])
    big.close()
    behind = storage_of(others / OTHER, OTHER, 1 << 40)
    behind.write(
        [StartAfter(from_index, TERM), Committed(from_index), Vote(TERM, MEMBER), Disk(uuid4().hex, joined=True)]
    )
    behind.close()
    told = Following(from_index, 0, 0.0, 0.0, 0.0, 0.0)
    left: list[str] = []
    folders = {MEMBER: folder, OTHER: others / OTHER}
    engines = {name: _engine(topology, name, at, tail_bytes, others, left) for name, at in folders.items()}
    received = 0
    next_index = from_index + 1

    def take(index: int, content: bytes) -> None:
        nonlocal received, next_index
        if index > last_index:
            return
        if index != next_index or content != payload(index, entry_bytes):
            told.wrong = told.wrong or f"{OTHER} was given entry {index} after {next_index - 1}, or another content"
        next_index = index + 1
        received += len(content)

    engines[OTHER].on_committed = take
    await engines[MEMBER].start(applied_index=last_index)
    told.started_anon_mib = anon_mib()
    await engines[OTHER].start(applied_index=from_index)
    began = time.monotonic()
    seen, seen_at = next_index, began
    while next_index <= last_index and not left and not told.wrong:
        await asyncio.sleep(0.01)
        told.anon_mib = max(told.anon_mib, anon_mib())
        if next_index > seen:
            seen, seen_at = next_index, time.monotonic()
        elif time.monotonic() - seen_at > STUCK_SECONDS:
            told.wrong = f"nothing came after entry {seen - 1} for {STUCK_SECONDS} s"
    told.seconds = round(time.monotonic() - began, 2)
    told.entries, told.payload_mib = next_index - 1 - from_index, round(received / (1 << 20), 1)
    told.wrong = told.wrong or "; ".join(left)
    for engine in engines.values():
        await engine.stop()
    say(told)


def _engine(
    topology: Topology, name: str, folder: Path, tail_bytes: int, others: Path, left: list[str]
) -> HardenedEngine:
    return HardenedEngine(
        EngineSettings(
            topology=topology,
            member=name,
            folder=folder,
            tls=tls_files(others / "certificates", name),
            limits=Limits(tail_bytes_max=tail_bytes, journal_bytes_max=1 << 36, free_bytes_min=0),
        ),
        stop_process=lambda code, reason: left.append(f"{name} left with {code}: {reason}"),
    )


def free_base_port() -> int:
    """The first of six ports in a row that nobody listens on."""
    for base in random.SystemRandom().sample(range(FIRST_PORT, LAST_PORT, 6), 50):
        probes = [socket.socket() for _ in range(6)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", base + offset))
            return base
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise SystemExit("no ports are free")


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    match what:
        case "write":
            asyncio.run(write(Path(folder), int(rest[0]), int(rest[1]), int(rest[2]), float(rest[3])))
        case "open":
            open_again(Path(folder), int(rest[0]), int(rest[1]))
        case "follow":
            asyncio.run(follow(Path(folder), int(rest[0]), int(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main()
