"""Faults around gateways and clients: the other site, the nodes, the venue, the cache, the clients' own connections."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from chaos.faults import seeing
from chaos.faults.nemesis import Detail, Nemesis, Struck, drawn, felt
from chaos.faults.network import LinkNemesis
from chaos.faults.target import Target
from chaos.net.links import Kind, Link, NotCut


class OfGateways(LinkNemesis):
    """detail: `gateways`, by name; by itself one of them, or all."""

    kind: Kind

    def available(self, target: Target) -> str:
        return "" if any(link.kind == self.kind for link in target.links) else f"there is no {self.kind} link"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        gateways = drawn(detail, "gateways", lambda: self.draw_gateways(target, rng))
        return [link for link in target.links if link.kind == self.kind and link.dialer in gateways], {
            "gateways": gateways
        }

    def draw_gateways(self, target: Target, rng: Random) -> list[str]:
        dialers = sorted({link.dialer for link in target.links if link.kind == self.kind})
        return rng.choice([dialers, [rng.choice(dialers)]])


class SiteCut(OfGateways):
    name = "site-cut"
    line = "cut the link between the gateways of the two sites"
    parts = frozenset({"gateway links"})
    kind = "site"


class GatewayCut(OfGateways):
    """Other than by a cut between the datacenters, a gateway is left without any node."""

    name = "gateway-cut"
    line = "cut a gateway off from all nodes: it serves what it has, and says how old it is"
    parts = frozenset({"gateway links"})
    kind = "node"


class FeedFrozen(OfGateways):
    name = "feed-frozen"
    line = "a venue's connection stays and nothing comes"
    parts = frozenset({"feed links"})
    kind = "feed"

    def draw_how(self, rng: Random) -> str:
        return "stall"

    async def bite(self, target: Target, struck: Struck) -> str:
        # A gateway itself gives a silent connection up after 15 s only.
        return await felt(lambda: seeing.frozen(self.links), f"{self.name}: a venue that speaks and is not heard")


class CacheCut(OfGateways):
    name = "cache-cut"
    line = "cut a gateway off from its cache"
    parts = frozenset({"cache links"})
    kind = "cache"


class ClientCut(Nemesis):
    """This process's own connections to members and gateways, whoever made them: nobody needs to offer a hook.

    detail: `share` of those that stand.
    """

    name = "client-cut"
    line = "end connections of clients, answers under way or not"
    parts = frozenset({"clients"})

    def __init__(self) -> None:
        self.cut = 0

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        share = drawn(detail, "share", lambda: rng.choice((0.3, 1.0)))
        doors = {urlsplit(url).port: name for name, url in target.addresses.items()}
        hit = set()
        for connection in _ours():
            with connection:
                port = _peer_port(connection)
                if port in doors and rng.random() < share:
                    # Both ways at once: what is half sent stays half sent, and no answer comes any more.
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                        self.cut += 1
                        hit.add(doors[port])
        return Struck(sorted(hit), {"share": share})

    async def bite(self, target: Target, struck: Struck) -> str:
        if not self.cut:
            raise NotCut("client-cut: no client had a connection")
        return f"{self.cut} connections ended"

    async def end(self, target: Target) -> None:
        """Clients connect again by themselves."""


def _ours() -> Iterator[socket.socket]:
    """A second handle of each socket of this process. Closing one leaves the socket open."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            if os.readlink(entry).startswith("socket:"):
                yield socket.socket(fileno=os.dup(int(entry.name)))


def _peer_port(connection: socket.socket) -> int:
    with contextlib.suppress(OSError):
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            return int(connection.getpeername()[1])
    return 0
