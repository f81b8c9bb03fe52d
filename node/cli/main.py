"""The command line `tiebreak`: what there is, loaded only when it is asked for, and how errors reach people."""

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as to_command

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3
EXIT_UNREACHABLE = 4
EXIT_BUG = 70

PLUGINS = "tiebreak.commands"

RUN, MONEY, TRADE, LOOK, MORE = "Run a cluster", "Accounts and money", "Trade", "Look closer", "More"


class Entry(NamedTuple):
    """Where a command lives (module:attribute), and what the list says of it, without loading it."""

    where: str
    help: str
    panel: str


COMMANDS = {
    "cluster": Entry(
        "node.cli.members:cluster", "Make a cluster folder; move leadership, add and replace members.", RUN
    ),
    "up": Entry("node.cli.cluster:up", "Start the members of a cluster on this machine.", RUN),
    "down": Entry("node.cli.cluster:down", "Stop them.", RUN),
    "status": Entry("node.cli.status:status", "Who leads, how far each member is, whether they agree.", RUN),
    "node": Entry("node.cli.cluster:node", "Run one member in the foreground.", RUN),
    "token": Entry("node.cli.cluster:token", "Make an access token for the API.", RUN),
    "asset": Entry("node.cli.instruments:asset", "Add and list assets.", MONEY),
    "account": Entry("node.cli.accounts:account", "Open and show accounts.", MONEY),
    "deposit": Entry("node.cli.accounts:deposit", "Bring money or shares into an account.", MONEY),
    "withdraw": Entry("node.cli.accounts:withdraw", "Take money out: request, then post or void.", MONEY),
    "transfer": Entry("node.cli.accounts:transfer", "Move money between accounts.", MONEY),
    "ledger": Entry("node.cli.accounts:ledger", "Every movement of an account's money.", MONEY),
    "instrument": Entry("node.cli.instruments:instrument", "Add, list and change instruments.", TRADE),
    "reference": Entry("node.cli.instruments:reference", "Tell a price seen outside.", TRADE),
    "order": Entry("node.cli.orders:order", "Place, replace, cancel, show and list orders.", TRADE),
    "book": Entry("node.cli.orders:book", "The order book of an instrument.", TRADE),
    "trades": Entry("node.cli.orders:trades", "What traded.", TRADE),
    "commands": Entry("node.cli.orders:commands", "What became of a command, by its key.", LOOK),
    "inspect": Entry("node.cli.audit:inspect", "Audit what a stopped member has on disk.", LOOK),
}

HELP = """Run Tiebreak and trade on it: a replicated, durable order book in two datacenters.

[bold]First steps[/bold]

  tiebreak cluster init && tiebreak up && tiebreak status

The folder of the cluster is ./tiebreak-cluster, or what --cluster or TIEBREAK_CLUSTER says.
Every command takes --json: data goes to stdout, talk to stderr. Every command has --help with an example.
"""

EPILOG = (
    "[bold]Exit codes[/bold]: 0 done · 1 refused, or not healthy · 2 wrong usage · 3 outcome unknown, ask again with "
    "its key · 4 cluster not reachable · 70 a bug in tiebreak"
)


