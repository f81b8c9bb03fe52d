"""`tiebreak inspect`: is what a stopped member has on disk whole, and do all balances add up?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cluster.folder import ClusterFolder
from cluster.launcher import Launcher
from node.cli.cluster import complete_member
from node.cli.main import EXIT_REFUSED
from node.cli.output import err, out, print_fields, print_json, print_table
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster, Json
from statemachine.inspection import Inspection, inspect_store
from statemachine.store_files import DATA_FILE

if TYPE_CHECKING:
    from cluster.consensus.recovery import LeftBehind
    from node.replay import Replayed

inspect = typer.Typer(add_completion=False)


@inspect.command("inspect")
def run_inspect(
    member: Annotated[
        str,
        typer.Argument(
            metavar="MEMBER", help="A member's name in --cluster, or its data folder.", autocompletion=complete_member
        ),
    ],
    replay: Annotated[
        bool, typer.Option("--replay", help="Play its log again too: is the store what the log gives?")
    ] = False,
    base: Annotated[
        str,
        typer.Option(
            metavar="MEMBER|FOLDER",
            help="With --replay: the store to begin from, where the log no longer begins at its beginning.",
            autocompletion=complete_member,
        ),
    ] = "",
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Audit what a stopped member has on disk: pages, segments, the ledger's chain, balances, holds, books, its log.

    With --replay its log is played again, in a temporary folder, and compared with its store and with the digests
    that all replicas reported: where two replicas disagree, that says who is wrong.

    Exit code 0: all holds. 1: an invariant is broken, a digest differs, or there is nothing that can be audited.

    Example: tiebreak inspect dc-a

    Example: tiebreak inspect dc-a --replay
    """
    if base and not replay:
        raise CliError("--base is where a replay begins: say --replay too")
    path = _store(member, where)
    try:
        found = inspect_store(path)
        left = _log(path, found)
        replayed = _replay(path, found, _store(base, where) if base else None) if replay and found.holds else None
    except CliError:
        raise
    except Exception as error:
        # Whatever a damaged disk makes the audit raise is a finding about that disk.
        raise CliError(f"{path}: {error}") from error
    if as_json:
        more = {"log": left, **({"replay": replayed} if replay else {})}
        print_json({**msgspec.structs.asdict(found), **more})
    else:
        show(found)
        show_log(left)
        if replayed is not None:
            show_replay(replayed)
    if not found.holds or (replayed is not None and not replayed.holds):
        raise typer.Exit(EXIT_REFUSED)


def _log(store: Path, found: Inspection) -> "LeftBehind | None":
    """What the journal beside the store holds, every checksum verified; None where a store stands alone."""
    from cluster.consensus.recovery import JournalRefused, inspect_journal  # noqa: PLC0415

    folder = store.parent / "journal"
    if not (folder / DATA_FILE).is_file():
        return None
    try:
        return inspect_journal(folder, cluster_id=found.cluster_id, member=found.member)
    except JournalRefused as error:
        raise CliError(str(error)) from error


def _replay(store: Path, found: Inspection, base: Path | None) -> "Replayed":
    # The rules are loaded only when they are played.
    from node.replay import ReplayRefused, replay  # noqa: PLC0415

    with err.status("playing the log again"):
        try:
            return replay(store.parent, found, base=base)
        except ReplayRefused as error:
            raise CliError(str(error)) from error


def _store(member: str, where: Path) -> Path:
    folder = ClusterFolder(where)
    if not Path(member).is_dir():
        launcher = Launcher(folder)
        if member not in launcher.members:
            raise CliError(f"{member!r} is neither a folder nor a member; there are {', '.join(launcher.members)}")
        if launcher.running(member) is not None:
            raise CliError(f"{member} runs; stop it first with `tiebreak down {member}`")
        if launcher.members[member].role == "witness":
            raise CliError(f"{member} is a witness: it keeps a log and no state to audit")
    base = Path(member) if Path(member).is_dir() else folder.data(member)
    for path in (base, base / "store"):
        if (path / DATA_FILE).is_file():
            return path
    raise CliError(f"no store in {base}; has {member} run before?")


def show_log(left: "LeftBehind | None") -> None:
    if left is None:
        out.print("no log beside the store")
    else:
        entries = f"{left.first_index} to {left.last_index}, committed to {left.commit_index} or beyond"
        out.print(f"every entry of the log is whole: {entries}; term {left.term}")


def show(found: Inspection) -> None:
    """What was found, for people."""
    print_fields(
        [
            ("store", found.path),
            ("member", found.member),
            ("cluster", found.cluster_id),
            ("applied index", str(found.applied_index)),
            ("digest", found.digest),
            ("state digest", found.state_digest),
            ("orders entered", str(found.orders_entered)),
        ]
    )
    rows, size, per_order = (
        _by_kind(figures) for figures in (found.counts, found.bytes_on_disk, found.bytes_per_order)
    )
    print_table(
        ("kind", "rows", "bytes on disk", "bytes per order"),
        [
            (kind, _number(rows.get(kind)), _number(size.get(kind)), _number(per_order.get(kind), ",.1f"))
            for kind in sorted({*rows, *size})
            if rows.get(kind) or size.get(kind)
        ],
        right=("rows", "bytes on disk", "bytes per order"),
    )
    if found.holds:
        out.print("[green]all holds[/]: pages, segments, chains, balances, holds and books")
        return
    out.print(f"[bold red]broken[/]: {len(found.findings)} findings")
    for finding in found.findings:
        out.print(f"  {finding}", markup=False)


def show_replay(found: "Replayed") -> None:
    """Who is right, for people."""
    began = f"from index {found.from_index}" if found.from_index else "from nothing"
    out.print(f"replayed {began} to index {found.to_index}", highlight=False)
    if found.same:
        out.print(f"[green]the store is what the log gives[/] at index {found.stored_index}")
    else:
        out.print(f"[bold red]the store is NOT what the log gives[/] at index {found.stored_index}")
        if found.digest != found.stored_digest:
            out.print(f"  digest {found.stored_digest}, by the log {found.digest}")
        if not found.state_same:
            out.print("  its records differ from those of the replay")
    for one in found.reporters:
        if one.differs_at:
            out.print(f"[bold red]{one.member} was wrong[/] at index {one.differs_at}, right until {one.same_until}")
        elif one.same_until:
            out.print(f"{one.member} was right whenever it said its digest, last at index {one.same_until}")


def _by_kind(figures: Mapping[str, float]) -> dict[str, float]:
    """Tables are named with underscores, counts in words."""
    return {kind.replace("_", " "): value for kind, value in figures.items()}


def _number(value: float | None, how: str = ",") -> str:
    return "" if value is None else format(value, how)
