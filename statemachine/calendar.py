"""When an instrument trades, from its calendar and a time; no clock and no time zone database."""

from statemachine.commands import Calendar, SessionHours

MINUTE_US = 60_000_000
DAY_US = 1_440 * MINUTE_US
THURSDAY = 3
"""Weekday of day 0, 1970-01-01; Monday is 0."""


def calendar_is_valid(calendar: Calendar) -> bool:
    """No or seven weekly entries, openings of some length, each exception once and only beside weekly hours."""
    if len(calendar.weekly) not in (0, 7):
        return False
    days = [day for day, _ in calendar.exceptions]
    if len(set(days)) != len(days) or (days and not calendar.weekly):
        return False
    hours = [*calendar.weekly, *(hours for _, hours in calendar.exceptions)]
    return all(one is None or one.open_minute < one.close_minute for one in hours)


def next_midnight_us(calendar: Calendar, now_us: int) -> int:
    """The first local midnight after `now_us`."""
    offset_us = calendar.utc_offset_minutes * MINUTE_US
    return ((now_us + offset_us) // DAY_US + 1) * DAY_US - offset_us


def opening(calendar: Calendar, now_us: int) -> tuple[int, int]:
    """(end of the opening that holds `now_us` or 0 when closed, time until which this answer holds).

    Needs weekly hours. Where openings overlap, the one that ends last counts.
    """
    offset_us = calendar.utc_offset_minutes * MINUTE_US
    today = (now_us + offset_us) // DAY_US
    ends_us = 0
    until_us = next_midnight_us(calendar, now_us)
    for day in (today - 1, today):  # yesterday's hours may reach past midnight
        hours = hours_of(calendar, day)
        if hours is None:
            continue
        midnight_us = day * DAY_US - offset_us
        start_us = midnight_us + hours.open_minute * MINUTE_US
        end_us = midnight_us + hours.close_minute * MINUTE_US
        if now_us < start_us:
            until_us = min(until_us, start_us)
        elif now_us < end_us:
            until_us = min(until_us, end_us)
            ends_us = max(ends_us, end_us)
    return ends_us, until_us


def hours_of(calendar: Calendar, day: int) -> SessionHours | None:
    """The opening that starts on a local day: its exception if it has one, else its weekday's."""
    for exception, hours in calendar.exceptions:
        if exception == day:
            return hours
    return calendar.weekly[(day + THURSDAY) % 7]
