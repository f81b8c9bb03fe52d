"""One machine over one store, fed with recorded batches, a process of its own: `python -m bench.scaling.applying`.

It applies and flushes as a node does: each batch is applied and handed to the store, and a worker thread writes what
has gathered, every 250 ms or 8 MiB. A Spec comes on stdin, the result goes to stdout as JSON.
"""

import gc
import resource
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from node.config import NodeLimits, NodeTiming
from statemachine.machine import Machine
from statemachine.records import AccountRecord
from statemachine.results import Refused
from statemachine.store import Store
from statemachine.store_flush import Flush

CLUSTER_ID = "scaling"
MEMBER = "scaling"
GC_THRESHOLDS = (100_000, 50, 50)
SWITCH_S = 0.001
"""Both as node/app.py sets them."""


class Spec(Struct):
    """store: folder of a filled store. batches: file with one msgpack list of encoded batches; the first `warmup`
    are applied before the clock runs.
    """

    store: str
    batches: str
    warmup: int
    cluster_id: str = CLUSTER_ID
    member: str = MEMBER


class Memory(Struct):
    """Of a process, in MiB: what is its own, and what of the store's file it sees in the system's memory."""

    own_mib: float
    file_mib: float


class Result(Struct):
    """commands, seconds, cpu_s: after the warm-up, until all was flushed. batch_ms: of each apply, raw.

    reads: accounts that were read from the store; read_s: how long that took. faults: pages that came from the disk.
    open_s: the store and the machine, until it could take the first batch; opened_index: what it stood at.
    """

    commands: int
    seconds: float
    cpu_s: float
    batch_ms: list[float]
    flush_ms: list[float]
    reads: int
    read_s: float
    faults: int
    written_bytes: int
    open_s: float
    opened_index: int
    before: Memory
    opened: Memory
    after: Memory
    peak_mib: float
    refused: dict[str, int]


class CountingStore(Store):
    """Counts and times the accounts that the machine reads."""

    reads = 0
    read_s = 0.0

    def account(self, account: str) -> AccountRecord | None:
        began = time.perf_counter()
        found = super().account(account)
        self.read_s += time.perf_counter() - began
        self.reads += 1
        return found


class Applying:
    """Applies batches; one flush at a time is written by a worker."""

    def __init__(self, store: Store, machine: Machine) -> None:
        self.store = store
        self.machine = machine
        self.flush_ms: list[float] = []
        self.refused: dict[str, int] = {}
        self._flush_s = NodeTiming().flush_ms / 1e3
        self._flush_bytes = NodeLimits().flush_bytes
        self._worker = ThreadPoolExecutor(1)
        self._flying: tuple[Flush, Future[None], float] | None = None
        self._flushed_at = time.perf_counter()

    def run(self, batches: list[bytes]) -> tuple[list[float], int]:
        """Milliseconds of each apply, and how many commands there were."""
        index, commands = self.machine.applied_index, 0
        times: list[float] = []
        for payload in batches:
            index += 1
            began = time.perf_counter()
            answered = self.apply(index, payload)
            times.append((time.perf_counter() - began) * 1e3)
            commands += answered
            self._flush(time.perf_counter())
        return times, commands

    def apply(self, index: int, payload: bytes) -> int:
        """One batch, flushed later; how many commands it had."""
        applied = self.machine.apply(index, payload)
        self.store.add(applied)
        for result in applied.results:
            if type(result) is Refused:
                self.refused[result.code.name] = self.refused.get(result.code.name, 0) + 1
        return len(applied.results)

    def _flush(self, now: float) -> None:
        if self._flying is not None:
            if not (self._flying[1].done() or self.store.pending_full):
                return
            self.finish()
        due = now - self._flushed_at >= self._flush_s or self.store.pending_bytes >= self._flush_bytes
        if due and self.machine.applied_index > self.store.stored_index:
            flush = self.store.begin(self.machine.collect())
            self._flying = flush, self._worker.submit(flush.write), now

    def finish(self) -> None:
        """Wait for the flush under way."""
        if self._flying is not None:
            flush, written, began = self._flying
            written.result()
            self.store.finish(flush)
            self._flushed_at = time.perf_counter()
            self.flush_ms.append((self._flushed_at - began) * 1e3)
            self._flying = None

    def flush_all(self) -> None:
        self.finish()
        if self.machine.applied_index > self.store.stored_index:
            self.store.flush(self.machine.collect())

    def stop(self) -> None:
        """Write all, and end the worker."""
        self.flush_all()
        self._worker.shutdown()


def memory(pid: int | Literal["self"] = "self") -> Memory:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
    return Memory(*(int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")))


def written_bytes() -> int:
    """What this process gave the disk to write so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text("utf-8").splitlines())
    return int(fields["write_bytes"])


def measure(spec: Spec) -> Result:
    batches = msgspec.msgpack.decode(Path(spec.batches).read_bytes(), type=list[bytes])
    gc.collect()
    before, began = memory(), time.perf_counter()
    store = CountingStore(Path(spec.store), cluster_id=spec.cluster_id, member=spec.member)
    machine = Machine(store, store.load())
    open_s = time.perf_counter() - began
    gc.collect()
    opened, opened_index = memory(), machine.applied_index
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    applying = Applying(store, machine)
    applying.run(batches[: spec.warmup])
    applying.flush_all()
    applying.flush_ms.clear()
    store.reads, store.read_s = 0, 0.0
    faults, written = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, written_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    times, commands = applying.run(batches[spec.warmup :])
    applying.flush_all()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    usage = resource.getrusage(resource.RUSAGE_SELF)
    after = memory()
    applying.stop()
    store.close()
    return Result(
        commands=commands,
        seconds=wall,
        cpu_s=cpu,
        batch_ms=times,
        flush_ms=applying.flush_ms,
        reads=store.reads,
        read_s=store.read_s,
        faults=usage.ru_majflt - faults,
        written_bytes=written_bytes() - written,
        open_s=open_s,
        opened_index=opened_index,
        before=before,
        opened=opened,
        after=after,
        peak_mib=usage.ru_maxrss / 1024,
        refused=applying.refused,
    )


def main() -> None:
    result = measure(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec))
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
