"""The gateways in `tiebreak status`: asked side by side, and what is wrong with each in a word or two."""

import asyncio
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from cluster.folder import ClusterFolder
from cluster.launcher import Launcher

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 1 << 20
LAG_MAX = 10_000
"""A gateway that is further behind the members than this is told as lagging."""
STALE_MS_MAX = 10_000
"""An older state of the cluster is told as stale; nodes say something each second."""
TOKEN_S_MIN = 14 * 86_400
"""A gateway's own token that ends sooner wants to be renewed."""
FEED_TROUBLE = ("down", "open", "half_open")

COLUMNS = ("gateway", "state", "index", "lag", "age", "market", "cache", "peer", "streams", "health")
NUMBERS = ("index", "lag", "age", "market", "streams")


class SiteLink(Struct, frozen=True):
    linked: bool = False
    waiting: int | None = None


class GatewayView(Struct, frozen=True):
    """What a gateway says of itself (/v1/gateway). Ages in milliseconds; -1: nothing was heard yet."""

    gateway: str
    site: str
    ready: bool
    reason: str = ""
    index: int = 0
    staleness_ms: int = -1
    market_age_ms: int = -1
    """Since any venue but our own was last heard."""
    cache: str = ""
    follows: str = ""
    feeds: dict[str, str] = {}
    sites: dict[str, SiteLink] = {}
    streams: int = 0
    connections: int = 0
    workers: int = 0
    workers_wanted: int = 0
    token_ends_in_s: int | None = None


class GatewayRow(Struct, frozen=True):
    """One gateway as the table and --json show it. lag: log entries behind the member that applied most."""

    name: str
    site: str
    healthy: bool
    health: str
    url: str
    error: str = ""
    lag: int = 0
    view: GatewayView | None = None


class Heard(Struct, frozen=True):
    """A gateway's answer, or why there is none. started: it is known to have been started here."""

    name: str
    url: str
    view: GatewayView | None = None
    error: str = ""
    started: bool = False


async def ask_all(folder: ClusterFolder, token: str, ca: Path | None = None) -> list[Heard]:
    """Ask every gateway of the folder, all at once. ca: whom to trust where they serve https."""
    names = folder.gateway_names()
    if not names:
        return []
    launcher = Launcher(folder)
    places = {name: folder.gateway_listen(name) for name in names}
    return await asyncio.gather(
        *(
            asyncio.to_thread(
                _ask, name, f"{scheme}://{host}:{port}", token, ca or folder.certs / "ca.crt",
                started=launcher.running(name) is not None or folder.pid(name).exists(),
            )
            for name, (host, port, _, scheme) in places.items()
        )
    )  # fmt: skip


def _ask(name: str, url: str, token: str, ca: Path, *, started: bool) -> Heard:
    request = urllib.request.Request(f"{url}/v1/gateway", headers={"Authorization": f"Bearer {token}"})
    try:
        tls = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=tls) as response:
            view = msgspec.json.decode(response.read(ANSWER_BYTES_MAX), type=GatewayView)
            return Heard(name, url, view, started=started)
    except urllib.error.HTTPError as error:
        return Heard(name, url, error=f"HTTP {error.code}: {_message(error.read(4_096))}", started=True)
    except (OSError, http.client.HTTPException, msgspec.MsgspecError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Heard(name, url, error=str(getattr(reason, "strerror", "") or reason), started=started)


def _message(raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw, type=dict[str, object])["message"])
    except (msgspec.MsgspecError, KeyError):
        return "no answer of a gateway"


def judge_gateways(found: Sequence[Heard], applied: int) -> list[GatewayRow]:
    """applied: the furthest log index that a member has applied.

    Where no gateway was ever started, their absence is no fault; beside one that runs it is.
    """
    meant = any(one.started or one.view is not None for one in found)
    rows = []
    for one in found:
        view = one.view
        if view is None:
            health = "unreachable" if meant else "not started"
            rows.append(GatewayRow(one.name, one.name.removeprefix("gateway-"), not meant, health, one.url, one.error))
            continue
        lag = max(0, applied - view.index)
        problem = _problem(view, lag)
        rows.append(GatewayRow(one.name, view.site, not problem, problem or "ok", one.url, "", lag, view))
    return rows


def _problem(view: GatewayView, lag: int) -> str:
    if not view.ready:
        return view.reason or "not ready"
    if not 0 <= view.staleness_ms <= STALE_MS_MAX:
        return "stale"
    if lag > LAG_MAX:
        return "lagging"
    if view.cache.partition(":")[0] not in ("ok", "none", "empty", "starting"):
        return f"cache {view.cache.partition(':')[0]}"
    if apart := [site for site, link in view.sites.items() if not link.linked]:
        return f"no link to {', '.join(apart)}"
    if silent := [name for name, state in view.feeds.items() if state in FEED_TROUBLE]:
        return f"feed {', '.join(silent)} down"
    if view.workers < view.workers_wanted:
        return f"{view.workers} of {view.workers_wanted} workers"
    if view.token_ends_in_s is not None and view.token_ends_in_s < TOKEN_S_MIN:
        return "token ends soon"
    return ""


def cells(row: GatewayRow) -> tuple[str, ...]:
    """For people, in the order of COLUMNS."""
    view = row.view
    if view is None:
        return (row.name, *[""] * (len(COLUMNS) - 2), row.health)
    linked = [link.linked for link in view.sites.values()]
    return (
        row.name,
        "ready" if view.ready else "not ready",
        str(view.index),
        str(row.lag),
        age(view.staleness_ms),
        age(view.market_age_ms),
        view.cache.partition(":")[0],
        "" if not linked else "linked" if all(linked) else "apart",
        str(view.streams),
        row.health,
    )


def age(age_ms: int) -> str:
    """In seconds, as one word."""
    return "never" if age_ms < 0 else f"{age_ms / 1_000:.1f}s"
