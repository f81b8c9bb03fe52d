"""Three processes: the leader is killed or frozen under load; what was acknowledged stays, once, everywhere."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.certificates import make_all
from cluster.consensus.storage import LmdbStorage
from cluster.topology import new_topology, write_topology
from tests.cluster.engines import free_port


class Process:
    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.acked: list[bytes] = []
        self.leads_at: list[float] = []
        self.started = threading.Event()
        self.committed_index = 0
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.process_member", str(folder), name],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            word, _, rest = line.rstrip(b"\n").partition(b" ")
            if word == b"acked":
                self.acked.append(rest)
            elif word == b"started":
                self.started.set()
            elif word == b"committed":
                self.committed_index = int(rest)
            elif word == b"leads":
                self.leads_at.append(time.monotonic())

    def end(self, number: signal.Signals) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        code = self.child.wait(timeout=10)
        self._reader.join()
        assert self.child.stdout is not None
        self.child.stdout.close()
        return code


def wait_for(holds: Callable[[], bool], within: float = 10.0) -> None:
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < within, f"not within {within} s"
        time.sleep(0.005)


def logged(folder: Path, cluster_id: str, name: str) -> list[tuple[int, bytes]]:
    storage = LmdbStorage(folder / name, cluster_id=cluster_id, member=name, map_bytes=1 << 36)
    try:
        entries = storage.load(tail_bytes_max=1 << 30).tail
        return [(index, command[1:]) for command, index, _ in entries if command[:1] == b"\0"]
    finally:
        storage.close()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_acknowledged_is_lost_when_leaders_are_killed_or_frozen(tmp_path: Path, blow: signal.Signals) -> None:
    topology = new_topology("1+1+1", free_port(6))
    write_topology(tmp_path / "topology.toml", topology)
    names = [member.name for member in topology.members]
    make_all(tmp_path / "certs", topology.cluster_id, names)
    running = {name: Process(tmp_path, name) for name in names}
    ended: list[Process] = []
    outages = []
    try:
        for _ in range(3):
            wait_for(lambda: any(p.acked for p in running.values()))
            counts = {name: len(p.acked) for name, p in running.items()}
            wait_for(lambda c=counts: any(len(p.acked) > c[n] + 300 for n, p in running.items()))  # type: ignore[misc]
            leader = max(running.values(), key=lambda p: max(p.leads_at, default=0.0) if p.name != "t1" else 0.0)
            [other] = [p for p in running.values() if p.name not in (leader.name, "t1")]
            before = len(other.acked)
            struck_at = time.monotonic()
            os.kill(leader.child.pid, blow)
            wait_for(lambda o=other, b=before: len(o.acked) > b)  # type: ignore[misc]
            outages.append(time.monotonic() - struck_at)
            if blow == signal.SIGKILL:
                leader.end(blow)
                ended.append(leader)
                running[leader.name] = Process(tmp_path, leader.name)
            else:
                os.kill(leader.child.pid, signal.SIGCONT)
        for process in running.values():
            assert process.started.wait(10)
    finally:
        codes = [process.end(signal.SIGTERM) for process in running.values()]
    assert codes == [0, 0, 0]
    acked = [payload for process in [*ended, *running.values()] for payload in process.acked]
    assert len(acked) > 900
    logs = {name: logged(tmp_path, topology.cluster_id, name) for name in names}
    # Uncommitted tails may differ; what all know to be committed must not.
    last = min(process.committed_index for process in running.values())
    committed = [[entry for entry in log if entry[0] <= last] for log in logs.values()]
    assert committed[0] == committed[1] == committed[2]
    copies = Counter(payload for log in logs.values() for payload in {p for _, p in log})
    assert [payload for payload in acked if copies[payload] < 2] == []
    for log in logs.values():
        assert max(Counter(payload for _, payload in log).values()) == 1
    assert min(outages) < 2.0
