"""Fills a store with many accounts, for tests and measurements of what a start costs.

`python -m statemachine.store_fill FOLDER` opens a store as a member would and prints seconds and memory.
"""

import json
import resource
import sys
import time
from pathlib import Path

from statemachine.machine import Machine
from statemachine.records import ACCOUNTS, ASSETS, AccountRecord, AssetRecord, Changes, MetaRecord, encode_record
from statemachine.state import empty_state
from statemachine.store import Store

CHUNK = 50_000
CLUSTER_ID = "filled"
MEMBER = "filled"
HELD = ("USD", "XYZ")


def account_name(number: int) -> str:
    return f"acct-{number:09d}"


def fill_accounts(store: Store, count: int) -> None:
    """Write `count` accounts with empty balances, CHUNK in a flush; each flush is one index further."""
    meta = empty_state().meta
    index = store.stored_index
    for start in range(0, count, CHUNK):
        index += 1
        changes = Changes(at_index(meta, index))
        changes.puts = [(ASSETS, asset.encode(), encode_record(AssetRecord(asset, 2, 10**15))) for asset in HELD]
        for number in range(start, min(start + CHUNK, count)):
            name = account_name(number)
            record = AccountRecord(name, 10_000_000, [(asset, 0, 0) for asset in HELD], [], 0, 0, 0)
            changes.puts.append((ACCOUNTS, name.encode(), encode_record(record)))
        store.flush(changes)


def at_index(meta: MetaRecord, index: int) -> MetaRecord:
    return MetaRecord(
        meta.version,
        index,
        index,
        meta.digest,
        meta.ledger_chain,
        meta.next_order_id,
        meta.next_trade_id,
        meta.next_ledger_row,
        meta.next_withdrawal_id,
        meta.rules_version,
        False,
        [],
    )


def measure_start(path: Path) -> dict[str, float]:
    """Open a filled store, restore a machine from it, read one account: seconds, and peak memory in MiB."""
    began = time.perf_counter()
    store = Store(path, cluster_id=CLUSTER_ID, member=MEMBER)
    machine = Machine(store, store.load())
    found = machine.account(account_name(0)) is not None
    seconds = time.perf_counter() - began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    store.close()
    return {"seconds": seconds, "peak_mib": peak_mib, "found": float(found)}


if __name__ == "__main__":
    print(json.dumps(measure_start(Path(sys.argv[1]))))
