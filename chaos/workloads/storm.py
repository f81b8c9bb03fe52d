"""snapshot-storm: a state that grows and a log that turns over fast, so that members compact it again and again, and
one that was away finds that the log no longer has what it lacks.

How soon a log is compacted is for whoever starts the members: with low thresholds a run sees it many times. Now and
then each member is asked where its log begins, which shows whether it happened.
"""

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.process import Process, settle
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ASSET = "USD"
BURST = 4
"""Commands in a row, without a pause."""
ACCOUNTS_FIRST = 20
ACCOUNTS_MAX = 400


class Storm(Workload):
    name = "snapshot-storm"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._made = 0
        self._opened: list[str] = []

    async def setup(self) -> None:
        await settle(self.context, self.name, [[requests.add_asset(ASSET, scale=2, key=f"setup-asset-{ASSET}")]])
        names = [self._name() for _ in range(ACCOUNTS_FIRST)]
        rows = [
            [
                requests.open_account(account, key=f"setup-open-{account}"),
                requests.deposit(account, ASSET, "1000", key=f"setup-fund-{account}"),
            ]
            for account in names
        ]
        await settle(self.context, self.name, rows)
        self._opened = names

    def _name(self) -> str:
        self._made += 1
        account = f"storm-{self.context.seed}-{self._made}"
        self.context.accounts.add(account)
        return account

    async def step(self, process: Process) -> None:
        chance = process.chance
        if chance.random() < 0.04:
            await process.ask(requests.read_status(), process.elsewhere() if chance.random() < 0.5 else "")
            return
        for _ in range(BURST):
            if len(self._opened) < ACCOUNTS_MAX and chance.random() < 0.1:
                account = self._name()
                opened = await process.ask(requests.open_account(account, key=process.new_key()))
                if opened.outcome == "ok":
                    self._opened.append(account)
            else:
                source, target = Zipf(self._opened[-100:]).two(chance)
                if chance.random() < 0.7:
                    request = requests.deposit(source, ASSET, f"{chance.randint(1, 900)}", key=process.new_key())
                else:
                    request = requests.transfer(source, target, ASSET, "0.25", key=process.new_key())
                await process.ask(request)
