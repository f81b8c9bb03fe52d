"""The command line of gateways: against a real one, as a person or a program would type it."""

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gateway.cli.watching import Watching
from gateway.tasks import end
from tests.gateway.api.sites import Site, market, sites, trades, until
from tests.node.solo import token


class Said:
    def __init__(self, code: int | None, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def body(self) -> Any:
        return json.loads(self.out)


async def tiebreak(*words: str, site: Site | None = None, bearer: str = "") -> Said:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIEBREAK_")}
    environment |= {"COLUMNS": "160"}
    if site is not None:
        environment |= {"TIEBREAK_GATEWAY": site.url, "TIEBREAK_TOKEN": bearer or token("trader", "anna")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli.main", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Said(process.returncode, out.decode(), err.decode())


async def test_prices() -> None:
    async with sites("http://127.0.0.1:9") as (site,):
        site.quote("AAPL", "189.98", "190.02")
        site.trade("AAPL", "190.01")
        found = await tiebreak("quote", "AAPL", site=site)
        assert found.code == 0 and "189.98" in found.out and "190.02" in found.out and " old" in found.err
        found = await tiebreak("quote", "AAPL", "NOPE", "--json", site=site)
        assert (found.code, found.body["items"][0]["last"], found.body["unknown"]) == (1, "190.01", ["NOPE"])
        found = await tiebreak("quote", "NOPE", site=site)
        assert found.code == 1 and "symbol_not_found" in found.err
        found = await tiebreak("candles", "AAPL", "--interval", "5m", "--json", site=site)
        assert (found.code, found.body["items"][0]["close"]) == (0, "190.01")
        found = await tiebreak("candles", "AAPL", "--start", "soon", site=site)
        assert found.code == 1 and "start must be a time" in found.err


async def moving(site: Site) -> None:
    """A price that moves, until cancelled."""
    for step in itertools.count():
        site.quote("AAPL", f"{100 + step % 50}.00", f"{150 + step % 50}.00")
        site.trade("AAPL", f"{125 + step % 10}")
        await asyncio.sleep(0.02)


async def test_watch_prints_a_line_per_update_with_its_age(tmp_path: Path) -> None:
    async with market(tmp_path) as (_, (site,)):
        prices = asyncio.create_task(moving(site))
        found = await tiebreak("watch", "AAPL", "--times", "4", "--json", site=site)
        await end(prices)
        lines = [json.loads(line) for line in found.out.splitlines()]
        assert (found.code, len(lines)) == (0, 4), found.err
        assert len({(line["bid"], line["last"]) for line in lines}) > 1
        assert all(0 <= line["age_ms"] < 10_000 and line["gateway"] == site.url for line in lines)
        found = await tiebreak("watch", "NOPE", site=site)
        assert found.code == 1 and "symbol_not_found" in found.err and "NOPE" in found.err
        found = await tiebreak("watch", "AAPL", site=site, bearer="nonsense")
        assert found.code == 1 and "unauthenticated" in found.err
        found = await tiebreak("watch", "AAPL", "--gateway", "http://127.0.0.1:9", "--token", "x")
        assert found.code == 4 and "no gateway answered" in found.err


async def test_watch_goes_on_at_the_other_gateway_when_one_leaves(tmp_path: Path) -> None:
    async with market(tmp_path, count=2) as (_, (one, other)):
        told: list[str] = []
        watching = Watching(
            [one.url, other.url], ["AAPL"],
            token=lambda: token("trader", "anna"), renewed=True, tls=lambda _url: None, on_talk=told.append,
        )  # fmt: skip
        for site in (one, other):
            site.quote("AAPL", "100.00", "101.00")
        running = asyncio.create_task(watching.run())
        await until(lambda: watching.rows["AAPL"].quote.get("bid") == "100")
        assert watching.gateway == one.url and 0 <= watching.age_ms() < 10_000
        assert one.app.server is not None
        await one.app.server.drain(timeout_ms=50)
        await until(lambda: watching.gateway == other.url)
        other.quote("AAPL", "102.00", "103.00")
        await until(lambda: watching.rows["AAPL"].quote["bid"] == "102")
        assert one.url in told[0] and "leaves" in told[0]
        await end(running)


async def test_watch_waits_as_long_as_the_only_gateway_says_and_comes_back(tmp_path: Path) -> None:
    async with market(tmp_path, limits="admitted_per_s = 1") as (_, (site,)):
        site.quote("AAPL", "100.00", "101.00")
        assert site.app.server is not None and site.app.server.admission.admit() == 0.0
        told: list[str] = []
        watching = Watching(
            [site.url], ["AAPL"],
            token=lambda: token("trader", "anna"), renewed=True, tls=lambda _url: None, on_talk=told.append,
        )  # fmt: skip
        began_s = time.monotonic()
        running = asyncio.create_task(watching.run())
        await until(lambda: watching.gateway == site.url, within_s=10)
        assert time.monotonic() - began_s > 0.9 and len(told) == 1 and "503" in told[0]
        await end(running)


async def test_an_account(tmp_path: Path) -> None:
    async with market(tmp_path) as (solo, (site,)):
        await trades(solo)
        await site.reaches(solo.log.index)
        site.quote("AAPL-USD", "99.99", "100.01")
        found = await tiebreak("portfolio", "anna", site=site)
        assert found.code == 0 and "99000" in found.out and "1010" in found.out and "equity" in found.err
        found = await tiebreak("portfolio", "anna", "--json", site=site)
        assert found.body["cash"][0]["total"] == "99000"
        found = await tiebreak("portfolio", "bert", site=site)
        assert found.code == 1 and "account_not_found" in found.err

        found = await tiebreak("prefs", "set", "anna", "display_currency=EUR", "leaderboard_name=Anna B", site=site)
        assert found.code == 0 and "EUR" in found.out
        found = await tiebreak("prefs", "set", "anna", 'fill_channels=["websocket","email"]', "language=", site=site)
        assert found.code == 0
        found = await tiebreak("prefs", "show", "anna", "--json", site=site)
        shown = found.body["preferences"]
        assert (shown["display_currency"], shown["fill_channels"], shown["language"]) == (
            "EUR",
            ["websocket", "email"],
            "en",
        )
        found = await tiebreak("prefs", "set", "anna", "email", site=site)
        assert found.code == 1 and "NAME=VALUE" in found.err
        found = await tiebreak("prefs", "set", "anna", "email=nobody", site=site)
        assert found.code == 1 and "invalid_field (email)" in found.err

        await site.core.leaderboard.rank()
        found = await tiebreak("leaderboard", "--period", "all", site=site)
        assert found.code == 0 and "Anna B" in found.out


async def test_alerts() -> None:
    async with sites("http://127.0.0.1:9") as (site,):
        site.quote("AAPL", "1", "2")
        account = ("--account", "anna")
        found = await tiebreak("alerts", "add", "AAPL", "--above", "200", "--id", "first", *account, site=site)
        assert (found.code, found.out.split()) == (0, ["first", "AAPL", "above", "200"])
        found = await tiebreak("alerts", "add", "AAPL", "--moves", "2", "--within", "15", *account, site=site)
        assert found.code == 0 and "AAPL moves 2 % in 15 min" in found.out
        found = await tiebreak("alerts", "add", "AAPL", "--above", "1", "--below", "2", *account, site=site)
        assert found.code == 1 and "one of --above" in found.err
        site.trade("AAPL", "201")
        await until(lambda: site.core.prefs.alert("anna", "first").fired == 1)
        found = await tiebreak("alerts", "list", *account, "--json", site=site)
        assert {one["alert_id"]: one["armed"] for one in found.body["items"]}["first"] is False
        found = await tiebreak("alerts", "rm", "first", *account, site=site)
        assert (found.code, found.out.strip()) == (0, "removed first")
        found = await tiebreak("alerts", "rm", "first", *account, site=site)
        assert found.code == 1 and "not_found" in found.err


async def test_nobody_there_and_nowhere_to_ask(tmp_path: Path) -> None:
    found = await tiebreak("quote", "AAPL", "--gateway", "http://127.0.0.1:9", "--token", "x")
    assert found.code == 4 and "no gateway answered" in found.err and "tiebreak up" in found.err
    found = await tiebreak("quote", "AAPL", "--cluster", str(tmp_path / "none"))
    assert found.code == 1 and "no cluster in" in found.err
    found = await tiebreak("gateway", "dc-z", "--cluster", str(tmp_path))
    assert found.code == 1 and "neither a file nor a gateway" in found.err


async def test_a_recording_is_played(tmp_path: Path) -> None:
    path = tmp_path / "kraken-book-BTC-USD.jsonl"
    path.write_text("not a recording\n")
    found = await tiebreak("feed", "replay", str(path))
    assert found.code == 1 and "Traceback" not in found.err and "error:" in found.err
    found = await tiebreak("feed", "replay", str(tmp_path / "none.jsonl"))
    assert found.code == 1 and "none.jsonl" in found.err
