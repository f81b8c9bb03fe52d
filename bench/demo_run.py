"""The demo, step by step: orders through three members, the leader killed midway, all answers asked again; gateways."""

import asyncio
import time
from decimal import Decimal

from msgspec import Struct
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from bench import demo_gateways
from bench.driver import Checked, Driver, longest_gap_s
from bench.flow import Act, Intent
from bench.lobster import PRICE_SCALE
from bench.market import Market
from bench.running import RunError, Running
from bench.stats import Spread, spread
from cluster.client import Client
from cluster.wire import MemberView
from statemachine.inspection import Inspection, inspect_store

FRAMES_UNDER_WAY = 4
KILL_AT_PERCENT = 45
RESTART_AT_PERCENT = 70
DEADLINE_S = 30.0
COMMAND_TIMEOUT_MS = 20_000
POLL_S = 0.02

talk = Console(stderr=True, highlight=False)


class Source(Struct, frozen=True):
    """Where the orders come from. real: a recording of a market."""

    text: str
    symbol: str
    real: bool
    path: str = ""


class Outcome(Struct):
    """All that the demo found. ok is the verdict."""

    source: Source
    commands: int = 0
    orders: int = 0
    fills: int = 0
    cancels: int = 0
    reductions: int = 0
    refused: dict[str, int] = {}
    unknown: int = 0
    seconds: float = 0.0
    per_s: float = 0.0
    latency: Spread | None = None
    killed: str = ""
    leads: str = ""
    outage_ms: float = 0.0
    caught_up_s: float = 0.0
    digest_index: int = 0
    digests: dict[str, str] = {}
    checked: Checked | None = None
    audits: dict[str, list[str]] = {}
    shown: list[demo_gateways.Shown] = []
    """What the gateways were to show."""
    total_s: float = 0.0
    failure: str = ""

    @property
    def digests_agree(self) -> bool:
        return len(self.digests) > 1 and len(set(self.digests.values())) == 1

    @property
    def conserved(self) -> bool:
        return len(self.audits) > 1 and not any(self.audits.values())

    @property
    def gateways_hold(self) -> bool:
        return bool(self.shown) and all(one.ok for one in self.shown)

    @property
    def ok(self) -> bool:
        return (
            not self.failure
            and self.gateways_hold
            and self.commands > 0
            and bool(self.killed)
            and self.digests_agree
            and self.conserved
            and self.checked is not None
            and self.checked.holds
        )


