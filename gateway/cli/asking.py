"""What all commands that talk to a gateway share: which one, who asks, how an answer or a refusal is told."""

import http.client
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct

from cluster.folder import ClusterFolder
from cluster.topology import GATEWAY_PREFIX
from node.cli.main import EXIT_REFUSED, EXIT_UNREACHABLE
from node.cli.output import HINTS as NODE_HINTS
from node.cli.output import complain, print_json, say
from node.cli.session import CliError, mint

TIMEOUT_S = 10.0
PANEL = "Connection"

Gateway = Annotated[
    str,
    typer.Option(
        "--gateway",
        envvar="TIEBREAK_GATEWAY",
        metavar="SITE|URL",
        help="Ask this one only: a site of the folder, or an address. Else the folder's, one after the other.",
        rich_help_panel=PANEL,
    ),
]
HINTS = {
    "symbol_not_found": "names are the venues' own, as in the gateway's file: AAPL, BTCUSDT; ours are AAPL-USD",
    "not_ready": "the gateway waits for a node; `tiebreak status` shows the members",
    "unreachable": "is it up? `tiebreak up` starts gateways as well",
}


class Answer(Struct, frozen=True):
    """body: decoded. age_ms: how old it is; -1: nobody knows. gateway: who said it."""

    body: Any
    age_ms: int
    gateway: str
    headers: dict[str, str]


class Asker:
    """Asks the gateways of a folder, or the one that was named."""

    def __init__(self, *, cluster: Path, gateway: str = "", token: str = "", as_json: bool = False) -> None:
        """Raises FolderError, CliError."""
        self.folder = ClusterFolder(cluster)
        self.as_json = as_json
        self.given_token = token
        self.urls = [gateway.rstrip("/")] if "://" in gateway else self._of_folder(gateway)

    def _of_folder(self, site: str) -> list[str]:
        self.folder.topology()
        names = self.folder.gateway_names()
        if site:
            wanted = site if site.startswith(GATEWAY_PREFIX) else f"{GATEWAY_PREFIX}{site}"
            if wanted not in names:
                known = ", ".join(name.removeprefix(GATEWAY_PREFIX) for name in names) or "none"
                raise CliError(f"no gateway {site!r} in {self.folder.root}; there are {known}")
            names = [wanted]
        if not names:
            raise CliError(f"no gateways in {self.folder.root}; name an address with --gateway http://HOST:PORT")
        return [f"{scheme}://{host}:{port}" for host, port, _, scheme in map(self.folder.gateway_listen, names)]

    def token(self, role: str, account: str = "") -> str:
        """--token, or one made with the folder's key."""
        return self.given_token or mint(self.folder, role=role, accounts=[account] if account else [])

    def ask(
        self,
        method: str,
        path: str,
        *,
        token: str,
        query: Mapping[str, object] | None = None,
        body: object = None,
    ) -> Answer:
        """The answer of the first gateway that can be reached. Ends the program where there is none, or a refusal."""
        given = {name: str(value) for name, value in (query or {}).items() if value not in (None, "")}
        path += f"?{urllib.parse.urlencode(given)}" if given else ""
        failures = []
        for url in self.urls:
            request = urllib.request.Request(
                url + path,
                method=method,
                data=None if body is None else msgspec.json.encode(body),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self.tls(url)) as response:
                    headers = {name.lower(): value for name, value in response.headers.items()}
                    age_ms = int(headers.get("x-staleness-ms", "-1"))
                    return Answer(msgspec.json.decode(response.read()), age_ms, url, headers)
            except urllib.error.HTTPError as error:
                raw = error.read()
                if error.code == 503 and len(self.urls) > 1 and url != self.urls[-1] and method == "GET":
                    failures.append(f"{url}: {_word(raw)[1]}")
                    continue
                self._refused(raw)
            except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
                if method != "GET" and not isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                    break  # it may have been taken
        complain("no gateway answered: " + "; ".join(failures), HINTS["unreachable"])
        raise typer.Exit(EXIT_UNREACHABLE)

    def tls(self, url: str) -> ssl.SSLContext | None:
        if not url.startswith("https://"):
            return None
        ca = self.folder.certs / "ca.crt"
        return ssl.create_default_context(cafile=ca if ca.exists() else None)

    def _refused(self, raw: bytes) -> None:
        word, message, field = _word(raw)
        if self.as_json:
            print_json({"outcome": "refused", "error": word, "message": message, "field": field})
        else:
            complain(f"{word}{f' ({field})' if field else ''}: {message}", HINTS.get(word) or NODE_HINTS.get(word, ""))
        raise typer.Exit(EXIT_REFUSED)


def _word(raw: bytes) -> tuple[str, str, str]:
    try:
        said = msgspec.json.decode(raw, type=dict[str, Any])
        return str(said["error"]), str(said["message"]), str(said.get("field", ""))
    except (msgspec.MsgspecError, KeyError):
        return "internal_error", raw[:200].decode("utf-8", "replace"), ""


def age(age_ms: int) -> str:
    """For people."""
    if age_ms < 0:
        return "never"
    if age_ms < 1_000:
        return f"{age_ms} ms"
    seconds = age_ms / 1000
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def tell(answer: Answer) -> None:
    say(f"[dim]{answer.gateway}, {age(answer.age_ms)} old[/]")
