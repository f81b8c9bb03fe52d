"""Folders of runs in which all is well, made from a seed with the real machine in virtual time; tests then spoil them.

No network and no process: one log, and clients whose calls overlap. What they are told is rendered by the node's code.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from chaos.check.availability import GATEWAY_READS_MIN
from chaos.check.logged import lines
from chaos.history.file import write_final, write_lines
from chaos.history.records import Call, Event, Fault, Final, Line, Logged, Outcome, Phase, Replica, Return, Seen
from chaos.history.run import Planned, Run, write_run
from node.catalogue import Catalogue
from node.event_views import EventViews
from node.market import Market
from node.outcomes import at, rendered
from statemachine import commands as c
from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.decimals import text
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.records import OrderRecord
from statemachine.results import AnyResult, Refused, Repeat
from statemachine.types import OrderType, SelfTrade, Side, TimeInForce

START_US = 1_800_000_000_000_000
MS = 1_000_000
SYMBOL, REGISTERS = "ABC-USD", "REG-USD"
BANK, TRADERS, JOURNALS = ("bank-0", "bank-1", "bank-2"), ("trade-0", "trade-1", "trade-2"), ("list-0", "list-1")
NOBODY = ("nobody-0", "nobody-1", "nobody-2")
GATEWAYS = ("gateway-dc-a", "gateway-dc-b")
MEMBERS = ("dc-a", "dc-b")
PRICED = "PRI-USD"
APPENDS_MAX = 120
"""Then other journals and users take their turn, as in real runs: each read shows all of one."""
NOT_TOLD = frozenset({"key", "index", "replay", "code", "message", "field"})

Body = dict[str, Any]
Asked = tuple[str, str, Body, c.Command]
"""Kind, scope, args, and the command that a node makes of them."""


class Parts:
    """What a folder holds, open to change. history: lines in order of time."""

    def __init__(self, run: Run, history: list[Line], log: list[Logged], events: list[Event], final: Final) -> None:
        self.run = run
        self.history = history
        self.log = log
        self.events = events
        self.final = final

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        write_run(folder, self.run)
        write_lines(folder / "history.jsonl", self.history)
        write_lines(folder / "log.jsonl", self.log)
        write_lines(folder / "events.jsonl", self.events)
        write_final(folder / "final.json", self.final)
        return folder


class Past:
    """Closed orders by their id, as a store would find them."""

    def __init__(self) -> None:
        self.orders: dict[int, OrderRecord] = {}

    def closed_order(self, order_id: int) -> OrderRecord | None:
        return self.orders.get(order_id)


class Maker:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.backing = MemoryBacking(keep_history=True)
        self.machine = Machine(self.backing)
        self.past = Past()
        self.catalogue = Catalogue(self.machine, self.past)
        self.views = EventViews(self.catalogue)
        self.members: tuple[str, ...] = MEMBERS
        self.now_ns = 10**12
        self.index = 1
        self.op = 0
        self.keys = 0
        self.elements = 0
        self.free_ns: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.history: list[Line] = [Phase(self.now_ns, "start")]
        self.log: list[Logged] = lines(1, None)
        self.events: list[Event] = []
        self.results: dict[str, tuple[int, AnyResult, Asked]] = {}
        self.used: dict[str, Asked] = {}
        self.items: dict[str, set[str]] = {}
        self.values: dict[str, dict[str, str]] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.repeatable: list[str] = []
        self.journals = list(JOURNALS)
        self.appends = 0
        self.users = ["user-0", "user-1"]
        self.registers = dict.fromkeys(("reg-0", "reg-1"), "")
        self.old_reads: list[tuple[str, Body, int, Body]] = []

    # ---- the log ----

    def execute(self, key: str, asked: Asked) -> AnyResult:
        """One entry with one command. A repeat is answered as the first time."""
        self.index += 1
        stamp_us = START_US + self.now_ns // 1000
        payload = encode_batch(stamp_us, [Envelope(asked[1], key, 0, encode_command(asked[3]))])
        self.log += lines(self.index, payload)
        applied = self.machine.apply(self.index, payload)
        self.backing.write(applied)
        for row in applied.ledger_rows:
            told = [str(row.row), str(row.index), text(row.delta_units, 2), text(row.owned_units, 2)]
            self.rows.setdefault(row.account, []).append(told)
        self.past.orders.update((order.order_id, order) for order in applied.closed_orders)
        for seq, event in enumerate(applied.events):
            view = self.views.public(event, "", at(applied.time_us))
            kind = str(view.pop("type"))
            del view["position"]
            fields = msgspec.to_builtins(view)
            self.events.append(Event(self.now_ns, MEMBERS[self.index // 9 % 2], self.index, seq, kind, fields))
        result = applied.results[0]
        if not isinstance(result, Repeat) and key not in self.results:
            self.results[key] = (self.index, result, asked)
        return result

    def answer(self, index: int, result: AnyResult, asked: Asked) -> Body:
        if isinstance(result, Refused):
            return {"error": result.code.name}
        kind, scope, args, _ = asked
        order = self.catalogue.order(getattr(result, "order_id", 0))
        symbol = args.get("symbol") or (order.symbol if order is not None else "")
        market: Market | None = self.catalogue.market(symbol)
        account = str(args.get("account", args.get("source", scope)))
        answer = rendered("", index, False, result, market=market, scale=2, account=account)
        told = msgspec.to_builtins(answer)
        if kind == "replace_order":
            return {name: told[name] for name in ("id", "replaces", "kept_priority") if name in told}
        return {name: value for name, value in told.items() if name not in NOT_TOLD}

    # ---- calls ----

    def call(self, workload: str, kind: str, target: str, args: Body, key: str = "") -> tuple[int, int]:
        """(operation, process) that begins now; its call is in the history."""
        self.op += 1
        process = next((p for p, free_ns in self.free_ns.items() if free_ns < self.now_ns), len(self.free_ns) + 1)
        self.history.append(Call(self.op, process, self.now_ns, workload, kind, target, key, args))
        self.now_ns += self.random.randint(1, 400_000)
        return self.op, process

    def ends(self, op: int, process: int, outcome: Outcome, **told: Any) -> None:
        """A while from now, when others have begun."""
        ended_ns = self.now_ns + self.random.randint(1, 3 * MS)
        self.free_ns[process] = ended_ns
        self.history.append(Return(op, ended_ns, outcome, **told))

    def command(self, workload: str, asked: Asked, *, key: str = "", chance: float | None = None) -> AnyResult | None:
        """Send a command once. chance: below 0.02 it is refused at the door, below 0.06 nobody knows."""
        if not key:
            self.keys += 1
            key = f"key-{self.keys}"
            self.repeatable.append(key)
        drawn = self.random.random() if chance is None else chance
        op, process = self.call(workload, asked[0], self.random.choice(self.members), asked[2], key)
        self.used.setdefault(key, asked)
        if drawn < 0.02:
            self.ends(op, process, "fail", error="no_quorum")
            return None
        if drawn < 0.04:
            self.free_ns[process] = 2**62
            return None  # lost on its way
        before = self.index
        result = self.execute(key, asked)
        if drawn < 0.06:
            self.free_ns[process] = 2**62
            self.history.append(Return(op, self.now_ns + MS, "unknown", error="outcome_unknown"))
            return result
        index, first, _ = self.results[key] if isinstance(result, Repeat) else (self.index, result, asked)
        told = self.answer(index, first, asked)
        self.ends(op, process, "ok", index=index, replay=index <= before, answer=told)
        self.known[process] = max(self.known.get(process, 0), index)
        return first

    def read(self, workload: str, kind: str, args: Body, found: Callable[[], Body]) -> None:
        drawn = self.random.random()
        if drawn < 0.15 and self.old_reads:
            kind, args, index, answer = self.random.choice(self.old_reads[-9:])
            op, process = self.call(workload, kind, self.random.choice(self.members), {**args, "consistency": "local"})
            self.ends(op, process, "ok", index=index, answer=answer)
            return
        how = "session" if drawn < 0.3 else "linearizable"
        op, process = self.call(workload, kind, self.random.choice(self.members), {**args, "consistency": how})
        answer, index = found(), self.index
        self.old_reads.append((kind, args, index, answer))
        self.ends(op, process, "ok", index=index, answer=answer)

    # ---- what is read ----

    def balances(self, account: str) -> dict[str, list[str]]:
        record = self.machine.account(account)
        rows = () if record is None else record.balances
        return {asset: [text(free + held, 2), text(free, 2)] for asset, free, held in rows}

    def keys_of(self, account: str) -> list[str]:
        orders = sorted(self.machine.open_orders(account), key=lambda order: -order.order_id)
        return [order.key for order in orders]

    def price(self, symbol: str) -> str | None:
        record = self.machine.instrument(symbol)
        market = self.catalogue.market(symbol)
        if record is None or market is None or not record.reference_ticks:
            return None
        return market.price(record.reference_ticks)

    def outcome(self, key: str) -> Body:
        if key not in self.results:
            return {"none": True}
        index, result, asked = self.results[key]
        return {**self.answer(index, result, asked), "index": index}


# ---- what clients ask ----


def deposit(account: str, units: int, **more: Any) -> Asked:
    args = {"account": account, "asset": "USD", "amount": text(units, 2), **more}
    return "deposit", "@custodian", args, c.Deposit(account, "USD", units)


def transfer(source: str, target: str, units: int, **more: Any) -> Asked:
    args = {"source": source, "target": target, "asset": "USD", "amount": text(units, 2), **more}
    return "transfer", "@custodian", args, c.Transfer(source, target, "USD", units)


def opened(account: str) -> Asked:
    return "open_account", "@custodian", {"account": account}, c.OpenAccount(account)


def placed(account: str, symbol: str, side: Side, ticks: int, lots: int) -> Asked:
    args = {
        "account": account, "symbol": symbol, "side": side.name, "type": "limit", "qty": str(lots),
        "limit_price": text(ticks, 2),
    }  # fmt: skip
    command = c.PlaceOrder(account, symbol, side, OrderType.limit, TimeInForce.gtc, ticks, lots, 0, 0, False,
                           SelfTrade.cancel_oldest)  # fmt: skip
    return "place_order", account, args, command


def canceled(account: str, key: str) -> Asked:
    args = {"account": account, "original_client_order_id": key}
    return "cancel_order", account, args, c.CancelOrder(account, 0, key)


def swapped(account: str, expect: str, value: str, ticks: int) -> Asked:
    args = {"account": account, "original_client_order_id": expect, "symbol": REGISTERS, "register": account,
            "limit_price": text(ticks, 2), "f": "cas", "expect": expect, "value": value}  # fmt: skip
    return "replace_order", account, args, c.ReplaceOrder(account, 0, ticks, 0, expect, REGISTERS)


def priced(symbol: str, ticks: int, observed_at_us: int) -> Asked:
    args = {"symbol": symbol, "price": text(ticks, 2), "observed_at": at(observed_at_us), "register": symbol,
            "f": "write", "value": text(ticks, 2)}  # fmt: skip
    return "set_reference", "@feed", args, c.SetReference(symbol, ticks, observed_at_us)


def listed(symbol: str, base: str) -> Asked:
    args = {"symbol": symbol, "base": base, "quote": "USD", "tick_size": "0.01", "lot_size": "1"}
    return "add_instrument", "@operator", args, c.AddInstrument(symbol, base, "USD", 2, 0, 1, 1)


def asset(name: str) -> Asked:
    return "add_asset", "@operator", {"asset": name, "scale": 2}, c.AddAsset(name, 2, 2**60)


def holdings(account: str, name: str, units: int) -> Asked:
    args = {"account": account, "asset": name, "amount": text(units, 2)}
    return "deposit", "@custodian", args, c.Deposit(account, name, units)


# ---- a run ----


def make(seed: int, ops: int = 400) -> Parts:
    maker = Maker(seed)
    _set_up(maker)
    faults = _Faults(maker)
    for number in range(ops):
        faults.at(number / ops)
        _one(maker)
    for account in NOBODY:
        # Refused, so that nothing depends on their order but time.
        maker.now_ns += 10 * MS
        maker.command("orders", deposit(account, 100), key=f"for-{account}", chance=1.0)
    maker.now_ns += 10 * MS
    maker.command("idempotence", deposit(NOBODY[-1], 100), key=f"for-{NOBODY[-1]}", chance=1.0)
    for _ in range(GATEWAY_READS_MIN):
        for gateway in GATEWAYS:
            op, process = maker.call("screens", "read_quotes", gateway, {"symbols": [SYMBOL]})
            maker.ends(op, process, "ok", answer={"quotes": {}})
    faults.at(1.0)
    return _ended(maker)


def _set_up(maker: Maker) -> None:
    setup = [asset("USD"), asset("ABC"), asset("REG"), listed(SYMBOL, "ABC"), listed(REGISTERS, "REG")]
    setup.append(listed(PRICED, "REG"))
    setup += [opened(account) for account in (*BANK, *TRADERS, *JOURNALS, *maker.registers)]
    setup += [deposit(account, 100_000) for account in (*BANK, *TRADERS)]
    setup += [holdings(account, "ABC", 500_000) for account in TRADERS]
    setup += [holdings(account, "REG", 100) for account in maker.registers]
    for asked in setup:
        maker.command("setup", asked, chance=1.0)
        maker.now_ns += 4 * MS
    for account in maker.registers:
        maker.command("register", placed(account, REGISTERS, Side.sell, 10_000, 1), key=f"first-{account}", chance=1.0)
        maker.registers[account] = f"first-{account}"
        maker.now_ns += 4 * MS
    maker.history.append(Phase(maker.now_ns, "warmup"))


def _one(maker: Maker) -> None:
    random = maker.random
    maker.now_ns += random.randint(1, MS)
    drawn = random.random()
    if drawn < 0.20:
        source, target = random.sample(BANK, 2)
        maker.command("bank", transfer(source, target, random.choice((100, 2_500, 90_000))))
    elif drawn < 0.34:
        account = random.choice((*BANK, *TRADERS))
        maker.read("reads", "read_account", {"account": account}, lambda: {"balances": maker.balances(account)})
    elif drawn < 0.50:
        side, trader = random.choice((Side.buy, Side.sell)), random.choice(TRADERS)
        maker.command("orders", placed(trader, SYMBOL, side, random.randint(95, 105), random.randint(1, 9)))
    elif drawn < 0.55:
        _look_at_orders(maker, random.choice(TRADERS))
    elif drawn < 0.60 and maker.results:
        _repeat(maker)
    elif drawn < 0.72:
        _journal(maker)
    elif drawn < 0.84:
        _register(maker)
    else:
        _gateway(maker)


def _look_at_orders(maker: Maker, account: str) -> None:
    keys = maker.keys_of(account)
    if keys and maker.random.random() < 0.5:
        maker.command("orders", canceled(account, maker.random.choice(keys)))
        return
    order_id = maker.random.choice(list(islice(reversed(maker.past.orders), 40)) or [0])
    if order_id and maker.random.random() < 0.5:
        record = maker.past.orders[order_id]
        market = maker.catalogue.market(record.symbol)
        assert market is not None
        told = {"status": record.status.name, "filled_qty": market.quantity(record.filled_lots)}
        maker.read("reads", "read_order", {"order_id": str(order_id)}, lambda: told)
        return
    maker.read("orders", "read_open_orders", {"account": account}, lambda: {"keys": maker.keys_of(account)})


def _repeat(maker: Maker) -> None:
    """A key once more: with its body, or (now and then) with another; or its outcome is read."""
    key = maker.random.choice(maker.repeatable[-40:])
    asked = maker.used[key]
    drawn = maker.random.random()
    if drawn < 0.5:
        maker.command("idempotence", asked, key=key, chance=1.0)
    elif drawn < 0.7 and asked[0] == "deposit" and key in maker.results:
        other = deposit(asked[2]["account"], 77)
        maker.command("idempotence", other, key=key, chance=1.0)
    else:
        maker.read("idempotence", "read_outcome", {"of_key": key, "scope": asked[1]}, lambda: maker.outcome(key))


def _journal(maker: Maker) -> None:
    if maker.appends >= APPENDS_MAX:
        maker.appends = 0
        maker.journals += [f"list-{len(maker.journals)}", f"list-{len(maker.journals) + 1}"]
        for name in maker.journals[-2:]:
            maker.command("list-append", opened(name), chance=1.0)
            maker.now_ns += 4 * MS
    account, other = maker.random.sample(maker.journals[-2:], 2)
    drawn = maker.random.random()
    maker.elements += 1
    maker.appends += 1
    if drawn < 0.4:
        args = {"account": account, "asset": "USD"}
        maker.read("list-append", "read_ledger", args, lambda: {"rows": list(maker.rows.get(account, ()))})
    elif drawn < 0.8:
        units = 1_000_000 + maker.elements
        maker.command("list-append", deposit(account, units, element=text(units, 2)))
    else:
        units = maker.elements
        maker.command("list-append", transfer(account, other, units, element=text(units, 2)))


def _register(maker: Maker) -> None:
    random = maker.random
    account = random.choice(tuple(maker.registers))
    drawn = random.random()
    maker.elements += 1
    if drawn < 0.3:
        args = {"account": account, "register": account, "f": "read"}
        maker.read("register", "read_open_orders", args, lambda: {"value": maker.keys_of(account)[0]})
    elif drawn < 0.6:
        value = f"swap-{maker.elements}"
        expect = maker.registers[account] if random.random() < 0.9 else f"first-{account}"
        asked = swapped(account, expect, value, 10_000 + maker.elements)
        result = maker.command("register", asked, key=value)
        if result is not None and not isinstance(result, Refused):
            maker.registers[account] = value
    elif drawn < 0.8:
        maker.read("register", "read_reference", {"symbol": PRICED}, lambda: {"value": maker.price(PRICED)})
    else:
        ago_us = random.choice((0, 0, 0, 5_000_000))
        observed_at_us = START_US + maker.now_ns // 1000 - ago_us
        maker.command("register", priced(PRICED, 10_000 + maker.elements, observed_at_us))


def _gateway(maker: Maker) -> None:
    """Both sites know everything at once; that they may differ for a while is for the spoiled runs."""
    random = maker.random
    if len(maker.items.get(maker.users[-1], ())) >= APPENDS_MAX:
        maker.users += [f"user-{len(maker.users)}", f"user-{len(maker.users) + 1}"]
    gateway, user = random.choice(GATEWAYS), random.choice(maker.users[-2:])
    items, values = maker.items.setdefault(user, set()), maker.values.setdefault(user, {})
    drawn = random.random()
    if drawn < 0.3:
        item = f"item-{maker.op}"
        op, process = maker.call("ap", "add", gateway, {"user": user, "item": item})
        items.add(item)
        maker.ends(op, process, "ok", age_ms=0)
    elif drawn < 0.4 and items:
        item = random.choice(sorted(items))
        maker.now_ns += 4 * MS
        op, process = maker.call("ap", "remove", gateway, {"user": user, "item": item})
        items.discard(item)
        maker.ends(op, process, "ok", age_ms=0)
    elif drawn < 0.5:
        args = {"user": user, "name": "language", "value": random.choice(("de", "fr"))}
        maker.now_ns += 4 * MS
        op, process = maker.call("ap", "set", gateway, args)
        values["language"] = args["value"]
        maker.ends(op, process, "ok", age_ms=0)
        maker.now_ns += 4 * MS
    elif drawn < 0.7:
        op, process = maker.call("ap", "read_items", gateway, {"user": user})
        maker.ends(op, process, "ok", age_ms=0, answer={"items": sorted(items)})
    else:
        op, process = maker.call("ap", "read_portfolio", gateway, {"account": random.choice(TRADERS)})
        maker.ends(op, process, "ok", age_ms=random.randint(0, 50), answer={"index": maker.index})


class _Faults:
    """A cut of dc-b in the middle, during which it is asked and refuses."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.done: set[str] = set()

    def at(self, share: float) -> None:
        maker = self.maker
        if share >= 0.2:
            self.once("faults", lambda: maker.history.append(Phase(maker.now_ns, "faults")))
        if share >= 0.4:
            self.once("begin", self.begin)
        if share >= 0.6:
            self.once("end", self.end)
        if share >= 0.9:
            self.once("healing", lambda: maker.history.append(Phase(maker.now_ns, "healing")))
        if share >= 1.0:
            self.once("final", lambda: maker.history.append(Phase(maker.now_ns, "final")))

    def once(self, name: str, do: Callable[[], None]) -> None:
        if name not in self.done:
            self.done.add(name)
            do()

    def begin(self) -> None:
        maker = self.maker
        detail = {"majority": ["dc-a", "tiebreaker"], "minority": ["dc-b"], "took_ms": 5}
        maker.now_ns += 5 * MS
        maker.history.append(Fault(1, maker.now_ns, "isolate", "begin", ["dc-b"], detail))
        maker.now_ns += MS
        maker.history.append(Fault(1, maker.now_ns, "isolate", "bite", ["dc-b"], {"seen": "no answer"}))
        for _ in range(3):
            maker.keys += 1
            asked = transfer(*BANK[:2], 100)
            key = f"key-{maker.keys}"
            op, process = maker.call("bank", asked[0], "dc-b", asked[2], key)
            maker.used[key] = asked
            maker.ends(op, process, "fail", error="no_quorum")
            maker.now_ns += 5 * MS
        maker.members = ("dc-a",)

    def end(self) -> None:
        """And a long pause, after which whatever was read before is old."""
        self.maker.members = MEMBERS
        self.maker.now_ns += 5 * MS
        self.maker.history.append(Fault(1, self.maker.now_ns, "isolate", "end"))
        self.maker.now_ns += MS
        self.maker.command("bank", transfer(*BANK[:2], 100), chance=1.0)
        self.maker.now_ns += 10_000 * MS


