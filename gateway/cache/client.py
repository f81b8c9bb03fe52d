"""One cache, whatever it is: a server of ours, a Redis or Valkey somewhere, or a Redis Cluster of several nodes."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import (
    MovedError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
)

from gateway.cache.cluster import ClusterServer, Word

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.cache")

TIMEOUT_S = 1.0
CONNECTIONS_MAX = 32
"""To one node. Who finds them all busy waits for one, within its own time."""
SCHEMES = ("redis", "rediss", "unix")
_AWAY = (RedisError, RedisClusterException, OSError, TimeoutError)


class CacheAway(RuntimeError):
    """The cache answers nothing, or an error. What it should hold is served from memory."""


class InvalidCacheUrl(ValueError):
    """The address can't be read. The message says what one looks like."""


class Server(Protocol):
    """Where commands go."""

    async def ask(self, command: Sequence[Word]) -> Any: ...

    async def nodes(self, timeout_s: float) -> dict[str, dict[str, Any] | None]:
        """By address of every node, what INFO says there; None: it does not answer."""
        ...

    async def aclose(self) -> None: ...


class Script:
    """Lua that a server runs whole or not at all, known to it by its digest once it has run there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Address(Struct, frozen=True):
    """urls: one per address that was named. cluster: None: it is asked what it is."""

    urls: tuple[str, ...]
    cluster: bool | None


def parse(url: str) -> Address:
    """`redis://[user:password@]host:port[,host:port ..][/0][?cluster=true]`, `rediss://..` or `unix://PATH`.

    Several addresses are of one cluster: one that answers is enough to find the others. Raises InvalidCacheUrl.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise InvalidCacheUrl(f"{parts.scheme or url[:40]!r}: redis://host:port, rediss://host:port or unix://PATH")
    options = dict(parse_qsl(parts.query))
    said = options.pop("cluster", "").lower()
    if said not in ("", "true", "false"):
        raise InvalidCacheUrl(f"cluster={said[:40]!r}: true or false; left out, the server is asked")
    user, _, hosts = parts.netloc.rpartition("@")
    query = f"?{urlencode(options)}" if options else ""
    urls = tuple(
        f"{parts.scheme}://{f'{user}@{host}' if user else host}{parts.path}{query}" for host in hosts.split(",")
    )
    if len(urls) > 1 and said == "false":
        raise InvalidCacheUrl("several addresses with cluster=false: several are of one cluster")
    if parts.scheme == "unix" and (said == "true" or len(urls) > 1):
        raise InvalidCacheUrl("a unix socket leads to one server, not to a cluster")
    return Address(urls, True if said == "true" or len(urls) > 1 else False if said or parts.scheme == "unix" else None)


class SingleServer:
    """One server, by redis-py's own client."""

    def __init__(self, url: str) -> None:
        self._client: Any = Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, max_connections=CONNECTIONS_MAX + 2
        )
        parts = urlsplit(url)
        self._name = parts.netloc.rpartition("@")[2] or parts.path.rpartition("/")[2]

    async def ask(self, command: Sequence[Word]) -> Any:
        return await self._client.execute_command(*command)

    async def nodes(self, timeout_s: float) -> dict[str, dict[str, Any] | None]:
        try:
            async with asyncio.timeout(timeout_s):
                return {self._name: await self._client.info()}
        except _AWAY:
            return {self._name: None}

    async def aclose(self) -> None:
        await self._client.aclose()


class CacheClient:
    """What everything in this room asks. Every method but `nodes` and `aclose` raises CacheAway.

    Connects when it is used. Whether the address is a cluster's is asked when it first answers, and again when it turns
    out to be another kind: a cache that was away at the start, or was replaced, needs no restart of ours.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._server: Server | None = None
        self._was_cluster = False
        self._finding: asyncio.Task[Server] | None = None
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)

    @property
    def is_cluster(self) -> bool:
        return isinstance(self._server, ClusterServer)

    async def ask(self, *command: Word, timeout_s: float = TIMEOUT_S) -> Any:
        """One command; the keys that it names are of one slot. Answers are redis-py's."""
        return await self._within(timeout_s, lambda server: server.ask(command))

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Word], *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """Run a script where its keys are; all of them are of one slot."""

        async def work(server: Server) -> Any:
            words = (len(keys), *keys, *arguments)
            try:
                return await server.ask(("EVALSHA", script.sha, *words))
            except NoScriptError:  # a node that is new, or was started again
                return await server.ask(("EVAL", script.text, *words))

        return await self._within(timeout_s, work)

    async def nodes(self, *, timeout_s: float = TIMEOUT_S) -> dict[str, dict[str, Any] | None]:
        """Asks every node how it is. Empty: none was ever reached."""
        return await self._server.nodes(timeout_s) if self._server is not None else {}

    async def aclose(self) -> None:
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)
        server, self._server = self._server, None
        if server is not None:
            await server.aclose()

    async def _within(self, timeout_s: float, work: Callable[[Server], Awaitable[Any]]) -> Any:
        try:
            async with asyncio.timeout(timeout_s), self._room:
                server = self._server or await self._find()
                try:
                    return await work(server)
                except SlotNotCoveredError:
                    raise  # of one slot: the server looks anew by itself, and serves the others
                except (MovedError, RedisClusterException):
                    await self._forget(server)  # what was one server is a cluster now, or the other way round
                    raise
        except _AWAY as error:
            raise CacheAway(f"{type(error).__name__}: {error}"[:300]) from error

    async def _find(self) -> Server:
        """One search for all: whoever has less time than it takes does not end it."""
        if self._finding is None or self._finding.done():
            self._finding = asyncio.get_running_loop().create_task(self._found(), name="cache")
            self._finding.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._finding)

    async def _found(self) -> Server:
        self._server = server = await self._searched()
        if self.is_cluster != self._was_cluster:  # said once: it is found anew at every ask while it has no slots
            self._was_cluster = self.is_cluster
            log.info("the cache is a cluster" if self.is_cluster else "the cache is one server")
        return server

    async def _searched(self) -> Server:
        urls, cluster = self._address.urls, self._address.cluster
        if cluster is None:
            single = SingleServer(urls[0])
            try:
                cluster = await _is_cluster(single)
            except BaseException:
                await single.aclose()
                raise
            if not cluster:
                return single
            await single.aclose()
        if not cluster:
            return SingleServer(urls[0])
        return ClusterServer(urls, timeout_s=TIMEOUT_S, connections_max=CONNECTIONS_MAX + 2)

    async def _forget(self, server: Server) -> None:
        if self._server is server:
            self._server = None
            await server.aclose()


async def _is_cluster(server: SingleServer) -> bool:
    try:
        return bool((await server.ask(("INFO", "cluster"))).get("cluster_enabled"))
    except ResponseError:
        return False  # a user who may not ask; ?cluster=true says it then


def connect(url: str) -> CacheClient:
    """A client of a redis://, rediss:// or unix:// address. Connects when it is used. Raises InvalidCacheUrl."""
    return CacheClient(parse(url))
