"""Histories of other suites get the verdicts that are known for them; files that are none are refused."""

import os
import time
from pathlib import Path

import pytest

from chaos.check.outside import check_outside
from chaos.history.outside import Format
from chaos.history.run import RunUnreadable

DATA = Path(os.environ.get("TIEBREAK_DATA", "no-data")) / "histories"
EXPECTED = DATA / "EXPECTED.txt"
WORDS = {"linearizable": "pass", "NOT-linearizable": "fail"}


@pytest.mark.real_data
@pytest.mark.skipif(not EXPECTED.exists(), reason="TIEBREAK_DATA names no folder with histories")
def test_all_known_histories_get_their_verdicts() -> None:
    rows = [line.split() for line in EXPECTED.read_text().splitlines() if line and line[0] != "#"]
    assert len(rows) == 108
    began = time.process_time()
    wrong = {}
    for name, expected in rows:
        format: Format = "knossos" if name.startswith("jepsen/") else "porcupine"
        told = check_outside(DATA / name, format).verdict
        if told != WORDS[expected]:
            wrong[name] = (told, expected)
    seconds = time.process_time() - began
    print(f"108 outside histories in {seconds:.1f} s of CPU")
    assert not wrong
    assert seconds < 30


REGISTER = """INFO  jepsen.util - 0	:invoke	:write	1
INFO  jepsen.util - 0	:ok	:write	1
INFO  jepsen.util - 1	:invoke	:read	nil
INFO  jepsen.util - 1	:ok	:read	{seen}
"""
EDN = """{{:process 0, :type :invoke, :f :write, :value 1}}
{{:process 0, :type :info, :f :write, :value :timed-out}}
{{:process 1, :type :invoke, :f :cas, :value [1 2]}}
{{:process 1, :type :ok, :f :cas, :value [1 2]}}
{{:process 1, :type :invoke, :f :read, :value nil}}
{{:process 1, :type :ok, :f :read, :value {seen}}}
"""


@pytest.mark.parametrize(("text", "good", "bad"), [(REGISTER, "1", "nil"), (EDN, "2", "1")])
def test_a_register_in_either_spelling(tmp_path: Path, text: str, good: str, bad: str) -> None:
    path = tmp_path / "history"
    path.write_text(text.format(seen=good))
    assert check_outside(path, "knossos").verdict == "pass"
    path.write_text(text.format(seen=bad))
    verdict = check_outside(path, "knossos")
    assert verdict.verdict == "fail"
    assert verdict.checks[0].examples[0]["does"] == "read"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no line of it is an operation"),
        ("hello\n", "no line of it is an operation"),
        (REGISTER.format(seen="1"), "porcupine histories have"),
        ('{:process 0, :type :ok, :f :get, :key "a", :value ""}', "ends what it never began"),
        ('{:process 0, :type :invoke, :f :get, :key "a", :value nil}\n' * 2, "begins twice"),
    ],
)
def test_what_is_no_history_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "history"
    path.write_text(text)
    with pytest.raises(RunUnreadable, match=told):
        check_outside(path, "porcupine")
    with pytest.raises(RunUnreadable, match="No such file"):
        check_outside(tmp_path / "none", "porcupine")
