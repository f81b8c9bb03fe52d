"""Faults of disks on a real writer: power cut, full, slow, failing, lying, damaged."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from chaos.disk.tracing import strace_missing
from chaos.faults import disks, processes
from chaos.faults.disk import BitFlip, LostDisk, Truncated
from chaos.faults.nemeses import NEMESES
from chaos.faults.tampering import Tampering
from chaos.net.links import NotCut
from tests.chaos.faults.paper import PaperTarget

traced = pytest.mark.skipif(bool(strace_missing()), reason="strace is not installed: NO SYSTEM CALL WAS CHANGED")
WRITER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    before = time.monotonic()
    try:
        os.write(file, b"x")
        os.fdatasync(file)
        word = "ok"
    except OSError as error:
        word = os.strerror(error.errno)
    print(round(1000 * (time.monotonic() - before)), word, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", WRITER, str(tmp_path / "file")], stdout=subprocess.PIPE, text=True
    )
    yield child
    child.kill()
    child.communicate()


def says(writer: subprocess.Popen[str]) -> tuple[int, str]:
    assert writer.stdout is not None
    took_ms, word = writer.stdout.readline().split(None, 1)
    return int(took_ms), word.strip()


Look = Callable[[int, str], bool]
INJECTED: list[tuple[str, Look]] = [
    ("delay_enter=300000", lambda took_ms, word: took_ms >= 300),
    ("error=EIO:when=1", lambda took_ms, word: word == "Input/output error"),
]


@traced
@pytest.mark.parametrize(("words", "seen"), INJECTED)
def test_a_sync_is_changed_while_strace_is_attached(words: str, seen: Look, writer: subprocess.Popen[str]) -> None:
    async def run() -> None:
        assert says(writer)[1] == "ok"
        tampering = Tampering(words)
        await tampering.attach(writer.pid)
        assert any(seen(*says(writer)) for _ in range(400))
        assert tampering.struck() >= 1
        await tampering.detach()
        assert processes.tracer(writer.pid) == 0
        # What was under way while it was attached may come late.
        assert any(not seen(*says(writer)) for _ in range(400))

    asyncio.run(run())


@traced
def test_strace_on_a_dead_process_is_no_fault() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()

    async def run() -> None:
        tampering = Tampering("error=EIO")
        with pytest.raises(NotCut, match="strace ended"):
            await tampering.attach(child.pid)
        await tampering.detach()

    asyncio.run(run())


def keep(target: PaperTarget, name: str, size_bytes: int) -> Path:
    file = target.folder_of(name) / "journal" / "data.mdb"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(size_bytes))
    return file


@pytest.mark.parametrize("seed", range(5))
def test_one_bit_is_flipped_while_the_member_is_down(seed: int, tmp_path: Path) -> None:
    async def run() -> None:
        target = await PaperTarget("1+1+1", tmp_path).start_all()
        try:
            file = keep(target, "dc-a", 10_000)
            nemesis = BitFlip()
            struck = await nemesis.begin(target, Random(seed), {"who": "dc-a", "file": "journal/*"})
            assert target.pid("dc-a") is None
            damaged = file.read_bytes()
            assert len(damaged) == 10_000 and sum(byte.bit_count() for byte in damaged) == 1
            assert "journal/data.mdb, byte" in await nemesis.bite(target, struck)
            await nemesis.end(target)
            assert nemesis.told == "dc-a started"
        finally:
            target.close()

    asyncio.run(run())


def test_one_that_refuses_a_damaged_folder_gets_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        target = await PaperTarget("1+1+1", tmp_path).start_all()
        try:
            file = keep(target, "dc-a", 10_000)
            nemesis = Truncated()
            struck = await nemesis.begin(target, Random(2), {"who": "dc-a", "file": "journal/*"})
            assert file.stat().st_size < 10_000 and await nemesis.bite(target, struck)
            start = target.start

            async def only_when_empty(name: str, **given: object) -> None:
                if not file.exists():
                    await start(name)

            monkeypatch.setattr(target, "start", only_when_empty)
            monkeypatch.setattr(target, "wipe", lambda name: asyncio.to_thread(file.unlink))
            target.says["dc-a"] = {"rejoining": False}
            await nemesis.end(target)
            assert "refused to start" in nemesis.told and target.pid("dc-a") is not None
        finally:
            target.close()

    asyncio.run(run())


def test_damage_to_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    async def run() -> None:
        target = await PaperTarget("1+1+1", tmp_path).start_all()
        try:
            nemesis = BitFlip()
            with pytest.raises(NotCut, match="dc-a has no journal"):
                await nemesis.begin(target, Random(1), {"who": "dc-a", "file": "journal/*"})
            await nemesis.end(target)
            assert target.pid("dc-a") is not None
        finally:
            target.close()

    asyncio.run(run())


def test_a_lost_disk_is_empty_and_its_member_joins_again(tmp_path: Path) -> None:
    async def run() -> None:
        target = await PaperTarget("1+1+1", tmp_path).start_all()
        try:
            folder = target.folder_of("dc-a")
            folder.mkdir()
            (folder / "file").write_text("x")
            target.says["dc-a"] = {"rejoining": False}
            nemesis = LostDisk()
            struck = await nemesis.begin(target, Random(1), {"who": "dc-a"})
            assert await nemesis.bite(target, struck) == "dc-a had 1 files and has none"
            await nemesis.end(target)
            assert target.pid("dc-a") is not None
        finally:
            target.close()

    asyncio.run(run())


def test_disk_faults_need_disks(tmp_path: Path) -> None:
    target = PaperTarget("1+1+1", tmp_path)
    for name in ("power-cut", "disk-full", "lying-disk"):
        assert NEMESES[name]().available(target)


ON_DISKS = """
import asyncio, os, sys
from pathlib import Path
from random import Random
from chaos.faults import disks
from chaos.faults.disk import CHUNK_BYTES, DiskFull, PowerCut
from tests.chaos.faults.paper import PaperTarget

