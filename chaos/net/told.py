"""What a toxiproxy server is told of links, and how it can fail to do it."""

from msgspec import Struct


class Wedged(Exception):
    """The server gave no answer, or gave one up: nothing but a new one helps."""


class Refused(Exception):
    """The server understood and said no; the message is its own."""


class Toxic(Struct, frozen=True):
    """stream: upstream (to the target) or downstream (to the dialer). Attributes: the server's, all whole numbers."""

    name: str
    type: str
    stream: str
    attributes: dict[str, int]
    toxicity: float = 1.0


class Proxy(Struct, frozen=True):
    name: str
    listen: str
    upstream: str
    enabled: bool
    toxics: list[Toxic] = []
