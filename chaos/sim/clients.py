"""Clients of a run: they send commands with keys, try again with the same key, read, and remember every answer."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from chaos.sim.chance import Chance
from chaos.sim.checks import Violation
from chaos.sim.member import Member, Surroundings
from chaos.sim.model import Model
from cluster.topology import MemberRole
from statemachine.codec import Envelope, encode_command
from statemachine.commands import AddAsset, Command, Deposit, OpenAccount, Transfer

ASSETS = ("USD", "BTC")
SUPPLY_MAX = 10**15

Words = tuple[object, ...]


class Load(Struct, frozen=True):
    """think_us: the most that a client waits between two operations. reads, repeats: per mille of operations."""

    clients: int
    accounts: int
    think_us: int
    reads: int
    repeats: int
    patience_us: int
    way_us: tuple[int, int]


class Acknowledged(Struct, frozen=True):
    index: int
    words: Words


class SeenRead(Struct, frozen=True):
    index: int
    account: str
    asset: str
    units: int


class Clients:
    """acknowledged: what was answered, by (scope, key). never: refused for certain, then given up."""

    def __init__(self, around: Surroundings, chance: Chance, load: Load) -> None:
        self.around = around
        self.chance = chance
        self.load = load
        self.names = [f"acc{i}" for i in range(load.accounts)]
        self.acknowledged: dict[tuple[str, str], Acknowledged] = {}
        self.never: dict[tuple[str, str], None] = {}
        self.reads: list[SeenRead] = []
        self.counters: Counter[str] = around.counters
        self.newest_index = 0  # the highest index that any client was told, by a write or a read
        self.busy = 0
        self.stopped = False
        self._keys = 0
        self.clients = [Client(self, number) for number in range(load.clients)]

    def any_replica(self) -> Member:
        """One that does not lead will do, and so will one that is down, or that was removed and does not know."""
        members = self.around.members.values()
        return self.chance.pick([m for m in members if m.role is MemberRole.replica and not m.retired])

    def start(self) -> None:
        """The operator lists assets and opens accounts; the traders don't wait for it."""
        setup: list[tuple[str, Command]] = [("@operator", AddAsset(asset, 2, SUPPLY_MAX)) for asset in ASSETS]
        for name in self.names:
            setup.append(("@custodian", OpenAccount(name)))
            setup.extend(("@custodian", Deposit(name, asset, 1_000)) for asset in ASSETS)
        operator = Client(self, -1, script=[self.envelope(scope, command) for scope, command in setup])
        for client in (operator, *self.clients):
            self.around.world.at(self.chance.between(1_000, 100_000), client.next)

    def envelope(self, scope: str, command: Command) -> Envelope:
        self._keys += 1
        return Envelope(scope, f"k{self._keys}", 0, encode_command(command))

    def random_command(self) -> Envelope:
        chance = self.chance
        asset = chance.pick(ASSETS)
        if chance.happens(150):
            return self.envelope("@custodian", Deposit(chance.pick(self.names), asset, chance.between(1, 500)))
        source, target = chance.some(self.names, 2)
        if chance.happens(500):
            source, target = target, source
        return self.envelope(source, Transfer(source, target, asset, chance.between(1, 800)))

    def finish(self, applied: dict[int, bytes], last_index: int) -> None:
        """All is quiet: replay what was committed in an independent ledger, compare every answer and every read."""
        model = Model()
        by_index: dict[int, list[SeenRead]] = {}
        for read in self.reads:
            by_index.setdefault(read.index, []).append(read)
        for index in range(last_index + 1):
            if index in applied:
                model.apply(index, applied[index])
            for read in by_index.pop(index, ()):
                units = model.owned.get((read.account, read.asset), 0)
                if units != read.units:
                    raise Violation("reads_right", f"{read.account} {read.asset} at {index}: {read.units}, not {units}")
        if by_index:
            raise Violation("reads_right", f"reads at {min(by_index)}, the log ends at {last_index}")
        for key, answer in self.acknowledged.items():
            right = model.answers.get(key)
            if right is None:
                raise Violation("acknowledged_kept", f"{key} was acknowledged at {answer.index}; it is not in the log")
            if (right.index, right.words) != (answer.index, answer.words):
                raise Violation("answers_right", f"{key} was answered {answer}, it is {right}")
        for key in self.never:
            if key in model.answers:
                raise Violation("refused_stays_out", f"{key} was refused, yet executed at {model.answers[key].index}")


