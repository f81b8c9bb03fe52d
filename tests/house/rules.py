"""The rules of the house, each a function from a tree of files to what breaks it there."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOMS = ("statemachine", "cluster", "node", "gateway", "chaos", "bench")
SKIPPED_FOLDERS = {"__pycache__", "build", "chaos-runs", "demo-run", "run"}
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".txt", ".sh", ".json", ".html", ".cfg", ".ini", ".yml", ".yaml", ".golden"}

# The few files where each outside library may be imported; tests may import what they test with.
HOMES = {
    "pysyncobj": ("cluster/consensus/audited.py", "chaos/sim/stock.py", "bench/stock_member.py"),
    "lmdb": (
        "statemachine/store.py",
        "statemachine/store_copy.py",
        "statemachine/store_flush.py",
        "statemachine/store_sealing.py",
        "statemachine/store_tables.py",
        "cluster/consensus/storage.py",
        "chaos/disk/mutants.py",
        "gateway/prefs/store.py",
    ),
    "aiohttp": (
        "node/api/*.py",
        "node/app.py",
        "node/channel.py",
        "node/context.py",
        "node/docs_page.py",
        "node/doorway.py",
        "node/feed.py",
        "node/guard.py",
        "node/limits.py",
        "node/openapi.py",
        "node/stream.py",
        "cluster/client_http.py",
        "cluster/client_members.py",
        "cluster/client_stream.py",
        "bench/gateway_following.py",
        "bench/load.py",
        "bench/peers/etcd.py",
        "bench/resting.py",
        "chaos/live/venue.py",
        "gateway/feeds/live.py",
        "gateway/api/*.py",
        "gateway/api/sockets/*.py",
        "gateway/app.py",
        "gateway/cli/watching.py",
        "gateway/core.py",
        "gateway/follow.py",
        "gateway/notify/addresses.py",
        "gateway/notify/webhook.py",
        "gateway/views/basis.py",
        "gateway/stream/server.py",
        "gateway/workers/serve.py",
        "gateway/workers/worker.py",
    ),
    "redis": ("gateway/cache.py", "gateway/cache/*.py"),
    "toxiproxy": ("chaos/net/library.py",),
    "requests": ("chaos/net/library.py",),
}

# Files of statemachine/ that touch disks. All others are rules: the same on every replica, for ever.
DISK_FILES = (
    "statemachine/compiled*.py",
    "statemachine/store.py",
    "statemachine/store_*.py",
    "statemachine/segments.py",
    "statemachine/inspection.py",
)
IMPURE_MODULES = {
    "asyncio", "concurrent", "datetime", "decimal", "locale", "math", "multiprocessing", "os", "pathlib", "platform",
    "random", "secrets", "socket", "statistics", "sys", "tempfile", "threading", "time", "uuid", "zoneinfo",
}  # fmt: skip
IMPURE_CALLS = {"hash", "id", "float", "open", "input", "eval", "exec", "globals", "vars", "print"}
# What cluster may know of statemachine: how a batch is spelled, not what it means.
CODEC_TYPES = {"statemachine.codec", "statemachine.types"}

CONTRACT = {"codec", "codes", "commands", "events", "results", "types"}

# Spelled in two halves, so that this file passes its own rule.
MARKS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
HOSTS = re.compile("|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(com|org)", "--" + "index-url",
                             "--" + "extra-index-url", "crates" + r"\.io", "proxy" + r"\.golang")))  # fmt: skip
PLACES = re.compile("|".join(("/wo" + r"rk\b", "/ro" + "ot/", "/tm" + "p/(plan|bash_jobs)", r"\." + "library/")))


class File(NamedTuple):
    """One file of a tree. name: its path from the root, with slashes."""

    name: str
    text: str

    @property
    def room(self) -> str:
        return self.name.split("/", 1)[0] if "/" in self.name else ""

    @property
    def is_test(self) -> bool:
        return self.room == "tests"

    def matches(self, patterns: tuple[str, ...]) -> bool:
        return any(PurePosixPath(self.name).match(pattern) for pattern in patterns)


class Tree:
    """The files below a root that people wrote; hidden folders, save the gate's, and what tools leave are skipped."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def files(self) -> list[File]:
        return [File(path.relative_to(self.root).as_posix(), path.read_text("utf-8")) for path in self._walk(self.root)]

    @cached_property
    def python(self) -> list[tuple[File, ast.Module]]:
        return [(file, parse(file.text)) for file in self.files if file.name.endswith(".py")]

    def _walk(self, folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".") and path.name != ".ci"
            left = path.name in SKIPPED_FOLDERS or path.name.endswith(".egg-info")
            if path.is_dir() and not hidden and not left:
                yield from self._walk(path)
            elif path.is_file() and not hidden and path.suffix in TEXT_SUFFIXES:
                yield path