class Demo:
    """One run, step by step. Each step fills in its part of the outcome."""

    def __init__(self, cluster: Running, outcome: Outcome, intents: list[Intent]) -> None:
        self.cluster = cluster
        self.outcome = outcome
        self.market = Market(outcome.source.symbol)
        self._intents = intents
        self._commands = len(intents)

    async def run(self) -> None:
        """Everything that needs members that run."""
        began = time.monotonic()
        await self.cluster.open_market(self.market)
        accounts = len(self.market.accounts)
        step(f"{accounts} accounts opened and funded, {self.market.symbol} listed", time.monotonic() - began)
        trader = self.cluster.client("trader", self.market.accounts, timeout_ms=COMMAND_TIMEOUT_MS)
        async with trader, self.cluster.client("auditor", ("*",)) as auditor:
            driver = Driver(
                trader,
                self.market,
                iter(self._intents),
                run="demo",
                frames_under_way=FRAMES_UNDER_WAY,
            )
            await self._send(driver, auditor)
            await self._check(driver, auditor)
        await self._gateways()

    async def _send(self, driver: Driver, auditor: Client) -> None:
        found = self.outcome
        with progress_bar() as bar:
            task = bar.add_task("sending orders", total=self._commands)
            sending = asyncio.create_task(driver.send(self._commands))
            showing = asyncio.create_task(_show(bar, task, driver, self._commands))
            try:
                await self._reached(driver, self._commands * KILL_AT_PERCENT // 100, sending)
                found.killed = await self._leader(auditor)
                killed_at = time.monotonic()
                self.cluster.launcher.kill(found.killed)
                say(bar, f"[red]SIGKILL[/] to the leader, {found.killed}, after {driver.answered:,} commands")
                found.leads = await self._leader(auditor)
                say(bar, f"{found.leads} leads; orders go on")
                await self._reached(driver, self._commands * RESTART_AT_PERCENT // 100, sending)
                self.cluster.launcher.start(found.killed, die_with_us=True)
                restarted_at = time.monotonic()
                say(bar, f"{found.killed} started again, while orders go on")
                await sending
            finally:
                showing.cancel()
                sending.cancel()
                await asyncio.gather(showing, sending, return_exceptions=True)
            bar.update(task, completed=driver.answered, total=driver.answered)
        step(f"{driver.answered:,} commands answered", driver.seconds)
        found.outage_ms = longest_gap_s(driver.answered_at, killed_at) * 1e3
        found.commands = driver.answered
        found.orders = driver.acts[Act.place] + driver.acts[Act.take]
        found.cancels = driver.acts[Act.cancel]
        found.reductions = driver.acts[Act.reduce]
        found.refused = dict(driver.refused + driver.turned_away)
        found.unknown = len(driver.unknown)
        found.seconds = driver.seconds
        found.per_s = driver.answered / max(driver.seconds, 1e-9)
        found.latency = spread(driver.latencies_ms)
        await self._caught_up(auditor, found.killed)
        found.caught_up_s = time.monotonic() - restarted_at
        step(f"{found.killed} has caught up", found.caught_up_s)

    async def _reached(self, driver: Driver, commands: int, sending: asyncio.Task[None]) -> None:
        """Wait until so many commands were answered, or the sending ended."""
        reached = asyncio.create_task(driver.reached(commands))
        await asyncio.wait((reached, sending), return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        if sending.done():
            sending.result()

    async def _check(self, driver: Driver, auditor: Client) -> None:
        found = self.outcome
        began = time.monotonic()
        with progress_bar() as bar:
            task = bar.add_task("asking for every answer again, by its key", total=driver.answered)
            probe = self.market.request(Intent(Act.place, 0, 0, 1, 1, 1), "demo-probe", "", "")
            found.checked = await driver.check(probe, lambda count: bar.update(task, completed=count))
        step("all answers asked for again, by their keys", time.monotonic() - began)
        trades = await auditor.trades(symbol=self.market.symbol, limit=1)
        found.fills = int(trades.items[0].id) if trades.items else 0
        found.digest_index, found.digests = await self._digests(auditor)

    async def _gateways(self) -> None:
        began = time.monotonic()
        prices = sorted(intent.price for intent in self._intents if intent.act == Act.place and intent.price)
        price = Decimal(prices[len(prices) // 2]).scaleb(-PRICE_SCALE)
        account = self.market.makers[0]
        self.outcome.shown = await demo_gateways.show(self.cluster, self.market.symbol, price, account)
        step("two gateways started, asked, and one cache server killed", time.monotonic() - began)

    async def _views(self, auditor: Client) -> list[MemberView]:
        return [health.view for health in await auditor.members() if health.view is not None]

    async def _leader(self, auditor: Client) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            leader = await self.cluster.leader(auditor)
            if leader and self.cluster.launcher.running(leader) is not None:
                return leader
            await asyncio.sleep(POLL_S)
        raise RunError(f"no leader within {DEADLINE_S:.0f} s")

    async def _caught_up(self, auditor: Client, name: str) -> None:
        """Wait until a member has applied what is committed. Raises RunError."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            views = await self._views(auditor)
            target = max((view.commit_index for view in views), default=0)
            if any(view.name == name and view.ready and view.applied_index >= target for view in views):
                return
            await asyncio.sleep(POLL_S)
        raise RunError(f"{name} has not caught up within {DEADLINE_S:.0f} s")

    async def _digests(self, auditor: Client) -> tuple[int, dict[str, str]]:
        """Every replica's digest at one index: asked until all stand at the same one. Raises RunError."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            views = [view for view in await self._views(auditor) if view.role == "replica"]
            indexes = {view.digest_index for view in views}
            if len(views) == len(self.cluster.replicas) and len(indexes) == 1:
                return indexes.pop(), {view.name: view.digest for view in views}
            await asyncio.sleep(POLL_S)
        raise RunError(f"the replicas did not stand at one index within {DEADLINE_S:.0f} s")

    def audit(self) -> None:
        """Stop the members and audit what each replica has on disk."""
        began = time.monotonic()
        self.cluster.launcher.stop()
        step("members stopped", time.monotonic() - began)
        began = time.monotonic()
        for name in self.cluster.replicas:
            inspected: Inspection = inspect_store(self.cluster.folder.data(name) / "store")
            self.outcome.audits[name] = inspected.findings
        step("what each has on disk audited", time.monotonic() - began)


async def _show(bar: Progress, task: TaskID, driver: Driver, commands: int) -> None:
    while True:
        bar.update(task, completed=driver.answered, total=max(commands, driver.answered))
        await asyncio.sleep(0.1)


def progress_bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=talk,
        transient=True,
    )


def step(text: str, seconds: float) -> None:
    talk.print(f"[green]✓[/] {text} [dim]({seconds:.1f} s)[/]")


def say(bar: Progress, text: str) -> None:
    bar.console.print(f"[yellow]•[/] {text}")
