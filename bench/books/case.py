"""`tiebreak bench run books`: our engine beside published order books, the same steps, the trades compared."""

import os
import subprocess
import sys
import time
from array import array
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from bench import datasets, host, load
from bench.books import harness
from bench.books.steps import Recorder, recorded
from bench.peers.etcd import BUILT
from bench.peers.peer import PeerFailed, PeerMissing
from bench.replay import ReplayError
from bench.report import Curve, Figure, Report, at_least
from bench.running import RunError
from bench.stats import Spread, spread
from statemachine import compiled

CHECKOUT = Path(__file__).parents[2]
PEERS_PYTHON = BUILT / "books" / "bin" / "python"
HOW_TO_GET = "the other order books are not installed; `make peers` gets them"
GOAL = 5.0
ENDS_WITHIN_S = 300.0
POINTS = 50
"""Of a curve over a run."""
OUR_BOOK, OUR_MACHINE = "our book", "our machine"
PURE, NATIVE = "pure Python", "C++"


class Contender(Struct, frozen=True):
    """program: a module that `harness` describes. kind: PURE, NATIVE, or nothing for ours, of which `build` runs."""

    name: str
    program: str
    kind: str = ""
    build: str = compiled.PURE

    @property
    def python(self) -> str:
        return str(PEERS_PYTHON) if self.kind else sys.executable


CONTENDERS = (
    Contender(OUR_BOOK, "bench.books.our_book"),
    Contender("pyorderbook", "bench.books.with_pyorderbook", PURE),
    Contender("lightmatchingengine", "bench.books.with_lightmatchingengine", PURE),
    Contender("akhil4n-orderbook", "bench.books.with_akhil4n", PURE),
    Contender("liquibook", "bench.books.with_liquibook", NATIVE),
    Contender(OUR_MACHINE, "bench.books.our_machine"),
    Contender(f"{OUR_BOOK}, compiled", "bench.books.our_book", build=compiled.COMPILED),
    Contender(f"{OUR_MACHINE}, compiled", "bench.books.our_machine", build=compiled.COMPILED),
)


class Played(Struct, frozen=True):
    """What a program said. cpu_s: of the steps alone. slices_s: for each 1,000 of them. seconds: by the clock."""

    version: str
    steps: int
    cpu_s: float
    seconds: float
    slices_s: list[float]

    @property
    def per_s(self) -> float:
        """Steps for a second of CPU."""
        return self.steps / self.cpu_s


def books(folder: Path, *, commands: int = 100_000, rounds: int = 3, seed: int = 1, path: str = "") -> Report:
    """Our engine beside published order books: the same steps, the same trades, steps for a second of CPU.

    Each contender is a process of its own and has its turn in each round. One that is not installed, fails, or trades
    otherwise is named in the notes and has no figure. Raises RunError: our own book or machine failed.
    """
    began = time.monotonic()
    found = datasets.data_folder()
    source = path or (str(found) if found else "")
    try:
        flow = recorded(load.intents_of(source, seed), commands)
    except ReplayError as error:
        raise RunError(f"the steps could not be made: {error}") from error
    root = folder / "books"
    root.mkdir(parents=True)
    harness.write(root / "steps", flow.steps)
    played: dict[str, list[Played]] = {}
    notes: list[str] = []
    left = list(CONTENDERS)
    for _ in range(rounds):
        for one in tuple(left):
            try:
                said = play(one, root, flow)
            except (PeerMissing, PeerFailed) as error:
                if not one.kind and not isinstance(error, PeerMissing):
                    raise RunError(f"{one.name}: {error}") from error
                left.remove(one)
                played.pop(one.name, None)
                if str(error) not in notes:
                    notes.append(str(error))
            else:
                played.setdefault(one.name, []).append(said)
    return Report(
        benchmark="books",
        figures=figures(played),
        settings={
            "steps": len(flow.steps),
            "fills": len(flow.fills),
            "resting at most": flow.resting_max,
            "rounds": rounds,
            "order": ", ".join(one.name for one in CONTENDERS),
            "flow": source or f"generator, seed {seed}",
            "gc": "frozen, off",
            **{name: ran[0].version for name, ran in played.items()},
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            *notes,
            "a step is a limit order, an order of which nothing may rest, or a cancel; a reduction is two steps",
            f"{OUR_BOOK}: orders and price levels alone, as the others; {OUR_MACHINE}: with accounts, money and fees "
            "held and moved, keys, events, ledger, invariants and digest; compiled: as `make fast` builds it",
            "each one's trades (maker, price, lots) were ours, in order, or it has no figure",
        ],
        curves=curves(played),
        percentiles={f"{name}, CPU time of {harness.SLICE} steps": _spread(ran) for name, ran in played.items()},
    )


