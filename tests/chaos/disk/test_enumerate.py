"""Every disk that a power cut could leave, built from a log of system calls; and mutants that must be found so."""

from pathlib import Path

import pytest

from chaos.disk.children import Failed
from chaos.disk.crashstates import State, states
from chaos.disk.enumerate import BEGINNINGS, enumerate_states
from chaos.disk.tracing import (
    MakeFile,
    MakeFolder,
    Operation,
    Remove,
    Rename,
    Said,
    Sync,
    Truncate,
    Write,
    read_trace,
    strace_missing,
)

traced = pytest.mark.skipif(bool(strace_missing()), reason="strace is not installed: no calls to build disks from")


# -- the real journal and store --------------------------------------------------------------------


@traced
@pytest.mark.parametrize(
    ("kind", "beginning", "steps", "states_min"),
    [
        ("journal", "new", 12, 250),
        ("journal", "killed", 12, 250),
        ("journal", "copied", 8, 200),
        ("store", "new", 20, 150),
        ("store", "copied", 10, 100),
    ],
)
def test_no_power_cut_loses_what_was_acknowledged(kind: str, beginning: str, steps: int, states_min: int) -> None:
    found = enumerate_states(kind, beginning=beginning, steps=steps, seed=5, kills=(1, 3, 5))
    assert found.passes, found
    assert found.states >= states_min


@traced
@pytest.mark.parametrize(
    ("kind", "beginning", "mutant", "outcomes"),
    [
        ("journal", "copied", "nometasync", {"lost"}),
        ("journal", "new", "write-behind", {"lost"}),
        ("journal", "new", "no-folder-sync", {"lost"}),
        ("journal", "copied", "no-folder-sync", {"lost"}),
        ("journal", "new", "nosync", {"lost", "unopenable"}),
        ("store", "new", "nosync", {"lost", "unopenable"}),
        ("store", "new", "no-folder-sync", {"lost"}),
    ],
)
def test_a_mutant_is_found(kind: str, beginning: str, mutant: str, outcomes: set[str]) -> None:
    found = enumerate_states(kind, beginning=beginning, mutant=mutant, steps=4, seed=5, per_point_max=8)
    assert {outcome for outcome in ("lost", "unopenable") if getattr(found, outcome)} == outcomes


def test_there_is_a_row_for_each_beginning() -> None:
    assert set(BEGINNINGS) == {"new", "killed", "copied"}


# -- the model of a disk ---------------------------------------------------------------------------


def files_of(operations: list[Operation]) -> set[tuple[tuple[str, bytes], ...]]:
    """Every set of files that a cut at the end may leave."""
    found = list(states([*operations, Said("acked", 1)], per_point_max=1_000, start=len(operations)))
    assert all(isinstance(state, State) for state in found)
    return {tuple(sorted(state.files.items())) for state in found}


NAMED: list[Operation] = [MakeFile("a"), Sync("")]


def test_what_was_synced_is_there() -> None:
    write = Write("a", 0, b"one", at_once=False)
    assert files_of([*NAMED, write, Sync("a")]) == {(("a", b"one"),)}
    assert files_of([*NAMED, Write("a", 0, b"one", at_once=True)]) == {(("a", b"one"),)}
    # The neighbour that is not.
    assert files_of([*NAMED, write]) == {(("a", b"one"),), (("a", b""),)}


def test_any_part_of_what_was_not_synced_may_be_there() -> None:
    one, two = Write("a", 0, b"one", at_once=False), Write("a", 3, b"two", at_once=False)
    contents = {dict(files)["a"] for files in files_of([*NAMED, one, two])}
    assert contents == {b"", b"one", b"onetwo", b"\0\0\0two"}
    assert {dict(files)["a"] for files in files_of([*NAMED, one, Sync("a"), Truncate("a", 1)])} == {b"one", b"o"}


def test_a_write_may_tear_at_a_sector_and_nowhere_else() -> None:
    old, new = b"o" * 1536, b"n" * 1536
    contents: set[bytes] = set()
    for seed in range(120):
        operations = [*NAMED, Write("a", 0, old, at_once=False), Sync("a"), Write("a", 0, new, at_once=False)]
        contents |= {state.files["a"] for state in states(operations, seed=seed, start=4)}
    sectors = {tuple(content[at : at + 512] for at in (0, 512, 1024)) for content in contents}
    assert all(set(parts) <= {old[:512], new[:512]} for parts in sectors)
    assert len(sectors) == 8


