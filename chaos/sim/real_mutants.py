"""Faults put into what runs on real files and sockets, which virtual time leaves out; tests that run there must notice.

A mutant is a copy of the whole tree with one text changed; the named tests run in it, in a process of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import Struct

from chaos.sim.mutants import Killed, MutantStale

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "node_modules")
SECONDS_MAX = 180.0


class RealMutant(Struct, frozen=True):
    """name: what is wrong. path: where, from the root. tests: as pytest takes them. also: more of the kind."""

    name: str
    path: str
    text: str
    instead: str
    tests: tuple[str, ...]
    also: tuple[tuple[str, str, str], ...] = ()

    @property
    def edits(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.path, self.text, self.instead), *self.also)


JOURNAL = "tests/cluster/test_journal.py"
SNAPSHOTS = "tests/cluster/test_snapshots.py"
LINKS = "tests/cluster/test_links.py"
STORAGE = "cluster/consensus/storage.py"

MUTANTS = [
    # -- the journal's file
    RealMutant(
        "groups are written and not synced (F5)",
        STORAGE,
        "max_dbs=2, sync=True, metasync=True, readahead=False",
        "max_dbs=2, sync=False, metasync=True, readahead=False",
        (f"{JOURNAL}::test_nothing_is_called_durable_before_the_system_says_so",),
    ),
    RealMutant(
        "the names of the journal's files are not synced (F5)",
        STORAGE,
        "            self._env.sync(True)\n            _sync_folders(folder)\n",
        "            self._env.sync(True)\n",
        (f"{JOURNAL}::test_nothing_is_called_durable_before_the_system_says_so",),
    ),
    RealMutant(
        "an entry's checksum is not compared (F5)",
        STORAGE,
        "    return crc32(command, crc32(key + _key.pack(term)))",
        "    return 0",
        (f"{JOURNAL}::test_a_flipped_bit_is_found_and_named",),
    ),
    RealMutant(
        "a vote's checksum is not compared (F5)",
        STORAGE,
        '    if crc32(sealed[4:]).to_bytes(4, "big") != sealed[:4]:',
        "    if False:",
        (f"{JOURNAL}::test_a_flipped_bit_in_the_vote_is_found",),
    ),
    RealMutant(
        "two processes share one folder (F5)",
        STORAGE,
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        (f"{JOURNAL}::test_a_member_started_twice_on_one_folder_is_refused",),
    ),
    RealMutant(
        "trimming goes to where nobody else is (F3)",
        "cluster/consensus/journal.py",
        "max(self._trim_index, min(index, self.durable_index, self._commit_index))",
        "max(self._trim_index, index)",
        (f"{JOURNAL}::test_trimming_goes_in_small_steps_and_keeps_the_base",),
    ),
    # -- apply
    RealMutant(
        "the index moves after the callback (F4)",
        "cluster/consensus/raft.py",
        "                self._SyncObj__raftLastApplied = index\n"
        "                kind = command[:1]\n"
        "                if kind == REGULAR:\n"
        "                    try:\n"
        "                        self.owner.deliver(index, command[1:])\n",
        "                kind = command[:1]\n"
        "                if kind != REGULAR:\n"
        "                    self._SyncObj__raftLastApplied = index\n"
        "                if kind == REGULAR:\n"
        "                    try:\n"
        "                        self.owner.deliver(index, command[1:])\n"
        "                        self._SyncObj__raftLastApplied = index\n",
        ("tests/cluster/test_audit.py", "-k", "error_in_apply"),
    ),
    RealMutant(
        "errors in apply are swallowed (F4)",
        "cluster/consensus/raft.py",
        '                        raise ApplyFailed(f"on_committed failed at index {index}: {error!r}") from error\n',
        "                        log.error('%r', error)\n",
        ("tests/cluster/test_engine.py::test_an_error_in_on_committed_leaves_with_its_code",),
    ),
    RealMutant(
        "an acknowledgement beyond the log is believed (F10)",
        "cluster/consensus/raft.py",
        "if reply.matched_index > self.journal.last_index or reply.sequence > self._sequence:",
        "if False:",
        ("tests/cluster", "-k", "beyond_the_log"),
    ),
    RealMutant(
        "a changed library is taken for the audited one (F12)",
        "cluster/consensus/audited.py",
        "        if actual != audited:\n",
        "        if False:\n",
        ("tests/cluster/test_audited.py::test_one_changed_byte_is_refused",),
    ),
    # -- links
    RealMutant(
        "members of another cluster are heard (F8)",
        "cluster/consensus/transport.py",
        "if hello.cluster_id != self._cluster_id:",
        "if False:",
        (f"{LINKS}::test_strangers_and_garbage_are_refused_counted_and_change_nothing",),
    ),
    RealMutant(
        "a member is who it says it is (F8)",
        "cluster/consensus/transport.py",
        "if hello.member != connection.named:",
        "if False:",
        (f"{LINKS}::test_strangers_and_garbage_are_refused_counted_and_change_nothing",),
    ),
    RealMutant(
        "an older connection goes on delivering (F8)",
        "cluster/consensus/connection.py",
        "        if self.peer.connection is not self:\n",
        "        if False:\n",
        (f"{LINKS}::test_only_the_newest_connection_of_a_peer_delivers",),
        also=(("cluster/consensus/transport.py", "            older.abort()\n", ""),),
    ),
    # -- snapshots
    RealMutant(
        "a chunk's checksum is not compared (F11)",
        "cluster/consensus/snapshots.py",
        "if crc32(chunk.data) != chunk.crc:",
        "if False:",
        (f"{SNAPSHOTS}::test_bad_chunks_cost_time_and_nothing_else",),
    ),
    RealMutant(
        "chunks are taken in any order (F11)",
        "cluster/consensus/snapshots.py",
        "if (chunk.file, chunk.offset, len(chunk.data)) != (number, offset, length):",
        "if False:",
        (f"{SNAPSHOTS}::test_bad_chunks_cost_time_and_nothing_else",),
    ),
    RealMutant(
        "a file's sha256 is not compared (F11)",
        "cluster/consensus/snapshots.py",
        "and sha256_of(path, file.hashed_bytes) == file.sha256",
        "",
        (f"{SNAPSHOTS}::test_what_a_power_cut_left_is_not_believed",),
    ),
    RealMutant(
        "a snapshot's files are not synced",
        "cluster/consensus/snapshots.py",
        "    _sync(part)\n    part.rename(path)\n",
        "    part.rename(path)\n",
        ("tests/chaos/test_snapshot_syncs.py",),
    ),
    RealMutant(
        "the names of a snapshot's files are not synced",
        "cluster/consensus/snapshots.py",
        "            await self._off_loop(_sync_tree, staged)\n",
        "",
        ("tests/chaos/test_snapshot_syncs.py",),
    ),
    RealMutant(
        "the wish to install a snapshot is not synced",
        "node/install.py",
        "        os.fsync(file.fileno())\n",
        "        pass\n",
        ("tests/chaos/test_snapshot_syncs.py",),
    ),
    RealMutant(
        "the wish to install goes before the log begins anew (F11)",
        "node/install.py",
        "        _sync(staged.parent)\n",
        "        _sync(staged.parent)\n        wish.unlink()\n",
        ("tests/node/test_install.py::test_killed_at_any_step_it_is_the_old_or_the_new",),
        also=(("node/install.py", "    wish.unlink()\n    _sync", "    wish.unlink(missing_ok=True)\n    _sync"),),
    ),
]


def stale(mutant: RealMutant) -> bool:
    """A text is not there, or not just once."""
    return any((ROOT / path).read_text().count(text) != 1 for path, text, _ in mutant.edits)


def hunt_real(mutant: RealMutant) -> Killed | None:
    """None when all the tests pass in spite of it. Raises MutantStale; RuntimeError when pytest found no test."""
    if stale(mutant):
        raise MutantStale(f"{mutant.name!r}: its text is not once in {mutant.path}")
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        for path, text, instead in mutant.edits:
            (tree / path).write_text((tree / path).read_text().replace(text, instead))
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
        environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                words, check=False, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX
            )
        except subprocess.TimeoutExpired:
            return Killed(mutant.name, mutant.tests[0], 0, "does not end", time.monotonic() - began)
    if ran.returncode == 0:
        return None
    if ran.returncode != 1:
        raise RuntimeError(
            f"{mutant.name!r}: pytest left with {ran.returncode}: {ran.stdout[-500:]}{ran.stderr[-500:]}"
        )
    failed = next((line for line in ran.stdout.splitlines() if line.startswith("FAILED ")), "")
    return Killed(mutant.name, failed.removeprefix("FAILED ").split(" - ")[0], 0, "test", time.monotonic() - began)
