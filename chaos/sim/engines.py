"""The engines that a run can have: ours, from modules that a mutant may have changed, and the library's."""

from types import ModuleType
from typing import Any

import cluster.consensus.journal
import cluster.consensus.raft
from chaos.sim.disk import DiskCommitter, DiskStorage
from chaos.sim.member import Core, Engine, Member
from chaos.sim.stock import Stock


class Hardened:
    """RaftCore over the real Journal over a modelled disk."""

    name = "hardened"
    durable = True

    def __init__(
        self, raft: ModuleType = cluster.consensus.raft, journal: ModuleType = cluster.consensus.journal
    ) -> None:
        self._raft = raft
        self._journal = journal

    def start(self, member: Member, storage: DiskStorage, committer: DiskCommitter, applied_index: int) -> Core:
        around = member.around
        journal = self._journal.Journal(
            storage,
            committer,
            on_synced=member.synced,
            on_failed=member.disk_failed,
            tail_bytes_max=around.tail_bytes_max,
        )
        core: Any = self._raft.RaftCore(
            member.name,
            member.role,
            member.first,
            journal=journal,
            owner=member,
            settings=self._raft.RaftSettings(
                timing=around.timing,
                batch_bytes=around.batch_bytes,
                trim_reserve=around.trim_reserve,
                laggard_entries=around.laggard_entries,
                laggard_ms=around.laggard_ms,
                promote_lag=around.promote_lag,
            ),
            applied_index=applied_index,
        )
        return core  # type: ignore[no-any-return]


def engine_named(name: str) -> Engine:
    """'hardened' or 'stock'. Raises ValueError for another name."""
    if name == "hardened":
        return Hardened()
    if name == "stock":
        return Stock()
    raise ValueError(f"engine {name!r}: hardened or stock")
