"""Snapshots under way: a leader offers files, a replica asks for them chunk by chunk, checks and stages them.

The receiver sets the pace and knows where it is, so a lost link, a lost chunk or a restart costs nothing but time:
it asks again. Nothing here touches raft's state; what was staged and verified is installed by the node (see there).
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4
from zlib import crc32

from msgspec import Struct

from cluster.consensus.journal import Base
from cluster.consensus.messages import (
    Snapshot,
    SnapshotAsk,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotFile,
    SnapshotOffer,
)

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
ASKS_AHEAD = 4
ASKS_MAX = 16
OFFER_SECONDS = 1.0
IDLE_SECONDS = 30.0
COPY_SECONDS = 600.0
ASKING_SECONDS = 5.0
BACKOFF_SECONDS = 5.0
ASK_AGAIN_SECONDS = 1.0
LEFTOVER_SECONDS = 60.0
LINK_BYTES_MAX = 1 << 20
FILE_TRIES = 3
FILES_MAX = 100_000
PART = ".part"

_safe_name = re.compile(r"(segments/)?[A-Za-z0-9][A-Za-z0-9._-]*")
_safe_id = re.compile(r"[0-9a-f]{32}")


class SnapshotFailed(Exception):
    """This attempt ended; what was there before is untouched."""


class Taken(Struct, frozen=True):
    """A copy of the store at `index`, in a folder of its own."""

    folder: Path
    index: int
    files: list[SnapshotFile]


class SnapshotHome(Protocol):
    """What the node does for snapshots. `local`, `room` and `judge` run in a worker thread, the rest on the loop."""

    async def take(self, folder: Path, pinned: Callable[[int], None]) -> Taken:
        """Copy the store into the new `folder`. pinned(index): from now on the log after `index` must stay.

        Raises SnapshotFailed. What is left in the folder is deleted by the caller.
        """
        ...

    def local(self, file: SnapshotFile) -> Path | None:
        """The same file, verified, where this member has it already."""
        ...

    def room(self, needed_bytes: int) -> str:
        """Why so much can't be written here, or empty."""
        ...

    def judge(self, offer: SnapshotOffer, folder: Path) -> None:
        """Look into what was staged. Raises when it is not the state after the offer's index."""
        ...

    def received(self, offer: SnapshotOffer, folder: Path) -> None:
        """Every file is in `folder`, verified, judged and durable. Called once for a snapshot."""
        ...


T = TypeVar("T")
Send = Callable[[str, Snapshot], bool]