def _ended(maker: Maker) -> Parts:
    maker.now_ns += 10 * MS
    maker.history.append(Phase(maker.now_ns, "end"))
    maker.history.append(Seen(maker.now_ns, "dc-a", True, "leader", 1, maker.index, maker.index))
    accounts = (*BANK, *TRADERS, *maker.journals, *maker.registers)
    digest = maker.machine.digest.hex()
    site = {
        user: {"items": sorted(maker.items.get(user, ())), "values": dict(maker.values.get(user, {}))}
        for user in maker.users
    }
    final = Final(
        True,
        index=maker.index,
        outcomes={key: maker.outcome(key) for key in maker.used},
        balances={account: maker.balances(account) for account in accounts},
        digests=[Replica(name, maker.index, digest) for name in ("dc-a", "dc-b")],
        digests_after_restart=[Replica(name, maker.index, digest) for name in ("dc-a", "dc-b")],
        sites={gateway: msgspec.convert(msgspec.to_builtins(site), dict[str, Any]) for gateway in GATEWAYS},
        converged_ms=120,
    )
    plan = [Planned(1, 1, 10, "isolate", ["dc-b"])]
    versions = {"commit": "0", "python": "3.11", "toxiproxy": "none"}
    command = "tiebreak chaos run isolate --seed 1"
    run = Run("isolate", 1, 10, "1+1+1", "hardened", "shipped", command, versions, "2026-01-01T00:00:00Z", plan,
              ["isolate"], 100, outage_ms_max=70)  # fmt: skip
    history = sorted(maker.history, key=lambda line: line.at_ns)
    return Parts(run, history, maker.log, maker.events, final)
