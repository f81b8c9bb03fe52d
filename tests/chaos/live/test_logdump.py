"""What stopped members hold becomes one log, and says where two of them differ."""

from pathlib import Path

import msgspec
import pytest

from chaos.history.file import read_log
from chaos.live.logdump import ABOUT, DISAGREEMENT, LOG, About, DumpFailed, Held, about, dump, merge, write
from chaos.live.programs import archive
from cluster import folder as cluster_folder
from cluster.consensus.journal import Change, Committed, Put, StartAfter, TrimTo
from cluster.consensus.storage import LmdbStorage
from cluster.folder import ClusterFolder
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import Deposit, Transfer
from tests.node.test_cluster import base_port

NO_OP, REGULAR = b"\x01", b"\x00"
MEMBERS = ("dc-a", "dc-b", "tiebreaker")


def entry(*keys: str) -> bytes:
    commands = [Envelope("alice", key, 17, encode_command(Transfer("alice", "bob", "USD", 100))) for key in keys]
    return REGULAR + encode_batch(1_000, commands)


def held(member: str, commit_index: int, entries: dict[int, bytes], *, term: int = 1) -> Held:
    return Held(member, commit_index, entries={index: (term, command) for index, command in entries.items()})


N, X, Y, Z = NO_OP, entry("x"), entry("y"), entry("z")
ROWS = [
    # what each holds; the log; where they differ; missing; beyond
    (
        [held("a", 3, {1: N, 2: X, 3: Y}), held("b", 2, {1: N, 2: X})],
        {1: N, 2: X, 3: Y}, [], [], [],
    ),
    # What only one takes for committed may differ elsewhere: it was never acknowledged there.
    (
        [held("a", 3, {1: N, 2: X, 3: Y}), held("b", 2, {1: N, 2: X, 3: Z})],
        {1: N, 2: X, 3: Y}, [], [], [],
    ),
    (
        [held("a", 3, {1: N, 2: X, 3: Y}), held("b", 3, {1: N, 2: X, 3: Z})],
        {1: N, 2: X, 3: Y}, [3], [], [],
    ),
    # The one goes on where the other was trimmed.
    ([held("a", 2, {1: N, 2: X}), held("b", 3, {3: Y})], {1: N, 2: X, 3: Y}, [], [], []),
    ([held("a", 6, {6: Y}), held("b", 4, {1: N, 4: X})], {1: N, 4: X, 6: Y}, [],
     [(2, 3), (5, 5)], []),
    # All have trimmed how it began.
    ([held("a", 4, {3: X, 4: Y}), held("b", 4, {4: Y})], {3: X, 4: Y}, [], [(1, 2)], []),
    # Nobody knows it to be committed, and a majority has it.
    (
        [held("a", 2, {1: N, 2: X, 3: Y}), held("b", 2, {1: N, 2: X, 3: Y, 4: Z}),
         held("c", 0, {})],
        {1: N, 2: X}, [], [], [3],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("everyone", "log", "differ", "missing", "beyond"), ROWS)
def test_members_are_merged(
    everyone: list[Held],
    log: dict[int, bytes],
    differ: list[int],
    missing: list[tuple[int, int]],
    beyond: list[int],
) -> None:
    merged, disagreements = merge(everyone)
    assert merged == log
    assert [one["index"] for one in disagreements] == differ
    found = about(everyone, merged)
    assert (found.missing, found.beyond, found.complete) == (missing, beyond, not missing)


def put(first: int, *commands: bytes) -> list[Change]:
    return [Put(index, 1, command) for index, command in enumerate(commands, first)]


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    cluster_folder.create(tmp_path / "cluster", base_port=base_port())
    return ClusterFolder(tmp_path / "cluster")


def journal(folder: ClusterFolder, member: str) -> LmdbStorage:
    cluster_id = folder.topology().cluster_id
    return LmdbStorage(folder.data(member) / "journal", cluster_id=cluster_id, member=member, map_bytes=1 << 24)


def filled(folder: ClusterFolder, **changes: list[Change]) -> None:
    for member in MEMBERS:
        storage = journal(folder, member)
        storage.write(changes[member.replace("-", "_")])
        storage.close()


def test_the_log_is_read_from_journals(folder: ClusterFolder, tmp_path: Path) -> None:
    deposit = Envelope("@custodian", "d", 0, encode_command(Deposit("bob", "USD", 7)))
    batch = REGULAR + encode_batch(2_000, [deposit, Envelope("alice", "k", 17, encode_command(_transfer()))])
    filled(
        folder,
        dc_a=[*put(1, NO_OP, batch, NO_OP, entry("y")), Committed(4)],
        dc_b=[*put(1, NO_OP, batch), Committed(2)],
        tiebreaker=[*put(1, NO_OP, batch, NO_OP), Committed(2)],
    )
    found = write(folder.root, tmp_path)
    assert (found.complete, found.commit_index, found.beyond) == (True, 4, [])
    assert msgspec.json.decode((tmp_path / ABOUT).read_bytes(), type=About) == found
    lines = read_log(tmp_path / LOG)
    assert [(line.index, line.position, line.scope, line.key, line.kind) for line in lines] == [
        (1, 0, "", "", ""),
        (2, 0, "@custodian", "d", "deposit"),
        (2, 1, "alice", "k", "transfer"),
        (3, 0, "", "", ""),
        (4, 0, "alice", "y", "transfer"),
    ]
    assert lines[1].command == {"account": "bob", "asset": "USD", "amount_units": 7}
    assert not (tmp_path / DISAGREEMENT).exists()


def _transfer() -> Transfer:
    return Transfer("alice", "bob", "USD", 100)


async def _dump(folder: ClusterFolder, run: Path) -> About:
    return await dump(folder.root, run)


def test_members_that_differ_are_told(folder: ClusterFolder, tmp_path: Path) -> None:
    same: list[Change] = [*put(1, NO_OP, entry("x")), Committed(2)]
    filled(folder, dc_a=same, dc_b=[*put(1, NO_OP, entry("other")), Committed(2)], tiebreaker=same)
    write(folder.root, tmp_path)
    differ = msgspec.json.decode((tmp_path / DISAGREEMENT).read_bytes())
    assert [(one["index"], sorted(one["entries"])) for one in differ] == [(2, ["dc-a", "dc-b"])]
    assert differ[0]["entries"]["dc-b"][0]["key"] == "other"


def test_a_member_that_can_not_be_read_is_named_and_the_rest_is_read(folder: ClusterFolder, tmp_path: Path) -> None:
    same: list[Change] = [*put(1, NO_OP, entry("x")), Committed(2)]
    filled(folder, dc_a=same, dc_b=same, tiebreaker=same)
    (folder.data("dc-a") / "journal" / "data.mdb").write_bytes(b"rubbish" * 5_000)
    found = write(folder.root, tmp_path)
    assert not found.complete
    assert [bool(member["why"]) for member in found.members] == [True, False, False]
    assert [line.key for line in read_log(tmp_path / LOG)] == ["", "x"]


def test_who_has_no_cluster_is_told(tmp_path: Path) -> None:
    import asyncio  # noqa: PLC0415

    with pytest.raises(DumpFailed, match="no cluster in"):
        asyncio.run(dump(tmp_path / "nowhere", tmp_path))


def test_what_is_trimmed_is_kept_once(folder: ClusterFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LmdbStorage, "write", LmdbStorage.write)  # put back at the end
    path = folder.root / "trimmed" / "dc-a.log"
    archive.keep(path)
    commands = [entry(f"k{number}") for number in range(1, 11)]
    storage = journal(folder, "dc-a")
    storage.write([*put(1, *commands), Committed(10)])
    storage.write([TrimTo(4)])
    storage.write([TrimTo(6)])
    storage.close()
    storage = journal(folder, "dc-a")  # another life
    storage.write([TrimTo(8)])
    # It lagged, and got a snapshot: what its log begins with now is no entry of its own.
    storage.write([StartAfter(20, 1), *put(21, entry("k21"), entry("k22")), Committed(22)])
    storage.write([TrimTo(22)])
    storage.close()
    assert [(index, command) for command, index, _ in archive.kept(path)] == [
        *((index, commands[index - 1]) for index in range(1, 8)),
        (21, entry("k21")),
    ]
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    assert [index for _, index, _ in archive.kept(path)] == list(range(1, 8))
    for member in ("dc-b", "tiebreaker"):
        other = journal(folder, member)
        other.write([*put(1, *commands), Committed(7)])
        other.close()
    found = write(folder.root, tmp_path)
    assert found.missing == [(8, 21)]
    assert found.members[0]["trimmed"] == 7
    assert [line.key for line in read_log(tmp_path / LOG)] == [f"k{number}" for number in (*range(1, 8), 22)]
