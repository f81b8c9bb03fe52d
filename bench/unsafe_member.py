"""A member with its safety taken out, to say what safety costs: `python -m bench.unsafe_member WHAT... MEMBER.toml`.

WHAT: `no-sync` (the journal commits without waiting for the disk), `memory` (the journal is a dictionary),
`plain-tcp` (members speak unencrypted and prove nothing). The product has no such switch: this program replaces what
the engine is built from before it builds one. It must never hold anything but a benchmark's data.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import uvloop

from cluster.consensus import hardened
from cluster.consensus.audited import NO_OP
from cluster.consensus.journal import Change, CutFrom, Disk, Entry, Loaded, Put, StartAfter, TrimTo, Vote
from cluster.consensus.storage import LmdbStorage
from node.app import serve
from node.config import read_config
from node.tracing import configure_logging

ENTRY_OVERHEAD_BYTES = 32


class UnsyncedStorage(LmdbStorage):
    """Commits are in the system's cache when they return, and on disk when the system likes."""

    def __init__(self, folder: Path, *, cluster_id: str, member: str, map_bytes: int = 64 << 30) -> None:
        super().__init__(folder, cluster_id=cluster_id, member=member, map_bytes=map_bytes)
        environment = type(self._env)
        self._env.close()
        self._env = environment(str(folder), map_size=map_bytes, max_dbs=2, sync=False, metasync=False, readahead=False)
        self._log = self._env.open_db(b"log")
        self._meta = self._env.open_db(b"meta")


class MemoryStorage:
    """Implements journal.Storage, and remembers nothing after the process."""

    def __init__(self, folder: Path, **_settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # whoever measures the disk's free room looks here
        self._entries: dict[int, Entry] = {}
        self._first = 1
        self._bytes = 0

    def load(self, *, tail_bytes_max: int) -> Loaded:
        return Loaded(0, 0, [], Vote(0, None), 0, Disk(uuid4().hex, joined=False))

    def read(self, first_index: int, count: int) -> list[Entry]:
        indexes = range(first_index, first_index + count)
        return [self._entries[index] for index in indexes if index in self._entries]

    def write(self, changes: Sequence[Change]) -> None:
        for change in changes:
            match change:
                case Put(index, term, command):
                    self._entries[index] = (command, index, term)
                    self._bytes += len(command) + ENTRY_OVERHEAD_BYTES
                case CutFrom(index):
                    while self._entries.get(index) is not None:
                        self._drop(index)
                        index += 1
                case TrimTo(index):
                    while self._first < index:
                        self._drop(self._first)
                        self._first += 1
                case StartAfter(index, term):
                    self._entries = {index: (NO_OP, index, term)}
                    self._first, self._bytes = index, ENTRY_OVERHEAD_BYTES
                case _:
                    pass  # votes and identities would matter to a process that starts again

    def _drop(self, index: int) -> None:
        self._bytes -= len(self._entries.pop(index)[0]) + ENTRY_OVERHEAD_BYTES

    def used_bytes(self) -> int:
        return self._bytes

    def close(self) -> None:
        self._entries.clear()


class InlineCommitter:
    """Implements journal.Committer without the thread: there is nothing to wait for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        work()
        self._loop.call_soon(done, None)

    def close(self) -> None:
        pass


class Named(asyncio.Transport):
    """A plain transport that shows a certificate, with whatever name its other end told."""

    def __init__(self, transport: asyncio.Transport, name: str) -> None:
        super().__init__()
        self._transport = transport
        self._certificate = {"subjectAltName": (("DNS", name),)}
        # What is called for each message is not to cost a call more than it does with TLS.
        self.write = transport.write  # type: ignore[method-assign]
        self.get_write_buffer_size = transport.get_write_buffer_size  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]
        self.close = transport.close  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._certificate if name == "peercert" else self._transport.get_extra_info(name, default)


class Introduction(asyncio.Protocol):
    """Stands where a handshake would: the side that dials says its name in a line, and then the two are connected."""

    def __init__(self, inner: asyncio.Protocol, *, mine: str, theirs: str | None) -> None:
        """theirs: whom we dialed; None waits for the other to say its name."""
        self.inner = inner
        self._mine = mine
        self._theirs = theirs
        self._waiting = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._theirs is not None:
            self._transport.write(self._mine.encode() + b"\n")
            self._introduce(self._theirs)

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        name, line, rest = self._waiting.partition(b"\n")
        if line:
            self._introduce(name.decode())
            if rest:
                self.inner.data_received(rest)

    def _introduce(self, name: str) -> None:
        self._transport.set_protocol(self.inner)
        self.inner.connection_made(Named(self._transport, name))


class PlainLoop(uvloop.Loop):
    """Connects without TLS whatever asks for it with server_hostname, and what is accepted for TLS."""

    member = ""

    async def create_connection(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        name = options.pop("server_hostname", None)
        if name is None:
            return await super().create_connection(protocol_factory, *args, **options)
        options.pop("ssl")
        transport, made = await super().create_connection(
            lambda: Introduction(protocol_factory(), mine=self.member, theirs=name), *args, **options
        )
        return transport, made.inner

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **_tls: Any) -> Any:
        transport, made = await super().connect_accepted_socket(
            lambda: Introduction(protocol_factory(), mine=self.member, theirs=None), sock
        )
        return transport, made.inner


def main(arguments: Sequence[str]) -> int:
    *removed, path = arguments
    config = read_config(Path(path))
    configure_logging(config.log_level, member=config.name)
    engine = vars(hardened)
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    for what in removed:
        if what == "no-sync":
            engine["LmdbStorage"] = UnsyncedStorage
        elif what == "memory":
            engine["LmdbStorage"] = MemoryStorage
            engine["ThreadCommitter"] = InlineCommitter
        elif what == "plain-tcp":
            PlainLoop.member = config.name
            loop_factory = PlainLoop
        else:
            sys.exit(f"{what}: one of no-sync, memory, plain-tcp")
    print(f"WITHOUT {', '.join(removed)}: this member keeps no promise", file=sys.stderr)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(serve(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
