"""The benchmark of questions to a gateway: quotes, candles and portfolios at the normal load, at three times that."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench import host
from bench.gateway_asking import Ask, Result, Spec
from bench.market import Market
from bench.report import Figure, Report, at_least, at_most, exactly
from bench.running import LIMITS, RunError, Running, run_loop, running
from cluster.launcher import READY_TIMEOUT_MS
from node.auth import issue_token

SYMBOL = "BENCH"
GATEWAY = "the gateway"
NORMAL_PER_S = 300
"""100,000 users who are told by streams, of whom 1 in 100 has none and asks every three seconds."""
TIMES = (1, 3)
QUOTE_P99_MS = 200.0
HIT_PERCENT = 95.0
SYMBOLS = 500
VENUE_UPDATES_PER_S = 2_000
USERS = 200
ASKED_SYMBOLS = 200
UNKNOWN_SHARE = 0.01
SHARES = {"quote": 0.7, "candles": 0.1, "portfolio": 0.2}
MOST_CONNECTIONS = 16
READS = re.compile(r'^tiebreak_gateway_cache_reads_total\{outcome="(\w+)",view="(\w+)"\} (\S+)$', re.MULTILINE)


def quote(folder: Path, *, seconds: float = 5, rate_per_s: int = NORMAL_PER_S, seed: int = 1) -> Report:
    """GET of quotes, candles and portfolios at the normal load, at three times that, and the most there is."""
    began = time.monotonic()
    market = Market(SYMBOL)
    figures: list[Figure] = []
    with running(folder / "gateway-quote", limits=LIMITS) as cluster:
        run_loop(cluster.open_market(market))
        with _gateway(cluster) as (name, url):
            asks = _asks(cluster, market)
            for times in TIMES:
                figures += _at(cluster, name, url, asks, times, rate_per_s, seconds, seed)
            figures += _most(cluster, name, asks, seconds, seed)
    return Report(
        benchmark="gateway-quote",
        figures=figures,
        settings={
            "normal_per_s": rate_per_s,
            "seconds": seconds,
            "asked_for": ", ".join(f"{share:.0%} {kind}" for kind, share in SHARES.items()),
            "users": USERS,
            "symbols": f"{SYMBOLS} simulated, {ASKED_SYMBOLS} asked for by Zipf 1, {UNKNOWN_SHARE:.0%} unknown ones",
            "venue_updates_per_s": VENUE_UPDATES_PER_S,
            "workers": 0,
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "open loop: asked when due, and latency counts from then; one gateway process behind a cluster of three",
            "a hit is answered from the gateway's memory, fresh or marked stale; a miss is a symbol that nobody quoted "
            "(404) or an account that is asked for at a node",
            "each request is checked: token, rate of its user (a round trip to the cache server), parameters",
        ],
    )


@contextmanager
def _gateway(cluster: Running) -> Iterator[tuple[str, str]]:
    """The first site's gateway, with more symbols than it comes with: its name and its address."""
    name = cluster.folder.gateway_names()[0]
    path = cluster.folder.config(name)
    names = ", ".join(f'"{symbol}"' for symbol in symbols())
    text, count = re.subn(
        r"(?m)^symbols = \[.*\]$",
        f"symbols = [{names}]\nupdates_per_s = {VENUE_UPDATES_PER_S}",
        path.read_text("utf-8"),
    )
    if count != 1:
        raise RunError(f"{path}: no simulator among its feeds")
    path.write_text(text, "utf-8")
    cluster.launcher.start(name, die_with_us=True)
    cluster.launcher.wait_ready([name], timeout_ms=READY_TIMEOUT_MS)
    address, port, _, scheme = cluster.folder.gateway_listen(name)
    try:
        yield name, f"{scheme}://{address}:{port}"
    finally:
        cluster.launcher.stop([name])


def symbols() -> list[str]:
    return [f"S{rank:04d}" for rank in range(SYMBOLS)]


