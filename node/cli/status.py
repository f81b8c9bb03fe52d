"""`tiebreak status`: every member beside each other, whether the replicas agree at one index, and the gateways."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Group
from rich.live import Live
from rich.text import Text

from cluster.client import Client, Health
from cluster.wire import MemberView
from node.cli.main import EXIT_REFUSED
from node.cli.output import out, print_json, table
from node.cli.session import Session, connected
from node.cli.status_gateways import COLUMNS as GATEWAY_COLUMNS
from node.cli.status_gateways import NUMBERS as GATEWAY_NUMBERS
from node.cli.status_gateways import GatewayRow, Heard, ask_all, cells, judge_gateways

status = typer.Typer(add_completion=False)

LAG_MAX = 10_000
"""A replica that is further behind than this is told as lagging."""
DIGEST_SHOWN = 8

COLUMNS = ("member", "state", "term", "commit", "applied", "stored", "lag", "digest", "health")
NUMBERS = ("term", "commit", "applied", "stored", "lag")


class Row(Struct, frozen=True):
    """One member as the table and --json show it."""

    name: str
    healthy: bool
    health: str
    url: str
    error: str = ""
    lag: int = 0
    digest: str = ""
    view: MemberView | None = None


class Report(Struct, frozen=True):
    healthy: bool
    leader: str
    digest_index: int
    members: list[Row]
    gateways: list[GatewayRow] = []


@connected(status, "status")
async def show_status(
    session: Session,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every second until Ctrl-C.")] = False,
) -> None:
    """Show who leads, how far each member is, whether the replicas' digests agree at one common index, and gateways.

    Of a gateway: the log index that it shows and how far that is behind the members, how old its state of the cluster
    and its newest market data are, its cache, its link to the other site's gateway, its open streams.

    Exit code 0: all members and gateways are healthy. 1: one is not.

    Example: tiebreak status

    Example: tiebreak status --watch
    """
    async with session.client("operator") as client:
        if not watch:
            report = await see(session, client)
            if session.as_json:
                print_json(report)
            else:
                out.print(picture(report), crop=False)
            if not report.healthy:
                raise typer.Exit(EXIT_REFUSED)
        elif session.as_json or not out.is_terminal:
            while True:
                report = await see(session, client)
                if session.as_json:
                    typer.echo(msgspec.json.encode(report).decode())
                else:
                    out.print(picture(report), crop=False)
                await asyncio.sleep(1)
        else:
            with Live(console=out, auto_refresh=False) as live:
                while True:
                    live.update(picture(await see(session, client)), refresh=True)
                    await asyncio.sleep(1)


async def see(session: Session, client: Client) -> Report:
    """Members and gateways at once; a silent one holds up nobody but itself."""
    if not session.in_folder:
        return await look(client)
    asked = ask_all(session.folder, session.bearer("auditor"), session.ca)
    members, heard = await asyncio.gather(look(client), asked)
    return with_gateways(members, heard)


def with_gateways(report: Report, heard: Sequence[Heard]) -> Report:
    views = [row.view for row in report.members if row.view is not None]
    applied = max((view.applied_index for view in views if view.role == "replica"), default=0)
    gateways = judge_gateways(heard, applied)
    healthy = report.healthy and all(row.healthy for row in gateways)
    return Report(healthy, report.leader, report.digest_index, report.members, gateways)


async def look(client: Client) -> Report:
    """Ask all members, then again for their digests at the highest index that all reached."""
    found = await client.members()
    replicas = [h.view for h in found if h.view is not None and h.view.role == "replica"]
    common = min((view.applied_index for view in replicas), default=0)
    digests: dict[str, str] = {}
    if common:
        for again in await client.members(digest_at=common):
            if again.view is not None and again.view.digest_index == common and again.view.digest:
                digests[again.view.name] = again.view.digest
    return judge(found, digests, common)


def judge(found: Sequence[Health], digests: dict[str, str], digest_index: int) -> Report:
    """Put the members beside each other. digests: by member, at digest_index; who gave none is not compared."""
    views = [health.view for health in found if health.view is not None]
    end = max((view.last_index for view in views), default=0)
    # Not the commit index: entries of the log's own, after an election, are for nobody to apply.
    applied = max((view.applied_index for view in views if view.role == "replica"), default=0)
    leader = _leader(views)
    agree = len(set(digests.values())) <= 1
    rows = []
    for health in found:
        view = health.view
        name = view.name if view is not None else health.member.name or health.member.url
        if view is None:
            rows.append(Row(name, False, "unreachable", health.member.url, health.error))
            continue
        witness = view.role == "witness"
        lag = max(0, end - view.durable_index if witness else applied - view.applied_index)
        digest = digests.get(view.name, "")
        problem = _problem(view, lag, leader, answers=health.answers)
        if not problem and digest and not agree:
            problem = "digests differ"
        rows.append(Row(name, not problem, problem or "ok", health.member.url, "", lag, digest, view))
    return Report(all(row.healthy for row in rows) and bool(leader), leader, digest_index, rows)


def _leader(views: Sequence[MemberView]) -> str:
    """The leader of the highest term, if it says so itself and has a quorum."""
    leaders = [view for view in views if view.state == "leader" and view.has_quorum]
    return max(leaders, key=lambda view: view.term).name if leaders else ""


def _problem(view: MemberView, lag: int, leader: str, *, answers: bool) -> str:
    if view.writes_stopped:
        return "writes stopped"
    if view.rejoining:
        return "rejoining"
    if view.refusal:
        return "no room"
    if not view.has_quorum:
        return "no quorum"
    if not leader:
        return "no leader"
    if not view.ready or not answers:
        return "not ready"
    if view.barred:
        return "wrong clock"
    if lag > LAG_MAX:
        return "lagging"
    return ""


def picture(report: Report) -> Group:
    """The report for people."""
    rows = [_cells(row) for row in report.members]
    made = table(COLUMNS, rows, right=NUMBERS)
    if report.healthy:
        line = Text.from_markup(f"[green]healthy[/]; {report.leader} leads")
    else:
        bad = [row.name for row in _all(report) if not row.healthy]
        who = f"{report.leader} leads" if report.leader else "no leader"
        line = Text.from_markup(f"[bold red]not healthy[/]: {', '.join(bad)}; {who}")
    compared = [row.digest for row in report.members if row.digest]
    if len(compared) > 1:
        same = "are the same" if len(set(compared)) == 1 else "DIFFER"
        line.append(f"; digests at index {report.digest_index} {same}")
    gateways = [table(GATEWAY_COLUMNS, [cells(row) for row in report.gateways], right=GATEWAY_NUMBERS)]
    silent = [Text(f"{row.name}: {row.error}", style="dim") for row in _all(report) if row.error]
    return Group(made, *(gateways if report.gateways else ()), line, *silent)


def _all(report: Report) -> list[Row | GatewayRow]:
    return [*report.members, *report.gateways]


def _cells(row: Row) -> tuple[str, ...]:
    view = row.view
    if view is None:
        return (row.name, *[""] * (len(COLUMNS) - 2), row.health)
    witness = view.role == "witness"
    return (
        row.name,
        _state(view),
        str(view.term),
        str(view.commit_index),
        "" if witness else str(view.applied_index),
        "" if witness else str(view.stored_index),
        str(row.lag),
        row.digest[:DIGEST_SHOWN],
        row.health,
    )


def _state(view: MemberView) -> str:
    """What it is to the cluster, in a word or two."""
    if view.state != "follower":
        return view.state
    if view.standing != "voter":
        return view.standing.replace("_", " ")
    return "witness" if view.role == "witness" else "follower"
