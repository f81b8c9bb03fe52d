"""The measurement measures what it says; how fast it is on some machine is for `bench` to record."""

from pathlib import Path

import pytest

from gateway.feeds.ticks import Quote, Trade
from gateway.market.measure import capture_shares, made_ticks, measure, measure_recording, zipf_shares
from tests.gateway.feeds.frames import recorded


def test_the_ticks_are_those_that_were_asked_for() -> None:
    batches = made_ticks(zipf_shares(100), updates=5_000, updates_per_s=50_000, venues=3)
    ticks = [tick for _, batch in batches for tick in batch]
    assert len(ticks) == 5_000
    assert {tick.venue for tick in ticks} == {"venue-0", "venue-1", "venue-2"}
    assert 0.15 < sum(isinstance(tick, Trade) for tick in ticks) / 5_000 < 0.25
    assert all(tick.bid_e9 < tick.ask_e9 for tick in ticks if isinstance(tick, Quote))
    assert [now_us - batches[0][0] for now_us, _ in batches[:3]] == [0, 10_000, 20_000]
    assert batches == made_ticks(zipf_shares(100), updates=5_000, updates_per_s=50_000, venues=3)


def test_a_core_takes_what_the_issue_asks_for_with_room() -> None:
    """5,000 symbols x 10 updates/s is 50,000/s; a loaded core does some 250,000."""
    measured = measure(made_ticks(zipf_shares(5_000), updates=60_000, updates_per_s=50_000))
    assert (measured.updates, measured.venues) == (60_000, 8)
    assert measured.symbols > 4_000
    assert measured.updates_per_s > 50_000
    assert 0.99 <= measured.nbbo_share + measured.candles_share <= 1.01


@pytest.mark.real_data
def test_the_captures_skew() -> None:
    shares = capture_shares(recorded("iex/TOPS16.pcapng.gz"), 9_000)
    assert len(shares) == 9_000
    assert sum(shares[:50]) / sum(shares) > 0.25, "the busiest 50 of 9,000"
    assert shares == sorted(shares, reverse=True)


@pytest.mark.real_data
def test_a_recording_from_its_bytes_to_the_log(tmp_path: Path) -> None:
    measured = measure_recording(recorded("iex/TOPS16.pcapng.gz"), log_folder=tmp_path)
    assert (measured.frames, measured.ticks) == (13_022, 27_217 + 6_390 + 8_043)
    assert measured.ticks_per_s > 20_000
    assert 0.1 < measured.decode_share < 0.9
    assert 20 < measured.log_bytes_per_tick < 120
