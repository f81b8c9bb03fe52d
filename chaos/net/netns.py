"""Links cut by the kernel's packet filter, in a network namespace of this run's own: packets are dropped, as they are.

The whole run moves into a namespace of its own, where all addresses are loopback still, and nothing of the machine's
network is touched. The kernel takes the namespace away with its last process, however that ended. There each link's
`listen` leads to its `target_at` without a process between, and rules match the link, the way and the connection.
"""

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from msgspec import Struct

from chaos.net.links import Link, NotCut, Way, check_links
from chaos.net.sockets import ESTABLISHED, connections
from chaos.net.traffic import SEEN_WITHIN_S, STILL_S, refused_at

CLONE_NEWNET = 0x40000000
PROGRAMS = ("unshare", "ip", "ss", "nft")
HERE = "/proc/thread-self/ns/net"
TABLE = "ip tiebreak_links"
LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
"""Else the kernel takes retransmissions that come late for strangers, and no longer leads them to the target."""
DIRECTION = {"both": "", "to_target": "ct direction original ", "to_dialer": "ct direction reply "}
BASE_CHAINS = """\
chain lead { type nat hook output priority -100; }
chain arriving { type filter hook input priority 0; }
"""
NOT_A_RESET = "tcp flags & rst == 0 "
"""Our own RSTs pass."""

_ours: set[str] = set()
_libc = ctypes.CDLL(None, use_errno=True)


def unavailable() -> str:
    """Why packets can't be dropped here; empty when they can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed: make nftables (ip and ss are of iproute2)"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "add table ip t; add chain ip t c { type nat hook output priority -100; }"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if tried.returncode == 0 else f"no namespace with a packet filter: {tried.stderr.strip()[:200]}"


def enter() -> None:
    """Move this thread into a network namespace of its own, with a loopback and nothing else; for good.

    Threads and processes that it starts from now on are there as well; those that it has started are not.
    Raises NotCut.
    """
    if why := unavailable():
        raise NotCut(why)
    if _libc.unshare(CLONE_NEWNET):
        raise NotCut(f"no network namespace of our own: {os.strerror(ctypes.get_errno())}")
    done = subprocess.run(["ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotCut(f"no loopback in the namespace: {done.stderr.strip()}")
    if LIBERAL.exists():
        LIBERAL.write_text("1", "ascii")
    _ours.add(os.readlink(HERE))


def entered() -> bool:
    """Whether this thread's network is one that `enter` made."""
    return os.readlink(HERE) in _ours


class _Cut(Struct):
    """What stands on a link. held: the dialer's ports of connections that are held. dropped: bytes are to be lost."""

    link: Link
    chain: str
    stalled: set[Way] = set()
    held: set[int] = set()
    loss: dict[Way, int] = {}
    refused: bool = False
    dropped: bool = False

    def rules(self) -> list[str]:
        rules = [f"{DIRECTION[way]}drop" for way in sorted(self.stalled)]
        rules += [f"meta l4proto tcp ct original proto-src {port} drop" for port in sorted(self.held)]
        rules += [f"{DIRECTION[way]}numgen random mod 100 < {percent} drop" for way, percent in self.loss.items()]
        return rules + ([f"{NOT_A_RESET}reject with tcp reset"] if self.refused else [])


