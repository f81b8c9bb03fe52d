"""Links through a small proxy of our own: the same verbs as toxiproxy, and two that it has not; nothing to install.

It resets connections that stand, and holds what old connections carry while new ones pass. It has no deadlock.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from chaos.net.links import Link, NotCut, Way, check_links
from chaos.net.own import Answer, Order
from chaos.net.traffic import SEEN_WITHIN_S, STILL_S, refused_at
from cluster.launcher import death_wish

ANSWER_TIMEOUT_S = 15.0
TALK_BYTES = 400
ROOT = Path(__file__).parents[2]


class OwnNetwork:
    """Implements chaos.net.links.Network. One process for all links; it ends with the thread that calls `open`.

    seed: of its jitter. A fault is there when the process says so; that nothing passes is seen in its counts.
    """

    restarts: tuple[str, ...] = ()

    def __init__(self, *, seed: int = 0) -> None:
        self.links: dict[str, Link] = {}
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self._talk: IO[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._lock = asyncio.Lock()
        self._ids = itertools.count(1)

    @property
    def pid(self) -> int:
        """0: it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    async def open(self, links: list[Link]) -> None:
        check_links(links)
        ours, theirs = socket.socketpair()
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        with theirs:
            self._process = self._spawn(theirs)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            await self.add(links)
        except NotCut:
            await self.close()
            raise

    async def add(self, links: list[Link]) -> None:
        check_links([*self.links.values(), *links])
        for link in links:
            self.links[link.name] = link
            await self._tell("add", link.name, listen=link.listen, target_at=link.target_at)

    def _spawn(self, orders: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "chaos.net.own", str(orders.fileno()), str(self._seed)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._talk,
            cwd=ROOT,
            pass_fds=[orders.fileno()],
            start_new_session=True,
            preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509 - prctl alone, which takes no lock
        )

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._reader = self._writer = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._talk is not None:
            self._talk.close()
            self._talk = None
        self.links.clear()

    def quiet(self, process: str) -> None:
        """Nothing of ours waits for a receiver."""

    def loud(self, process: str) -> None:
        """See quiet."""

    async def stall(self, name: str, way: Way = "both") -> None:
        await self._hold_back("stall", name, way)

    async def drop(self, name: str, way: Way = "both") -> None:
        await self._hold_back("drop", name, way)

    async def slow(self, name: str, latency_ms: float, jitter_ms: float = 0) -> None:
        """Each way, so that a round trip takes twice as much longer."""
        await self._tell("slow", name, numbers=[latency_ms, jitter_ms])

    async def slice(self, name: str, size_bytes: int, delay_us: int) -> None:
        await self._tell("slice", name, numbers=[size_bytes, delay_us])

    async def cut_after(self, name: str, size_bytes: int) -> None:
        """Each way has its own count."""
        await self._tell("cut_after", name, numbers=[size_bytes])

    async def refuse(self, name: str) -> None:
        await self._tell("refuse", name)
        deadline = time.monotonic() + SEEN_WITHIN_S
        while not await refused_at(self.links[name].listen):
            if time.monotonic() > deadline:
                raise NotCut(f"{name} still takes connections")
            await asyncio.sleep(STILL_S)

    async def reset(self, name: str) -> None:
        """Raises NotCut: no connection stands."""
        if not (await self.look(name)).connections:
            raise NotCut(f"{name} has no connection to reset")
        await self._tell("reset", name)

    async def hold_old(self, name: str) -> None:
        """Raises NotCut: no connection stands."""
        if not (await self._tell("hold_old", name)).held:
            raise NotCut(f"{name} has no connection to hold")

    async def heal(self, name: str) -> None:
        await self._tell("heal", name)

    async def heal_all(self) -> None:
        for name in list(self.links):
            await self.heal(name)

    async def look(self, name: str) -> Answer:
        return await self._tell("look", name)

    async def _hold_back(self, verb: str, name: str, way: Way) -> None:
        before = await self._tell(verb, name, way=way)
        await asyncio.sleep(STILL_S)
        after = await self.look(name)
        cut = [True, False] if way == "to_target" else [False, True] if way == "to_dialer" else [True, True]
        if any(held and was != now for held, was, now in zip(cut, before.passed, after.passed, strict=True)):
            raise NotCut(f"{name}: {verb} stands, and bytes pass: {before.passed}, then {after.passed}")

    def _last_words(self) -> str:
        if self._talk is None:
            return ""
        self._talk.seek(0)
        return self._talk.read()[-TALK_BYTES:].decode("utf-8", "replace")

    async def _tell(self, verb: str, name: str, **more: Any) -> Answer:
        if name not in self.links:
            raise NotCut(f"there is no link {name}")
        if self._reader is None or self._writer is None:
            raise NotCut(f"{name}: the network is not open")
        order = Order(next(self._ids), verb, name, **more)
        async with self._lock:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    self._writer.write(msgspec.json.encode(order) + b"\n")
                    line = b""
                    with contextlib.suppress(OSError):
                        line = await self._reader.readline()
            except TimeoutError:
                raise NotCut(f"{name}: the proxy does not answer within {ANSWER_TIMEOUT_S:g} s") from None
        if not line:
            raise NotCut(f"{name}: the proxy has ended: {self._last_words()}")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.error:
            raise NotCut(answer.error)
        return answer
