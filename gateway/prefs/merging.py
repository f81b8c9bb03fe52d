"""Documents from the other site, merged into the store in one write: checked, clocks bounded, counted."""

import logging

import msgspec
from msgspec import Struct

from gateway.prefs.crdt import Document, Malformed, admissible, check, decode, merge
from gateway.prefs.store import Store, Writing
from gateway.prefs.sync import Documents

log = logging.getLogger(__name__)


class Seen(Struct, frozen=True, array_like=True):
    """The most that was seen of another site's store."""

    incarnation: str = ""
    commits: int = 0


class Merged(Struct, frozen=True):
    """held_back: fields and alerts not taken: too far ahead of our clock. They come again with each comparison, until
    their time is near. refused: documents that no site could have written; one of them does not stop the others."""

    held_back: int
    refused: int


def _key(site: str) -> bytes:
    return f"seen {site}".encode()


async def seen(store: Store, site: str) -> Seen:
    def work(writing: Writing) -> Seen:
        raw = writing.row("meta", _key(site))
        return Seen() if raw is None else msgspec.msgpack.decode(raw, type=Seen)

    return await store.write(work, frees=True)


async def merge_documents(store: Store, site: str, message: Documents) -> Merged:
    """Durable on return. Raises what `Store.write` raises; then nothing was taken."""
    theirs, refused = _checked(site, message)

    def work(writing: Writing) -> Merged:
        held_back = 0
        limit_ms = writing.clock.limit_ms()
        for user, whole in theirs:
            document, ahead = admissible(whole, limit_ms)
            held_back += ahead
            for stamp in document.stamps():
                writing.clock.observe(stamp)
            before = writing.document(user)
            after = merge(before, document)
            if after != before:
                writing.put(user, after, from_peer=True)
        writing.put_row("meta", _key(site), msgspec.msgpack.encode(Seen(message.incarnation, message.commits)))
        return Merged(held_back, refused)

    return await store.write(work)


def _checked(site: str, message: Documents) -> tuple[list[tuple[str, Document]], int]:
    found: list[tuple[str, Document]] = []
    for user, raw in message.documents:
        try:
            found.append((user, check(decode(raw))))
        except Malformed as error:
            log.error("%s sent a document of %r that can't be: %s", site, user, error)
    return found, len(message.documents) - len(found)
