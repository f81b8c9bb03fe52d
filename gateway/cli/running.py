"""`tiebreak gateway`: run one in the foreground; its token; and what it could not deliver."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.folder import GATEWAY_TOKEN_DAYS, ClusterFolder, renew_gateway_token
from cluster.topology import GATEWAY_PREFIX
from gateway.cli.asking import Asker, Gateway, tell
from gateway.cli.keys import keys
from node.cli.output import print_json, print_table
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster, Json, Token

RUN = "run"


class RunsByDefault(TyperGroup):
    """`tiebreak gateway dc-a` is `tiebreak gateway run dc-a`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


gateway = typer.Typer(
    cls=RunsByDefault,
    add_completion=False,
    no_args_is_help=True,
    help="Run one gateway in the foreground; its token, the keys that seal contacts, what it could not deliver.",
)
gateway.add_typer(keys, name="keys")
letters = typer.Typer(add_completion=False, no_args_is_help=True, help="Notices that could not be delivered.")
gateway.add_typer(letters, name="dead-letters")


@gateway.command(RUN)
def run_gateway(
    which: Annotated[str, typer.Argument(metavar="GATEWAY", help="A gateway's file, or its site in --cluster.")],
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Run one gateway in the foreground; logs are JSON lines on stderr. SIGTERM or Ctrl-C ends it in order.

    `run` may be left out.

    Example: tiebreak gateway tiebreak-cluster/gateways/dc-a.toml

    Example: tiebreak gateway dc-a
    """
    path = Path(which)
    if not path.is_file():
        path = ClusterFolder(cluster).config(f"{GATEWAY_PREFIX}{which.removeprefix(GATEWAY_PREFIX)}")
        if not path.is_file():
            raise CliError(f"{which!r} is neither a file nor a gateway of {cluster} (there is no {path})")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "gateway", str(path)])


@gateway.command("renew-token")
def renew_token(
    days: Annotated[int, typer.Option(min=1, max=3_650, help="How long it is good for.")] = GATEWAY_TOKEN_DAYS,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Replace the token that gateways ask nodes with, DIR/keys/gateway.token. Running gateways take it by themselves.

    Run it where DIR/keys/token.key is kept, and copy the file to gateways that are elsewhere. `tiebreak up` does it in
    the second half of a token's life. `tiebreak status` and the metric tiebreak_gateway_node_token_expiry_seconds tell
    of one that ends soon. An old token stays good until its end: after a theft change the key that signs.

    Example: tiebreak gateway renew-token --days 30
    """
    folder = ClusterFolder(cluster)
    folder.topology()
    ends = datetime.fromtimestamp(renew_gateway_token(folder, days=days), UTC)
    if as_json:
        print_json({"file": str(folder.gateway_token), "ends_at": f"{ends:%Y-%m-%dT%H:%M:%SZ}"})
    else:
        typer.echo(f"{folder.gateway_token} is good until {ends:%Y-%m-%d %H:%M}")


# ---- dead letters ----

Ids = Annotated[list[str], typer.Argument(metavar="LETTER...", help="As `list` shows them.")]


@letters.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most rows to show.")] = 100,
    account: Annotated[str, typer.Option("--account", "-a", metavar="ACCOUNT", help="Of this one only.")] = "",
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    gateway: Gateway = "",
    token: Token = "",
) -> None:
    """What a gateway gave up to deliver, and why. Each gateway has its own: name one with --gateway.

    Example: tiebreak gateway dead-letters list --gateway dc-a
    """
    asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
    query = {"limit": limit, "account": account}
    answer = asker.ask("GET", "/v1/notifications/dead-letters", token=asker.token("operator"), query=query)
    if as_json:
        print_json(answer.body)
        return
    columns = ("letter", "account", "channel", "kind", "attempts", "died", "error")
    rows = [
        (
            one["letter_id"], one["account"], one["channel"], one["kind"], str(one["attempts"]),
            one["died_at"][:19].replace("T", " "), one["error"],
        )
        for one in answer.body["items"]
    ]  # fmt: skip
    print_table(columns, rows, right=("attempts",), empty="nothing is undelivered")
    tell(answer)


def _moves(what: str, tells: str) -> None:
    """Make the command `what`, which does that to the letters named."""

    def move(
        letter: Ids,
        as_json: Json = False,
        cluster: Cluster = DEFAULT_CLUSTER,
        gateway: Gateway = "",
        token: Token = "",
    ) -> None:
        asker = Asker(cluster=cluster, gateway=gateway, token=token, as_json=as_json)
        path = f"/v1/notifications/dead-letters/{what}"
        answer = asker.ask("POST", path, token=asker.token("operator"), body={"letter_ids": letter})
        if as_json:
            print_json(answer.body)
        else:
            typer.echo(", ".join(f"{name}: {value}" for name, value in answer.body.items()))

    move.__doc__ = f"{tells}\n\nExample: tiebreak gateway dead-letters {what} 018f3c --gateway dc-a"
    letters.command(what)(move)


_moves("redrive", "Send these again, with all attempts before them.")
_moves("forget", "Throw these away.")
