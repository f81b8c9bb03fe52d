"""Snapshots on a bad road: lost, late, damaged and foreign chunks, cut links, restarts; files arrive whole or not."""

import asyncio
import errno
import hashlib
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import uvloop

from cluster.consensus import snapshots
from cluster.consensus.journal import Base
from cluster.consensus.messages import (
    SnapshotAsk,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotFile,
    SnapshotOffer,
    decode,
    encode,
)
from cluster.consensus.snapshots import CHUNK_BYTES, SnapshotFailed, SnapshotReceiver, SnapshotSender, Taken
from cluster.membership import Configuration

NOBODY = Base(0, Configuration(0, []))
SEGMENT = "segments/ledger-2026-01-01.seg"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("OFFER", 0.02), ("ASK_AGAIN", 0.05), ("BACKOFF", 0.1), ("IDLE", 0.5)):
        monkeypatch.setattr(snapshots, f"{name}_SECONDS", seconds)


def contents(seed: int = 1) -> dict[str, bytes]:
    chance = random.Random(seed)
    return {
        "data.mdb": chance.randbytes(5 * CHUNK_BYTES + 17),
        SEGMENT: chance.randbytes(CHUNK_BYTES),
        "segments/events-2026-01-01.seg": chance.randbytes(3),
    }


class Home:
    """What a node has: files to give, files that are here already, and what came."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.index = 100
        self.here: dict[str, Path] = {}
        self.no_room = ""
        self.fails = 0
        self.judged_bad = ""
        self.taken = 0
        self.came: list[tuple[SnapshotOffer, Path]] = []

    async def take(self, folder: Path, pinned: Callable[[int], None]) -> Taken:
        self.taken += 1
        if self.fails:
            self.fails -= 1
            raise SnapshotFailed("no room for a copy")
        pinned(self.index)
        (folder / "segments").mkdir(parents=True)
        listed = []
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
            listed.append(SnapshotFile(name, len(data), hashlib.sha256(data).digest(), len(data)))
        return Taken(folder, self.index, listed)

    def local(self, file: SnapshotFile) -> Path | None:
        return self.here.get(file.name)

    def room(self, _needed_bytes: int) -> str:
        return self.no_room

    def judge(self, _offer: SnapshotOffer, _folder: Path) -> None:
        if self.judged_bad:
            raise SnapshotFailed(self.judged_bad)

    def received(self, offer: SnapshotOffer, folder: Path) -> None:
        self.came.append((offer, folder))


class Road:
    """A leader 'a' and replicas, with a link that loses and changes what a test says."""

    def __init__(self, folder: Path, files: dict[str, bytes] | None = None, *, names: str = "b", rate: int = 1 << 40):
        self.folder = folder
        self.home = Home(files or contents())
        self.held: list[int | None] = []
        self.stranded = list(names)
        self.change: Callable[[Any], list[Any]] = lambda message: [message]
        self.said: list[tuple[str, Any]] = []
        self.first_index = 1
        self.sender = SnapshotSender(
            self.home,
            folder / "out",
            send=self.to_replica,
            term=lambda: 3,
            term_at=lambda _index: 2,
            base_at=lambda _index: NOBODY,
            usable=lambda index: index >= self.first_index,
            hold=self.held.append,
            buffered=lambda _member: 0,
            bytes_per_s=rate,
        )
        self.homes = {name: Home({}) for name in names}
        self.receivers = {name: self.receiver(name) for name in names}

    def receiver(self, name: str) -> SnapshotReceiver:
        return SnapshotReceiver(
            self.homes[name],
            self.folder / f"in-{name}",
            send=lambda member, message: self.to_leader(name, member, message),
            wanted=lambda _member, offer: "" if offer.term == 3 else "not from the leader of this term",
        )

    def to_replica(self, member: str, message: Any) -> bool:
        for one in self.change(message):
            asyncio.get_running_loop().call_soon(self.arrive, member, decode(encode(one)))
        return True

    def arrive(self, member: str, message: Any) -> None:
        receiver = self.receivers.get(member)
        match message:
            case _ if receiver is None:
                pass
            case SnapshotOffer():
                receiver.offered("a", message)
            case SnapshotChunk():
                receiver.chunk("a", message)
            case SnapshotEnd():
                receiver.ended("a", message)

    def to_leader(self, name: str, member: str, message: Any) -> bool:
        assert member == "a"
        self.said.append((name, message))
        for one in self.change(message):
            match one:
                case SnapshotAsk():
                    asyncio.get_running_loop().call_soon(self.sender.asked, name, one)
                case SnapshotEnd():
                    asyncio.get_running_loop().call_soon(self.sender.ended, name, one)
        return True

    async def until(self, holds: Callable[[], bool], *, within: float = 5.0) -> None:
        deadline = asyncio.get_running_loop().time() + within
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, "not in time"
            self.sender.stranded([name for name in self.stranded if not self.homes[name].came])
            await asyncio.sleep(0.002)

    async def arrived(self, name: str = "b") -> None:
        await self.until(lambda: bool(self.homes[name].came))
        [(offer, staged)] = self.homes[name].came
        assert (offer.index, offer.index_term) == (self.home.index, 2)
        for file, data in self.home.files.items():
            assert (staged / file).read_bytes() == data, file
        assert not list(staged.rglob("*.part"))

    async def stop(self) -> None:
        await self.sender.stop()
        for receiver in self.receivers.values():
            await receiver.stop()

    @property
    def sent_bytes(self) -> int:
        return self.sender.counters["snapshot_bytes_sent"]

    @property
    def all_bytes(self) -> int:
        return sum(len(data) for data in self.home.files.values())


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(main())


# -- what goes well ---------------------------------------------------------------------------------


def test_the_files_arrive_whole(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        await road.arrived()
        assert road.sent_bytes == road.all_bytes
        assert road.held == [100], "the log behind the snapshot stays"
        # When nobody needs it any more, the copy goes and the log may, too.
        await road.until(lambda: road.held == [100, None])
        await road.stop()
        assert not list((tmp_path / "out").iterdir())

    run(main)


def test_what_is_here_already_is_not_sent(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        (tmp_path / "mine.seg").write_bytes(road.home.files[SEGMENT])
        road.homes["b"].here[SEGMENT] = tmp_path / "mine.seg"
        await road.arrived()
        assert road.sent_bytes == road.all_bytes - len(road.home.files[SEGMENT])
        await road.stop()

    run(main)


def test_no_faster_than_it_may(tmp_path: Path) -> None:
    async def main() -> None:
        files = contents()
        road = Road(tmp_path, files, rate=4 << 20)
        began = asyncio.get_running_loop().time()
        await road.arrived()
        took = asyncio.get_running_loop().time() - began
        assert took >= 0.9 * road.all_bytes / (4 << 20)
        # Who asks again meanwhile gets nothing twice.
        assert road.sent_bytes <= road.all_bytes + 2 * CHUNK_BYTES
        await road.stop()

    run(main)


def test_one_stream_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path, names="bc", rate=8 << 20)
        asking: set[str] = set()

        def watch(message: Any) -> list[Any]:
            if isinstance(message, SnapshotAsk):
                asking.update(name for name, said in road.said if said is message)
                assert len(asking - {n for n, home in road.homes.items() if home.came}) <= 1, asking
            return [message]

        road.change = watch
        await road.until(lambda: all(home.came for home in road.homes.values()))
        await road.arrived("b")
        await road.arrived("c")
        assert road.home.taken == 1, "both get the same copy"
        await road.stop()

    run(main)


# -- a bad road -------------------------------------------------------------------------------------


def chunks(
    change: Callable[[SnapshotChunk], list[Any]], *, every: int = 3, times: int = 100
) -> Callable[..., list[Any]]:
    seen = 0

    def changed(message: Any) -> list[Any]:
        nonlocal seen
        if not isinstance(message, SnapshotChunk):
            return [message]
        seen += 1
        return change(message) if seen % every == 0 and seen <= times * every else [message]

    return changed


def damaged(chunk: SnapshotChunk) -> SnapshotChunk:
    data = bytes([chunk.data[0] ^ 1]) + chunk.data[1:]
    return SnapshotChunk(chunk.snapshot_id, chunk.file, chunk.offset, chunk.crc, data)


def of_another(chunk: SnapshotChunk) -> SnapshotChunk:
    data = bytes(len(chunk.data))
    return SnapshotChunk("f" * 32, chunk.file, chunk.offset, crc32(data), data)


def at(chunk: SnapshotChunk, file: int, offset: int) -> SnapshotChunk:
    return SnapshotChunk(chunk.snapshot_id, file, offset, chunk.crc, chunk.data)


@pytest.mark.parametrize(
    ("change", "counter"),
    [
        (lambda chunk: [], ""),
        (lambda chunk: [damaged(chunk)], "refused_checksum"),
        (lambda chunk: [of_another(chunk), chunk], "refused_chunk"),
        (lambda chunk: [chunk, chunk], "refused_chunk"),
        (lambda chunk: [at(chunk, chunk.file, chunk.offset + CHUNK_BYTES), chunk], "refused_chunk"),
        (lambda chunk: [at(chunk, chunk.file + 1, chunk.offset), chunk], "refused_chunk"),
    ],
    ids=["lost", "damaged", "another snapshot's", "twice", "out of order", "another file's"],
)
def test_bad_chunks_cost_time_and_nothing_else(tmp_path: Path, change: Any, counter: str) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        road.change = chunks(change)
        await road.arrived()
        if counter:
            assert road.receivers["b"].counters[counter] > 0
        assert road.receivers["b"].counters["refused_file"] == 0, "found at once, not at the end"
        await road.stop()

    run(main)


def test_a_cut_link_is_gone_on_with_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path, {"data.mdb": random.Random(1).randbytes(40 * CHUNK_BYTES)}, rate=32 << 20)
        await road.until(lambda: road.sent_bytes > 20 * CHUNK_BYTES)
        road.change = lambda _message: []
        await asyncio.sleep(0.2)
        road.change = lambda message: [message]
        await road.arrived()
        assert road.sent_bytes <= road.all_bytes + 8 * CHUNK_BYTES
        assert road.home.taken == 1
        await road.stop()

    run(main)


def test_a_restarted_replica_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path, {"data.mdb": random.Random(1).randbytes(40 * CHUNK_BYTES)}, rate=32 << 20)
        await road.until(lambda: road.sent_bytes > 20 * CHUNK_BYTES)
        await road.receivers.pop("b").stop()
        [part] = (tmp_path / "in-b").rglob("*.part")
        assert part.stat().st_size >= 15 * CHUNK_BYTES
        part.write_bytes(part.read_bytes()[:-100])  # the last chunk was torn
        road.receivers["b"] = road.receiver("b")
        await road.arrived()
        assert road.sent_bytes <= road.all_bytes + 10 * CHUNK_BYTES
        await road.stop()

    run(main)


def test_what_a_power_cut_left_is_not_believed(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path, {"data.mdb": random.Random(1).randbytes(40 * CHUNK_BYTES)}, rate=32 << 20)
        await road.until(lambda: road.sent_bytes > 20 * CHUNK_BYTES)
        await road.receivers.pop("b").stop()
        [part] = (tmp_path / "in-b").rglob("*.part")
        part.write_bytes(bytes(10 * CHUNK_BYTES))  # right in length, never synced
        road.receivers["b"] = road.receiver("b")
        await road.arrived()
        assert road.receivers["b"].counters["refused_file"] == 1
        await road.stop()

    run(main)


def test_a_copy_that_is_gone_is_followed_by_another(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path, {"data.mdb": random.Random(1).randbytes(40 * CHUNK_BYTES)}, rate=32 << 20)
        await road.until(lambda: road.sent_bytes > 10 * CHUNK_BYTES)
        # The leader was restarted: it knows nothing of its copy.
        await road.sender.stop()
        old = road.receivers["b"]
        again = Road(tmp_path / "again", contents(2))
        again.home.index = 200
        again.receivers["b"], again.homes["b"] = old, road.homes["b"]
        road.sender = again.sender
        await again.receiver("b").stop()
        old._send = lambda member, message: again.to_leader("b", member, message)
        await again.arrived()
        assert len(list((tmp_path / "in-b").iterdir())) == 1, "what came of the old one was deleted"
        await road.stop()

    run(main)


@pytest.mark.parametrize(
    "offer",
    [
        SnapshotOffer(2, "a" * 32, 5, 1, [], NOBODY),
        SnapshotOffer(3, "../../x", 5, 1, [], NOBODY),
        *(
            SnapshotOffer(3, "a" * 32, 5, 1, [SnapshotFile(name, size, b"", hashed)], NOBODY)
            for name, size, hashed in (
                ("../x", 1, 1),
                ("/etc/passwd", 1, 1),
                ("segments/../../x", 1, 1),
                ("segments/a/b", 1, 1),
                (".hidden", 1, 1),
                ("data.mdb", 0, 0),
                ("data.mdb", 1, 2),
            )
        ),
        SnapshotOffer(3, "a" * 32, 5, 1, [SnapshotFile("x", 1, b"", 1), SnapshotFile("x", 1, b"", 1)], NOBODY),
    ],
)
def test_bad_offers_are_refused(tmp_path: Path, offer: SnapshotOffer) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        road.arrive("b", offer)
        await asyncio.sleep(0.05)
        assert road.receivers["b"].counters["refused_offer"] == 1
        assert [type(said) for _, said in road.said] == [SnapshotEnd]
        assert not (tmp_path / "in-b").exists()
        # The neighbour that passes.
        await road.arrived()
        await road.stop()

    run(main)


# -- what goes wrong on either side -----------------------------------------------------------------


def test_without_room_nothing_is_staged(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        road.homes["b"].no_room = "the disk is full"
        await road.until(lambda: road.receivers["b"].counters["snapshots_failed"] == 1)
        await road.until(lambda: not list((tmp_path / "in-b").iterdir()))
        assert road.sent_bytes == 0
        road.homes["b"].no_room = ""
        await road.arrived()
        await road.stop()

    run(main)


def test_a_disk_that_fills_up_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        write, full = snapshots._append, True

        def may_fail(part: Path, offset: int, data: bytes) -> None:
            if full and offset > 2 * CHUNK_BYTES:
                raise OSError(errno.ENOSPC, "no space left on device")
            write(part, offset, data)

        monkeypatch.setattr(snapshots, "_append", may_fail)
        await road.until(lambda: road.receivers["b"].counters["snapshots_failed"] == 1)
        await road.until(lambda: not list((tmp_path / "in-b").iterdir()))
        full = False
        await road.arrived()
        await road.stop()

    run(main)


def test_a_snapshot_that_is_judged_bad_is_thrown_away(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        road.homes["b"].judged_bad = "a copy at index 7, not at 100"
        await road.until(lambda: road.receivers["b"].counters["snapshots_failed"] == 1)
        assert not road.homes["b"].came
        road.homes["b"].judged_bad = ""
        await road.arrived()
        await road.stop()

    run(main)


def test_a_copy_that_fails_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        road = Road(tmp_path)
        road.home.fails = 2
        await road.arrived()
        assert (road.home.taken, road.sender.counters["snapshots_failed"]) == (3, 2)
        await road.stop()

    run(main)


def test_a_copy_does_not_hold_the_log_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that begins again and again, and never ends, gets a newer copy after a while."""
    monkeypatch.setattr(snapshots, "COPY_SECONDS", 0.3)
    monkeypatch.setattr(snapshots, "ASKING_SECONDS", 0.05)

    async def main() -> None:
        road = Road(tmp_path)
        road.change = lambda message: [] if isinstance(message, SnapshotAsk) else [message]
        await road.until(lambda: road.home.taken == 2)
        assert road.held[:3] == [100, None, 100]
        road.change = lambda message: [message]
        await road.arrived()
        await road.stop()

    run(main)


def test_a_copy_behind_the_log_is_not_offered(tmp_path: Path) -> None:
    """Trimming held for it was given up; a replica that installs it would be stranded again."""

    async def main() -> None:
        road = Road(tmp_path)
        road.first_index = 150
        await road.until(lambda: road.home.taken == 1)
        await asyncio.sleep(0.1)
        road.home.index = 160
        await road.arrived()
        assert road.home.taken == 2
        await road.stop()

    run(main)
