"""Preferences, alerts and dead letters over HTTP: whose they are, what is refused, what is never shown."""

from pathlib import Path
from typing import Any

from tests.gateway.api.sites import market, sites

NOWHERE = "http://127.0.0.1:9"


async def test_preferences_are_set_unset_and_secrets_are_never_shown() -> None:
    async with sites(NOWHERE) as (site,):
        body = {"language": "de", "webhook_secret": "0123456789abcdef", "webhook_url": "https://example.com/x"}
        changed = await site.ask("/v1/preferences", method="PATCH", body=body)
        shown = changed.body["preferences"]
        assert (shown["language"], shown["webhook_secret"], shown["time_zone"]) == ("de", "********", "UTC")
        assert set(changed.body["set_at"]) == set(body) and changed.headers["Cache-Control"] == "private, no-cache"
        unset = await site.ask("/v1/preferences", method="PATCH", body={"language": None})
        assert unset.body["preferences"]["language"] == "en"


async def test_bodies_are_read_as_a_node_reads_them() -> None:
    async with sites(NOWHERE) as (site,):
        for headers, status in (
            ({"Content_Type": "application/json; charset=utf-16"}, 415),
            ({"Content_Type": "text/plain"}, 415),
            ({"Content_Encoding": "gzip"}, 415),
            ({"Content_Type": "application/json; charset=UTF-8"}, 200),
        ):
            options: Any = headers
            answer = await site.ask("/v1/preferences", method="PATCH", body={"language": "de"}, **options)
            assert answer.status == status, (headers, answer.body)


async def test_what_can_not_be_is_refused_with_its_field() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "1", "2")
        alert = {"symbol": "AAPL", "condition": "above", "price": "200"}
        moves = {"symbol": "AAPL", "condition": "moves", "move_percent": "2", "window_s": 300}
        for path, method, body, status, field in (
            ("/v1/preferences", "PATCH", {"langauge": "de"}, 422, "langauge"),
            ("/v1/preferences", "PATCH", {"email": "nobody"}, 422, "email"),
            ("/v1/preferences", "PATCH", ["language"], 400, ""),
            ("/v1/alerts/a", "PUT", alert | {"price": "-1"}, 422, "price"),
            ("/v1/alerts/a", "PUT", alert | {"price": "0.0000000001"}, 422, "price"),
            ("/v1/alerts/a", "PUT", {"symbol": "AAPL", "condition": "above"}, 422, "price"),
            ("/v1/alerts/a", "PUT", alert | {"move_percent": "2"}, 422, "price"),
            ("/v1/alerts/a", "PUT", moves | {"move_percent": "0.001"}, 422, "move_percent"),
            ("/v1/alerts/a", "PUT", moves | {"window_s": 7}, 422, "window_s"),
            ("/v1/alerts/a", "PUT", alert | {"symbol": "NOPE"}, 404, "symbol"),
            ("/v1/alerts/a", "PUT", alert | {"colour": "red"}, 400, ""),
            ("/v1/alerts/a b", "PUT", alert, 422, "alert_id"),
            ("/v1/alerts/none", "DELETE", None, 404, ""),
        ):  # fmt: skip
            refused = await site.ask(path, method=method, body=body)
            assert (refused.status, refused.body.get("field", "")) == (status, field), (path, body, refused.body)
            assert refused.body["code"] // 100_000 == status


async def test_an_alert_is_added_shown_replaced_and_removed() -> None:
    async with sites(NOWHERE) as (site,):
        site.quote("AAPL", "1", "2")
        moves = {"symbol": "AAPL", "condition": "moves", "move_percent": "2.5", "window_s": 300}
        made = await site.ask("/v1/alerts", method="POST", body=moves)
        assert (made.status, made.body["text"]) == (201, "AAPL moves 2.5 % in 5 min")
        path = f"/v1/alerts/{made.body['alert_id']}"
        changed = await site.ask(path, method="PUT", body={"symbol": "AAPL", "condition": "below", "price": "1.5"})
        assert changed.body["price"] == "1.5" and (await site.ask(path)).body == changed.body
        assert [one["alert_id"] for one in (await site.ask("/v1/alerts")).body["items"]] == [made.body["alert_id"]]
        assert (await site.ask(path, method="DELETE")).status == 200
        assert (await site.ask("/v1/alerts")).body["items"] == []
        above = {"symbol": "AAPL", "condition": "above", "price": "9"}
        for number in range(101):
            found = await site.ask(f"/v1/alerts/n{number}", method="PUT", body=above)
        assert (found.status, found.body["error"]) == (422, "too_many_alerts")


async def test_nobody_reaches_anothers_things(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        for path in (
            "/v1/portfolio",
            "/v1/preferences",
            "/v1/alerts",
            "/v1/history/trades",
            "/v1/export",
            "/v1/leaderboard/me",
        ):
            other = await site.ask(f"{path}?account=bert")
            nobody = await site.ask(f"{path}?account=nobody", accounts=("anna",))
            assert (other.status, other.body["error"]) == (404, "account_not_found"), path
            assert other.body["message"] == nobody.body["message"]
            several = await site.ask(path, accounts=("anna", "bert"))
            assert (several.status, several.body["field"]) == (422, "account"), path
            assert (await site.ask(path, bearer="")).status == 401
            assert (await site.ask(path, bearer="no.such.token")).status == 401
        # Whoever reads everything changes nothing.
        for path, method in (("/v1/preferences?account=anna", "PATCH"), ("/v1/alerts?account=anna", "POST")):
            refused = await site.ask(path, method=method, role="auditor", accounts=(), body={})
            assert (refused.status, refused.body["error"]) == (403, "forbidden")


async def test_dead_letters_are_for_operators() -> None:
    async with sites(NOWHERE) as (site,):
        path = "/v1/notifications/dead-letters"
        assert (await site.ask(path)).status == 403
        found = await site.ask(path, role="operator", accounts=())
        assert (found.status, found.body) == (200, {"items": []})
        for what, word in (("redrive", "redriven"), ("forget", "forgotten")):
            done = await site.ask(
                f"{path}/{what}", method="POST", role="operator", accounts=(), body={"letter_ids": ["00"]}
            )
            assert done.body == {word: 0}
