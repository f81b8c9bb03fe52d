"""How soon the two sites agree again after a heal: one change made at each just before it, looked for at both."""

import asyncio
import time

from chaos.history.file import HistoryWriter
from chaos.workloads import at_gateways
from chaos.workloads.context import Context
from chaos.workloads.process import Process

WITHIN_S = 10.0
POLL_S = 0.05
NAME = "sites"
CONVERGED = "converged_ms"
"""In the detail of a sighting of NAME: how long it took; -1: not in time."""


class Markers:
    """Marks of one run. `took_ms`: of each heal, in their order."""

    def __init__(self, context: Context, writer: HistoryWriter) -> None:
        self._context = context
        self._writer = writer
        self._count = 0
        self.took_ms: list[int] = []

    async def set(self) -> dict[str, str]:
        """Make one change at each gateway; the values by user. One whose gateway did not take it is left out."""
        self._count += 1
        made = {}
        for gateway in self._context.gateways:
            user = f"marker-{self._context.seed}-{self._count}-{gateway.removeprefix('gateway-')}"
            process = Process(self._context, "marker", gateway)
            try:
                value = f"Bear {self._count}"
                reply = await process.ask(at_gateways.set_value(user, "leaderboard_name", value), gateway)
            finally:
                await process.close()
            if reply.outcome == "ok":
                made[user] = value
                self._context.users.add(user)
        return made

    async def seen(self, made: dict[str, str], since: float) -> None:
        """Wait until each gateway shows all of them, and write down how long after `since` (monotonic) that was."""
        if len(made) < len(self._context.gateways):
            return
        processes = [Process(self._context, "marker", gateway) for gateway in self._context.gateways]
        try:
            while time.monotonic() < since + WITHIN_S:
                if all(await asyncio.gather(*(self._shows(process, made) for process in processes))):
                    self._write(int((time.monotonic() - since) * 1000))
                    return
                await asyncio.sleep(POLL_S)
            self._write(-1)
        finally:
            for process in processes:
                await process.close()

    async def _shows(self, process: Process, made: dict[str, str]) -> bool:
        for user, value in made.items():
            reply = await process.ask(at_gateways.read_values(user, ["leaderboard_name"]), process.home)
            if reply.outcome != "ok" or reply.answer["values"].get("leaderboard_name") != value:
                return False
        return True

    def _write(self, took_ms: int) -> None:
        self.took_ms.append(took_ms)
        self._writer.seen(NAME, up=True, detail={CONVERGED: took_ms})
