"""/v1/preferences and /v1/alerts: what users write, at whichever site they are; on disk before the answer."""

import secrets
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from gateway.api import context
from gateway.api.context import CORE, METRICS, TRADER_READS, Age, rfc3339
from gateway.api.errors import SymbolNotFound
from gateway.api.market import known
from gateway.core import Core
from gateway.feeds.ticks import decimal_text
from gateway.prefs import fields
from gateway.prefs.alert import (
    COOLDOWN_S_MIN,
    HYSTERESIS_BPS,
    MOVES,
    NOTE_CHARS_MAX,
    Condition,
    SymbolOfAlert,
    Terms,
    describe,
    price_e9,
)
from gateway.prefs.service import Alert
from node.errors import InvalidField

WRITERS = ("trader",)
_decode_changes = msgspec.json.Decoder(dict[str, Any]).decode


def _age(core: Core) -> Age:
    """Now, while the other site is heard; else when it was last: what was written there since is not here."""
    return Age(core.peers_heard_us())


async def preferences(request: web.Request) -> web.Response:
    """All preferences, with when each that is set was last written."""
    context.only(request, "account")
    return _shown(request, context.account_of(request, *TRADER_READS))


def _shown(request: web.Request, account: str) -> web.Response:
    core = request.app[CORE]
    request.app[METRICS].read("preferences", "hit")
    found = fields.set_at(core.store.document(account))
    body = {
        "account": account,
        "preferences": fields.shown(core.prefs.preferences(account)),
        "set_at": {name: rfc3339(int(at.timestamp() * 1e6)) for name, at in sorted(found.items())},
    }
    return context.respond(request, body, _age(core))


async def change_preferences(request: web.Request) -> web.Response:
    """Set the fields named, unset those that are null, leave the others. The last writer of a field wins."""
    context.only(request, "account")
    account = context.account_of(request, *WRITERS)
    changes = await context.read_body(request, _decode_changes)
    await request.app[CORE].prefs.change(account, changes)
    return _shown(request, account)


# ---- alerts ----


class AlertBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """price: for above and below. move_percent, window_s: for moves, rises and falls."""

    symbol: SymbolOfAlert
    condition: Condition
    price: Annotated[str, Meta(max_length=40)] | None = None
    move_percent: Decimal | None = None
    window_s: int | None = None
    repeat: bool = False
    hysteresis_bps: int = HYSTERESIS_BPS
    cooldown_s: int = COOLDOWN_S_MIN
    note: Annotated[str, Meta(max_length=NOTE_CHARS_MAX)] = ""


_decode_alert = msgspec.json.Decoder(AlertBody).decode


def terms_of(body: AlertBody) -> Terms:
    """Raises InvalidField, InvalidAlert: what is not for this condition, or is not exact."""
    move_bps = 0
    if body.move_percent is not None:
        scaled = body.move_percent * 100
        if not scaled.is_finite() or scaled != scaled.to_integral_value() or abs(scaled) > 10**9:
            raise InvalidField("move_percent: at most two decimals", field="move_percent")
        move_bps = int(scaled)
    wanted, other = ("move_percent", "price") if body.condition in MOVES else ("price", "move_percent")
    if getattr(body, wanted) is None or getattr(body, other) is not None:
        raise InvalidField(f"{body.condition.value} needs {wanted}, and no {other}", field=wanted)
    return Terms(
        body.symbol,
        body.condition,
        price_e9=price_e9(body.price) if body.price is not None else 0,
        move_bps=move_bps,
        window_s=body.window_s or 0,
        repeat=body.repeat,
        hysteresis_bps=body.hysteresis_bps,
        cooldown_s=body.cooldown_s,
        note=body.note,
    )


def alert_row(alert: Alert) -> dict[str, Any]:
    terms = alert.terms
    is_move = terms.condition in MOVES
    value = None
    if alert.fired_value:
        value = f"{alert.fired_value / 100:g}" if is_move else decimal_text(alert.fired_value)
    return {
        "alert_id": alert.alert_id,
        "text": describe(terms),
        "symbol": terms.symbol,
        "condition": terms.condition.value,
        "price": None if is_move else decimal_text(terms.price_e9),
        "move_percent": f"{terms.move_bps / 100:g}" if is_move else None,
        "window_s": terms.window_s or None,
        "repeat": terms.repeat,
        "hysteresis_bps": terms.hysteresis_bps,
        "cooldown_s": terms.cooldown_s,
        "note": terms.note,
        "armed": alert.armed,
        "fired": alert.fired,
        "fired_at": rfc3339(alert.fired_at_us) if alert.fired_at_us else None,
        "fired_value": value,
        "written_at": rfc3339(alert.written_at_ms * 1000),
    }


