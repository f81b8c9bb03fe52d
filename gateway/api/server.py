"""Puts the API of one gateway together: handlers behind their guards, what metrics watch."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial

import aiohttp
from aiohttp import web

from gateway.api import docs, history, keys, market, openapi, portfolio, prefs, ranking, status
from gateway.api.context import CORE, COUNTS, METRICS, RELAY
from gateway.api.errors import OnlyAtNodes
from gateway.api.guard import STREAM_PATH, Handler, is_socket, middlewares
from gateway.api.metrics import Metrics, Rows
from gateway.api.rates import Rates
from gateway.api.relay import Relay, relayed
from gateway.api.relayed import CHANGES, PATHS, SOCKETS
from gateway.api.sockets.streams import Streams
from gateway.cache.health import Node
from gateway.core import Core
from gateway.fanout.hub import Hub
from gateway.feeds.breaker import State
from gateway.market.tickcursors import cursors
from gateway.sources import LiveSource
from gateway.stream.metrics import Counts, StreamCollector, total
from gateway.workers.core import Core as WorkerCore
from gateway.workers.supervisor import Supervisor
from node.auth import Authenticator, public_keys
from node.guard import HttpLimits

NODES_MAX = 1_024
"""Connections to nodes."""


def http_limits(core: Core) -> HttpLimits:
    limits = core.config.limits
    return HttpLimits(
        connections_max=limits.connections_max,
        connections_per_address_max=limits.connections_per_address_max,
        idle_timeout_s=limits.idle_ms / 1000,
    )


def authenticator(core: Core) -> Authenticator:
    return Authenticator(public_keys(core.config.token_public_key))


class Api:
    """The application of one gateway's core. stream: the handler of /v1/stream, if this process serves it.

    counts: of the processes that serve clients, this one or the workers.
    """

    def __init__(self, core: Core, *, counts: Callable[[], Counts] = dict, stream: Handler | None = None) -> None:
        """Call it when the core is started. Needs the running loop."""
        self.core = core
        self.counts = counts
        self.metrics = Metrics(core.config.site)
        # Its own: exact bytes both ways, no cookies kept, and as many connections as relays may be under way.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=NODES_MAX), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        self.relay = Relay(self._session, lambda: core.config.nodes.addresses, core.config.site, tls=core.node_tls)
        limits = core.config.limits
        self.rates = Rates(core.rates, requests_per_s=limits.requests_per_s, burst=limits.requests_burst)
        bounds = http_limits(core)
        self.app = app = web.Application(
            middlewares=middlewares(authenticator(core), self.rates, bounds), client_max_size=bounds.body_bytes_max + 1
        )
        app[CORE], app[METRICS], app[RELAY], app[COUNTS] = core, self.metrics, self.relay, counts
        for module in (market, portfolio, history, ranking, prefs, keys, status, openapi, docs):
            app.add_routes(module.ROUTES)
        self.streams = Streams(self.relay, authenticator(core), per_user_max=limits.streams_per_user_max)
        for path in SOCKETS:
            app.router.add_get(path, self._socket, allow_head=False)
        for path in PATHS:
            if f"/v1/{path}" not in SOCKETS:
                app.router.add_route("GET" if path.startswith("cluster") else "*", f"/v1/{path}", self._relayed)
        app.router.add_route("*", "/v1/cluster/{tail:.*}", _only_at_nodes)
        if stream is not None:
            app.router.add_get(STREAM_PATH, stream)
        self._watch()

    async def _relayed(self, request: web.Request) -> web.Response:
        with self.metrics.stage("node"):
            response = await relayed(self.relay, request)
        if request.method == "GET" and request.path.startswith("/v1/instruments") and response.status == 200:
            response.headers["Cache-Control"] = "public, max-age=5"
        return response

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        is_page = request.path == "/v1/feed" and not is_socket(request)
        return await (self._relayed(request) if is_page else self.streams.handle(request))

    async def close(self) -> None:
        await self._session.close()

    # ---- metrics ----

    def watch_streams(self, hub: Hub) -> None:
        """hub: of this process, which serves the streams or feeds the workers that do."""
        watch, rows, counts = self.metrics.watch, self.metrics.watch_rows, self.counts
        watch("tiebreak_gateway_connections", "Open connections", lambda: total(counts(), "http_connections"))
        watch("tiebreak_gateway_connections_max", "Capacity", lambda: self.core.config.limits.connections_max)
        watch("tiebreak_gateway_streams", "Open streams", lambda: total(counts(), "connections"))
        watch(
            "tiebreak_gateway_workers_missing",
            "Worker processes of the file that do not serve",
            lambda: self.core.config.workers - sum(process != "core" for process in counts()),
        )
        StreamCollector(self.metrics.registry, counts)
        watch("tiebreak_gateway_tick_seconds", "Between two rounds of sending", lambda: hub.pace.tick_ms / 1000)
        watch("tiebreak_gateway_shedding", "1 while candles and leaderboard are left out", lambda: bool(hub.pace.shed))
        watch("tiebreak_gateway_round_seconds", "Of the last round", lambda: hub.pace.round_ms / 1000)
        watch("tiebreak_gateway_topics", "That someone reads", lambda: len(hub.topics))
        rows("tiebreak_gateway_fanout", "Rounds, frames, updates", ("what",), _counts(hub.counters), is_count=True)

    def watch_workers(self, supervisor: Supervisor, core: WorkerCore) -> None:
        watch, rows = self.metrics.watch, self.metrics.watch_rows
        watch("tiebreak_gateway_workers", "Worker processes that are fed", lambda: len(core.workers))
        watch("tiebreak_gateway_worker_restarts", "Started again", lambda: supervisor.restarts, is_count=True)
        rows("tiebreak_gateway_worker_links", "Workers", ("what",), _counts(core.counters), is_count=True)

    def _watch(self) -> None:
        core, watch, rows = self.core, self.metrics.watch, self.metrics.watch_rows
        projection = core.projection
        watch("tiebreak_gateway_ready", "1 when it takes traffic", lambda: not core.why_not_ready())
        watch(
            "tiebreak_gateway_staleness_seconds",
            "Age of the state that is served; -1: none yet",
            lambda: projection.standing.staleness_ms / 1000 if projection.standing.staleness_ms >= 0 else -1.0,
        )
        watch("tiebreak_gateway_index", "Log index that is served", lambda: projection.standing.index)
        watch("tiebreak_gateway_rebuilt_rows", "Rows of a rebuild so far", lambda: projection.standing.progress)
        rows(
            "tiebreak_gateway_cache_state",
            "1 for the present one",
            ("state",),
            lambda: {(projection.standing.cache.split(":", 1)[0],): 1.0},
        )
        nodes = core.cache_health.nodes
        for field, text in (
            ("up", "1 where a node of the cache answers"),
            ("used_bytes", "Memory that a node of the cache uses"),
            ("evicted", "Keys that a node of the cache threw away for want of memory"),
        ):
            read = partial(_of_nodes, nodes, field)
            rows(f"tiebreak_gateway_cache_node_{field}", text, ("node",), read, is_count=field == "evicted")
        unknown = core.portfolios.unknown
        watch("tiebreak_gateway_basis_pending", "Accounts whose lots wait for their cost", lambda: len(unknown))
        rows("tiebreak_gateway_basis", "Pasts asked for", ("what",), _counts(core.basis.counters), is_count=True)
        kept = core.quotes.counts
        watch("tiebreak_gateway_quotes_lag_seconds", "From receipt to cache, at most", lambda: kept.lag_ms / 1000)
        rows(
            "tiebreak_gateway_quotes_cached",
            "Symbols written to the cache or taken from it; rounds that failed",
            ("what",),
            lambda: {("written",): kept.written, ("recalled",): kept.recalled, ("failed",): kept.failed},
            is_count=True,
        )
        rows(
            "tiebreak_gateway_feed_state",
            "1 for the present one: up, down, open, half_open, ended",
            ("feed", "state"),
            lambda: {(source.name, source.state): 1.0 for source in core.sources},
        )
        rows("tiebreak_gateway_breaker", "0 closed, 1 open, 2 half-open", ("feed",), self._breakers)
        rows(
            "tiebreak_gateway_venue_age_seconds",
            "Since a venue was last heard",
            ("venue",),
            lambda: {
                (venue,): (core.market.clock() - at_us) / 1e6 for venue, at_us in core.market.nbbo.venues().items()
            },
        )
        rows("tiebreak_gateway_consumer_lag", "Records of the tick log not read yet", ("consumer",), self._lags)
        watch("tiebreak_gateway_ticks", "Ticks taken in", lambda: core.market.ticks, is_count=True)
        streams = self.streams
        watch("tiebreak_gateway_order_streams", "Streams of clients that end at nodes", lambda: len(streams.open))
        watch("tiebreak_gateway_node_under_way", "Requests at nodes", lambda: self.relay.under_way)
        for name, text, counters in (
            ("tiebreak_gateway_relay", "Requests to nodes, by outcome", self.relay.counters),
            ("tiebreak_gateway_order_stream_ends", "Streams to nodes, by what became of them", self.streams.counters),
            ("tiebreak_gateway_rate", "Requests counted, by where", self.rates.counters),
            ("tiebreak_gateway_feed_connections", "Of the node's event feed", core.follower.counters),
            ("tiebreak_gateway_alerts", "Price alerts", core.alerts.counters),
            ("tiebreak_gateway_deliveries", "Notices", core.dispatcher.counters),
            ("tiebreak_gateway_sites", "Links to the other site", core.sites.counters),
            ("tiebreak_gateway_identity", "New certificate files", core.identity.counters),
        ):
            rows(name, text, ("what",), _counts(counters), is_count=True)
        watch(
            "tiebreak_gateway_node_token_expiry_seconds",
            "Until the token ends that nodes are asked with; below 0: it has, or it can't be read",
            lambda: float(-1 if (left_s := core.token_ends_in_s()) is None else left_s),
        )
        watch("tiebreak_gateway_outbox", "Notices that wait", lambda: core.dispatcher.waiting)
        rows(
            "tiebreak_gateway_site_linked",
            "1 while the link stands",
            ("site",),
            lambda: {(site,): float(bool(one["linked"])) for site, one in core.sites.status().items()},
        )

    def _breakers(self) -> dict[tuple[str, ...], float]:
        numbers = {State.CLOSED: 0.0, State.OPEN: 1.0, State.HALF_OPEN: 2.0}
        return {
            (source.name,): numbers[source.feed.breaker.state] if isinstance(source, LiveSource) else 0.0
            for source in self.core.sources
        }

    def _lags(self) -> dict[tuple[str, ...], float]:
        log = self.core.market.log
        if log is None:
            return {}
        with contextlib.suppress(OSError):
            return {(name,): float(max(0, log.next_seq - seq)) for name, seq in cursors(log.folder).items()}
        return {}


async def _only_at_nodes(request: web.Request) -> web.Response:
    raise OnlyAtNodes(CHANGES)


def _of_nodes(nodes: Mapping[str, Node], field: str) -> dict[tuple[str, ...], float]:
    return {(name,): float(getattr(node, field)) for name, node in nodes.items()}


def _counts(counters: Mapping[str, int]) -> Rows:
    return lambda: {(name,): float(count) for name, count in counters.items()}
