"""The rules of the house hold here, and each can fail: it is shown a sample that it must refuse."""

from pathlib import Path

import pytest

from tests.house.rules import HOSTS, MARKS, RULES, Tree

ROOT = Path(__file__).parents[2]
HERE = Tree(ROOT)

N, S, T = "node/app.py", "statemachine/fees.py", "tests/node/test_app.py"
TOLD = '"""What this is for."""\n'
LATER = "# TO" + "DO: later\n"
HOST = "see https://py" + "pi.org/simple\n"
PLACE = "open /ro" + "ot/notes\n"
WORKPLACE = "see chaos/wo" + "rk/notes\n"

# N, S, T: places in node, statemachine and tests.
# rule, file, a text that it must refuse, the neighbour that it must pass
SAMPLES = [
    ("files_say_what_they_are_for", N, "x = 1\n", TOLD + "x = 1\n"),
    ("files_say_what_they_are_for", N, "# a comment\nx = 1\n", ""),
    ("rules_are_pure", S, TOLD + "import time\n", TOLD + "import msgspec\n"),
    ("rules_are_pure", S, TOLD + "from datetime import datetime\n", TOLD + "import struct\n"),
    ("rules_are_pure", S, TOLD + "from os import environ\n", TOLD + "import heapq\n"),
    ("rules_are_pure", S, TOLD + "x = 0.5\n", TOLD + "x = 5\n"),
    ("rules_are_pure", S, TOLD + "x = 1 / 2\n", TOLD + "x = 1 // 2\n"),
    ("rules_are_pure", S, TOLD + "x = hash('a')\n", TOLD + "x = len('a')\n"),
    ("rules_are_pure", S, TOLD + "for x in {1, 2}:\n    y = x\n", TOLD + "for x in (1, 2):\n    y = x\n"),
    ("rules_are_pure", S, TOLD + "x = [y for y in set('ab')]\n", TOLD + "x = sorted(set('ab'))\n"),
    ("libraries_have_homes", "node/batcher.py", TOLD + "import lmdb\n", TOLD + "import msgspec\n"),
    ("libraries_have_homes", "cluster/topology.py", TOLD + "from pysyncobj import SyncObj\n", TOLD),
    ("libraries_have_homes", "statemachine/codec.py", TOLD + "from aiohttp import web\n", TOLD),
    ("cluster_knows_only_the_codec", "cluster/client.py", TOLD + "from statemachine.machine import Machine\n",
     TOLD + "from statemachine.codec import Batch\n"),
    ("cluster_knows_only_the_codec", "cluster/client.py", TOLD + "from statemachine import machine\n",
     TOLD + "from statemachine import codec\n"),
    ("the_model_is_independent", "chaos/check/ledger.py", TOLD + "from statemachine.fees import charge\n",
     TOLD + "from statemachine.codes import Code\n"),
    ("rooms_import_downwards", "statemachine/book.py", TOLD + "from cluster import consensus\n",
     TOLD + "from statemachine import types\n"),
    ("rooms_import_downwards", N, TOLD + "from tests import house\n", TOLD + "from cluster import consensus\n"),
    ("invariants_survive_optimisation", "statemachine/book.py", TOLD + "assert 1 == 1\n", TOLD + "must(1 == 1)\n"),
    ("errors_are_not_swallowed", N, TOLD + "try:\n    f()\nexcept:\n    g()\n",
     TOLD + "try:\n    f()\nexcept OSError:\n    g()\n"),
    ("errors_are_not_swallowed", N, TOLD + "try:\n    f()\nexcept Exception:\n    pass\n",
     TOLD + "try:\n    f()\nexcept OSError:\n    pass\n"),
    ("nothing_is_left_for_later", N, TOLD + LATER, TOLD + "# later is now\n"),
    ("nothing_is_left_for_later", "README.md", LATER, "Done.\n"),
    ("no_registry_and_no_machine_is_named", "README.md", HOST, "see the lock\n"),
    ("no_registry_and_no_machine_is_named", "Makefile", PLACE, "open notes\n"),
    ("no_registry_and_no_machine_is_named", "Makefile", WORKPLACE, "see chaos/workloads/notes\n"),
    ("rooms_explain_themselves", "cluster/links.py", TOLD, ""),
    ("tests_assert", T, TOLD + "def test_it() -> None:\n    f()\n",
     TOLD + "def test_it() -> None:\n    assert f()\n"),
    ("tests_assert", T, TOLD + "def test_it() -> None:\n    f()\n",
     TOLD + "def test_it() -> None:\n    with pytest.raises(OSError):\n        f()\n"),
    ("skips_have_reasons", T, TOLD + "@pytest.mark.skip\ndef test_it() -> None: ...\n",
     TOLD + "@pytest.mark.skip(reason='no data')\ndef test_it() -> None: ...\n"),
    ("skips_have_reasons", T, TOLD + "@pytest.mark.skipif(True)\ndef test_it() -> None: ...\n",
     TOLD + "@pytest.mark.skipif(True, reason='no data')\ndef test_it() -> None: ...\n"),
    ("skips_have_reasons", T, TOLD + "pytest.skip()\n", TOLD + "pytest.skip('no data')\n"),
    ("fakes_instead_of_mocks", T, TOLD + "from unittest import mock\n", TOLD + "import unittest\n"),
    ("tests_listen_on_loopback", T, TOLD + f"host = '0.0.{0}.0'\n", TOLD + "host = '127.0.0.1'\n"),
    ("locks_are_hashed", "requirements.txt", "msgspec==0.22.0\n", "msgspec==0.22.0 \\\n    --hash=sha256:00\n"),
    ("consensus_is_pinned", "pyproject.toml", 'dependencies = ["pysyncobj>=0.3.17"]\n',
     'dependencies = ["pysyncobj==0.3.17"]\n'),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_rule_holds_here(name: str) -> None:
    findings = list(RULES[name](HERE))
    assert not findings, "\n" + "\n".join(findings)


@pytest.mark.parametrize(("name", "path", "bad", "good"), SAMPLES)
def test_the_rule_can_fail(name: str, path: str, bad: str, good: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(bad, "utf-8")
    assert list(RULES[name](Tree(tmp_path))), "the rule passed a sample that it must refuse"
    file.write_text(good, "utf-8")
    assert not list(RULES[name](Tree(tmp_path))), "the rule refused a sample that it must pass"


def test_every_rule_is_shown_to_fail() -> None:
    assert {name for name, *_ in SAMPLES} == set(RULES)


def test_the_tree_is_not_empty() -> None:
    names = {file.name for file in HERE.files}
    assert {"Makefile", "pyproject.toml", ".ci/run", "statemachine/codec.py"} <= names


def test_the_words_looked_for_are_whole() -> None:
    assert MARKS.search("# " + "FIX" + "ME soon")
    assert not MARKS.search("mastodons")
    assert HOSTS.search("files.python" + "hosted.org")
