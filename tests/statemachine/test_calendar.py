"""Openings at their edges: each closed minute beside an open one."""

from datetime import UTC, datetime

import pytest

from statemachine.calendar import next_midnight_us, opening
from statemachine.commands import Calendar, Limits, SessionHours
from statemachine.instrument import Instrument
from statemachine.records import InstrumentRecord
from statemachine.types import Mode

DAY = SessionHours(570, 960)
NIGHT = SessionHours(1080, 1440 + 240)
"""18:00 to 4:00 the next morning."""
NEW_YORK = Calendar((DAY, DAY, DAY, DAY, SessionHours(570, 780), None, None), -240, ((20_256, None),))
NIGHTS = Calendar((NIGHT, None, None, None, None, None, NIGHT), 0, ((20_255, None),))
OVERLAPPING = Calendar((SessionHours(600, 2000), SessionHours(60, 720), None, None, None, None, None))


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


ROWS = [
    # calendar, UTC time, end or None when closed
    (NEW_YORK, "2025-06-16 13:29:59", None),
    (NEW_YORK, "2025-06-16 13:30:00", "2025-06-16 20:00"),
    (NEW_YORK, "2025-06-16 19:59:59", "2025-06-16 20:00"),
    (NEW_YORK, "2025-06-16 20:00:00", None),
    (NEW_YORK, "2025-06-17 14:00:00", None),  # the exception
    (NEW_YORK, "2025-06-18 14:00:00", "2025-06-18 20:00"),
    (NEW_YORK, "2025-06-20 16:59:59", "2025-06-20 17:00"),  # a short Friday
    (NEW_YORK, "2025-06-20 17:00:00", None),
    (NEW_YORK, "2025-06-21 14:00:00", None),
    (NIGHTS, "2025-06-15 17:59:59", None),
    (NIGHTS, "2025-06-15 18:00:00", "2025-06-16 04:00"),
    (NIGHTS, "2025-06-16 00:00:00", "2025-06-16 04:00"),  # on the holiday, but it opened the evening before
    (NIGHTS, "2025-06-16 04:00:00", None),
    (NIGHTS, "2025-06-16 18:00:00", None),  # day 20255 is the exception
    (NIGHTS, "2025-06-23 18:00:00", "2025-06-24 04:00"),
    (OVERLAPPING, "2025-06-16 09:59:59", None),
    (OVERLAPPING, "2025-06-17 00:59:59", "2025-06-17 09:20"),
    (OVERLAPPING, "2025-06-17 01:00:00", "2025-06-17 12:00"),  # two are open: the last end counts
    (OVERLAPPING, "2025-06-17 11:59:59", "2025-06-17 12:00"),
    (OVERLAPPING, "2025-06-17 12:00:00", None),
]


@pytest.mark.parametrize(("calendar", "now", "end"), ROWS)
def test_openings(calendar: Calendar, now: str, end: str | None) -> None:
    ends_us, until_us = opening(calendar, at(now))
    assert ends_us == (0 if end is None else at(end))
    assert until_us > at(now)
    assert opening(calendar, until_us - 1)[0] == ends_us, "the answer holds as long as it says"


@pytest.mark.parametrize("calendar", [NEW_YORK, NIGHTS, OVERLAPPING])
def test_what_an_instrument_remembers_never_shows(calendar: Calendar) -> None:
    record = InstrumentRecord("X", "A", "B", 0, 0, 1, 1, Mode.trading, 0, 0, Limits(), calendar, 0, 0, 0)
    remembering = Instrument(record, 0, 0)
    for now_us in range(at("2025-06-14 00:00"), at("2025-06-25 00:00"), 17 * 60_000_000):
        fresh = Instrument(record, 0, 0)
        assert remembering.is_open(now_us) == fresh.is_open(now_us)
        assert remembering.day_ends_at_us(now_us) == fresh.day_ends_at_us(now_us)


def test_midnight_is_local() -> None:
    calendar = Calendar((), 60)
    assert next_midnight_us(calendar, at("2025-06-16 22:59:59")) == at("2025-06-16 23:00")
    assert next_midnight_us(calendar, at("2025-06-16 23:00:00")) == at("2025-06-17 23:00")
