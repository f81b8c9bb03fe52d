"""The demo's second half: two gateways beside the members, what they serve, and what is left when a cache dies."""

import asyncio
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.running import RunError, Running

DEADLINE_S = 30.0
TIMEOUT_S = 5.0
POLL_S = 0.05
UPDATES_PER_S = 100


class Shown(Struct, frozen=True):
    """One thing that was to be shown: whether it was so, and in words."""

    name: str
    text: str
    ok: bool


class Said(Struct, frozen=True):
    status: int
    body: Any
    age_ms: int
    index: int


class Gateways:
    """The gateways of a cluster that is up. Everything here waits; run it in a thread."""

    def __init__(self, cluster: Running, symbol: str, price: Decimal) -> None:
        self.cluster = cluster
        self.symbol = symbol
        self.shown: list[Shown] = []
        self._price = price
        self._tokens: dict[tuple[str, str], str] = {}
        self._urls = {
            name: f"http://{place.api_host}:{place.api_port}" for name, place in cluster.launcher.gateways.items()
        }

    def start(self) -> None:
        """Start both, with venues that quote what the demo trades, near its price. Raises LaunchError."""
        launcher = self.cluster.launcher
        for name in launcher.gateways:
            _write_feed(self.cluster.folder.config(name), self.symbol, self._price)
        for name in launcher.gateways:
            launcher.start(name, die_with_us=True)
        launcher.wait_ready(launcher.gateways)

    # ---- asking ----

    def _token(self, role: str, account: str = "") -> str:
        key = role, account
        if key not in self._tokens:
            self._tokens[key] = self.cluster.token(role, (account,) if account else ())
        return self._tokens[key]

    def ask(
        self, url: str, path: str, *, role: str = "auditor", account: str = "", method: str = "GET", body: object = None
    ) -> Said:
        """Raises RunError: nobody answers."""
        request = urllib.request.Request(
            url + path,
            method=method,
            data=None if body is None else msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {self._token(role, account)}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                headers = response.headers
                age_ms, index = int(headers.get("X-Staleness-Ms", -1)), int(headers.get("X-Log-Index", 0))
                return Said(response.status, msgspec.json.decode(response.read()), age_ms, index)
        except urllib.error.HTTPError as error:
            return Said(error.code, msgspec.json.decode(error.read()), -1, 0)
        except OSError as error:
            raise RunError(f"{url}{path}: {error}") from error

    def _until(self, asked: Callable[[], Said], holds: Callable[[Said], bool]) -> tuple[Said, float]:
        """The first answer for which it holds, else the last one; and how long that took, in milliseconds."""
        began = time.monotonic()
        while True:
            said = asked()
            passed_s = time.monotonic() - began
            if holds(said) or passed_s > DEADLINE_S:
                return said, passed_s * 1e3
            time.sleep(POLL_S)

    def _show(self, name: str, text: str, ok: bool) -> None:
        self.shown.append(Shown(name, text, ok))

    # ---- what is shown ----

    def show_all(self, account: str) -> None:
        """Each step says what it found; none stops the others."""
        for step in (
            self.quotes, lambda: self.portfolio(account), lambda: self.preference(account),
            lambda: self.alert(account), self.leaderboard, self.cache_gone,
        ):  # fmt: skip
            step()

    def quotes(self) -> None:
        ages = []
        for name, url in self._urls.items():
            path = f"/v1/market/quotes?symbols={self.symbol}"
            said, _ = self._until(
                lambda url=url, path=path: self.ask(url, path),  # type: ignore[misc]
                lambda said: said.status == 200 and not said.body["items"][0]["stale"],
            )
            row = said.body["items"][0] if said.status == 200 else {}
            is_fresh = bool(row) and not row["stale"]
            ages.append((is_fresh, f"{name} {row.get('bid')} / {row.get('ask')}, {said.age_ms} ms old"))
        self._show("quote, with its age", "; ".join(text for _, text in ages), all(ok for ok, _ in ages))

    def portfolio(self, account: str) -> None:
        """The same cash and shares, held ones too, at an index that is no older than the node's answer."""
        node = self.cluster.url(self.cluster.replicas[0])
        asked = self.ask(node, f"/v1/accounts/{account}")
        wanted = {
            one["asset"]: (Decimal(one["available"]) + Decimal(one["held"]), Decimal(one["held"]))
            for one in asked.body["balances"]
        }
        results = []
        for name, url in self._urls.items():
            said, _ = self._until(
                lambda url=url: self.ask(url, f"/v1/portfolio?account={account}"),  # type: ignore[misc]
                lambda said: said.status == 200 and said.index >= asked.index,
            )
            found = {} if said.status != 200 else _owned(said.body)
            results.append((found == wanted, f"{name} at index {said.index:,}"))
        text = f"{account} equals the node's at index {asked.index:,}: " + ", ".join(text for _, text in results)
        self._show("portfolio", text, all(ok for ok, _ in results))

    def preference(self, account: str) -> None:
        here, there = list(self._urls.values())
        path = f"/v1/preferences?account={account}"
        body = {"display_currency": "EUR", "leaderboard_name": "Demo Desk"}
        written = self.ask(here, path, role="trader", account=account, method="PATCH", body=body)
        said, took_ms = self._until(
            lambda: self.ask(there, path, role="trader", account=account),
            lambda said: said.status == 200 and said.body["preferences"]["display_currency"] == "EUR",
        )
        ok = written.status == said.status == 200 and said.body["preferences"]["display_currency"] == "EUR"
        self._show("preference", f"set at one site, read at the other {took_ms:.0f} ms later", ok)

    def alert(self, account: str) -> None:
        here, there = list(self._urls.values())
        path = f"/v1/alerts/demo?account={account}"
        low = str((self._price / 2).quantize(Decimal("0.01")))
        body = {"symbol": self.symbol, "condition": "above", "price": low}
        self.ask(here, path, role="trader", account=account, method="PUT", body=body)
        said, took_ms = self._until(
            lambda: self.ask(there, path, role="trader", account=account),
            lambda said: said.status == 200 and said.body["fired"] > 0,
        )
        ok = said.status == 200 and said.body["fired"] == 1
        text = said.body.get("text", "")
        self._show(
            "alert", f"{text!r}: fired at {said.body.get('fired_value')}, known at both after {took_ms:.0f} ms", ok
        )

    def leaderboard(self) -> None:
        url = next(iter(self._urls.values()))
        said, _ = self._until(
            lambda: self.ask(url, "/v1/leaderboard?period=all"),
            lambda said: said.status == 200 and said.body["ranked"] > 1,
        )
        ok = said.status == 200 and said.body["ranked"] > 1
        first = said.body["items"][0] if ok else {}
        text = f"{said.body.get('ranked')} ranked; first {first.get('name')}, {first.get('return_pct')} %"
        self._show("leaderboard", f"{text}, {said.age_ms / 1000:.1f} s old", ok)

    def cache_gone(self) -> None:
        """Kill one gateway's cache server: it goes on from memory, and says so."""
        name, url = next(iter(self._urls.items()))
        pid = _cache_pid(self.cluster.folder.log(name))
        os.kill(pid, signal.SIGKILL)
        said, took_ms = self._until(
            lambda: self.ask(url, "/v1/gateway"), lambda said: str(said.body.get("cache", "")).startswith("away")
        )
        quote = self.ask(url, f"/v1/market/quotes?symbols={self.symbol}")
        is_marked = str(said.body.get("cache", "")).startswith("away")
        ok = is_marked and quote.status == 200 and not quote.body["items"][0]["stale"]
        text = f"{name} answers from memory, {quote.age_ms} ms old; its status says so after {took_ms / 1000:.1f} s"
        self._show("cache killed", text, ok)


def _owned(body: Any) -> dict[str, tuple[Decimal, Decimal]]:
    found = {one["asset"]: (Decimal(one["total"]), Decimal(one["held"])) for one in body["cash"]}
    return found | {one["asset"]: (Decimal(one["qty"]), Decimal(one["held"])) for one in body["positions"]}


def _write_feed(path: Path, symbol: str, price: Decimal) -> None:
    text = path.read_text("utf-8")
    text = re.sub(r"^symbols = .*$", f'symbols = ["{symbol}", "MSFT", "BTCUSDT"]', text, flags=re.MULTILINE)
    feed = f'prices = {{ "{symbol}" = {price}, MSFT = 420.0, BTCUSDT = 95000.0 }}\nupdates_per_s = {UPDATES_PER_S}.0'
    path.write_text(re.sub(r"^prices = .*$", feed, text, flags=re.MULTILINE), "utf-8")


def _cache_pid(log: Path) -> int:
    """Of the server that this gateway started, and of nobody else. Raises RunError."""
    for line in reversed(log.read_text("utf-8").splitlines()):
        if '"cache server started"' in line:
            said = json.loads(line)
            command = Path(f"/proc/{said['pid']}/cmdline").read_bytes()
            if os.fsencode(said["socket"]) in command:
                return int(said["pid"])
    raise RunError(f"{log} names no cache server of this gateway that runs")


async def show(cluster: Running, symbol: str, price: Decimal, account: str) -> list[Shown]:
    """Start the gateways, show everything, and leave them to the launcher. Raises RunError, LaunchError."""
    gateways = Gateways(cluster, symbol, price)
    # The launcher belongs to one thread, and waits: nothing else runs now.
    gateways.start()
    await asyncio.get_running_loop().run_in_executor(None, gateways.show_all, account)
    return gateways.shown
