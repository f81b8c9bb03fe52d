"""PostgreSQL beside us: a primary with two synchronous standbys, `ANY 1`, default durability, load from pgbench."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from bench.peers.peer import (
    Measured,
    Peer,
    PeerFailed,
    PeerMissing,
    Server,
    find,
    free_ports,
    tail,
    tree_cpu_s,
    unprivileged,
    wait,
)
from bench.stats import percentile

HOW_TO_GET = "PostgreSQL is not installed; on Debian: apt-get install postgresql"
SCHEMA = Path(__file__).with_suffix(".sql")
STANDBYS = ("standby_a", "standby_b")
ACCOUNTS = 1_024
"""As many rows as postgres.sql makes. Each client has its own share of them, so that no two wait for one row."""
CLIENTS_MAX = 64
BATCH = 50
SINGLE = """\\set whose {share} * :client_id + random(0, {share} - 1)
\\set key random(1, 9223372036854775806)
\\set qty random(1, 100)
\\set at random(9000, 11000)
SELECT order_id, order_status FROM place_order(:whose, :key, 1, 'b', :qty, :at);
"""


def _folders() -> list[Path]:
    """Where Debian keeps versions side by side, the newest first."""

    def version(path: Path) -> float:
        return float(path.parent.name) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", path.parent.name) else 0.0

    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)


class Postgres(Peer):
    """A primary and two standbys on loopback. Use it with `with`."""

    ends_by = signal.SIGINT  # fast: ends its sessions

    def __init__(self, folder: Path) -> None:
        """folder: new; its parents are opened to the server's user. Raises PeerMissing."""
        programs = {name: find(name, _folders()) for name in ("initdb", "postgres", "pg_basebackup", "psql", "pgbench")}
        missing = [name for name, path in programs.items() if path is None]
        if missing:
            raise PeerMissing(f"{HOW_TO_GET} (no {', '.join(missing)} found)")
        self._programs = {name: str(path) for name, path in programs.items()}
        super().__init__(folder)
        self._user = unprivileged("postgres")
        self._ports = free_ports(1 + len(STANDBYS))

    @property
    def version(self) -> str:
        run = subprocess.run([self._programs["postgres"], "--version"], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    def start(self) -> None:
        self._folder.mkdir(parents=True)
        if self._user is not None:
            shutil.chown(self._folder, self._user, self._user)
            for parent in self._folder.parents:
                if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o011)
        primary = self._folder / "primary"
        self._do("initdb", "-D", str(primary), "-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C")
        with (primary / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(f"synchronous_standby_names = 'ANY 1 ({', '.join(STANDBYS)})'\n")
            settings.write("wal_keep_size = '1GB'\n")  # a standby that starts late finds what it missed
        # A write before there is a standby would wait for one for ever.
        first = self._server("primary", primary, self._ports[0], "-c", "synchronous_standby_names=")
        self._wait_ready(first, self._ports[0])
        self._psql("CREATE DATABASE bench", database="postgres")
        self._do("psql", *self._where("bench"), "-v", "ON_ERROR_STOP=1", "-q", "-f", str(SCHEMA))
        for name, port in zip(STANDBYS, self._ports[1:], strict=True):
            source = f"host=127.0.0.1 port={self._ports[0]} user=bench application_name={name}"
            self._do("pg_basebackup", "-D", str(self._folder / name), "-d", source, "-R", "-c", "fast")
            self._server(name, self._folder / name, port)
        first.stop(signal.SIGINT)
        self._servers.remove(first)
        again = self._server("primary", primary, self._ports[0])
        self._wait_ready(again, self._ports[0])
        for _ in wait(self._servers, "two synchronous standbys"):
            if len(self.synchronous()) == len(STANDBYS):
                break

    def synchronous(self) -> list[str]:
        """The standbys that stream and count for the quorum now."""
        said = self._psql(
            "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'"
        )
        return sorted(line for line in said.split() if line)

    def check_synchronous(self) -> None:
        """Raises PeerFailed unless an answer needs a standby's sync, and both are there."""
        commit = self._psql("SHOW synchronous_commit").strip()
        names = self._psql("SHOW synchronous_standby_names").strip()
        fsync = self._psql("SHOW fsync").strip()
        if (commit, fsync) != ("on", "on") or not names.startswith("ANY 1"):
            raise PeerFailed(f"not durable: synchronous_commit={commit}, fsync={fsync}, standbys {names!r}")
        if self.synchronous() != sorted(STANDBYS):
            raise PeerFailed(f"not both standbys are synchronous: {self.synchronous()}")

    def measure(self, *, clients: int, batch: int, seconds: float, warmup_s: float = 2.0) -> Measured:
        """Orders a second, and the latency of a request. batch: so many orders in one pipeline and one commit.

        Raises PeerFailed, also where a standby was not synchronous before or after.
        """
        self.check_synchronous()
        single = SINGLE.format(share=ACCOUNTS // CLIENTS_MAX)
        script = self._folder / f"orders-{batch}.sql"
        script.write_text(single if batch == 1 else f"\\startpipeline\n{single * batch}\\endpipeline\n", "utf-8")
        logs = self._folder / f"pgbench-{time.monotonic_ns()}"
        logs.mkdir()
        if self._user is not None:
            shutil.chown(logs, self._user, self._user)
        before = self._count()
        spent, took_s = 0.0, 0.0
        samples_ms: list[float] = []
        for part_s, kept in ((warmup_s, False), (seconds, True)):
            cpu_before, began = tree_cpu_s(self._pids), time.monotonic()
            self._do(
                "pgbench", *self._where("bench"), "-n", "-M", "prepared",
                "-c", str(clients), "-j", str(min(2, clients)),
                "-T", str(max(1, round(part_s))), "-f", str(script),
                *(("-l", "--log-prefix", str(logs / "t")) if kept else ()),
            )  # fmt: skip
            if kept:
                spent, took_s = tree_cpu_s(self._pids) - cpu_before, time.monotonic() - began
        for log in logs.iterdir():
            # client, transaction, microseconds, script, seconds, microseconds
            samples_ms.extend(int(line.split()[2]) / 1e3 for line in log.read_text("utf-8").splitlines())
        shutil.rmtree(logs)
        self.check_synchronous()
        wrong = self._count(" WHERE status <> 0")
        if self._count() - before < len(samples_ms) * batch:
            raise PeerFailed("fewer orders in the table than pgbench was answered")
        window_s = max(1, round(seconds))
        return Measured(
            per_s=len(samples_ms) * batch / window_s,
            p50_ms=percentile(samples_ms, 50),
            p99_ms=percentile(samples_ms, 99),
            cpu_s=spent * window_s / took_s if took_s else 0.0,
            wrong=wrong,
        )

    def _count(self, where: str = "") -> int:
        return int(self._psql(f"SELECT count(*) FROM orders{where}"))

    @property
    def _pids(self) -> list[int]:
        return [server.pid for server in self._servers]

    def _server(self, name: str, data: Path, port: int, *more: str) -> Server:
        data.chmod(0o700)
        log = self._folder / f"{name}.log"
        server = Server(
            f"PostgreSQL {name}",
            [
                self._programs["postgres"], "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1",
                "-c", "unix_socket_directories=", *more,
            ],
            log,
            user=self._user,
        )  # fmt: skip
        self._servers.append(server)
        return server

    def _wait_ready(self, server: Server, port: int) -> None:
        for _ in wait([server], f"PostgreSQL on port {port}"):
            try:
                self._psql("SELECT 1", database="postgres")
                return
            except PeerFailed:
                continue

    def _where(self, database: str) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self._ports[0]), "-U", "bench", database]

    def _psql(self, text: str, *, database: str = "bench") -> str:
        return self._do("psql", *self._where(database), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", text)

    def _do(self, program: str, *arguments: str) -> str:
        run = subprocess.run(
            [self._programs[program], *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user is not None else None,
            cwd=self._folder,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
        if run.returncode != 0:
            log = self._folder / "primary.log"
            raise PeerFailed(f"{program} failed: {run.stderr.strip()[-800:]}\n{tail(log) if log.exists() else ''}")
        return run.stdout
