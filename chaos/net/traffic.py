"""What passes on a link, and whether its listener is there: the kernel's word, whatever a proxy says of itself."""

import asyncio

from msgspec import Struct

from chaos.net.links import Address, Link, Way
from chaos.net.sockets import LISTEN, connections, inodes

STILL_S = 0.15
"""So long nothing may pass. A proxy may hold one chunk that it was about to write when the fault came."""
SEEN_WITHIN_S = 2.0


class Sent(Struct, frozen=True):
    sent_bytes: int
    unsent_bytes: int


class Traffic(Struct, frozen=True):
    """By socket of the proxy, identified by inode: what it sent to the target, and to the dialer."""

    to_target: dict[int, Sent]
    to_dialer: dict[int, Sent]

    def passed_since(self, before: "Traffic", way: Way) -> str:
        """Which bytes passed that way meanwhile, or nothing."""
        told = []
        if way != "to_dialer" and (passed := _growth(before.to_target, self.to_target)):
            told.append(f"{passed} bytes to the target")
        if way != "to_target" and (passed := _growth(before.to_dialer, self.to_dialer)):
            told.append(f"{passed} bytes to the dialer")
        return " and ".join(told)

    @property
    def unsent(self) -> bool:
        return any(one.unsent_bytes for way in (self.to_target, self.to_dialer) for one in way.values())

    def stuck_since(self, before: "Traffic") -> str:
        """Who has read nothing meanwhile of what waits for it, or nothing."""
        for end, was, now in (
            ("target", before.to_target, self.to_target),
            ("dialer", before.to_dialer, self.to_dialer),
        ):
            for inode, one in now.items():
                if one.unsent_bytes and was.get(inode) == one:
                    return f"its {end} reads nothing, {one.unsent_bytes} bytes wait"
        return ""


def _growth(before: dict[int, Sent], after: dict[int, Sent]) -> int:
    nothing = Sent(0, 0)
    return sum(max(one.sent_bytes - before.get(inode, nothing).sent_bytes, 0) for inode, one in after.items())


def traffic(link: Link, pid: int) -> Traffic:
    """pid: of the proxy. Raises OSError."""
    mine = inodes(pid)
    to_target, to_dialer = {}, {}
    for one in connections():
        if one.state == LISTEN or one.inode not in mine:
            continue
        if one.remote == link.target_at:
            to_target[one.inode] = Sent(one.sent_bytes, one.unsent_bytes)
        elif one.local == link.listen:
            to_dialer[one.inode] = Sent(one.sent_bytes, one.unsent_bytes)
    return Traffic(to_target, to_dialer)


async def refused_at(listen: Address) -> bool:
    """Whether a connection was refused there, just now."""
    try:
        _, writer = await asyncio.open_connection(*listen)
    except ConnectionRefusedError:
        return True
    writer.transport.abort()
    return False


async def refused(link: Link, pid: int) -> str:
    """What speaks against it: a connection was accepted, or one still stands. Empty: refused."""
    if not await refused_at(link.listen):
        return "one was accepted"
    standing = len((await asyncio.to_thread(traffic, link, pid)).to_dialer)
    return f"{standing} still stand" if standing else ""
