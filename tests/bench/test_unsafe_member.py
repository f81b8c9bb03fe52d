"""What the benchmark's unsafe members are made of: as right as the product's parts while the process lives."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.unsafe_member import InlineCommitter, MemoryStorage, UnsyncedStorage, main
from cluster.consensus.journal import Change, CutFrom, Journal, Put, StartAfter, TrimTo, Vote
from cluster.consensus.storage import LmdbStorage
from cluster.folder import ClusterFolder, create


def put(*indexes: int, term: int = 1) -> list[Change]:
    return [Put(index, term, b"entry %d" % index) for index in indexes]


GROUPS: list[list[Change]] = [
    put(1, 2, 3, 4),
    [*put(5), Vote(2, "a")],
    [CutFrom(4), *put(4, 5, 6, term=2)],
    [TrimTo(3)],
    put(7, term=2),
    [TrimTo(3), CutFrom(6)],
    [StartAfter(20, 3), *put(21, 22, term=3)],
]


def test_in_memory_and_without_syncs_it_reads_as_the_product_does(tmp_path: Path) -> None:
    stores = [kind(tmp_path / kind.__name__, cluster_id="c", member="a") for kind in (LmdbStorage, UnsyncedStorage)]
    memory = MemoryStorage(tmp_path / "memory")
    for group in GROUPS:
        memory.write(group)
        for store in stores:
            store.write(group)
        for first in range(1, 24):
            if stores[0].read(first, 1) and stores[0].read(first, 1)[0][1] == first:
                assert memory.read(first, 3) == stores[1].read(first, 3) == stores[0].read(first, 3), (group, first)
            else:
                assert memory.read(first, 1) == [], (group, first)
    for store in stores:
        store.close()


def test_only_the_products_own_storage_syncs(tmp_path: Path) -> None:
    product = LmdbStorage(tmp_path / "a", cluster_id="c", member="a")
    unsafe = UnsyncedStorage(tmp_path / "b", cluster_id="c", member="a")
    assert (product._env.flags()["sync"], unsafe._env.flags()["sync"]) == (True, False)
    product.close()
    unsafe.close()


def test_a_journal_in_memory_is_durable_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        synced: list[int] = []
        journal = Journal(
            MemoryStorage(tmp_path / "memory"),
            InlineCommitter(asyncio.get_running_loop()),
            on_synced=lambda: synced.append(journal.durable_index),
            on_failed=lambda error: pytest.fail(str(error)),
        )
        journal.add(b"\x00one", 1, 1)
        journal.flush()
        assert not synced  # the engine counts on being told later
        await asyncio.sleep(0)
        assert synced == [1]
        journal.close()

    asyncio.run(run())


def test_what_is_not_known_is_refused_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create(tmp_path / "c", shape="1+1+1", base_port=9_000)
    folder = ClusterFolder(tmp_path / "c")
    leave: Callable[[list[str]], int] = main
    with pytest.raises(SystemExit, match="one of no-sync, memory, plain-tcp"):
        leave(["no-fsync", str(folder.config("dc-a"))])
    assert not folder.data("dc-a").exists()
