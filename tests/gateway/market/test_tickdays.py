"""Finished days are sealed, written, and deleted when their time is over, and no sooner."""

import sys
from pathlib import Path

import pytest

from gateway.feeds.ticks import Quote
from gateway.market.tickdays import finished_days, tidy
from gateway.market.ticklog import TickLog
from gateway.market.tickseals import TickLogError

T0, DAY_US = 1_700_000_000_000_000, 86_400_000_000
DAYS = ["2023-11-14", "2023-11-15", "2023-11-16"]


@pytest.fixture
def log(tmp_path: Path) -> TickLog:
    made = TickLog(tmp_path / "log", free_bytes_min=0)
    for day in range(4):
        at_us = T0 + day * DAY_US
        made.append([Quote("A", "x", 1, 1, 2, 1, at_us, at_us)], at_us)
    made.flush()
    return made


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix in (".ticks", ".parquet"))


def test_days_go_their_way(log: TickLog, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = tidy(log.folder, today="2023-11-17", keep_days=2, exports=out)
    assert (first.sealed, first.exported, first.pruned) == (DAYS, DAYS, ["2023-11-14"])
    assert files(out) == sorted(f"{day}.{kind}.parquet" for day in DAYS for kind in ("quotes", "trades"))
    assert files(log.folder) == ["2023-11-15.ticks", "2023-11-16.ticks", "2023-11-17.ticks"]
    again = tidy(log.folder, today="2023-11-17", keep_days=2, exports=out)
    assert (again.sealed, again.exported, again.pruned) == ([], [], [])
    last = tidy(log.folder, today="2024-01-01", keep_days=2, exports=out)
    assert (last.sealed, last.pruned) == ([], ["2023-11-15", "2023-11-16"])
    assert files(log.folder) == ["2023-11-17.ticks"], "the newest is never touched"
    log.close()


def test_without_parquet_days_are_only_kept_and_deleted(log: TickLog) -> None:
    assert tidy(log.folder, today="2023-11-17", keep_days=1).pruned == DAYS[:2]
    assert finished_days(log.folder) == DAYS[2:]
    log.close()


def test_a_day_that_can_not_be_written_is_not_deleted(
    log: TickLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    tidied = tidy(log.folder, today="2024-01-01", keep_days=1, exports=tmp_path / "out")
    assert (tidied.sealed, tidied.exported, tidied.pruned) == (DAYS, [], [])
    assert len(files(log.folder)) == 4
    log.close()


def test_a_seal_that_is_no_seal_stops_the_log_from_opening(log: TickLog) -> None:
    """The numbers that it holds would be used again."""
    log.close()
    tidy(log.folder, today="2023-11-17", keep_days=1)
    (log.folder / "2023-11-14.seal.json").write_text("{}")
    with pytest.raises(TickLogError, match=r"2023-11-14\.seal\.json"):
        TickLog(log.folder)
