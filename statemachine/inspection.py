"""Audits what a stopped member has on disk, in a process of its own.

`python -m statemachine.inspection FOLDER` prints one JSON document. `inspect_store` runs that and reads
it: LMDB may abort, or be killed by SIGBUS, on a damaged file, and that is then a finding, not the end of
whoever asked.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import msgspec
from msgspec import Struct

from statemachine.audit import audit
from statemachine.codec import UnknownFormat
from statemachine.records import AccountRecord
from statemachine.segments import verify_segment
from statemachine.store_files import (
    DATA_FILE,
    SEGMENTS_FOLDER,
    ForeignStore,
    ReaderLock,
    StoreDamaged,
    StoreError,
    StoreLocked,
)
from statemachine.store_rows import Kind
from statemachine.store_sealing import CHAIN_START, extend_chain
from statemachine.store_tables import FIXED, Tables, open_read_only, verify_pages
from statemachine.store_view import View

FINDINGS_MAX = 100
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ForeignStore, StoreDamaged, StoreLocked, UnknownFormat)
}


class Inspection(Struct, frozen=True):
    """What the disk of one member holds, and what is wrong with it. Digests are hex; sizes are bytes.

    findings: empty when all holds; at most FINDINGS_MAX.
    counts: records and rows by kind.
    """

    path: str
    findings: list[str]
    cluster_id: str = ""
    member: str = ""
    applied_index: int = 0
    time_us: int = 0
    digest: str = ""
    state_digest: str = ""
    orders_entered: int = 0
    counts: dict[str, int] = {}
    bytes_on_disk: dict[str, int] = {}
    bytes_per_order: dict[str, float] = {}
    first_event_index: int = 0

    @property
    def holds(self) -> bool:
        return not self.findings


class _Failed(Struct, frozen=True):
    error: str
    message: str


class _Outcome(Struct, frozen=True):
    inspection: Inspection | None = None
    failed: _Failed | None = None


def inspect_store(path: Path) -> Inspection:
    """Audit the store in `path`; the member must be stopped. Nothing is changed.

    Raises StoreLocked (it runs), ForeignStore (no store), UnknownFormat (another version's), StoreDamaged
    (so damaged that no figures can be given).
    """
    program = [sys.executable, "-m", "statemachine.inspection", str(path)]
    done = subprocess.run(program, capture_output=True, check=False)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return Inspection(str(path), [f"the audit was killed by {name} while LMDB read data.mdb: the file is damaged"])
    try:
        outcome = msgspec.json.decode(done.stdout, type=_Outcome)
    except msgspec.MsgspecError as error:
        last_line = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise StoreDamaged(f"{path}: the audit stopped: {last_line}") from error
    if outcome.failed is not None:
        raise ERRORS.get(outcome.failed.error, StoreError)(outcome.failed.message)
    if outcome.inspection is None:
        raise StoreDamaged(f"{path}: the audit said nothing")
    return outcome.inspection


def state_digest(path: Path) -> str:
    """Hex digest over all current records of a stopped member: equal on replicas that stopped at one index."""
    with opened(path) as view:
        return view.digest().hex()


@contextmanager
def opened(path: Path) -> Iterator[View]:
    """The stopped store in `path`, for reading, in this process."""
    if not (path / DATA_FILE).is_file():
        raise ForeignStore(f"{path} is no store: it has no {DATA_FILE}")
    lock = ReaderLock(path)
    try:
        env = open_read_only(path)
        try:
            tables = Tables(env)
            tables.open_all()
            missing = [name for name in FIXED if name not in tables.fixed]
            if len(missing) == len(FIXED) and not env.dbs():
                raise ForeignStore(f"{path} holds a store that was never written to")
            if missing:
                raise ForeignStore(f"{path} is no store of ours: it has no table {missing[0]}")
            yield View(tables, path / SEGMENTS_FOLDER, [])
            tables.renew()
        finally:
            env.close()
    finally:
        lock.release()


def inspect_here(path: Path) -> Inspection:
    """The audit itself. A badly damaged file may end this process."""
    if not (path / DATA_FILE).is_file():
        raise ForeignStore(f"{path} is no store: it has no {DATA_FILE}")
    findings = verify_pages(path)
    if findings:
        # LMDB would trust these pages. What it then reads proves nothing and may kill us.
        raise StoreDamaged(f"{path}: " + "; ".join(findings[:5]))
    with opened(path) as view:
        for entry in view.entries():
            wrong = verify_segment(view.segments_path, entry)
            if wrong is not None:
                findings.append(wrong)
        counts: dict[str, int] = {}
        if findings:
            findings.append("history was not read: a sealed segment is damaged")
        else:
            try:
                findings += check_ledger(view, counts)
                findings += check_history(view, counts)
            except msgspec.MsgspecError as error:
                findings.append(f"history was not read to its end: a row can't be decoded: {error}")
        findings += check_state(view, counts, with_ledger=not findings)
        meta, identity = view.meta, view.identity
        return Inspection(
            str(path),
            findings[:FINDINGS_MAX],
            identity.cluster_id if identity else "",
            identity.member if identity else "",
            meta.applied_index if meta else 0,
            meta.time_us if meta else 0,
            meta.digest.hex() if meta else "",
            view.digest().hex(),
            meta.next_order_id - 1 if meta else 0,
            counts,
            view.bytes_on_disk(),
            view.bytes_per_order(),
            view.history.first_event_index,
        )


def check_ledger(view: View, counts: dict[str, int]) -> list[str]:
    """Recompute the hash chain over every row that is held, and compare it at each seal and at the head."""
    findings = []
    pruned = view.pruned.get(Kind.ledger)
    chain = pruned.chain if pruned else CHAIN_START
    expected = pruned.last_id + 1 if pruned else 1
    starts = {segment.entry.first_id: segment.entry for segment in view.history.ledger_log.segments}
    ends = {segment.entry.last_id: segment.entry for segment in view.history.ledger_log.segments}
    rows = 0
    for index, group in groupby(view.history.ledger_log.iterate(), key=lambda row: row.index):
        batch = list(group)
        for row in batch:
            if row.row != expected:
                findings.append(f"ledger: row {row.row} of index {index} where row {expected} should be")
            expected = row.row + 1
        entry = starts.get(batch[0].row)
        if entry is not None and entry.chain_before != chain:
            findings.append(f"{entry.file}: the hash chain does not continue the one before it")
        chain = extend_chain(chain, batch)
        rows += len(batch)
        entry = ends.get(batch[-1].row)
        if entry is not None and entry.chain_after != chain:
            findings.append(f"{entry.file}: the hash chain at row {batch[-1].row} is not the one sealed")
    counts["ledger rows"] = rows
    meta = view.meta
    if meta is not None and (chain != meta.ledger_chain or expected != meta.next_ledger_row):
        findings.append(
            f"ledger: the chain over row {expected - 1} is {chain.hex()}, the state says "
            f"{meta.ledger_chain.hex()} after row {meta.next_ledger_row - 1}"
        )
    return findings


def check_history(view: View, counts: dict[str, int]) -> list[str]:
    """Trades are numbered without a gap, events go forward up to the applied index, closed orders are not open."""
    findings = []
    meta = view.meta
    next_trade_id, next_order_id, applied_index = (
        (meta.next_trade_id, meta.next_order_id, meta.applied_index) if meta else (1, 1, 0)
    )
    pruned = view.pruned.get(Kind.trades)
    expected = pruned.last_id + 1 if pruned else 1
    trades = 0
    for trade in view.history.trade_log.iterate():
        if trade.trade_id != expected:
            findings.append(f"trades: {trade.trade_id} where {expected} should be")
        expected = trade.trade_id + 1
        trades += 1
    if expected != next_trade_id:
        findings.append(f"trades: the last is {expected - 1}, the state says {next_trade_id - 1}")
    last_index = view.history.first_event_index - 1
    batches = 0
    for batch in view.history.event_log.iterate():
        if batch.index <= last_index:
            findings.append(f"events: index {batch.index} after index {last_index}")
        last_index = batch.index
        batches += 1
    if last_index > applied_index:
        findings.append(f"events: the last index is {last_index}, but only {applied_index} is applied")
    closed = 0
    state = view.load()
    open_ids = {order.order_id for order in state.orders} if state else set()
    for order in view.history.closed_log.iterate():
        if order.order_id in open_ids or order.order_id >= next_order_id:
            findings.append(f"order {order.order_id} is closed, and open or not yet entered")
        closed += 1
    counts["trades"] = trades
    counts["event batches"] = batches
    counts["closed orders"] = closed
    return findings


def check_state(view: View, counts: dict[str, int], *, with_ledger: bool) -> list[str]:
    """The machine's own audit over all current records; with the ledger where all of it is held."""
    state = view.load()
    if state is None:
        return []
    counts["accounts"] = 0

    def counted() -> Iterator[AccountRecord]:
        for account in view.accounts():
            counts["accounts"] += 1
            yield account

    for table, records in (
        ("assets", state.assets),
        ("instruments", state.instruments),
        ("open orders", state.orders),
        ("withdrawals", state.withdrawals),
        ("sessions", state.sessions),
    ):
        counts[table] = len(records)
    whole = with_ledger and Kind.ledger not in view.pruned
    return audit(state, counted(), view.history.ledger_log.iterate() if whole else None)


def main(path: Path) -> None:
    """Print the outcome of an audit as JSON."""
    try:
        outcome = _Outcome(inspection=inspect_here(path))
    except (StoreError, UnknownFormat) as error:
        name = next((name for name, known in ERRORS.items() if isinstance(error, known)), "StoreError")
        outcome = _Outcome(failed=_Failed(name, str(error)))
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
