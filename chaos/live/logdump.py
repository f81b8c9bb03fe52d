"""Reads the committed log from the disks of stopped members, all of them together, into `log.jsonl`.

`... -m chaos.live.logdump CLUSTER RUN` writes RUN/log.jsonl and RUN/log-about.json, and RUN/log-disagreement.json where
two members hold different entries at an index that both know to be committed. It is run as a process of its own:
LMDB may abort on a file that a fault has damaged, and that must not end the run.
"""

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from chaos.check.logged import lines
from chaos.history.records import Logged
from chaos.live.programs import STOCK, program
from chaos.live.programs.archive import NO_OP, kept
from cluster.consensus.journal import JournalRefused
from cluster.consensus.storage import LmdbStorage
from cluster.folder import ClusterFolder
from node.config import read_config
from statemachine.codec import UnknownFormat
from statemachine.store_files import DATA_FILE, StoreError
from statemachine.store_tables import Tables, open_read_only
from statemachine.store_view import View

LOG, ABOUT, DISAGREEMENT = "log.jsonl", "log-about.json", "log-disagreement.json"
REGULAR = b"\x00"
"""The first byte of an entry that holds a batch."""
READ_ENTRIES = 1_000
TIMEOUT_S = 120.0

_encode = msgspec.json.Encoder().encode


class Held(Struct):
    """What one member has. commit_index: what it knows to be committed, by its journal or because its store has it.

    why: why it could not be read; then it says nothing.
    """

    member: str
    commit_index: int = 0
    first_index: int = 0
    last_index: int = 0
    stored_index: int = 0
    trimmed: int = 0
    why: str = ""
    entries: dict[int, tuple[int, bytes]] = {}
    """Term and bytes by index."""


class About(Struct, frozen=True):
    """log-about.json. complete: every entry from the first to commit_index is in the log.

    missing: (first, last) of the gaps, trimmed by all or lost by all. beyond: entries above commit_index that a
    majority of the members holds, which may or may not be committed: they are not in the log.
    """

    complete: bool
    commit_index: int
    missing: list[tuple[int, int]]
    beyond: list[int]
    members: list[dict[str, Any]]


class DumpFailed(Exception):
    """The log could not be read at all. The message is what the reader said."""


