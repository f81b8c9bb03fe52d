"""`tiebreak cluster init`, `up`, `down`, `node`, `token`: a cluster on this machine, from folder to processes."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster.folder import ClusterFolder, FolderError, create, renew_gateway_token, wants_renewal
from cluster.launcher import READY_TIMEOUT_MS, STOP_TIMEOUT_MS, Launcher, LaunchError
from cluster.topology import TIMINGS
from node.cli.output import err, print_json, print_table, say
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster, Json, mint

cluster = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Make a cluster folder; change a running cluster's members and leader.",
)
up = typer.Typer(add_completion=False)
down = typer.Typer(add_completion=False)
node = typer.Typer(add_completion=False)
token = typer.Typer(add_completion=False)


class Network(StrEnum):
    """The keys of TIMINGS, as the command line needs them."""

    lan = "lan"
    wan = "wan"


class Shape(StrEnum):
    """The keys of SHAPES, as the command line needs them."""

    three = "1+1+1"
    five = "2+2+1"


def complete_member(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of members for the shell; none where there is no cluster to name them."""
    folder = ClusterFolder(Path(ctx.params.get("where") or DEFAULT_CLUSTER))
    try:
        topology = folder.topology()
    except FolderError:
        return []
    names = [*(member.name for member in topology.members), *folder.gateway_names()]
    return [name for name in names if name.startswith(incomplete)]


Members = Annotated[
    list[str] | None,
    typer.Argument(metavar="MEMBER", help="Which ones; all when left out.", autocompletion=complete_member),
]


@cluster.callback()
def _cluster() -> None:
    pass


@cluster.command("init")
def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where to; --cluster or ./tiebreak-cluster when left out.")
    ] = None,
    shape: Annotated[Shape, typer.Option(help="Members of datacenter a + datacenter b + tiebreaker.")] = Shape.three,
    base_port: Annotated[
        int, typer.Option(min=1024, max=65_000, help="Members talk from here on; their APIs are 10 ports above.")
    ] = 7700,
    timing: Annotated[
        Network, typer.Option(help="How long members wait for each other: lan, or wan for sites up to 100 ms apart.")
    ] = Network.lan,
    api_tls: Annotated[
        bool, typer.Option("--api-tls", help="Members and gateways serve HTTPS, by the cluster's own authority.")
    ] = False,
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Write the folder of a new cluster: topology, a file per member, certificates, keys. Overwrites nothing.

    1+1+1 is a full replica in each of two datacenters and a witness; it survives the loss of any one of them.
    2+2+1 has two replicas in each. All members listen on this machine (127.0.0.1): change topology.toml for others.
    Its [timing] is what --timing says: after a failure another member leads within a second (lan), or a few (wan).

    Example: tiebreak cluster init ./tiebreak-cluster --shape 1+1+1 --base-port 7700

    With --api-tls all that clients speak to is https, and gateways ask nodes over it; commands trust DIR/certs/ca.crt,
    other programs are told to (curl --cacert).

    Example: tiebreak cluster init --shape 2+2+1 --timing wan

    Example: tiebreak cluster init --api-tls
    """
    root = folder if folder is not None else where
    topology = create(root, shape=shape.value, base_port=base_port, timing=TIMINGS[timing], api_tls=api_tls)
    if as_json:
        print_json({"folder": str(root.resolve()), "topology": topology})
        return
    print_table(
        ("member", "site", "role", "peers", "API"),
        [
            (
                m.name,
                m.site,
                str(m.role),
                f"{m.peer_host}:{m.peer_port}",
                f"{'https' if api_tls else 'http'}://{m.api_host}:{m.api_port}",
            )
            for m in topology.members
        ],
    )
    option = "" if root == DEFAULT_CLUSTER else f" --cluster {root}"
    say(f"made {root}; private keys are readable by you alone. Next: tiebreak up{option}")


@up.command("up")
def start(
    members: Members = None,
    timeout_ms: Annotated[int, typer.Option(min=100, help="Longest wait until all are ready.")] = READY_TIMEOUT_MS,
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Start members, then gateways, as processes of this machine and wait until they are ready.

    Those that run are left alone. Logs go to DIR/log/NAME.log. The token that gateways ask nodes with is made anew in
    the second half of its life.

    Example: tiebreak up

    Example: tiebreak up dc-b
    """
    launcher = Launcher(ClusterFolder(where))
    names = _named(launcher, members)
    if any(name in launcher.gateways for name in names) and wants_renewal(launcher.folder):
        renew_gateway_token(launcher.folder)
        say("[dim]the gateways' token was in the second half of its life; they have a new one[/]")
    ran_already = {name for name in names if launcher.running(name) is not None}
    pids: dict[str, int] = {}
    ready: dict[str, int] = {}

    def on_ready(name: str, waited_ms: int) -> None:
        ready[name] = waited_ms
        after = "runs already" if name in ran_already else f"ready after {waited_ms / 1000:.1f} s"
        if name in launcher.gateways:
            place = launcher.gateways[name]
            after += f"  {launcher.folder.gateway_listen(name)[3]}://{place.api_host}:{place.api_port}"
        err.print(f"[green]✓[/] {name:<12} {after}  [dim]pid {pids[name]}[/]")

    try:
        with err.status(f"waiting for {', '.join(names)}"):
            # A gateway is ready when it has the cluster's state, so members come first.
            for group in (
                [name for name in names if name not in launcher.gateways],
                [name for name in names if name in launcher.gateways],
            ):
                for name in group:
                    pids[name] = launcher.start(name)
                launcher.wait_ready(group, timeout_ms=timeout_ms, on_ready=on_ready)
    except LaunchError:
        left = [name for name in names if launcher.running(name) is not None]
        if left:
            say(f"[yellow]{', '.join(left)} still run; `tiebreak down` stops them[/]")
        raise
    if as_json:
        print_json(
            [{"member": n, "pid": pids[n], "ready_ms": ready[n], "ran_already": n in ran_already} for n in names]
        )


