"""Plays an open loop against a cluster: opens a market for it, starts its processes, joins what they found."""

import asyncio
import tempfile
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.market import CASH, CASH_EACH, SHARES_EACH, Market
from bench.running import SETUP_TIMEOUT_MS, Running, asked_of_process, check, send_all
from bench.stats import Spread, spread
from bench.sweep.arrivals import Step
from bench.sweep.openloop import GENERATOR, Result, Spec
from bench.sweep.samples import DONE, REFUSED, UNKNOWN, Samples
from bench.sweep.trades import Flow
from cluster.wire import AnyRequest, OpenAccount, TransferFunds

ACCOUNTS = 200
GROUP = 50
"""Accounts that a token names; more would make it a header that no server takes."""
SYMBOLS = ("BENCH",)
START_S = 1.0
"""For generators to import what they need; connections come on top."""
CONNECTED_PER_S = 400


class Played(Struct, kw_only=True):
    """What all processes found together."""

    requests: int
    seconds: float
    samples: Samples
    latency: Spread
    words: dict[str, int]
    """Why, for each of those that were refused or are unknown."""
    fills: int
    fills_within: int
    done_within: int
    late: Spread
    """Of the process that was furthest behind its own schedule."""
    reconnects: int
    cpu_s: dict[str, float]
    generator_waited_s: float

    @property
    def done(self) -> int:
        return self.samples.count(DONE)

    @property
    def refused(self) -> int:
        return self.samples.count(REFUSED)

    @property
    def unknown(self) -> int:
        return self.samples.count(UNKNOWN)

    @property
    def done_per_s(self) -> float:
        """Answered within the measured time: what was carried."""
        return self.done_within / self.seconds

    @property
    def fills_per_s(self) -> float:
        return self.fills_within / self.seconds


async def open_market(
    cluster: Running, *, symbols: tuple[str, ...] = SYMBOLS, accounts: int = ACCOUNTS, makers: int = 1
) -> Flow:
    """List the symbols, open and fund the accounts; the flow of trades between them. Raises RunError."""
    names = [f"trader-{number:06}" for number in range(accounts)]
    async with cluster.client("operator", timeout_ms=SETUP_TIMEOUT_MS) as operator:
        for number, symbol in enumerate(symbols):
            for request in Market(symbol).listing_requests()[1 if number else 0 :]:
                check(await operator.submit(request))
    async with cluster.client("custodian", ("*",), timeout_ms=SETUP_TIMEOUT_MS) as custodian:
        opening: list[AnyRequest] = [OpenAccount(account=name) for name in names]
        for outcome in await send_all(custodian, opening):
            check(outcome)
        funds: list[AnyRequest] = [
            TransferFunds(kind="deposit", account=name, asset=asset, amount=str(amount))
            for name in names
            for asset, amount in ((CASH, CASH_EACH), *((symbol, SHARES_EACH) for symbol in symbols))
        ]
        for outcome in await send_all(custodian, funds):
            check(outcome)
    groups = [names[at : at + GROUP] for at in range(0, accounts, GROUP)]
    return Flow(symbols=list(symbols), groups=groups, makers=makers)


def tokens_of(cluster: Running, flow: Flow) -> list[str]:
    return [cluster.token("trader", group) for group in flow.groups]


def pids_of(cluster: Running) -> dict[str, int]:
    return {name: pid for name in cluster.launcher.members if (pid := cluster.launcher.running(name)) is not None}


async def play(spec: Spec, *, processes: int = 1) -> Played:
    """Rates and connections are shared out among so many generators. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="tiebreak-openloop-") as folder:
        begin_at = time.time() + START_S + spec.connections / CONNECTED_PER_S if processes > 1 else 0.0
        specs = [
            msgspec.structs.replace(
                spec,
                run=f"{spec.run}-{at}",
                connections=(spec.connections + at) // processes,
                steps=[Step(step.seconds, step.rate_per_s / processes) for step in spec.steps],
                seed=spec.seed * 1_000 + at,
                begin_at=begin_at,
                samples=str(Path(folder) / f"{at}.samples"),
                pids=spec.pids if at == 0 else {},
            )
            for at in range(processes)
        ]
        results = await asyncio.gather(*(asked_of_process("bench.sweep.openloop", one, Result) for one in specs))
        parts = [Samples.read(Path(one.samples), result.requests) for one, result in zip(specs, results, strict=True)]
    samples = parts[0] if processes == 1 else Samples.merged(parts)
    words: dict[str, int] = {}
    cpu_s: dict[str, float] = {}
    for result in results:
        for word, count in result.words.items():
            words[word] = words.get(word, 0) + count
        for name, spent in result.cpu_s.items():
            cpu_s[name] = cpu_s.get(name, 0.0) + spent
    return Played(
        requests=len(samples),
        seconds=spec.seconds,
        samples=samples,
        latency=results[0].latency if processes == 1 else spread(samples.latency_ms),
        words=words,
        fills=sum(result.fills for result in results),
        fills_within=sum(result.fills_within for result in results),
        done_within=sum(result.done_within for result in results),
        late=max((result.late for result in results), key=lambda late: late.p99_ms),
        reconnects=sum(result.reconnects for result in results),
        cpu_s=cpu_s,
        generator_waited_s=sum(result.waited_s for result in results),
    )


__all__ = ["ACCOUNTS", "GENERATOR", "SYMBOLS", "Played", "open_market", "pids_of", "play", "tokens_of"]
