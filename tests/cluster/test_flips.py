"""A flipped bit anywhere in a journal's file: found and named at the start, or of no effect; never a shorter log."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from cluster.consensus.journal import Committed, JournalRefused, Put
from cluster.consensus.wholeness import NotWhole, check_roots
from tests.cluster import flips
from tests.cluster.test_journal import fill, open_journal, open_storage

ROOT = Path(__file__).parents[2]
PAGE = 4096
TRANSACTION = 144  # where a root names its transaction


MEMORY = Path("/dev/shm")  # noqa: S108 - thousands of syncs, of which none is what this is about


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        flips.make(Path(name) / "good")
        yield Path(name)


def outcomes(folder: Path, wanted: list[str]) -> dict[str, str]:
    """What each flip led to. A process that dies of one is an outcome too; the rest is asked of another."""
    found: dict[str, str] = {}
    while left := [flip for flip in wanted if flip not in found]:
        words = [sys.executable, "-m", "tests.cluster.flips", str(folder), *left]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
        found |= dict(line.split(" ", 1) for line in done.stdout.splitlines())
        if done.returncode >= 0:
            assert done.returncode == 0, done.stderr
        else:
            culprit = next(flip for flip in left if flip not in found)
            found[culprit] = f"died: {signal.Signals(-done.returncode).name}"
    return found


def bits(offsets: list[int], seed: int) -> list[str]:
    chance = random.Random(seed)
    return sorted({f"{offset}:{chance.randrange(8)}" for offset in offsets})


def judged(found: dict[str, str]) -> Counter[str]:
    wrong = {flip: outcome for flip, outcome in found.items() if outcome.startswith("wrong")}
    assert not wrong
    return Counter(outcome.split(":")[0] for outcome in found.values())


def test_bits_all_over_the_file_are_found_or_do_not_matter(folder: Path) -> None:
    size = (folder / "good" / flips.DATA).stat().st_size
    counts = judged(outcomes(folder, bits(list(range(0, size, 151)), seed=7)))
    assert counts["refused"] > 80
    # Pages that are free, and room in others: nothing was there.
    assert counts["same"] > 80
    # A damaged length may lead beyond the file's end, where the system ends the process: nothing is answered.
    assert counts["died"] < 5


def test_each_bit_of_a_roots_transaction_is_found_but_one(folder: Path) -> None:
    """LMDB believes the root of the newer transaction: one bit, and it would show the state before the last group."""
    content = (folder / "good" / flips.DATA).read_bytes()
    places = [page + TRANSACTION for page in (0, PAGE)]
    numbers = [int.from_bytes(content[place : place + 8], "little") for place in places]
    newer = max(numbers)
    # See check_roots: what the newer one then says is what the older one follows, too.
    escapes = {f"{places[numbers.index(newer)]}:1"} if newer % 4 >= 2 else set()
    wanted = [f"{place + byte}:{bit}" for place in places for byte in range(8) for bit in range(8)]
    found = outcomes(folder, [flip for flip in wanted if flip not in escapes])
    assert judged(found) == {"refused": 128 - len(escapes)}
    assert all("do not follow each other" in outcome for outcome in found.values())


def test_the_names_of_tables_and_records_are_part_of_it(folder: Path) -> None:
    """A table or record that is not found under its name is not taken for one that was never written."""
    content = (folder / "good" / flips.DATA).read_bytes()
    wanted = []
    for name in (b"log", b"meta", b"commit", b"vote", b"written", b"identity"):
        place = content.find(name)
        while place >= 0:  # old copies of the page, too
            wanted.append(f"{place}:1")
            place = content.find(name, place + 1)
    found = outcomes(folder, wanted)
    counts = judged(found)
    assert counts["refused"] >= 6
    said = "\n".join(found.values())
    for part in ("no journal, or a damaged one", "is called b'tote'", "which none is: it is damaged"):
        assert part in said


def test_a_journal_that_shows_an_older_state_of_itself_is_refused(tmp_path: Path) -> None:
    """Whoever wrote to it without saying so, or brought back an older root."""
    journal = open_journal(tmp_path / "j")
    fill(journal, 3)
    journal.close()
    with lmdb.open(str(tmp_path / "j"), max_dbs=2) as env, env.begin(write=True) as transaction:
        transaction.put(b"\0" * 7 + b"\4", b"x" * 20, db=env.open_db(b"log", transaction))
    with pytest.raises(JournalRefused, match="entry 4"):
        flips.load(tmp_path / "j")
    with lmdb.open(str(tmp_path / "j"), max_dbs=2) as env, env.begin(write=True) as transaction:
        transaction.delete(b"\0" * 7 + b"\4", db=env.open_db(b"log", transaction))
    with pytest.raises(JournalRefused, match="shows an older state, or something else wrote to it"):
        flips.load(tmp_path / "j")


def test_a_journal_that_has_committed_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "j")
    storage.write([Put(1, 1, b"\0"), Committed(1)])
    storage.load(tail_bytes_max=0)
    storage.write([Committed(3)])
    with pytest.raises(JournalRefused, match="committed up to 3, but the log ends at 1"):
        storage.load(tail_bytes_max=0)
    storage.close()


@pytest.mark.parametrize(("size", "says"), [(10, "first page"), (PAGE + 10, "second page")])
def test_a_file_that_is_cut_short_is_refused(folder: Path, tmp_path: Path, size: int, says: str) -> None:
    (tmp_path / flips.DATA).write_bytes((folder / "good" / flips.DATA).read_bytes()[:size])
    with pytest.raises(NotWhole, match=says):
        check_roots(tmp_path / flips.DATA)
    with pytest.raises(JournalRefused, match=says):
        open_storage(tmp_path)


@pytest.mark.parametrize("pages", [2, 5, 12, 20])
def test_a_file_without_its_last_pages_is_refused_by_name(folder: Path, tmp_path: Path, pages: int) -> None:
    """Mapped as it is, the first look beyond its end would be SIGBUS."""
    content = (folder / "good" / flips.DATA).read_bytes()
    assert len(content) > (pages + 2) * PAGE
    (tmp_path / flips.DATA).write_bytes(content[: pages * PAGE])
    with pytest.raises(JournalRefused, match="damaged"):
        flips.load(tmp_path)


def test_a_file_that_is_much_too_short_is_not_made_longer(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "good" / flips.DATA).read_bytes())
    for page in (0, PAGE):
        content[page + 136 + 4] ^= 1  # the last page: 2**32 more
    (tmp_path / flips.DATA).write_bytes(content)
    with pytest.raises(JournalRefused, match="cut short"):
        open_storage(tmp_path)
    assert (tmp_path / flips.DATA).stat().st_size == len(content)
