"""What adding and replacing members needs on this machine: files, ports, processes, and waiting until one caught up."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cluster.client import Client, ReadRefused
from cluster.folder import ClusterFolder, FolderError, add_member, next_ports
from cluster.launcher import READY_TIMEOUT_MS, Launcher, ports_free
from cluster.topology import Member, MemberRole, Standing, Topology, check_members, weaknesses
from cluster.wire import AddMember, ClusterMember, ClusterView
from node.cli.output import err, say
from node.cli.session import CliError

CLOSE_ENTRIES = 1_000
"""A learner that lacks no more than this is asked to vote; the leader waits for the rest."""
LOOK_S = 0.3
UNSEEN_S = 60.0
"""How long a member may be away from the leader before nobody waits for it any more."""
REFUSALS_MAX = 30


def of_view(view: ClusterView, name: str) -> ClusterMember | None:
    return next((member for member in view.members if member.name == name), None)


def topology_of(before: Topology, view: ClusterView) -> Topology:
    """The topology after a change. Addresses that the file has stay: there an operator says that a member moved."""
    known = {member.name: member for member in before.members}
    members = []
    for member in map(_member, view.members):
        there = known.get(member.name)
        members.append(member if there is None else msgspec.structs.replace(there, standing=member.standing))
    index = max(before.configuration_index, view.configuration_index)
    return msgspec.structs.replace(before, members=members, configuration_index=index)


def save(folder: ClusterFolder, view: ClusterView) -> None:
    """Write the topology anew. What is newer there already stays."""
    try:
        before = folder.topology()
    except FolderError:
        say(f"[dim]there is no {folder.topology_path} to bring up to date[/]")
        return
    if view.configuration_index >= before.configuration_index:
        after = topology_of(before, view)
        if after != before:
            folder.save(after)


def weak(view: ClusterView) -> list[str]:
    """Why these members would not survive the loss of any one of them; empty when they do."""
    return weaknesses([_member(one) for one in view.members])


def _member(seen: ClusterMember) -> Member:
    return Member(
        seen.name,
        seen.site,
        MemberRole(seen.role),
        seen.peer_host,
        seen.peer_port,
        seen.api_host,
        seen.api_port,
        Standing(seen.standing),
    )


def plan(
    folder: ClusterFolder,
    name: str,
    there: ClusterMember | None,
    *,
    site: str,
    role: MemberRole,
    standing: Standing,
    peer: str,
    api: str,
) -> AddMember:
    """Where a new member is to be: as said, or as the cluster has it already, or on the next ports of this machine.

    Raises CliError: an address that is none, or members on several hosts and no address given. InvalidTopology: it
    can't be a member beside those that there are.
    """
    topology = folder.topology()
    if peer or api:
        found = addresses(peer, api)
    elif there is not None:
        found = there.peer_host, there.peer_port, there.api_host, there.api_port
    else:
        hosts = {host for member in topology.members for host in (member.peer_host, member.api_host)}
        if len(hosts) != 1:
            raise CliError("the members are on several hosts: say where the new one is with --peer and --api")
        host = hosts.pop()
        ports = next((pair for pair in next_ports(topology) if ports_free(host, *pair)), None)
        if ports is None:
            raise CliError(f"no free ports on {host}: say where the new member is with --peer and --api")
        found = host, ports[0], host, ports[1]
    asked = AddMember(
        name=name,
        site=site,
        role=role.value,
        standing="read_replica" if standing is Standing.read_replica else "learner",
        peer_host=found[0],
        peer_port=found[1],
        api_host=found[2],
        api_port=found[3],
    )
    if there is None:
        # The cluster would refuse it as well, but by then files bear its name.
        check_members([*topology.members, Member(name, site, role, *found, standing)])
    return asked


def addresses(peer: str, api: str) -> tuple[str, int, str, int]:
    """What --peer and --api say. Raises CliError."""
    if not (peer and api):
        raise CliError("--peer and --api go together: one is for members, the other for clients")
    return (*_address("--peer", peer), *_address("--api", api))


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise CliError(f"{option} {text!r}: HOST:PORT, for example 10.0.0.7:7700")
    return host.strip("[]"), int(port)


@contextmanager
def files_of(folder: ClusterFolder, name: str, host: str) -> Iterator[None]:
    """Certificates and file of a member; what was made here goes again when the cluster refuses the member.

    host: where clients find it.
    """
    made: list[Path] = add_member(folder, name, host=host)
    try:
        yield
    except ReadRefused:
        for path in made:
            path.unlink(missing_ok=True)
        raise


async def start(folder: ClusterFolder, name: str) -> int:
    """Run a member here and wait until it takes traffic. Returns its pid. Raises LaunchError."""
    launcher = Launcher(folder)
    pid = launcher.start(name)
    with err.status(f"waiting for {name}"):
        await asyncio.to_thread(launcher.wait_ready, [name], timeout_ms=READY_TIMEOUT_MS)
    return pid


async def stop(folder: ClusterFolder, name: str) -> str:
    """End a member's process if it runs here: `stopped`, `killed`, or `not running`."""
    try:
        launcher = Launcher(folder)
    except FolderError:
        return "not running"
    if name in launcher.left_over or name in launcher.members:
        return (await asyncio.to_thread(launcher.stop, [name]))[name]
    return "not running"


async def caught_up(client: Client, name: str) -> ClusterView:
    """Wait until a member has nearly all of the log, saying how far it is. Raises CliError: it is away for too long."""
    loop = asyncio.get_running_loop()
    seen_at = loop.time()
    with err.status(f"waiting for {name}") as told:
        while True:
            view = await client.cluster_members()
            member = of_view(view, name)
            if member is None:
                raise CliError(f"{name} is no member any more")
            if member.connected:
                seen_at = loop.time()
            if member.connected and member.joined and (member.lag or 0) <= CLOSE_ENTRIES:
                return view
            if loop.time() - seen_at > UNSEEN_S:
                raise CliError(
                    f"{name} is a member and {view.leader} has had no connection to it for {UNSEEN_S:g} s: "
                    f"is it up? `tiebreak up {name}`, then run this again"
                )
            far = f"lacks {member.lag:,} entries" if member.connected else "is not connected"
            told.update(f"{name} {far} of {view.leader}'s log" if member.connected else f"{name} {far}")
            await asyncio.sleep(LOOK_S)


async def promote_when_ready(client: Client, name: str) -> ClusterView:
    """Wait until a learner has caught up, and make a voter of it."""
    for left in reversed(range(REFUSALS_MAX)):
        view = await caught_up(client, name)
        member = of_view(view, name)
        if member is not None and member.standing == "voter":
            return view
        try:
            return await client.promote_member(name)
        except ReadRefused as error:
            if error.error != "change_too_early" or not left:
                raise
            await asyncio.sleep(LOOK_S)
    raise CliError(f"{name} could not be promoted")
