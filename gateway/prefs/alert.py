"""A price alert as its user states it: "AAPL above 200", "moves 2 % in 5 min"; checked here, once."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from gateway.feeds.ticks import decimal_text, e9
from gateway.prefs.errors import InvalidAlert

PRICE_E9_MAX = 10**18
MOVE_BPS_MAX = 10_000
WINDOWS_S = (60, 300, 900, 3600)
"""Lengths that a move may be asked over; few, so that a symbol keeps few windows."""
HYSTERESIS_BPS = 50
COOLDOWN_S_MIN = 60
COOLDOWN_S_MAX = 86_400
NOTE_CHARS_MAX = 80

ALERT_ID_PATTERN = r"^[A-Za-z0-9_-]{1,32}\Z"
SYMBOL_PATTERN = r"^[A-Z0-9][A-Z0-9._-]{0,15}\Z"

AlertId = Annotated[str, Meta(pattern=ALERT_ID_PATTERN)]


class Condition(StrEnum):
    above = "above"
    below = "below"
    moves = "moves"
    rises = "rises"
    falls = "falls"


MOVES = (Condition.moves, Condition.rises, Condition.falls)


class Terms(Struct, frozen=True, array_like=True):
    """What is watched. Read from disk and from the peer leniently; whoever takes one from a user calls `check`.

    price_e9: for above and below, else 0. move_bps, window_s: for the others, else 0.
    repeat: armed again by itself when the price has gone back by hysteresis_bps and cooldown_s have passed.
    """

    symbol: Annotated[str, Meta(max_length=16)]
    condition: Condition
    price_e9: int = 0
    move_bps: int = 0
    window_s: int = 0
    repeat: bool = False
    hysteresis_bps: int = HYSTERESIS_BPS
    cooldown_s: int = COOLDOWN_S_MIN
    note: Annotated[str, Meta(max_length=NOTE_CHARS_MAX)] = ""


SymbolOfAlert = Annotated[str, Meta(pattern=SYMBOL_PATTERN)]


def check(terms: Terms) -> Terms:
    """The same terms, when they hold together. Raises InvalidAlert, naming the field."""
    for field, least, most in (
        ("hysteresis_bps", 0, MOVE_BPS_MAX),
        ("cooldown_s", COOLDOWN_S_MIN, COOLDOWN_S_MAX),
        *_bounds(terms),
    ):
        value = getattr(terms, field)
        if not least <= value <= most:
            raise InvalidAlert(
                f"{field} = {value}: must be between {least} and {most} for {terms.condition.value!r}", field=field
            )
    if terms.condition in MOVES and terms.window_s not in WINDOWS_S:
        raise InvalidAlert(f"window_s = {terms.window_s}: one of {', '.join(map(str, WINDOWS_S))}", field="window_s")
    if any(not char.isprintable() for char in terms.note):
        raise InvalidAlert("note: printable characters only", field="note")
    return terms


def _bounds(terms: Terms) -> tuple[tuple[str, int, int], ...]:
    if terms.condition in MOVES:
        return ("price_e9", 0, 0), ("move_bps", 1, MOVE_BPS_MAX), ("window_s", WINDOWS_S[0], WINDOWS_S[-1])
    return ("price_e9", 1, PRICE_E9_MAX), ("move_bps", 0, 0), ("window_s", 0, 0)


def price_e9(text: str) -> int:
    """The price in a decimal string like "200.05". Raises InvalidAlert: no such price, or not exact."""
    try:
        return e9(text)
    except ValueError as error:
        raise InvalidAlert(f"price {text[:40]!r}: {error}", field="price") from error


def describe(alert: Terms) -> str:
    """ "AAPL above 200", "AAPL moves 2 % in 5 min": for people."""
    if alert.condition in MOVES:
        percent = f"{alert.move_bps / 100:g}"
        return f"{alert.symbol} {alert.condition.value} {percent} % in {alert.window_s // 60} min"
    return f"{alert.symbol} {alert.condition.value} {decimal_text(alert.price_e9)}"
