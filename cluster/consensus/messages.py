"""What members say to each other: one typed struct per kind, msgpack on the wire, nothing else is accepted."""

import msgspec
from msgspec import Struct

PROTOCOL_VERSION = 1


class Wire(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Array-like: the position is the name, so a field may only be added with PROTOCOL_VERSION."""


class Hello(Wire, frozen=True, tag=0):
    """The first frame, both ways. incarnation: random per process start, so that a restart is seen."""

    protocol: int
    cluster_id: str
    member: str
    incarnation: int


class Append(Wire, frozen=True, tag=1):
    """A leader's entries or heartbeat.

    sequence: stamps each message of this leader; echoed in the reply, so that a reply proves what it answers.
    entries: (term, command) of the indexes previous_index + 1, ...
    trim_index: the log may be trimmed up to here.
    """

    term: int
    sequence: int
    previous_index: int
    previous_term: int
    commit_index: int
    trim_index: int
    entries: list[tuple[int, bytes]]


class AppendReply(Wire, frozen=True, tag=2):
    """sequence: the newest Append of this term that had arrived.

    matched_index: the log agrees with the leader's up to here AND is synced here.
    retry_index: 0, or: refused, try again from here.
    """

    term: int
    sequence: int
    matched_index: int
    retry_index: int
    stored_index: int


class StaleTerm(Wire, frozen=True, tag=3):
    """To a leader of an older term."""

    term: int


class PreVote(Wire, frozen=True, tag=4):
    """Would you vote for me in `term`? Nobody's term moves."""

    term: int
    last_index: int
    last_term: int


class PreVoteReply(Wire, frozen=True, tag=5):
    term: int
    granted: bool
    current_term: int


class RequestVote(Wire, frozen=True, tag=6):
    """transfer: the leader asked for this election, so voters need not wait until it falls silent."""

    term: int
    last_index: int
    last_term: int
    transfer: bool


class Vote(Wire, frozen=True, tag=7):
    term: int


class TimeoutNow(Wire, frozen=True, tag=8):
    term: int


class ReadAsk(Wire, frozen=True, tag=9):
    ask: int


class ReadAnswer(Wire, frozen=True, tag=10):
    """index -1: refused; ask whoever leads."""

    ask: int
    index: int


class Ping(Wire, frozen=True, tag=11):
    """sent_us: the sender's wall clock; it comes back in the Pong."""

    sent_us: int


class Pong(Wire, frozen=True, tag=12):
    sent_us: int
    received_us: int


class Application(Wire, frozen=True, tag=13):
    kind: str
    body: bytes


class Rebase(Wire, frozen=True, tag=14):
    """To a witness whose next entries are trimmed everywhere: every full replica has stored up to base_index."""

    term: int
    sequence: int
    base_index: int
    base_term: int


Raft = (
    Append
    | AppendReply
    | Rebase
    | StaleTerm
    | PreVote
    | PreVoteReply
    | RequestVote
    | Vote
    | TimeoutNow
    | ReadAsk
    | ReadAnswer
)
Message = Raft | Hello | Ping | Pong | Application

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Malformed(ValueError):
    """The frame is not one of the messages above."""


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(frame: bytes | bytearray | memoryview) -> Message:
    """Raises Malformed."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, ValueError) as error:
        raise Malformed(str(error)) from error
