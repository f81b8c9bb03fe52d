"""Finds toxiproxy-server, and runs it as a child that ends with this process, however this ends."""

import asyncio
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from chaos.net.ports import HOST, free_port
from cluster.launcher import death_wish

PROGRAM = "toxiproxy-server"
LIBRARY = "toxiproxy"
NAMED_BY = "TOXIPROXY_SERVER"
READY_TIMEOUT_S = 10.0
POLL_S = 0.02
TALK_BYTES = 400


class NoServer(Exception):
    """toxiproxy-server can't be had or does not run; the message says what to do."""


def find() -> Path:
    """What TOXIPROXY_SERVER names, else what is on PATH, else what `make toxiproxy` built. Raises NoServer."""
    if named := os.environ.get(NAMED_BY):
        if found := shutil.which(named):
            return Path(found)
        raise NoServer(f"{NAMED_BY}={named} is no program that can be run")
    # Not resolved: the python of a virtual environment is a link that leads out of it.
    built = Path(sys.executable).parent / PROGRAM
    if found := shutil.which(PROGRAM) or shutil.which(built):
        return Path(found)
    raise NoServer(
        f"no {PROGRAM}: `make toxiproxy` builds it where Go is installed; else put version 2.12 on PATH or name one "
        f"in {NAMED_BY}. Faults by namespaces and by our own proxy go on without it"
    )


def unavailable() -> str:
    """Why links can't be cut by toxiproxy here; empty when they can."""
    if importlib.util.find_spec(LIBRARY) is None:
        return "toxiproxy-python is not installed: make toxiproxy"
    try:
        find()
    except NoServer as error:
        return str(error)
    return ""


class Server:
    """One process of toxiproxy-server, whose API is on loopback at `port`. Its log goes to `log`."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.port = 0
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0: it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    async def start(self) -> None:
        """Start it, wait until it answers. The child ends with the calling thread. Raises NoServer, NoPort."""
        self.kill()
        program = find()
        self._process = self._spawn(program)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (version := await asyncio.to_thread(_version, self.port)):
            if not self.pid or time.monotonic() > deadline:
                self.kill()
                raise NoServer(f"{program} for {self.name} does not answer on port {self.port}: {self._talk()}")
            await asyncio.sleep(POLL_S)
        self.version = version

    def _spawn(self, program: Path) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [program, "-host", HOST, "-port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "LOG_LEVEL": "info"},
                preexec_fn=death_wish(os.getpid()),  # noqa: PLW1509 - prctl alone, which takes no lock
            )

    def kill(self) -> None:
        """SIGKILL, and wait: it keeps nothing, and may be wedged."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _talk(self) -> str:
        return self.log.read_bytes()[-TALK_BYTES:].decode("utf-8", "replace").strip()


def _version(port: int) -> str:
    """Empty: no answer yet."""
    connection = http.client.HTTPConnection(HOST, port, timeout=1.0)
    try:
        connection.request("GET", "/version")
        return str(msgspec.json.decode(connection.getresponse().read())["version"])
    except (OSError, http.client.HTTPException, msgspec.DecodeError, KeyError):
        return ""
    finally:
        connection.close()
