"""Follows the event feed of any reachable node: from the last position on, over to another node, or from a snapshot."""

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
import structlog
from msgspec import Struct

from gateway.events import Position as FeedPosition
from gateway.events import UnknownEvent, decode
from gateway.projection.host import Projection

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.follow")

SILENT_S = 3.0
"""A node says something each second; one that is silent for so long is left for another."""
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 2.0
MESSAGE_BYTES_MAX = 64 << 20
PAGE_ROWS = 5_000
PAGE_TIMEOUT_S = 15.0
CLOSE_SNAPSHOT_REQUIRED = "snapshot_required"
CLOSE_EPOCH_CHANGED = "epoch_changed"


class SnapshotPage(Struct, frozen=True):
    position: str
    table: str
    rows: list[dict[str, object]]
    next_page_token: str | None = None


class _StartAnew(Exception):
    """The feed's past is gone, or of another history: a snapshot is needed."""


_decode_page = msgspec.json.Decoder(SnapshotPage).decode


class Follower:
    """Feeds a projection for ever. token: gives an auditor's token, fresh each time it is asked.

    nodes: their base addresses; the nearest first, which is preferred again and again.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        nodes: Callable[[], Sequence[str]],
        token: Callable[[], str],
        projection: Projection,
        *,
        tls: Callable[[], ssl.SSLContext | bool] = lambda: True,
    ) -> None:
        """tls: how connections to nodes that serve https are made now."""
        self._session = session
        self._tls = tls
        self._nodes = nodes
        self._token = token
        self._projection = projection
        self._snapshot_needed = False
        self.node = ""
        """Whom it follows now; empty while it looks for one."""
        self.counters = {"connected": 0, "lost": 0, "snapshots": 0, "unknown_events": 0}

    async def run(self) -> None:
        """Until cancelled. Raises nothing else."""
        pause_s, turn = PAUSE_S_MIN, 0
        while True:
            nodes = self._nodes()
            node = nodes[turn % len(nodes)]
            before = self._projection.position
            try:
                if self._snapshot_needed:
                    await self._rebuild(node)
                await self._follow(node)
            except _StartAnew as why:
                log.warning("a snapshot is needed", node=node, why=str(why))
                self._snapshot_needed = True
                continue
            except UnknownEvent as error:
                # Nothing is left out in silence: what is here stays, and its age grows.
                self.counters["unknown_events"] += 1
                log.error("an event that this version does not know: update the gateway", node=node, error=str(error))
                await asyncio.sleep(PAUSE_S_MAX)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
                log.info("a node is left", node=node, error=f"{type(error).__name__}: {error}"[:300])
            finally:
                self.node = ""
            self.counters["lost"] += 1
            turn += 1
            moved = self._projection.position != before
            pause_s = PAUSE_S_MIN if moved else min(PAUSE_S_MAX, pause_s * 2)
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause_s)

    async def _follow(self, node: str) -> None:
        position = self._projection.position
        after = str(position) if position is not None else await self._beginning(node)
        async with self._session.ws_connect(
            f"{node}/v1/feed",
            params={"after": after},
            headers={"Authorization": f"Bearer {self._token()}"},
            max_msg_size=MESSAGE_BYTES_MAX,
            autoping=True,
            ssl=self._tls(),
        ) as socket:
            self.node = node
            self.counters["connected"] += 1
            while True:
                received = await socket.receive(timeout=SILENT_S)
                if received.type is not aiohttp.WSMsgType.TEXT:
                    raise ConnectionError(f"closed: {socket.close_code} {received.extra or ''}")
                message = decode(received.data)
                if message.stream == "heartbeat" and not message.newest:
                    # It is cut off, and so may be far behind: another node may not be.
                    raise ConnectionError("it reaches no majority")
                if message.stream in ("feed", "heartbeat"):
                    self._projection.apply(message)
                elif message.stream == "error":
                    if message.error in (CLOSE_SNAPSHOT_REQUIRED, CLOSE_EPOCH_CHANGED):
                        raise _StartAnew(message.message)
                    raise ConnectionError(f"{message.error}: {message.message}")
                elif message.stream == "closing":
                    raise ConnectionError("the node is leaving")

    async def _beginning(self, node: str) -> str:
        """The feed's very beginning, in the node's present epoch."""
        async with self._session.get(
            f"{node}/v1/feed",
            params={"limit": "1"},
            headers={"Authorization": f"Bearer {self._token()}"},
            ssl=self._tls(),
            timeout=aiohttp.ClientTimeout(total=PAGE_TIMEOUT_S),
        ) as response:
            if response.status != 200:
                raise ConnectionError(f"HTTP {response.status} for the feed: {(await response.text())[:200]}")
            now = FeedPosition.parse(response.headers["X-Next-Position"])
        return str(FeedPosition(now.group, now.epoch, 0, 0))

    async def _rebuild(self, node: str) -> None:
        """Read a node's snapshot from the first page to the last. A cut connection begins anew."""
        projection = self._projection
        projection.begin_snapshot()
        self.counters["snapshots"] += 1
        token = ""
        while True:
            parameters = {"limit": str(PAGE_ROWS)} | ({"page_token": token} if token else {})
            async with self._session.get(
                f"{node}/v1/feed/snapshot",
                params=parameters,
                headers={"Authorization": f"Bearer {self._token()}"},
                ssl=self._tls(),
                timeout=aiohttp.ClientTimeout(total=PAGE_TIMEOUT_S),
            ) as response:
                if response.status != 200:
                    raise ConnectionError(f"HTTP {response.status} for a snapshot: {(await response.text())[:200]}")
                page = _decode_page(await response.read())
            for row in page.rows:
                projection.row(page.table, row)
            if not page.next_page_token:
                projection.end_snapshot(FeedPosition.parse(page.position))
                self._snapshot_needed = False
                return
            token = page.next_page_token
