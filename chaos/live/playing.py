"""From the first process to the last: warm-up, faults, healing, final reads, restart of all, and the members' logs."""

import asyncio
import platform
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from rich.markup import escape

from chaos.check.availability import GATEWAY_READS_MIN
from chaos.commit import commit
from chaos.faults.processes import bring_back, go_on
from chaos.history.file import NAME as HISTORY
from chaos.history.file import HistoryWriter, write_final
from chaos.history.records import Final, Stage
from chaos.history.run import Run, write_run
from chaos.live.bed import Bed, Running
from chaos.live.following import Follower
from chaos.live.logdump import dump
from chaos.live.markers import Markers
from chaos.live.pressure import waited_us
from chaos.live.programs import SHIPPED, STOCK
from chaos.live.scenarios import Scenario, draw_plan
from chaos.live.striking import Strikes
from chaos.live.view import EVERY_S, Picture, Rates, View, rows
from chaos.live.watcher import Watcher
from chaos.live.wiring import Settings
from chaos.net.links import Network
from chaos.net.netns import NamespaceNetwork
from chaos.net.proxy import OwnNetwork
from chaos.net.toxiproxy import ToxiproxyNetwork
from chaos.workloads.context import Context, Tokens
from chaos.workloads.crew import Crew
from chaos.workloads.final import read_after_restart, read_final

WARMUP_S = 2.0
HEALING_S = 4.0
"""Clients go on asking for so long after the last fault: a cluster that is whole again must take it all."""
BACK_MS = 60_000
TOXIPROXY, OWN, NAMESPACE = "toxiproxy", "own", "namespace"
NETWORKS = (TOXIPROXY, OWN, NAMESPACE)
CLUSTER = "cluster"
MEMBERS, METRICS = "members", "metrics"
EVENTS, FINAL = "events.jsonl", "final.json"


SCREENS_PER_S, SCREENS_PER_S_MAX = 36.0, 300.0


def screens_per_s(scenario: Scenario, seconds: float) -> float:
    """Reads of each gateway: so many that at 99.9 % some may be missing in a short run, and few enough to be cheap."""
    return min(SCREENS_PER_S_MAX, scenario.screens * max(SCREENS_PER_S, 1.5 * GATEWAY_READS_MIN / seconds))


class Asked(Struct, frozen=True):
    """What a run is to be. shape: empty for the scenario's own. program: shipped, stock or a mutant. network:
    toxiproxy, own or namespace; empty for what the scenario needs. keep: the cluster's folder stays after a pass."""

    scenario: str
    seed: int
    seconds: float
    folder: Path
    shape: str = ""
    program: str = SHIPPED
    network: str = ""
    keep: bool = False

    @property
    def command(self) -> str:
        """The line that repeats it."""
        words = ["tiebreak chaos run", self.scenario, f"--seconds {self.seconds:g}", f"--seed {self.seed}"]
        words += [f"--shape {self.shape}"] if self.shape else []
        words += [f"--engine {self.program}"] if self.program != SHIPPED else []
        words += [f"--network {self.network}"] if self.network else []
        return " ".join(words)


def needs_toxiproxy(asked: Asked, scenario: Scenario) -> bool:
    return (asked.network or (OWN if scenario.own_proxy else TOXIPROXY)) == TOXIPROXY


