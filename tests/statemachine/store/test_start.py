"""A start does not read accounts: a million of them cost neither time nor memory."""

import json
import subprocess
import sys
from pathlib import Path

from statemachine.store import Store
from statemachine.store_fill import CLUSTER_ID, MEMBER, account_name, fill_accounts

ACCOUNTS = 1_000_000


def test_a_start_with_a_million_accounts_is_quick_and_small(tmp_path: Path) -> None:
    store = Store(tmp_path, cluster_id=CLUSTER_ID, member=MEMBER)
    fill_accounts(store, ACCOUNTS)
    last = store.account(account_name(ACCOUNTS - 1))
    assert last is not None
    assert store.account(account_name(ACCOUNTS)) is None
    store.close()
    program = [sys.executable, "-m", "statemachine.store_fill", str(tmp_path)]
    measured = json.loads(subprocess.run(program, capture_output=True, check=True).stdout)
    assert measured["found"]
    assert measured["seconds"] < 5
    assert measured["peak_mib"] < 2048
