"""Builds the objects of one member, starts them, and takes them down again: the only place that does."""

import asyncio
import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import structlog
import uvloop
from aiohttp import web

from cluster.consensus.engine import ConsensusError, Engine, Role
from cluster.consensus.hardened import HardenedEngine
from cluster.consensus.journal import JournalRefused
from cluster.consensus.messages import SnapshotOffer
from cluster.consensus.settings import EngineSettings, Limits
from cluster.topology import MemberRole, Standing
from node import docs_page, feed, install, openapi, stream
from node.answers import Answers
from node.api import accounts, cluster, commands, markets, orders, status
from node.api_tls import ApiListener
from node.auth import Authenticator, public_keys
from node.catalogue import Catalogue
from node.changes import Changes
from node.clock import SteadyClock
from node.config import NodeConfig
from node.context import NODE, Node
from node.door import Door
from node.driver import Driver
from node.errors import NotReady
from node.event_views import EventViews
from node.guard import ConnectionGuard, HttpLimits
from node.intake import Intake
from node.leading import Leading
from node.leaving import ALONE_MS, LEAVING, Leaving
from node.limits import middlewares
from node.link_metrics import LinkMetrics
from node.metrics import Metrics
from node.ratelimit import RateLimiter, Rates
from node.reads import Reads
from node.session_token import SessionTokens
from node.snapshots import Snapshots
from node.submit import Submitter
from node.tracing import configure_logging
from statemachine.codec import UnknownFormat
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_copy import fsync_file
from statemachine.store_files import StoreError, fsync_folder
from statemachine.store_sealing import Retention

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.node")

EXIT_COULD_NOT_START = 1
EXIT_STORE_FAILED = 73
EXIT_DIVERGED = 74
EXIT_RESTART = 75
WAY_BACK = (
    "What is here is wrong, and evidence. The way back, while all other members are up and none rejoins: stop what "
    "starts this member; move the whole folder {folder} aside and keep it; start the member. It is on a new disk "
    "then: it gets log or snapshot from the others, and votes only when it has caught up. Take nothing out of the "
    "old folder: its store is wrong, and its journal goes with no other"
)
"""What an operator does about a replica that diverged; {folder} is its data folder."""
SHUTDOWN_TIMEOUT_S = 2.0
"""How long requests that still run may take once the listener is closed; draining has waited for them before."""
FOR_EVER_DAYS = 1_000_000
_GC_THRESHOLDS = (100_000, 50, 50)
"""Orders live long and hold no cycles; with Python's own thresholds collections take a tenth of the time."""


class Diverged(StoreError):
    """This replica's state differed from the majority's. Nothing was opened."""


