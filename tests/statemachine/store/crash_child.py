"""A replica's life without a network: `python -m ... FOLDER BATCHES [STEP NTH]` dies at the nth STEP, if given."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_sealing import Retention
from tests.statemachine.store.log import make_log

FLUSH_EVERY = 7
SEAL_EVERY = 20
RETENTION = Retention(events_days=1, ledger_days=3, trades_days=30, closed_orders_days=2)


def die_at(step: str, nth: int) -> Callable[[str], None]:
    left = nth

    def failpoint(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return failpoint


def live(path: Path, batches: int, failpoint: Callable[[str], None]) -> None:
    """Replay from what is stored, to the end, flushing and sealing on the way."""
    store = Store(path, cluster_id="c1", member="m1", map_size_bytes=64 << 20, retention=RETENTION, failpoint=failpoint)
    machine = Machine(store, store.load(), accounts_cached=2)
    log = make_log(batches)
    for index in range(store.stored_index + 1, batches + 1):
        store.add(machine.apply(index, log[index - 1]))
        if index % FLUSH_EVERY == 0 or index == batches:
            store.flush(machine.collect())
        if index % SEAL_EVERY == 0 or index == batches:
            store.seal_and_prune()
    store.seal_and_prune()
    store.close()


if __name__ == "__main__":
    where, count = Path(sys.argv[1]), int(sys.argv[2])
    live(where, count, die_at(sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else die_at("", 0))
