"""The store on a real disk: grouped syncs, kills, full and failing disks, damage, owners, and lost disks."""

import asyncio
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.prefs import fields
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.crdt import DOCUMENT_BYTES_MAX, EMPTY, Document, encode, with_fields
from gateway.prefs.digests import BUCKETS, HASH_BYTES, Digests, hash_of
from gateway.prefs.errors import InvalidAlert, NoSuchAlert, StoreBusy, StoreFailed, StoreFull, StoreRefused
from gateway.prefs.hlc import Stamp, site_of, wall_ms
from gateway.prefs.seal import Keyring
from gateway.prefs.service import Prefs
from gateway.prefs.store import WAITING_MAX, Change, Store, Writing
from tests.gateway.prefs.writer_child import EXIT_REFUSED, setting

ROOT = Path(__file__).parents[3]
CHILD = [sys.executable, "-m", "tests.gateway.prefs.writer_child"]
traced = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no faults can be injected")
RING = Keyring({1: b"k" * 32})


def opened(folder: Path, *, site: str = "dc-a", free_bytes_min: int = 0, wall: Callable[[], int] = wall_ms) -> Store:
    return Store(folder, cluster_id="c", site=site, map_bytes=1 << 28, free_bytes_min=free_bytes_min, wall=wall)


def number_of(store: Store, user: str) -> int:
    register = store.document(user).fields.get("language")
    return int.from_bytes((register.value or b"")[:8], "big") if register else -1


async def test_what_was_answered_is_there_after_a_start(tmp_path: Path) -> None:
    store = opened(tmp_path)
    prefs = Prefs(store, RING)
    await prefs.change("ann", {"language": "de", "email": "ann@example.com"})
    await prefs.put_alert("ann", "x", Terms("AAPL", Condition.above, price_e9=200))
    before = store.incarnation
    await store.close()
    assert b"ann@example.com" not in (tmp_path / "data.mdb").read_bytes()

    store = opened(tmp_path)
    assert store.incarnation == before
    assert site_of(before) == "dc-a"
    prefs = Prefs(store, RING)
    assert (prefs.preferences("ann").language, prefs.preferences("ann").email) == ("de", "ann@example.com")
    assert [alert.alert_id for alert in prefs.alerts("ann")] == ["x"]
    with pytest.raises(NoSuchAlert):
        prefs.alert("ann", "y")
    with pytest.raises(InvalidAlert):
        await prefs.put_alert("ann", "no blanks", Terms("AAPL", Condition.above, price_e9=200))
    await prefs.remove_alert("ann", "x")
    assert prefs.alerts("ann") == []
    await prefs.erase("ann")
    assert prefs.preferences("ann").email is None
    await store.close()


async def test_writes_of_one_moment_share_a_sync_and_the_loop_goes_on(tmp_path: Path) -> None:
    store = opened(tmp_path)
    seen: list[Change] = []
    store.on_change(seen.append)
    writes = [asyncio.create_task(store.write(setting(f"user-{n}", n))) for n in range(500)]
    turns = 0
    while not all(write.done() for write in writes):
        await asyncio.sleep(0)
        turns += 1
    assert store.syncs <= 3
    assert turns > 10
    assert len(seen) == 500
    assert len(store.digests) == 500
    assert all(store.digests.get(change.user) == hash_of(change.user, encode(change.after)) for change in seen)
    assert [number_of(store, f"user-{n}") for n in range(500)] == list(range(500))
    await store.close()


async def test_an_error_undoes_one_write_and_no_other(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def fails(writing: Writing) -> None:
        setting("ann", 7)(writing)
        raise InvalidAlert("no")

    good, bad, other = await asyncio.gather(
        store.write(setting("bob", 1)),
        store.write(fails),
        store.write(setting("cyd", 2)),
        return_exceptions=True,
    )
    assert good is None
    assert other is None
    assert isinstance(bad, InvalidAlert)
    assert store.document("ann") == EMPTY
    assert store.syncs == 1
    assert (number_of(store, "bob"), number_of(store, "cyd")) == (1, 2)
    assert store.digests.get("ann") is None
    await store.close()


async def test_a_listener_that_fails_keeps_no_answer_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    seen: list[Change] = []

    def fails(_change: Change) -> None:
        raise KeyError("a mistake")

    store.on_change(fails)
    store.on_change(seen.append)
    await asyncio.wait_for(store.write(setting("ann", 1)), 5)
    await asyncio.wait_for(store.write(setting("ann", 2)), 5)
    assert [change.user for change in seen] == ["ann", "ann"]
    await store.close()


async def test_nothing_is_seen_before_it_is_synced(tmp_path: Path) -> None:
    store = opened(tmp_path)
    inside: list[Document] = []
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def slow(writing: Writing) -> None:
        setting("ann", 7)(writing)
        inside.append(writing.document("ann"))
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.1)

    write = asyncio.create_task(store.write(slow))
    await begun.wait()
    assert inside[0] != EMPTY
    assert store.document("ann") == EMPTY
    await write
    assert number_of(store, "ann") == 7
    await store.close()


