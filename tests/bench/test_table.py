"""The page that `bench table` makes of a folder of results."""

import json
from pathlib import Path

import msgspec
from typer.testing import CliRunner

from bench import cli, host
from bench.compare import OURS, Cell, Point
from bench.compare_cli import RESULT, Compared
from bench.peers.peer import Measured
from bench.report import Figure, Report, at_least
from bench.results import save

run = CliRunner().invoke


def report_of(folder: Path, name: str, *figures: Figure) -> Report:
    return Report(name, list(figures), {"seconds": 3}, host.describe(folder), 3.0, notes=["the disk was busy"])


def test_each_figure_stands_beside_its_target_with_its_conditions_and_picture(tmp_path: Path) -> None:
    save(report_of(tmp_path, "soak", at_least("orders a second", 19_000, 21_400, "/s")), tmp_path)
    save(report_of(tmp_path, "engine", Figure("p50 | p99", 1.5, "ms")), tmp_path)
    (tmp_path / "soak.png").write_bytes(b"")
    cells = [Cell(who, Point(8, 1), 0, Measured(per_s, 1.0, 2.0)) for who, per_s in (("etcd", 10.0), (OURS, 20.0))]
    compared = Compared(report_of(tmp_path, "compare", at_least("beside etcd", 2.0, 3.0)), cells)
    (tmp_path / RESULT).write_bytes(msgspec.json.encode(compared))
    done = run(cli.app, ["table", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "| | tiebreak | etcd |" in lines
    assert "| 8 clients | 20 (1 / 2) | 10 (1 / 2) |" in lines
    assert "| beside etcd | 2 | >= 3 | **missed** |" in lines
    assert "| orders a second | 19,000 /s | >= 21,400 | **missed** |" in lines
    assert "| p50 \\| p99 | 1.5 ms | - |  |" in lines
    assert "![soak](soak.png)" in lines
    assert not any("engine.png" in line for line in lines)
    assert lines.index("## engine") < lines.index("## soak")
    assert lines.count("Note: the disk was busy") == 3
    whole = json.loads(run(cli.app, ["table", str(tmp_path), "--json"]).stdout)
    assert [one["benchmark"] for one in whole["reports"]] == ["engine", "soak"]
    assert sum("fdatasync of 4 KiB p50" in line and "seconds 3." in line for line in lines) == 3


def test_a_folder_without_results_or_with_half_of_one_is_said(tmp_path: Path) -> None:
    done = run(cli.app, ["table", str(tmp_path)])
    assert done.exit_code == 2
    assert "no benchmark left" in " ".join(done.output.replace("│", " ").split())
    (tmp_path / "soak.json").write_text('{"benchmark": "so')
    done = run(cli.app, ["table", str(tmp_path)])
    assert done.exit_code == 2
    assert "only half of one" in " ".join(done.output.replace("│", " ").split())
