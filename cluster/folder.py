"""The folder that a cluster lives in on one machine: where its files are, and how a new one is made.

DIR/topology.toml, DIR/members/*.toml, DIR/certs/, DIR/keys/ are made once; DIR/data/, DIR/log/ and DIR/run/
are what running leaves behind.
"""

import os
import secrets
import tomllib
import uuid
from pathlib import Path

from cluster.topology import (
    GATEWAY_PREFIX,
    TIEBREAKER_SITE,
    InvalidTopology,
    Member,
    MemberRole,
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

# [api_tls]  # serve the API over HTTPS
# cert = "api.crt"
# key = "api.key"
# client_ca = "../certs/ca.crt"       # verify certificates that clients offer, such as ../certs/gateway-*.crt
# require_client_certificate = true   # and take nobody without one

[timing]     # milliseconds, for example: command_timeout_ms = 5000, flush_ms = 250
[limits]     # for example: rate_per_s = 50000 (per principal), connections_max = 10000
[retention]  # days kept on disk, 0 is for ever, for example: ledger_days = 0, events_days = 7
"""


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
        return self.root / "members" / f"{member}.toml"

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


def plan(shape: str, base_port: int, *, host: str = "127.0.0.1") -> Topology:
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
    return check(Topology(cluster_id=uuid.uuid4().hex, members=members))


def create(root: Path, *, shape: str = "1+1+1", base_port: int = 7700) -> Topology:
    """Write a new cluster: topology, member files, certificates and keys. Private keys get mode 0600.

    Raises:
        FolderError: the folder holds something already; nothing was written.
        InvalidTopology: the shape or the port can't be; nothing was written.
    """
    from cluster.certificates import make_all  # noqa: PLC0415 - 60 ms of import that only this needs

    topology = plan(shape, base_port)
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
        folder.config(member.name).write_text(MEMBER_TOML.format(name=member.name), encoding="utf-8")
    # Last: what has a topology is whole.
    write_topology(folder.topology_path, topology)
    return topology


def add_member(folder: ClusterFolder, name: str) -> list[Path]:
    """Make the certificate and the file of one more member, where they are not there yet; returns what was made.

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
        folder.config(name).write_text(MEMBER_TOML.format(name=name), encoding="utf-8")
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


def _write(path: Path, content: bytes, *, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
