"""etcd beside us: three members, each put durable on a majority; the floor of what Raft costs in a native language."""

import re
import subprocess
import time
from pathlib import Path

import aiohttp

from bench.peers.peer import Measured, Peer, PeerFailed, PeerMissing, Server, find, free_ports, tree_cpu_s, wait
from bench.running import run_loop

HOW_TO_GET = "etcd is not installed; `make peers` builds it and its load generator with Go"
BUILT = Path(__file__).parents[2] / ".venv" / "peers"
MEMBERS = ("one", "two", "three")
VALUE_BYTES = 256
"""What one of our orders takes in the log, its share of the entry's frame included."""
KEY_BYTES = 32
FIRST_PUTS = 500


class Etcd(Peer):
    """Three members on loopback. Use it with `with`."""

    def __init__(self, folder: Path) -> None:
        """Raises PeerMissing."""
        server, load = find("etcd", [BUILT]), find("etcd-benchmark", [BUILT])
        if server is None or load is None:
            raise PeerMissing(f"{HOW_TO_GET} (no {'etcd' if server is None else 'etcd-benchmark'} found)")
        self._server, self._load = str(server), str(load)
        super().__init__(folder)
        self._clients: list[str] = []

    @property
    def version(self) -> str:
        run = subprocess.run([self._server, "--version"], capture_output=True, text=True, check=True)
        return run.stdout.splitlines()[0].replace("etcd Version:", "etcd").strip()

    def start(self) -> None:
        self._folder.mkdir(parents=True)
        ports = free_ports(2 * len(MEMBERS))
        self._clients = [f"http://127.0.0.1:{port}" for port in ports[: len(MEMBERS)]]
        peers = dict(zip(MEMBERS, (f"http://127.0.0.1:{port}" for port in ports[len(MEMBERS) :]), strict=True))
        cluster = ",".join(f"{name}={where}" for name, where in peers.items())
        for name, client in zip(MEMBERS, self._clients, strict=True):
            command = [
                self._server, "--name", name, "--data-dir", str(self._folder / name),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name],
                "--initial-cluster", cluster, "--initial-cluster-token", "bench", "--log-level", "warn",
            ]  # fmt: skip
            self._servers.append(Server(f"etcd {name}", command, self._folder / f"{name}.log"))
        for _ in wait(self._servers, "a leader of three members"):
            if run_loop(_healthy(self._clients)):
                break

    def measure(self, *, clients: int, seconds: float) -> Measured:
        """Puts a second to the leader, `clients` connections with one put under way each. Raises PeerFailed.

        Its load generator takes a number of puts and not a time, so a short run comes first and says how many.
        """
        rate = self._puts(clients, FIRST_PUTS * clients).per_s
        return self._puts(clients, max(FIRST_PUTS, int(rate * seconds)))

    def _puts(self, clients: int, puts: int) -> Measured:
        pids = [server.pid for server in self._servers]
        before, began = tree_cpu_s(pids), time.monotonic()
        run = subprocess.run(
            [
                self._load, "--endpoints", ",".join(self._clients), "--target-leader",
                "--conns", str(clients), "--clients", str(clients),
                "put", "--total", str(puts), "--key-size", str(KEY_BYTES), "--val-size", str(VALUE_BYTES),
                "--key-space-size", "1000000",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for server in self._servers:
            server.check_runs()
        if run.returncode != 0:
            raise PeerFailed(f"etcd's load generator failed: {run.stderr.strip()[-500:]}")
        took_s = time.monotonic() - began
        return read_summary(run.stdout, puts, tree_cpu_s(pids) - before, took_s)


def read_summary(text: str, puts: int, cpu_s: float = 0.0, took_s: float = 0.0) -> Measured:
    """What etcd's load generator printed. Raises PeerFailed: it says nothing that we know."""
    rate = re.search(r"Requests/sec:\s*([0-9.]+)", text)
    points = {name: float(value) for name, value in re.findall(r"([0-9.]+)% in ([0-9.]+) secs", text)}
    if rate is None or not {"50", "99"} <= set(points):
        raise PeerFailed(f"etcd's load generator said:\n{text[-500:]}")
    errors = sum(
        int(count) for count in re.findall(r"^\s*\[([0-9]+)\]\s", text.partition("Error distribution")[2], re.M)
    )
    return Measured(
        per_s=float(rate[1]), p50_ms=points["50"] * 1e3, p99_ms=points["99"] * 1e3, cpu_s=cpu_s, wrong=errors
    )


async def _healthy(clients: list[str]) -> bool:
    timeout = aiohttp.ClientTimeout(total=1.0)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for client in clients:
            try:
                async with session.get(client + "/health") as response:
                    if (await response.json(content_type=None)).get("health") != "true":
                        return False
            except (aiohttp.ClientError, TimeoutError, OSError):
                return False
    return True
