"""The command line of gateways: against a real one, as a person or a program would type it."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

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
        found = await tiebreak("watch", "AAPL", "--times", "2", "--every-ms", "100", "--json", site=site)
        assert found.code == 0 and found.out.count('"symbol": "AAPL"') == 2


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