def test_a_name_is_there_once_its_folder_is_synced() -> None:
    made: list[Operation] = [MakeFolder("f"), MakeFile("f/a"), Write("f/a", 0, b"x", at_once=True)]
    assert files_of(made) == {(), (("f/a", b"x"),)}
    # Syncing the file makes no name durable, nor does syncing the folder that holds the folder.
    assert files_of([*made, Sync("f/a"), Sync("")]) == {(), (("f/a", b"x"),)}
    assert files_of([*made, Sync("f")]) == {(), (("f/a", b"x"),)}
    assert files_of([*made, Sync("f"), Sync("")]) == {(("f/a", b"x"),)}


def test_a_rename_and_a_removal_happen_whole_or_not_yet() -> None:
    made: list[Operation] = [*NAMED, Write("a", 0, b"x", at_once=True)]
    assert files_of([*made, Rename("a", "b")]) == {(("a", b"x"),), (("b", b"x"),)}
    assert files_of([*made, Rename("a", "b"), Sync("")]) == {(("b", b"x"),)}
    assert files_of([*made, Remove("a")]) == {(("a", b"x"),), ()}
    assert files_of([*made, Remove("a"), Sync("")]) == {()}


def test_a_state_knows_what_had_been_said() -> None:
    operations: list[Operation] = [*NAMED, Said("begun", 1), Write("a", 0, b"x", at_once=False), Sync("a")]
    operations += [Said("acked", 1), Said("begun", 2), Write("a", 1, b"y", at_once=False)]
    found = {(state.acked, state.begun, state.files.get("a", b"-")) for state in states(operations)}
    assert (0, 1, b"") in found
    assert (0, 1, b"x") in found
    assert (1, 2, b"x") in found
    assert (1, 2, b"xy") in found
    assert (1, 2, b"") not in found


# -- the log of system calls -----------------------------------------------------------------------


def hexed(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def read(folder: Path, *lines: str) -> list[Operation]:
    log = folder / "log"
    log.write_text("".join(f"77 {line}\n" for line in lines), "ascii")
    return list(read_trace(log, Path("/r")))


OPENED = f"openat(AT_FDCWD, {hexed('/r/a')}, O_RDWR|O_CREAT, 0644) = 5"


def test_a_log_is_read_in_order_and_what_failed_is_left_out(tmp_path: Path) -> None:
    assert read(
        tmp_path,
        f"mkdir({hexed('/r/f')}, 0777) = 0",
        f"mkdir({hexed('/elsewhere')}, 0777) = 0",
        OPENED,
        f"openat(AT_FDCWD, {hexed('/r/a')}, O_WRONLY|O_DSYNC|O_CLOEXEC) = 6",
        f"write(5, {hexed('ab')}, 2) = 2",
        f"writev(5, [{{iov_base={hexed('c')}, iov_len=1}}, {{iov_base={hexed('d')}, iov_len=1}}], 2) = 2",
        f"pwrite64(6, {hexed('z')}, 1, 9) = 1",
        f"pwrite64(6, {hexed('q')}, 1, 9) = -1 EIO (Input/output error) (INJECTED)",
        "fdatasync(5) = 0",
        "lseek(5, 1, SEEK_SET) = 1",
        f"write(5, {hexed('x')}, 1) = 1",
        f"openat(AT_FDCWD, {hexed('/r/f')}, O_RDONLY|O_DIRECTORY) = 7",
        f"openat(7, {hexed('b')}, O_WRONLY|O_CREAT, 0644) = 8",
        f"unlinkat(7, {hexed('b')}, 0) = 0",
        "fsync(7) = 0",
        "close(5) = 0",
        "fsync(5) = 0",
        f"rename({hexed('/r/a')}, {hexed('/r/c')}) = 0",
        "fsync(6) = 0",
        f"write(1, {hexed('acked 3')}, 7) = 7",
    ) == [
        MakeFolder("f"),
        MakeFile("a"),
        Write("a", 0, b"ab", at_once=False),
        Write("a", 2, b"cd", at_once=False),
        Write("a", 9, b"z", at_once=True),
        Sync("a"),
        Write("a", 1, b"x", at_once=False),
        MakeFile("f/b"),
        Remove("f/b"),
        Sync("f"),
        Rename("a", "c"),
        Sync("c"),
        Said("acked", 3),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "fallocate(5, 0, 0, 4096) = 0",
        f"pwrite64(5, {hexed('z')}..., 4096, 0) = 4096",
        "fdatasync(5 <unfinished ...>",
    ],
)
def test_a_log_that_can_not_be_trusted_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(Failed):
        read(tmp_path, OPENED, line)
    assert read(tmp_path, OPENED) == [MakeFile("a")]
