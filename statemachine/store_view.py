"""What a store's disk says: identity, current records, history. The store itself and the audit both read through it."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from msgspec import msgpack, structs

from statemachine.codec import UnknownFormat, oldest_bucket
from statemachine.history import History
from statemachine.records import (
    ACCOUNTS,
    ASSETS,
    INSTRUMENTS,
    ORDERS,
    RECORDS_VERSION,
    SESSIONS,
    SWEEPS,
    TABLES,
    WITHDRAWALS,
    AccountRecord,
    AssetRecord,
    InstrumentRecord,
    MetaRecord,
    OrderRecord,
    Record,
    SessionRecord,
    StoredState,
    SweepRecord,
    WithdrawalRecord,
    encode_record,
)
from statemachine.segments import Segment, SegmentEntry, decode_entry
from statemachine.store_files import StoreDamaged
from statemachine.store_pending import Generation
from statemachine.store_rows import Kind
from statemachine.store_sealing import CHAIN_START, Pruned, decode_pruned
from statemachine.store_tables import FIXED, IDENTITY_KEY, INFO, KEYS, META_KEY, PRUNED_KEY, SEGMENTS, Handle, Tables

R = TypeVar("R", bound=Record)


class Identity(Record, frozen=True):
    """Whose store this is; written once."""

    version: int
    cluster_id: str
    member: str


decode_identity = msgpack.Decoder(Identity).decode
decode_meta = msgpack.Decoder(MetaRecord).decode
decode_account = msgpack.Decoder(AccountRecord).decode


class View:
    """Opened tables, and history over them, the rows that wait included where there are any."""

    def __init__(self, tables: Tables, segments_path: Path, generations: list[Generation]) -> None:
        self.tables = tables
        self.segments_path = segments_path
        self.identity = self._info(IDENTITY_KEY, decode_identity)
        self.meta: MetaRecord | None = self._info(META_KEY, decode_meta)
        found = {kind: self._info(PRUNED_KEY + kind.encode(), decode_pruned) for kind in Kind}
        self.pruned: dict[Kind, Pruned] = {kind: pruned for kind, pruned in found.items() if pruned is not None}
        self.history = History(tables, generations)
        for entry in sorted(self._entries(), key=lambda entry: entry.day):
            self.history.logs[entry.kind].segments.append(Segment(segments_path, entry))
        if Kind.events in self.pruned:
            self.history.first_event_index = self.pruned[Kind.events].last_id + 1

    def _info(self, key: bytes, decode: Any) -> Any:
        value = self.tables.reader().get(key, db=self.tables.fixed[INFO])
        try:
            return None if value is None else decode(value)
        except ValueError as error:
            raise StoreDamaged(f"{self.tables.env.path()}: the record {key!r} can't be decoded: {error}") from error

    def _entries(self) -> list[SegmentEntry]:
        return [decode_entry(value) for _, value in self.tables.reader().cursor(self.tables.fixed[SEGMENTS])]

    def entries(self) -> list[SegmentEntry]:
        """The sealed segments, by kind and day."""
        return [segment.entry for log in self.history.logs.values() for segment in log.segments]

    def load(self) -> StoredState | None:
        """All current records but the accounts; None for an empty store. Raises StoreDamaged, UnknownFormat."""
        if self.meta is None:
            return None
        if self.meta.version != RECORDS_VERSION:
            path = self.tables.env.path()
            raise UnknownFormat(f"{path}: records version {self.meta.version}; this program knows {RECORDS_VERSION}")
        return StoredState(
            self.meta,
            list(self.records(ASSETS, AssetRecord)),
            list(self.records(INSTRUMENTS, InstrumentRecord)),
            list(self.records(ORDERS, OrderRecord)),
            list(self.records(WITHDRAWALS, WithdrawalRecord)),
            list(self.records(SESSIONS, SessionRecord)),
            list(self.records(SWEEPS, SweepRecord)),
        )

    def accounts(self) -> Iterator[AccountRecord]:
        return self.records(ACCOUNTS, AccountRecord)

    def records(self, table: str, record: type[R]) -> Iterator[R]:
        decode = msgpack.Decoder(record).decode
        cursor = self.tables.reader().cursor(self.tables.fixed[table])
        for key, value in cursor:
            try:
                decoded = decode(value)
            except ValueError as error:
                raise StoreDamaged(f"table {table}, key {key.hex()}: {error}") from error
            yield decoded

    def chain_at_end(self) -> bytes:
        """The ledger's hash chain after the newest sealed day."""
        segments = self.history.ledger_log.segments
        if segments:
            return segments[-1].entry.chain_after
        pruned = self.pruned.get(Kind.ledger)
        return pruned.chain if pruned else CHAIN_START

    def digest(self) -> bytes:
        """32 bytes over all current records and live keys: equal on two replicas that stand at one index."""
        digest = blake2b(digest_size=32)
        for name, key, value in self._current():
            digest.update(f"{name} {len(key)} {len(value)} ".encode())
            digest.update(key)
            digest.update(value)
        return digest.digest()

    def _current(self) -> Iterator[tuple[str, bytes, bytes]]:
        if self.meta is not None:
            yield INFO, META_KEY, encode_record(self.meta)
        # What is past retention goes at a replica's next flush, so one may have it and another not.
        live_from = oldest_bucket(self.meta.time_us) if self.meta else 0
        reader = self.tables.reader()
        for account in self.accounts():
            keys = [(bucket, count) for bucket, count in account.keys if bucket >= live_from]
            yield ACCOUNTS, account.account.encode(), encode_record(structs.replace(account, keys=keys))
        for table in TABLES:
            if table != ACCOUNTS:
                for key, value in reader.cursor(self.tables.fixed[table]):
                    yield table, key, value
        for bucket, handle in sorted(self.tables.families[KEYS].items()):
            if bucket >= live_from:
                for key, value in reader.cursor(handle):
                    yield f"{KEYS}.{bucket}", key, value

    def table_bytes(self) -> dict[str, int]:
        """Bytes of LMDB pages in use, by table or family."""
        reader = self.tables.reader()

        def pages(handle: Handle) -> int:
            stat: Any = reader.stat(handle)
            return int(stat["psize"]) * int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

        sizes = {name: pages(self.tables.fixed[name]) for name in FIXED if name in self.tables.fixed}
        for family, numbers in self.tables.families.items():
            sizes[family] = sum(pages(handle) for handle in numbers.values())
        return sizes

    def bytes_on_disk(self) -> dict[str, int]:
        """Bytes by kind: tables and sealed segments."""
        sizes = self.table_bytes()
        for kind, log in self.history.logs.items():
            sizes[f"{kind} (sealed)"] = sum(segment.entry.file_bytes for segment in log.segments)
        return sizes

    def bytes_per_order(self) -> dict[str, float]:
        """Bytes on disk by kind, divided by the orders ever entered."""
        orders = self.meta.next_order_id - 1 if self.meta else 0
        return {kind: size / orders for kind, size in self.bytes_on_disk().items()} if orders > 0 else {}
