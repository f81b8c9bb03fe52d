"""`tiebreak gateway keys`: change the key that seals contacts and secrets, step by step; each step may be repeated."""

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from cluster.folder import ClusterFolder
from gateway.cli.asking import Answer, Asker
from gateway.prefs.seal import KeyFileRefused, add_key, drop_older, read_keys, use_newest
from node.cli.output import print_json, print_table, say
from node.cli.session import DEFAULT_CLUSTER, CliError, Cluster, Json, Token

keys = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The keys that seal users' contacts and secrets: add one, seal anew under it, drop the older ones.",
)
TAKEN_S = 15.0
"""Gateways look at their key file every two seconds."""
POLL_S = 0.5
PATH = "/v1/gateway/keys"
COPY = "copy it to gateways on other machines"


@keys.command("list")
def list_keys(as_json: Json = False, cluster: Cluster = DEFAULT_CLUSTER, token: Token = "") -> None:
    """Which keys each gateway knows, which one seals, and how many documents are under each. No key is shown.

    Example: tiebreak gateway keys list
    """
    found = [answer.body for answer in _Gateways(cluster, token, as_json=as_json).ask("GET", PATH)]
    if as_json:
        print_json({"gateways": found})
        return
    rows = [
        (
            one["gateway"], str(one["seals_with"]), ", ".join(map(str, one["known"])),
            ", ".join(f"{count} under {number}" for number, count in one["documents"].items()) or "none",
        )
        for one in found
    ]  # fmt: skip
    print_table(("gateway", "seals with", "knows", "documents"), rows)


@keys.command("add")
def add(as_json: Json = False, cluster: Cluster = DEFAULT_CLUSTER) -> None:
    """Make a key that can open and does not seal yet, in DIR/keys/seal.keys. Where one waits already, nothing is done.

    Running gateways take it within seconds. The next step is `tiebreak gateway keys seal-anew`.

    Example: tiebreak gateway keys add
    """
    folder = ClusterFolder(cluster)
    folder.topology()
    try:
        _, waiting = read_keys(folder.seal_keys)
        number = add_key(folder.seal_keys)
    except KeyFileRefused as error:
        raise CliError(str(error)) from error
    if as_json:
        print_json({"key": number, "made": not waiting, "file": str(folder.seal_keys)})
        return
    typer.echo(f"key {number} {'waits already' if waiting else 'is made'}, in {folder.seal_keys}")
    say(f"[dim]{COPY}, then run `tiebreak gateway keys seal-anew`[/]")


@keys.command("seal-anew")
def seal_anew(
    drop: Annotated[bool, typer.Option("--drop-older", help="Then take the older keys out of the file.")] = False,
    as_json: Json = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    token: Token = "",
) -> None:
    """Let the newest key seal, and put everything under it, at every gateway of the folder.

    All of them must answer, and know the key: else nothing is changed. Cut off, run it again. With --drop-older the
    older keys leave the file once no gateway has a document under them; backups of before can't be read without them.

    Example: tiebreak gateway keys seal-anew

    Example: tiebreak gateway keys seal-anew --drop-older
    """
    gateways = _Gateways(cluster, token, as_json=as_json)
    path = gateways.folder.seal_keys
    try:
        number = max(read_keys(path)[0])
        gateways.wait(lambda one: number in one["known"], f"know key {number} yet: {COPY} ({path})")
        use_newest(path)
        gateways.wait(lambda one: one["seals_with"] == number, f"seal with key {number} yet: {COPY} ({path})")
        sealed = [answer.body for answer in gateways.ask("POST", f"{PATH}/seal-anew", {"key": number})]
        dropped: list[int] = []
        if drop:
            # What was on its way from the other site a moment ago is under the newest key too, or is found now.
            gateways.wait(
                lambda one: not set(one["documents"]) - {str(number)},
                f"have all documents under key {number}; the older keys stay. Run this again",
            )
            dropped = drop_older(path)
    except KeyFileRefused as error:
        raise CliError(str(error)) from error
    if as_json:
        print_json({"key": number, "gateways": sealed, "dropped": dropped})
        return
    for one in sealed:
        typer.echo(f"{one['gateway']}: {one['sealed']} sealed anew, all under key {number}")
    if dropped:
        say(f"key {', '.join(map(str, dropped))} left {escape(str(path))}; {COPY}")


class _Gateways:
    """All gateways of a folder, each asked for itself."""

    def __init__(self, cluster: Any, token: str, *, as_json: bool) -> None:
        """Raises FolderError, CliError."""
        self.folder = ClusterFolder(cluster)
        self.folder.topology()
        self._askers = [
            Asker(cluster=cluster, gateway=name, token=token, as_json=as_json) for name in self.folder.gateway_names()
        ]
        if not self._askers:
            raise CliError(f"no gateways in {self.folder.root}")

    def ask(self, method: str, path: str, body: object = None) -> list[Answer]:
        """Ends the program where one does not answer, or refuses."""
        return [asker.ask(method, path, token=asker.token("operator"), body=body) for asker in self._askers]

    def wait(self, holds: Any, what: str) -> None:
        """Until it holds for all. Raises CliError."""
        until_s = time.monotonic() + TAKEN_S
        while late := [answer.body["gateway"] for answer in self.ask("GET", PATH) if not holds(answer.body)]:
            if time.monotonic() > until_s:
                raise CliError(f"{', '.join(late)} does not {what}" if len(late) == 1 else f"{late} do not {what}")
            time.sleep(POLL_S)
