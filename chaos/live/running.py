"""One run: its folder, the cluster in it, its plan carried out, and the verdict over what was written down."""

import asyncio
import shutil
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from chaos.check.run import check_run
from chaos.check.verdict import Verdict
from chaos.disk.children import Failed
from chaos.faults import disks
from chaos.live.logdump import DumpFailed
from chaos.live.playing import CLUSTER, NAMESPACE, Asked, Playing, needs_toxiproxy
from chaos.live.programs import UnknownProgram
from chaos.live.scenarios import Scenario, scenario_named
from chaos.live.view import View
from chaos.live.wiring import NoPorts
from chaos.net import netns
from chaos.net.links import NotCut
from chaos.net.server import unavailable
from chaos.report.page import VERDICT, build_report
from chaos.workloads.process import SetupFailed
from cluster.folder import SHAPES, FolderError
from cluster.launcher import LaunchError


class RunFailed(Exception):
    """The run could not be made, so that nothing was proven. The message says why and where to look."""


def run(asked: Asked, view: View) -> Verdict:
    """Make the run's folder, run it, judge it and write the report. Call it on the main thread.

    Whatever ends it, nothing is left running; the folder keeps what was recorded until then.

    Raises UnknownScenario, FileExistsError, RunFailed; KeyboardInterrupt when it was interrupted.
    """
    scenario = scenario_named(asked.scenario)
    asked = replace(asked, shape=asked.shape or scenario.shapes[0])
    if asked.shape not in scenario.shapes:
        raise RunFailed(f"{scenario.name} needs the shape {' or '.join(scenario.shapes)}, not {asked.shape}")
    if needs_toxiproxy(asked, scenario) and (reason := unavailable()):
        raise RunFailed(f"{reason}. Or run it with --network own: a small proxy of our own cuts the links then")
    in_namespace = asked.network == NAMESPACE
    if in_namespace and (reason := netns.unavailable()):
        raise RunFailed(f"--network {NAMESPACE} is not available here: {reason}")
    asked.folder.mkdir(parents=True)
    try:
        if in_namespace:
            netns.enter()
        with _disks(scenario, asked.shape) as folders:
            asyncio.run(_interruptible(Playing(asked, scenario, folders, view).play()))
    except (FolderError, NoPorts, UnknownProgram) as error:
        raise RunFailed(str(error)) from error
    except (LaunchError, NotCut, SetupFailed, Failed, DumpFailed, TimeoutError) as error:
        raise RunFailed(f"{error}\nwhat its processes wrote is in {asked.folder / CLUSTER / 'log'}") from error
    view.say("checking")
    verdict = judge(asked.folder)
    if verdict.verdict == "pass" and not asked.keep:
        # Keys, journals and stores of a cluster that nobody needs any more; its logs were copied.
        shutil.rmtree(asked.folder / CLUSTER)
    return verdict


def judge(folder: Path) -> Verdict:
    """Judge what a run's folder holds, and write verdict.json and the report. Raises RunUnreadable."""
    verdict = check_run(folder)
    (folder / VERDICT).write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=1) + b"\n")
    build_report(folder)
    return verdict


async def _interruptible(playing: Coroutine[None, None, None]) -> None:
    """SIGTERM ends a run as Ctrl-C does. Raises KeyboardInterrupt."""
    task = asyncio.ensure_future(playing)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


@contextmanager
def _disks(scenario: Scenario, shape: str) -> Iterator[dict[str, Path]]:
    """Where each member keeps its data, for those with a disk of their own. Raises RunFailed or Failed."""
    if not scenario.own_disks:
        yield {}
        return
    if reason := disks.unavailable():
        raise RunFailed(f"{scenario.name} is not available here: {reason}")
    with disks.member_disks([name for names in SHAPES[shape].values() for name in names]) as folders:
        yield folders
