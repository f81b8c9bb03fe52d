"""Each mutant has the fault that its name says, and the shipped product has not."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from chaos.live.programs import MUTANTS
from chaos.live.programs.mutant import INSTALL, LOSES_EVERY
from cluster.consensus.journal import Put
from cluster.consensus.storage import LmdbStorage
from node.config import NodeConfig
from node.reads import Reads
from statemachine import machine
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_pinned import PinnedState
from tests.node.fakes import make_config
from tests.statemachine.talk import Talk

Mutate = Callable[[str], None]


@pytest.fixture
def mutate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """Put a fault in; it is taken out when the test ends."""
    for owner, name in (
        (LmdbStorage, "write"), (LmdbStorage, "close"), (PinnedState, "copy_to"), (Reads, "linearizable"),
        (Machine, "_run"), (Machine, "apply"), (lmdb, "open"), (lmdb, "Environment"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for command, rule in list(machine.RULES.items()):
        monkeypatch.setitem(machine.RULES, command, rule)
    return lambda name: INSTALL[name](config(tmp_path, "dc-b"))


def config(folder: Path, name: str) -> NodeConfig:
    return make_config(folder, name=name)


def talk() -> Talk:
    made = Talk()
    for line in ("asset USD 2", "account alice", "account bob", "deposit alice USD 1000 scope=@custodian key=first"):
        made.say(line)
    return made


def balance(made: Talk, account: str) -> int:
    view = made.machine.account(account)
    assert view is not None
    return next(available_units for asset, available_units, *_ in view.balances if asset == "USD")


def test_each_has_its_words_and_is_tried_here() -> None:
    assert set(INSTALL) == set(MUTANTS)
    found = subprocess.run(
        [sys.executable, "-P", "-m", "chaos.live.programs.mutant", "no-such", "x.toml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert "no-sync, lying-sync" in found.stderr


def test_double_credit(mutate: Mutate) -> None:
    made = talk()
    again = "deposit alice USD 1000 scope=@custodian key=first"
    assert made.say(again)[0].startswith("repeat")
    assert balance(made, "alice") == 1000
    mutate("double-credit")
    assert made.say(again)[0].startswith("repeat")
    assert balance(made, "alice") == 2000


def transfers(made: Talk) -> tuple[int, bytes]:
    for number in range(LOSES_EVERY):
        made.say(f"transfer alice bob USD 2 scope=@custodian key=t{number}")
    return balance(made, "bob"), made.machine.digest


def test_blind_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Mutate) -> None:
    right, digest = transfers(talk())
    assert right == 2 * LOSES_EVERY
    mutate("blind-digest")  # on the last replica by name
    wrong, blind = transfers(talk())
    assert wrong == right - 1
    monkeypatch.undo()
    assert transfers(talk()) == (right, digest), "nothing of it is left"
    monkeypatch.setattr(Machine, "apply", Machine.apply)  # once more, or nothing takes it out
    INSTALL["blind-digest"](config(tmp_path / "other", "dc-a"))
    try:
        assert transfers(talk()) == (right, blind), "and the first one does not see it"
    finally:
        monkeypatch.undo()
    assert transfers(talk()) == (right, digest)


def test_read_without_quorum(mutate: Mutate) -> None:
    class Cut:
        async def read_index(self, *, timeout_ms: int) -> int:
            raise AssertionError("the quorum was asked")

    def reads() -> Reads:
        from node.config import NodeTiming  # noqa: PLC0415

        return Reads(Cut(), lambda: 7, NodeTiming())

    with pytest.raises(AssertionError, match="the quorum was asked"):
        asyncio.run(reads().linearizable())
    mutate("read-without-quorum")
    assert asyncio.run(reads().linearizable()) == 7


def last_index(folder: Path) -> int:
    """What another life would find, whatever this one holds open: on disk, not in memory."""
    script = (
        "import sys; from pathlib import Path; from cluster.consensus.storage import LmdbStorage;"
        "s = LmdbStorage(Path(sys.argv[1]), cluster_id='c', member='m', map_bytes=1 << 24);"
        "print(s.load(tail_bytes_max=0).last_index)"
    )
    found = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_lying_sync(tmp_path: Path, mutate: Mutate) -> None:
    mutate("lying-sync")
    storage = LmdbStorage(tmp_path, cluster_id="c", member="m", map_bytes=1 << 24)
    for index in (1, 2, 3):
        storage.write([Put(index, 1, b"x")])
    assert len(storage.read(1, 9)) == 2, "the last group is not there, though it was said to be"
    storage.close()
    assert last_index(tmp_path) == 3, "whoever stops in order loses nothing"


def test_no_sync(tmp_path: Path, mutate: Mutate) -> None:
    storage = LmdbStorage(tmp_path / "right", cluster_id="c", member="m", map_bytes=1 << 24)
    assert "MDB_NOSYNC" not in _flags(storage)
    storage.close()
    mutate("no-sync")
    storage = LmdbStorage(tmp_path / "wrong", cluster_id="c", member="m", map_bytes=1 << 24)
    assert "MDB_NOSYNC" in _flags(storage)
    storage.close()


def _flags(storage: LmdbStorage) -> list[str]:
    return [] if storage._env.flags()["sync"] else ["MDB_NOSYNC"]


def test_keys_not_in_snapshot(tmp_path: Path, mutate: Mutate) -> None:
    made = Talk()
    store = Store(tmp_path / "store", cluster_id="c", member="m", map_size_bytes=1 << 24)
    made.backing = store  # type: ignore[assignment]
    made.machine = Machine(store)
    store.write = store.add  # type: ignore[attr-defined]
    made.say("asset USD 2 key=the-key scope=@operator")
    store.flush(made.machine.collect())

    def keys(name: str) -> int:
        pin = store.pin()
        pin.copy_to(tmp_path / name)
        pin.close()
        copy = Store(tmp_path / name, cluster_id="c", member="m", map_size_bytes=1 << 24)
        found = sum(copy._tables.reader().stat(handle)["entries"] for handle in copy._tables.families["keys"].values())
        copy.close()
        return found

    assert keys("right") == 1
    mutate("keys-not-in-snapshot")
    assert keys("wrong") == 0
    store.close()
