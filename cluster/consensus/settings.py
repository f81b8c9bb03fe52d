"""How one member's consensus is set up, what it may use, and the codes with which it leaves."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from cluster.certificates import TlsFiles
from cluster.topology import Topology

log = logging.getLogger(__name__)

EXIT_APPLY_FAILED = 70
EXIT_DISK_FAILED = 71
EXIT_BROKEN_INVARIANT = 72
EXIT_REMOVED = 76

FRAME_BYTES_MAX = 16 << 20
# An entry travels in one frame with its neighbours' headers.
PAYLOAD_BYTES_MAX = 8 << 20

StopProcess = Callable[[int, str], None]


def stop_process(exit_code: int, reason: str) -> None:
    """Leave now: no clean-up, no flush, nothing more is acknowledged. Crash is the one way to stop that is tested."""
    log.critical("leaving with code %d: %s", exit_code, reason)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


class Limits(Struct, frozen=True):
    """Bounds of one member. Beyond them it refuses with Overloaded; it never grows without end.

    uncommitted_*: what a leader takes in before a majority has it.
    journal_bytes_max: the log's live size. A replica's own reaches it only when its store does not keep up; a
        witness's when a replica is away for long, because it trims nothing that one of them lacks.
    snapshot_bytes_per_s: how fast a snapshot leaves a leader at most, beside everything else.
    laggard_*: how long a replica's log waits for one that is away; see RaftSettings.
    free_bytes_min: the low-water mark of the disk.
    strangers_max: in a handshake at once. handshakes_per_s: from one address; four times as many from all.
    link_*: what a member takes in from one other; beyond it, it reads no further for a moment.
    """

    uncommitted_entries_max: int = 20_000
    uncommitted_bytes_max: int = 64 << 20
    reads_max: int = 100_000
    journal_bytes_max: int = 32 << 30
    free_bytes_min: int = 1 << 30
    tail_bytes_max: int = 64 << 20
    write_buffer_bytes_max: int = 64 << 20
    application_buffer_bytes_max: int = 8 << 20
    strangers_max: int = 64
    handshakes_per_s: int = 50
    link_bytes_per_s: int = 256 << 20
    link_frames_per_s: int = 200_000
    trim_reserve: int = 10_000
    laggard_entries: int = 1_000_000
    laggard_bytes: int = 4 << 30
    laggard_ms: int = 3_600_000
    snapshot_bytes_per_s: int = 64 << 20


class EngineSettings(Struct, frozen=True):
    """folder: the journal's own; nothing else may be in it.

    listen: where to listen instead of the topology's peer address. dial: where to find a member instead of
    its peer address, so that a proxy can stand between. delay_ms: hold each message to that member back
    for so long, to stand for the distance between sites.
    """

    topology: Topology
    member: str
    folder: Path
    tls: TlsFiles
    limits: Limits = Limits()
    listen: tuple[str, int] | None = None
    dial: dict[str, tuple[str, int]] = {}
    delay_ms: dict[str, float] = {}
