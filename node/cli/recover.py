"""`tiebreak cluster recover`: after a majority is lost for good, the survivors go on as a cluster of their own."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from cluster.consensus.recovery import (
    CanNotRecover,
    JournalRefused,
    LeftBehind,
    force_configuration,
    forced_configuration,
    inspect_journal,
)
from cluster.consensus.storage import DATA_FILE
from cluster.folder import ClusterFolder
from cluster.launcher import Launcher
from cluster.membership import Configuration, first_configuration
from cluster.topology import MemberRole, Topology
from node.cli.cluster import complete_member
from node.cli.main import EXIT_REFUSED
from node.cli.output import err, out, print_json, print_table, say
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster, Json
from node.install import DIVERGED_FILE, WISH
from statemachine.inspection import inspect_store


class Survivor(Struct, frozen=True):
    """What one member's folder holds. stored_index: of its state on disk; 0 for a witness."""

    folder: str
    role: MemberRole
    left: LeftBehind
    stored_index: int = 0


class Plan(Struct, frozen=True):
    """What a recovery would do. kept_index: the survivors' newest entry, by `newest`; what follows it is gone.

    may_lose: a majority may have acknowledged entries that no survivor has.
    """

    epoch: int
    survivors: list[Survivor]
    gone: list[str]
    newest: str
    kept_index: int
    may_lose: bool
    recovered: bool = False


def recover(
    survivors: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SURVIVOR]...",
            help="Who goes on; all whose data is in this folder when left out.",
            autocompletion=complete_member,
        ),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Do it: what only the lost members had is gone for good.")
    ] = False,
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Make the survivors a cluster of their own after a majority was lost for good. Offline, and never undone.

    Only for when the others will not come back: with a majority left, start it and use `tiebreak cluster replace`.
    Without --accept-loss nothing is changed: it audits the survivors' disks and says what they have and what may be
    lost. With it, the cluster gets a new epoch, in which the survivors alone vote; clients learn that the future which
    they may remember was undone. Survivors of several machines: bring their data/NAME folders into this one first.

    Example: tiebreak cluster recover

    Example: tiebreak cluster recover dc-a --accept-loss
    """
    folder = ClusterFolder(where)
    topology = folder.topology()
    names = list(survivors or []) or [one.name for one in topology.members if _journal(folder, one.name).is_dir()]
    _nobody_runs(folder, names)
    found = [_look(folder, topology, name) for name in names]
    known = _newest_configuration(topology, found)
    plan, forced = _plan(topology, known, found)
    if accept_loss:
        _force(folder, topology, forced, plan)
        plan = msgspec.structs.replace(plan, recovered=True)
    if as_json:
        print_json(plan)
    else:
        _show(plan, known)
    if not accept_loss:
        raise typer.Exit(EXIT_REFUSED)


def _journal(folder: ClusterFolder, name: str) -> Path:
    return folder.data(name) / "journal"


def _nobody_runs(folder: ClusterFolder, names: list[str]) -> None:
    if not names:
        raise CliError(f"no member has data in {folder.root / 'data'}: there is nobody to go on with")
    launcher = Launcher(folder)
    running = [name for name in (*launcher.members, *launcher.left_over) if launcher.running(name) is not None]
    if running:
        raise CliError(f"{', '.join(running)} run; this is done offline: `tiebreak down` first")


def _look(folder: ClusterFolder, topology: Topology, name: str) -> Survivor:
    """Read and audit what a survivor has. Raises CliError: it can't be one."""
    journal, data = _journal(folder, name), folder.data(name)
    if not (journal / DATA_FILE).is_file():
        raise CliError(f"{name} has no log in {journal}: it can't be a survivor")
    if (data / DIVERGED_FILE).exists():
        raise CliError(f"{name} differed from the majority, see {data / DIVERGED_FILE}: it can't be a survivor")
    if (data / WISH).exists():
        raise CliError(f"{name} is half way through a snapshot: start it and stop it once, then run this again")
    try:
        left = inspect_journal(journal, cluster_id=topology.cluster_id, member=name)
    except JournalRefused as error:
        raise CliError(str(error)) from error
    if not left.joined:
        raise CliError(f"{name} is on a disk that had not caught up: what it lacks nobody can tell, so it can't be one")
    configuration = left.configuration or first_configuration(topology)
    member = configuration.member(name)
    role = member.role if member is not None else topology.member(name).role
    if role is MemberRole.witness:
        return Survivor(str(data), role, left)
    with err.status(f"auditing {name}"):
        try:
            audit = inspect_store(data / "store")
        except Exception as error:
            # Whatever a damaged disk makes the audit raise is a finding about that disk.
            raise CliError(f"the state of {name} can't be read: {error}") from error
    if not audit.holds:
        raise CliError(f"the state of {name} is broken ({audit.findings[0]}): it can't be a survivor")
    return Survivor(str(data), role, left, audit.applied_index)


