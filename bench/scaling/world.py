"""A state of any size, written straight into a store: accounts with money, instruments, orders that rest in books.

What is written is what the machine would have stored, had it taken the deposits and the orders; the audit finds nothing
wrong with it. The history that led there is taken for pruned. One seed is one world.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, structs

from bench.market import CASH, CASH_SCALE, MAKER_BPS, TAKER_BPS
from bench.replay import START_US
from bench.running import RunError
from statemachine.commands import Calendar, Limits
from statemachine.fees import hold_for_buy
from statemachine.records import (
    ACCOUNTS,
    ASSETS,
    INSTRUMENTS,
    ORDERS,
    AccountRecord,
    AssetRecord,
    Changes,
    InstrumentRecord,
    MetaRecord,
    OrderRecord,
    encode_record,
    id_key,
)
from statemachine.state import empty_state
from statemachine.store import Store
from statemachine.store_fill import account_name
from statemachine.store_rows import Kind, day_of
from statemachine.store_sealing import CHAIN_START, Pruned
from statemachine.store_tables import INFO, PRUNED_KEY
from statemachine.types import OPEN_ORDERS_MAX, WORLD, Mode, OrderType, Reason, SelfTrade, Side, Status, TimeInForce

CASH_EACH_UNITS = 200_000_000_000
"""20 million dollars: 2 * 10**7 accounts of it are just below what may exist of one asset."""
LOTS_EACH = 1_000_000_000
SUPPLY_UNITS_MAX = 2**62
MID_TICKS = 1_000_000
"""100 dollars. Bids rest below it and asks above, so that resting orders never meet."""
CENT_TICKS = 100
DISTANCE_SCALE, DISTANCE_CENTS_MAX = 13, 600
"""As in bench.generator: P(distance >= k cents) = 13 / (12 + k)."""
HELD_SYMBOLS = 20
"""An account holds shares of so many symbols at most."""
FIRST_LEDGER_ROW = 1_000_001
"""Rows before it are taken for pruned."""
CHUNK = 250_000
STORE_BYTES_EACH = 83
"""On disk for an account of one symbol, measured; a further symbol takes POSITION_BYTES_EACH more."""
POSITION_BYTES_EACH = 18
ORDER_BYTES_EACH = 120
ROOM_FACTOR = 2.5
"""A filled store and a copy that a run changes; its flushes write pages anew before the old ones are free."""


class World(Struct, frozen=True):
    """How large. open_orders are spread over all symbols, one after the other; who placed them is drawn uniformly.

    start_us: the time at which all of it was entered.
    """

    accounts: int
    symbols: int = 1
    open_orders: int = 1_000
    seed: int = 1
    start_us: int = START_US

    @property
    def groups(self) -> int:
        """Accounts of one group hold the same symbols."""
        return -(-self.symbols // HELD_SYMBOLS)

    def holders(self, group: int) -> int:
        return (self.accounts - group + self.groups - 1) // self.groups

    def symbols_of(self, group: int) -> range:
        return range(group * HELD_SYMBOLS, min(self.symbols, (group + 1) * HELD_SYMBOLS))


class Resting(NamedTuple):
    """An open order; account and symbol by number."""

    order_id: int
    account: int
    symbol: int
    side: Side
    price_ticks: int
    lots: int


def symbol_name(number: int) -> str:
    return f"S{number:05d}"


def distance_cents(draw: float) -> int:
    """How far from the middle an order rests; draw: from 0 to 1, 1 excluded."""
    return min(DISTANCE_CENTS_MAX, int(DISTANCE_SCALE / (1.0 - draw)) - DISTANCE_SCALE + 1)


def price_ticks(side: Side, cents: int) -> int:
    return MID_TICKS - cents * CENT_TICKS if side is Side.buy else MID_TICKS + cents * CENT_TICKS


def check_world(world: World) -> None:
    """Raises RunError: too few accounts for so many symbols, or more open orders than accounts may have."""
    if world.symbols < 1 or world.open_orders < 0:
        raise RunError(f"{world.symbols} symbols with {world.open_orders} open orders: at least one symbol")
    if world.accounts < 2 * world.groups:
        raise RunError(
            f"{world.symbols} symbols need {2 * world.groups} accounts at least, not {world.accounts}: "
            f"an account holds {HELD_SYMBOLS} symbols at most, and each symbol has two holders"
        )
    if world.open_orders > world.accounts * OPEN_ORDERS_MAX // 2:
        raise RunError(f"{world.open_orders} open orders are too many for {world.accounts} accounts")


def check_room(folder: Path, world: World) -> None:
    """Raises RunError, with what is needed and what is free."""
    needed = int(ROOM_FACTOR * store_bytes(world))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{world.accounts:,} accounts and {world.open_orders:,} open orders need about {needed / 2**30:.1f} GiB in "
            f"{folder}, where {free / 2**30:.1f} GiB are free: choose fewer, or another folder with --folder"
        )


def store_bytes(world: World) -> int:
    """About what a filled store takes on disk."""
    held = min(world.symbols, HELD_SYMBOLS)
    return world.accounts * (STORE_BYTES_EACH + POSITION_BYTES_EACH * (held - 1)) + world.open_orders * ORDER_BYTES_EACH


def resting(world: World) -> Iterator[Resting]:
    """The open orders, by ascending id."""
    draw = random.Random(f"world {world.seed}").random
    groups, symbols = world.groups, world.symbols
    for number in range(world.open_orders):
        symbol = number % symbols
        side = Side.buy if number // symbols % 2 else Side.sell
        if side is Side.buy:
            account = int(draw() * world.accounts)
        else:
            group = symbol // HELD_SYMBOLS
            account = group + groups * int(draw() * world.holders(group))
        price = price_ticks(side, distance_cents(draw()))
        yield Resting(number + 1, account, symbol, side, price, 1 + int(draw() * 200))


def hold_units(order: Resting) -> int:
    if order.side is Side.sell:
        return order.lots
    return hold_for_buy(order.lots * order.price_ticks, max(MAKER_BPS, TAKER_BPS))


def fill(store: Store, world: World) -> None:
    """Write the world into an empty store, as of index 0. Raises RunError: it can't be.

    Accounts come in the order of their keys and orders in that of their ids, so LMDB fills page after page.
    """
    check_world(world)
    check_room(store.path, world)
    meta = structs.replace(
        empty_state().meta,
        ledger_chain=CHAIN_START,
        time_us=world.start_us,
        next_order_id=world.open_orders + 1,
        next_ledger_row=FIRST_LEDGER_ROW,
    )
    changes = Changes(meta)
    _list(changes, world)
    held = _place(store, changes, world)
    for changes in _accounts(world, held, meta):
        store.flush(changes)


def _list(changes: Changes, world: World) -> None:
    puts = changes.puts
    pruned = Pruned(day_of(world.start_us) - 1, FIRST_LEDGER_ROW - 1, CHAIN_START)
    puts.append((INFO, PRUNED_KEY + Kind.ledger.encode(), encode_record(pruned)))
    puts.append((ASSETS, CASH.encode(), encode_record(AssetRecord(CASH, CASH_SCALE, SUPPLY_UNITS_MAX))))
    owed = [(CASH, -CASH_EACH_UNITS * world.accounts, 0)]
    limits = Limits(open_orders_max=OPEN_ORDERS_MAX)
    for number in range(world.symbols):
        symbol = symbol_name(number)
        puts.append((ASSETS, symbol.encode(), encode_record(AssetRecord(symbol, 0, SUPPLY_UNITS_MAX))))
        listing = InstrumentRecord(
            symbol, symbol, CASH, CASH_SCALE, 0, 1, 1, Mode.trading, MAKER_BPS, TAKER_BPS, limits, Calendar(), 0, 0, 0
        )
        puts.append((INSTRUMENTS, symbol.encode(), encode_record(listing)))
        owed.append((symbol, -LOTS_EACH * world.holders(number // HELD_SYMBOLS), 0))
    puts.append((ACCOUNTS, WORLD.encode(), encode_record(AccountRecord(WORLD, 0, owed, [], 0, 0, 0))))


def _place(store: Store, changes: Changes, world: World) -> dict[int, Counter[str]]:
    """Write the orders; what they hold, by account and asset. `changes` holds what is to be written with the first."""
    held: dict[int, Counter[str]] = {}
    meta = changes.meta
    for order in resting(world):
        symbol, units = symbol_name(order.symbol), hold_units(order)
        mine = held.get(order.account)
        if mine is None:
            mine = held[order.account] = Counter()
        mine[CASH if order.side is Side.buy else symbol] += units
        record = OrderRecord(
            order.order_id, account_name(order.account), symbol, order.side, OrderType.limit, TimeInForce.gtc,
            order.price_ticks, order.lots, 0, 0, False, SelfTrade.cancel_newest, "", f"w{order.order_id}",
            MAKER_BPS, TAKER_BPS, Status.new, Reason.none, 0, order.lots, 0, 0, 0, 0, units,
            order.order_id, 0, 0, 0, world.start_us, world.start_us, 0,
        )  # fmt: skip
        changes.puts.append((ORDERS, id_key(order.order_id), encode_record(record)))
        if len(changes.puts) >= CHUNK:
            store.flush(changes)
            changes = Changes(meta)
    store.flush(changes)
    return held


def _accounts(world: World, held: dict[int, Counter[str]], meta: MetaRecord) -> Iterator[Changes]:
    templates = [_template(world, group) for group in range(world.groups)]
    groups = world.groups
    for start in range(0, world.accounts, CHUNK):
        changes = Changes(meta)
        puts = changes.puts
        for number in range(start, min(start + CHUNK, world.accounts)):
            name = account_name(number)
            mine = held.get(number)
            if mine is None:
                key = name.encode()
                before, after = templates[number % groups]
                puts.append((ACCOUNTS, key, before + key + after))
            else:
                record = _account(world, name, number % groups, mine)
                puts.append((ACCOUNTS, name.encode(), encode_record(record)))
        yield changes


def _account(world: World, name: str, group: int, held: Counter[str]) -> AccountRecord:
    owned = [(CASH, CASH_EACH_UNITS), *((symbol_name(number), LOTS_EACH) for number in world.symbols_of(group))]
    balances = [(asset, units - held[asset], held[asset]) for asset, units in owned]
    for asset, available_units, _ in balances:
        if available_units < 0:
            raise RunError(f"{name} would hold more {asset} than it owns: choose more accounts, or fewer open orders")
    return AccountRecord(name, 10**9, balances, [], 0, 0, 0)


def _template(world: World, group: int) -> tuple[bytes, bytes]:
    """The encoded account of a group around its name: all names are equally long, and encoding each would cost most."""
    name = account_name(0)
    before, _, after = encode_record(_account(world, name, group, Counter())).partition(name.encode())
    return before, after


def forget_pages(folder: Path) -> None:
    """Write a stopped store's file out and let the system drop it from memory, so that reads go to the disk."""
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def load_pages(folder: Path) -> None:
    """Read a store's file once, so that it is in the system's memory, page by page as LMDB's own reads bring it there.

    Reading ahead would bring it in larger pieces, and a page that is then written counts as its whole piece: 18 KiB
    written for a command instead of 4, in a process's account of its writes, while the disk wrote the same.
    """
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            while os.read(fd, 1 << 22):
                pass
        finally:
            os.close(fd)
