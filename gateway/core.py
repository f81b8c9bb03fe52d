"""Builds one gateway and holds its parts: feeds, projection, views, preferences, alerts. The only place that builds."""

import asyncio
import importlib.util
import os
import ssl
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import aiohttp
import structlog

from cluster.folder import token_life_s
from gateway.alerts.fills import Fill, Fills
from gateway.alerts.service import Alerts
from gateway.cache.client import CacheAway, CacheClient, connect
from gateway.cache.health import CacheHealth
from gateway.cache.keeper import QuoteKeeper
from gateway.cache.quotes import CacheQuotes
from gateway.cache.ranks import CacheRanks
from gateway.cache.rates import CacheRates
from gateway.cache.server import CacheServer
from gateway.cache.state import StateCache
from gateway.config import GatewayConfig, Notify
from gateway.events import Traded
from gateway.feeds.clock import now_us
from gateway.feeds.ticks import UNUSABLE, Status, StatusKind, Tick, Trade
from gateway.follow import Follower
from gateway.identity import Identity
from gateway.market.candles import Retention
from gateway.market.intake import MarketData
from gateway.market.tickblocks import day_files
from gateway.market.tickdays import tidy
from gateway.market.ticklog import TickLogError
from gateway.market.tickreader import replay_day
from gateway.marks import Marks
from gateway.notify.addresses import Guard
from gateway.notify.dispatcher import Dispatcher
from gateway.notify.mail import MailSender
from gateway.notify.notice import Notice
from gateway.notify.notifier import Notifier
from gateway.notify.webhook import ProviderSender, Sender, WebhookSender
from gateway.prefs.fields import Channel
from gateway.prefs.keys import SealKeys
from gateway.prefs.link import Sites
from gateway.prefs.seal import read_keyring
from gateway.prefs.service import Prefs
from gateway.prefs.store import Store
from gateway.projection.accounts import Accounts
from gateway.projection.books import VENUE, Books
from gateway.projection.host import Projection
from gateway.projection.projector import Batch
from gateway.sources import Source, make_source
from gateway.tasks import end
from gateway.views.basis import Basis
from gateway.views.history import History
from gateway.views.leaderboard import Leaderboard
from gateway.views.portfolio import Portfolios

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.gateway")

ALIVE_S = 0.25
FLUSH_S = 0.1
SYNC_S = 1.0
TIDY_S = 3_600.0
TOKEN_WARN_S = 14 * 86_400
BACK_BYTES_MAX = 64 << 20
"""Of the tick log, read at the start: about a million ticks."""
FOLLOWED_MS_MAX = 2_500
"""Our own venue is alive as long as the feed was heard so lately."""
REDIS_URL = "REDIS_URL"


def nobody(_notice: Notice) -> None:
    """Nobody is connected yet."""


