"""Links that stay, and are slow, sliced, broken in the middle of a message, or flapping."""

import asyncio
import contextlib
from random import Random

from chaos.faults import seeing, sides
from chaos.faults.nemesis import Detail, Struck, choose, drawn, felt
from chaos.faults.network import LinkNemesis, careful, together
from chaos.faults.target import Target
from chaos.net.links import Link

LATENCY_MS = (1, 300)
FLAP_S = (0.2, 3.0)


class SlowWan(LinkNemesis):
    """detail: `latency_ms`, `jitter_ms`."""

    name = "slow-wan"
    line = "every link between the datacenters takes 1 to 300 ms more, with jitter"
    parts = frozenset({"peer links", "gateway links"})

    def __init__(self) -> None:
        super().__init__()
        self.latency_ms = self.jitter_ms = 0.0

    def draw_how(self, rng: Random) -> str:
        return "slow"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        self.latency_ms = drawn(detail, "latency_ms", lambda: rng.randint(*LATENCY_MS))
        self.jitter_ms = drawn(detail, "jitter_ms", lambda: round(self.latency_ms * rng.random() / 2))
        return sides.between_datacenters(target), {"latency_ms": self.latency_ms, "jitter_ms": self.jitter_ms}

    async def strike(self, target: Target, link: Link) -> None:
        await target.network.slow(link.name, self.latency_ms, self.jitter_ms)

    async def bite(self, target: Target, struck: Struck) -> str:
        # The verb has timed the link itself before it came back, and nothing that a member says would tell more.
        return f"each of {len(self.links)} links was timed through its proxy"


class Slicer(LinkNemesis):
    """detail: `size_bytes`, `delay_us`."""

    name = "slicer"
    line = "messages between members arrive in small pieces"

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = self.delay_us = 0

    def draw_how(self, rng: Random) -> str:
        return "slice"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        self.size_bytes = drawn(detail, "size_bytes", lambda: rng.choice((7, 30, 100, 500)))
        self.delay_us = drawn(detail, "delay_us", lambda: rng.choice((10, 100, 1_000)))
        links = [link for link in target.links if link.kind == "peer"]
        return links, {"size_bytes": self.size_bytes, "delay_us": self.delay_us}

    async def strike(self, target: Target, link: Link) -> None:
        await target.network.slice(link.name, self.size_bytes, self.delay_us)

    async def bite(self, target: Target, struck: Struck) -> str:
        return f"each of {len(self.links)} links was read through its proxy"


class Broken(LinkNemesis):
    """What ends connections, and lets members dial again. It bites where the old connections are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, frozenset[int]] = {}

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        self.before = await seeing.connections(target, target.links)
        return await super().begin(target, rng, detail)

    async def bite(self, target: Target, struck: Struck) -> str:
        gone: set[str] = set()

        async def look() -> str:
            now = await seeing.connections(target, self.links)
            gone.update(name for name in now if self.before[name] - now[name] or not self.before[name])
            return f"old connections ended on {len(gone)} links" if len(gone) == len(self.links) else ""

        return await felt(look, f"{self.name}: the end of every old connection")


class MidMessageCut(Broken):
    """detail: `who`; `size_bytes`: so much passes before the end, on each connection anew."""

    name = "mid-message-cut"
    line = "connections of a member end in the middle of a message, again and again"

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0

    def draw_how(self, rng: Random) -> str:
        return "cut_after"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        self.size_bytes = drawn(detail, "size_bytes", lambda: rng.choice((500, 5_000, 20_000, 50_000)))
        names = await choose(target, rng, drawn(detail, "who", lambda: rng.choice(("leader", "one"))))
        return sides.around(target.links, names[0]), {"who": names[0], "size_bytes": self.size_bytes}

    async def strike(self, target: Target, link: Link) -> None:
        await target.network.cut_after(link.name, self.size_bytes)


class Reset(Broken):
    """detail: `who`."""

    name = "reset"
    line = "every connection of a member gets a RST, once"

    def draw_how(self, rng: Random) -> str:
        return "reset"

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        names = await choose(target, rng, drawn(detail, "who", lambda: rng.choice(("leader", "one"))))
        return sides.around(target.links, names[0]), {"who": names[0]}

    async def strike(self, target: Target, link: Link) -> None:
        await target.network.reset(link.name)


class Flapping(Broken):
    """detail: `who`; `every_s`: the longest that the link stays up or down; `how`: stall or refuse."""

    name = "flapping"
    line = "links of a member go down and up every 0.2 to 3 s"

    def __init__(self) -> None:
        super().__init__()
        self.every_s = 0.0
        self.flaps = 0
        self._task: asyncio.Task[None] | None = None
        self._enough = asyncio.Event()

    def draw_how(self, rng: Random) -> str:
        return rng.choice(("stall", "refuse"))

    async def pick(self, target: Target, rng: Random, detail: Detail) -> tuple[list[Link], Detail]:
        self.every_s = drawn(detail, "every_s", lambda: round(rng.uniform(*FLAP_S), 2))
        names = await choose(target, rng, drawn(detail, "who", lambda: rng.choice(("leader", "one"))))
        return sides.around(target.links, names[0]), {"who": names[0], "every_s": self.every_s}

    async def begin(self, target: Target, rng: Random, detail: Detail) -> Struck:
        struck = await super().begin(target, rng, detail)
        self._task = asyncio.create_task(self._flap(target, Random(rng.random())))
        return struck

    async def _flap(self, target: Target, rng: Random) -> None:
        """Down from begin on, then up and down. Each state lasts between 0.2 s and `every_s`."""
        down = True
        while not await self._wait(rng.uniform(min(FLAP_S[0], self.every_s), self.every_s)):
            careful(target, self.links)
            if down:
                await together(target.network.heal(link.name) for link in self.links)
            else:
                await together(self.strike(target, link) for link in self.links)
                self.flaps += 1
            down = not down

    async def _wait(self, seconds: float) -> bool:
        """True: it is enough."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._enough.wait(), seconds)
        return self._enough.is_set()

    async def bite(self, target: Target, struck: Struck) -> str:
        async def look() -> str:
            if self._task is not None and self._task.done():
                self._task.result()
            return f"down, up and down again {self.flaps} times" if self.flaps else ""

        return await felt(look, "the first flap", within_s=2 * self.every_s + 8)

    async def end(self, target: Target) -> None:
        # Told and not cancelled: a verb that is under way must not end after the links were healed.
        self._enough.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        await super().end(target)