@down.command("down")
def stop(
    members: Members = None,
    timeout_ms: Annotated[int, typer.Option(min=0, help="Who still runs after this is killed.")] = STOP_TIMEOUT_MS,
    kill: Annotated[bool, typer.Option("--kill", help="SIGKILL at once: a crash, for trying things out.")] = False,
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Stop members: SIGTERM, which lets them drain and hand leadership over; SIGKILL when that takes too long.

    Example: tiebreak down

    Example: tiebreak down dc-a --kill
    """
    launcher = Launcher(ClusterFolder(where))
    names = _named(launcher, members, more=launcher.left_over)
    if kill:
        ended = {name: "killed" if launcher.kill(name) else "not running" for name in names}
    else:
        with err.status(f"stopping {', '.join(names)}"):
            ended = launcher.stop(names, timeout_ms=timeout_ms)
    if as_json:
        print_json([{"member": name, "ended": how} for name, how in ended.items()])
        return
    for name, how in ended.items():
        say(f"{name:<12} {how}")


@node.command("node")
def run_node(
    member: Annotated[
        str,
        typer.Argument(
            metavar="MEMBER", help="A member's file, or its name in --cluster.", autocompletion=complete_member
        ),
    ],
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Run one member in the foreground; logs are JSON lines on stderr. SIGTERM or Ctrl-C ends it in order.

    Example: tiebreak node tiebreak-cluster/members/dc-a.toml

    Example: tiebreak node dc-a
    """
    path = Path(member)
    if not path.is_file():
        path = ClusterFolder(where).config(member)
        if not path.is_file():
            raise CliError(f"{member!r} is neither a file nor a member of {where} (there is no {path})")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "node", str(path)])


class Role(StrEnum):
    trader = "trader"
    custodian = "custodian"
    operator = "operator"
    feed = "feed"
    auditor = "auditor"


UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@token.command("token")
def make_token(
    role: Annotated[Role, typer.Argument(help="What its bearer may do.", show_default=False)],
    account: Annotated[
        list[str] | None, typer.Option("--account", "-a", help="An account that it may touch; may be repeated.")
    ] = None,
    subject: Annotated[str, typer.Option(help="Who it is for; rate limits are per subject.")] = "tiebreak-token",
    lifetime: Annotated[str, typer.Option(metavar="30m|24h|7d", help="How long it is good for.")] = "24h",
    as_json: Json = False,
    where: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Make an access token for the API, signed with the key in DIR/keys/token.key, and print it.

    trader: orders and reads of its own accounts. custodian: accounts, deposits, withdrawals, transfers.
    operator: assets, instruments, modes. feed: reference prices. auditor: reads everything.
    A trader names its accounts; custodian, operator and feed without --account may touch all.

    Example: tiebreak token trader --account alice --lifetime 24h
    """
    if role is Role.trader and not account:
        raise CliError("a trader's token names its accounts: --account ACCOUNT")
    accounts = list(account) if account else ["*"]
    if role in (Role.trader, Role.auditor) and not account:
        accounts = []
    lifetime_s = _seconds(lifetime)
    text = mint(ClusterFolder(where), role=role.value, accounts=accounts, subject=subject, lifetime_s=lifetime_s)
    if as_json:
        print_json(
            {"token": text, "role": role.value, "accounts": accounts, "subject": subject, "lifetime_s": lifetime_s}
        )
    else:
        typer.echo(text)


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS_S or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise CliError(f"--lifetime {text!r}: a number and one of s, m, h, d, for example 24h")
    return int(number) * UNITS_S[unit]


def _named(launcher: Launcher, members: list[str] | None, *, more: list[str] | None = None) -> list[str]:
    """more: who is none of the members, and may be named all the same."""
    known = [*launcher.members, *launcher.gateways, *(more or [])]
    for name in members or []:
        if name not in known:
            raise CliError(f"no member {name!r}; there are {', '.join(known)}")
    return list(members) if members else known