class NamespaceNetwork:
    """Implements chaos.net.links.Network, for a thread that has called `enter`: its verbs are those of packets.

    TCP repeats what is dropped, so a stall loses nothing; after it the sender may wait for some seconds before it
    tries again. A way alone starves the other within 0.3 s, for its acknowledgements are packets too. A connection
    that is dialed during a stall does not come about, where a proxy would take it.
    """

    restarts: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._cuts: dict[str, _Cut] = {}

    async def open(self, links: list[Link]) -> None:
        """Raises NotCut: not in a namespace of our own, or somebody listens where a link does."""
        if not entered():
            raise NotCut("the machine's own network is not to be touched: call chaos.net.netns.enter first")
        text = f"table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{BASE_CHAINS}}}\n"
        await _run("nft", "-f", "-", text=text)
        await self.add(links)

    async def add(self, links: list[Link]) -> None:
        """Raises NotCut: somebody listens where a link does."""
        check_links([*(cut.link for cut in self._cuts.values()), *links])
        for link in links:
            with socket.socket() as probe:
                try:
                    probe.bind(link.listen)
                except OSError as error:
                    raise NotCut(f"{link.name}: {link.listen[1]}: {error.strerror}") from error
        lines = []
        for link in links:
            self._cuts[link.name] = cut = _Cut(link, f"link{len(self._cuts)}")
            (host, port), (target_host, target_port) = link.listen, link.target_at
            original = f"ct original ip daddr {host} meta l4proto tcp ct original proto-dst {port}"
            lines += [
                f"add chain {TABLE} {cut.chain}",
                f"add rule {TABLE} lead ip daddr {host} tcp dport {port} dnat to {target_host}:{target_port}",
                f"add rule {TABLE} arriving {original} jump {cut.chain}",
            ]
        await _run("nft", "-f", "-", text="\n".join([*lines, ""]))

    async def close(self) -> None:
        if self._cuts:
            self._cuts.clear()
            await _run("nft", f"delete table {TABLE}")

    def quiet(self, process: str) -> None:
        """Nothing of ours waits for a receiver."""

    def loud(self, process: str) -> None:
        """See quiet."""

    async def stall(self, name: str, way: Way = "both") -> None:
        cut = self._find(name)
        cut.stalled.add(way)
        await self._apply(cut)
        deadline = time.monotonic() + SEEN_WITHIN_S
        while passed := await self._passing(cut.link, way):
            if time.monotonic() > deadline:
                raise NotCut(f"{name}: packets are dropped, and {passed}")

    async def drop(self, name: str, way: Way = "both") -> None:
        """As a stall; healing ends the connections before TCP can repeat."""
        self._find(name).dropped = True
        await self.stall(name, way)

    async def lose(self, name: str, percent: int, way: Way = "both") -> None:
        """So many of 100 packets are lost, by chance."""
        cut = self._find(name)
        cut.loss[way] = percent
        await self._apply(cut)

    async def slow(self, name: str, latency_ms: float, jitter_ms: float = 0) -> None:
        raise NotCut(f"{name}: a packet filter slows nothing")

    async def slice(self, name: str, size_bytes: int, delay_us: int) -> None:
        raise NotCut(f"{name}: a packet filter slices nothing")

    async def cut_after(self, name: str, size_bytes: int) -> None:
        raise NotCut(f"{name}: a packet filter counts no bytes of a connection")

    async def refuse(self, name: str) -> None:
        cut = self._find(name)
        cut.refused = True
        await self._apply(cut)
        await self._end_connections(cut.link)
        if not await refused_at(cut.link.listen):
            raise NotCut(f"{name} still takes connections")

    async def reset(self, name: str) -> None:
        """Raises NotCut: no connection stands, or this kernel ends none on request."""
        link = self._find(name).link
        if not _dialed(link):
            raise NotCut(f"{name} has no connection to reset")
        await self._end_connections(link)

    async def hold_old(self, name: str) -> None:
        """Raises NotCut: no connection stands."""
        cut = self._find(name)
        cut.held |= set(_dialed(cut.link))
        if not cut.held:
            raise NotCut(f"{name} has no connection to hold")
        await self._apply(cut)

    async def heal(self, name: str) -> None:
        cut = self._find(name)
        dropped = cut.dropped
        self._cuts[name] = healed = _Cut(cut.link, cut.chain)
        if dropped:  # while nothing passes: else TCP repeats what is to be lost
            await self._end_connections(cut.link)
        await self._apply(healed)

    async def heal_all(self) -> None:
        for name in list(self._cuts):
            await self.heal(name)

    def _find(self, name: str) -> _Cut:
        if name not in self._cuts:
            raise NotCut(f"there is no link {name}")
        return self._cuts[name]

    async def _apply(self, cut: _Cut) -> None:
        """Raises NotCut: the rules don't read back."""
        rules = cut.rules()
        lines = [f"flush chain {TABLE} {cut.chain}", *(f"add rule {TABLE} {cut.chain} {rule}" for rule in rules)]
        await _run("nft", "-f", "-", text="\n".join([*lines, ""]))
        listed = await _run("nft", "list", "chain", *TABLE.split(), cut.chain)
        found = sum(line.strip().endswith(("drop", "tcp reset")) for line in listed.splitlines())
        if found != len(rules):
            raise NotCut(f"{cut.link.name}: asked for {rules}, reads back as {listed}")

    async def _passing(self, link: Link, way: Way) -> str:
        before = _received(link)
        await asyncio.sleep(STILL_S)
        for end, count in _received(link).items():
            if way in ("both", end[0]) and count > before.get(end, 0):
                return f"{count - before.get(end, 0)} bytes pass {end[0]}"
        return ""

    async def _end_connections(self, link: Link) -> None:
        """The target's kernel forgets them and says so by a RST. Raises NotCut: they stand."""
        target = f"{link.target_at[0]}:{link.target_at[1]}"
        for port in _dialed(link):
            await _run("ss", "-K", "-t", "src", target, "dport", "=", f":{port}")
        deadline = time.monotonic() + SEEN_WITHIN_S
        while (standing := _dialed(link)) and any(_is_target(link, port) for port in standing):
            if time.monotonic() > deadline:
                raise NotCut(f"{link.name}: {len(standing)} connections stand; can this kernel end them on request?")
            await asyncio.sleep(0.01)


def _dialed(link: Link) -> list[int]:
    """The dialer's ports of the connections that stand."""
    return [one.local[1] for one in connections() if one.remote == link.listen and one.state == ESTABLISHED]


def _is_target(link: Link, port: int) -> bool:
    return any(one.local == link.target_at and one.remote[1] == port for one in connections())


def _received(link: Link) -> dict[tuple[Way, int], int]:
    """Bytes that arrived, by way and dialer's port."""
    every = list(connections())
    dialed = {one.local: one for one in every if one.remote == link.listen}
    found: dict[tuple[Way, int], int] = {("to_dialer", at[1]): one.received_bytes for at, one in dialed.items()}
    for one in every:
        if one.local == link.target_at and one.remote in dialed:
            found["to_target", one.remote[1]] = one.received_bytes
    return found


async def _run(*command: str, text: str = "") -> str:
    """Not on another thread: that one may be in another namespace. Raises NotCut."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, error = await process.communicate(text.encode())
    if process.returncode:
        raise NotCut(f"{' '.join(command)} failed: {error.decode('utf-8', 'replace').strip()[:300]}")
    return out.decode()
