"""A log larger than what of it may be in memory: written, trimmed, killed, opened, read, followed; small here."""

from pathlib import Path

import msgspec
import pytest

from chaos.disk import large_log
from chaos.disk.large_log import LargeLog, no_room, run

MIB = 1 << 20


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> LargeLog:
    return run(tmp_path_factory.mktemp("large"), payload_bytes=40 * MIB, entry_bytes=8 << 10, tail_bytes=MIB // 4)


def test_a_large_log_outlives_a_kill_and_brings_a_follower_up(found: LargeLog) -> None:
    assert found.wrong == []
    assert found.writing.payload_bytes >= 40 * MIB
    assert found.writing.first_index > 100, "it was trimmed on the way"
    assert found.cold.last_index >= found.writing.durable_index > 4000
    assert found.following.from_index > found.cold.first_index + 500
    assert found.following.entries > 2000


def test_a_large_log_is_not_in_memory(found: LargeLog) -> None:
    """As long as the log is, each process has but a tail of it, beside its code and a group on its way."""
    assert found.writing.anon_mib < 60
    assert found.cold.anon_mib < 90
    assert found.following.anon_mib < 130


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: {"writing": msgspec.structs.replace(one.writing, durable_index=10**9)}, "called durable"),
        (lambda one: {"writing": msgspec.structs.replace(one.writing, first_index=10**9)}, "had been trimmed"),
        (lambda one: {"cold": msgspec.structs.replace(one.cold, wrong="entry 7 is not")}, "entry 7"),
        (lambda one: {"following": msgspec.structs.replace(one.following, entries=5)}, "the follower has"),
    ],
)
def test_what_a_large_log_lost_is_told(found: LargeLog, change: object, says: str) -> None:
    worse = msgspec.structs.replace(found, **change(found))  # type: ignore[operator]
    assert any(says in one for one in large_log._wrong(worse))


def test_where_there_is_no_room_it_is_said_so(tmp_path: Path) -> None:
    assert no_room(tmp_path, MIB) == ""
    assert "MiB free" in no_room(tmp_path, 1 << 60)
