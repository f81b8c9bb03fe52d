"""What clients and the stream say to each other besides data frames: maps in JSON and in msgpack."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cluster.wire import Authenticate, Authorized, Pong, StreamError

__all__ = ["Authenticate", "Authorized", "Pong", "StreamError"]

SYMBOLS_PER_MESSAGE_MAX = 1_000
SYMBOL_CHARS_MAX = 80
Symbol = Annotated[str, Meta(min_length=1, max_length=SYMBOL_CHARS_MAX)]
Id = Annotated[int, Meta(ge=0, le=2**53)]


class Subscribe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="subscribe", tag_field="action"):
    """symbols: of the market; of `orders`, `portfolio` and `alerts` accounts (none: all of the token's); of
    `leaderboard` none. venue: of books. rate: as they come, or once a second. after: the position to go on behind.
    """

    channel: Annotated[str, Meta(max_length=40)]
    symbols: Annotated[list[Symbol], Meta(max_length=SYMBOLS_PER_MESSAGE_MAX)] = []
    venue: Annotated[str, Meta(max_length=40)] = ""
    rate: Literal["live", "1s"] = "live"
    after: Annotated[str, Meta(max_length=64)] = ""
    id: Id = 0


class Unsubscribe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="unsubscribe", tag_field="action"):
    """No symbols: all of the channel."""

    channel: Annotated[str, Meta(max_length=40)]
    symbols: Annotated[list[Symbol], Meta(max_length=SYMBOLS_PER_MESSAGE_MAX)] = []
    venue: Annotated[str, Meta(max_length=40)] = ""
    id: Id = 0


class Ping(Struct, frozen=True, forbid_unknown_fields=True, tag="ping", tag_field="action"):
    id: Id = 0


AnyAction = Authenticate | Subscribe | Unsubscribe | Ping


class RefusedSymbol(Struct, frozen=True):
    symbol: str
    error: str
    message: str


class Subscribed(Struct, frozen=True, omit_defaults=True, kw_only=True, tag="subscribed", tag_field="stream"):
    """These are subscribed; their newest state, or what was missed, comes next.

    position: behind it everything comes. recovered: with `after` only; false: take a snapshot, what was missed is
    not held. refused: symbols that were not subscribed, and why.
    """

    channel: str
    symbols: list[str]
    position: str
    venue: str = ""
    recovered: bool | None = None
    refused: list[RefusedSymbol] = []
    id: int = 0


class Unsubscribed(Struct, frozen=True, omit_defaults=True, kw_only=True, tag="unsubscribed", tag_field="stream"):
    channel: str
    symbols: list[str]
    venue: str = ""
    id: int = 0


class Heartbeat(Struct, frozen=True, kw_only=True, tag="heartbeat", tag_field="stream"):
    """When nothing else was sent for some seconds. position: everything subscribed up to here was sent.

    age_ms: since the source of it all was last heard.
    """

    position: str
    age_ms: int


class Status(Struct, frozen=True, kw_only=True, tag="status", tag_field="stream"):
    """How the stream is served, at its beginning and whenever that changes.

    tick_ms: at most one frame per so much. shed: channels that rest for now. source: `live`, or `lost`: what is
    served is what was known, `age_ms` old.
    """

    epoch: int
    tick_ms: int
    shed: list[str]
    source: str
    age_ms: int


class Gap(Struct, frozen=True, kw_only=True, tag="gap", tag_field="stream"):
    """Updates of these channels are missing for good: take snapshots. position: behind it everything comes."""

    channels: list[str]
    position: str
    message: str


class Closing(Struct, frozen=True, kw_only=True, tag="closing", tag_field="stream"):
    """The stream ends next. Come back, with `resume`, not before retry_after_ms: others come back too."""

    reason: str
    resume: str
    retry_after_ms: int
