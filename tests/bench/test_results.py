"""What a run leaves in a folder: all that was measured, and pictures that come from the JSON alone."""

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import cli, host, plots, progress, results
from bench.report import Curve, Figure, Mark, Report, distribution
from bench.stats import spread

run = CliRunner().invoke
TALK = Console(file=io.StringIO())
LINE = Curve("answers over time", "line", "2+2+1", [0.0, 1.0, 2.0], [900.0, 0.0, 950.0], "s", "answers/s")


def report_of(tmp_path: Path, *curves: Curve) -> Report:
    return Report(
        "made-up",
        [Figure("p50", 1.0, "ms", "< 2", True)],
        {"seconds": 1},
        host.describe(tmp_path),
        1.0,
        curves=list(curves),
        percentiles={"all": spread([1.0, 2.0, 3.0])},
    )


def test_a_run_leaves_its_report_with_machine_and_percentiles(tmp_path: Path) -> None:
    arguments = ["run", "cluster-one", "--seconds", "0.5", "--json", "--out", str(tmp_path / "kept")]
    done = run(cli.app, arguments)
    (printed,) = json.loads(done.stdout)
    kept = json.loads((tmp_path / "kept" / "cluster-one.json").read_text())
    assert kept == printed
    assert kept["host"]["commit"]
    (found,) = kept["percentiles"].values()
    assert found["count"] > 10
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"] <= found["p999_ms"] <= found["max_ms"]


def test_all_kinds_are_drawn_again_from_the_file_alone(tmp_path: Path) -> None:
    found = report_of(
        tmp_path,
        msgspec.structs.replace(LINE, marks=[Mark(0.5, 1.5, "the leader is killed")]),
        msgspec.structs.replace(LINE, picture="p99", log_x=True, log_y=True, x=[1.0, 2.0, 3.0], y=[1.0, 2.0, 9.0]),
        distribution("how long", "done", [float(value) for value in range(1, 20_000)]),
        Curve("stages", "stacked", "sync", ["leader", "a follower"], [1.0, 0.5], "", "ms"),
        Curve("stages", "stacked", "apply", ["leader", "a follower"], [0.2, 0.3], "", "ms"),
        Curve("peers", "bars", "p99", ["one", "the other"], [1.0, 0.5], "", "ms"),
    )
    results.save(found, tmp_path)
    done = run(cli.app, ["plot", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == [str(tmp_path / "made-up.png"), str(tmp_path / "made-up.svg")]
    assert (tmp_path / "made-up.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "made-up.svg").read_text()
    for words in ("answers over time", "2+2+1", "the leader is killed", "99.99", "a follower", "the other", "commit "):
        assert words in drawn, words
    assert results.read(tmp_path / "made-up.json") == found


def bars(axis: Any) -> list[tuple[float, float]]:
    """(foot, height) of each."""
    return [(round(float(bar.get_y()), 6), round(float(bar.get_height()), 6)) for bar in axis.patches]


def test_values_are_drawn_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    def keep(figure: Any, _: Path) -> list[Path]:
        shown.append(figure)
        return []

    monkeypatch.setattr(plots, "save", keep)
    curves = [
        msgspec.structs.replace(LINE, marks=[Mark(0.5, 1.5, "a fault")]),
        distribution("how long", "done", [1.0, 2.0, 3.0]),
        Curve("stages", "stacked", "sync", ["leader", "follower"], [1.0, 0.5], "", "ms"),
        Curve("stages", "stacked", "apply", ["follower", "leader"], [0.2, 0.3], "", "ms"),
        Curve("peers", "bars", "p99", ["one", "the other"], [1.0, 0.5], "", "ms"),
        Curve("peers", "bars", "p50", ["one", "the other"], [0.4, 0.1], "", "ms"),
    ]
    plots.curves(curves, tmp_path / "made-up", title="made-up")
    lines, percents, stages, peers = shown[0].axes
    assert [list(line.get_ydata()) for line in lines.get_lines()] == [LINE.y]
    (band,) = lines.patches
    assert (band.get_x(), band.get_width()) == (0.5, 1.0)
    assert [round(x, 6) for x in percents.get_lines()[0].get_xdata()][-1] == 2.0  # 99 %: two nines
    assert bars(stages) == [(0, 1.0), (0, 0.5), (1.0, 0.3), (0.5, 0.2)]
    assert bars(peers) == [(0, 1.0), (0, 0.5), (0, 0.4), (0, 0.1)]
    assert len({bar.get_x() for bar in peers.patches}) == 4


def test_without_curves_nothing_is_drawn(tmp_path: Path) -> None:
    assert results.draw(report_of(tmp_path), tmp_path, TALK) == []


@pytest.mark.parametrize("content", ["", "{}", '{"benchmark": "made-up", "figures": ['])
def test_half_a_report_is_refused_and_leaves_the_pictures(tmp_path: Path, content: str) -> None:
    results.save(report_of(tmp_path, LINE), tmp_path)
    (tmp_path / "other.json").write_text(content)
    done = run(cli.app, ["plot", str(tmp_path)])
    assert done.exit_code == 2
    assert "half of one" in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "made-up.png").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert run(cli.app, ["plot", str(tmp_path)]).exit_code == 2


def test_a_distribution_goes_as_far_as_its_samples() -> None:
    few, many = distribution("p", "s", [1.0, 5.0] * 50), distribution("p", "s", [1.0] * 9_999 + [7.0])
    assert (few.x[-1], few.y[-1]) == (99.0, 5.0)
    assert (many.x[-1], many.y[-1]) == (99.99, 1.0)


def test_bars_move_by_steps_and_by_the_clock() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with progress.shown(console, "measuring it"), progress.steps("rates", 2) as begin:
        begin("1,000/s")
        begin("2,000/s")
        with progress.during("loading", 3):
            progress._shown[-1].refresh()
    said = screen.getvalue()
    for words in ("measuring it", "rates: 2,000/s", "1/2", "loading", "0/3 s"):
        assert words in said


def test_nobody_looks_so_nothing_is_shown() -> None:
    with progress.steps("rates", 2) as begin, progress.during("loading", 1):
        begin("1,000/s")
    screen = io.StringIO()
    with progress.shown(Console(file=screen), "measuring it"), progress.steps("rates", 2) as begin:
        begin("1,000/s")
    assert screen.getvalue().strip() == "measuring it ..."