class Core:
    """One gateway's parts, started and stopped together. All on one event loop.

    Read what you need; hook in with `projection.on_batch`, `on_notice`, `market` (its `changes`) and `leaderboard`.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.on_notice: Callable[[Notice], None] = nobody
        """Notices for users who are connected to this gateway."""
        self.on_ticks: list[Callable[[list[Tick]], None]] = []
        """Called with every feed's ticks, behind the market data's own taking."""
        self.on_ranked: list[Callable[[], None]] = []
        self.draining = False
        data = config.data_dir
        data.mkdir(parents=True, exist_ok=True)
        self.market = MarketData(
            now_us,
            log_folder=data / "ticks" if config.market.ticklog else None,
            ttl_us=config.market.quote_ttl_ms * 1_000,
            retention=Retention(
                bars_1m=config.market.bars_1m,
                bars_5m=config.market.bars_5m,
                bars_1h=config.market.bars_1h,
                bars_max=config.market.bars_max,
            ),
        )
        self.accounts = Accounts()
        self.books = Books(self.take, now_us)
        self.portfolios = Portfolios(self.accounts.instruments, self.accounts.scales)
        self.marks = Marks(
            self.market, self.accounts.instruments, lambda: self.portfolios.cash_assets, config.market.currency
        )
        self.store = Store(data / "prefs", cluster_id=config.cluster_id, site=config.site)
        keyring = read_keyring(config.seal_keys)
        self.prefs = Prefs(self.store, keyring)
        self.seal_keys = SealKeys(config.seal_keys, keyring, self.prefs)
        self.leaderboard = Leaderboard(
            self.accounts.accounts, self.marks.price, hidden=self.prefs.hidden_from_leaderboard
        )
        self.history = History()
        self.cache_server: CacheServer | None = None
        self.rates: CacheRates | None = None
        self.quotes: QuoteKeeper
        self.cache_health: CacheHealth
        self.basis: Basis
        self._ranked = asyncio.Event()
        self.leaderboard.on_tables = self._tables_are_new
        self._cache_client: CacheClient | None = None
        self._linked: dict[str, int] = dict.fromkeys(config.peers, 0)
        """When each other site was last linked, in microseconds; -1: it is now."""
        self.projection: Projection
        self.follower: Follower
        self.session: aiohttp.ClientSession
        self.sources: list[Source] = []
        self.identity = identity = Identity(
            config.name, config.tls, nodes_ca=config.nodes_ca, present=config.nodes.present_certificate
        )
        self.sites = Sites(
            self.store,
            listen=(config.listen.host, config.listen.link_port),
            peers=config.peers,
            server_tls=identity.server,
            client_tls=identity.client,
        )
        identity.on_taken.append(self._renew_links)
        self.dispatcher = Dispatcher(self.store, self.prefs.preferences, _senders(config.notify))
        self.notifier = Notifier(self.store, self.prefs.preferences, self.dispatcher, self._notice)
        self.fills = Fills(config.site, show=self.notifier.show, queue=self.notifier.queue)
        self.alerts = Alerts(self.store, keyring, show=self.notifier.show, queued=self.dispatcher.added)
        self._tasks: list[asyncio.Task[None]] = []

    # ---- life ----

    async def start(self) -> None:
        """Raises what a taken port, a folder in use or a missing cache server raise; then nothing of it runs."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self.config
        url = config.cache.redis_url or os.environ.get(REDIS_URL, "")
        if not url:
            self.cache_server = CacheServer(config.data_dir / "cache", memory_bytes_max=config.cache.memory_bytes_max)
            await self.cache_server.start()
            url = self.cache_server.url
        projectors = (self.accounts, self.books, self.portfolios, self.leaderboard)
        self._cache_client = connect(url)
        self.cache_health = CacheHealth(self._cache_client)
        scope = f"{config.cluster_id}:{config.site}"
        self.rates = CacheRates(self._cache_client, config.cluster_id)
        cache = StateCache(self._cache_client, scope, [projector.kind for projector in projectors])
        self.projection = Projection(projectors, cache)
        self.projection.on_batch += [self._fills_of, self.history.apply]
        self.projection.on_reset.append(self.history.reset)
        self.projection.on_rebuilt.append(lambda position: self.portfolios.rebuilt(position.index))
        if await self.projection.start_from_cache():
            self.books.begin_with(self.accounts.orders.values())
            self.books.show_all(now_us())
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector())
        self.follower = Follower(
            self.session, lambda: config.nodes.addresses, self.node_token, self.projection, tls=self.node_tls
        )
        self.quotes = QuoteKeeper(self.market, CacheQuotes(self._cache_client, config.cluster_id))
        self.basis = Basis(
            self.session, lambda: config.nodes.addresses, self.node_token, self.portfolios, self.accounts.instruments,
            tls=self.node_tls,
        )  # fmt: skip
        await self._take_bars_back()
        await self.quotes.load()
        await self.alerts.start()
        await self.dispatcher.start()
        self.sites.on_link(self._sites_changed)
        await self.sites.start()
        self.sources = [make_source(feed, self.take, config.data_dir / "recordings") for feed in config.feeds]
        self._run("follower", self.follower.run())
        self._run("cache", self.projection.keep_cache())
        self._run("cache nodes", self.cache_health.run())
        self._run("quotes", self.quotes.run())
        self._run("basis", self.basis.run())
        self._run("leaderboard", self.leaderboard.run())
        self._run("ranks", self._keep_ranks(CacheRanks(self._cache_client, scope)))
        self._run("alive", self._say_alive())
        self._run("certificates", self.identity.run())
        self._run("seal keys", self.seal_keys.run())
        self._run("token", self._watch_token())
        self._run("ticklog", self._keep_ticklog())
        self._run("finished days", self._tidy_days())
        for source in self.sources:
            self._run(f"feed {source.name}", source.run())

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # What it kept grows old and says so; the rest goes on.
            log.error("a part of the gateway ended", part=task.get_name(), error=repr(error), exc_info=error)

    async def stop(self) -> None:
        """End everything; what users wrote is on disk already."""
        await end(*self._tasks)
        await self.notifier.stop()
        await self.alerts.stop()
        await self.sites.stop()
        if hasattr(self, "session"):
            await self.session.close()
        if self._cache_client is not None:
            await self._cache_client.aclose()
        if self.cache_server is not None:
            await self.cache_server.stop()
        self.market.close()
        await self.store.close()

    def token_ends_in_s(self) -> int | None:
        """Until the token ends that nodes are asked with; None: the file says nothing of it."""
        life = token_life_s(self.config.token_file)
        return int(life[1] - time.time()) if life is not None else None

    async def _watch_token(self) -> None:
        """Say once a day that the token ends soon."""
        while True:
            left_s = self.token_ends_in_s()
            if left_s is None or left_s < TOKEN_WARN_S:
                log.warning(
                    "the token that nodes are asked with ends soon: `tiebreak gateway renew-token` makes another",
                    days=None if left_s is None else round(left_s / 86_400, 1),
                    file=str(self.config.token_file),
                )
            await asyncio.sleep(86_400)

    def node_tls(self) -> ssl.SSLContext | bool:
        """For each request to a node: whom to trust now and, where nodes ask for one, our certificate of now."""
        return self.identity.nodes if self.identity.nodes is not None else True

    async def _renew_links(self) -> None:
        await self.sites.use(self.identity.server, self.identity.client)

    def node_token(self) -> str:
        """An auditor's token, as the file has it now."""
        return self.config.token_file.read_text("ascii").strip()

    def why_not_ready(self) -> str:
        """Empty when this gateway serves from a warm state."""
        if self.draining:
            return "leaving"
        if not hasattr(self, "projection"):
            return "starting"
        standing = self.projection.standing
        if standing.rebuilding:
            return f"rebuilding from a node's snapshot, {standing.progress} rows so far"
        return "" if standing.warm else "no node was reached yet, and the cache was empty"

    def peers_heard_us(self) -> int:
        """Up to when what was written at the other sites is surely here: now while they are linked; 0: never yet."""
        return min((at_us if at_us >= 0 else now_us() for at_us in self._linked.values()), default=now_us())

    # ---- what comes in ----

    def take(self, ticks: list[Tick]) -> None:
        """The sink of every feed, our own venue's too."""
        self.market.take(ticks)
        for hook in self.on_ticks:
            hook(ticks)
        for tick in ticks:
            if type(tick) is Trade and tick.eligible and not tick.marks & UNUSABLE:
                self.alerts.tick(tick.symbol, tick.price_e9, tick.venue_us)

    async def _say_alive(self) -> None:
        """Our own venue's quotes hold as long as the feed that tells of changes is heard."""
        while True:
            await asyncio.sleep(ALIVE_S)
            standing = self.projection.standing
            if self.follower.node and 0 <= standing.staleness_ms < FOLLOWED_MS_MAX:
                self.market.take([Status(VENUE, StatusKind.ALIVE, now_us())])

    async def _keep_ticklog(self) -> None:
        log_ = self.market.log
        if log_ is None:
            return
        synced_at = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_S)
            log_.flush()
            if time.monotonic() - synced_at >= SYNC_S:
                synced_at = time.monotonic()
                await asyncio.get_running_loop().run_in_executor(None, log_.sync)

    def _tables_are_new(self) -> None:
        self._ranked.set()
        for hook in self.on_ranked:
            hook()

    async def _keep_ranks(self, ranks: CacheRanks) -> None:
        """Write each ranking to the cache; what a cache that is away misses, the next ranking brings."""
        while True:
            await self._ranked.wait()
            self._ranked.clear()
            try:
                for table in list(self.leaderboard.tables.values()):
                    await ranks.write(table.period, {place.account: place.return_pct for place in table.top})
            except CacheAway as error:
                log.debug("ranks are not in the cache", error=str(error))

    async def _take_bars_back(self) -> None:
        """The bars that the newest days of the tick log have, as many days as are soon read; trades of today's tape."""
        market = self.market
        if market.log is None:
            return
        folder = market.log.folder
        days: list[str] = []
        size_bytes = 0
        for day in reversed(day_files(folder)):
            size_bytes += (folder / f"{day}.ticks").stat().st_size
            if size_bytes > BACK_BYTES_MAX:
                break
            days.insert(0, day)
        began_s, count = time.monotonic(), 0
        for day in days:
            for ticks in replay_day(folder, day):
                trades: list[Tick] = [tick for tick in ticks if type(tick) is Trade]
                if trades:
                    market.candles.apply(trades, trades[-1].receive_us)
                    market.tape.apply(trades)
                    count += len(trades)
                await asyncio.sleep(0)
        market.candles.closed()  # told long ago
        if days:
            log.info("bars are back", days=days, trades=count, seconds=round(time.monotonic() - began_s, 3))

    async def _tidy_days(self) -> None:
        """At the start and each hour: finished days of the tick log are sealed, written as Parquet, and deleted."""
        data = self.config.data_dir
        # Without the extra that writes Parquet days must still be deleted in time.
        exports = data / "parquet" if importlib.util.find_spec("pyarrow") is not None else None
        while self.market.log is not None:
            today = datetime.fromtimestamp(now_us() / 1e6, UTC).date().isoformat()
            work = partial(
                tidy, data / "ticks", today=today, keep_days=self.config.market.ticklog_days, exports=exports
            )
            try:
                await asyncio.get_running_loop().run_in_executor(None, work)
            except (OSError, TickLogError) as error:
                log.error("finished days are left as they are", error=str(error))
            await asyncio.sleep(TIDY_S)

    def _fills_of(self, batch: Batch) -> None:
        at_us = now_us()
        for event in batch.events:
            if isinstance(event, Traded):
                for fill in _sides(event, batch.at_us):
                    self.fills.filled(fill, at_us)

    def _notice(self, notice: Notice) -> None:
        self.on_notice(notice)

    def _sites_changed(self, site: str, up: bool) -> None:
        self._linked[site] = -1 if up else now_us()
        live = self.sites.live_sites()
        self.alerts.set_live(live)
        self.fills.set_live(live, now_us())


