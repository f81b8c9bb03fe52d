"""Appends, flushes, days, crashes, power cuts, seals and readers in any order, beside a list in memory."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feeds.ticks import Quote, Tick
from gateway.market.ticklog import TickLog, prune, seal, unsealed_days
from gateway.market.tickreader import TickReader

T0, DAY_US = 1_700_000_000_000_000, 86_400_000_000
STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("consume"), st.integers(1, 9), st.booleans()),
    st.tuples(st.just("power_cut"), st.sampled_from([0, 0, 50, 100])),
    st.tuples(st.sampled_from(["sync", "next_day", "kill"])),
    st.tuples(st.just("tidy"), st.booleans()),
)


class World:
    """The log, one consumer, and what is known of every tick that was flushed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_us = T0
        self.made = 0
        self.kept: dict[int, int] = {}
        """By seq: the price of the tick that was flushed under it, as long as a reader may still find it."""
        self.pending: list[int] = []
        self.synced_bytes = 0
        self.log = self.opened()
        self.reader = TickReader(folder, "one")
        self.read_to = self.reader.seq

    def opened(self) -> TickLog:
        return TickLog(self.folder, free_bytes_min=0)

    def append(self, count: int, and_flush: bool) -> None:
        ticks: list[Tick] = []
        for _ in range(count):
            self.made += 1
            self.pending.append(self.made)
            ticks.append(Quote("A", "x", self.made, 1, self.made, 1, self.now_us, self.now_us))
        self.log.append(ticks, self.now_us)
        if and_flush:
            self.flush()

    def flush(self) -> None:
        first = self.log.next_seq
        self.log.flush()
        self.flushed(first)

    def flushed(self, first: int) -> None:
        """What was pending has numbers now that no other tick had, as far as anybody may remember."""
        assert first >= self.reader.committed
        assert not self.kept or first > max(self.kept)
        self.kept |= {first + at: price for at, price in enumerate(self.pending)}
        self.pending.clear()

    def sync(self) -> None:
        self.log.sync()
        self.synced_bytes = self.log.file_bytes

    def next_day(self) -> None:
        """A new day flushes the old one and syncs it."""
        self.now_us += DAY_US
        first = self.log.next_seq
        self.log.append([], self.now_us)
        self.flushed(first)
        self.synced_bytes = 0

    def kill(self) -> None:
        """What was flushed stays; what was pending is gone, and nobody had seen it."""
        self.die()
        self.log = self.opened()

    def die(self) -> None:
        self.pending.clear()
        if self.log._descriptor >= 0:
            os.close(self.log._descriptor)
        os.close(self.log._lock)

    def power_cut(self, percent: int) -> None:
        """The file's end is cut anywhere behind what was synced."""
        path = self.folder / f"{self.log.day}.ticks"
        size = self.log.file_bytes
        self.die()
        if path.exists():
            os.truncate(path, self.synced_bytes + (size - self.synced_bytes) * percent // 100)
        self.log = self.opened()
        found: dict[int, int] = {}
        with_all = TickReader(self.folder, "all-seeing")
        while batch := with_all.read(10_000):
            found |= {
                batch.first_seq + at: tick.bid_e9 for at, tick in enumerate(batch.ticks) if isinstance(tick, Quote)
            }
        with_all.close()
        assert found.items() <= self.kept.items(), "no number has another tick"
        self.kept = found
        # The consumers went down with the machine, and go on where they committed.
        self.restart_reader()

    def tidy(self, and_prune: bool) -> None:
        for day in unsealed_days(self.folder):
            seal(self.folder, day)
        if and_prune:
            before = dict(self.kept)
            gone = prune(self.folder, before_day="9999-99-99")
            if gone:
                oldest = TickReader(self.folder, "all-seeing").seq
                self.kept = {seq: price for seq, price in before.items() if seq >= oldest}

    def consume(self, limit: int, and_commit: bool) -> None:
        while batch := self.reader.read(limit):
            assert len(batch.ticks) <= limit
            assert batch.first_seq == self.read_to + batch.lost
            for seq in range(self.read_to, batch.first_seq):
                assert seq not in self.kept, "a tick that is there is not told as lost"
            for at, tick in enumerate(batch.ticks):
                assert isinstance(tick, Quote)
                assert tick.bid_e9 == self.kept[batch.first_seq + at]
            self.read_to = batch.first_seq + len(batch.ticks)
            assert self.reader.seq == self.read_to
        assert not [seq for seq in self.kept if seq >= self.read_to], "what is flushed is read"
        assert self.reader.lag == 0
        if and_commit:
            self.reader.commit()

    def restart_reader(self) -> None:
        self.reader.close()
        self.reader = TickReader(self.folder, "one")
        self.read_to = self.reader.seq


@given(st.lists(STEP, min_size=5, max_size=30))
@settings(max_examples=100)
def test_it_is_a_list_that_survives(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]) -> None:
    folder = tmp_path_factory.mktemp("log")
    world = World(folder)
    for name, *values in steps:
        getattr(world, name)(*values)
    world.append(3, True)
    world.consume(7, False)
    world.reader.close()
    world.log.close()
    shutil.rmtree(folder)
