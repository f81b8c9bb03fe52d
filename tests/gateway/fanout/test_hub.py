"""Rounds of sending: the newest always arrives, nothing that may not be lost is, and load is answered in steps."""

import asyncio
import statistics
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fanout.fragment import BOTH, JSON, MSGPACK, Fragment
from gateway.fanout.hub import Hub, Reader, Round, Topic
from gateway.fanout.pace import STEPS_MS, Pace
from gateway.fanout.topics import CHANNELS
from gateway.tasks import end


class Taking(Reader):
    """A reader that has room when the test says so. shown: the newest of each topic, as it was told."""

    def __init__(self, *, has_room: bool = True) -> None:
        super().__init__()
        self.has_room = has_room
        self.shown: dict[str, bytes] = {}
        self.lasting: list[tuple[int, bytes]] = []
        self.heads: list[int] = []

    def take(self, topic: Topic, fragment: Fragment, seq: int) -> None:
        self.lasting.append((seq, fragment.json()))

    def take_diff(self, topic: Topic, fragment: Fragment) -> None:
        self.lasting.append((0, fragment.json()))

    def write(self, now: Round) -> int:
        if not self.has_room or not self.dirty:
            return 0
        self.heads.append(now.seq)
        for topic in self.dirty:
            self.shown[topic.key[1]] = topic.json
        count = len(self.dirty)
        self.dirty.clear()
        return count


class Waiting(Taking):
    """Notes how long each update waited for its round."""

    def __init__(self) -> None:
        super().__init__()
        self.published_s = 0.0
        self.waits_s: list[float] = []

    def write(self, now: Round) -> int:
        if self.dirty:
            self.waits_s.append(time.monotonic() - self.published_s)
        return super().write(now)


def value(number: int) -> Fragment:
    return Fragment(lambda _formats: number)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 3), st.integers(0, 1_000)),
        st.tuples(st.just("room"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("read"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("leave"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("round"), st.just(0), st.just(0)),
        st.tuples(st.just("busy"), st.just(0), st.booleans()),
    ),
    max_size=60,
)


@given(steps=STEPS)
@settings(max_examples=200)
def test_whoever_has_room_in_the_end_is_shown_the_newest(steps: list[tuple[str, int, Any]]) -> None:
    """However often it had none, and whatever was shed meanwhile."""

    async def run() -> None:
        hub = Hub(1, pace=Pace())
        channels = ("nbbo", "nbbo", "candles.1m", "quotes")
        readers = [Taking() for _ in range(3)]
        newest: dict[str, int] = {}
        for step, first, second in steps:
            key = (channels[first], f"S{first}")
            if step == "publish":
                topic = hub.topics.get(key)
                if topic is not None:
                    hub.publish(topic, value(second))
                    newest[key[1]] = second
            elif step == "room":
                readers[first].has_room = second
            elif step == "read":
                key = (channels[second], f"S{second}")
                if not any(key in reader.topics for reader in readers):
                    newest.pop(key[1], None)
                topic = hub.subscribe(readers[first], key, formats=JSON, slow=False)
                if topic.fragment is not None:
                    readers[first].dirty.add(topic)
                readers[first].shown.pop(key[1], None)
            elif step == "leave":
                hub.unsubscribe(readers[first], (channels[second], f"S{second}"))
            elif step == "round":
                await hub.flush()
            else:
                for _ in range(100):
                    hub.pace.observe(1_000.0 if second else 0.0, 0.0)
        for _ in range(200):
            hub.pace.observe(0.0, 0.0)
        for reader in readers:
            reader.has_room = True
        await hub.flush()
        for reader in readers:
            for _, symbol in reader.topics:
                if symbol in newest:
                    assert reader.shown[symbol] == str(newest[symbol]).encode()

    asyncio.run(run())


async def test_each_update_is_encoded_once_however_many_read_it() -> None:
    hub, made = Hub(1), [0, 0, 0]

    def make(formats: int) -> str:
        made[formats] += 1
        return "x"

    readers = [Taking() for _ in range(50)]
    for number, reader in enumerate(readers):
        hub.subscribe(reader, ("nbbo", "A"), formats=(JSON, MSGPACK)[number % 2])
    hub.publish(hub.topics[("nbbo", "A")], Fragment(make))
    await hub.flush()
    await hub.flush()
    assert made == [0, 1, 1]
    assert all(len(reader.heads) == 1 for reader in readers)
    await hub.flush()


async def test_nothing_is_encoded_that_nobody_reads() -> None:
    hub, reader = Hub(1), Taking()
    topic = hub.subscribe(reader, ("nbbo", "A"), formats=MSGPACK)
    asked: list[int] = []
    hub.publish(topic, Fragment(asked.append))
    hub.publish(topic, Fragment(asked.append))
    await hub.flush()
    assert asked == [MSGPACK], "the first was replaced before anybody looked"


async def test_a_round_begins_at_once_and_the_next_a_tick_later() -> None:
    hub, reader = Hub(1), Taking()
    topic = hub.subscribe(reader, ("nbbo", "A"), formats=JSON)
    running = asyncio.create_task(hub.run())
    try:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.15)
        began_s, times = loop.time(), []
        for number in range(300):
            before = len(reader.heads)
            hub.publish(topic, value(number))
            await asyncio.sleep(0.002)
            if len(reader.heads) > before:
                times.append(loop.time() - began_s)
        assert times[0] < 0.1, "before a tick is over"
        assert 2 <= len(times) <= times[-1] / 0.1 + 2, times
    finally:
        await end(running)


