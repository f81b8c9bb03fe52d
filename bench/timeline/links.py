"""The links between members through relays that can be cut: `python -m bench.timeline.links` is the relays' process.

A cut passes no byte and ends no connection, as a broken line between two sites does. What was under way waits, and
passes when the line is whole again, if both ends are still there by then.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct

from bench.peers.peer import free_ports
from bench.running import RunError
from cluster.folder import ClusterFolder
from cluster.launcher import death_wish

HOST = "127.0.0.1"
STOP_S = 5.0


class Link(Struct, frozen=True):
    """Between two members; the first dials, and finds the relay at `port` instead of `target_port`."""

    dialer: str
    target: str
    port: int
    target_port: int


class Links:
    """All links between the members of a cluster. Use it with `with`; `prepare` goes to `running`."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._relays: subprocess.Popen[bytes] | None = None

    def prepare(self, folder: ClusterFolder) -> None:
        """Write where members dial each other, and start the relays. Raises RunError."""
        members = folder.topology().members
        pairs = [(one, other) for one in members for other in members if other.name < one.name]
        for (one, other), port in zip(pairs, free_ports(len(pairs)), strict=True):
            self.links.append(Link(one.name, other.name, port, other.peer_port))
        for member in members:
            dialed = [f'{link.target} = "{HOST}:{link.port}"' for link in self.links if link.dialer == member.name]
            _append(folder.config(member.name), "\n".join(["", "[dial]", *dialed, ""]))
        pipe = subprocess.PIPE
        self._relays = subprocess.Popen(
            [sys.executable, "-m", "bench.timeline.links"],
            stdin=pipe,
            stdout=pipe,
            start_new_session=True,
            preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509
        )
        self._say(self.links)

    def cut(self, members: Collection[str]) -> None:
        """Between these and all others, from when this returns. Raises RunError."""
        self._say([at for at, link in enumerate(self.links) if (link.dialer in members) != (link.target in members)])

    def heal(self) -> None:
        """Raises RunError."""
        self._say([])

    def _say(self, what: object) -> None:
        relays = self._relays
        if relays is None or relays.stdin is None or relays.stdout is None:
            raise RunError("the relays do not run")
        try:
            relays.stdin.write(msgspec.json.encode(what) + b"\n")
            relays.stdin.flush()
        except BrokenPipeError:
            pass  # its last words say why
        said = relays.stdout.readline()
        if said != b"done\n":
            raise RunError(f"the relays between the members failed: {said.decode() or 'they ended'}")

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *_: object) -> None:
        if self._relays is not None:
            self._relays.kill()
            self._relays.communicate(timeout=STOP_S)


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


class Relay:
    """One link, in the relays' process."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.whole = asyncio.Event()
        self.whole.set()
        self.ends: set[End] = set()

    def cut(self) -> None:
        self.whole.clear()
        for end in self.ends:
            end.reading(False)

    def heal(self) -> None:
        self.whole.set()
        for end in self.ends:
            end.reading(True)


class End(asyncio.Protocol):
    """One socket of a connection; what it reads, the other one writes."""

    def __init__(self, relay: Relay, other: "End | None" = None) -> None:
        self._relay = relay
        self.other = other
        self._full = False
        self._transport: asyncio.Transport | None = None
        self._dialing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._relay.ends.add(self)
        if self.other is None:  # the dialer's: nothing is read before there is somewhere to write it
            self._transport.pause_reading()
            self._dialing = asyncio.get_running_loop().create_task(self._dial())
        else:
            self.other.other = self
            self.reading(self._relay.whole.is_set())
            self.other.reading(self._relay.whole.is_set())

    async def _dial(self) -> None:
        await self._relay.whole.wait()
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: End(self._relay, self), HOST, self._relay.target_port)
        except OSError:
            self.close()

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.write(data)

    def pause_writing(self) -> None:
        self._full = True
        if self.other is not None:
            self.other.reading(False)

    def resume_writing(self) -> None:
        self._full = False
        if self.other is not None:
            self.other.reading(True)

    def reading(self, wanted: bool) -> None:
        if self._transport is None or self._transport.is_closing() or self.other is None:
            return
        if wanted and self._relay.whole.is_set() and not self.other._full:
            self._transport.resume_reading()
        elif not wanted:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """While the link is cut nothing is read, its end neither: the other side is told when it is whole again."""
        self._relay.ends.discard(self)
        if self._dialing is not None:
            self._dialing.cancel()
        if self.other is not None:
            self.other.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def serve() -> None:
    """Relays for the links of the first line; each line after it names those that are cut from then on."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    relays: list[Relay] = []
    while line := await reader.readline():
        if not relays:
            for link in msgspec.json.decode(line, type=list[Link]):
                relay = Relay(link.target_port)
                relays.append(relay)
                await loop.create_server(lambda relay=relay: End(relay), HOST, link.port)  # type: ignore[misc]
        else:
            cut = msgspec.json.decode(line, type=list[int])
            for at, relay in enumerate(relays):
                if at in cut:
                    relay.cut()
                else:
                    relay.heal()
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(serve())
