"""Where members trimmed how the log began, a run shows nothing: it is neither a pass nor a broken promise."""

from pathlib import Path

from chaos.check.run import check_run
from tests.chaos.check.made import make


def test_half_a_log_is_invalid_and_no_failure(tmp_path: Path) -> None:
    folder = make(1, 250).write(tmp_path / "run")
    assert check_run(folder).verdict == "pass"
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "log.jsonl").write_bytes(b"".join(lines[len(lines) // 2 :]))
    (folder / "log-about.json").unlink(missing_ok=True)
    verdict = check_run(folder)
    words = {check.name: check.verdict for check in verdict.checks}
    assert verdict.verdict == "invalid"
    assert words["log"] == words["lost"] == words["answers"] == "invalid"
    assert words["digests"] == "pass", "what needs no log is judged"
