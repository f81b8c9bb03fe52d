"""How long members of a chaos cluster wait, and how little they keep: fast enough to see much in a minute."""

from cluster.topology import Timing, check_timing

CHAOS = check_timing(
    Timing(heartbeat_ms=100, election_ms_min=400, election_ms_max=800, link_silent_ms_max=1_500, redial_ms_max=300)
)
"""Ten times the jitter of two cores that all processes share; a leader that is gone is missed within 0.8 s."""

MEMBER_TIMING = {"command_timeout_ms": 2_000, "read_timeout_ms": 1_000, "digest_ms": 1_000, "drain_ms": 3_000}
"""Of the members' files. Digests are reported often, so that a replica that differs is known within a run."""

LIMITS = {
    "rate_per_s": 1_000_000,
    "rate_burst": 1_000_000,
    "disk_free_bytes_min": 24 << 20,
    "disk_free_bytes_ok": 40 << 20,
    "store_bytes_max": 1 << 30,
    "log_bytes_max": 1 << 30,
    "log_laggard_bytes": 1 << 29,
}
"""One principal sends all of a workload, so rates are lifted. A small loop mount has room for the rest."""

TRIM_NEVER = {"log_reserve": 10**8, "log_laggard_entries": 10**9}
"""The whole log is there at the end, however long a run lasts: most checks need all of it."""
TRIM_OFTEN = {"log_reserve": 100, "log_laggard_entries": 300, "log_laggard_ms": 2_000}
"""A replica that is away for 2 s, or 300 entries behind, comes back by a snapshot."""
