"""The folder that a cluster lives in on one machine: where its files are, and how a new one is made.

DIR/topology.toml, DIR/members/*.toml, DIR/gateways/*.toml, DIR/certs/, DIR/keys/ are made once; DIR/data/, DIR/log/ and
DIR/run/ are what running leaves behind.
"""

import base64
import binascii
import json
import os
import secrets
import time
import tomllib
import uuid
from pathlib import Path

from cluster.topology import (
    GATEWAY_PREFIX,
    LAN,
    TIEBREAKER_SITE,
    InvalidTopology,
    Member,
    MemberRole,
    Timing,
    Topology,
    check,
    read_topology,
    write_topology,
)

SHAPES: dict[str, dict[str, list[str]]] = {
    "1+1+1": {"dc-a": ["dc-a"], "dc-b": ["dc-b"], TIEBREAKER_SITE: ["tiebreaker"]},
    "2+2+1": {"dc-a": ["dc-a-1", "dc-a-2"], "dc-b": ["dc-b-1", "dc-b-2"], TIEBREAKER_SITE: ["tiebreaker"]},
}
"""Members by site. A shape survives the loss of any one site."""
API_PORT_OFFSET = 10
GATEWAY_PORT_OFFSET = 20
GATEWAY_LINK_OFFSET = 25
"""A gateway listens for clients 20 ports above its cluster, and for the other site's gateway 25."""
GATEWAY_TOKEN_DAYS = 90
"""Of the token that gateways follow the feed with; `tiebreak up` makes another in the second half of its life."""
API_PREFIX = "api-"
"""Certificates that clients see are named api-NAME: they name hosts too, and no member takes them for a member's."""

MEMBER_TOML = """\
# One member of the cluster. Paths are relative to this file. What is left out has its default.
name = "{name}"
topology = "../topology.toml"
data_dir = "../data/{name}"

[auth]
token_public_key = "../keys/token.pub"  # who may ask: `tiebreak token`; may hold an old and a new key
session_key = "../keys/session.key"     # signs session tokens; the same on all members

[tls]  # between members; a certificate's name is the member's identity
ca = "../certs/ca.crt"
cert = "../certs/{name}.crt"
key = "../certs/{name}.key"

{off}[api_tls]  # serve the API over HTTPS; `tiebreak cluster init --api-tls` makes these
{off}cert = "../certs/api-{name}.crt"
{off}key = "../certs/api-{name}.key"
# client_ca = "../certs/ca.crt"       # verify certificates that clients offer, such as ../certs/gateway-*.crt
# require_client_certificate = true   # and take nobody without one

[timing]     # milliseconds, for example: command_timeout_ms = 5000, flush_ms = 250
[limits]     # for example: rate_per_s = 50000 (per principal), connections_max = 10000
[retention]  # days kept on disk, 0 is for ever, for example: ledger_days = 0, events_days = 7
# [dial]     # where another member is dialed instead of its peer address: dc-a = "127.0.0.1:9000"
"""


GATEWAY_TOML = """\
# The gateway of one datacenter. Paths are relative to this file. What is left out has its default.
site = "{site}"
cluster_id = "{cluster_id}"
data_dir = "../data/gateway-{site}"
# workers = 2      # processes that serve clients on one port; 0: this one does

[listen]
host = "{host}"
port = {port}
link_port = {link_port}  # for the other site's gateway
{off}cert = "../certs/api-gateway-{site}.crt"  # serve HTTPS
{off}key = "../certs/api-gateway-{site}.key"

[nodes]  # full replicas, the nearest first
addresses = [{nodes}]
token_file = "../keys/gateway.token"  # an auditor's; `tiebreak gateway renew-token` replaces it; read anew then
{off}ca = "../certs/ca.crt"  # whom to trust where nodes serve https

[keys]
token_public_key = "../keys/token.pub"
session_key = "../keys/session.key"
seal_keys = "../keys/seal.keys"  # contacts and webhook secrets at rest; the same file on all gateways

[tls]  # between gateways
ca = "../certs/ca.crt"
cert = "../certs/gateway-{site}.crt"
key = "../certs/gateway-{site}.key"
{peers}
[[feeds]]  # venues that do not exist; others: kind = "live" (venue, symbols) or kind = "recording" (path, speed)
kind = "simulator"
symbols = [{symbols}]
prices = {{ {prices} }}
seed = {seed}

# [cache]    # redis_url = "redis://..." takes the place of the cache server that is brought along
# [limits]   # for example: requests_per_s = 500, connections_max = 100000, drain_ms = 5000
# [notify]   # smtp = {{ host = "...", ... }}, sms_url, push_url
"""
SIMULATED = {"AAPL": 187.2, "MSFT": 420.0, "GOOG": 170.0, "BTCUSDT": 95000.0}
"""Symbols of a new gateway's simulated venues, with where they begin. Instruments of ours have our own book."""


