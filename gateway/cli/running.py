"""`tiebreak gateway`: run one gateway in the foreground."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.folder import ClusterFolder
from cluster.topology import GATEWAY_PREFIX
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster

gateway = typer.Typer(add_completion=False)


@gateway.command("gateway")
def run_gateway(
    which: Annotated[str, typer.Argument(metavar="GATEWAY", help="A gateway's file, or its site in --cluster.")],
    cluster: Cluster = DEFAULT_CLUSTER,
) -> None:
    """Run one gateway in the foreground; logs are JSON lines on stderr. SIGTERM or Ctrl-C ends it in order.

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
