"""bank: transfers between 64 accounts, few of them busy; now and then all of them are read at one index."""

from decimal import Decimal

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.process import Process, settle
from chaos.workloads.requests import plain
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ACCOUNTS = 64
"""As many as one token may name, so that one read shows them all."""
ASSET = "USD"
EACH = "1000"
CENTS_MAX = 500
TOO_MUCH = "1000000"
READ_ALL, READ_ONE, REFUSED = 0.06, 0.10, 0.02


class Bank(Workload):
    name = "bank"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.accounts = [f"bank-{number:02d}" for number in range(ACCOUNTS)]
        self._zipf = Zipf(self.accounts)

    async def setup(self) -> None:
        await settle(self.context, self.name, [[requests.add_asset(ASSET, scale=2, key=f"setup-asset-{ASSET}")]])
        rows = [
            [
                requests.open_account(account, key=f"setup-open-{account}"),
                requests.deposit(account, ASSET, EACH, key=f"setup-fund-{account}"),
            ]
            for account in self.accounts
        ]
        self.context.accounts.update(self.accounts)
        await settle(self.context, self.name, rows)

    async def step(self, process: Process) -> None:
        chance = process.chance
        drawn = chance.random()
        if drawn < READ_ALL:
            await process.ask(requests.read_accounts(self.accounts))
            return
        if drawn < READ_ALL + READ_ONE:
            await process.ask(requests.read_account(self._zipf.one(chance)))
            return
        source, target = self._zipf.two(chance)
        amount = TOO_MUCH if chance.random() < REFUSED else plain(Decimal(chance.randint(1, CENTS_MAX)) / 100)
        await process.ask(requests.transfer(source, target, ASSET, amount, key=process.new_key()))
