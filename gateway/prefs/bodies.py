"""Alerts as the API takes and gives them: prices as decimal strings, only the fields that the condition has."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.feeds.ticks import decimal_text
from gateway.prefs.alert import COOLDOWN_S_MIN, HYSTERESIS_BPS, MOVES, Condition, SymbolOfAlert, Terms, check, price_e9
from gateway.prefs.errors import InvalidAlert
from gateway.prefs.service import Alert


class AlertBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What is put under `/v1/alerts/{alert_id}`: {"symbol": "AAPL", "condition": "above", "price": "200"}, or
    {"symbol": "AAPL", "condition": "moves", "move_bps": 200, "window_s": 300}."""

    symbol: SymbolOfAlert
    condition: Condition
    price: Annotated[str, Meta(max_length=32)] | UnsetType = UNSET
    move_bps: int | UnsetType = UNSET
    window_s: int | UnsetType = UNSET
    repeat: bool = False
    hysteresis_bps: int = HYSTERESIS_BPS
    cooldown_s: int = COOLDOWN_S_MIN
    note: Annotated[str, Meta(max_length=80)] = ""

    def terms(self) -> Terms:
        """Raises InvalidAlert, naming the field."""
        moves = self.condition in MOVES
        for field, value, belongs in (
            ("price", self.price, not moves),
            ("move_bps", self.move_bps, moves),
            ("window_s", self.window_s, moves),
        ):
            if (value is UNSET) is belongs:
                word = "is missing" if belongs else "does not belong"
                raise InvalidAlert(f"{field} {word} where the condition is {self.condition.value!r}", field=field)
        return check(
            Terms(
                self.symbol,
                self.condition,
                price_e9=0 if isinstance(self.price, UnsetType) else price_e9(self.price),
                move_bps=0 if isinstance(self.move_bps, UnsetType) else self.move_bps,
                window_s=0 if isinstance(self.window_s, UnsetType) else self.window_s,
                repeat=self.repeat,
                hysteresis_bps=self.hysteresis_bps,
                cooldown_s=self.cooldown_s,
                note=self.note,
            )
        )


def alert_body(alert: Alert) -> dict[str, Any]:
    """What is answered: the body that was put, and what became of it."""
    terms = alert.terms
    found: dict[str, Any] = {"alert_id": alert.alert_id, "symbol": terms.symbol, "condition": terms.condition.value}
    if terms.condition in MOVES:
        found |= {"move_bps": terms.move_bps, "window_s": terms.window_s}
    else:
        found["price"] = decimal_text(terms.price_e9)
    found |= {
        "repeat": terms.repeat,
        "hysteresis_bps": terms.hysteresis_bps,
        "cooldown_s": terms.cooldown_s,
        "note": terms.note,
        "armed": alert.armed,
        "fired": alert.fired,
        "written_at_ms": alert.written_at_ms,
    }
    if alert.fired:
        found["fired_at_us"] = alert.fired_at_us
        if terms.condition in MOVES:
            found["fired_move_bps"] = alert.fired_value
        else:
            found["fired_price"] = decimal_text(alert.fired_value)
    return found
