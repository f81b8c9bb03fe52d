"""What `bench run --out` leaves in a folder: NAME.json with all that was measured, and its pictures, made from that."""

import json
from pathlib import Path

import msgspec
from rich.console import Console

from bench import plots
from bench.report import Report, as_data


class ResultUnreadable(Exception):
    """A file that is no report, or only half of one. The message names it."""


def save(report: Report, folder: Path) -> Path:
    """Write NAME.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.benchmark}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(as_data(report), indent=1) + "\n", "utf-8")
    fresh.replace(path)
    return path


def read(path: Path) -> Report:
    """Raises ResultUnreadable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ResultUnreadable(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ResultUnreadable(f"{path} is no report, or only half of one: {error}") from error


def draw(report: Report, folder: Path, talk: Console) -> list[Path]:
    """Draw what it has curves for and say where; nothing where matplotlib is not installed, and that is said, too."""
    if not report.curves:
        return []
    try:
        paths = plots.curves(report.curves, folder / report.benchmark, title=report.benchmark, caption=caption(report))
    except plots.PlotMissing as error:
        talk.print(f"[yellow]{error}[/]")
        return []
    for path in paths:
        talk.print(f"[dim]{path}[/]")
    return paths


def caption(report: Report) -> str:
    """On what it was measured, in one line."""
    host = report.host
    return (
        f"commit {host.commit}; {host.cpu}, {host.cores} cores, load included; fdatasync p50 {host.fdatasync_p50_ms} ms"
    )