def _newest_configuration(topology: Topology, found: list[Survivor]) -> Configuration:
    known = [(one.left.configuration, one.left.configuration_index) for one in found]
    best = max(
        ((one, index) for one, index in known if one is not None),
        key=lambda pair: (pair[0].generation, pair[1]),
        default=None,
    )
    return first_configuration(topology) if best is None else best[0]


def _plan(topology: Topology, known: Configuration, found: list[Survivor]) -> tuple[Plan, Configuration]:
    """Raises CliError where a majority is left, or these can't be a cluster."""
    names = [one.left.member for one in found]
    voters = known.voters & set(names)
    generations = {0 if one.left.configuration is None else one.left.configuration.generation for one in found}
    if len(generations) > 1 and known.voters >= set(names):
        # A recovery that was cut off: some go by it already.
        forced, gone, may_lose = known, list(known.removed), True
    elif len(voters) >= known.quorum:
        raise CliError(
            f"{', '.join(sorted(voters))} are {len(voters)} of {len(known.voters)} voters: no majority is lost. "
            "Start them with `tiebreak up`, then replace the others with `tiebreak cluster replace`"
        )
    else:
        try:
            forced = forced_configuration(topology, known, names)
        except CanNotRecover as error:
            raise CliError(str(error)) from error
        gone = [one.name for one in known.members if one.name not in names]
        # Every majority has one of them when the others alone are none.
        may_lose = len(known.voters) - len(voters) >= known.quorum
    newest = max(found, key=lambda one: (one.left.last_term, one.left.last_index)).left
    plan = Plan(
        epoch=forced.generation,
        survivors=found,
        gone=gone,
        newest=newest.member,
        kept_index=newest.last_index,
        may_lose=may_lose,
    )
    return plan, forced


def _force(folder: ClusterFolder, topology: Topology, forced: Configuration, plan: Plan) -> None:
    """The topology first: cut off in between, the members of two epochs do not link, and this can be run again."""
    addresses = {one.name: one for one in topology.members}
    members = [msgspec.structs.replace(addresses.get(one.name, one), standing=one.standing) for one in forced.members]
    folder.save(
        msgspec.structs.replace(
            topology, members=members, epoch=forced.generation, configuration_index=max(1, plan.kept_index)
        )
    )
    for name in (one.left.member for one in plan.survivors):
        try:
            force_configuration(_journal(folder, name), forced, cluster_id=topology.cluster_id, member=name)
        except (CanNotRecover, JournalRefused) as error:
            raise CliError(f"{error}; run this again when that is put right") from error


def _show(plan: Plan, known: Configuration) -> None:
    print_table(
        ("survivor", "role", "standing", "log", "last term", "committed", "stored", "voted in"),
        [
            (
                one.left.member,
                str(one.role),
                _standing(known, one.left.member),
                f"{one.left.first_index}..{one.left.last_index}",
                str(one.left.last_term),
                str(one.left.commit_index),
                str(one.stored_index) if one.role is MemberRole.replica else "",
                f"term {one.left.term}",
            )
            for one in plan.survivors
        ],
        right=("last term", "committed", "stored"),
    )
    gone = ", ".join(plan.gone)
    if plan.may_lose:
        out.print(
            f"[bold]may be lost:[/] all that {gone} acknowledged and no survivor got: what came after entry "
            f"{plan.kept_index}, the newest of {plan.newest}. Nobody can tell whether there was any."
        )
    else:
        out.print(f"nothing acknowledged is lost: {gone} were no majority, so a survivor has each entry that counts")
    if not plan.recovered:
        say("nothing was changed. To go on without the others for good, run it again with --accept-loss")
        return
    names = ", ".join(one.left.member for one in plan.survivors)
    out.print(f"epoch {plan.epoch} begins; voters: {names}")
    say(f"never start {gone} again: move their disks aside. Hand topology.toml to every survivor's machine")
    say("[dim]next: tiebreak up, then tiebreak cluster add and promote, until three vote at two sites and a third[/]")


def _standing(known: Configuration, name: str) -> str:
    member = known.member(name)
    return "" if member is None else member.standing.value.replace("_", " ")
