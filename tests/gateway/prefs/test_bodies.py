"""Alerts as JSON: what is put comes back, and each refusal names its field."""

from typing import Any

import msgspec
import pytest
from msgspec import structs

from gateway.prefs.bodies import AlertBody, alert_body
from gateway.prefs.errors import InvalidAlert
from gateway.prefs.service import Alert

ABOVE = {"symbol": "AAPL", "condition": "above", "price": "200.05"}
MOVES = {"symbol": "AAPL", "condition": "moves", "move_bps": 200, "window_s": 300}
REST = {"repeat": True, "hysteresis_bps": 30, "cooldown_s": 90, "note": "sell"}


def body(fields: dict[str, Any]) -> AlertBody:
    return msgspec.json.decode(msgspec.json.encode(fields), type=AlertBody)


@pytest.mark.parametrize("put", [ABOVE | REST, MOVES | REST])
def test_what_is_put_comes_back(put: dict[str, Any]) -> None:
    alert = Alert("x", body(put).terms(), True, 0, 0, 0, 7)
    rest = {"alert_id": "x", "armed": True, "fired": 0, "written_at_ms": 7}
    assert alert_body(alert) == put | rest
    fired = structs.replace(alert, fired=1, fired_at_us=9, fired_value=201_000_000_000)
    said = alert_body(fired)
    assert said["fired_at_us"] == 9
    if "price" in put:
        assert said["fired_price"] == "201"
    else:
        assert said["fired_move_bps"] == 201_000_000_000


ROWS = [
    (ABOVE, {}, ""),
    (MOVES, {}, ""),
    (ABOVE, {"move_bps": 200}, "move_bps"),
    (ABOVE, {"window_s": 300}, "window_s"),
    (MOVES, {"price": "200"}, "price"),
    (ABOVE, {"price": None}, "price"),
    (MOVES, {"move_bps": None}, "move_bps"),
    (MOVES, {"window_s": None}, "window_s"),
    (MOVES, {"window_s": 61}, "window_s"),
    (ABOVE, {"price": "0"}, "price_e9"),
    (ABOVE, {"price": "-1"}, "price"),
    (ABOVE, {"cooldown_s": 1}, "cooldown_s"),
]


@pytest.mark.parametrize(("base", "change", "field"), ROWS)
def test_each_refusal_names_its_field(base: dict[str, Any], change: dict[str, Any], field: str) -> None:
    put = body({name: value for name, value in (base | change).items() if value is not None})
    if not field:
        put.terms()
        return
    with pytest.raises(InvalidAlert) as caught:
        put.terms()
    assert caught.value.field == field


@pytest.mark.parametrize("change", [{"symbol": "aapl"}, {"condition": "near"}, {"price": 200}, {"colour": "red"}])
def test_what_is_no_alert_is_not_decoded(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        body(ABOVE | change)
