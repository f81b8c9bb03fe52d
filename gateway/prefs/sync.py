"""Anti-entropy between two sites, without I/O: new writes are pushed, digests find what a cut or a lost disk left out.

```
hello ⇄ hello        who, of which cluster, and how much each has seen of the other
documents → stored   pushed as they are written; a few frames under way, each acknowledged when it is on disk
digests →            one hash per bucket, by the site that dials, at once and then every compare_ms
listing ⇄            users and hashes of a bucket that differs; the other pushes what it has, and wants what it lacks
want →
```

All of it may be lost or come twice: merging is idempotent, and the next comparison finds the rest.
"""

from collections import deque
from collections.abc import Iterable
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from gateway.prefs.crdt import DOCUMENT_BYTES_MAX, Malformed
from gateway.prefs.digests import BUCKETS, HASH_BYTES, Digests, bucket_of
from gateway.prefs.hlc import WRITER_CHARS_MAX

PROTOCOL_VERSION = 1
FRAME_BYTES_MAX = 1 << 20
PUSH_BYTES = 256 * 1024
"""A frame of documents is closed when it has so many bytes."""
PUSH_DOCUMENTS = 1_000
WINDOW = 4
"""Frames of documents that may be under way."""
PUSH_AHEAD = 500
"""Users that must wait before a second frame leaves."""
LISTED_MAX = 8_000
WANTED_MAX = 8_000
LISTINGS_AT_ONCE = 16
WAITING_USERS_MAX = 100_000
"""More changed users than this do not wait to be sent: a later comparison finds them."""
USER_CHARS_MAX = 64

if PUSH_BYTES + DOCUMENT_BYTES_MAX + 4_096 > FRAME_BYTES_MAX:
    raise ImportError(f"{PUSH_BYTES=} + {DOCUMENT_BYTES_MAX=} must fit in {FRAME_BYTES_MAX=}")
if LISTED_MAX * (USER_CHARS_MAX + HASH_BYTES + 8) > FRAME_BYTES_MAX:
    raise ImportError(f"{LISTED_MAX=} users must fit in {FRAME_BYTES_MAX=}")

User = Annotated[str, Meta(min_length=1, max_length=USER_CHARS_MAX)]
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Number = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(max_length=WRITER_CHARS_MAX)]


class Frame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Hello(Frame, frozen=True, tag=1):
    """commits: of the sender's store. seen_incarnation, seen_commits: the most it has seen of the receiver's; more
    than the receiver has means that the receiver's disk is an old copy."""

    protocol: Number
    cluster_id: Annotated[str, Meta(max_length=128)]
    site: Name
    incarnation: Name
    commits: Number
    seen_incarnation: Name
    seen_commits: Number


class Ping(Frame, frozen=True, tag=2):
    sent_ms: Number


class Pong(Frame, frozen=True, tag=3):
    sent_ms: Number
    wall_ms: Number


class Digest(Frame, frozen=True, tag=4):
    sums: Annotated[bytes, Meta(min_length=BUCKETS * HASH_BYTES, max_length=BUCKETS * HASH_BYTES)]


class Listing(Frame, frozen=True, tag=5):
    """The users of a bucket that sort after `after`, in order; `last`: there are no more."""

    bucket: Annotated[int, Meta(ge=0, lt=BUCKETS)]
    after: Annotated[str, Meta(max_length=USER_CHARS_MAX)]
    users: Annotated[list[tuple[User, Hash]], Meta(max_length=LISTED_MAX)]
    last: bool


class Want(Frame, frozen=True, tag=6):
    users: Annotated[list[User], Meta(max_length=WANTED_MAX)]


class Documents(Frame, frozen=True, tag=7):
    seq: Number
    incarnation: Name
    commits: Number
    documents: Annotated[list[tuple[User, bytes]], Meta(max_length=PUSH_DOCUMENTS)]


class Stored(Frame, frozen=True, tag=8):
    """The documents of that frame are on disk. held_back: fields and alerts whose clock is too far ahead."""

    seq: Number
    held_back: Number


