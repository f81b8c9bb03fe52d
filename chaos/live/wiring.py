"""Writes the folder of a cluster in which every link leads through a place where it can be cut."""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from chaos.live import profile
from chaos.net.links import Kind, Link
from cluster import folder as cluster_folder
from cluster.folder import (
    API_PORT_OFFSET,
    GATEWAY_LINK_OFFSET,
    GATEWAY_PORT_OFFSET,
    SHAPES,
    ClusterFolder,
    add_member,
)
from cluster.launcher import ports_free
from cluster.topology import GATEWAY_PREFIX, Member, MemberRole, Standing, Timing, Topology
from cluster.wire import AddMember

HOST = "127.0.0.1"
PORTS = 100
"""What one bed takes, in a row from its base port: members and gateways as in any cluster, then these."""
PROXY_OFFSET = 30
ADDED_MAX = 3
PEERS_MAX = 5
"""Ports are kept for so many more members, each with so many links."""
CACHE_OFFSET = 70
VENUE_OFFSET = 80
BASE_PORTS = range(10_000, 32_600, PORTS)
"""Below the range from which the system takes ports for outgoing connections; all ports have five digits."""
VENUE = "venue"
CACHE_PREFIX = "cache-"
FEED, CACHE = "feed", "cache"
"""The targets of feed and cache links, as their names have them."""
GATEWAY_TAIL = """
[[feeds]]  # the venue of the bed, which speaks as Kraken does
kind = "live"
venue = "kraken"
url = "{feed}"
symbols = [{symbols}]

[cache]
redis_url = "{cache}"

[limits]
requests_per_s = 100000
requests_burst = 100000
drain_ms = 2000
"""


class NoPorts(RuntimeError):
    """Every range is in use by somebody."""


class Wiring(Struct, frozen=True):
    """caches: port by gateway; empty without gateways. venue_port: 0 without gateways."""

    folder: ClusterFolder
    topology: Topology
    links: list[Link]
    caches: dict[str, int] = {}
    venue_port: int = 0


class Settings(Struct, frozen=True):
    """What the files say. disks: where a member keeps its data, for those that have a disk of their own."""

    shape: str = "1+1+1"
    timing: Timing = profile.CHAOS
    member_timing: Mapping[str, int] = field(default_factory=lambda: dict(profile.MEMBER_TIMING))
    limits: Mapping[str, int] = field(default_factory=lambda: dict(profile.LIMITS))
    trim_often: bool = False
    gateways: bool = True
    symbols: Mapping[str, float] = field(default_factory=lambda: {"BTC-USD": 95_000.0})
    """What the venue quotes, and where it begins."""
    disks: Mapping[str, Path] = {}


def make(root: Path, settings: Settings) -> Wiring:
    """Write the cluster's folder; nothing listens yet.

    Raises FolderError, InvalidTopology, or NoPorts.
    """
    base_port = free_base_port(members=sum(map(len, SHAPES.get(settings.shape, {}).values())))
    topology = cluster_folder.create(root, shape=settings.shape, base_port=base_port, timing=settings.timing)
    return _Maker(ClusterFolder(root), topology, settings, base_port).wiring()


def widen(wiring: Wiring, settings: Settings, name: str, *, like: str, number: int) -> tuple[AddMember, list[Link]]:
    """Write the files of one more member at the site and with the role of another, and name its links: all its own.

    number: how many were added before. The topology has it as a learner from now on. Raises ValueError: its name does
    not sort last, so others would have to dial it; or NoPorts.
    """
    folder, topology = wiring.folder, wiring.folder.topology()
    if (last := max(member.name for member in topology.members)) >= name:
        raise ValueError(f"{name} does not sort after {last}, which would dial it and knows of no proxy")
    base_port = min(member.peer_port for member in wiring.topology.members)
    peer_port = base_port + len(wiring.topology.members) + number
    first_proxy = base_port + PROXY_OFFSET + len(wiring.links) + number * PEERS_MAX
    ports = [peer_port, peer_port + API_PORT_OFFSET, *range(first_proxy, first_proxy + len(topology.members))]
    if number >= ADDED_MAX or not ports_free(HOST, *ports):
        raise NoPorts(f"no ports are left for {name}, the {number + 1}. member that is added")
    there = topology.member(like)
    new = Member(
        name=name,
        site=there.site,
        role=there.role,
        peer_host=HOST,
        peer_port=peer_port,
        api_host=HOST,
        api_port=peer_port + API_PORT_OFFSET,
        standing=Standing.learner,
    )
    add_member(folder, name)
    links = [
        Link(f"{name}->{other.name}", "peer", name, other.name, (HOST, port), (other.peer_host, other.peer_port))
        for port, other in enumerate(topology.members, first_proxy)
    ]
    write_member(folder.config(name), name, settings, {link.target: link.listen for link in links})
    folder.save(replace(topology, members=[*topology.members, new]))
    asked = AddMember(
        name=name,
        site=new.site,
        role=new.role.value,
        peer_host=HOST,
        peer_port=new.peer_port,
        api_host=HOST,
        api_port=new.api_port,
    )
    return asked, links