def _asks(cluster: Running, market: Market) -> list[Ask]:
    key = cluster.folder.token_key.read_text("utf-8")
    accounts = market.accounts
    users = [
        (account, issue_token(key, subject=f"user-{number}", role="trader", accounts=[account]))
        for number in range(USERS)
        for account in [accounts[number % len(accounts)]]
    ]
    asks: list[Ask] = []
    asked = symbols()[:ASKED_SYMBOLS]
    zipf = [1 / (rank + 1) for rank in range(len(asked))]
    for rank, (symbol, share) in enumerate(zip(asked, zipf, strict=True)):
        token, weight = users[rank % USERS][1], share / sum(zipf)
        asks.append(Ask("quote", f"/v1/market/quotes?symbol={symbol}", token, SHARES["quote"] * weight))
        path = f"/v1/market/candles?symbol={symbol}&interval=1m"
        asks.append(Ask("candles", path, token, SHARES["candles"] * weight))
    asks.append(Ask("unknown", "/v1/market/quotes?symbol=NOBODY", users[0][1], UNKNOWN_SHARE))
    for account, token in users:
        asks.append(Ask("portfolio", f"/v1/portfolio?account={account}", token, SHARES["portfolio"] / len(users)))
    return asks


def _asked(cluster: Running, name: str, asks: list[Ask], **more: float) -> Result:
    address, port, _, _ = cluster.folder.gateway_listen(name)
    pid = cluster.launcher.running(name)
    if pid is None:
        raise RunError(f"{name} has ended; see {cluster.folder.log(name)}")
    spec = msgspec.convert({"host": address, "port": port, "asks": [], "pids": {GATEWAY: pid}, **more}, Spec)
    spec.asks = asks
    run = subprocess.run(
        [sys.executable, "-m", "bench.gateway_asking"],
        input=msgspec.json.encode(spec),
        capture_output=True,
        check=False,
    )
    if run.returncode != 0:
        last = run.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RunError(f"the clients ended with exit code {run.returncode}: {' '.join(last)}")
    return msgspec.json.decode(run.stdout, type=Result)


def _at(
    cluster: Running, name: str, url: str, asks: list[Ask], times: int, rate_per_s: int, seconds: float, seed: int
) -> list[Figure]:
    before = _reads(url)
    found = _asked(cluster, name, asks, rate_per_s=float(rate_per_s * times), seconds=seconds, seed=seed)
    after = _reads(url)
    reads = {key: count - before.get(key, 0.0) for key, count in after.items()}
    hits = 100 * (1 - sum(count for (outcome, _), count in reads.items() if outcome == "miss") / sum(reads.values()))
    stale = 100 * sum(count for (outcome, _), count in reads.items() if outcome == "stale") / sum(reads.values())
    refused = sum(count for status, count in found.statuses.items() if status not in ("200", "404"))
    figures = [Figure(f"{times} x the normal load: requests a second", found.requests / found.seconds, "/s")]
    for kind in SHARES:
        one = found.latency[kind]
        figures += [
            Figure(f"  {kind}, p50", one.p50_ms, "ms"),
            at_most(f"  {kind}, p99", one.p99_ms, QUOTE_P99_MS, "ms"),
        ]
    return [
        *figures,
        at_least("  cache hits", hits, HIT_PERCENT, "%"),
        Figure("  of them stale, and marked", stale, "%"),
        exactly("  refused or failed", refused, 0),
        exactly("  not answered", found.unanswered, 0),
        Figure("  CPU of the gateway", 100 * found.cpu_s[GATEWAY] / found.seconds, "% of a core"),
        Figure("  time in which others had its core", 100 * found.waited_s[GATEWAY] / found.seconds, "%"),
        Figure("  the clients' own worst lateness", found.late_max_ms, "ms"),
    ]


def _most(cluster: Running, name: str, asks: list[Ask], seconds: float, seed: int) -> list[Figure]:
    found = _asked(cluster, name, asks, seconds=seconds, seed=seed, connections=MOST_CONNECTIONS)
    gateway_s = found.cpu_s[GATEWAY]
    return [
        Figure(f"at most, {MOST_CONNECTIONS} connections: requests a second", found.requests / found.seconds, "/s"),
        Figure("  quote, p99", found.latency["quote"].p99_ms, "ms"),
        Figure("  CPU of the gateway for a request", gateway_s / max(1, found.requests) * 1e6, "us"),
    ]


def _reads(url: str) -> dict[tuple[str, str], float]:
    """(outcome, view) -> how often, since the gateway started."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode("utf-8")
    return {(outcome, view): float(count) for outcome, view, count in READS.findall(text)}
