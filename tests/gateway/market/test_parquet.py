"""A sealed day as Parquet holds what the log holds, exactly, and no half file is ever under its name."""

import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet
import pytest

from gateway.feeds.ticks import E9_MAX, Quote, Status, StatusKind, Tick, Trade
from gateway.market import parquet
from gateway.market.parquet import NoExports, write_parquet
from gateway.market.ticklog import TickLog

T0 = 1_700_000_000_000_000
DAY = "2023-11-14"
TIME = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def logged(folder: Path, ticks: list[Tick]) -> None:
    log = TickLog(folder)
    log.append(ticks, T0)
    log.close()


def test_every_field_is_exact(tmp_path: Path) -> None:
    quotes: list[Tick] = [Quote("AAPL", "iex", 1, 2, E9_MAX, 4, T0, T0 + 5, 8), Quote("B", "y", 0, 0, 10**9, 7, T0, T0)]
    trade = Trade("AAPL", "iex", 148_995_000_000, 1, T0, T0 + 1, "t-1", False, "sell", 1)
    logged(tmp_path, [*quotes, Status("iex", StatusKind.GAP, T0), trade])
    assert write_parquet(tmp_path, DAY, tmp_path / "out") == {"quotes": 2, "trades": 1}
    rows = pyarrow.parquet.read_table(tmp_path / "out" / f"{DAY}.quotes.parquet").to_pylist()
    assert rows[0] == {
        "symbol": "AAPL", "venue": "iex", "bid": Decimal("0.000000001"), "bid_size": Decimal("0.000000002"),
        "ask": Decimal("18446744073.709551615"), "ask_size": Decimal("0.000000004"),
        "venue_time": TIME, "receive_time": TIME.replace(microsecond=5), "marks": 8,
    }  # fmt: skip
    assert (rows[1]["symbol"], rows[1]["bid"], rows[1]["ask"]) == ("B", Decimal(0), Decimal(1))
    (row,) = pyarrow.parquet.read_table(tmp_path / "out" / f"{DAY}.trades.parquet").to_pylist()
    assert row == {
        "symbol": "AAPL", "venue": "iex", "price": Decimal("148.995"), "size": Decimal("0.000000001"),
        "venue_time": TIME, "receive_time": TIME.replace(microsecond=1), "trade_id": "t-1", "eligible": False,
        "aggressor": "sell", "marks": 1,
    }  # fmt: skip


def test_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 100)
    logged(tmp_path, [Quote(f"S{at % 7}", "x", at, 1, at + 1, 1, T0, T0 + at) for at in range(1_050)])
    assert write_parquet(tmp_path, DAY, tmp_path) == {"quotes": 1_050, "trades": 0}
    file = pyarrow.parquet.ParquetFile(tmp_path / f"{DAY}.quotes.parquet")
    assert file.metadata.num_row_groups == 11
    table = file.read()
    assert table.column("bid").to_pylist() == [Decimal(at).scaleb(-9) for at in range(1_050)]
    assert table.column("symbol").to_pylist() == [f"S{at % 7}" for at in range(1_050)]


def test_what_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(tmp_path, [Quote("A", "x", 1, 1, 2, 1, T0, T0)])

    def breaks(folder: Path, day: str) -> list[list[Tick]]:
        raise OSError("disk")

    monkeypatch.setattr(parquet, "replay_day", breaks)
    with pytest.raises(OSError, match="disk"):
        write_parquet(tmp_path, DAY, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NoExports, match=r"tiebreak\[exports\]"):
        write_parquet(tmp_path, DAY, tmp_path)


def test_a_day_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_parquet(tmp_path, "2020-01-01", tmp_path)
