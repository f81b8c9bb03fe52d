"""Which channels a notice takes, and when: tables of quiet hours, zones, days, and which fills are told."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs

from gateway.notify.notice import Kind, Notice
from gateway.notify.policy import plan, quiet_until, wanted
from gateway.prefs.fields import Channel, FillNotices, Preferences, QuietHours, Weekday

C = Channel
EVERY = tuple(Channel)
ALERT = Notice("a", "ann", Kind.price_alert, 0, "AAPL above 200", {})
PART = Notice("p", "ann", Kind.order_fill, 0, "buy 1 AAPL", {"complete": False})
LAST = Notice("l", "ann", Kind.order_fill, 0, "buy 1 AAPL", {"complete": True})
REACHED = Preferences(
    alert_channels=EVERY,
    fill_channels=EVERY,
    email="ann@example.com",
    phone="+436601234567",
    push_token="t" * 9,
    webhook_url="https://hooks.example.com/",
    webhook_secret="s" * 16,
)


def at(text: str, zone: str = "UTC") -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1_000_000)


def quiet(start: str, end: str, zone: str = "UTC", days: tuple[Weekday, ...] = ()) -> Preferences:
    return structs.replace(REACHED, quiet_hours=QuietHours(start, end, days), time_zone=zone)


NIGHT = quiet("22:00", "07:00")
LUNCH = quiet("12:00", "13:00")
# 2026-11-20 is a Friday.
FRIDAYS = quiet("22:00", "07:00", days=(Weekday.fri,))
AUCKLAND = quiet("06:00", "08:00", "Pacific/Auckland")  # 13 hours ahead in summer
VIENNA = quiet("22:00", "07:00", "Europe/Vienna")

ROWS = [
    (NIGHT, "2026-11-20T21:59:59", None),
    (NIGHT, "2026-11-20T22:00:00", "2026-11-21T07:00:00"),
    (NIGHT, "2026-11-20T23:59:59", "2026-11-21T07:00:00"),
    (NIGHT, "2026-11-20T00:00:00", "2026-11-20T07:00:00"),
    (NIGHT, "2026-11-20T06:59:59", "2026-11-20T07:00:00"),
    (NIGHT, "2026-11-20T07:00:00", None),
    (LUNCH, "2026-11-20T11:59:59", None),
    (LUNCH, "2026-11-20T12:30:00", "2026-11-20T13:00:00"),
    (LUNCH, "2026-11-20T13:00:00", None),
    (FRIDAYS, "2026-11-20T23:00:00", "2026-11-21T07:00:00"),
    (FRIDAYS, "2026-11-21T01:00:00", "2026-11-21T07:00:00"),
    (FRIDAYS, "2026-11-20T01:00:00", None),
    (FRIDAYS, "2026-11-21T23:00:00", None),
    (VIENNA, "2026-11-20T20:59:59", None),
    (VIENNA, "2026-11-20T21:00:00", "2026-11-21T06:00:00"),
    (VIENNA, "2026-07-20T20:00:00", "2026-07-21T05:00:00"),
    (AUCKLAND, "2026-11-19T17:30:00", "2026-11-19T19:00:00"),
    (REACHED, "2026-11-20T23:00:00", None),
]


@pytest.mark.parametrize(("preferences", "now", "until"), ROWS)
def test_quiet_hours(preferences: Preferences, now: str, until: str | None) -> None:
    assert quiet_until(preferences, at(now)) == at(until or now)


def test_the_night_that_clocks_change_ends_at_seven() -> None:
    # 2026-10-25 03:00 is set back to 02:00 in Vienna.
    now = at("2026-10-25T01:00:00", "Europe/Vienna")
    assert quiet_until(VIENNA, now) == at("2026-10-25T07:00:00", "Europe/Vienna")


def test_a_zone_that_is_not_known_here_is_utc() -> None:
    lost = structs.replace(NIGHT, time_zone="Mars/Olympus")
    assert quiet_until(lost, at("2026-11-20T23:00:00")) == at("2026-11-21T07:00:00")


def test_quiet_hours_hold_back_what_disturbs() -> None:
    now = at("2026-11-20T23:00:00")
    planned = {each.channel: each.not_before_us for each in plan(NIGHT, ALERT, now)}
    later = at("2026-11-21T07:00:00")
    assert planned == {C.webhook: now, C.email: later, C.sms: later, C.push: later}
    assert C.websocket in wanted(NIGHT, ALERT)


@pytest.mark.parametrize(
    ("missing", "channel"),
    [
        ("email", C.email),
        ("phone", C.sms),
        ("push_token", C.push),
        ("webhook_url", C.webhook),
        ("webhook_secret", C.webhook),
    ],
)
def test_a_channel_without_its_address_is_not_taken(missing: str, channel: Channel) -> None:
    assert wanted(REACHED, ALERT) == EVERY
    assert set(wanted(structs.replace(REACHED, **{missing: None}), ALERT)) == set(EVERY) - {channel}


FILLS = [
    (FillNotices.each, PART, True),
    (FillNotices.each, LAST, True),
    (FillNotices.complete, PART, False),
    (FillNotices.complete, LAST, True),
    (FillNotices.none, PART, False),
    (FillNotices.none, LAST, False),
]


@pytest.mark.parametrize(("choice", "notice", "told"), FILLS)
def test_which_fills_are_told(choice: FillNotices, notice: Notice, told: bool) -> None:
    preferences = structs.replace(REACHED, fill_notices=choice)
    assert bool(wanted(preferences, notice)) == told
    assert wanted(preferences, ALERT) == EVERY


def test_alerts_and_fills_have_their_own_channels() -> None:
    preferences = structs.replace(REACHED, alert_channels=(C.email,), fill_channels=(C.webhook,))
    assert wanted(preferences, ALERT) == (C.email,)
    assert wanted(preferences, PART) == (C.webhook,)