class FolderError(Exception):
    """The folder is not there, is not a cluster's, or would be overwritten. The message says what to do."""


class ClusterFolder:
    """Names of the files in a cluster's folder. Reads nothing until asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.topology_path = root / "topology.toml"
        self.certs = root / "certs"
        self.token_key = root / "keys" / "token.key"
        self.token_public_key = root / "keys" / "token.pub"
        self.session_key = root / "keys" / "session.key"
        self.gateway_token = root / "keys" / "gateway.token"
        self.seal_keys = root / "keys" / "seal.keys"
        self.gateways = root / "gateways"

    def topology(self) -> Topology:
        """Raises FolderError: no cluster here, or its topology is not valid."""
        try:
            return read_topology(self.topology_path)
        except FileNotFoundError:
            raise FolderError(
                f"no cluster in {self.root} (there is no {self.topology_path}); "
                f"make one with `tiebreak cluster init {self.root}`, or name another with --cluster"
            ) from None
        except (OSError, InvalidTopology) as error:
            raise FolderError(f"{self.topology_path}: {error}") from error

    def config(self, member: str) -> Path:
        """The file of a member, or of a gateway, which is named gateway-SITE."""
        if member.startswith(GATEWAY_PREFIX):
            return self.gateways / f"{member.removeprefix(GATEWAY_PREFIX)}.toml"
        return self.root / "members" / f"{member}.toml"

    def gateway_names(self) -> list[str]:
        return [f"{GATEWAY_PREFIX}{path.stem}" for path in sorted(self.gateways.glob("*.toml"))]

    def gateway_listen(self, gateway: str) -> tuple[str, int, int, str]:
        """(host, port, link port, http or https) of a gateway. Raises FolderError."""
        path = self.config(gateway)
        try:
            listen = tomllib.loads(path.read_text("utf-8"))["listen"]
            scheme = "https" if listen.get("cert") else "http"
            return str(listen.get("host", "127.0.0.1")), int(listen["port"]), int(listen["link_port"]), scheme
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise FolderError(f"{path}: {type(error).__name__}: {error}") from error

    def scheme(self, member: str) -> str:
        """How the member's API is spoken to: https where its file has [api_tls], else http."""
        try:
            return "https" if "api_tls" in tomllib.loads(self.config(member).read_text("utf-8")) else "http"
        except (OSError, tomllib.TOMLDecodeError):
            return "http"

    def save(self, topology: Topology) -> None:
        """Replace the topology, at once: a reader finds the old one or the new one."""
        fresh = self.topology_path.with_suffix(".new")
        write_topology(fresh, topology)
        fresh.replace(self.topology_path)

    def data(self, member: str) -> Path:
        return self.root / "data" / member

    def log(self, member: str) -> Path:
        return self.root / "log" / f"{member}.log"

    def pid(self, member: str) -> Path:
        return self.root / "run" / f"{member}.pid"


