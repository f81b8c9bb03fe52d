"""`tiebreak cluster transfer`: who leads a running cluster."""

from typing import Annotated

import typer

from cluster.client import Client
from node.cli.cluster import cluster, complete_member
from node.cli.output import print_json
from node.cli.session import Session, connected


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
