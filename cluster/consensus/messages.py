"""What members say to each other: one typed struct per kind, msgpack on the wire, nothing else is accepted."""

import msgspec
from msgspec import Struct

from cluster.consensus.journal import Base
from cluster.topology import Member

PROTOCOL_VERSION = 3


class Wire(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Array-like: the position is the name, so a field may only be added with PROTOCOL_VERSION."""


class Hello(Wire, frozen=True, tag=0):
    """The first frame, both ways. incarnation: random per process start, so that a restart is seen."""

    protocol: int
    cluster_id: str
    member: str
    incarnation: int


UNANSWERED = 0
"""In place of a sequence; those begin at 1."""


class Append(Wire, frozen=True, tag=1):
    """A leader's entries or heartbeat.

    sequence: stamps each message of this leader; echoed in the reply, so that a reply proves what it answers.
        UNANSWERED: it only tells of commits, and asks for no reply.
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
    joined: False: this member lost its disk and is not counted for anything until it has been admitted.
    full: its log is at its limit.
    """

    term: int
    sequence: int
    matched_index: int
    retry_index: int
    stored_index: int
    joined: bool = True
    full: bool = False


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
    """sent_us: the sender's steady clock; it comes back in the Pong, which adds the other's wall clock."""

    sent_us: int


class Pong(Wire, frozen=True, tag=12):
    sent_us: int
    received_us: int


class Application(Wire, frozen=True, tag=13):
    kind: str
    body: bytes


class Rebase(Wire, frozen=True, tag=14):
    """To a witness whose next entries are trimmed everywhere: every full replica has stored up to base_index.

    configuration: the one in force there.
    """

    term: int
    sequence: int
    base_index: int
    base_term: int
    configuration: Base


class DiskIs(Wire, frozen=True, tag=15):
    """Which disk the sender has. The first message on a link, and again when `joined` changes.

    clean: the sender never voted, and never took an entry.
    """

    disk_id: str
    joined: bool
    clean: bool


class Admit(Wire, frozen=True, tag=16):
    """From a leader, to a member on this new disk: it has caught up, and is counted again after this term."""

    term: int
    disk_id: str


class SnapshotFile(Wire, frozen=True):
    """sha256: of the first `hashed_bytes` bytes. A sealed segment ends with its own sum, which is not part of it."""

    name: str
    size: int
    sha256: bytes
    hashed_bytes: int


class SnapshotOffer(Wire, frozen=True, tag=17):
    """From a leader to a replica whose next entry is trimmed: the state after (index, index_term).

    configuration: the one in force there.
    """

    term: int
    snapshot_id: str
    index: int
    index_term: int
    files: list[SnapshotFile]
    configuration: Base


class SnapshotAsk(Wire, frozen=True, tag=18):
    """file: its place in the offer. The answer is one chunk from `offset` on."""

    snapshot_id: str
    file: int
    offset: int


class SnapshotChunk(Wire, frozen=True, tag=19):
    """crc: of the data, over and above what TLS checks: a disk or memory may err on the way."""

    snapshot_id: str
    file: int
    offset: int
    crc: int
    data: bytes


class SnapshotEnd(Wire, frozen=True, tag=20):
    """No more of this snapshot: the receiver has or refuses it, or the sender has it no longer."""

    snapshot_id: str
    reason: str


class Members(Wire, frozen=True, tag=21):
    """Whom the sender knows, so that one who was away finds the newer members. It moves addresses, no majority.

    generation, index: of the sender's configuration, which is committed.
    """

    generation: int
    index: int
    members: list[Member]
    removed: list[str]


class Removed(Wire, frozen=True, tag=22):
    """To one who says hello and was removed from the group by the committed configuration (generation, index)."""

    generation: int
    index: int


Raft = (
    Append
    | AppendReply
    | Rebase
    | DiskIs
    | Admit
    | StaleTerm
    | PreVote
    | PreVoteReply
    | RequestVote
    | Vote
    | TimeoutNow
    | ReadAsk
    | ReadAnswer
)
Snapshot = SnapshotOffer | SnapshotAsk | SnapshotChunk | SnapshotEnd
Message = Raft | Hello | Ping | Pong | Application | Snapshot | Members | Removed

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