def plan(shape: str, base_port: int, *, host: str = "127.0.0.1", timing: Timing = LAN) -> Topology:
    """The topology of a shape on one host: peers from base_port, APIs from base_port + 10.

    Raises InvalidTopology: no such shape, or a port out of range.
    """
    if shape not in SHAPES:
        raise InvalidTopology(f"shape {shape!r}: one of {', '.join(SHAPES)}")
    named = [(name, site) for site, names in SHAPES[shape].items() for name in names]
    members = [
        Member(
            name=name,
            site=site,
            role=MemberRole.witness if site == TIEBREAKER_SITE else MemberRole.replica,
            peer_host=host,
            peer_port=base_port + i,
            api_host=host,
            api_port=base_port + API_PORT_OFFSET + i,
        )
        for i, (name, site) in enumerate(named)
    ]
    return check(Topology(cluster_id=uuid.uuid4().hex, members=members, timing=timing))


def create(
    root: Path, *, shape: str = "1+1+1", base_port: int = 7700, timing: Timing = LAN, api_tls: bool = False
) -> Topology:
    """Write a new cluster: topology, member files, certificates and keys. Private keys get mode 0600.

    api_tls: members and gateways serve HTTPS, and gateways ask nodes over it; by certificates of the same authority.

    Raises:
        FolderError: the folder holds something already; nothing was written.
        InvalidTopology: the shape or the port can't be; nothing was written.
    """
    from cluster.certificates import make_all  # noqa: PLC0415 - 60 ms of import that only this needs

    topology = plan(shape, base_port, timing=timing)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FolderError(f"{root} is not empty; nothing was written. Name another folder, or remove this one first")
    folder = ClusterFolder(root)
    for part in ("members", "keys", "certs", "data", "log", "run"):
        (root / part).mkdir(parents=True, exist_ok=True)
    sites = dict.fromkeys(member.site for member in topology.members if member.site != TIEBREAKER_SITE)
    gateways = [f"{GATEWAY_PREFIX}{site}" for site in sites]
    make_all(folder.certs, topology.cluster_id, [*(member.name for member in topology.members), *gateways])
    _make_keys(folder)
    for member in topology.members:
        _write_member(folder, member.name, host=member.api_host, api_tls=api_tls)
    _make_gateways(folder, topology, base_port, api_tls=api_tls)
    # Last: what has a topology is whole.
    write_topology(folder.topology_path, topology)
    return topology


def _write_member(folder: ClusterFolder, name: str, *, host: str, api_tls: bool) -> None:
    if api_tls:
        _api_certificate(folder, name, host)
    folder.config(name).write_text(MEMBER_TOML.format(name=name, off="" if api_tls else "# "), encoding="utf-8")


def _api_certificate(folder: ClusterFolder, name: str, host: str) -> None:
    from cluster.certificates import make_certificate  # noqa: PLC0415

    make_certificate(folder.certs, f"{API_PREFIX}{name}", hosts=list(dict.fromkeys((host, "localhost"))))


def add_member(folder: ClusterFolder, name: str, *, host: str = "127.0.0.1") -> list[Path]:
    """Make the certificate and the file of one more member, where they are not there yet; returns what was made.

    It serves HTTPS where the others do; host: what its certificate for clients names.

    Raises FolderError: the authority's key is not here.
    """
    from cluster.certificates import CA_KEY, make_certificate, tls_files  # noqa: PLC0415

    files = tls_files(folder.certs, name)
    made: list[Path] = []
    if not (files.certificate.exists() and files.key.exists()):
        if not (folder.certs / CA_KEY).exists():
            raise FolderError(
                f"there is no {folder.certs / CA_KEY}, which signs certificates of members: run this where it is kept"
            )
        make_certificate(folder.certs, name)
        made += [files.certificate, files.key]
    if not folder.config(name).exists():
        api_tls = any(folder.scheme(path.stem) == "https" for path in sorted((folder.root / "members").glob("*.toml")))
        _write_member(folder, name, host=host, api_tls=api_tls)
        made += [folder.certs / f"{API_PREFIX}{name}.{kind}" for kind in ("crt", "key")] if api_tls else []
        made.append(folder.config(name))
    return made


