"""What one member is told at start: its TOML file and the topology, read once, checked, then never changed."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cluster.certificates import TlsFiles, check_identity
from cluster.topology import InvalidTopology, Member, MemberRole, Topology, read_topology
from node.api_tls import ApiTlsFiles, make_context
from node.auth import Authenticator, public_keys
from statemachine.codec import BATCH_BYTES_MAX, COMMANDS_PER_BATCH_MAX

FLUSH_MS_MIN = 10


class InvalidConfig(ValueError):
    """Two settings contradict each other, or one is out of its bound. Nothing was started."""

    code = "invalid_config"


class NodeTiming(Struct, frozen=True, forbid_unknown_fields=True):
    """All in milliseconds.

    command_timeout_ms: how long a command that names no time is waited for; a client may name up to the max.
    read_timeout_ms: longest wait to confirm a linearizable read.
    session_wait_ms: how long a read with a session token waits for this node before it asks the leader.
    flush_ms: longest that applied batches wait before the store writes them.
    resend_ms: a forwarded command without an answer is sent again after this time, then twice as long, and so on.
    digest_ms, digest_indexes: how often a replica reports its digest: after so much time and so many entries.
    drain_ms: longest that leaving takes, connections and all.
    """

    command_timeout_ms: int = 5_000
    command_timeout_ms_max: int = 60_000
    read_timeout_ms: int = 2_000
    session_wait_ms: int = 50
    flush_ms: int = 250
    resend_ms: int = 1_000
    digest_ms: int = 5_000
    digest_indexes: int = 1_000
    drain_ms: int = 10_000
    disk_check_ms: int = 500


class NodeLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of every queue and of what one client may take.

    waiting_max: commands that wait for their outcome here. queue_max: commands that the leader has not
        proposed yet. cancels_reserved: room in both that only cancels may use.
    pipeline: batches under way at once; what comes then is grouped. The next one gathers for 3 ms unless the pipe
        runs empty before, so that near sites have fewer and fuller batches, and far ones several under way.
    disk_free_bytes_min: with less room on disk, or in the store's store_bytes_max, writes are refused,
        until the disk has disk_free_bytes_ok again.
    log_bytes_max: the log's live size; beyond it writes are refused. log_reserve: entries kept that every replica
        has stored. log_laggard_*: a replica that is away is waited for until the log has so many entries or bytes, or
        it was silent for so long; beyond that it gets a snapshot, at snapshot_bytes_per_s. A witness waits for ever.
    """

    waiting_max: int = 200_000
    queue_max: int = 50_000
    cancels_reserved: int = 5_000
    pipeline: int = 16
    batch_commands_max: int = 1_000
    batch_bytes_max: int = 256 * 1024
    body_bytes_max: int = 256 * 1024
    frame_bytes_max: int = 1024 * 1024
    header_bytes_max: int = 8_190
    connections_max: int = 10_000
    connections_per_address_max: int = 1_000
    idle_ms: int = 60_000
    header_ms: int = 10_000
    rate_per_s: int = 50_000
    rate_burst: int = 100_000
    page_max: int = 1_000
    flush_bytes: int = 8 * 1024 * 1024
    store_bytes_max: int = 64 * 1024**3
    disk_free_bytes_min: int = 256 * 1024**2
    disk_free_bytes_ok: int = 512 * 1024**2
    stream_buffer_bytes_max: int = 8 * 1024 * 1024
    log_bytes_max: int = 32 * 1024**3
    log_reserve: int = 10_000
    log_laggard_entries: int = 1_000_000
    log_laggard_bytes: int = 4 * 1024**3
    log_laggard_ms: int = 3_600_000
    snapshot_bytes_per_s: int = 64 * 1024**2


class Retention(Struct, frozen=True, forbid_unknown_fields=True):
    """Days that sealed segments are kept; 0 is for ever. The state itself never forgets a balance or an open order."""

    ledger_days: int = 0
    trades_days: int = 0
    orders_days: int = 0
    events_days: int = 7


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """Paths from the member file's folder. session_key: 32 bytes in hex, the same on all.

    token_public_key: PEM; while a key is being changed, the old and the new one in one file.
    """

    token_public_key: str
    session_key: str


class PeerTls(Struct, frozen=True, forbid_unknown_fields=True):
    ca: str
    cert: str
    key: str


class ApiTls(Struct, frozen=True, forbid_unknown_fields=True):
    """client_ca: signs certificates of clients, gateways' say; one that is offered is verified."""

    cert: str
    key: str
    client_ca: str = ""
    require_client_certificate: bool = False


class MemberFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The TOML of one member, as it is written. Paths are relative to the file.

    dial: member to "host:port": where that member is dialed instead of its peer address, so that a proxy or a tunnel
        can stand between. Of each pair the member whose name sorts later dials. Identity stays the certificate's.
    """

    name: str
    topology: str
    data_dir: str
    auth: Auth
    tls: PeerTls
    api_tls: ApiTls | None = None
    timing: NodeTiming = NodeTiming()
    limits: NodeLimits = NodeLimits()
    retention: Retention = Retention()
    dial: dict[str, str] = {}
    log_level: str = "info"


class NodeConfig(Struct, frozen=True):
    """Everything that one process is told; paths are absolute."""

    name: str
    topology: Topology
    data_dir: Path
    token_public_key: bytes
    session_key: bytes
    tls: TlsFiles
    api_tls: ApiTlsFiles | None
    timing: NodeTiming
    limits: NodeLimits
    retention: Retention
    log_level: str
    dial: dict[str, tuple[str, int]] = {}

    @property
    def member(self) -> Member:
        return self.topology.member(self.name)

    @property
    def is_witness(self) -> bool:
        return self.member.role is MemberRole.witness


TIMING_BOUNDS: dict[str, tuple[int, int]] = {
    "command_timeout_ms": (10, 60_000),
    "command_timeout_ms_max": (10, 60_000),
    "read_timeout_ms": (10, 60_000),
    "session_wait_ms": (0, 10_000),
    "flush_ms": (FLUSH_MS_MIN, 10_000),
    "resend_ms": (100, 60_000),
    "digest_ms": (100, 3_600_000),
    "digest_indexes": (1, 10**9),
    "drain_ms": (0, 600_000),
    "disk_check_ms": (50, 60_000),
}
LIMIT_BOUNDS: dict[str, tuple[int, int]] = {
    "waiting_max": (1_000, 10_000_000),
    "queue_max": (1_000, 10_000_000),
    "cancels_reserved": (100, 1_000_000),
    "pipeline": (1, 64),
    "batch_commands_max": (1, COMMANDS_PER_BATCH_MAX),
    "batch_bytes_max": (65_536 + 256, BATCH_BYTES_MAX),
    "body_bytes_max": (1_024, 16 * 1024**2),
    "frame_bytes_max": (1_024, 16 * 1024**2),
    "header_bytes_max": (1_024, 65_536),
    "connections_max": (1, 1_000_000),
    "connections_per_address_max": (1, 1_000_000),
    "idle_ms": (100, 3_600_000),
    "header_ms": (100, 600_000),
    "rate_per_s": (1, 10**9),
    "rate_burst": (1, 10**9),
    "page_max": (1, 10_000),
    "flush_bytes": (4_096, 1024**3),
    "store_bytes_max": (16 * 1024**2, 2**46),
    "disk_free_bytes_min": (0, 2**46),
    "disk_free_bytes_ok": (0, 2**46),
    "stream_buffer_bytes_max": (4_096, 1024**3),
    "log_bytes_max": (1024**2, 2**46),
    "log_reserve": (0, 10**9),
    "log_laggard_entries": (1, 10**12),
    "log_laggard_bytes": (1024, 2**46),
    "log_laggard_ms": (1_000, 10**9),
    "snapshot_bytes_per_s": (64 * 1024, 2**40),
}
RETENTION_BOUNDS = dict.fromkeys(Retention.__struct_fields__, (0, 36500))

# (section, smaller, larger, why)
RELATIONS = (
    ("timing", "command_timeout_ms", "command_timeout_ms_max", "the default is one of the times a client may name"),
    ("timing", "session_wait_ms", "read_timeout_ms", "the wait for a token is part of the read's time"),
    ("timing", "resend_ms", "command_timeout_ms_max", "a lost command would be sent again when nobody waits any more"),
    ("limits", "cancels_reserved", "queue_max", "other commands need room too"),
    ("limits", "cancels_reserved", "waiting_max", "other commands need room too"),
    ("limits", "queue_max", "waiting_max", "whoever queues also waits"),
    ("limits", "batch_commands_max", "queue_max", "a batch is taken from the queue"),
    ("limits", "connections_per_address_max", "connections_max", "one address is part of all"),
    ("limits", "disk_free_bytes_min", "disk_free_bytes_ok", "writes would stop and start at one point"),
    ("limits", "disk_free_bytes_ok", "store_bytes_max", "an empty store would have no room"),
    ("limits", "log_reserve", "log_laggard_entries", "the one is kept always, the other only for who is away"),
    ("limits", "log_laggard_bytes", "log_bytes_max", "writes would stop before the log is trimmed"),
    ("limits", "rate_per_s", "rate_burst", "a second's worth must fit into the bucket"),
)

# (of the topology's timing, of the member's, why)
ACROSS = (
    ("heartbeat_ms", "read_timeout_ms", "a read is confirmed by a round of heartbeats"),
    ("election_ms_max", "command_timeout_ms_max", "no command could wait for an election to end"),
)


def read_config(path: Path) -> NodeConfig:
    """Raises InvalidConfig or InvalidTopology, naming the setting and both values, before anything is started."""
    path = path.resolve()
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from error
    try:
        file = msgspec.convert(tomllib.loads(text), MemberFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidConfig(f"{path}: {error}") from error
    check(file)
    base = path.parent
    try:
        topology = read_topology(base / file.topology)
    except OSError as error:
        raise InvalidConfig(f"topology = {file.topology!r}: {error.strerror}") from error
    try:
        topology.member(file.name)
    except InvalidTopology as error:
        raise InvalidConfig(f"name = {file.name!r} in {path.name}: {error}") from error
    _check_across(file, topology)
    tls = TlsFiles(
        ca=_exists(base, "tls.ca", file.tls.ca),
        certificate=_exists(base, "tls.cert", file.tls.cert),
        key=_exists(base, "tls.key", file.tls.key),
    )
    _holds("tls", lambda: check_identity(tls, file.name))
    token_public_key = _read(base, "auth.token_public_key", file.auth.token_public_key)
    _holds(
        f"auth.token_public_key = {file.auth.token_public_key!r}", lambda: Authenticator(public_keys(token_public_key))
    )
    return NodeConfig(
        name=file.name,
        topology=topology,
        data_dir=(base / file.data_dir).resolve(),
        token_public_key=token_public_key,
        session_key=_session_key(_read(base, "auth.session_key", file.auth.session_key)),
        tls=tls,
        api_tls=None if file.api_tls is None else _api_tls(base, file.api_tls),
        timing=file.timing,
        limits=file.limits,
        retention=file.retention,
        log_level=file.log_level,
        dial={name: _dialed(file.name, name, address, topology) for name, address in file.dial.items()},
    )


def check(file: MemberFile) -> MemberFile:
    """Return the file when it holds together, else raise InvalidConfig with the values and the relation."""
    _bounds("timing", file.timing, TIMING_BOUNDS)
    _bounds("limits", file.limits, LIMIT_BOUNDS)
    _bounds("retention", file.retention, RETENTION_BOUNDS)
    sections: dict[str, Any] = {"timing": file.timing, "limits": file.limits}
    for section, smaller, larger, why in RELATIONS:
        less, more = getattr(sections[section], smaller), getattr(sections[section], larger)
        if less > more:
            raise InvalidConfig(
                f"{section}.{smaller} = {less} and {section}.{larger} = {more}: {smaller} <= {larger}; {why}"
            )
    if file.log_level not in ("debug", "info", "warning", "error"):
        raise InvalidConfig(f"log_level = {file.log_level!r}: one of debug, info, warning, error")
    return file


def _check_across(file: MemberFile, topology: Topology) -> None:
    for theirs, ours, why in ACROSS:
        less, more = getattr(topology.timing, theirs), getattr(file.timing, ours)
        if less >= more:
            raise InvalidConfig(
                f"timing.{theirs} = {less} in {file.topology} and timing.{ours} = {more} in the member's file: "
                f"{theirs} < {ours}; {why}"
            )


def _dialed(me: str, name: str, address: str, topology: Topology) -> tuple[str, int]:
    others = [member.name for member in topology.others(me)]
    # Once members came or went, one that is named here may have been removed, or be added yet.
    if name == me or (name not in others and not topology.configuration_index):
        raise InvalidConfig(f"dial.{name} = {address!r}: the other members are {', '.join(others)}")
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise InvalidConfig(f"dial.{name} = {address!r}: must be host:port, with a port between 1 and 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _api_tls(base: Path, api: ApiTls) -> ApiTlsFiles:
    files = ApiTlsFiles(
        certificate=_exists(base, "api_tls.cert", api.cert),
        key=_exists(base, "api_tls.key", api.key),
        client_ca=_exists(base, "api_tls.client_ca", api.client_ca) if api.client_ca else None,
        required=api.require_client_certificate,
    )
    if files.required and files.client_ca is None:
        raise InvalidConfig(
            "api_tls.require_client_certificate = true and api_tls.client_ca is not there: nobody could be verified"
        )
    try:
        make_context(files)
    except OSError as error:
        named = " and ".join(str(path) for path in (files.certificate, files.key, files.client_ca) if path is not None)
        raise InvalidConfig(f"api_tls: {named} can't be used together: {error}") from error
    return files


def _holds(setting: str, check: Callable[[], object]) -> None:
    try:
        check()
    except ValueError as error:
        raise InvalidConfig(f"{setting}: {error}") from error


def _bounds(section: str, values: Struct, bounds: dict[str, tuple[int, int]]) -> None:
    for name, (low, high) in bounds.items():
        value = getattr(values, name)
        if not low <= value <= high:
            raise InvalidConfig(f"{section}.{name} = {value}: must be between {low} and {high}")


def _exists(base: Path, setting: str, name: str) -> Path:
    path = (base / name).resolve()
    if not path.is_file():
        raise InvalidConfig(f"{setting} = {name!r}: no such file: {path}")
    return path


def _read(base: Path, setting: str, name: str) -> bytes:
    return _exists(base, setting, name).read_bytes()


def _session_key(text: bytes) -> bytes:
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError as error:
        raise InvalidConfig("auth.session_key: 32 bytes in hex") from error
    if len(key) != 32:
        raise InvalidConfig(f"auth.session_key: {len(key)} bytes, must be 32")
    return key
