"""Each boundary case of ARCHITECTURE.md names tests, and each test that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USUAL = "tests/gateway/api/test_boundaries.py"
_NAME = re.compile(r"`((?:tests/[a-z_/]+\.py)|test_[a-z0-9_]+)`")


def wrong(text: str, root: Path) -> list[str]:
    """What the table of boundary cases says of tests that is not so. A name counts for the file named before it."""
    section = text.split("## Boundary cases", 1)[1].split("\n## ", 1)[0]
    cases = [line for line in section.splitlines() if line.startswith("|")][2:]
    found = [] if cases else ["there are no cases"]
    for case in cases:
        title, file, tests = case.split("|")[1].strip(), USUAL, 0
        for name in _NAME.findall(case.rsplit("|", 2)[1]):
            if name.endswith(".py"):
                file = name
                continue
            tests += 1
            path = root / file
            if not path.is_file() or f"def {name}(" not in path.read_text("utf-8"):
                found.append(f"{title}: no {name} in {file}")
        if not tests:
            found.append(f"{title}: names no test")
    return found


def test_each_boundary_case_has_its_tests() -> None:
    assert wrong((ROOT / "ARCHITECTURE.md").read_text("utf-8"), ROOT) == []


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("`test_who_opted_out_is_not_on_the_leaderboard`", []),
        ("`test_nobody_wrote_this`", [f"a case: no test_nobody_wrote_this in {USUAL}"]),
        ("`tests/house/rules.py`: `test_x`", ["a case: no test_x in tests/house/rules.py"]),
        ("somewhere", ["a case: names no test"]),
    ],
)
def test_what_is_not_there_is_found(cell: str, said: list[str]) -> None:
    head = "## Boundary cases\n\n| case | settled by | test |\n|---|---|---|\n"
    text = f"{head}| a case | so | {cell} |\n\n## Next\n| x |\n"
    assert wrong(text, ROOT) == said