def next_ports(topology: Topology) -> list[tuple[int, int]]:
    """(peer, API) ports for one more member on this machine, those first that continue the row; none is a member's."""
    taken = {port for member in topology.members for port in (member.peer_port, member.api_port)}
    first = max(member.peer_port for member in topology.members) + 1
    rows = (first, *range(first + API_PORT_OFFSET, 65_000 - API_PORT_OFFSET))
    found = [(port, port + API_PORT_OFFSET) for port in rows if not {port, port + API_PORT_OFFSET} & taken]
    return found[:100]


def _make_keys(folder: ClusterFolder) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write(folder.token_key, private, mode=0o600)
    _write(folder.token_public_key, public, mode=0o644)
    _write(folder.session_key, secrets.token_hex(32).encode() + b"\n", mode=0o600)


def renew_gateway_token(folder: ClusterFolder, *, days: int = GATEWAY_TOKEN_DAYS) -> float:
    """Replace the token that gateways follow the feed with; they read it anew. Returns its end, seconds since 1970.

    Raises FolderError: the key that signs tokens is not here.
    """
    import jwt  # noqa: PLC0415

    from cluster.certificates import write_file  # noqa: PLC0415

    now_s = int(time.time())
    ends_s = now_s + days * 86_400
    claims = {"iss": "tiebreak", "sub": "gateway", "role": "auditor", "accounts": [], "iat": now_s, "exp": ends_s}
    try:
        key = folder.token_key.read_text("ascii")
    except OSError as error:
        raise FolderError(f"{folder.token_key} signs tokens ({error.strerror}): run this where it is kept") from error
    token = jwt.encode(claims, key, algorithm="EdDSA")
    write_file(folder.gateway_token, token.encode() + b"\n", mode=0o600)
    return float(ends_s)


def token_life_s(path: Path) -> tuple[float, float] | None:
    """(begin, end) of the token in a file, seconds since 1970, not verified. None: it says none, or can't be read."""
    try:
        payload = path.read_text("ascii").strip().split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims.get("iat", 0)), float(claims["exp"])
    except (OSError, IndexError, KeyError, TypeError, AttributeError, ValueError, binascii.Error):
        return None


def wants_renewal(folder: ClusterFolder) -> bool:
    """The gateways' token is in the second half of its life, and what signs another is here."""
    life = token_life_s(folder.gateway_token)
    return folder.token_key.exists() and (life is None or time.time() > (life[0] + life[1]) / 2)


def _make_gateways(folder: ClusterFolder, topology: Topology, base_port: int, *, api_tls: bool) -> None:
    """A gateway per datacenter, its file and what it needs of keys."""
    folder.gateways.mkdir()
    renew_gateway_token(folder)
    _write(folder.seal_keys, f"1 {secrets.token_hex(32)}\n".encode(), mode=0o600)
    replicas = [member for member in topology.members if member.role is MemberRole.replica]
    sites = list(dict.fromkeys(member.site for member in replicas))
    for number, site in enumerate(sites):
        near = sorted(replicas, key=lambda member: member.site != site)
        peers = "".join(
            f'\n[[peers]]\nsite = "{other}"\nhost = "{near[0].api_host}"\n'
            f"port = {base_port + GATEWAY_LINK_OFFSET + place}\n"
            for place, other in enumerate(sites)
            if other != site
        )
        if api_tls:
            _api_certificate(folder, f"{GATEWAY_PREFIX}{site}", near[0].api_host)
        scheme = "https" if api_tls else "http"
        text = GATEWAY_TOML.format(
            off="" if api_tls else "# ",
            site=site,
            cluster_id=topology.cluster_id,
            host=near[0].api_host,
            port=base_port + GATEWAY_PORT_OFFSET + number,
            link_port=base_port + GATEWAY_LINK_OFFSET + number,
            nodes=", ".join(f'"{scheme}://{member.api_host}:{member.api_port}"' for member in near),
            peers=peers,
            symbols=", ".join(f'"{symbol}"' for symbol in SIMULATED),
            prices=", ".join(f"{symbol} = {price}" for symbol, price in SIMULATED.items()),
            seed=number + 1,
        )
        folder.config(f"{GATEWAY_PREFIX}{site}").write_text(text, encoding="utf-8")


def _write(path: Path, content: bytes, *, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
