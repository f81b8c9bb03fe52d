"""Which channels a notice takes, and when: the user's choice of channels, quiet hours, and which fills are told."""

from datetime import UTC, datetime, time, timedelta, tzinfo

from msgspec import Struct

from gateway.notify.notice import Kind, Notice
from gateway.prefs.fields import Channel, FillNotices, Preferences, QuietHours, Weekday, zone

DISTURBING = frozenset({Channel.email, Channel.sms, Channel.push})
"""Held back in quiet hours. A webhook is a program, and a WebSocket is open because someone looks."""
SECOND_US = 1_000_000


class Planned(Struct, frozen=True):
    channel: Channel
    not_before_us: int


def wanted(preferences: Preferences, notice: Notice) -> tuple[Channel, ...]:
    """The channels that the user chose for this kind, with an address where one is needed."""
    if notice.kind is Kind.order_fill:
        complete = bool(notice.details.get("complete"))
        match preferences.fill_notices:
            case FillNotices.none:
                return ()
            case FillNotices.complete if not complete:
                return ()
        chosen = preferences.fill_channels
    else:
        chosen = preferences.alert_channels
    return tuple(channel for channel in chosen if reachable(preferences, channel))


def reachable(preferences: Preferences, channel: Channel) -> bool:
    match channel:
        case Channel.websocket:
            return True
        case Channel.webhook:
            # Unsigned messages could be anyone's.
            return preferences.webhook_url is not None and preferences.webhook_secret is not None
        case Channel.email:
            return preferences.email is not None
        case Channel.sms:
            return preferences.phone is not None
        case Channel.push:
            return preferences.push_token is not None


def plan(preferences: Preferences, notice: Notice, now_us: int) -> list[Planned]:
    """What goes to the outbox: all wanted channels but the WebSocket, each with its earliest time."""
    quiet_until_us = quiet_until(preferences, now_us)
    return [
        Planned(channel, quiet_until_us if channel in DISTURBING else now_us)
        for channel in wanted(preferences, notice)
        if channel is not Channel.websocket
    ]


def quiet_until(preferences: Preferences, now_us: int) -> int:
    """When the quiet hours that hold now end; now_us where none do."""
    hours = preferences.quiet_hours
    if hours is None:
        return now_us
    try:
        where = zone(preferences.time_zone)
    except ValueError:  # a zone that this machine does not know
        where = UTC
    now = datetime.fromtimestamp(now_us / SECOND_US, UTC)
    for days_back in (0, 1):
        start, end = _span(hours, now.astimezone(where) - timedelta(days=days_back), where)
        if _on(hours, start) and start <= now < end:
            return round(end.timestamp() * SECOND_US)
    return now_us


def _on(hours: QuietHours, start: datetime) -> bool:
    return not hours.days or list(Weekday)[start.weekday()] in hours.days


def _span(hours: QuietHours, day: datetime, where: tzinfo) -> tuple[datetime, datetime]:
    start, end = time.fromisoformat(hours.start), time.fromisoformat(hours.end)
    last = day.date() + timedelta(days=1) if end <= start else day.date()
    # Times that a change of the clocks skips or repeats are read by Python's rule: the offset before the change.
    return datetime.combine(day.date(), start, where), datetime.combine(last, end, where)