class SnapshotSender:
    """A leader's side: one copy at a time, one stream at a time.

    term_at(index): the term of an entry. base_at(index): the configuration in force there.
    usable(index): the log goes on from there. hold(index): trim nothing after it; None lets go.
    buffered(member): bytes that wait on its link.
    """

    def __init__(
        self,
        home: SnapshotHome,
        folder: Path,
        *,
        send: Send,
        term: Callable[[], int],
        term_at: Callable[[int], int],
        base_at: Callable[[int], Base],
        usable: Callable[[int], bool],
        hold: Callable[[int | None], None],
        buffered: Callable[[str], int],
        bytes_per_s: int,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._home = home
        self._folder = folder
        self._send = send
        self._term = term
        self._term_at = term_at
        self._base_at = base_at
        self._usable = usable
        self._hold = hold
        self._buffered = buffered
        self._bytes_per_s = bytes_per_s
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot-out")
        self._asks: asyncio.Queue[tuple[str, SnapshotAsk]] = asyncio.Queue(ASKS_MAX)
        self._queued: set[tuple[str, SnapshotAsk]] = set()
        self._serving = self._loop.create_task(self._serve())
        self._taking: asyncio.Task[None] | None = None
        self._take_after = 0.0
        self._snapshot_id = ""
        self._index_term = 0
        self._taken: Taken | None = None
        self._member: str | None = None
        self._taken_at = self._asked_at = self._offered_at = float("-inf")
        self._send_at = 0.0
        shutil.rmtree(folder, ignore_errors=True)

    def stranded(self, members: list[str]) -> None:
        """Called often with the connected replicas that need a snapshot from this leader. Cheap."""
        now = self._loop.time()
        if self._taking is not None:
            return
        if not members or (self._taken is not None and not self._usable(self._taken.index)):
            if self._taken is not None and now - self._asked_at > IDLE_SECONDS:
                self._drop()
            return
        if self._taken is not None and now - self._taken_at > COPY_SECONDS and now - self._asked_at > ASKING_SECONDS:
            self._drop()  # a replica that never finishes must not hold the log for ever
        if self._taken is None:
            if now >= self._take_after:
                self._taking = self._loop.create_task(self._take())
            return
        if now - self._asked_at < OFFER_SECONDS or now - self._offered_at < OFFER_SECONDS:
            return
        # Who does not ask is asked last the next time.
        others = [name for name in members if name != self._member]
        self._member = self._member if self._member in members and now - self._asked_at < IDLE_SECONDS else None
        self._member = self._member or (others or members)[0]
        self._offered_at = now
        taken = self._taken
        base = self._base_at(taken.index)
        self._send(
            self._member,
            SnapshotOffer(self._term(), self._snapshot_id, taken.index, self._index_term, taken.files, base),
        )

    async def _take(self) -> None:
        self._snapshot_id = uuid4().hex
        folder = self._folder / self._snapshot_id
        began = self._loop.time()
        try:
            self._taken = taken = await self._home.take(folder, self._pinned)
            self._taken_at = self._loop.time()
            self._asked_at = self._taken_at - OFFER_SECONDS
            self._offered_at = float("-inf")
            log.warning(
                "snapshot %s at index %d: %d files, %d bytes, copied in %.2f s",
                self._snapshot_id,
                taken.index,
                len(taken.files),
                sum(file.size for file in taken.files),
                self._loop.time() - began,
            )
        except Exception as error:
            self.counters["snapshots_failed"] += 1
            log.error("no snapshot could be taken: %s: %s", type(error).__name__, error)
            self._take_after = self._loop.time() + BACKOFF_SECONDS
            self._drop()
        finally:
            self._taking = None

    def _pinned(self, index: int) -> None:
        self._hold(index)
        self._index_term = self._term_at(index)

    def _drop(self) -> None:
        self._hold(None)
        self._taken, self._member = None, None
        self._pool.submit(shutil.rmtree, self._folder / self._snapshot_id, ignore_errors=True)

    def asked(self, member: str, ask: SnapshotAsk) -> None:
        if self._taken is None or ask.snapshot_id != self._snapshot_id:
            self._send(member, SnapshotEnd(ask.snapshot_id, "gone"))
            return
        if member != self._member:
            self.counters["snapshot_asks_of_others"] += 1
            return
        taken = self._taken
        if not 0 <= ask.file < len(taken.files) or not 0 <= ask.offset < taken.files[ask.file].size:
            self.counters["refused_ask"] += 1
            return
        self._asked_at = self._loop.time()
        # Asked again by one who is impatient: it is on its way.
        if self._asks.full() or (member, ask) in self._queued:
            self.counters["snapshot_asks_held_back"] += 1
            return
        self._queued.add((member, ask))
        self._asks.put_nowait((member, ask))

    def ended(self, member: str, end: SnapshotEnd) -> None:
        if member == self._member and end.snapshot_id == self._snapshot_id:
            log.warning("%s ends snapshot %s: %s", member, end.snapshot_id, end.reason)
            self._member = None

    async def _serve(self) -> None:
        """Chunk after chunk, no faster than it may be, and never before consensus's own messages have left."""
        while True:
            member, ask = await self._asks.get()
            await self._answer(member, ask)
            self._queued.discard((member, ask))

    async def _answer(self, member: str, ask: SnapshotAsk) -> None:
        taken = self._taken
        if taken is None or ask.snapshot_id != self._snapshot_id:
            return
        path = taken.folder / taken.files[ask.file].name
        try:
            data = await self._loop.run_in_executor(self._pool, _read_at, path, ask.offset)
        except OSError as error:
            log.error("%s can't be read: %s", path, error)
            self._drop()
            return
        now = self._loop.time()
        self._send_at = max(now, self._send_at) + len(data) / self._bytes_per_s
        await asyncio.sleep(max(0.0, self._send_at - now))
        while self._buffered(member) > LINK_BYTES_MAX:  # noqa: ASYNC110 - a transport tells of its buffer to nobody
            await asyncio.sleep(0.005)
        self.counters["snapshot_bytes_sent"] += len(data)
        self._send(member, SnapshotChunk(ask.snapshot_id, ask.file, ask.offset, crc32(data), data))

    async def stop(self) -> None:
        """Wait for a copy under way: it reads a store that is about to be closed."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        if self._taking is not None:
            await asyncio.gather(self._taking, return_exceptions=True)
        if self._taken is not None:
            self._drop()
        await self._loop.run_in_executor(None, self._pool.shutdown)


class SnapshotReceiver:
    """A replica's side. wanted(member, offer): why an offer is not taken now, or empty."""

    def __init__(
        self, home: SnapshotHome, folder: Path, *, send: Send, wanted: Callable[[str, SnapshotOffer], str]
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._home = home
        self._folder = folder
        self._send = send
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshot-in")
        self._task: asyncio.Task[None] | None = None
        self._offer: SnapshotOffer | None = None
        self._sender = ""
        self._chunks: asyncio.Queue[SnapshotChunk] = asyncio.Queue(ASKS_MAX)
        self._bytes_here = 0
        self._progress_at = 0.0
        self._not_before = 0.0
        self._done = False
        # What an earlier process staged is gone on with when the same snapshot is offered again.
        self._leftovers = self._loop.call_later(LEFTOVER_SECONDS, self._remove_leftovers)

    def offered(self, member: str, offer: SnapshotOffer) -> None:
        reason = self._wanted(member, offer) or _malformed(offer)
        if reason:
            self.counters["refused_offer"] += 1
            self._send(member, SnapshotEnd(offer.snapshot_id, reason))
            return
        if self._done or self._loop.time() < self._not_before:
            return
        if self._task is not None:
            stuck = self._loop.time() - self._progress_at > IDLE_SECONDS
            if self._offer is not None and self._offer.snapshot_id == offer.snapshot_id:
                self._sender = member
            elif stuck:
                log.warning("snapshot %s does not go on; giving it up", self._offer and self._offer.snapshot_id)
                self._task.cancel()
            return
        self._offer, self._sender = offer, member
        self._progress_at = self._loop.time()
        self._task = self._loop.create_task(self._receive(offer))

    def chunk(self, member: str, chunk: SnapshotChunk) -> None:
        offer = self._offer
        if offer is None or chunk.snapshot_id != offer.snapshot_id or member != self._sender or self._chunks.full():
            self.counters["refused_chunk"] += 1
            return
        self._chunks.put_nowait(chunk)

    def ended(self, member: str, end: SnapshotEnd) -> None:
        """The sender has it no longer; another will be offered."""
        offer = self._offer
        if self._task is not None and offer and offer.snapshot_id == end.snapshot_id and member == self._sender:
            self._task.cancel()

    @property
    def progress(self) -> tuple[int, int] | None:
        """Bytes of the snapshot that is being received: here, and in all."""
        if self._offer is None or self._task is None:
            return None
        return self._bytes_here, sum(file.size for file in self._offer.files)

    async def _receive(self, offer: SnapshotOffer) -> None:
        staged = self._folder / offer.snapshot_id
        self._bytes_here = 0
        began = self._loop.time()
        log.warning("receiving snapshot %s at index %d from %s", offer.snapshot_id, offer.index, self._sender)
        try:
            await self._off_loop(self._prepare, offer, staged)
            for number, file in enumerate(offer.files):
                if not await self._off_loop(self._have, file, staged):
                    await self._fetch(offer, number, staged)
                self._bytes_here += file.size
            await self._off_loop(self._home.judge, offer, staged)
            await self._off_loop(_sync_tree, staged)
        except asyncio.CancelledError:
            log.warning("snapshot %s from %s was cut off", offer.snapshot_id, self._sender)
            raise
        except Exception as error:
            # Whatever it was, this member is as it was before.
            self.counters["snapshots_failed"] += 1
            self._not_before = self._loop.time() + BACKOFF_SECONDS
            log.error("snapshot %s was not received: %s: %s", offer.snapshot_id, type(error).__name__, error)
            self._send(self._sender, SnapshotEnd(offer.snapshot_id, str(error)[:200]))
            await self._off_loop(shutil.rmtree, staged, True)
        else:
            self._done = True
            log.warning(
                "snapshot %s at index %d is complete after %.2f s", offer.snapshot_id, offer.index,
                self._loop.time() - began,
            )  # fmt: skip
            self._send(self._sender, SnapshotEnd(offer.snapshot_id, "complete"))
            self._home.received(offer, staged)
        finally:
            self._task = None

    def _prepare(self, offer: SnapshotOffer, staged: Path) -> None:
        if self._folder.is_dir():
            for other in self._folder.iterdir():
                if other != staged:
                    shutil.rmtree(other, ignore_errors=True)
        (staged / "segments").mkdir(parents=True, exist_ok=True)
        here = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file())
        missing = sum(file.size for file in offer.files) - here
        reason = self._home.room(max(0, missing))
        if reason:
            raise SnapshotFailed(reason)

    def _have(self, file: SnapshotFile, staged: Path) -> bool:
        """The file is staged under its name, so verified; or this member has the same one elsewhere."""
        target = staged / file.name
        if target.is_file() and target.stat().st_size == file.size:
            return True
        found = self._home.local(file)
        if found is None:
            return False
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(found)
        except OSError:
            shutil.copyfile(found, target)
            _sync(target)
        return True

    async def _fetch(self, offer: SnapshotOffer, number: int, staged: Path) -> None:
        file = offer.files[number]
        path = staged / file.name
        part = path.with_name(path.name + PART)
        for _ in range(FILE_TRIES):
            await self._fetch_bytes(offer, number, part)
            if await self._off_loop(_matches, part, file):
                await self._off_loop(_settle, part, path)
                return
            # A chunk that was staged before a power cut may be anything.
            self.counters["refused_file"] += 1
            log.error("%s of snapshot %s has the wrong sha256: fetched again", file.name, offer.snapshot_id)
            await self._off_loop(part.unlink)
        raise SnapshotFailed(f"{file.name} has the wrong sha256 {FILE_TRIES} times")

    async def _fetch_bytes(self, offer: SnapshotOffer, number: int, part: Path) -> None:
        file = offer.files[number]
        offset = asked = await self._off_loop(_start, part, file.size)
        before = self._bytes_here
        while offset < file.size:
            while asked < min(file.size, offset + ASKS_AHEAD * CHUNK_BYTES):
                self._send(self._sender, SnapshotAsk(offer.snapshot_id, number, asked))
                asked += CHUNK_BYTES
            try:
                async with asyncio.timeout(ASK_AGAIN_SECONDS):
                    chunk = await self._chunks.get()
            except TimeoutError:
                asked = offset
                continue
            length = min(CHUNK_BYTES, file.size - offset)
            if (chunk.file, chunk.offset, len(chunk.data)) != (number, offset, length):
                # An older ask's, or out of its order.
                self.counters["refused_chunk"] += 1
                continue
            if crc32(chunk.data) != chunk.crc:
                self.counters["refused_checksum"] += 1
                asked = offset
                continue
            await self._off_loop(_append, part, offset, chunk.data)
            offset += length
            self._bytes_here = before + offset
            self._progress_at = self._loop.time()
        self._bytes_here = before

    async def _off_loop(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._pool, work, *arguments)

    def _remove_leftovers(self) -> None:
        if self._task is None and not self._done:
            self._pool.submit(shutil.rmtree, self._folder, ignore_errors=True)

    async def stop(self) -> None:
        self._leftovers.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._loop.run_in_executor(None, self._pool.shutdown)


def _malformed(offer: SnapshotOffer) -> str:
    names = [file.name for file in offer.files]
    if not _safe_id.fullmatch(offer.snapshot_id) or len(names) > FILES_MAX or len(set(names)) != len(names):
        return "malformed"
    for file in offer.files:
        if not _safe_name.fullmatch(file.name) or file.size <= 0 or not 0 <= file.hashed_bytes <= file.size:
            return f"malformed: {file.name!r}"
    return ""


def _read_at(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), CHUNK_BYTES, offset)


def _start(part: Path, size: int) -> int:
    """Where to go on: whole chunks only, so that a torn end is written again."""
    if not part.is_file():
        part.touch()
        return 0
    return min(part.stat().st_size, size) // CHUNK_BYTES * CHUNK_BYTES


def _append(part: Path, offset: int, data: bytes) -> None:
    with part.open("r+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)


def _matches(path: Path, file: SnapshotFile) -> bool:
    return path.stat().st_size == file.size and sha256_of(path, file.hashed_bytes) == file.sha256


def sha256_of(path: Path, hashed_bytes: int) -> bytes:
    """Of the first `hashed_bytes` bytes."""
    digest = hashlib.sha256()
    left = hashed_bytes
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
    return digest.digest()


def _settle(part: Path, path: Path) -> None:
    _sync(part)
    part.rename(path)
    _sync(path.parent)


def _sync_tree(folder: Path) -> None:
    for path in (folder / "segments", folder, folder.parent):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
