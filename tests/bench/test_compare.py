"""Us beside others: what their tools print is read right, who is missing is named, and PostgreSQL really is durable."""

import tempfile
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from bench import cli, compare, compare_cli, host
from bench.compare import OURS, Cell, Point
from bench.compare_cli import RESULT, Compared
from bench.peers import etcd, peer, postgres
from bench.peers.peer import Measured, PeerFailed, PeerMissing
from bench.report import Report

SUMMARY = """
Summary:
  Total:	1.2500 secs.
  Slowest:	0.0310 secs.
  Requests/sec:	8000.0000

Latency distribution:
  10% in 0.0010 secs.
  50% in 0.0020 secs.
  99% in 0.0125 secs.
  99.9% in 0.0200 secs.
"""


def cells_of(ours: float, theirs: float) -> list[Cell]:
    return [
        Cell(who, Point(8, 1), turn, Measured(per_s, 1.0, 2.0))
        for who, per_s in ((OURS, ours), ("postgres", theirs))
        for turn in range(2)
    ]


def test_what_etcds_load_generator_prints_is_read() -> None:
    found = etcd.read_summary(SUMMARY, 10_000)
    assert (found.per_s, found.p50_ms, found.p99_ms, found.wrong) == (8_000.0, 2.0, 12.5, 0)


def test_its_errors_are_counted() -> None:
    found = etcd.read_summary(SUMMARY + "\nError distribution:\n  [12]\trpc error\n  [3]\tother\n", 10_000)
    assert found.wrong == 15


def test_words_that_nobody_knows_are_no_figures() -> None:
    with pytest.raises(PeerFailed, match="said"):
        etcd.read_summary("panic: no leader", 10_000)


@pytest.mark.parametrize(("ours", "theirs", "passed"), [(21_000.0, 1_000.0, True), (19_000.0, 1_000.0, False)])
def test_a_goal_is_a_ratio_of_the_best(ours: float, theirs: float, passed: bool) -> None:
    goals = [figure for figure in compare.figures(cells_of(ours, theirs)) if figure.passed is not None]
    assert [(figure.value, figure.passed) for figure in goals] == [(ours / theirs, passed)]


def test_who_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(etcd, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerMissing, match="make peers"):
        etcd.Etcd(tmp_path / "etcd")


def test_a_server_that_ends_says_what_it_wrote(tmp_path: Path) -> None:
    server = peer.Server("it", ["sh", "-c", "echo no room; exit 3"], tmp_path / "log")
    with pytest.raises(PeerFailed, match=r"exit code 3(.|\n)*no room"):
        list(peer.wait([server], "ready"))


def test_a_comparison_is_drawn_again_from_its_file(tmp_path: Path) -> None:
    report = Report("compare", [], {}, host.describe(tmp_path), 1.0)
    (tmp_path / RESULT).write_bytes(msgspec.json.encode(Compared(report, cells_of(2.0, 1.0))))
    done = CliRunner().invoke(cli.app, ["plot", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "compare.svg").read_text()


@pytest.mark.parametrize("content", [b"", b'{"report":'])
def test_half_a_comparison_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESULT).write_bytes(content)
    done = CliRunner().invoke(cli.app, ["plot", str(tmp_path)])
    assert done.exit_code == 2
    assert "half of one" in " ".join(done.output.replace("│", " ").split())


def test_an_unknown_peer_is_refused() -> None:
    done = CliRunner().invoke(cli.app, ["compare", "oracle"])
    assert done.exit_code == 2
    assert "oracle" in done.output


def test_a_table_has_a_row_for_each_way_of_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("compare", compare.figures(cells_of(2_000.0, 1_000.0)), {}, host.describe(tmp_path), 1.0)
    compare_cli.print_table(Compared(report, cells_of(2_000.0, 1_000.0)))
    said = capsys.readouterr().out
    assert "8 clients" in said
    assert "2,000" in said
    assert "missed" in said


def test_postgres_answers_when_a_standby_has_it() -> None:
    """The real one: with both standbys it is measured, and without one it is refused as a peer."""
    # Not tmp_path: where we are root, the server's own user must get there, and pytest shuts its folders against that.
    with tempfile.TemporaryDirectory(prefix="tiebreak-bench-") as root:
        try:
            server = postgres.Postgres(Path(root) / "postgres")
        except PeerMissing as error:
            pytest.skip(str(error))
        check_with_and_without(server)


def check_with_and_without(server: postgres.Postgres) -> None:
    with server:
        assert server.synchronous() == sorted(postgres.STANDBYS)
        found = server.measure(clients=2, batch=1, seconds=1, warmup_s=1)
        assert found.per_s > 0
        assert found.wrong == 0
        batched = server.measure(clients=2, batch=postgres.BATCH, seconds=1, warmup_s=1)
        assert batched.per_s > 0
        server._servers[-2].stop()  # a standby
        with pytest.raises(PeerFailed, match="not both standbys"):
            server.check_synchronous()


def test_etcd_puts_on_three_members(tmp_path: Path) -> None:
    try:
        server = etcd.Etcd(tmp_path / "etcd")
    except PeerMissing as error:
        pytest.skip(str(error))
    with server:
        found = server.measure(clients=2, seconds=0.5)
    assert found.per_s > 0
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.wrong == 0
