"""What is still to be delivered, and what could not be: rows of the gateway's store, there before anyone is told."""

from collections.abc import Iterable
from hashlib import blake2b

import msgspec
from msgspec import Struct

from gateway.notify.notice import Notice
from gateway.notify.policy import Planned
from gateway.prefs.errors import PrefsError
from gateway.prefs.fields import Channel
from gateway.prefs.store import Store, Writing

OUTBOX_MAX = 100_000
USER_MAX = 500
"""Waiting deliveries of one user; more are not taken, so that one user's flood is not everyone's."""
DEAD_MAX = 10_000
"""Dead letters kept; the oldest go first."""
OUTBOX, DEAD = "outbox", "dead"


class OutboxFull(PrefsError):
    """So much waits to be delivered that no more is taken."""

    status = 503
    error = "outbox_full"
    retry_after_s = 10.0


class Item(Struct, frozen=True):
    """One notice for one channel. No address and no secret is in it: they are read when it is sent."""

    notice: Notice
    channel: Channel
    made_us: int
    due_us: int
    attempts: int = 0
    error: str = ""

    @property
    def key(self) -> bytes:
        return _prefix(self.notice.user) + f"{self.channel.value}\0{self.notice.notice_id}".encode()


class DeadLetter(Struct, frozen=True):
    """letter_id: 32 characters, to name it when it is sent again or thrown away."""

    letter_id: str
    item: Item
    died_us: int


_decoder = msgspec.msgpack.Decoder(Item)
_dead_decoder: msgspec.msgpack.Decoder[tuple[int, Item]] = msgspec.msgpack.Decoder(tuple[int, Item])


def _prefix(user: str) -> bytes:
    return f"{user}\0".encode()


def add(writing: Writing, notice: Notice, planned: Iterable[Planned], now_us: int) -> list[Item]:
    """Put the notice's deliveries in the outbox, as part of a write; one that waits already is not added again.

    Returns what was added. Raises OutboxFull; then nothing was added.
    """
    items = [Item(notice, each.channel, now_us, each.not_before_us) for each in planned]
    new = [item for item in items if writing.row(OUTBOX, item.key) is None]
    if writing.count(OUTBOX) + len(new) > OUTBOX_MAX:
        raise OutboxFull(f"{OUTBOX_MAX} deliveries wait")
    if new and writing.count_from(OUTBOX, _prefix(notice.user), USER_MAX) + len(new) > USER_MAX:
        raise OutboxFull(f"{USER_MAX} deliveries to this user wait")
    for item in new:
        writing.put_row(OUTBOX, item.key, msgspec.msgpack.encode(item))
    return new


def put(writing: Writing, item: Item) -> None:
    """Its next attempt, if it is still wanted."""
    if writing.row(OUTBOX, item.key) is not None:
        writing.put_row(OUTBOX, item.key, msgspec.msgpack.encode(item))


def remove(writing: Writing, item: Item) -> None:
    writing.delete_row(OUTBOX, item.key)


def bury(writing: Writing, item: Item, now_us: int) -> None:
    """From the outbox to the dead letters."""
    writing.delete_row(OUTBOX, item.key)
    if writing.count(DEAD) >= DEAD_MAX:
        writing.delete_first(DEAD)
    name = blake2b(item.key, digest_size=8).digest()
    writing.put_row(DEAD, now_us.to_bytes(8, "big") + name, msgspec.msgpack.encode((now_us, item)))


def load(store: Store) -> list[Item]:
    """All that waits."""
    return [_decoder.decode(row) for _, row in store.rows(OUTBOX)]


def dead_letters(store: Store, *, limit: int, user: str | None = None) -> list[DeadLetter]:
    """The oldest first."""
    found: list[DeadLetter] = []
    for key, row in store.rows(DEAD):
        died_us, item = _dead_decoder.decode(row)
        if user is None or item.notice.user == user:
            found.append(DeadLetter(key.hex(), item, died_us))
        if len(found) >= limit:
            break
    return found


def exhume(writing: Writing, letter_id: str, now_us: int) -> Item | None:
    """From the dead letters to the outbox, with all attempts before it again. None: no such letter."""
    key = bytes.fromhex(letter_id)
    row = writing.row(DEAD, key)
    if row is None:
        return None
    _, item = _dead_decoder.decode(row)
    fresh = Item(item.notice, item.channel, now_us, now_us)
    writing.delete_row(DEAD, key)
    writing.put_row(OUTBOX, fresh.key, msgspec.msgpack.encode(fresh))
    return fresh


def forget(writing: Writing, letter_id: str) -> bool:
    """False: no such letter."""
    return writing.delete_row(DEAD, bytes.fromhex(letter_id))