def play(one: Contender, root: Path, flow: Recorder) -> Played:
    """One turn. Raises PeerMissing, PeerFailed."""
    if one.kind and not PEERS_PYTHON.exists():
        raise PeerMissing(HOW_TO_GET)
    if one.build == compiled.COMPILED and (reason := compiled.unusable()):
        raise PeerMissing(f"{one.name}: {reason}")
    fills = root / "fills"
    try:
        run = subprocess.run(
            [one.python, "-m", one.program, str(root / "steps"), str(fills)],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN_S,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", compiled.ENGINE_ENV: one.build},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"{one.name} did not end within {ENDS_WITHIN_S:g} s") from error
    if run.returncode != 0:
        last = run.stderr.strip().splitlines()[-1:]
        if one.kind and last and last[0].startswith("ModuleNotFoundError"):
            raise PeerMissing(f"{one.name} is not installed; `make peers` gets it")
        raise PeerFailed(f"{one.name} failed: {' '.join(last)}")
    check_same(one.name, array("q", fills.read_bytes()), flow)
    return msgspec.json.decode(run.stdout, type=Played)


def check_same(name: str, told: "array[int]", flow: Recorder) -> None:
    """Raises PeerFailed: it traded otherwise than our machine, at this fill."""
    got = [harness.Fill(*told[at : at + 3]) for at in range(0, len(told), 3)]
    if got == flow.fills:
        return
    both = enumerate(zip(flow.fills, got, strict=False))
    at = next((at for at, (mine, other) in both if mine != other), min(len(flow.fills), len(got)))
    pair = [str(fills[at]) if at < len(fills) else "nothing" for fills in (flow.fills, got)]
    raise PeerFailed(f"{name} traded otherwise than our machine: fill {at + 1} is {pair[0]} with us, {pair[1]} there")


def figures(played: dict[str, list[Played]]) -> list[Figure]:
    """The median turn of each; then how many times the best of the others we are."""
    per_s = {name: median(one.per_s for one in ran) for name, ran in played.items()}
    found: list[Figure] = []
    for one in CONTENDERS:
        if one.name in per_s:
            kind = f" ({one.kind})" if one.kind else ""
            found.append(Figure(f"{one.name}{kind}: steps for a second of CPU", per_s[one.name], "/s"))
            found.append(Figure("  microseconds a step", 1e6 / per_s[one.name], "us"))
    for kind in (PURE, NATIVE):
        theirs = [(per_s[one.name], one.name) for one in CONTENDERS if one.kind == kind and one.name in per_s]
        if not theirs:
            continue
        best, name = max(theirs)
        for ours in (one.name for one in CONTENDERS if not one.kind and one.name in per_s):
            words = f"{ours} to the best {kind} book ({name})"
            times = per_s[ours] / best
            found.append(at_least(words, times, GOAL, "x") if kind == PURE else Figure(words, times, "x"))
    for name in (OUR_BOOK, OUR_MACHINE):
        if f"{name}, compiled" in per_s:
            times = per_s[f"{name}, compiled"] / per_s[name]
            found.append(Figure(f"{name}: what compiling makes of it", times, "x"))
    return found


def curves(played: dict[str, list[Played]]) -> list[Curve]:
    names = list(played)
    bars = Curve(
        picture="Order books: steps for a second of CPU",
        kind="bars",
        series="median turn",
        x=[*names],
        y=[median(one.per_s for one in ran) for ran in played.values()],
        x_label="",
        y_label="steps/s",
    )
    return [bars, *(_along(name, ran) for name, ran in played.items())]


def _along(name: str, ran: list[Played]) -> Curve:
    """The fastest turn of each slice, since a slow one says what else the machine did."""
    best_us = [min(slices) / harness.SLICE * 1e6 for slices in zip(*(one.slices_s for one in ran), strict=True)]
    width = max(1, len(best_us) // POINTS)
    starts = range(0, len(best_us) - width + 1, width)
    return Curve(
        picture="Order books: time of a step along the flow",
        kind="line",
        series=name,
        x=[float(at * harness.SLICE) for at in starts],
        y=[median(best_us[at : at + width]) for at in starts],
        x_label="steps before",
        y_label="microseconds of CPU a step",
        log_y=True,
    )


def _spread(ran: list[Played]) -> Spread:
    return spread([slice_s * 1e3 for one in ran for slice_s in one.slices_s])