async def run(target, folders):
    target.folder_of = lambda name: folders[name]
    await target.start_all()
    assert PowerCut().available(target) == ""
    for folder in folders.values():
        (folder / "synced").write_text("x")
    os.sync()
    for folder in folders.values():
        (folder / "unsynced").write_text("x")
    cut = PowerCut()
    struck = await cut.begin(target, Random(1), {"who": "all"})
    assert sorted(struck.targets) == sorted(folders), struck
    print(await cut.bite(target, struck))
    await cut.end(target)
    for name, folder in folders.items():
        assert sorted(path.name for path in folder.iterdir()) == ["synced"], list(folder.iterdir())
        assert target.pid(name) is not None
    for left_bytes in (0, 8 << 20):
        full = DiskFull()
        free = lambda: os.statvfs(folders["dc-a"]).f_bavail * os.statvfs(folders["dc-a"]).f_frsize
        before = free()
        struck = await full.begin(target, Random(1), {"who": "dc-a", "left_bytes": left_bytes})
        assert free() <= left_bytes + CHUNK_BYTES, free()
        target.says["dc-a"] = {"disk_free_bytes": free()}
        print(await full.bite(target, struck))
        await full.end(target)
        assert free() > before - CHUNK_BYTES

with disks.member_disks(["dc-a", "dc-b", "tiebreaker"]) as folders:
    target = PaperTarget("1+1+1", Path("unused"))
    try:
        asyncio.run(run(target, folders))
    finally:
        target.close()
print("all held")
"""


@pytest.mark.skipif(bool(disks.unavailable()), reason=f"NO POWER WAS CUT: {disks.unavailable()}")
def test_power_cuts_and_full_disks_on_real_file_systems() -> None:
    # In a child, so that the mount namespace is not this process's.
    done = subprocess.run([sys.executable, "-c", ON_DISKS], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["all held"], done.stdout + done.stderr
