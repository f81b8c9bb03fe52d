"""A state that is written straight into a store is one that the machine could have made, and its traffic fits it."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from bench.running import RunError
from bench.scaling.applying import Applying
from bench.scaling.traffic import HOT_EVERY, Draw, Traffic, drawn
from bench.scaling.world import (
    CASH_EACH_UNITS,
    LOTS_EACH,
    World,
    check_room,
    check_world,
    fill,
    forget_pages,
    load_pages,
    resting,
    store_bytes,
    symbol_name,
)
from statemachine.codec import decode_batch, decode_command
from statemachine.commands import CancelOrder, PlaceOrder
from statemachine.inspection import inspect_store
from statemachine.machine import Machine
from statemachine.store import Store
from statemachine.store_fill import account_name
from statemachine.types import OPEN_ORDERS_MAX, Side

WORLDS = [World(2, 1, 0), World(50, 1, 300), World(60, 45, 500)]


def store_of(folder: Path) -> Store:
    return Store(folder / "store", cluster_id="c", member="m")


def filled(folder: Path, world: World) -> Store:
    store = store_of(folder)
    fill(store, world)
    store.close()
    return store_of(folder)


@pytest.mark.parametrize("world", WORLDS)
def test_the_audit_finds_nothing_wrong_before_and_after_traffic(world: World, tmp_path: Path) -> None:
    filled(tmp_path, world).close()
    found = inspect_store(tmp_path / "store")
    assert found.findings == []
    assert found.counts["accounts"] == world.accounts + 1
    assert found.counts["open orders"] == world.open_orders
    assert found.counts["instruments"] == world.symbols
    store = store_of(tmp_path)
    applying = Applying(store, Machine(store, store.load()))
    traffic = Traffic(world)
    times, commands = applying.run(list(traffic.batches(1_000, 30)))
    applying.stop()
    store.close()
    assert (len(times), commands, applying.refused) == (34, 1_000, {})
    found = inspect_store(tmp_path / "store")
    assert found.findings == []
    assert found.counts["open orders"] == world.open_orders + traffic.placed - traffic.canceled - traffic.taken
    assert found.counts["trades"] == traffic.taken > 0


def test_accounts_are_as_the_machine_reads_them(tmp_path: Path) -> None:
    world = World(60, 45, 40)
    store = filled(tmp_path, world)
    try:
        machine = Machine(store, store.load())
        busy = {order.account for order in resting(world)}
        assert {number % world.groups for number in range(world.accounts) if number not in busy} == {0, 1, 2}
        for number in range(world.accounts):
            account = machine.account(account_name(number))
            assert account is not None
            owned = {asset: available + held for asset, available, held in account.balances}
            shares = {symbol_name(one): LOTS_EACH for one in world.symbols_of(number % world.groups)}
            assert owned == {"USD": CASH_EACH_UNITS, **shares}
        assert [len(world.symbols_of(group)) for group in range(world.groups)] == [20, 20, 5]
    finally:
        store.close()


def test_what_can_not_be_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="45 symbols need 6 accounts at least, not 5"):
        check_world(World(5, 45))
    with pytest.raises(RunError, match="at least one symbol"):
        check_world(World(5, 0))
    with pytest.raises(RunError, match="open orders are too many"):
        check_world(World(2, 1, OPEN_ORDERS_MAX + 1))
    check_world(World(2, 1, OPEN_ORDERS_MAX))
    with pytest.raises(RunError, match=r"1,000,000,000,000 accounts .* need about [\d.]+ GiB in .*, where [\d.]+ GiB"):
        check_room(tmp_path, World(10**12))
    check_room(tmp_path, World(1_000))


def test_the_room_that_is_asked_for_is_about_what_it_takes(tmp_path: Path) -> None:
    for number, world in enumerate((World(100_000), World(20_000, 30, 10_000))):
        filled(tmp_path / str(number), world).close()
        taken = (tmp_path / str(number) / "store" / "data.mdb").stat().st_size
        assert 0.8 < store_bytes(world) / taken < 1.3


def test_one_seed_is_one_traffic() -> None:
    world = World(100, 10, 50)
    once, again = (list(Traffic(world, seed=3).batches(200, 50)) for _ in range(2))
    assert once == again
    assert once != list(Traffic(world, seed=4).batches(200, 50))
    stamps = [decode_batch(payload).stamp_us for payload in once]
    assert [later - earlier for earlier, later in pairwise(stamps)] == [1_000] * 3


@pytest.mark.parametrize(("how", "share"), [("uniform", 0.2), ("skewed", 0.8)])
def test_a_fifth_gets_the_share_of_orders_that_it_should(how: Draw, share: float) -> None:
    world = World(1_000, 10, 100)
    scopes: Counter[int] = Counter()
    symbols: Counter[str] = Counter()
    for payload in Traffic(world, accounts=how, symbols=how).batches(10_000, 100):
        for envelope in decode_batch(payload).commands:
            command = decode_command(envelope.body)
            if isinstance(command, PlaceOrder):
                if command.side is Side.buy:
                    scopes[int(envelope.scope.rpartition("-")[2]) % HOT_EVERY] += 1
                symbols[command.symbol] += 1
            else:
                assert isinstance(command, CancelOrder)
    assert scopes[0] / scopes.total() == pytest.approx(share, abs=0.05)
    assert (symbols[symbol_name(0)] + symbols[symbol_name(5)]) / symbols.total() == pytest.approx(share, abs=0.05)
    assert len(symbols) == 10


@pytest.mark.parametrize("count", [1, 4, 5, 6, 11, 1_000])
@pytest.mark.parametrize("how", ["uniform", "skewed"])
def test_whatever_is_drawn_is_there(count: int, how: Draw) -> None:
    steps = [at / 64 for at in range(64)] + [0.999999]
    got = {drawn(draw, share, count, how) for draw in steps for share in (0.0, 0.79, 0.81, 0.999)}
    assert min(got) == 0
    assert max(got) == count - 1 or count == 1_000
    assert got == set(range(count)) or count == 1_000


def test_a_file_leaves_the_page_cache_and_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    forget_pages(tmp_path)
    load_pages(tmp_path)
    assert (tmp_path / "one").read_bytes() == b"x" * 100_000
