"""What one gateway is told at start: its TOML file, read once, checked, then never changed."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cluster.certificates import TlsFiles, check_identity
from cluster.topology import GATEWAY_PREFIX
from gateway.notify.mail import SmtpSettings


class InvalidGateway(ValueError):
    """The file contradicts itself or names what is not there. Nothing was started."""

    code = "invalid_gateway"


class Listen(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 7720
    link_port: int = 7730
    """Where the other site's gateway finds this one."""
    cert: str = ""
    key: str = ""
    """Both: the API is served over HTTPS."""


class Peer(Struct, frozen=True, forbid_unknown_fields=True):
    """The other site's gateway. port: its link_port."""

    site: str
    host: str
    port: int


class Nodes(Struct, frozen=True, forbid_unknown_fields=True):
    """addresses: of full replicas, the nearest first. ca: whom to trust where they are https://."""

    addresses: list[str]
    token_file: str
    """An auditor's token, to follow the feed; read anew when it was replaced."""
    ca: str = ""
    present_certificate: bool = False


class Keys(Struct, frozen=True, forbid_unknown_fields=True):
    token_public_key: str
    session_key: str
    seal_keys: str
    """For contacts and webhook secrets at rest; the same file on all gateways."""


class PeerTls(Struct, frozen=True, forbid_unknown_fields=True):
    ca: str
    cert: str
    key: str


class Feed(Struct, frozen=True, forbid_unknown_fields=True):
    """One source of market data.

    kind: `simulator` (symbols, venues, updates_per_s), `live` (venue: binance, kraken or coinbase; symbols as
        "BTCUSDT=BTC-USD": the venue's name and ours), or `recording` (path, speed).
    """

    kind: str
    name: str = ""
    venue: str = ""
    url: str = ""
    symbols: list[str] = []
    venues: list[str] = []
    path: str = ""
    speed: float = 1.0
    updates_per_s: float = 200.0
    seed: int = 1
    prices: dict[str, float] = {}
    """Where simulated symbols begin."""
    loop: bool = False
    """Begin a recording again at its end."""
    record: bool = False
    """Of a live feed: write what it receives to data_dir/recordings, a file each time the gateway starts."""
    record_bytes_max: int = 1 << 30
    """Of one such file, before packing; and the older ones of this feed are deleted beyond that, packed."""


class Cache(Struct, frozen=True, forbid_unknown_fields=True):
    """redis_url: empty for one that is brought along, or what the environment's REDIS_URL says."""

    redis_url: str = ""
    memory_bytes_max: int = 1 << 30


class Market(Struct, frozen=True, forbid_unknown_fields=True):
    """quote_ttl_ms: an older quote is marked stale. bars_1m, bars_5m, bars_1h: closed bars that are kept of a symbol,
    a day, a week and a quarter; bars_max: of all symbols together, 72 bytes each."""

    quote_ttl_ms: int = 1_000
    ticklog: bool = True
    ticklog_days: int = 7
    bars_1m: int = 1_440
    bars_5m: int = 2_016
    bars_1h: int = 2_160
    bars_max: int = 4_000_000
    currency: str = "USD"
    """What the leaderboard and equity are counted in."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    connections_max: int = 100_000
    connections_per_address_max: int = 20_000
    subscriptions_max: int = 200
    streams_per_user_max: int = 20
    requests_per_s: int = 200
    requests_burst: int = 1_000
    admitted_per_s: int = 2_000
    """New streams a second, when everybody reconnects at once."""
    idle_ms: int = 120_000
    session_wait_ms: int = 50
    drain_ms: int = 5_000


class Notify(Struct, frozen=True, forbid_unknown_fields=True):
    """allowed_networks: private networks that webhooks may reach. sms_url, push_url: the operator's providers."""

    smtp: SmtpSettings | None = None
    allowed_networks: list[str] = []
    plain_http_webhooks: bool = False
    sms_url: str = ""
    push_url: str = ""
    provider_secret: str = ""


class GatewayFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The TOML of one gateway, as it is written. Paths are relative to the file."""

    site: str
    cluster_id: str
    data_dir: str
    listen: Listen
    nodes: Nodes
    keys: Keys
    tls: PeerTls
    peers: list[Peer] = []
    feeds: list[Feed] = []
    cache: Cache = Cache()
    market: Market = Market()
    limits: Limits = Limits()
    notify: Notify = Notify()
    workers: int = 0
    log_level: str = "info"


class GatewayConfig(Struct, frozen=True):
    """Everything that one process is told; paths are absolute."""

    site: str
    cluster_id: str
    data_dir: Path
    listen: Listen
    api_tls: tuple[Path, Path] | None
    nodes: Nodes
    token_file: Path
    nodes_ca: Path | None
    token_public_key: bytes
    session_key: bytes
    seal_keys: Path
    tls: TlsFiles
    peers: dict[str, tuple[str, int]]
    feeds: list[Feed]
    cache: Cache
    market: Market
    limits: Limits
    notify: Notify
    workers: int
    log_level: str

    @property
    def name(self) -> str:
        return f"{GATEWAY_PREFIX}{self.site}"


BOUNDS: dict[str, dict[str, tuple[int, int]]] = {
    "listen": {"port": (1, 65535), "link_port": (1, 65535)},
    "cache": {"memory_bytes_max": (1 << 20, 1 << 46)},
    "market": {
        "quote_ttl_ms": (10, 3_600_000),
        "ticklog_days": (1, 36_500),
        "bars_1m": (1, 10**7),
        "bars_5m": (1, 10**7),
        "bars_1h": (1, 10**7),
        "bars_max": (1, 10**9),
    },
    "limits": {
        "connections_max": (1, 10_000_000),
        "connections_per_address_max": (1, 10_000_000),
        "subscriptions_max": (1, 100_000),
        "streams_per_user_max": (1, 100_000),
        "requests_per_s": (1, 10**9),
        "requests_burst": (1, 10**9),
        "admitted_per_s": (1, 10**6),
        "idle_ms": (1_000, 3_600_000),
        "session_wait_ms": (0, 10_000),
        "drain_ms": (0, 600_000),
    },
}
FEED_KINDS = ("simulator", "live", "recording")
LIVE_VENUES = ("binance", "kraken", "coinbase")
WORKERS_MAX = 64


def read_gateway(path: Path) -> GatewayConfig:
    """Raises InvalidGateway, naming the setting and its value, before anything is started."""
    path = path.resolve()
    try:
        file = msgspec.convert(tomllib.loads(path.read_text("utf-8")), GatewayFile)
    except OSError as error:
        raise InvalidGateway(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidGateway(f"{path}: {error}") from error
    _check(file)
    base = path.parent
    tls = TlsFiles(
        ca=_exists(base, "tls.ca", file.tls.ca),
        certificate=_exists(base, "tls.cert", file.tls.cert),
        key=_exists(base, "tls.key", file.tls.key),
    )
    try:
        check_identity(tls, f"{GATEWAY_PREFIX}{file.site}")
    except ValueError as error:
        raise InvalidGateway(f"tls: {error}") from error
    listen = file.listen
    if bool(listen.cert) != bool(listen.key):
        raise InvalidGateway("listen.cert and listen.key: both or none")
    api_tls = (
        (_exists(base, "listen.cert", listen.cert), _exists(base, "listen.key", listen.key)) if listen.cert else None
    )
    session_key = _exists(base, "keys.session_key", file.keys.session_key).read_bytes().strip()
    try:
        key = bytes.fromhex(session_key.decode("ascii"))
    except ValueError as error:
        raise InvalidGateway("keys.session_key: not 64 hexadecimal digits") from error
    if len(key) != 32:
        raise InvalidGateway(f"keys.session_key: {len(key)} bytes, not 32")
    return GatewayConfig(
        site=file.site,
        cluster_id=file.cluster_id,
        data_dir=(base / file.data_dir).resolve(),
        listen=listen,
        api_tls=api_tls,
        nodes=file.nodes,
        token_file=_exists(base, "nodes.token_file", file.nodes.token_file),
        nodes_ca=_exists(base, "nodes.ca", file.nodes.ca) if file.nodes.ca else None,
        token_public_key=_exists(base, "keys.token_public_key", file.keys.token_public_key).read_bytes(),
        session_key=key,
        seal_keys=_exists(base, "keys.seal_keys", file.keys.seal_keys),
        tls=tls,
        peers={peer.site: (peer.host, peer.port) for peer in file.peers},
        feeds=[
            msgspec.structs.replace(feed, path=str(_exists(base, f"feeds[{number}].path", feed.path)))
            if feed.kind == "recording"
            else feed
            for number, feed in enumerate(file.feeds)
        ],
        cache=file.cache,
        market=file.market,
        limits=file.limits,
        notify=file.notify,
        workers=file.workers,
        log_level=file.log_level,
    )


def _check(file: GatewayFile) -> None:
    for section, bounds in BOUNDS.items():
        values: Any = getattr(file, section)
        for name, (low, high) in bounds.items():
            value = getattr(values, name)
            if not low <= value <= high:
                raise InvalidGateway(f"{section}.{name} = {value}: must be between {low} and {high}")
    if file.listen.port == file.listen.link_port:
        raise InvalidGateway(f"listen.port and listen.link_port are both {file.listen.port}")
    if not file.nodes.addresses:
        raise InvalidGateway("nodes.addresses is empty: a gateway follows at least one node")
    for address in file.nodes.addresses:
        if not address.startswith(("http://", "https://")):
            raise InvalidGateway(f"nodes.addresses: {address!r} is no address; one is http://host:port")
    if file.site in [peer.site for peer in file.peers]:
        raise InvalidGateway(f"peers: {file.site!r} is this gateway's own site")
    if not 0 <= file.workers <= WORKERS_MAX:
        raise InvalidGateway(f"workers = {file.workers}: must be between 0 and {WORKERS_MAX}")
    if file.limits.connections_per_address_max > file.limits.connections_max:
        raise InvalidGateway(
            f"limits.connections_per_address_max = {file.limits.connections_per_address_max} and "
            f"limits.connections_max = {file.limits.connections_max}: one address is part of all"
        )
    if file.log_level not in ("debug", "info", "warning", "error"):
        raise InvalidGateway(f"log_level = {file.log_level!r}: one of debug, info, warning, error")
    for number, feed in enumerate(file.feeds):
        _check_feed(f"feeds[{number}]", feed)


def _check_feed(where: str, feed: Feed) -> None:
    if feed.kind not in FEED_KINDS:
        raise InvalidGateway(f"{where}.kind = {feed.kind!r}: one of {', '.join(FEED_KINDS)}")
    if feed.kind == "live" and feed.venue not in LIVE_VENUES:
        raise InvalidGateway(f"{where}.venue = {feed.venue!r}: one of {', '.join(LIVE_VENUES)}")
    if feed.kind in ("live", "simulator") and not feed.symbols:
        raise InvalidGateway(f"{where}.symbols is empty: a {feed.kind} feed needs at least one")
    if feed.record and feed.kind != "live":
        raise InvalidGateway(f"{where}.record with kind = {feed.kind!r}: only what a live feed receives is recorded")
    if feed.record and feed.record_bytes_max < 1 << 20:
        raise InvalidGateway(f"{where}.record_bytes_max = {feed.record_bytes_max}: must be at least {1 << 20}")
    if feed.kind == "recording" and not feed.speed > 0:
        raise InvalidGateway(f"{where}.speed = {feed.speed}: must be above 0")
    if feed.kind == "simulator" and not 0 < feed.updates_per_s <= 1_000_000:
        raise InvalidGateway(f"{where}.updates_per_s = {feed.updates_per_s}: must be above 0 and at most 1000000")


def _exists(base: Path, setting: str, name: str) -> Path:
    path = (base / name).resolve()
    if not path.is_file():
        raise InvalidGateway(f"{setting} = {name!r}: no such file: {path}")
    return path
