"""The process that faults strike: it plays a seeded life on a real journal or store, and says what is durable.

Usage: python -m chaos.disk.writer journal|store FOLDER SEED LIVES [--steps N] [--inline] [--mutant NAME]. LIVES: after
which steps each life took over, with commas; 0 for a new folder. Prints 'begun N' before a group goes to the disk and
'acked N' when it is durable, each in one write. Leaves with the codes that a member leaves with. --inline: no threads.
"""

import argparse
import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from chaos.disk.history import payload
from chaos.disk.mutants import MUTANTS
from chaos.disk.steps import life, play
from cluster.consensus.journal import Committer, Journal
from cluster.consensus.settings import EXIT_DISK_FAILED, stop_process
from cluster.consensus.storage import LmdbStorage, ThreadCommitter
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_files import StoreError
from statemachine.store_sealing import Retention

CLUSTER, MEMBER = "disk-test", "dc-a"
JOURNAL_MAP_BYTES = 1 << 28
STORE_MAP_BYTES = 1 << 28
LOW_WATER_BYTES = 0
RETENTION = Retention(events_days=2, ledger_days=4, trades_days=4, closed_orders_days=3)
AHEAD_MAX = 20
"""How many steps may wait for the disk."""
FLUSH_EVERY = 5


def say(word: str, number: int) -> None:
    os.write(1, f"{word} {number}\n".encode())


class Inline:
    """Each group at once, on this thread: the order of system calls is then the same in every run."""

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        try:
            work()
        except BaseException as error:
            done(error)
        else:
            done(None)

    def close(self) -> None:
        pass


class Noting:
    """Says which step the group under way goes up to, before any of it is written."""

    def __init__(self, inner: Committer, *, quiet: bool = False) -> None:
        self._inner = inner
        self._quiet = quiet
        self.played = 0
        self.flying = 0

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.flying = self.played
        if not self._quiet:
            say("begun", self.flying)
        self._inner.run(work, done)

    def close(self) -> None:
        self._inner.close()


def open_journal_storage(folder: Path) -> LmdbStorage:
    return LmdbStorage(folder, cluster_id=CLUSTER, member=MEMBER, map_bytes=JOURNAL_MAP_BYTES)


def open_store(folder: Path) -> Store:
    return Store(
        folder,
        cluster_id=CLUSTER,
        member=MEMBER,
        map_size_bytes=STORE_MAP_BYTES,
        low_water_bytes=LOW_WATER_BYTES,
        retention=RETENTION,
    )


@contextmanager
def _opened(folder: Path, committer: Noting) -> Iterator[Journal]:
    journal = Journal(
        open_journal_storage(folder),
        committer,
        on_synced=lambda: say("acked", committer.flying),
        # As the engine does it: leave at once, and say nothing more.
        on_failed=lambda error: stop_process(EXIT_DISK_FAILED, f"the journal could not be written: {error!r}"),
    )
    yield journal
    journal.close()


def write_inline(folder: Path, seed: int, lives: list[int], steps: int) -> None:
    committer = Noting(Inline())
    with _opened(folder, committer) as journal:
        say("acked", lives[-1])
        for log, step in life(seed, lives):
            play(journal, log, step)
            committer.played = log.steps
            journal.flush()
            if log.steps >= steps:
                return


async def write_threaded(folder: Path, seed: int, lives: list[int], steps: int) -> None:
    """Groups form while one is being written, as in a member."""
    committer = Noting(ThreadCommitter(asyncio.get_running_loop()))
    with _opened(folder, committer) as journal:
        say("acked", lives[-1])
        for log, step in life(seed, lives):
            play(journal, log, step)
            committer.played = log.steps
            journal.flush()
            # Now and then the disk catches up, so that groups of one step are among them.
            ahead_max = AHEAD_MAX if log.steps % 64 else 0
            await asyncio.sleep(0)
            while journal.sync_age and log.steps - committer.flying >= ahead_max:
                await asyncio.sleep(0.0002)
                journal.flush()
            if log.steps >= steps:
                break
        while journal.sync_age:
            await asyncio.sleep(0.001)
            journal.flush()


def write_store(folder: Path, seed: int, stored_index: int, batches: int, *, inline: bool) -> None:
    """Apply and flush as a replica does, sealing days that are over."""
    disk = None if inline else ThreadPoolExecutor(1)
    try:
        store = open_store(folder)
        machine = Machine(store, store.load())
        say("acked", store.stored_index)
        if store.stored_index != stored_index:
            raise StoreError(f"it stands at {store.stored_index}, not at {stored_index}")
        for index in range(stored_index + 1, batches + 1):
            store.add(machine.apply(index, payload(seed, index)))
            if index % FLUSH_EVERY == 0 or index == batches:
                say("begun", index)
                flush = store.begin(machine.collect())
                if disk is None:
                    flush.write()
                else:
                    disk.submit(flush.write).result()
                store.finish(flush)
                say("acked", store.stored_index)
                store.seal_and_prune()
        store.close()
    except (StoreError, OSError) as error:
        from node.app import EXIT_STORE_FAILED  # noqa: PLC0415 - it loads a web server, which no other life needs

        stop_process(EXIT_STORE_FAILED, f"the store failed: {error!r}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("journal", "store"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("lives", type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("--steps", type=int, default=1 << 40)
    parser.add_argument("--inline", action="store_true")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default="none")
    given = parser.parse_args()
    MUTANTS[given.mutant]()
    if given.kind == "store":
        write_store(given.folder, given.seed, given.lives[-1], given.steps, inline=given.inline)
    elif given.inline:
        write_inline(given.folder, given.seed, given.lives, given.steps)
    else:
        asyncio.run(write_threaded(given.folder, given.seed, given.lives, given.steps))


if __name__ == "__main__":
    main()
