"""Times of day in New York, in which US recordings tell the time, as microseconds since 1970."""

from datetime import date, datetime, time
from zoneinfo import ZoneInfo

from gateway.feeds.ticks import e9

NEW_YORK = ZoneInfo("America/New_York")


def midnight_us(day: date) -> int:
    """When this day began in New York."""
    return round(datetime.combine(day, time(), NEW_YORK).timestamp()) * 1_000_000


def day_of(text: str) -> date:
    """20131007 or 2012-06-21.

    Raises:
        ValueError: not a date.
    """
    return date.fromisoformat(text)


def us_after_midnight(text: str, units_us: int) -> int:
    """A time of day in seconds (units_us 1,000,000) or milliseconds (1,000), rounded down.

    Raises:
        ValueError: not a plain decimal.
    """
    whole, _, fraction = text.partition(".")
    # One row in a sample day has 12 decimals: what is below a nanosecond is cut off.
    return e9(f"{whole}.{fraction[:9]}") * units_us // 1_000_000_000
