"""What a run asks its cluster, where the members take longer to answer than they are waited for."""

import asyncio
import os
import signal
from pathlib import Path

from bench.running import Running, run_loop, running
from bench.watching import applied, leader_of


def test_how_far_the_leader_is_is_asked_again_until_somebody_answers(tmp_path: Path) -> None:
    with running(tmp_path / "c") as cluster:
        run_loop(hangs_for_a_moment(cluster))


async def hangs_for_a_moment(cluster: Running) -> None:
    pids = [pid for name in cluster.launcher.members if (pid := cluster.launcher.running(name)) is not None]

    def tell(number: int) -> None:
        for pid in pids:
            os.kill(pid, number)

    async with cluster.client("auditor", ("*",)) as auditor:
        await leader_of(cluster, auditor)
        tell(signal.SIGSTOP)
        try:
            assert not [health for health in await auditor.members() if health.view is not None]
            asking = asyncio.create_task(applied(auditor))
            await asyncio.sleep(1.0)
        finally:
            tell(signal.SIGCONT)
        assert await asking >= 0
