"""/v1/leaderboard: who gained how much, by the names that traders chose; one's own place by one's account."""

from hashlib import blake2b
from typing import Any

from aiohttp import web

from gateway.api import context
from gateway.api.context import CORE, METRICS, TRADER_READS, Age
from gateway.core import Core
from gateway.views.leaderboard import TOP_MAX, Period, Place, Table
from node.errors import NotReady

RANKED = "public, max-age=3"
PERIODS = tuple(str(period) for period in Period)


def shown_name(core: Core, account: str) -> str:
    """What a trader chose to be called; else a word that says nothing of the account and is always the same."""
    chosen = core.prefs.preferences(account).leaderboard_name
    key = core.config.session_key[:32]
    return chosen or "trader-" + blake2b(account.encode(), key=key, digest_size=4).hexdigest()


def _row(core: Core, place: Place) -> dict[str, object]:
    return {"rank": place.rank, "name": shown_name(core, place.account), "return_pct": round(place.return_pct, 4)}


def table_body(core: Core, table: Table, limit: int) -> dict[str, Any]:
    return {
        "period": table.period,
        "currency": core.config.market.currency,
        "ranked": table.ranked,
        "items": [_row(core, place) for place in table.top[:limit]],
    }


async def leaderboard(request: web.Request) -> web.Response:
    """The best of a period. Computed every few seconds; equal returns keep their order."""
    context.only(request, "period", "limit")
    context.allow(request, "trader", "custodian", "operator", "feed", "auditor")
    core = request.app[CORE]
    period = Period(context.word(request, "period", PERIODS, Period.day))
    limit = context.whole(request, "limit", 50, 1, TOP_MAX)
    table = core.leaderboard.tables.get(period)
    request.app[METRICS].read("leaderboard", "miss" if table is None else "hit")
    if table is None or not core.projection.standing.warm:
        raise NotReady("the leaderboard is not computed yet: come back in a moment")
    body = table_body(core, table, limit)
    # It can't be newer than the events that it is made of.
    age = Age(min(table.as_of_us, core.projection.standing.as_of_us))
    return context.respond(request, body, age, cache=RANKED)


async def mine(request: web.Request) -> web.Response:
    """One account's place in all periods; null where it is not ranked: opted out, empty, without prices, or new."""
    context.only(request, "account")
    account = context.account_of(request, *TRADER_READS)
    core = request.app[CORE]
    places = {period: core.leaderboard.place(period, account) for period in Period}
    body = {
        "account": account,
        "name": shown_name(core, account),
        "hidden": core.prefs.hidden_from_leaderboard(account),
        "places": {
            period: {"rank": place.rank, "return_pct": round(place.return_pct, 4)} if place is not None else None
            for period, place in places.items()
        },
    }
    as_of_us = [table.as_of_us for table in core.leaderboard.tables.values()]
    age = Age(min([*as_of_us, core.projection.standing.as_of_us]) if as_of_us else 0)
    return context.respond(request, body, age)


ROUTES = [web.get("/v1/leaderboard", leaderboard), web.get("/v1/leaderboard/me", mine)]