async def dump(cluster: Path, run: Path) -> About:
    """Of members that are all stopped. Raises DumpFailed or TimeoutError."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "chaos.live.logdump", str(cluster), str(run)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await child.communicate()
    except BaseException:
        child.kill()
        await child.wait()
        raise
    if child.returncode:
        raise DumpFailed(f"exit code {child.returncode}: {said.decode('utf-8', 'replace')[-500:].strip()}")
    return msgspec.json.decode((run / ABOUT).read_bytes(), type=About)


# ---- one member ----


def held_by(folder: ClusterFolder, name: str) -> Held:
    """Everything that a stopped member has of the log, what it trimmed as well."""
    config = read_config(folder.config(name))
    held = Held(name, entries={})
    try:
        held.stored_index = _stored_index(config.data_dir / "store")
    except StoreError as error:
        held.why = f"store: {error}"
    archive = folder.root / "trimmed" / f"{name}.log"
    if archive.is_file():
        for command, index, term in kept(archive):
            held.entries[index] = term, command
        held.trimmed = len(held.entries)
        held.commit_index = max(held.entries, default=0)
    try:
        if (config.data_dir / STOCK).is_dir():
            _read_stock(config.data_dir / STOCK / "journal", held)
        elif (config.data_dir / "journal" / DATA_FILE).is_file():
            _read_journal(config.data_dir / "journal", config.topology.cluster_id, held)
        else:
            held.why = "it has no journal"
    except (JournalRefused, DumpFailed) as error:
        held.why = str(error)
    held.commit_index = max(held.commit_index, held.stored_index)
    return held


def _stored_index(path: Path) -> int:
    if not (path / DATA_FILE).is_file():
        return 0
    env = open_read_only(path)
    try:
        tables = Tables(env)
        tables.open_all()
        meta = View(tables, path / "segments", []).meta
        tables.renew()
        return meta.applied_index if meta is not None else 0
    finally:
        env.close()


def _read_journal(path: Path, cluster_id: str, held: Held) -> None:
    storage = LmdbStorage(path, cluster_id=cluster_id, member=held.member)
    try:
        loaded = storage.load(tail_bytes_max=0)
        held.first_index, held.last_index = loaded.first_index, loaded.last_index
        held.commit_index = max(held.commit_index, loaded.commit_index)
        index = loaded.first_index
        while index and index <= loaded.last_index:
            for command, at, term in storage.read(index, READ_ENTRIES):
                # Where a log begins anew, its first entry stands for what was there. At 1 nothing was.
                if at == 1 or at != loaded.first_index or command != NO_OP:
                    held.entries[at] = term, command
                index = at + 1
    finally:
        storage.close()


def _read_stock(path: Path, held: Held) -> None:
    if not path.is_file():
        raise DumpFailed("it has no journal")
    found = subprocess.run(
        [*program(STOCK)[:-1], "--log", str(path)], capture_output=True, check=False, timeout=TIMEOUT_S
    )
    if found.returncode:
        raise DumpFailed(found.stderr.decode("utf-8", "replace")[-500:])
    head, *rest = found.stdout.splitlines()
    held.commit_index = int(msgspec.json.decode(head)["commit_index"])
    for line in rest:
        entry = msgspec.json.decode(line)
        payload = base64.b64decode(entry["payload"])
        held.entries[entry["index"]] = entry["term"], REGULAR + payload if payload else NO_OP
    held.first_index, held.last_index = min(held.entries, default=0), max(held.entries, default=0)


# ---- all of them ----


def merge(everyone: list[Held]) -> tuple[dict[int, bytes], list[dict[str, Any]]]:
    """The committed entries by index, and where two members differ on one that both know to be committed."""
    log: dict[int, tuple[str, int, bytes]] = {}
    disagreements: list[dict[str, Any]] = []
    for held in everyone:
        for index, (term, command) in sorted(held.entries.items()):
            if index > held.commit_index:
                continue
            name, other_term, other = log.setdefault(index, (held.member, term, command))
            if other != command:
                terms = {name: other_term, held.member: term}
                told = {name: _told(other), held.member: _told(command)}
                disagreements.append({"index": index, "terms": terms, "entries": told})
    return {index: command for index, (_, _, command) in sorted(log.items())}, disagreements


def about(everyone: list[Held], log: Mapping[int, bytes]) -> About:
    commit_index = max((held.commit_index for held in everyone), default=0)
    last = max((index for held in everyone for index in held.entries), default=0)
    holders = {index: sum(index in held.entries for held in everyone) for index in range(commit_index + 1, last + 1)}
    missing = list(_gaps([index for index in range(1, commit_index + 1) if index not in log]))
    return About(
        complete=not missing and all(not held.why for held in everyone),
        commit_index=commit_index,
        missing=missing,
        beyond=[index for index, count in holders.items() if count * 2 > len(everyone)],
        members=[
            {name: getattr(held, name) for name in held.__struct_fields__ if name != "entries"} for held in everyone
        ],
    )


def _gaps(indexes: list[int]) -> Iterator[tuple[int, int]]:
    first, previous = 0, -1
    for index in indexes:
        if index != previous + 1:
            if first:
                yield first, previous
            first = index
        previous = index
    if first:
        yield first, previous


def commands(index: int, entry: bytes) -> list[Logged]:
    """The lines of one entry. Raises UnknownFormat."""
    return lines(index, entry[1:] if entry[:1] == REGULAR else None)


def _told(entry: bytes) -> list[dict[str, Any]]:
    try:
        return [msgspec.to_builtins(logged) for logged in commands(0, entry)] or [{"entry": entry[:64].hex()}]
    except UnknownFormat as error:
        return [{"entry": entry[:64].hex(), "error": str(error)[:200]}]


def write(cluster: Path, run: Path) -> About:
    """See the module. Raises UnknownFormat, FolderError, OSError."""
    folder = ClusterFolder(cluster)
    everyone = [held_by(folder, member.name) for member in folder.topology().members]
    log, disagreements = merge(everyone)
    with (run / LOG).open("wb") as file:
        for index, entry in log.items():
            file.writelines(_encode(logged) + b"\n" for logged in commands(index, entry))
    if disagreements:
        (run / DISAGREEMENT).write_bytes(_encode(disagreements))
    found = about(everyone, log)
    (run / ABOUT).write_bytes(msgspec.json.format(_encode(found), indent=2))
    return found


def main(arguments: list[str]) -> int:
    cluster, run = arguments
    write(Path(cluster), Path(run))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
