"""`tiebreak cluster members`, `transfer`, `add`, `promote`, `demote`, `remove`, `replace`: of a running cluster."""

from typing import Annotated

import msgspec
import typer

from cluster.client import Client
from cluster.topology import MemberRole, Standing
from cluster.wire import ClusterMember, ClusterView
from node.cli import joining
from node.cli.certificates import rotate_certificates
from node.cli.cluster import cluster, complete_member
from node.cli.output import print_json, print_table, say
from node.cli.recover import recover
from node.cli.session import CliError, Session, connected

Name = Annotated[str, typer.Argument(metavar="MEMBER", help="Its name.", autocompletion=complete_member)]
NewName = Annotated[
    str, typer.Argument(metavar="NAME", help="A name that no member ever had; its certificate bears it.")
]
Peer = Annotated[str, typer.Option("--peer", metavar="HOST:PORT", help="Where other members find it.")]
Api = Annotated[str, typer.Option("--api", metavar="HOST:PORT", help="Where clients find it.")]

cluster.command("rotate-certificates")(rotate_certificates)
cluster.command("recover")(recover)


@connected(cluster, "transfer")
async def transfer(
    session: Session,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="MEMBER",
            help="Who shall lead; the full replica that is furthest when left out.",
            autocompletion=complete_member,
        ),
    ] = "",
) -> None:
    """Hand leadership to another member while the cluster goes on: commands wait some milliseconds, none is refused.

    Run again, it does the same: with --to nothing more happens once that member leads.

    Example: tiebreak cluster transfer

    Example: tiebreak cluster transfer --to dc-b
    """
    async with session.client("operator") as client:
        source = "" if to else await _leader(client)
        view = await client.transfer_leadership(to, source=source)
    if session.as_json:
        print_json(view)
    else:
        typer.echo(f"{view.leader} leads in term {view.term}")


async def _leader(client: Client) -> str:
    """Who says that it leads with a quorum, in the newest term; empty: nobody does."""
    views = [health.view for health in await client.members() if health.view is not None]
    leaders = [view for view in views if view.state == "leader" and view.has_quorum]
    return max(leaders, key=lambda view: view.term).name if leaders else ""


@connected(cluster, "members")
async def members(
    session: Session,
    local: Annotated[bool, typer.Option("--local", help="As one member knows them, even where nobody leads.")] = False,
) -> None:
    """Show who belongs to the cluster by its log, who votes, and how far behind the leader each is.

    Example: tiebreak cluster members
    """
    async with session.client("operator") as client:
        view = await client.cluster_members(consistency="local" if local else "linearizable")
    _show(session, view)


@connected(cluster, "add")
async def add(
    session: Session,
    name: NewName,
    site: Annotated[str, typer.Option("--site", metavar="SITE", help="Its datacenter, for example dc-b.")],
    witness: Annotated[bool, typer.Option("--witness", help="It keeps the log and votes, and holds no state.")] = False,
    read_replica: Annotated[
        bool, typer.Option("--read-replica", help="It follows and serves reads, and never votes.")
    ] = False,
    peer: Peer = "",
    api: Api = "",
    start: Annotated[
        bool, typer.Option("--start", help="Start it on this machine, and wait until it is ready.")
    ] = False,
) -> None:
    """Add a member to the running cluster. It counts for nothing until it has caught up and is promoted.

    Makes its certificate and its file in the cluster's folder, asks the cluster, and writes topology.toml anew.
    Without --peer and --api it gets the next ports of this machine. Run again, it goes on where it was cut off.

    Example: tiebreak cluster add dc-b2 --site dc-b --start

    Example: tiebreak cluster add dc-c --site dc-c --read-replica --peer 10.0.0.7:7700 --api 10.0.0.7:7710
    """
    if witness and read_replica:
        raise CliError("--witness and --read-replica: a witness holds no state that could be read")
    if peer or api:
        joining.addresses(peer, api)
    role = MemberRole.witness if witness else MemberRole.replica
    standing = Standing.read_replica if read_replica else Standing.learner
    async with session.client("operator") as client:
        view = await _add(session, client, name, site=site, role=role, standing=standing, peer=peer, api=api)
    if start:
        await joining.start(session.folder, name)
    if session.as_json:
        print_json(view)
        return
    say(f"{name} is a member at index {view.configuration_index}; it {'runs' if start else 'is to be started'}")
    if not start:
        say(f"[dim]next: tiebreak up {name}[/]")
    if not read_replica:
        say(f"[dim]when it runs: tiebreak cluster promote {name} --wait[/]")


async def _add(
    session: Session,
    client: Client,
    name: str,
    *,
    site: str,
    role: MemberRole,
    standing: Standing,
    peer: str = "",
    api: str = "",
) -> ClusterView:
    folder = session.folder
    there = joining.of_view(await client.cluster_members(), name)
    member = joining.plan(folder, name, there, site=site, role=role, standing=standing, peer=peer, api=api)
    with joining.files_of(folder, name, member.api_host):
        view = await client.add_member(member)
    joining.save(folder, view)
    return view


