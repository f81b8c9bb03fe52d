"""A history is read as it was written; one that is cut short or broken says where."""

from pathlib import Path

import pytest

from chaos.history.file import NEVER_NS, HistoryWriter, read_final, read_history, read_log, write_final, write_lines
from chaos.history.records import Final, Logged
from chaos.history.run import Planned, Run, RunUnreadable, read_run, write_run


def written(folder: Path) -> Path:
    """A history with an operation that returned, one that did not, a fault, a phase and a sighting."""
    path = folder / "history.jsonl"
    writer = HistoryWriter(path)
    writer.phase("start")
    first = writer.call(process=1, workload="bank", kind="transfer", target="dc-a", key="k1", args={"amount": "1.50"})
    writer.fault(1, "dc_cut", "begin", targets=["dc-a"], detail={"minority": ["dc-a"]})
    writer.call(process=2, workload="bank", kind="read_account", target="dc-b")
    writer.ret(first, "ok", index=7, answer={"status": "done"})
    writer.seen("dc-a", up=True, state="leader", term=3, commit=7, applied=7)
    writer.close()
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    history = read_history(written(tmp_path))
    first, second = history.ops
    assert (first.op, first.kind, first.key, first.args) == (1, "transfer", "k1", {"amount": "1.50"})
    assert (first.outcome, first.index, first.answer) == ("ok", 7, {"status": "done"})
    assert first.call_ns < first.return_ns < NEVER_NS
    assert (second.outcome, second.return_ns) == ("unknown", NEVER_NS)
    assert [fault.detail for fault in history.faults] == [{"minority": ["dc-a"]}]
    assert [phase.name for phase in history.phases] == ["start"]
    assert history.phase_ns("start") is not None
    assert history.phase_ns("final") is None
    assert [(seen.name, seen.commit) for seen in history.seen] == [("dc-a", 7)]
    assert history.torn == 0


def test_a_call_is_on_its_way_to_disk_before_the_request_leaves(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "history.jsonl")
    writer.call(process=1, workload="bank", kind="transfer", target="dc-a")
    assert len(read_history(tmp_path / "history.jsonl").ops) == 1
    writer.close()


def test_a_history_is_written_once(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        HistoryWriter(written(tmp_path))


def test_a_last_line_cut_short_is_counted(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    history = read_history(path)
    assert (history.torn, len(history.ops), len(history.seen)) == (1, 2, 0)


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3][:10]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunUnreadable, match=r"history\.jsonl, line 4"):
        read_history(path)


RETURN = b'{"e":"return","op":%d,"at_ns":%d,"outcome":"ok"}\n'
CALL = b'{"e":"call","op":1,"process":1,"at_ns":5,"workload":"w","kind":"k","target":"t"}\n'


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (RETURN % (1, 5), "line 1: operation 1 returns and was never called"),
        (CALL + CALL, "line 2: operation 1 is called a second time"),
        (CALL + RETURN % (1, 5) + RETURN % (1, 6), "line 3: operation 1 returns a second time"),
        (CALL + RETURN % (1, 4), "line 2: operation 1 returns 1 ns before its call"),
        (b"\xff\xfe\n" + CALL, "line 1"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, lines: bytes, told: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(lines)
    with pytest.raises(RunUnreadable, match=told):
        read_history(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunUnreadable, match=r"history\.jsonl: No such file"):
        read_history(tmp_path / "history.jsonl")
    with pytest.raises(RunUnreadable, match=r"run\.json: No such file.*folder of a run"):
        read_run(tmp_path)
    with pytest.raises(RunUnreadable, match=r"final\.json: No such file"):
        read_final(tmp_path / "final.json")


def test_a_log_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = Logged(1, 0, "alice", "k1", "transfer", {"amount_units": 5})
    write_lines(path, [line, line])
    assert read_log(path) == [line, line]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunUnreadable, match="cut short"):
        read_log(path)


def test_a_run_and_its_end_are_read_as_written(tmp_path: Path) -> None:
    plan = [Planned(1, 5, 10, "dc_cut", ["a|b"], {"tiebreaker": "a"})]
    run = Run("dc-cut", 7, 60, "1+1+1", "hardened", "shipped", "tiebreak chaos run dc-cut", {}, "", plan, [], 100)
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    final = Final(True, index=9, balances={"alice": {"USD": ["1.00", "0.50"]}})
    write_final(tmp_path / "final.json", final)
    assert read_final(tmp_path / "final.json") == final
    (tmp_path / "run.json").write_text('{"scenario": 3}')
    with pytest.raises(RunUnreadable, match=r"run\.json: Expected `str`"):
        read_run(tmp_path)