class Playing:
    """Plays one run into its folder. folders: of members with a disk of their own."""

    def __init__(self, asked: Asked, scenario: Scenario, folders: Mapping[str, Path], view: View) -> None:
        self._asked = asked
        self._scenario = scenario
        self._folders = folders
        self._view = view
        self._plan = draw_plan(scenario, asked.seed, asked.seconds)
        self._phase: Stage = "start"
        self._phase_s = 0.0
        self._phase_began = time.monotonic()
        self._rates = Rates()

    async def play(self) -> None:
        """From the first process to the last; whatever ends it, none is left.

        Raises FolderError, NoPorts, LaunchError or NotCut: the cluster does not start, or not come back.
        SetupFailed, DumpFailed: it does not take what the load needs, its log can't be read.
        """
        asked, scenario = self._asked, self._scenario
        async with AsyncExitStack() as stack:
            bed = self._bed()
            stack.push_async_callback(bed.close)
            self._written = self._run(bed)
            self._write()
            writer = self._writer = HistoryWriter(asked.folder / HISTORY)
            stack.callback(writer.close)
            self._begin("start", 0)
            self._view.say(f"starting {len(bed.members)} members and {len(bed.gateways)} gateways")
            await bed.open()
            if isinstance(bed.network, ToxiproxyNetwork):
                found = {**self._written.versions, "toxiproxy": ", ".join(sorted(set(bed.network.versions().values())))}
                self._write(versions=found)
            context = Context(
                writer,
                members={name: bed.addresses[name] for name in bed.replicas},
                gateways={name: bed.addresses[name] for name in bed.gateways},
                tokens=Tokens.of(bed.folder.root),
                seed=asked.seed,
            )
            crew = Crew(
                context,
                scenario.workloads,
                rate_per_s=scenario.rate_per_s,
                screens_per_s=screens_per_s(scenario, asked.seconds),
            )
            watcher = Watcher(bed, writer)
            follower = Follower(bed, asked.folder / EVENTS, seed=asked.seed)
            stack.callback(follower.close)
            strikes = Strikes(
                bed,
                writer,
                self._plan,
                seed=asked.seed,
                alone=not scenario.mixed,
                markers=Markers(context, writer),
                say=self._view.say,
            )
            async with _beside(watcher.run()), _beside(self._show(bed, watcher, strikes, context)):
                await crew.setup()
                async with _beside(follower.run()):
                    final = await self._load(bed, crew, strikes, context)
                final = await self._follow(follower, final)
                final = await self._restart(bed, context, final)
                # From where it was, at members that were all stopped meanwhile.
                final = await self._follow(follower, final)
            write_final(asked.folder / FINAL, final)
            await self._end(bed)

    def _bed(self) -> Bed:
        asked, scenario = self._asked, self._scenario
        settings = Settings(shape=asked.shape, trim_often=scenario.trim_often, disks=self._folders)
        return Bed(asked.folder / CLUSTER, self._network(), settings, Running(program=asked.program), seed=asked.seed)

    def _network(self) -> Network:
        if needs_toxiproxy(self._asked, self._scenario):
            return ToxiproxyNetwork(self._asked.folder / CLUSTER / "log")
        if self._asked.network == NAMESPACE:
            return NamespaceNetwork()
        return OwnNetwork(seed=self._asked.seed)

    def _run(self, bed: Bed) -> Run:
        asked, scenario = self._asked, self._scenario
        return Run(
            scenario=scenario.name,
            seed=asked.seed,
            seconds=asked.seconds,
            shape=asked.shape,
            engine="stock" if asked.program == STOCK else "hardened",
            program=asked.program,
            repeat_with=asked.command,
            versions=versions(),
            started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            plan=self._plan,
            expect=scenario.required(self._plan),
            min_ok=int(scenario.ok_per_s * asked.seconds),
            stock=asked.program == STOCK,
            sites={name: bed.site_of(name) for name in (*bed.members, *bed.gateways)},
            witnesses=[name for name in bed.members if name not in bed.replicas],
            outage_ms_max=scenario.outage_ms_max,
            story=scenario.story,
        )

    def _write(self, **changes: Any) -> None:
        self._written = replace(self._written, **changes)
        write_run(self._asked.folder, self._written)

    # ---- its parts ----

    async def _load(self, bed: Bed, crew: Crew, strikes: Strikes, context: Context) -> Final:
        """Everything that clients are there for, and what they read at the end."""
        asked = self._asked
        try:
            self._begin("warmup", WARMUP_S)
            crew.start()
            await asyncio.sleep(WARMUP_S)
            self._begin("faults", asked.seconds)
            began, waited = time.monotonic(), waited_us()
            await strikes.run(asked.seconds)
            await asyncio.sleep(max(0.0, began + asked.seconds - time.monotonic()))
            self._note_pressure(began, waited)
            self._begin("healing", HEALING_S)
            await self._heal(bed)
            await asyncio.sleep(HEALING_S)
        finally:
            # Raises what a client raised: a load that ended early shows less than it says.
            await crew.stop()
        # A member may have been replaced: from here on those count that are there now.
        context.members = {name: bed.addresses[name] for name in bed.replicas}
        sites = {name: bed.site_of(name) for name in bed.members}
        self._write(sites={**self._written.sites, **sites})
        self._begin("final", 0)
        final = await read_final(context, healed_at_ns=time.monotonic_ns())
        took_ms = strikes.markers.took_ms
        if took_ms:
            final = replace(final, converged_ms=-1 if -1 in took_ms else max(took_ms))
        return final

    async def _heal(self, bed: Bed) -> None:
        """Whatever a fault left: links, pauses, deaths. Raises LaunchError or NotCut: somebody does not come back."""
        for name in (*bed.members, *bed.gateways):
            await go_on(bed, name)
        await bed.network.heal_all()
        await bring_back(bed, (*bed.members, *bed.gateways))
        await bed.wait_ready((*bed.members, *bed.gateways), timeout_ms=BACK_MS)

    async def _restart(self, bed: Bed, context: Context, final: Final) -> Final:
        """Stop all members and start them from what is on their disks; what they say then stands beside the rest."""
        await self._metrics(bed)
        self._view.say("stopping and starting all members")
        await asyncio.gather(*map(bed.stop, bed.members))
        for name in bed.members:
            await bed.start(name, ready_timeout_ms=0)
        await bed.wait_ready(bed.members, timeout_ms=BACK_MS)
        return await read_after_restart(context, final)

    async def _follow(self, follower: Follower, final: Final) -> Final:
        if await follower.rest(final.index):
            return final
        return replace(final, complete=False, why=f"{final.why}; the event feed did not come to its end")

    async def _metrics(self, bed: Bed) -> None:
        folder = self._asked.folder / METRICS
        folder.mkdir()
        for name in (*bed.members, *bed.gateways):
            page = await bed.ask(name, "/metrics")
            if page is not None and page.status == 200:
                (folder / f"{name}.prom").write_bytes(page.body)

    async def _end(self, bed: Bed) -> None:
        """Stop everything, and keep what its members have and wrote."""
        folder = self._asked.folder
        self._view.say("reading the members' logs")
        await asyncio.gather(*map(bed.stop, (*bed.gateways, *bed.members)))
        await dump(bed.folder.root, folder)
        (folder / MEMBERS).mkdir()
        for name in (*bed.members, *bed.gateways):
            if bed.folder.log(name).exists():
                shutil.copy(bed.folder.log(name), folder / MEMBERS / f"{name}.log")
        self._begin("end", 0)

    # ---- what is shown ----

    def _begin(self, phase: Stage, seconds: float) -> None:
        self._writer.phase(phase)
        self._phase, self._phase_s, self._phase_began = phase, seconds, time.monotonic()
        if phase != "start":
            self._view.say(f"[bold]{_TITLES[phase]}[/]")

    def _note_restarts(self, network: Network) -> None:
        """What the tool itself had to start again, for whoever wonders about connections that ended."""
        for said in network.restarts[len(self._written.restarts) :]:
            at_s = time.monotonic() - self._phase_began
            told = f"{said}, {at_s:.1f} s into {_TITLES[self._phase]}"
            self._write(restarts=[*self._written.restarts, told])
            self._view.say(f"[yellow]{escape(told)}[/]")

    def _note_pressure(self, began: float, waited_before_us: int | None) -> None:
        waited_after_us = waited_us()
        if waited_before_us is not None and waited_after_us is not None:
            share = (waited_after_us - waited_before_us) / 1e6 / (time.monotonic() - began)
            self._write(cpu_short_percent=min(100, round(100 * share)))

    async def _show(self, bed: Bed, watcher: Watcher, strikes: Strikes, context: Context) -> None:
        asked = self._asked
        while True:
            self._note_restarts(bed.network)
            names = [(name, bed.site_of(name)) for name in (*bed.members, *bed.gateways)]
            rates = self._rates.of(context.tally, time.monotonic())
            counts: Counter[str] = Counter()
            for (_, outcome), count in context.tally.items():
                counts[outcome] += count
            self._view.show(
                Picture(
                    title=f"{asked.scenario} seed {asked.seed} {asked.shape}",
                    phase=_TITLES[self._phase],
                    at_s=time.monotonic() - self._phase_began,
                    of_s=self._phase_s,
                    rows=rows(names, watcher.latest, rates),
                    faults=[f"{one.planned.nemesis} {one.said}" for one in strikes.now.values()],
                    counts=counts,
                )
            )
            await asyncio.sleep(EVERY_S)


_TITLES: dict[Stage, str] = {
    "start": "start",
    "warmup": "warm-up",
    "faults": "faults",
    "healing": "healing",
    "final": "final reads",
    "end": "end",
}


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run it beside the block, and end it with the block. Raises what it raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def versions() -> dict[str, str]:
    """What ran: commit, python."""
    return {"commit": commit(), "python": platform.python_version()}