async def test_stamps_go_on_over_a_restart_though_the_clock_was_set_back(tmp_path: Path) -> None:
    store = opened(tmp_path, wall=lambda: 2_000_000)
    await store.write(setting("ann", 1))
    before = store.clock.last()
    await store.close()
    store = opened(tmp_path, wall=lambda: 1_000_000)
    assert store.clock.next() > before
    await store.close()


async def test_too_many_waiting_writes_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    waiting = [asyncio.create_task(store.write(setting("ann", n))) for n in range(WAITING_MAX + 1)]
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in found if each is not None] == [StoreBusy]
    await store.close()
    with pytest.raises(StoreFailed, match="stopping"):
        await store.write(setting("ann", 1))


# -- whose folder, and in which state --------------------------------------------------------------


async def test_a_folder_has_one_owner_and_one_site(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StoreRefused, match="open in another process"):
        opened(tmp_path)
    await store.close()
    with pytest.raises(StoreRefused, match="site is 'dc-a', this gateway's is 'dc-b'"):
        opened(tmp_path, site="dc-b")
    store = opened(tmp_path)  # the refused ones let go of it
    await store.close()


async def test_a_flipped_bit_is_not_served(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await store.write(setting("ann", 7))
    await store.close()
    file = tmp_path / "data.mdb"
    raw = file.read_bytes()
    assert raw.count(b"x" * 400) >= 1
    file.write_bytes(raw.replace(b"x" * 400, b"x" * 399 + b"y"))
    with pytest.raises(StoreRefused, match="document of 'ann' is damaged"):
        opened(tmp_path)


async def test_a_lost_disk_comes_back_under_another_incarnation(tmp_path: Path) -> None:
    store = opened(tmp_path)
    before = store.incarnation
    await store.close()
    shutil.rmtree(tmp_path)
    store = opened(tmp_path)
    assert store.incarnation != before
    renewed = await store.renew_incarnation()
    await store.write(setting("ann", 1))
    assert store.document("ann").fields["language"].stamp.writer == renewed
    await store.close()
    store = opened(tmp_path)
    assert store.incarnation == renewed
    await store.close()


async def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1_000)
    with pytest.raises(StoreRefused):
        opened(tmp_path)


async def test_what_is_kept_in_memory_follows_what_is_written(tmp_path: Path) -> None:
    store = opened(tmp_path)
    prefs = Prefs(store, RING)
    for hidden in (True, False, None, True):
        assert prefs.preferences("ann") == fields.read("ann", store.document("ann"), RING)
        await prefs.change("ann", {"leaderboard_hidden": hidden})
        assert prefs.hidden_from_leaderboard("ann") == prefs.preferences("ann").leaderboard_hidden == bool(hidden)
    assert not prefs.hidden_from_leaderboard("bob")
    await store.close()


async def test_keys_are_changed_without_a_write_by_anyone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await Prefs(store, RING).change("ann", {"email": "ann@example.com", "language": "de"})
    before = store.document("ann").fields
    both = Keyring({1: b"k" * 32, 2: b"n" * 32})
    assert await Prefs(store, both).seal_anew() == 1
    after = store.document("ann").fields
    assert {name: register.stamp for name, register in after.items()} == {n: r.stamp for n, r in before.items()}
    assert Prefs(store, Keyring({2: b"n" * 32})).preferences("ann").email == "ann@example.com"
    assert await Prefs(store, both).seal_anew() == 0
    await store.close()


# -- kills, full and failing disks -----------------------------------------------------------------


def acked(said: str) -> list[int]:
    return [int(line.split()[1]) for line in said.splitlines() if line.startswith("acked")]


def holds(folder: Path, numbers: list[int], users: int) -> None:
    """Each user has its last acknowledged number, or a later one that was under way."""
    store = opened(folder)
    last: dict[int, int] = {}
    for number in numbers:
        last[number % users] = max(number, last.get(number % users, -1))
    try:
        for user, number in last.items():
            assert number_of(store, f"user-{user}") >= number
        for name in store.digests.all_users():
            assert store.digests.get(name) == hash_of(name, encode(store.document(name)))
    finally:
        asyncio.run(store.close())


