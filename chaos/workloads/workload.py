"""What a workload is: what it needs before, and one step of one of its processes, again and again."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from chaos.workloads.context import Context
from chaos.workloads.process import Process


class Workload(ABC):
    """One per run and name; its processes share it, on one event loop.

    home: what its processes ask, members or gateways.
    """

    name: ClassVar[str]
    home: ClassVar[Literal["members", "gateways"]] = "members"

    def __init__(self, context: Context) -> None:
        self.context = context

    async def setup(self) -> None:  # noqa: B027 - some need nothing
        """Make what it needs; doing it twice does it once. Raises SetupFailed."""

    @abstractmethod
    async def step(self, process: Process) -> None:
        """One thing that a client does: mostly one call, sometimes a few in a row."""