async def alerts(request: web.Request) -> web.Response:
    context.only(request, "account")
    account = context.account_of(request, *TRADER_READS)
    core = request.app[CORE]
    rows = [alert_row(one) for one in core.prefs.alerts(account)]
    return context.respond(request, {"account": account, "items": rows}, _age(core))


async def alert(request: web.Request) -> web.Response:
    context.only(request, "account")
    account = context.account_of(request, *TRADER_READS)
    core = request.app[CORE]
    return context.respond(request, alert_row(core.prefs.alert(account, request.match_info["alert_id"])), _age(core))


async def put_alert(request: web.Request) -> web.Response:
    """Add it, or replace it under its id; either arms it anew. POST draws an id."""
    context.only(request, "account")
    account = context.account_of(request, *WRITERS)
    core = request.app[CORE]
    body = await context.read_body(request, _decode_alert)
    terms = terms_of(body)
    if not known(core, body.symbol):
        raise SymbolNotFound(f"nothing is known of {body.symbol!r}: nothing would ever fire", field="symbol")
    alert_id = request.match_info.get("alert_id") or secrets.token_hex(8)
    made = await core.prefs.put_alert(account, alert_id, terms)
    return context.respond(request, alert_row(made), _age(core), status=201 if request.method == "POST" else 200)


async def remove_alert(request: web.Request) -> web.Response:
    context.only(request, "account")
    account = context.account_of(request, *WRITERS)
    await request.app[CORE].prefs.remove_alert(account, request.match_info["alert_id"])
    return context.respond(request, {"removed": request.match_info["alert_id"]}, _age(request.app[CORE]))


# ---- dead letters ----


class Letters(Struct, frozen=True, forbid_unknown_fields=True):
    letter_ids: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=1_000)]


_decode_letters = msgspec.json.Decoder(Letters).decode


async def dead_letters(request: web.Request) -> web.Response:
    """What could not be delivered, the newest state of each; no address and no secret is in it."""
    context.only(request, "account", "limit")
    context.allow(request, "operator")
    limit = context.whole(request, "limit", 100, 1, 1_000)
    found = request.app[CORE].dispatcher.dead_letters(limit=limit, user=request.query.get("account"))
    rows = [
        {
            "letter_id": letter.letter_id,
            "account": letter.item.notice.user,
            "channel": letter.item.channel.value,
            "notice_id": letter.item.notice.notice_id,
            "kind": letter.item.notice.kind.value,
            "error": letter.item.error,
            "attempts": letter.item.attempts,
            "made_at": rfc3339(letter.item.made_us),
            "died_at": rfc3339(letter.died_us),
        }
        for letter in found
    ]
    return context.respond(request, {"items": rows}, context.now())


async def redrive(request: web.Request) -> web.Response:
    """Send these again, with all attempts before them."""
    return await _letters(request, "redriven")


async def forget(request: web.Request) -> web.Response:
    """Throw these away."""
    return await _letters(request, "forgotten")


async def _letters(request: web.Request, what: str) -> web.Response:
    context.only(request)
    context.allow(request, "operator")
    letters = await context.read_body(request, _decode_letters)
    dispatcher = request.app[CORE].dispatcher
    work = dispatcher.redrive if what == "redriven" else dispatcher.forget
    return context.respond(request, {what: await work(letters.letter_ids)}, context.now())


_LETTERS = "/v1/notifications/dead-letters"
ROUTES = [
    web.get("/v1/preferences", preferences),
    web.patch("/v1/preferences", change_preferences),
    web.get("/v1/alerts", alerts),
    web.post("/v1/alerts", put_alert),
    web.get("/v1/alerts/{alert_id}", alert),
    web.put("/v1/alerts/{alert_id}", put_alert),
    web.delete("/v1/alerts/{alert_id}", remove_alert),
    web.get(_LETTERS, dead_letters),
    web.post(f"{_LETTERS}/redrive", redrive),
    web.post(f"{_LETTERS}/forget", forget),
]
