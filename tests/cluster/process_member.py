"""One engine as a process, for tests that kill: proposes while it leads, prints each payload once it is committed.

Usage: python -m tests.cluster.process_member FOLDER MEMBER. FOLDER holds topology.toml and certs/.
Prints 'started', 'leads TERM', 'acked PAYLOAD' for its own proposals. SIGTERM ends it cleanly; it prints
'committed INDEX' last.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from cluster.certificates import tls_files
from cluster.consensus.engine import ConsensusError, Role
from cluster.consensus.hardened import HardenedEngine
from cluster.consensus.settings import EngineSettings
from cluster.topology import read_topology

OUTSTANDING = 50


def say(line: bytes) -> None:
    # One write per line, unbuffered: what was printed was said before the kill.
    os.write(1, line + b"\n")


async def main(folder: Path, name: str) -> None:
    engine = HardenedEngine(
        EngineSettings(
            topology=read_topology(folder / "topology.toml"),
            member=name,
            folder=folder / name,
            tls=tls_files(folder / "certs", name),
        )
    )
    mine = f"{name}:{os.getpid()}:".encode()
    open_count = proposed = 0
    led: set[int] = set()

    def committed(_index: int, payload: bytes) -> None:
        nonlocal open_count
        if payload.startswith(mine):
            open_count -= 1
            say(b"acked " + payload)

    engine.on_committed = committed
    await engine.start(applied_index=0)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    say(b"started")
    while not stopping.is_set():
        status = engine.status()
        if status.role is Role.leader and status.term not in led:
            led.add(status.term)
            open_count = 0
            say(b"leads %d" % status.term)
        try:
            while status.role is Role.leader and open_count < OUTSTANDING:
                proposed += 1
                engine.propose(mine + b"%d" % proposed)
                open_count += 1
        except ConsensusError:
            pass
        await asyncio.sleep(0.002)
    say(b"committed %d" % engine.status().commit_index)
    await engine.stop()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))
