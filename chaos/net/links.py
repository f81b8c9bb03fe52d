"""The links that can be cut, and what a network that can cut them does, whichever way it does it."""

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

Kind = Literal["peer", "site", "node", "feed", "cache"]
"""peer: member and member. site: gateway and gateway. node: a gateway and a member's API. feed: a gateway and a venue.
cache: a gateway and its cache."""
Way = Literal["both", "to_target", "to_dialer"]
Address = tuple[str, int]
PORTS_BELOW = 32_768
"""From here the system takes ports for outgoing connections: one of them may have what a link wants."""


class NotCut(Exception):
    """A fault could not be put in, or can't be seen to bite. The run goes on, and is invalid."""


class Link(Struct, frozen=True):
    """One proxied path. Of each pair one side dials; it finds `listen` where it would find `target_at`."""

    name: str
    kind: Kind
    dialer: str
    target: str
    listen: Address
    target_at: Address


def check_links(links: list[Link]) -> None:
    """Raises NotCut: two links can't be told apart, or a port is among those that outgoing connections take."""
    for what in ("name", "listen"):
        values = [getattr(link, what) for link in links]
        if twice := [value for value in values if values.count(value) > 1]:
            raise NotCut(f"two links have the same {what}: {twice[0]}")
    for link in links:
        if link.listen[1] >= PORTS_BELOW:
            raise NotCut(f"{link.name} listens on port {link.listen[1]}: it must be below {PORTS_BELOW}")
        if any(link.dialer == one.dialer and link.target_at == one.target_at for one in links if one is not link):
            raise NotCut(f"{link.name}: {link.dialer} has another link to {link.target_at}")


class Network(Protocol):
    """Every verb returns when it is seen to hold (read back, and probed), or raises NotCut.

    A receiver that is stopped must not be touched: toxiproxy can deadlock. Callers heal before they pause, and say
    who is paused: verbs refuse its links until it goes on.
    """

    @property
    def restarts(self) -> Sequence[str]:
        """A sentence for each server that had to be started anew: connections ended, and no fault of a plan says so."""
        ...

    def quiet(self, process: str) -> None:
        """This dialer or target is about to be stopped."""
        ...

    def loud(self, process: str) -> None:
        """It goes on."""
        ...

    async def open(self, links: list[Link]) -> None: ...

    async def add(self, links: list[Link]) -> None:
        """More links, of a dialer that has none yet."""
        ...

    async def close(self) -> None: ...

    async def stall(self, name: str, way: Way = "both") -> None:
        """Nothing passes and nothing is lost: an IP partition that heals."""
        ...

    async def drop(self, name: str, way: Way = "both") -> None:
        """What is sent is lost; the connection ends when this is healed."""
        ...

    async def slow(self, name: str, latency_ms: float, jitter_ms: float = 0) -> None: ...

    async def slice(self, name: str, size_bytes: int, delay_us: int) -> None: ...

    async def cut_after(self, name: str, size_bytes: int) -> None:
        """The connection ends in the middle of a message, after so many bytes; so does the next."""
        ...

    async def refuse(self, name: str) -> None:
        """Connections end, new ones are refused."""
        ...

    async def reset(self, name: str) -> None:
        """Existing connections get a RST. Once."""
        ...

    async def hold_old(self, name: str) -> None:
        """What existing connections carry is held, new connections pass; healing releases what was held."""
        ...

    async def heal(self, name: str) -> None:
        """Take every fault of this link away."""
        ...

    async def heal_all(self) -> None: ...
