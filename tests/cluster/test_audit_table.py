"""The table of defects in cluster/DESIGN.md: each finding of the audit is there, and its tests of both sides exist."""

import re
from pathlib import Path

import pytest
from msgspec import Struct

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
DESIGN = ROOT / "cluster" / "DESIGN.md"
HEADING = "## Defects of PySyncObj"
FINDINGS = {f"F{number}" for number in range(1, 14)}


class Row(Struct, frozen=True):
    finding: str
    defect: str
    effect: str
    cure: str
    stock: list[str]
    ours: list[str]


def rows(text: str) -> list[Row]:
    table = text.split(HEADING, 1)[1].split("\n## ", 1)[0]
    found = []
    for line in table.splitlines():
        if line.startswith("| ") and not line.startswith("| | defect"):
            cells = [cell.strip() for cell in line.strip("| \n").split(" | ")]
            if line.startswith("| |"):
                cells = ["", *cells]
            assert len(cells) == 6, f"six columns: {line}"
            found.append(Row(*cells[:4], stock=words(cells[4]), ours=words(cells[5])))
    return found


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names_in(place: str) -> list[str]:
    """The tests of `test_x`, below tests/cluster, or of `room/test_x`, below tests. Nothing: of all test_audit*.py."""
    base = TESTS if "/" in place else TESTS / "cluster"
    files = sorted((TESTS / "cluster").glob("test_audit*.py")) if not place else [base / f"{place}.py"]
    return [name for file in files if file.exists() for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)]


def meant(word: str) -> list[str]:
    """The tests that a word of the table stands for."""
    place, _, part = word.rpartition(":")
    return [name for name in names_in(place) if part in name]


def is_stock(name: str) -> bool:
    return name.startswith("test_stock_")


def complaints(found: list[Row]) -> list[str]:
    told = []
    for row in found:
        where = f"{row.finding or '-'}: {row.defect}"
        if not (row.defect and row.effect and row.cure):
            told.append(f"{where}: a cell is empty")
        for side, names, wanted in (("stock", row.stock, True), ("ours", row.ours, False)):
            if not names:
                told.append(f"{where}: no test of {side}")
            for word in names:
                # A test may show both sides.
                fits = [name for name in meant(word) if is_stock(name) or not wanted]
                if not fits:
                    told.append(f"{where}: `{word}` fits no test of {side}")
    told += [f"{finding} is in no row" for finding in sorted(FINDINGS - {row.finding for row in found})]
    named = {name for row in found for word in row.stock for name in meant(word)}
    told += [f"{name} is in no row" for name in names_in("") if is_stock(name) and name not in named]
    return told


def test_the_table_is_whole() -> None:
    found = rows(DESIGN.read_text("utf-8"))
    assert len(found) > 30
    assert not complaints(found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: Row("F1", "d", "e", "", row.stock, row.ours), "a cell is empty"),
        (lambda row: Row("F1", "d", "e", "c", [], row.ours), "no test of stock"),
        (lambda row: Row("F1", "d", "e", "c", row.stock, []), "no test of ours"),
        (lambda row: Row("F1", "d", "e", "c", ["refused_append"], row.ours), "fits no test of stock"),
        (lambda row: Row("F1", "d", "e", "c", row.stock, ["test_journal:no_such_test"]), "fits no test of ours"),
        (lambda row: Row("F14", "d", "e", "c", row.stock, row.ours), "F1 is in no row"),
    ],
)
def test_a_table_that_is_not_whole_is_found(change: object, says: str) -> None:
    found = [row for row in rows(DESIGN.read_text("utf-8")) if row.finding != "F1"]
    first = rows(DESIGN.read_text("utf-8"))[0]
    told = complaints([*found, change(first)])  # type: ignore[operator]
    assert any(says in one for one in told), told
