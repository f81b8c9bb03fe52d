"""list-append: each account's journal is a list; deposits and transfers append to one or two of them, reads see all.

A ledger row says no key, so what is appended is the amount, and no two of a run are equal.
"""

from decimal import Decimal

from msgspec.structs import replace

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.operation import Request
from chaos.workloads.process import Process, settle
from chaos.workloads.requests import plain
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ACTIVE = 8
APPENDS_MAX = 80
"""Then a journal is left, and another begun: each read shows all rows."""
ASSET = "USD"
DEPOSIT_CENTS = 10_000_000
"""Deposits are above this and transfers below, so that there is always money to transfer."""


class Journal:
    def __init__(self, account: str, making: Request) -> None:
        self.account = account
        self.making: Request | None = making
        self.appends = 0


class Journals(Workload):
    name = "list-append"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._made = 0
        self._elements = 0
        self._places = Zipf(range(ACTIVE), skew=0.7)
        self._active = [self._new() for _ in range(ACTIVE)]

    async def setup(self) -> None:
        await settle(self.context, self.name, [[requests.add_asset(ASSET, scale=2, key=f"setup-asset-{ASSET}")]])

    def _new(self) -> Journal:
        self._made += 1
        account = f"journal-{self.context.seed}-{self._made}"
        self.context.accounts.add(account)
        return Journal(account, requests.open_account(account, key=f"open-{account}"))

    def _element(self, above_cents: int) -> str:
        self._elements += 1
        return plain(Decimal(above_cents + self._elements) / 100)

    async def step(self, process: Process) -> None:
        chance = process.chance
        place, other = self._places.two(chance)
        journal, second = self._active[place], self._active[other]
        if journal.appends >= APPENDS_MAX:
            journal = self._active[place] = self._new()
        if journal.making is not None:
            if (await process.ask(journal.making)).outcome == "ok":
                journal.making = None
            return
        drawn = chance.random()
        if drawn < 0.25:
            await process.ask(requests.read_ledger(journal.account, ASSET))
            return
        journal.appends += 1
        if drawn < 0.50 and journal.appends > 2 and second.making is None:
            second.appends += 1
            element = self._element(0)
            request = requests.transfer(journal.account, second.account, ASSET, element, key=process.new_key())
        else:
            element = self._element(DEPOSIT_CENTS)
            request = requests.deposit(journal.account, ASSET, element, key=process.new_key())
        await process.ask(replace(request, args={**request.args, "element": element}))
