"""Ticks come back in order and whole; what a crash tears is cut; what is lost is told; nothing stops the writer."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feeds.ticks import E9_MAX, BookDiff, BookSnapshot, Quote, Status, StatusKind, Tick, Trade
from gateway.market.tickblocks import HEADER, TICKS_MAX
from gateway.market.tickcursors import cursors, write_cursor
from gateway.market.ticklog import TickLog, prune, seal, unsealed_days
from gateway.market.tickreader import TickReader, replay_day
from gateway.market.tickseals import TickLogError, read_seal

T0 = 1_700_000_000_000_000
DAY, DAY_US = "2023-11-14", 86_400_000_000


def ticks(first: int, count: int) -> list[Tick]:
    return [Quote("AAPL", "iex", number, 1, number + 1, 1, T0, T0) for number in range(first, first + count)]


def numbers(batch: list[Tick]) -> list[int]:
    return [tick.bid_e9 for tick in batch if isinstance(tick, Quote)]


def read_all(reader: TickReader, limit: int = 2_000) -> tuple[list[int], int]:
    found, lost = [], 0
    while batch := reader.read(limit):
        assert len(batch.ticks) <= limit
        found += numbers(batch.ticks)
        lost += batch.lost
    return found, lost


def written(folder: Path, count: int = 10, blocks: int = 3) -> Path:
    """A closed log of some blocks; gives the day's file."""
    log = TickLog(folder, free_bytes_min=0)
    for block in range(blocks):
        log.append(ticks(block * count, count), T0)
        log.flush()
    log.close()
    return folder / f"{DAY}.ticks"