def write_member(path: Path, name: str, settings: Settings, dial: Mapping[str, tuple[str, int]]) -> None:
    """Put settings and proxies into a member's file that was just made."""
    limits = {**settings.limits, **(profile.TRIM_OFTEN if settings.trim_often else profile.TRIM_NEVER)}
    text = _with(_with(path.read_text("utf-8"), "timing", settings.member_timing), "limits", limits)
    if name in settings.disks:
        text = _replaced(text, f'data_dir = "../data/{name}"', _line("data_dir", settings.disks[name]))
    lines = [_line(target, f"{host}:{port}") for target, (host, port) in dial.items()]
    path.write_text("\n".join([text, "[dial]", *lines, ""]), "utf-8")


def free_base_port(*, members: int) -> int:
    """Raises NoPorts."""
    draws = list(BASE_PORTS)
    random.Random(os.urandom(8)).shuffle(draws)
    offsets = [*range(members), *(API_PORT_OFFSET + at for at in range(members)), *range(GATEWAY_PORT_OFFSET, PORTS)]
    for base in draws:
        if ports_free(HOST, *(base + offset for offset in offsets)):
            return base
    raise NoPorts(f"no {PORTS} free ports in a row between {BASE_PORTS.start} and {BASE_PORTS.stop}")


class _Maker:
    """Of one folder that `cluster init` would make: rewrites who finds whom where."""

    def __init__(self, folder: ClusterFolder, topology: Topology, settings: Settings, base_port: int) -> None:
        self._folder = folder
        self._topology = topology
        self._settings = settings
        self._base_port = base_port
        self._links: list[Link] = []
        self._sites = [name.removeprefix(GATEWAY_PREFIX) for name in folder.gateway_names()]

    def wiring(self) -> Wiring:
        for member in self._topology.members:
            self._write_member(member)
        if not self._settings.gateways:
            for name in self._folder.gateway_names():
                self._folder.config(name).unlink()
            return Wiring(self._folder, self._topology, self._links)
        for place, site in enumerate(self._sites):
            self._write_gateway(place, site)
        caches = {f"{GATEWAY_PREFIX}{site}": self._cache_port(place) for place, site in enumerate(self._sites)}
        return Wiring(self._folder, self._topology, self._links, caches, self._base_port + VENUE_OFFSET)

    def _cache_port(self, place: int) -> int:
        return self._base_port + CACHE_OFFSET + place

    def _through(self, kind: Kind, dialer: str, target: str, target_at: tuple[str, int]) -> tuple[str, int]:
        """Where the dialer finds the target from now on."""
        listen = HOST, self._base_port + PROXY_OFFSET + len(self._links)
        self._links.append(Link(f"{dialer}->{target}", kind, dialer, target, listen, target_at))
        return listen

    def _write_member(self, member: Member) -> None:
        # Of each pair the member whose name sorts later dials.
        dial = {
            other.name: self._through("peer", member.name, other.name, (other.peer_host, other.peer_port))
            for other in self._topology.members
            if other.name < member.name
        }
        write_member(self._folder.config(member.name), member.name, self._settings, dial)

    def _write_gateway(self, place: int, site: str) -> None:
        name = f"{GATEWAY_PREFIX}{site}"
        path = self._folder.config(name)
        text = path.read_text("utf-8").partition("\n[[feeds]]")[0]
        replicas = [member for member in self._topology.members if member.role is MemberRole.replica]
        for node in sorted(replicas, key=lambda member: member.site != site):
            host, port = self._through("node", name, node.name, (node.api_host, node.api_port))
            text = _replaced(text, f'"http://{node.api_host}:{node.api_port}"', f'"http://{host}:{port}"')
        for other_place, other in enumerate(self._sites):
            if other < site:  # who sorts later dials
                there = HOST, self._base_port + GATEWAY_LINK_OFFSET + other_place
                host, port = self._through("site", name, f"{GATEWAY_PREFIX}{other}", there)
                text = _replaced(text, f'host = "{HOST}"\nport = {there[1]}\n', f'host = "{host}"\nport = {port}\n')
        feed = self._through("feed", name, FEED, (HOST, self._base_port + VENUE_OFFSET))
        cache = self._through("cache", name, CACHE, (HOST, self._cache_port(place)))
        tail = GATEWAY_TAIL.format(
            feed=f"ws://{feed[0]}:{feed[1]}/",
            symbols=", ".join(json.dumps(symbol) for symbol in self._settings.symbols),
            cache=f"redis://{cache[0]}:{cache[1]}/0",
        )
        path.write_text(text + tail, "utf-8")


def _line(name: str, value: object) -> str:
    # A TOML basic string takes the same escapes as a JSON string.
    return f"{json.dumps(name)} = {value if isinstance(value, int) else json.dumps(str(value))}"


def _with(text: str, table: str, values: Mapping[str, int]) -> str:
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"[{table}]"))
    lines[at + 1 : at + 1] = [_line(name, value) for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _replaced(text: str, what: str, by: str) -> str:
    if what not in text:
        raise ValueError(f"a file that was just made has no {what!r}")
    return text.replace(what, by, 1)
