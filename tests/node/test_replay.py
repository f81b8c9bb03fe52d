"""A fresh replay of the log says whether a store is what the log gives, and whose digests were wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.consensus.audited import NO_OP, REGULAR
from cluster.consensus.journal import Committed, Put
from cluster.consensus.storage import LmdbStorage
from node.cli.main import main
from node.replay import Replayed, ReplayRefused, Reporter, replay
from statemachine.codec import Envelope, decode_batch, encode_batch, encode_command
from statemachine.commands import ReportDigest
from statemachine.inspection import inspect_store
from tests.node.solo import SharedLog, Solo, list_market, order, run


def report(member: str, index: int, digest: bytes) -> bytes:
    return encode_batch(0, [Envelope("", "", 0, encode_command(ReportDigest(member, index, digest, 2)))])


def a_day(folder: Path) -> tuple[Path, list[bytes], Path]:
    """A stopped member: (its data folder, its log, an earlier copy of its store)."""
    log = SharedLog()
    earlier = folder / "earlier"

    async def talk() -> None:
        async with Solo(folder, log=log) as solo:
            await list_market(solo, "alice", "bob")
            solo.flush()
            shutil.copytree(folder / "dc-a" / "store", earlier)
            alice, bob = await solo.stream("trader", "alice"), await solo.stream("trader", "bob")
            await alice.submit(*(order("sell", 2, f"{price}.00") for price in range(5, 9)))
            await bob.submit(order("buy", 3, "6.00"), order("buy", 1, "4.00"))
            index, digest = solo.node.machine.applied_index, solo.node.machine.digest
            for member in ("dc-a", "dc-b"):
                log.commit(report(member, index, digest))
            await alice.close()
            await bob.close()

    run(talk())
    return folder / "dc-a", log.log, earlier


def write_log(data: Path, log: list[bytes], *, first: int = 1) -> None:
    shutil.rmtree(data / "journal", ignore_errors=True)
    storage = LmdbStorage(data / "journal", cluster_id="test-cluster", member="dc-a")
    entries = [Put(index, 1, REGULAR + payload) for index, payload in enumerate(log, 1)][first - 1 :]
    storage.write([*entries, Put(len(log) + 1, 1, NO_OP), Committed(len(log) + 1)])
    storage.close()


def replayed(data: Path, base: Path | None = None) -> Replayed:
    found = inspect_store(data / "store")
    assert found.holds, found.findings
    return replay(data, found, base=base)


def test_a_store_is_what_its_log_gives(tmp_path: Path) -> None:
    data, log, _ = a_day(tmp_path)
    write_log(data, log)
    before = inspect_store(data / "store")
    found = replayed(data)
    assert (found.same, found.holds, found.from_index, found.stored_index) == (True, True, 0, len(log))
    assert found.reporters == [Reporter("dc-a", len(log) - 2), Reporter("dc-b", len(log) - 2)]
    assert inspect_store(data / "store") == before


def test_another_log_gives_another_store(tmp_path: Path) -> None:
    data, log, _ = a_day(tmp_path)
    batch = decode_batch(log[3])
    log[3] = encode_batch(batch.stamp_us + 1, batch.commands)  # one microsecond of replicated time
    write_log(data, log)
    found = replayed(data)
    assert not found.same
    assert (found.digest != found.stored_digest, found.state_same) == (True, False)


def test_who_said_another_digest_is_named(tmp_path: Path) -> None:
    data, log, _ = a_day(tmp_path)
    wrong = report("dc-b", len(log) - 1, bytes(32))
    write_log(data, [*log, wrong])
    found = replayed(data)
    # It was said after the last flush: the replay goes on to the end of the log.
    assert (found.same, found.holds, found.to_index) == (True, False, len(log) + 2)
    assert found.reporters == [Reporter("dc-a", len(log) - 2), Reporter("dc-b", len(log) - 2, len(log) - 1)]


def test_a_trimmed_log_needs_a_store_to_begin_from(tmp_path: Path) -> None:
    data, log, earlier = a_day(tmp_path)
    stands_at = inspect_store(earlier).applied_index
    assert 0 < stands_at < len(log)
    write_log(data, log, first=stands_at + 1)
    with pytest.raises(ReplayRefused, match=f"begins at entry {stands_at + 1}, the replay would begin at 1"):
        replayed(data)
    found = replayed(data, base=earlier)
    assert (found.holds, found.from_index) == (True, stands_at)
    write_log(data, log, first=stands_at + 3)
    with pytest.raises(ReplayRefused, match=f"store that stands at {stands_at + 2} or later"):
        replayed(data, base=earlier)


def test_the_command_line_says_who_is_right(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def tiebreak(*words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return ended.value.code, *capfd.readouterr()

    data, log, earlier = a_day(tmp_path)
    write_log(data, log)
    code, out, _ = tiebreak("inspect", str(data), "--replay")
    assert code == 0
    assert f"replayed from nothing to index {len(log) + 1}" in out
    assert "the store is what the log gives" in out
    assert "dc-b was right" in out
    write_log(data, [*log, report("dc-b", len(log), bytes(32))])
    code, out, _ = tiebreak("inspect", str(data), "--replay", "--base", str(earlier), "--json")
    assert code == 1
    said: dict[str, Any] = json.loads(out)
    assert said["replay"]["reporters"][1]["differs_at"] == len(log)
    code, _, err = tiebreak("inspect", str(data), "--base", str(earlier))
    assert (code, "--replay" in err) == (1, True)


def test_the_audit_of_a_disk_reads_its_log_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def inspect(*words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(data), *words])
        return ended.value.code, *capfd.readouterr()

    data, log, _ = a_day(tmp_path)
    code, out, _ = inspect()
    assert (code, "no log beside the store" in out) == (0, True)
    write_log(data, log)
    code, out, _ = inspect()
    assert (code, f"every entry of the log is whole: 1 to {len(log) + 1}" in out) == (0, True)
    assert json.loads(inspect("--json")[1])["log"]["last_index"] == len(log) + 1
    file = data / "journal" / "data.mdb"
    raw = bytearray(file.read_bytes())
    raw[raw.index(log[2]) + len(log[2]) // 2] ^= 1
    file.write_bytes(raw)
    code, _, err = inspect()
    assert (code, "entry 3" in err or "index 3" in err) == (1, True), err
