"""A member that is gone for good, and a new one in its place, while everything else goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from chaos.faults import processes
from chaos.faults.nemesis import Detail, Nemesis, Part, Struck, choose, drawn, felt
from chaos.faults.process import MEMBERS
from chaos.faults.target import Target
from chaos.net.links import NotCut
from cluster.client import ClientError
from cluster.wire import ClusterView

REPLACE_S = 90.0
TRY_S = 0.5
NEW = "zz"
"""A new member's name begins so, and a number follows: it sorts after all others, and so dials them all."""
PARTS: frozenset[Part] = MEMBERS | {"peer links", "gateway links"}


class Replaced(Nemesis):
    """Killed, its disk wiped; then add, catch up, promote, remove, as `tiebreak cluster replace` does.

    detail: `who`; `name` of the new member.
    """

    name = "replaced"
    line = "a member and its disk are gone for good; a new one is added, promoted, and the old one removed"
    parts = PARTS

    def __init__(self) -> None:
        self.old = self.new = ""
        self._task: asyncio.Task[None] | None = None

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        who = drawn(detail, "who", lambda: rng.choice(("replica", "leader", "one")))
        new = drawn(detail, "name", lambda: next_name(target, rng))
        self.old, self.new = (await choose(target, rng, who))[0], new
        processes.must_run(target, self.old)
        await target.kill(self.old)
        await target.wipe(self.old)
        self._task = asyncio.create_task(self._replace(target))
        return Struck([self.old], {"who": self.old, "name": new})

    async def _replace(self, target: Target) -> None:
        asked = await target.make_member(self.new, like=self.old)
        async with asyncio.timeout(REPLACE_S), target.operator() as client:
            await _insist(lambda: client.add_member(asked))
            await processes.bring_back(target, [self.new])
            await _insist(lambda: client.promote_member(self.new))
            await _insist(lambda: client.remove_member(self.old))
        await target.forget_member(self.old)

    async def bite(self, target: Target, struck: Struck) -> str:
        async def look() -> str:
            if self._task is not None and self._task.done():
                self._task.result()
            statuses = await asyncio.gather(*map(target.status, target.replicas))
            heard = [status["name"] for status in statuses if status is not None and _knows(status, self.new)]
            return f"{self.new} is a member, says {heard[0]}" if heard else ""

        return await felt(look, f"{self.new} added to the cluster", within_s=30)

    async def end(self, target: Target) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])
            error = self._task.exception()
            if error is None:
                self.told = f"{self.new} is in the place of {self.old}"
                return
            self.told = f"{self.new} did not take the place of {self.old}: {error!r}"
        if self.old in target.members:
            await processes.bring_back(target, [self.old])
        if self.told:
            raise NotCut(self.told)


def next_name(target: Target, rng: Random) -> str:
    """One that sorts after all, and that nobody had before."""
    numbers = [int(name.removeprefix(f"{NEW}-")) for name in target.members if name.startswith(f"{NEW}-")]
    return f"{NEW}-{max(numbers, default=0) + rng.randint(1, 90):04}"


def _knows(status: Detail, name: str) -> bool:
    return any(peer["name"] == name for peer in status["peers"])


async def _insist(change: Callable[[], Awaitable[ClusterView]]) -> None:
    """Ask for it until it is done: it is too early, nobody leads, the answer is lost. A repeat does no harm."""
    while True:
        try:
            await change()
            return
        except ClientError:
            await asyncio.sleep(TRY_S)