Message = Hello | Ping | Pong | Digest | Listing | Want | Documents | Stored

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(raw: bytes | memoryview) -> Message:
    """Raises Malformed."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from error


class Refused(Exception):
    """The other side is not who it should be, or does not keep to the protocol: the link is closed."""


class Source(Protocol):
    """What is read of the store."""

    @property
    def digests(self) -> Digests: ...

    @property
    def incarnation(self) -> str: ...

    @property
    def commits(self) -> int: ...

    def raw(self, user: str) -> bytes | None: ...


class Exchange:
    """One side of one link; made anew for each link. What it wants to send is fetched with `pump`.

    dials: this side dialed, and so it sends digests. compare_ms: how often.
    """

    def __init__(self, source: Source, *, cluster_id: str, site: str, peer: str, dials: bool, compare_ms: int) -> None:
        self._source = source
        self._cluster_id = cluster_id
        self._site = site
        self._peer = peer
        self._dials = dials
        self._compare_ms = compare_ms
        self._compare_at_ms = 0
        self._replies: deque[Message] = deque()
        self._push: dict[str, None] = {}
        self._listings: dict[int, str] = {}
        self._under_way: dict[int, list[str]] = {}
        self._seq = 0
        self.hello: Hello | None = None
        """What the other side said first; None until then."""
        self.compared = 0
        self.buckets_differed = 0
        self.pushed = 0
        self.held_back_there = 0
        self.offset_ms: int | None = None
        """Their wall clock minus ours, by the last round trip."""

    # -- what happens --------------------------------------------------------------------------

    def greeting(self, seen_incarnation: str, seen_commits: int) -> Hello:
        source = self._source
        return Hello(
            PROTOCOL_VERSION, self._cluster_id, self._site, source.incarnation, source.commits,
            seen_incarnation, seen_commits,
        )  # fmt: skip

    def greeted(self, hello: Hello) -> None:
        """Raises Refused."""
        for what, found, wanted in (
            ("protocol", hello.protocol, PROTOCOL_VERSION),
            ("cluster_id", hello.cluster_id, self._cluster_id),
            ("site", hello.site, self._peer),
        ):
            if found != wanted:
                raise Refused(f"its {what} is {found!r}, wanted is {wanted!r}")
        self.hello = hello

    def received(self, message: Message, *, now_ms: int, wall_ms: int) -> Documents | None:
        """Take one message. Documents are for the caller to merge, who calls `merged` when they are on disk.

        now_ms: a clock that nobody sets. Raises Refused.
        """
        if self.hello is None:
            raise Refused(f"{type(message).__name__} before hello")
        match message:
            case Hello():
                raise Refused("a second hello")
            case Ping(sent_ms):
                self._replies.append(Pong(sent_ms, wall_ms))
            case Pong(sent_ms, their_ms):
                self.offset_ms = their_ms + max(0, now_ms - sent_ms) // 2 - wall_ms
            case Digest(sums):
                differing = self._source.digests.differing(sums)
                self.buckets_differed += len(differing)
                self._listings |= {bucket: "" for bucket in differing if bucket not in self._listings}
            case Listing():
                self._compare(message)
            case Want(users):
                self.changed(user for user in users if self._source.digests.get(user) is not None)
            case Stored(seq, held_back):
                self._under_way.pop(seq, None)
                self.held_back_there += held_back
            case Documents():
                return message
        return None

    def changed(self, users: Iterable[str]) -> None:
        """These documents are other than what the peer has."""
        for user in users:
            # Last in the queue: what is written all the time does not hold up the rest.
            if self._push.pop(user, user) is None or len(self._push) < WAITING_USERS_MAX:
                self._push[user] = None

    def merged(self, seq: int, held_back: int) -> None:
        """The documents of a frame are on disk, but for what was held back."""
        self._replies.append(Stored(seq, held_back))

    def _compare(self, listing: Listing) -> None:
        ours = self._source.digests.users(listing.bucket)
        theirs = dict(listing.users)
        if any(bucket_of(user) != listing.bucket or user <= listing.after for user in theirs):
            raise Refused(f"a listing of bucket {listing.bucket} with users that are not of it")
        until = None if listing.last else max(theirs, default=listing.after)
        want = [user for user, digest in theirs.items() if ours.get(user) != digest]
        here = [user for user in ours if listing.after < user and (until is None or user <= until)]
        self.changed(user for user in here if theirs.get(user) != ours[user])
        if want:
            self._replies.append(Want(want))

    # -- what is to be sent --------------------------------------------------------------------

    def pump(self, now_ms: int) -> list[Message]:
        """What may be sent now. Call it again when there is room on the link."""
        found: list[Message] = list(self._replies)
        self._replies.clear()
        if self.hello is None:
            return found
        if self._dials and now_ms >= self._compare_at_ms:
            self._compare_at_ms = now_ms + self._compare_ms
            self.compared += 1
            found.append(Digest(self._source.digests.sums()))
        found += [self._list(bucket) for bucket in list(self._listings)[:LISTINGS_AT_ONCE]]
        while self._may_push():
            found.append(self._documents())
        return found

    def _may_push(self) -> bool:
        """Each frame costs the other side a sync, so a small one waits while another is under way."""
        if not self._under_way:
            return bool(self._push)
        return len(self._push) >= PUSH_AHEAD and len(self._under_way) < WINDOW

    @property
    def busy(self) -> bool:
        """There is more to send at once than what one pump gave."""
        return bool(self._listings or self._replies or self._may_push())

    @property
    def waiting(self) -> int:
        """Users whose documents are to be sent, or under way."""
        return len(self._push) + sum(map(len, self._under_way.values()))

    def _list(self, bucket: int) -> Listing:
        after = self._listings.pop(bucket)
        users = sorted(item for item in self._source.digests.users(bucket).items() if item[0] > after)
        page = users[:LISTED_MAX]
        last = len(page) == len(users)
        if not last:
            self._listings[bucket] = page[-1][0]
        return Listing(bucket, after, page, last)

    def _documents(self) -> Documents:
        batch: list[tuple[str, bytes]] = []
        size = 0
        while self._push and size < PUSH_BYTES and len(batch) < PUSH_DOCUMENTS:
            user = next(iter(self._push))
            del self._push[user]
            if (raw := self._source.raw(user)) is not None:
                batch.append((user, raw))
                size += len(raw) + USER_CHARS_MAX
        self._seq += 1
        self._under_way[self._seq] = [user for user, _ in batch]
        self.pushed += len(batch)
        return Documents(self._seq, self._source.incarnation, self._source.commits, batch)