Rule = Callable[[Tree], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


@cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of each import; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def called(node: ast.expr) -> str:
    """The dotted name of what a call calls, or nothing."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


@rule
def files_say_what_they_are_for(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        if module.body and not ast.get_docstring(module):
            yield f"{file.name}:1: open the file with one sentence: what it is for"


@rule
def rules_are_pure(tree: Tree) -> Iterator[str]:
    """No clock, chance, float, environment or hash order in what every replica must compute alike."""
    for file, module in tree.python:
        if file.room != "statemachine" or file.matches(DISK_FILES):
            continue
        for line, name in imported(module):
            if name.split(".")[0] in IMPURE_MODULES:
                yield f"{file.name}:{line}: rules may not import {name}"
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
                yield f"{file.name}:{node.lineno}: a float in the rules"
            elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
                yield f"{file.name}:{node.lineno}: / makes a float; say // and how it rounds"
            elif isinstance(node, ast.Call) and called(node.func) in IMPURE_CALLS:
                yield f"{file.name}:{node.lineno}: rules may not call {called(node.func)}()"
            elif isinstance(node, ast.For | ast.comprehension) and _is_set(node.iter):
                yield f"{file.name}:{node.iter.lineno}: the order of a set differs between replicas; sort it"


def _is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return called(node.func) in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp)


@rule
def libraries_have_homes(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        libraries = {name.split(".")[0] for _, name in imported(module)} & set(HOMES)
        for library in sorted(libraries):
            if not file.is_test and not file.matches(HOMES[library]):
                yield f"{file.name}: {library} lives in few named files (HOMES in tests/house/rules.py)"


@rule
def cluster_knows_only_the_codec(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        for line, name in imported(module):
            if file.room == "cluster" and name.startswith("statemachine"):
                known = any(name == known or name.startswith(f"{known}.") for known in CODEC_TYPES)
                if not known and name != "statemachine":
                    yield f"{file.name}:{line}: cluster may import {', '.join(sorted(CODEC_TYPES))} only, not {name}"


@rule
def the_model_is_independent(tree: Tree) -> Iterator[str]:
    """The naive model may share the contract with the machine that it judges, and no rule."""
    for file, module in tree.python:
        if file.name != "chaos/check/ledger.py":
            continue
        for line, name in imported(module):
            if name.startswith("statemachine.") and name.split(".")[1] not in CONTRACT:
                yield f"{file.name}:{line}: the model may import {', '.join(sorted(CONTRACT))} only, not {name}"


@rule
def rooms_import_downwards(tree: Tree) -> Iterator[str]:
    """Said by import-linter's contracts too; here for tests, which no room may import."""
    for file, module in tree.python:
        for line, name in imported(module):
            if not file.is_test and name.split(".")[0] == "tests":
                yield f"{file.name}:{line}: the product may not import tests"
            if file.room == "statemachine" and name.split(".")[0] in ROOMS[1:]:
                yield f"{file.name}:{line}: statemachine imports nothing of ours, not {name}"


@rule
def invariants_survive_optimisation(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        for node in ast.walk(module):
            if isinstance(node, ast.Assert) and not file.is_test:
                yield f"{file.name}:{node.lineno}: python -O removes assert; use must()"


@rule
def errors_are_not_swallowed(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        for node in ast.walk(module):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                yield f"{file.name}:{node.lineno}: bare except; name what can go wrong"
            elif called(node.type) in ("Exception", "BaseException") and all(
                isinstance(step, ast.Pass | ast.Continue) for step in node.body
            ):
                yield f"{file.name}:{node.lineno}: {called(node.type)} is swallowed"


@rule
def nothing_is_left_for_later(tree: Tree) -> Iterator[str]:
    for file, line, text in _lines(tree):
        if mark := MARKS.search(text):
            yield f"{file.name}:{line}: {mark[0]}"


@rule
def no_registry_and_no_machine_is_named(tree: Tree) -> Iterator[str]:
    for file, line, text in _lines(tree):
        if found := HOSTS.search(text) or PLACES.search(text):
            yield f"{file.name}:{line}: {found[0]}"


def _lines(tree: Tree) -> Iterator[tuple[File, int, str]]:
    for file in tree.files:
        for number, text in enumerate(file.text.splitlines(), 1):
            yield file, number, text


@rule
def rooms_explain_themselves(tree: Tree) -> Iterator[str]:
    names = {file.name: file for file in tree.files}
    rooms = {file.room for file, module in tree.python if file.room in ROOMS and module.body}
    for room in sorted(rooms):
        design = names.get(f"{room}/DESIGN.md")
        if design is None or len(design.text.splitlines()) < 10:
            yield f"{room}/DESIGN.md: say what the room promises, its formats, its decisions with reasons"


@rule
def tests_assert(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        if not (file.is_test and Path(file.name).name.startswith("test_")):
            continue
        nodes = list(ast.walk(module))
        raises = (
            isinstance(node, ast.Call) and called(node.func) in ("pytest.raises", "pytest.fail") for node in nodes
        )
        if not any(isinstance(node, ast.Assert) for node in nodes) and not any(raises):
            yield f"{file.name}:1: a test module that asserts nothing"


@rule
def skips_have_reasons(tree: Tree) -> Iterator[str]:
    named = ("pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail")
    for file, module in tree.python:
        if not file.is_test:
            continue
        told = {id(node.func) for node in ast.walk(module) if isinstance(node, ast.Call) and _has_reason(node)}
        for node in ast.walk(module):
            if not isinstance(node, ast.Attribute) or id(node) in told:
                continue
            if (name := called(node)) in named or name == "pytest.skip":
                yield f"{file.name}:{node.lineno}: {name} without a reason"


def _has_reason(call: ast.Call) -> bool:
    named = any(keyword.arg == "reason" for keyword in call.keywords)
    return named or (called(call.func) in ("pytest.skip", "pytest.mark.skip") and bool(call.args))


@rule
def fakes_instead_of_mocks(tree: Tree) -> Iterator[str]:
    for file, module in tree.python:
        for line, name in imported(module):
            if name in ("unittest.mock", "mock", "pytest_mock"):
                yield f"{file.name}:{line}: if a test needs a mock, the rule probably does I/O"


@rule
def tests_listen_on_loopback(tree: Tree) -> Iterator[str]:
    everywhere = "0.0.0" + ".0"
    for file, line, text in _lines(tree):
        if file.is_test and everywhere in text and "refuse" not in text:
            yield f"{file.name}:{line}: a test may listen on 127.0.0.1 only"


@rule
def locks_are_hashed(tree: Tree) -> Iterator[str]:
    for file in tree.files:
        if not re.fullmatch(r"requirements[a-z-]*\.txt", file.name):
            continue
        for block in re.split(r"\n(?=\S)", file.text):
            if not block.startswith("#") and block.strip() and "--hash=sha256:" not in block:
                yield f"{file.name}: not pinned by hash: {block.splitlines()[0]}"


@rule
def consensus_is_pinned(tree: Tree) -> Iterator[str]:
    """The hardening replaces methods of one version of PySyncObj; another version is another audit."""
    for file in tree.files:
        if file.name == "pyproject.toml" and '"pysyncobj==0.3.17"' not in file.text:
            yield f"{file.name}: pin pysyncobj==0.3.17"
