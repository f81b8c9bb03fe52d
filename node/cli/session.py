"""What all commands that talk to a cluster share: where it is, who asks, and how an outcome ends the program."""

import asyncio
import inspect
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from cluster.client import Client, Done, Member, Outcome, Refused
from cluster.folder import ClusterFolder
from cluster.topology import MemberRole
from cluster.wire import Answer
from node.cli.main import EXIT_REFUSED, EXIT_UNKNOWN, EXIT_UNREACHABLE
from node.cli.output import HINTS, complain, print_json, say

TOKEN_LIFETIME_S = 300
PANEL = "Connection"
P = ParamSpec("P")

Cluster = Annotated[
    Path,
    typer.Option(
        "--cluster", envvar="TIEBREAK_CLUSTER", metavar="DIR", help="The cluster's folder.", rich_help_panel=PANEL
    ),
]
DEFAULT_CLUSTER = Path("tiebreak-cluster")
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        envvar="TIEBREAK_JSON",
        show_envvar=False,
        help="Print data as JSON on stdout.",
        rich_help_panel=PANEL,
    ),
]
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        envvar="TIEBREAK_URL",
        metavar="URL",
        help="A node's address instead of the folder's; may be repeated.",
        rich_help_panel=PANEL,
    ),
]
Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="TIEBREAK_TOKEN",
        metavar="TOKEN",
        help="A bearer token; without it one is made with the folder's key.",
        rich_help_panel=PANEL,
        show_envvar=True,
    ),
]
Timeout = Annotated[
    int, typer.Option("--timeout-ms", min=10, max=60_000, help="Give up after this long.", rich_help_panel=PANEL)
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="TIEBREAK_CA",
        metavar="FILE",
        help="Trust this authority for https addresses.",
        rich_help_panel=PANEL,
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--cert",
        envvar="TIEBREAK_CERT",
        metavar="FILE",
        help="Show this certificate to nodes that ask for one; its key is beside it, as FILE with .key at its end.",
        rich_help_panel=PANEL,
    ),
]

Account = Annotated[
    str,
    typer.Option(
        "--account", "-a", envvar="TIEBREAK_ACCOUNT", metavar="ACCOUNT", help="The account.", show_envvar=True
    ),
]
KeyOption = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="KEY",
        help="Idempotency key; drawn when left out. The same command run again with its key is done once.",
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Read what one member has, even without a quorum; it may be old.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1_000, help="Most rows to show.")]
PageToken = Annotated[str, typer.Option("--page-token", metavar="TOKEN", help="Go on where a list ended.")]


class CliError(Exception):
    """Something that the user can put right; the message says how."""