@pytest.mark.parametrize("wait_s", [0.1, 0.25, 0.4])
def test_a_killed_gateway_has_all_that_it_acknowledged(wait_s: float, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*CHILD, str(tmp_path), "50", "1000000"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        said = [child.stdout.readline() for _ in range(20)]
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            said.append(child.stdout.readline())
        child.kill()
        said += child.stdout.read().splitlines(keepends=True)[:-1]  # the last line may be cut
    numbers = acked("".join(said))
    assert len(numbers) > 10
    holds(tmp_path, numbers, 50)


def test_a_file_that_can_not_grow_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))

    done = subprocess.run(
        [*CHILD, str(tmp_path), "100000", "20000"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, preexec_fn=small,
    )  # fmt: skip
    assert done.returncode == EXIT_REFUSED, done.stderr
    # LMDB says "input/output error" of a write that was cut short, so it counts as a disk that failed: the mark of
    # free bytes is there that it does not come to this.
    assert "refused StoreFailed StoreFailed True" in done.stdout
    holds(tmp_path, acked(done.stdout), 100_000)


@traced
@pytest.mark.parametrize(("calls", "fault"), [("fdatasync", "EIO"), ("pwrite64,pwritev,writev", "EIO")])
def test_a_failing_disk_ends_writing_and_not_reading(calls: str, fault: str, tmp_path: Path) -> None:
    prefix = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", f"trace={calls}"]
    folder = tmp_path / "store"
    done = subprocess.run(
        [*prefix, "-e", f"inject={calls}:error={fault}:when=40", *CHILD, str(folder), "10", "400"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_REFUSED, done.stdout + done.stderr
    assert "refused StoreFailed StoreFailed True" in done.stdout
    assert len(acked(done.stdout)) > 5
    holds(folder, acked(done.stdout), 10)


@traced
def test_room_that_comes_back_is_used(tmp_path: Path) -> None:
    calls = "pwrite64,pwritev,writev"
    prefix = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", f"trace={calls}"]
    folder = tmp_path / "store"
    done = subprocess.run(
        [*prefix, "-e", f"inject={calls}:error=ENOSPC:when=40", *CHILD, str(folder), "10", "400"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "refused StoreFull written True" in done.stdout
    holds(folder, acked(done.stdout), 10)


async def test_below_the_low_water_mark_only_what_makes_room_is_written(tmp_path: Path) -> None:
    store = opened(tmp_path, free_bytes_min=0)
    await store.write(setting("ann", 1))
    await store.close()
    store = opened(tmp_path, free_bytes_min=1 << 60)
    with pytest.raises(StoreFull, match="left on the disk"):
        await store.write(setting("ann", 2))
    assert number_of(store, "ann") == 1
    await Prefs(store, RING).erase("ann")
    assert store.document("ann").fields["language"].value is None
    await store.close()


async def test_a_full_map_refuses_a_batch_and_takes_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path, cluster_id="c", site="dc-a", map_bytes=1 << 20, free_bytes_min=0)

    def huge(writing: Writing) -> None:
        for n in range(4_000):
            setting(f"user-{n}", n)(writing)

    with pytest.raises(StoreFull):
        await store.write(huge)
    await store.write(setting("ann", 1))
    assert number_of(store, "ann") == 1
    assert store.document("user-0") == EMPTY
    await store.close()


# -- digests ---------------------------------------------------------------------------------------


def test_buckets_differ_where_a_document_differs() -> None:
    one, other = Digests(), Digests()
    for n in range(3_000):
        one.set(f"user-{n}", hash_of(f"user-{n}", b"%d" % n))
    for n in reversed(range(3_000)):
        other.set(f"user-{n}", hash_of(f"user-{n}", b"old"))
        other.set(f"user-{n}", hash_of(f"user-{n}", b"%d" % n))
    assert len(one.sums()) == BUCKETS * HASH_BYTES
    assert one.differing(other.sums()) == []
    assert len(one) == len(other) == 3_000
    other.set("user-7", hash_of("user-7", b"new"))
    (bucket,) = one.differing(other.sums())
    differing = {u for u, digest in one.users(bucket).items() if other.users(bucket)[u] != digest}
    assert differing == {"user-7"}


def test_the_same_bytes_of_two_users_differ() -> None:
    assert hash_of("ann", b"x") != hash_of("bob", b"x")


def test_a_document_at_its_bounds_fits() -> None:
    document = with_fields(EMPTY, {f"f{n:02}": b"v" * 2_048 for n in range(64)}, Stamp(2**41, 0, "w" * 41))
    assert len(encode(document)) < DOCUMENT_BYTES_MAX