class App:
    """One member, from its config to its exit code."""

    def __init__(
        self,
        config: NodeConfig,
        engine: Engine,
        *,
        on_fatal: Callable[[int, str], None] | None = None,
        on_restart: Callable[[], None] | None = None,
    ) -> None:
        """on_fatal(exit_code, reason): leave at once; tests give one that returns.

        on_restart(): all is stopped, and a snapshot is to be installed: start this member anew.
        """
        self.config = config
        self.node = node = Node()
        self._on_fatal = on_fatal or _leave
        self._on_restart = on_restart or _nothing
        self._installing: asyncio.Task[None] | None = None
        node.config = config
        node.engine = engine
        node.clock = SteadyClock()
        node.metrics = Metrics(config.name, config.member.role.value)
        node.authenticator = Authenticator(public_keys(config.token_public_key))
        limits = config.limits
        node.limiter = RateLimiter(
            Rates(
                commands_per_s=limits.rate_per_s,
                burst=limits.rate_burst,
                cancels_per_s=limits.rate_per_s,
                cancel_burst=limits.rate_burst,
            )
        )
        node.epoch = config.topology.epoch
        node.session_tokens = SessionTokens(config.session_key, epoch=node.epoch)
        self._leaving = leaving = Leaving(engine, self._voting_replicas)
        node.changes = Changes(engine, Leading(engine, lambda: leaving.successors))
        self._observe_apply = node.metrics.stage_seconds["apply"].observe
        self._driver: Driver | None = None
        self._guard = ConnectionGuard(HttpLimits.of(limits))
        self._listener = ApiListener(config.api_tls)
        self._runner: web.AppRunner | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._term_led = 0

    # ---- start ----

    async def start(self) -> None:
        """Load the state, join the group, open the API. Raises what config, store or network object to."""
        config, node = self.config, self.node
        config.data_dir.mkdir(parents=True, exist_ok=True)
        if (evidence := config.data_dir / install.DIVERGED_FILE).exists():
            raise Diverged(f"{evidence} says: {evidence.read_text('utf-8').strip()}")
        if not node.is_witness:
            install.finish(config.data_dir, cluster_id=config.topology.cluster_id, member=config.name)
            self._build_replica()
        node.engine.on_message = self._message
        node.engine.on_configuration = self._configured
        self._watch()
        web_app = self._web_app()
        applied_index = 0 if node.is_witness else node.machine.applied_index
        await node.engine.start(applied_index=applied_index)
        if self._driver is not None:
            node.engine.set_stored_index(node.store.stored_index)
            self._role_changed()
            node.submitter.set_refusal(None)
            self._driver.start()
        await self._listen(web_app)
        gc.collect()
        # The thread that writes a flush would else hold the loop up for 5 ms at a time.
        sys.setswitchinterval(0.001)
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        node.ready = True
        log.info("started", api=f"{config.member.api_host}:{config.member.api_port}", applied_index=applied_index)

    def _build_replica(self) -> None:
        config, node = self.config, self.node
        kept = config.retention
        node.store = store = Store(
            config.data_dir / "store",
            cluster_id=config.topology.cluster_id,
            member=config.name,
            map_size_bytes=config.limits.store_bytes_max,
            low_water_bytes=config.limits.disk_free_bytes_min,
            retention=Retention(
                events_days=kept.events_days or FOR_EVER_DAYS,
                ledger_days=kept.ledger_days or FOR_EVER_DAYS,
                trades_days=kept.trades_days or FOR_EVER_DAYS,
                closed_orders_days=kept.orders_days or FOR_EVER_DAYS,
            ),
        )
        node.history = store.history
        node.machine = machine = Machine(store, store.load())
        node.catalogue = Catalogue(machine, store.history)
        node.answers = Answers(store, store.history, machine, node.catalogue)
        secret = blake2b(config.session_key, digest_size=32, person=b"account ids").digest()
        node.door = Door(node.catalogue, node.answers, account_secret=secret)
        node.reads = Reads(node.engine, lambda: machine.applied_index, config.timing)
        node.intake = Intake(node.door, node.reads)
        node.submitter = Submitter(
            node.engine,
            node.answers,
            config.limits,
            config.timing,
            clock=node.clock,
            metrics=node.metrics,
        )
        self._driver = Driver(
            config,
            machine,
            store,
            node.engine,
            node.submitter,
            metrics=node.metrics,
            on_fatal=lambda reason: self._on_fatal(EXIT_STORE_FAILED, reason),
            on_diverged=self._diverged,
            on_disk_low=self._disk_low,
            clock=node.clock,
        )
        node.engine.on_committed = self._committed
        node.engine.on_role = self._role_changed
        node.engine.snapshots = Snapshots(
            store,
            cluster_id=config.topology.cluster_id,
            member=config.name,
            free_bytes_min=config.limits.disk_free_bytes_min,
            on_received=self._snapshot_received,
        )
        self._watch_replica()

    def _watch(self) -> None:
        """Metrics that every member has."""
        node, metrics, guard = self.node, self.node.metrics, self._guard
        metrics.watch_ready(lambda: node.ready)
        metrics.watch_connections(lambda: len(guard.connections), kind="tcp", bound=guard.limits.connections_max)
        metrics.watch_disk(lambda: shutil.disk_usage(self.config.data_dir).free)
        metrics.watch_count(
            lambda: guard.refused,
            name="tiebreak_connections_refused",
            text="Connections beyond a bound, of an address or in all",
        )
        metrics.watch_count(
            lambda: guard.cut, name="tiebreak_connections_cut", text="Connections closed as idle or too slow"
        )
        engine, config = node.engine, self.config
        certificates = {"member": config.tls.certificate, "authority": config.tls.ca}
        if config.api_tls is not None:
            certificates["api"] = config.api_tls.certificate
        metrics.registry.register(LinkMetrics(lambda: engine.counters, certificates))

    def _watch_replica(self) -> None:
        node, limits = self.node, self.config.limits
        submitter, metrics = node.submitter, node.metrics
        metrics.watch(lambda: submitter.waiting, queue="waiting", bound=limits.waiting_max)
        metrics.watch(lambda: submitter.batcher.queued, queue="batcher", bound=limits.queue_max)
        metrics.watch(lambda: submitter.batcher.under_way, queue="pipeline", bound=limits.pipeline)
        metrics.watch(lambda: node.reads.waiting, queue="reads")
        metrics.watch(lambda: node.store.pending_bytes, queue="store_bytes")
        for name, text, read in (
            ("forwarded", "Commands sent to a leader, repeats not counted", lambda: submitter.forwarded),
            ("taken_in", "Commands that other members forwarded to this leader", lambda: submitter.taken_in),
            ("resent", "Commands sent again, with their keys", lambda: submitter.resent),
            ("turned_away", "Commands that found no room or no node to take them", lambda: submitter.refused),
            ("rate_limited", "Commands beyond the rate of their principal", lambda: node.limiter.refused),
        ):
            metrics.watch_count(read, name=f"tiebreak_commands_{name}", text=text)

    def _web_app(self) -> web.Application:
        node = self.node
        app = web.Application(
            middlewares=middlewares(node, self._guard.limits), client_max_size=self.config.limits.body_bytes_max + 1
        )
        app[NODE] = node
        app.add_routes(status.routes(node))
        app.add_routes(cluster.ROUTES)
        if not node.is_witness:
            for module in (orders, accounts, markets, commands):
                app.add_routes(module.ROUTES)
            self._add_events(app)
        return app

    def _add_events(self, app: web.Application) -> None:
        views = EventViews(self.node.catalogue)
        stream.add_routes(app, self.node, views)
        feed.add_routes(app, self.node, views, self.node.catalogue)
        openapi.add_routes(app)
        docs_page.add_routes(app)

    async def _listen(self, app: web.Application) -> None:
        member = self.config.member
        options: dict[str, Any] = self._guard.limits.runner_options()
        self._runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT_S, **options)
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner made no server")
        await self._listener.start(self._guard.factory(server), member.api_host, member.api_port)
        self._guard.start()

    # ---- what the engine tells ----

    def _committed(self, index: int, payload: bytes) -> None:
        """Apply one entry, hand it to the store, answer who waits, tell who listens. An exception ends the process."""
        node = self.node
        began = time.perf_counter()
        applied = node.machine.apply(index, payload)
        node.store.add(applied)
        self._observe_apply(time.perf_counter() - began)
        node.submitter.applied(applied, payload)
        node.reads.applied(index)
        for hook in node.on_applied:
            hook(applied)
        if self._driver is not None:
            self._driver.applied(applied, payload)

    def _role_changed(self) -> None:
        status = self.node.engine.status()
        term_led = status.term if status.role is Role.leader else 0
        if term_led and term_led != self._term_led:
            self.node.clock.set(
                [peer.clock_offset_ms for peer in status.peers if peer.connected and peer.clock_offset_ms is not None],
                ahead_ms_max=self.config.topology.timing.clock_offset_ms_max,
            )
        self._term_led = term_led
        self.node.submitter.role_changed()

    def _voting_replicas(self) -> list[str]:
        members = self.node.engine.group().configuration.members
        return [one.name for one in members if one.role is MemberRole.replica and one.standing is Standing.voter]

    def _configured(self) -> None:
        """Who belongs to the group changed."""
        members = self.node.engine.group().configuration.members
        if not self.node.is_witness:
            self.node.submitter.witnesses = frozenset(one.name for one in members if one.role is MemberRole.witness)
        log.info("members", standings={one.name: one.standing.value for one in members})

    def _message(self, member: str, kind: str, body: bytes) -> None:
        if kind == LEAVING:
            self._leaving.heard(member)
            return
        try:
            if not self.node.changes.received(member, kind, body) and not self.node.is_witness:
                self.node.submitter.received(member, kind, body)
        except ValueError as error:
            log.error("unreadable message", member=member, kind=kind, error=str(error)[:300])

    def _diverged(self, reason: str) -> None:
        """Leave, and stay away: started again by a supervisor, this member would answer from a wrong state."""
        text = f"{reason}. {WAY_BACK.format(folder=self.config.data_dir)}"
        evidence = self.config.data_dir / install.DIVERGED_FILE
        try:
            evidence.write_text(text + "\n", "utf-8")
            fsync_file(evidence)
            fsync_folder(evidence.parent)
        except OSError as error:
            log.error("the evidence could not be written", error=str(error))
        self._on_fatal(EXIT_DIVERGED, reason)

    def _snapshot_received(self, offer: SnapshotOffer, folder: Path) -> None:
        self._installing = asyncio.get_running_loop().create_task(self._install(offer, folder))

    async def _install(self, offer: SnapshotOffer, folder: Path) -> None:
        """Stop, so that nothing more is acknowledged; write down what is to be installed; start anew."""
        config, engine = self.config, self.node.engine
        if self.node.draining:
            return
        try:
            log.warning("leaving to install a snapshot", index=offer.index)
            await self.drain()
            if engine.needs_snapshot(offer):
                wish = install.Install(
                    config.topology.cluster_id,
                    config.name,
                    offer.index,
                    offer.index_term,
                    str(folder.relative_to(config.data_dir)),
                    offer.configuration,
                )
                install.decide(config.data_dir, wish)
        except Exception as error:
            # Half stopped is no state to stay in; what is on disk is whole.
            log.critical("install failed", exc_info=True)
            self._on_fatal(EXIT_STORE_FAILED, f"{type(error).__name__}: {error}")
            return
        self._on_restart()

    def _disk_low(self, low: bool) -> None:
        self.node.disk_low = low

    # ---- leave ----

    async def drain(self) -> None:
        """Leave in order: not ready, leadership away, connections closed in steps, all written."""
        node, timing = self.node, self.config.timing
        if node.draining:
            return
        node.ready, node.draining = False, True
        log.info("draining")
        half_ms = timing.drain_ms // 2
        self._leaving.begin()
        try:
            if not node.is_witness and node.engine.status().role is Role.leader:
                moved = await self._leaving.hand_over(timeout_ms=min(half_ms, 5_000))
                log.info("leadership", handed_over=moved)
        except ConsensusError as error:
            log.warning("leadership stays", error=str(error))
        if not self._leaving.successors:
            half_ms = min(half_ms, ALONE_MS)
        for part in node.on_drain:
            await part.drain(timeout_ms=half_ms // max(1, len(node.on_drain)))
        if not node.is_witness:
            # Streams are closed, and said so; what still comes over HTTP is told to go elsewhere.
            node.submitter.set_refusal(NotReady("this node is leaving; nothing was logged: ask another member"))
            await node.submitter.settled(timeout_ms=half_ms)
        await self.stop()

    async def stop(self) -> None:
        """Close the listener, write what is pending, leave the group. Safe to call once, after start."""
        node = self.node
        node.ready = False
        await self._leaving.stop()
        await node.changes.stop()
        await self._listener.close()
        await self._guard.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._driver is not None:
            await self._driver.stop()
        await node.engine.stop()
        if not node.is_witness:
            node.store.close()
        log.info("stopped")


def _nothing() -> None:
    """Nobody starts this member anew: it has stopped."""


def _leave(exit_code: int, reason: str) -> None:
    # Crash is the one way to stop that is tested: nothing more is acknowledged.
    log.critical("leaving", exit_code=exit_code, reason=reason)
    sys.stderr.flush()
    os._exit(exit_code)


def make_engine(config: NodeConfig) -> Engine:
    """The engine that runs: hardened PySyncObj over TLS."""
    return HardenedEngine(
        EngineSettings(
            topology=config.topology,
            member=config.name,
            folder=config.data_dir / "journal",
            tls=config.tls,
            dial=config.dial,
            # Below the mark at which we refuse politely.
            limits=Limits(
                free_bytes_min=config.limits.disk_free_bytes_min // 2,
                journal_bytes_max=config.limits.log_bytes_max,
                trim_reserve=config.limits.log_reserve,
                laggard_entries=config.limits.log_laggard_entries,
                laggard_bytes=config.limits.log_laggard_bytes,
                laggard_ms=config.limits.log_laggard_ms,
                snapshot_bytes_per_s=config.limits.snapshot_bytes_per_s,
            ),
        )
    )


async def serve(config: NodeConfig) -> int:
    """Run one member until SIGTERM or SIGINT; returns its exit code, or EXIT_RESTART: start it anew."""
    leave, restart = asyncio.Event(), asyncio.Event()

    def start_anew() -> None:
        restart.set()
        leave.set()

    app = App(config, make_engine(config), on_restart=start_anew)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    try:
        await app.start()
    except (OSError, JournalRefused, StoreError, UnknownFormat, install.InstallFailed) as error:
        # Told by what happened, not where: whoever starts a member can do something about these.
        _leave(EXIT_COULD_NOT_START, f"could not start: {type(error).__name__}: {error}")
    await leave.wait()
    if restart.is_set():
        return EXIT_RESTART
    await app.drain()
    return 0


def run_member(config: NodeConfig) -> int:
    """Run one member in this process, logs on stderr; returns its exit code."""
    configure_logging(config.log_level, member=config.name)
    exit_code = uvloop.run(serve(config))
    if exit_code == EXIT_RESTART:
        # The same process with nothing left in it: no object, lock or map of the old state can be used by mistake.
        log.warning("starting anew")
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return exit_code