@connected(cluster, "promote")
async def promote(
    session: Session,
    member: Name,
    wait: Annotated[bool, typer.Option("--wait", help="First wait until it has caught up, however long.")] = False,
) -> None:
    """Make a voter of a learner that has caught up: from then on it counts for elections and majorities.

    Example: tiebreak cluster promote dc-b2 --wait
    """
    async with session.client("operator") as client:
        view = await (joining.promote_when_ready(client, member) if wait else client.promote_member(member))
    joining.save(session.folder, view)
    _said(session, view, f"{member} votes")


@connected(cluster, "demote")
async def demote(session: Session, member: Name) -> None:
    """Make a learner of a voter: it follows, and counts for nothing. At least three voters must be left.

    Example: tiebreak cluster demote dc-b2
    """
    async with session.client("operator") as client:
        view = await client.demote_member(member)
    joining.save(session.folder, view)
    _said(session, view, f"{member} does not vote any more")


@connected(cluster, "remove")
async def remove(session: Session, member: Name) -> None:
    """Remove a member for good, and stop it if it runs on this machine. Its name never comes back.

    A leader hands leadership over first. At least three voters must be left: add and promote another one before, or
    let `tiebreak cluster replace` do all of it. What the member has on disk stays.

    Example: tiebreak cluster remove dc-b
    """
    async with session.client("operator") as client:
        view = await client.remove_member(member)
    joining.save(session.folder, view)
    await joining.stop(session.folder, member)
    _said(session, view, f"{member} is no member any more")


@connected(cluster, "replace")
async def replace(
    session: Session,
    old: Annotated[str, typer.Argument(metavar="OLD", help="Who goes.", autocompletion=complete_member)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Who comes: a name that no member ever had.")],
    site: Annotated[
        str, typer.Option("--site", metavar="SITE", help="Its datacenter; that of OLD when left out.")
    ] = "",
    peer: Peer = "",
    api: Api = "",
    start: Annotated[
        bool | None,
        typer.Option(
            "--start/--no-start", help="Start NEW on this machine; left out: if its address is a loopback one."
        ),
    ] = None,
) -> None:
    """Put a new member in the place of one that is gone for good, or goes: add, catch up, promote, remove.

    The cluster goes on meanwhile. Cut off at any step, it goes on from there when it is run again.

    Example: tiebreak cluster replace dc-b dc-b2
    """
    async with session.client("operator") as client:
        view = await client.cluster_members()
        there, fresh = joining.of_view(view, old), joining.of_view(view, new)
        if there is None and old not in view.removed:
            raise CliError(f"no member {old!r}; there are {', '.join(one.name for one in view.members)}")
        if there is None and fresh is None:
            raise CliError(f"{old} is removed already; add another with `tiebreak cluster add {new}`")
        if there is not None:
            view = await _put_in_place(session, client, there, new, site=site, peer=peer, api=api, start=start)
            say(f"{new} has caught up; removing {old}")
            view = await client.remove_member(old)
        elif fresh is not None and fresh.standing == "learner":
            view = await joining.promote_when_ready(client, new)
    joining.save(session.folder, view)
    await joining.stop(session.folder, old)
    _said(session, view, f"{new} is in the place of {old}")


async def _put_in_place(
    session: Session,
    client: Client,
    there: ClusterMember,
    new: str,
    *,
    site: str,
    peer: str,
    api: str,
    start: bool | None,
) -> ClusterView:
    """NEW as what OLD is: a voter, or a read replica that has caught up."""
    reads_only = there.standing == "read_replica"
    view = await _add(
        session,
        client,
        new,
        site=site or there.site,
        role=MemberRole(there.role),
        standing=Standing.read_replica if reads_only else Standing.learner,
        peer=peer,
        api=api,
    )
    say(f"{new} is a member; it catches up")
    fresh = joining.of_view(view, new)
    loopback = fresh is not None and fresh.peer_host in ("127.0.0.1", "::1", "localhost")
    if loopback if start is None else start:
        await joining.start(session.folder, new)
    if reads_only:
        return await joining.caught_up(client, new)
    view = await joining.promote_when_ready(client, new)
    joining.save(session.folder, view)
    return view


def _said(session: Session, view: ClusterView, text: str) -> None:
    if session.as_json:
        print_json(view)
        return
    voters = ", ".join(one.name for one in view.members if one.standing == "voter")
    typer.echo(f"{text}, at index {view.configuration_index}; voters: {voters}")
    for why in joining.weak(view):
        say(f"[yellow]{why}[/]")


def _show(session: Session, view: ClusterView) -> None:
    if session.as_json:
        print_json(msgspec.structs.asdict(view) | {"weaknesses": joining.weak(view)})
        return
    print_table(
        ("member", "site", "role", "standing", "peers", "API", "link", "lag"),
        [
            (
                one.name,
                one.site,
                one.role,
                one.standing.replace("_", " ") + ("" if one.joined or not one.connected else ", new disk"),
                f"{one.peer_host}:{one.peer_port}",
                f"{one.api_host}:{one.api_port}",
                "up" if one.connected else "down",
                "" if one.lag is None else str(one.lag),
            )
            for one in view.members
        ],
        right=("lag",),
    )
    change = "" if view.committed else ", which is not committed yet"
    say(f"{view.leader or 'nobody'} leads; members by index {view.configuration_index}{change}, as {view.member} knows")
    if view.removed:
        say(f"[dim]removed: {', '.join(view.removed)}[/]")
    for why in joining.weak(view):
        say(f"[yellow]{why}[/]")