def _sides(event: Traded, at_us: int) -> list[Fill]:
    _, epoch, index, seq = map(int, event.position.split("."))
    maker_side = "sell" if event.taker_side == "buy" else "buy"
    return [
        Fill(
            position=(epoch, index, seq),
            user=account,
            order_id=order_id,
            symbol=event.symbol,
            side=side,
            price=_text(event.price),
            quantity=_text(event.qty),
            complete=not leaves,
            at_us=at_us,
        )
        for account, order_id, side, leaves in (
            (event.taker_account, event.taker_order_id, event.taker_side, event.taker_leaves_qty),
            (event.maker_account, event.maker_order_id, maker_side, event.maker_leaves_qty),
        )
    ]


def _text(value: Decimal) -> str:
    return format(value, "f")


def _senders(notify: Notify) -> dict[Channel, Sender]:
    senders: dict[Channel, Sender] = {
        Channel.webhook: WebhookSender(Guard(notify.allowed_networks), plain_http=notify.plain_http_webhooks)
    }
    if notify.smtp is not None:
        senders[Channel.email] = MailSender(notify.smtp)
    for channel, url in ((Channel.sms, notify.sms_url), (Channel.push, notify.push_url)):
        if url:
            senders[channel] = ProviderSender(channel, url, notify.provider_secret)
    return senders