class Session:
    """One run of the program against one cluster."""

    def __init__(
        self,
        *,
        cluster: Path = DEFAULT_CLUSTER,
        url: list[str] | None = None,
        token: str = "",
        as_json: bool = False,
        timeout_ms: int = 5_000,
        ca: Path | None = None,
        cert: Path | None = None,
        keyed: bool = False,
    ) -> None:
        """keyed: the user chose the key, so running the line again must be the same command."""
        self.folder = ClusterFolder(cluster)
        self.as_json = as_json
        self._urls = url or []
        self._token = token
        self._timeout_ms = timeout_ms
        self.ca = ca
        self._cert = cert
        self._keyed = keyed
        self._scope = ""

    def client(self, role: str, account: str = "") -> Client:
        """A client that asks as `role`, unless --token says who asks.

        account: the one that a trader's token names; other roles may touch all.
        Raises FolderError or CliError.
        """
        self._scope = f"--account {account}" if role == "trader" else f"--role {role}"
        members: list[Member | str]
        if self._urls:
            members = list(self._urls)
        else:
            members = [
                Member(
                    f"{self.folder.scheme(member.name)}://{member.api_host}:{member.api_port}",
                    member.name,
                    witness=member.role is MemberRole.witness,
                )
                for member in self.folder.topology().members
            ]
        token = self.bearer(role, account)
        try:
            ca = self.ca or (self.folder.certs / "ca.crt" if self._is_https else None)
            tls = ssl.create_default_context(cafile=ca) if ca or self._cert else None
            if tls is not None and self._cert is not None:
                tls.load_cert_chain(self._cert, self._cert.with_suffix(".key"))
            return Client(members, token=token, timeout_ms=self._timeout_ms, tls=tls, stamp=not self._keyed)
        except (ValueError, OSError) as error:
            raise CliError(str(error)) from error

    @property
    def _is_https(self) -> bool:
        """Some member of the folder serves https: by the folder's own authority, unless --ca names another."""
        if self._urls:
            return False
        return any(self.folder.scheme(member.name) == "https" for member in self.folder.topology().members)

    def bearer(self, role: str, account: str = "") -> str:
        """--token, or one made with the folder's key. Raises CliError."""
        return self._token or self._mint(role, account)

    @property
    def in_folder(self) -> bool:
        """Nodes are those of the folder; no addresses were named."""
        return not self._urls

    def finish(self, outcome: Outcome, text: Callable[[Answer], str], *, looked_up: bool = False) -> None:
        """Print how a command ended; raises typer.Exit with its code unless it was done.

        text: what is said when it was. looked_up: it was not sent now.
        """
        match outcome:
            case Done(answer=answer):
                if self.as_json:
                    print_json({"outcome": "done", **_said(answer)})
                else:
                    typer.echo(text(answer))
                    if answer.replay and not looked_up:
                        say("[dim]a repeat: this key had been used before, and this is its first answer[/]")
            case Refused(key=key, error=error, message=message, field=field):
                if self.as_json:
                    print_json({"outcome": "refused", "key": key, "error": error, "message": message, "field": field})
                else:
                    where = f" ({field})" if field else ""
                    complain(f"{error}{where}: {message}" if message else f"{error}{where}", HINTS.get(error, ""))
                raise typer.Exit(EXIT_UNREACHABLE if error == "unreachable" else EXIT_REFUSED)
            case unknown:
                if self.as_json:
                    print_json({"outcome": "unknown", "key": unknown.key, "message": unknown.cause})
                else:
                    complain(
                        f"outcome unknown: {unknown.cause}",
                        f"it may have happened, or may yet: `tiebreak commands show {unknown.key} {self._scope}` "
                        "says so once it has" + (", and so does running this line again" if self._keyed else ""),
                    )
                raise typer.Exit(EXIT_UNKNOWN)

    def _mint(self, role: str, account: str) -> str:
        if not self.folder.token_key.exists():
            if self._urls:
                return ""
            raise CliError(f"no key to sign a token with ({self.folder.token_key}); give one with --token")
        return mint(self.folder, role=role, accounts=[account] if role == "trader" else ["*"])


def mint(
    folder: ClusterFolder,
    *,
    role: str,
    accounts: list[str],
    subject: str = "tiebreak-cli",
    lifetime_s: int = TOKEN_LIFETIME_S,
) -> str:
    """A token signed with the folder's key. Raises CliError when the key can't be read or the claims are wrong."""
    from node.auth import issue_token  # noqa: PLC0415 - cryptography takes 50 ms, and --token needs none of it

    try:
        key = folder.token_key.read_text("ascii")
        return issue_token(key, subject=subject, role=role, accounts=accounts, lifetime_s=lifetime_s)
    except (OSError, ValueError) as error:
        raise CliError(f"can't make a token with {folder.token_key}: {error}") from error


def need_account(account: str) -> str:
    if not account:
        raise CliError("whose? Say --account ACCOUNT, or set TIEBREAK_ACCOUNT")
    return account


def connected(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], Awaitable[None]]], Callable[..., None]]:
    """Register an async command; its first parameter is the Session, made from options added to its own."""

    def register(function: Callable[Concatenate[Session, P], Awaitable[None]]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[1:]

        def run(**given: Any) -> None:
            shared = {name: given.pop(name) for name in SHARED}
            session = Session(**shared, keyed=bool(given.get("key")))
            # inspect lost the names' types; Typer has checked the values against them.
            asyncio.run(_await(function(session, **given)))  # type: ignore[call-arg]

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *SHARED.values()]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = getattr(function, "__name__", name), function.__doc__
        app.command(name)(run)
        return run

    return register


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


def _shared(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


SHARED = {
    "as_json": _shared("as_json", Json, False),
    "cluster": _shared("cluster", Cluster, DEFAULT_CLUSTER),
    "url": _shared("url", Urls, None),
    "token": _shared("token", Token, ""),
    "timeout_ms": _shared("timeout_ms", Timeout, 5_000),
    "ca": _shared("ca", Authority, None),
    "cert": _shared("cert", Certificate, None),
}


def _said(answer: Answer) -> dict[str, Any]:
    """Its fields, those aside that say nothing about this command."""
    given = {name: getattr(answer, name) for name in answer.__struct_fields__}
    return {name: value for name, value in given.items() if value or name == "replay"}