def test_everything_comes_back_in_order_with_its_number(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    given_ticks: list[Tick] = [
        *ticks(0, 5),
        Trade("A", "x", E9_MAX, 2, 3, T0, "id", False, "buy", 1),
        Status("x", StatusKind.GAP, T0, "A", "why"),
    ]
    log.append(given_ticks, T0)
    assert TickReader(tmp_path, "early").read() is None, "not flushed yet"
    log.flush()
    batch = TickReader(tmp_path, "one").read()
    assert batch is not None
    assert (batch.first_seq, batch.ticks, batch.lost) == (0, given_ticks, 0)
    log.close()


def test_books_are_left_out(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    log.append([BookSnapshot("A", "x", 1, (), (), T0, T0), *ticks(0, 1), BookDiff("A", "x", 2, (), (), T0, T0)], T0)
    log.close()
    assert read_all(TickReader(tmp_path, "one")) == ([0], 0)


def test_quotes_can_be_left_out(tmp_path: Path) -> None:
    log = TickLog(tmp_path, quotes=False)
    kept: list[Tick] = [Trade("A", "x", 1, 2, 3, T0, "id"), Status("x", StatusKind.GAP, T0)]
    log.append([*ticks(0, 3), *kept], T0)
    log.close()
    batch = TickReader(tmp_path, "one").read()
    assert batch is not None
    assert batch.ticks == kept


def test_consumers_read_at_their_own_pace(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    fast, slow = TickReader(tmp_path, "fast"), TickReader(tmp_path, "slow")
    for start in range(0, 5_000, 500):
        log.append(ticks(start, 500), T0)
        log.flush()
        assert read_all(fast)[0] == list(range(start, start + 500))
        assert fast.lag == 0
        batch = slow.read(7)
        assert batch is not None
        assert numbers(batch.ticks) == list(range(start // 500 * 7, start // 500 * 7 + 7))
    assert slow.lag == 5_000 - 70
    late = TickReader(tmp_path, "late", from_start=False)
    assert (late.seq, late.read()) == (5_000, None)
    log.close()


def test_a_consumer_goes_on_where_it_committed(tmp_path: Path) -> None:
    written(tmp_path)
    reader = TickReader(tmp_path, "one")
    reader.read(4)
    reader.commit()
    reader.read(4)
    reader.close()
    again = TickReader(tmp_path, "one")
    assert read_all(again)[0] == list(range(4, 30)), "what was read and not committed comes again"
    assert cursors(tmp_path) == {"one": 4}


def test_a_damaged_cursor_begins_anew(tmp_path: Path) -> None:
    written(tmp_path)
    write_cursor(tmp_path, "one", 20)
    (tmp_path / "cursors" / "one").write_text("29 00000000\n")
    assert TickReader(tmp_path, "one").seq == 0


@pytest.mark.parametrize("name", ["", "Upper", "../x", "a" * 65])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="consumer name"):
        TickReader(tmp_path, name)


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    for block in range(3):
        log = TickLog(tmp_path)
        assert log.next_seq == block * 10
        log.append(ticks(block * 10, 10), T0)
        log.close()
    assert read_all(TickReader(tmp_path, "one")) == (list(range(30)), 0)


def test_days_have_their_own_files_and_readers_cross_midnight(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    reader = TickReader(tmp_path, "one")
    log.append(ticks(0, 10), T0)
    log.flush()
    assert read_all(reader)[0] == list(range(10))
    log.append(ticks(10, 10), T0 + DAY_US)
    log.append(ticks(20, 5), T0)  # a clock that steps back does not open an old day again
    log.flush()
    assert read_all(reader) == (list(range(10, 25)), 0)
    assert sorted(path.name for path in tmp_path.glob("*.ticks")) == ["2023-11-14.ticks", "2023-11-15.ticks"]
    assert [numbers(block) for block in replay_day(tmp_path, DAY)] == [list(range(10))]
    log.close()


# ---- crashes and damage ----


@given(st.integers(0, 2_000))
@settings(max_examples=80)
def test_wherever_it_is_torn_it_opens_with_the_whole_blocks(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = written(folder)
    size = path.stat().st_size
    (folder / f"{DAY}.synced").unlink()
    cut = min(cut, size)
    os.truncate(path, cut)
    block_bytes = size // 3
    log = TickLog(folder, free_bytes_min=0)
    whole = cut // block_bytes
    assert log.next_seq == whole * 10
    assert log.cut_bytes == cut - whole * block_bytes
    log.append(ticks(whole * 10, 3), T0)
    log.close()
    assert read_all(TickReader(folder, "one")) == (list(range(whole * 10 + 3)), 0)


def test_a_tail_of_zeros_is_cut(tmp_path: Path) -> None:
    """What some file systems leave after a power cut: the length is there, the bytes are not."""
    path = written(tmp_path)
    good = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(5_000))
    log = TickLog(tmp_path)
    assert (log.next_seq, log.cut_bytes, log.file_bytes) == (30, 5_000, good)
    log.close()


def test_a_payload_that_is_not_what_was_written_is_cut_where_it_was_not_synced(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / f"{DAY}.synced").unlink()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"???")
    log = TickLog(tmp_path)
    assert log.next_seq == 20
    log.close()


@pytest.mark.parametrize("at", [0, 10, HEADER.size + 5])
def test_damage_in_the_middle_costs_one_block_and_is_told(tmp_path: Path, at: int) -> None:
    path = written(tmp_path)
    block_bytes = path.stat().st_size // 3
    with path.open("r+b") as file:
        file.seek(block_bytes + at)
        byte = file.read(1)
        file.seek(block_bytes + at)
        file.write(bytes([byte[0] ^ 0xFF]))
    log = TickLog(tmp_path)
    assert (log.next_seq, log.cut_bytes) == (30, 0)
    reader = TickReader(tmp_path, "one")
    assert read_all(reader) == ([*range(10), *range(20, 30)], 10)
    assert reader.lost == 10
    log.append(ticks(30, 1), T0 + DAY_US)
    log.flush()
    made = seal(tmp_path, DAY)
    assert (made.ticks, made.next_seq, made.damaged_bytes) == (20, 30, block_bytes)
    log.close()


def test_numbers_that_a_reader_saw_are_not_used_again(tmp_path: Path) -> None:
    """A power cut takes blocks that were read: their numbers stay theirs."""
    path = written(tmp_path)
    reader = TickReader(tmp_path, "one")
    read_all(reader)
    reader.commit()
    os.truncate(path, path.stat().st_size // 3)
    (tmp_path / f"{DAY}.synced").unlink()
    log = TickLog(tmp_path)
    assert log.next_seq == 30
    log.append(ticks(30, 5), T0)
    log.close()
    assert read_all(TickReader(tmp_path, "one")) == (list(range(30, 35)), 0)
    assert read_all(TickReader(tmp_path, "new")) == ([*range(10), *range(30, 35)], 20)


CHILD = """
import sys
from pathlib import Path
from tests.gateway.market.test_ticklog import T0, ticks
from gateway.market.ticklog import TickLog
log = TickLog(Path(sys.argv[1]))
number = log.next_seq
while True:
    log.append(ticks(number, 50), T0)
    log.flush()
    number += 50
    print(number, flush=True)
"""


def test_what_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    chance = random.Random(11)
    told = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert child.stdout is not None
        for _ in range(chance.randint(1, 400)):
            told = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        left = child.stdout.read().split()
        told = max([told, *map(int, left[:-1])])
        child.stdout.close()
        child.wait()
        log = TickLog(tmp_path)
        assert log.next_seq >= told
        log.close()
        found, lost = read_all(TickReader(tmp_path, "one"))
        assert (found, lost) == (list(range(log.next_seq)), 0)


def test_a_reader_in_another_place_never_sees_half_a_block(tmp_path: Path) -> None:
    """It reads while the writer writes, byte for byte."""
    source, target = tmp_path / "source", tmp_path / "target"
    data = written(source).read_bytes()
    target.mkdir()
    path = target / f"{DAY}.ticks"
    reader = TickReader(target, "one")
    seen: list[int] = []
    for end in range(0, len(data) + 1, 7):
        path.write_bytes(data[:end])
        seen += read_all(reader)[0]
        assert seen == list(range(end // (len(data) // 3) * 10))
    path.write_bytes(data)
    assert seen + read_all(reader)[0] == list(range(30))
    assert reader.lost == 0


# ---- a disk that does not do as it is told ----


def test_a_full_disk_costs_ticks_and_readers_are_told_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TickLog(tmp_path)
    log.append(ticks(0, 10), T0)
    log.flush()
    real = os.pwrite

    def half(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", half)
    log.append(ticks(10, 10), T0)
    log.flush()
    monkeypatch.setattr(os, "pwrite", real)
    log.append(ticks(20, 10), T0)
    log.flush()
    assert log.lost == 10
    assert read_all(TickReader(tmp_path, "one")) == ([*range(10), *range(20, 30)], 10)
    log.close()


def test_it_pauses_before_the_disk_is_full_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    log = TickLog(tmp_path, free_bytes_min=1 << 60)
    log.append(ticks(0, 10), T0)
    log.flush()
    log.sync()
    assert log.paused
    log.append(ticks(10, 10), T0)
    log.flush()
    assert log.lost == 10
    log.free_bytes_min = 0
    log.sync()
    log.append(ticks(20, 10), T0)
    log.close()
    assert read_all(TickReader(tmp_path, "one")) == ([*range(10), *range(20, 30)], 10)


def test_a_sync_that_fails_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TickLog(tmp_path)
    log.append(ticks(0, 1), T0)

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(os, "fdatasync", fails)
    log.sync()
    assert log.sync_errors == 1
    log.close()


def test_two_writers_are_refused(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    with pytest.raises(TickLogError, match="another process writes here"):
        TickLog(tmp_path)
    log.close()
    TickLog(tmp_path).close()


# ---- days ----


def test_a_finished_day_is_sealed_and_can_be_pruned(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    log.append(ticks(0, 10), T0)
    log.append(ticks(10, 10), T0 + DAY_US)
    log.flush()
    assert unsealed_days(tmp_path) == [DAY]
    with pytest.raises(TickLogError, match="still being written"):
        seal(tmp_path, "2023-11-15")
    with pytest.raises(TickLogError, match="no such day"):
        seal(tmp_path, "2020-01-01")
    assert prune(tmp_path, before_day="2024-01-01") == [], "not before it is sealed"
    made = seal(tmp_path, DAY)
    assert (made.first_seq, made.next_seq, made.ticks, made.damaged_bytes) == (0, 10, 10, 0)
    assert read_seal(tmp_path / f"{DAY}.seal.json") == made
    assert unsealed_days(tmp_path) == []
    assert prune(tmp_path, before_day=DAY) == []
    slow = TickReader(tmp_path, "slow")
    assert slow.seq == 0
    assert prune(tmp_path, before_day="2024-01-01") == [DAY]
    assert read_all(slow) == (list(range(10, 20)), 10), "a consumer that was too slow is told"
    log.close()


def test_numbers_go_on_when_every_day_is_pruned(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    log.append(ticks(0, 10), T0)
    log.append([], T0 + DAY_US)
    log.close()
    seal(tmp_path, DAY)
    prune(tmp_path, before_day="2024-01-01")
    (tmp_path / "2023-11-15.ticks").unlink()
    log = TickLog(tmp_path)
    assert log.next_seq == 10
    log.close()


def test_numbers_go_on_when_the_newest_day_is_still_empty(tmp_path: Path) -> None:
    """A process that dies just after midnight: the day before has no seal yet."""
    log = TickLog(tmp_path)
    log.append(ticks(0, 10), T0)
    log.append([], T0 + DAY_US)
    log.close()
    log = TickLog(tmp_path)
    assert log.next_seq == 10
    log.close()


def test_a_new_consumer_after_everything_was_pruned_has_lost_nothing(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    log.append(ticks(0, 10), T0)
    log.append([], T0 + DAY_US)
    log.flush()
    seal(tmp_path, DAY)
    prune(tmp_path, before_day="2024-01-01")
    reader = TickReader(tmp_path, "one")
    log.append(ticks(10, 5), T0 + DAY_US)
    log.flush()
    assert read_all(reader) == (list(range(10, 15)), 0)
    log.close()


def test_a_large_append_becomes_blocks_of_bounded_size(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    log.append(ticks(0, 3 * TICKS_MAX + 1), T0)
    log.flush()
    reader = TickReader(tmp_path, "one")
    sizes = []
    while batch := reader.read(10**9):
        sizes.append(len(batch.ticks))
    assert sizes == [TICKS_MAX] * 3 + [1]
    log.close()


def test_it_takes_far_more_than_fifty_thousand_ticks_a_second(tmp_path: Path) -> None:
    log = TickLog(tmp_path)
    batch = ticks(0, 500)
    began = time.process_time()
    for _ in range(200):
        log.append(batch, T0)
        log.flush()
    per_s = 100_000 / (time.process_time() - began)
    log.close()
    assert per_s > 100_000, f"{per_s:,.0f} ticks/s"
