"""Which build of the rules runs: the Python sources, or the same sources compiled by mypyc (`make fast`).

TIEBREAK_ENGINE is `pure` (or not set) or `compiled`. Both give the same results, events and digests, so members of one
cluster may differ in it. A build counts only for the very sources that it was made of.
"""

import json
import os
import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ENGINE_ENV = "TIEBREAK_ENGINE"
FOLDER_ENV = "TIEBREAK_ENGINE_FOLDER"
"""Where the build is, if not in this Python's environment."""
PURE, COMPILED = "pure", "compiled"
MANIFEST = "manifest.json"
SOURCES = Path(__file__).parent
HOT = (
    "accounts", "book", "calendar", "fees", "instrument", "invariants", "machine", "matching", "order", "settlement",
    "state", "rules.entry", "rules.listing", "rules.money", "rules.orders", "rules.sessions", "rules.time",
)  # fmt: skip
"""The modules that are compiled. Those of msgspec's structs stay Python: msgspec builds its classes at run time."""


class Finder(MetaPathFinder):
    """Finds the compiled modules ahead of their sources."""

    def __init__(self, modules: dict[str, Path]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of one of our compiled modules; None for all others, which the usual finders look for."""
        file = self._modules.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)


def running() -> str:
    """PURE or COMPILED: what this process runs."""
    return COMPILED if any(isinstance(finder, Finder) for finder in sys.meta_path) else PURE


def folder() -> Path:
    """Where `make fast` puts the build and a program looks for it."""
    named = os.environ.get(FOLDER_ENV, "")
    return Path(named) if named else Path(sys.prefix) / "tiebreak-engine"


def fingerprint() -> str:
    """Of the sources and of the Python that a build is for."""
    digest = sha256((sys.implementation.cache_tag or "").encode())
    for file in sorted(SOURCES.rglob("*.py")):
        digest.update(file.relative_to(SOURCES).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def unusable() -> str:
    """Why the build can't be used; nothing when it can."""
    try:
        manifest = json.loads((folder() / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return f"no build of the engine is in {folder()}; `make fast` makes one"
    if manifest["fingerprint"] != fingerprint():
        return f"the build in {folder()} is of other sources or another Python; `make fast` makes a new one"
    return ""


def choose() -> None:
    """Make ready what TIEBREAK_ENGINE asks for. Raises ImportError: it is not there, or of other sources."""
    wanted = os.environ.get(ENGINE_ENV, "") or PURE
    if wanted not in (PURE, COMPILED):
        raise ImportError(f"{ENGINE_ENV}={wanted}: neither {PURE} nor {COMPILED}")
    if wanted == PURE or running() == COMPILED:
        return
    if reason := unusable():
        raise ImportError(f"{ENGINE_ENV}={COMPILED}: {reason}")
    modules = json.loads((folder() / MANIFEST).read_bytes())["modules"]
    sys.meta_path.insert(0, Finder({name: folder() / file for name, file in modules.items()}))
