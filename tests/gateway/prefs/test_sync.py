"""The exchange without I/O: whatever is written, cut or lost, two sites end with the same documents."""

import random
from collections import deque
from collections.abc import Callable

import pytest

from gateway.prefs.alert import Condition, Terms
from gateway.prefs.crdt import (
    EMPTY,
    Document,
    Malformed,
    decode,
    encode,
    merge,
    with_alert,
    with_fields,
    without_alerts,
)
from gateway.prefs.digests import BUCKETS, HASH_BYTES, Digests, bucket_of, hash_of
from gateway.prefs.hlc import Clock, wall_ms
from gateway.prefs.sync import (
    FRAME_BYTES_MAX,
    LISTED_MAX,
    PROTOCOL_VERSION,
    WINDOW,
    Digest,
    Documents,
    Exchange,
    Hello,
    Listing,
    Message,
    Ping,
    Pong,
    Refused,
    Stored,
    Want,
)
from gateway.prefs.sync import decode as decode_frame
from gateway.prefs.sync import encode as encode_frame


class Shelf:
    """A store in memory: what an exchange reads."""

    def __init__(self, site: str, wall: Callable[[], int] = wall_ms) -> None:
        self.site = site
        self.incarnation = f"{site}.1"
        self.commits = 0
        self.digests = Digests()
        self.documents: dict[str, Document] = {}
        self.clock = Clock(self.incarnation, wall=wall)
        self.exchange: Exchange | None = None

    def raw(self, user: str) -> bytes | None:
        return encode(self.documents[user]) if user in self.documents else None

    def put(self, user: str, document: Document, *, local: bool = True) -> None:
        self.documents[user] = document
        self.commits += 1
        self.digests.set(user, hash_of(user, encode(document)))
        if local and self.exchange is not None:
            self.exchange.changed([user])

    def write(self, user: str, value: bytes) -> None:
        self.put(user, with_fields(self.documents.get(user, EMPTY), {"language": value}, self.clock.next()))

    def take(self, message: Documents) -> None:
        for user, raw in message.documents:
            theirs = decode(raw)
            for stamp in theirs.stamps():
                self.clock.observe(stamp)
            self.put(user, merge(self.documents.get(user, EMPTY), theirs), local=False)

    def link(self, peer: str, *, dials: bool) -> Exchange:
        self.exchange = Exchange(self, cluster_id="c", site=self.site, peer=peer, dials=dials, compare_ms=1_000)
        return self.exchange