class Client:
    """One operation at a time. It tries until it is answered; each try may go to another member."""

    def __init__(self, all_: Clients, number: int, script: list[Envelope] | None = None) -> None:
        self.all = all_
        self.number = number
        self.script = script
        self.done: list[Envelope] = []
        self.serial = 0  # of the operation under way; answers to older ones are late
        self.floor = 0

    def next(self) -> None:
        clients, chance = self.all, self.all.chance
        if self.script is not None:
            if self.script:
                self._begin()
                self._write(self.script.pop(0), 0)
            return
        if clients.stopped:
            return
        self._begin()
        draw = chance.below(1000)
        if draw < clients.load.reads:
            self._read(chance.pick(clients.names), chance.pick(ASSETS))
        elif draw < clients.load.reads + clients.load.repeats and self.done:
            self._write(chance.pick(self.done), 0)
        else:
            self._write(clients.random_command(), 0)

    def _begin(self) -> None:
        self.all.busy += 1
        self.serial += 1
        self.floor = self.all.newest_index

    def _end(self) -> None:
        clients = self.all
        clients.busy -= 1
        self.serial += 1
        think_us = clients.load.think_us if self.script is None else 2_000
        clients.around.world.at(clients.chance.between(1_000, max(1_001, think_us)), self.next)

    # -- writes ----------------------------------------------------------------------------------

    def _write(self, envelope: Envelope, tries: int) -> None:
        clients, world = self.all, self.all.around.world
        member = clients.any_replica()
        serial = self.serial

        def answered(answer: tuple[int, Words] | None) -> None:
            world.at(clients.chance.between(*clients.load.way_us), self._answered, serial, envelope, tries, answer)

        world.at(clients.chance.between(*clients.load.way_us), member.submit, member.incarnation, envelope, answered)
        world.at(clients.load.patience_us, self._timed_out, serial, envelope, tries)

    def _timed_out(self, serial: int, envelope: Envelope, tries: int) -> None:
        if serial != self.serial:
            return
        self.all.counters["timeouts"] += 1
        self.serial += 1
        self._write(envelope, tries + 1)

    def _answered(self, serial: int, envelope: Envelope, tries: int, answer: tuple[int, Words] | None) -> None:
        clients = self.all
        if answer is not None:
            self._check(envelope, answer)
        if serial != self.serial:
            return
        if answer is not None:
            self.done.append(envelope)
            del self.done[:-20]
            self._end()
            return
        key = (envelope.scope, envelope.key)
        if tries == 0 and key not in clients.acknowledged and self.script is None and clients.chance.happens(250):
            clients.never[key] = None
            self._end()
            return
        self.serial += 1
        clients.around.world.at(clients.chance.between(5_000, 100_000), self._again, self.serial, envelope, tries + 1)

    def _again(self, serial: int, envelope: Envelope, tries: int) -> None:
        if serial == self.serial:
            self._write(envelope, tries)

    def _check(self, envelope: Envelope, answer: tuple[int, Words]) -> None:
        clients = self.all
        key = (envelope.scope, envelope.key)
        seen = Acknowledged(*answer)
        first = clients.acknowledged.setdefault(key, seen)
        if first != seen:
            raise Violation("same_answer", f"{key} was answered {first}, then {seen}")
        if first is seen:
            clients.counters["acknowledged"] += 1
            if seen.index <= self.floor:
                raise Violation(
                    "real_time", f"{key} took effect at {seen.index}; it was sent after {self.floor} was known"
                )
        clients.newest_index = max(clients.newest_index, seen.index)
        clients.around.world.trace("client", self.number, *key, "answered", *seen.words, "at", seen.index)

    # -- reads -----------------------------------------------------------------------------------

    def _read(self, account: str, asset: str) -> None:
        clients, world = self.all, self.all.around.world
        member = clients.any_replica()
        serial, floor = self.serial, clients.newest_index

        def way() -> int:
            return clients.chance.between(*clients.load.way_us)

        def answered(found: tuple[int, int] | None) -> None:
            world.at(way(), self._has_read, serial, floor, account, asset, found)

        world.at(
            clients.chance.between(*clients.load.way_us), member.read, member.incarnation, account, asset, answered
        )
        world.at(clients.load.patience_us, self._read_timed_out, serial, account, asset)

    def _read_timed_out(self, serial: int, account: str, asset: str) -> None:
        if serial == self.serial:
            self.serial += 1
            self._read(account, asset)

    def _has_read(self, serial: int, floor: int, account: str, asset: str, found: tuple[int, int] | None) -> None:
        clients = self.all
        if found is not None:
            index, units = found
            clients.counters["reads"] += 1
            if index < floor:
                raise Violation("reads_linearizable", f"a read saw index {index}; {floor} was known before it began")
            clients.newest_index = max(clients.newest_index, index)
            clients.reads.append(SeenRead(index, account, asset, units))
            clients.around.world.trace("client", self.number, "reads", account, asset, units, "at", index)
        if serial != self.serial:
            return
        if found is not None:
            self._end()
            return
        self.serial += 1
        clients.around.world.at(clients.chance.between(5_000, 100_000), self._read_again, self.serial, account, asset)

    def _read_again(self, serial: int, account: str, asset: str) -> None:
        if serial == self.serial:
            self._read(account, asset)