async def test_rounds_fall_together_with_who_publishes_once_per_tick() -> None:
    """Published in the middle between two rounds, each update would wait for half a tick, for ever."""
    hub, reader = Hub(1), Waiting()
    topic = hub.subscribe(reader, ("nbbo", "A"), formats=JSON)
    running = asyncio.create_task(hub.run())
    tick_s = hub.pace.tick_ms / 1000
    began_s = time.monotonic()
    for number in range(18):
        due_s = began_s + (0.0 if not number else (number - 0.5) * tick_s)
        await asyncio.sleep(due_s - time.monotonic())
        reader.published_s = time.monotonic()
        hub.publish(topic, value(number))
    await end(running)
    assert statistics.median(reader.waits_s[1:5]) > 0.25 * tick_s
    assert statistics.median(reader.waits_s[-5:]) < 0.15 * tick_s


async def test_a_frame_says_how_far_it_brings_its_reader() -> None:
    hub, reader = Hub(1), Taking()
    hub.subscribe(reader, ("nbbo", "A"), formats=JSON)
    hub.subscribe(reader, ("trades", "A"), formats=JSON)
    for seq in (1, 2, 3):
        hub.append(("trades", "A"), value(seq), seq)
    hub.publish(hub.topics[("nbbo", "A")], value(0))
    await hub.flush()
    assert reader.lasting == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert reader.heads == [3]


async def test_what_is_no_longer_subscribed_comes_no_more() -> None:
    hub, reader = Hub(1), Taking(has_room=False)
    for slow in (False, True):
        topic = hub.subscribe(reader, ("nbbo", "A"), formats=JSON, slow=slow)
        hub.publish(topic, value(1))
        await hub.flush()
        assert reader.dirty or reader.slow
        hub.unsubscribe(reader, ("nbbo", "A"))
        assert not reader.dirty and not reader.slow


async def test_a_topic_that_nobody_reads_is_forgotten() -> None:
    hub, readers = Hub(1), [Taking(), Taking()]
    gone: list[Any] = []
    hub.on_empty.append(gone.append)
    for reader in readers:
        hub.subscribe(reader, ("nbbo", "A"), formats=BOTH)
    hub.leave(readers[0])
    assert not gone
    hub.leave(readers[1])
    assert gone == [("nbbo", "A")] and not hub.topics and not hub.readers


def test_load_is_answered_in_steps_and_calm_later() -> None:
    pace = Pace()
    levels = []
    for _ in range(20):
        pace.observe(round_ms=600.0, lag_ms=0.0)
        levels.append(pace.level)
    assert levels[2] == 1 and levels[-1] == 4
    assert sorted(set(levels)) == [0, 1, 2, 3, 4], "one step at a time"
    assert (pace.tick_ms, pace.shed) == (500, ("candles.1m", "candles.5m", "candles.1h", "leaderboard"))
    rounds = 0
    while pace.level:
        pace.observe(round_ms=1.0, lag_ms=0.0)
        rounds += 1
    assert rounds == 80, "slower than it went up"
    assert (pace.tick_ms, pace.shed) == (100, ())


def test_candles_and_leaderboards_go_before_the_tick_grows() -> None:
    pace = Pace()
    while not pace.level:
        pace.observe(round_ms=90.0, lag_ms=0.0)
    assert pace.tick_ms == STEPS_MS[0] and pace.shed
    assert not any(CHANNELS[name].shed for name in ("quotes", "nbbo", "trades", "orders", "alerts", "book"))


def test_a_loop_that_wakes_late_is_load_too() -> None:
    pace = Pace()
    for _ in range(3):
        pace.observe(round_ms=1.0, lag_ms=80.0)
    assert pace.level == 1
    for _ in range(100):
        pace.observe(round_ms=1.0, lag_ms=40.0)
    assert pace.level == 1, "neither busy nor calm"


async def test_what_is_shed_comes_when_there_is_time_again() -> None:
    hub, reader = Hub(1), Taking()
    candles = hub.subscribe(reader, ("candles.1m", "A"), formats=JSON)
    quotes = hub.subscribe(reader, ("nbbo", "A "), formats=JSON)
    while not hub.pace.level:
        hub.pace.observe(1_000.0, 0.0)
    for number in range(3):
        hub.publish(candles, value(number))
        hub.publish(quotes, value(number))
        await hub.flush()
    assert reader.shown == {"A ": b"2"}
    while hub.pace.level:
        hub.pace.observe(0.0, 0.0)
    await hub.flush()
    assert reader.shown["A"] == b"2"