class Pair:
    """Two shelves and the link between them; every message goes over the wire format."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.a, self.b = (Shelf(site, lambda: 1_000_000 + self.now_ms) for site in ("dc-a", "dc-b"))
        self.wire: dict[str, deque[Message]] = {"dc-a": deque(), "dc-b": deque()}
        self.sent: list[Message] = []

    def connect(self) -> None:
        self.wire = {"dc-a": deque(), "dc-b": deque()}
        one, other = self.a.link("dc-b", dials=False), self.b.link("dc-a", dials=True)
        one.greeted(other.greeting("", 0))
        other.greeted(one.greeting("", 0))

    def cut(self) -> None:
        """What is under way is lost."""
        self.a.exchange = self.b.exchange = None

    def turn(self) -> None:
        for ours, theirs in ((self.a, self.b), (self.b, self.a)):
            if ours.exchange is None:
                return
            for message in ours.exchange.pump(self.now_ms):
                self.sent.append(message)
                assert len(encode_frame(message)) <= FRAME_BYTES_MAX
                self.wire[theirs.site].append(decode_frame(encode_frame(message)))

    def deliver(self, shelf: Shelf, count: int) -> None:
        queue = self.wire[shelf.site]
        for _ in range(min(count, len(queue))):
            assert shelf.exchange is not None
            documents = shelf.exchange.received(queue.popleft(), now_ms=self.now_ms, wall_ms=0)
            if documents is not None:
                shelf.take(documents)
                shelf.exchange.merged(documents.seq, 0)

    def settle(self, turns: int = 200) -> None:
        for _ in range(turns):
            self.turn()
            self.deliver(self.a, 1_000)
            self.deliver(self.b, 1_000)
            if not any(self.wire.values()) and not self.a.exchange.busy and not self.b.exchange.busy:  # type: ignore[union-attr]
                return
        pytest.fail("they go on talking")

    def equal(self) -> bool:
        return self.a.documents == self.b.documents and self.a.digests.sums() == self.b.digests.sums()

    def count(self, kind: type[Message]) -> int:
        return sum(isinstance(message, kind) for message in self.sent)


def test_a_write_is_pushed_at_once_and_acknowledged() -> None:
    pair = Pair()
    pair.connect()
    pair.settle()
    pair.sent.clear()
    pair.a.write("ann", b"de")
    pair.settle()
    assert pair.equal()
    assert pair.sent == [Documents(1, "dc-a.1", 1, [("ann", encode(pair.a.documents["ann"]))]), Stored(1, 0)]
    assert pair.a.exchange is not None
    assert pair.a.exchange.waiting == 0


def test_what_was_written_apart_on_both_sides_meets() -> None:
    pair = Pair()
    for n in range(300):
        pair.a.write(f"only-a-{n}", b"1")
        pair.b.write(f"only-b-{n}", b"2")
        pair.a.write(f"both-{n}", b"3")
        pair.b.write(f"both-{n}", b"4")
    pair.connect()
    pair.settle()
    assert pair.equal()
    assert len(pair.a.documents) == 900


def test_a_site_that_lost_everything_is_filled() -> None:
    pair = Pair()
    for n in range(5_000):
        pair.a.write(f"user-{n}", b"%d" % n)
    pair.connect()
    pair.settle(2_000)
    assert pair.equal()
    assert len(pair.b.documents) == 5_000
    assert pair.count(Documents) >= 5


def test_two_that_agree_say_no_more_than_their_digests() -> None:
    pair = Pair()
    for n in range(100):
        pair.a.write(f"user-{n}", b"1")
    pair.connect()
    pair.settle()
    pair.sent.clear()
    pair.now_ms = 5_000
    pair.settle()
    assert [type(message) for message in pair.sent] == [Digest]


def test_one_document_that_differs_moves_alone() -> None:
    pair = Pair()
    for n in range(3_000):
        pair.a.write(f"user-{n}", b"1")
    pair.connect()
    pair.settle(1_000)
    pair.cut()
    pair.b.write("user-7", b"2")
    pair.connect()
    pair.sent.clear()
    pair.now_ms = 5_000
    pair.settle()
    assert pair.equal()
    moved = [user for message in pair.sent if isinstance(message, Documents) for user, _ in message.documents]
    assert set(moved) == {"user-7"}
    assert pair.count(Listing) == 1


def test_no_more_than_the_window_is_under_way() -> None:
    pair = Pair()
    pair.connect()
    pair.settle()
    for n in range(20_000):
        pair.a.write(f"user-{n}", b"1")
    assert pair.a.exchange is not None
    frames = pair.a.exchange.pump(0)
    assert len([frame for frame in frames if isinstance(frame, Documents)]) == WINDOW
    assert not pair.a.exchange.busy
    pair.a.exchange.received(Stored(1, 0), now_ms=0, wall_ms=0)
    assert pair.a.exchange.busy


def test_what_comes_while_a_frame_is_under_way_shares_the_next() -> None:
    pair = Pair()
    pair.connect()
    pair.settle()
    pair.sent.clear()
    for n in range(100):
        pair.a.write(f"user-{n}", b"1")
        pair.turn()
    pair.settle()
    assert pair.equal()
    assert pair.count(Documents) == 2


def test_a_bucket_of_many_users_is_listed_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.prefs.sync.LISTED_MAX", 3)
    pair = Pair()
    crowd = [user for user in (f"user-{n}" for n in range(30_000)) if bucket_of(user) == 5]
    assert len(crowd) > 10
    for number, user in enumerate(crowd):
        (pair.a if number % 2 else pair.b).write(user, b"1")
    pair.connect()
    pair.settle()
    assert pair.equal()
    assert pair.count(Listing) >= len(crowd) // 2 // 3
    moved = [user for message in pair.sent if isinstance(message, Documents) for user, _ in message.documents]
    assert sorted(moved) == sorted(crowd), "each moves once"


def test_the_clock_of_the_other_is_known() -> None:
    pair = Pair()
    pair.connect()
    assert pair.a.exchange is not None
    pair.a.exchange.received(Pong(1_000, 50_007), now_ms=1_010, wall_ms=50_000)
    assert pair.a.exchange.offset_ms == 12
    pair.a.exchange.received(Ping(3), now_ms=0, wall_ms=77)
    assert Pong(3, 77) in pair.a.exchange.pump(0)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_cut_they_end_alike(seed: int) -> None:
    chance = random.Random(seed)
    pair = Pair()
    pair.connect()
    linked = True
    writes = 0
    for _ in range(600):
        shelf = chance.choice((pair.a, pair.b))
        user = f"user-{chance.randrange(12)}"
        match chance.choice(("field", "field", "alert", "remove", "turn", "turn", "some", "some", "link")):
            case "field":
                writes += 1
                shelf.write(user, b"%d" % writes)
            case "alert":
                terms = Terms("AAPL", Condition.above, price_e9=chance.randrange(1, 9))
                name = f"alert-{chance.randrange(3)}"
                document = with_alert(shelf.documents.get(user, EMPTY), name, terms, shelf.clock.next())
                shelf.put(user, document)
            case "remove":
                name = f"alert-{chance.randrange(3)}"
                shelf.put(user, without_alerts(shelf.documents.get(user, EMPTY), [name]))
            case "turn" if linked:
                pair.turn()
            case "some" if linked:
                pair.deliver(shelf, chance.randrange(4))
            case "link":
                if linked:
                    pair.cut()
                else:
                    pair.connect()
                linked = not linked
        pair.now_ms += chance.randrange(1, 30)  # of two writes of one moment neither is the last
    if not linked:
        pair.connect()
    pair.now_ms += 5_000
    pair.settle()
    assert pair.equal(), f"seed {seed}"
    values = {d.fields["language"].value for d in pair.a.documents.values() if "language" in d.fields}
    assert b"%d" % writes in values, "the last write of all was lost"


# -- who may not speak -----------------------------------------------------------------------------

HELLO = Hello(PROTOCOL_VERSION, "c", "dc-b", "dc-b.1", 0, "", 0)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (Hello(PROTOCOL_VERSION + 1, "c", "dc-b", "dc-b.1", 0, "", 0), "protocol"),
        (Hello(PROTOCOL_VERSION, "other", "dc-b", "dc-b.1", 0, "", 0), "cluster_id"),
        (Hello(PROTOCOL_VERSION, "c", "dc-c", "dc-b.1", 0, "", 0), "site"),
    ],
)
def test_a_stranger_is_refused(hello: Hello, why: str) -> None:
    with pytest.raises(Refused, match=why):
        Shelf("dc-a").link("dc-b", dials=False).greeted(hello)


def test_nothing_is_taken_before_hello_and_no_second_one() -> None:
    exchange = Shelf("dc-a").link("dc-b", dials=True)
    with pytest.raises(Refused, match="Want before hello"):
        exchange.received(Want(["ann"]), now_ms=0, wall_ms=0)
    assert exchange.pump(0) == []
    exchange.greeted(HELLO)
    with pytest.raises(Refused, match="second hello"):
        exchange.received(HELLO, now_ms=0, wall_ms=0)


def test_a_listing_of_another_bucket_is_refused() -> None:
    exchange = Shelf("dc-a").link("dc-b", dials=True)
    exchange.greeted(HELLO)
    wrong = (bucket_of("ann") + 1) % BUCKETS
    with pytest.raises(Refused, match="not of it"):
        exchange.received(Listing(wrong, "", [("ann", b"h" * HASH_BYTES)], True), now_ms=0, wall_ms=0)


def test_a_wanted_user_that_is_not_there_is_passed_over() -> None:
    exchange = Shelf("dc-a").link("dc-b", dials=False)
    exchange.greeted(HELLO)
    exchange.received(Want(["nobody"]), now_ms=0, wall_ms=0)
    assert exchange.pump(0) == []


GARBAGE = [
    b"",
    b"\xc1",
    b"\x91\x09",
    encode_frame(Digest(b"\x00" * BUCKETS * HASH_BYTES))[:-1],
    b"\x92\x04\xc4\x01\x00",
    b"\x92\x02\xff",
    b"\x93\x02\x01\x02",
    b"\x92\x06\x91\xa0",
    encode_frame(Want(["u"] * (LISTED_MAX + 1))),
]


@pytest.mark.parametrize("raw", GARBAGE)
def test_garbage_is_no_message(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode_frame(raw)