class LazyGroup(TyperGroup):
    """Lists commands from the table above and from plugins; imports a command's module when it runs."""

    _listing = False

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        # Typer suggests from these when a name is misspelled; what runs comes from get_command.
        self.commands = {name: TyperCommand(name) for name in COMMANDS}

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *sorted(name for name in _plugins() if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        plugin = _plugins().get(cmd_name) if entry is None else None
        if entry is None and plugin is None:
            return None
        if self._listing:
            text = entry.help if entry is not None else _first_sentence(plugin)
            return TyperCommand(cmd_name, help=text, rich_help_panel=entry.panel if entry is not None else MORE)
        found = _load(entry.where) if entry is not None else _load_plugin(plugin)
        command = to_command(found) if isinstance(found, typer.Typer) else found
        command.name = cmd_name
        # Completion is installed for the whole program; a plugin has none of its own.
        command.params = [one for one in command.params if one.name not in ("install_completion", "show_completion")]
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


app = typer.Typer(
    cls=LazyGroup,
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415

        from statemachine.compiled import running  # noqa: PLC0415

        typer.echo(f"tiebreak {version('tiebreak')}, engine: {running()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    cluster: Annotated[str, typer.Option(metavar="DIR", help="As behind the command: the cluster's folder.")] = "",
    url: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="As behind the command: a node's address.")
    ] = None,
    token: Annotated[str, typer.Option(metavar="TOKEN", help="As behind the command: a bearer token.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As behind the command: print data as JSON.")] = False,
) -> None:
    # By the environment they are defaults for every command, and what stands behind the command still wins.
    given = {"CLUSTER": cluster, "URL": " ".join(url or ()), "TOKEN": token, "JSON": "1" if as_json else ""}
    os.environ.update({f"TIEBREAK_{name}": value for name, value in given.items() if value})


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Always ends by SystemExit; a person sees what is wrong and what to do, never a traceback."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="tiebreak")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough. Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("TIEBREAK_DEBUG"):
            raise
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Say what went wrong; the exit code that goes with it."""
    from node.cli.output import HINTS, complain  # noqa: PLC0415 - nothing to explain is the usual case

    known = {
        "FolderError": EXIT_REFUSED,
        "InvalidTopology": EXIT_REFUSED,
        "LaunchError": EXIT_REFUSED,
        "PortInUse": EXIT_REFUSED,
        "DiedAtStart": EXIT_REFUSED,
        "NotReady": EXIT_REFUSED,
        "ReadRefused": EXIT_REFUSED,
        "CliError": EXIT_REFUSED,
        "StreamRefused": EXIT_REFUSED,
        "Unavailable": EXIT_UNREACHABLE,
        "ChangeUnknown": EXIT_UNKNOWN,
    }
    code = known.get(type(error).__name__)
    if isinstance(error, OSError):
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_REFUSED
    if code is None:
        complain(f"a bug in tiebreak: {type(error).__name__}: {error}", "set TIEBREAK_DEBUG=1 to see where")
        return EXIT_BUG
    word = "unreachable" if code == EXIT_UNREACHABLE else getattr(error, "error", "")
    complain(str(error), HINTS.get(word, ""))
    return code


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=PLUGINS)}


def _load(where: str) -> Any:
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _load_plugin(point: EntryPoint | None) -> Any:
    """A plugin that can't be loaded takes down its own command only."""
    if point is None:
        return None
    try:
        return point.load()
    except Exception as error:
        if os.environ.get("TIEBREAK_DEBUG"):
            raise
        reason = f"the plugin {point.value} can't be loaded: {type(error).__name__}: {error}"

        def broken() -> None:
            from node.cli.output import complain  # noqa: PLC0415

            complain(reason, "all other commands work; set TIEBREAK_DEBUG=1 to see where")
            raise typer.Exit(EXIT_BUG)

        stub = typer.Typer()
        stub.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(broken)
        return stub


def _first_sentence(point: EntryPoint | None) -> str:
    """What a plugin's command says of itself, or its file what it is for, read without running it."""
    if point is None:
        return ""
    try:
        spec = importlib.util.find_spec(point.module)
        tree = ast.parse(Path(spec.origin or "").read_text("utf-8")) if spec is not None else None
        text = (_help_of(tree, point.attr) or ast.get_docstring(tree)) if tree is not None else None
    except (ImportError, OSError, SyntaxError, ValueError):
        text = None
    return (text or "(can't be loaded)").split("\n\n", maxsplit=1)[0].replace("\n", " ")


def _help_of(tree: ast.Module, attribute: str) -> str:
    """`help` of the Typer that the attribute is, or the first sentence of the one command that is registered in it."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == [attribute]:
            for keyword in getattr(node.value, "keywords", ()):
                if keyword.arg == "help" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = [ast.unparse(one.func) for one in node.decorator_list if isinstance(one, ast.Call)]
            if f"{attribute}.command" in named:
                said = (ast.get_docstring(node) or "").split("\n", maxsplit=1)[0].split(". ", maxsplit=1)[0]
                return said.rstrip(".") + "." if said else ""
    return ""


if __name__ == "__main__":
    main()
