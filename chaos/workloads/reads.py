"""reads: linearizable ones from every replica, sessions that go from one member to another, and local ones, which may
be old and say at which index they are true; some by way of a gateway."""

from msgspec.structs import replace

from chaos.workloads import requests
from chaos.workloads.context import Context
from chaos.workloads.operation import Request
from chaos.workloads.process import Process, settle
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ACCOUNTS = 12
ASSET = "USD"
WRITES = 0.30
BY_GATEWAY = 0.08


class Reads(Workload):
    name = "reads"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.accounts = [f"reads-{number:02d}" for number in range(ACCOUNTS)]
        self._zipf = Zipf(self.accounts)

    async def setup(self) -> None:
        await settle(self.context, self.name, [[requests.add_asset(ASSET, scale=2, key=f"setup-asset-{ASSET}")]])
        self.context.accounts.update(self.accounts)
        rows = [[requests.open_account(account, key=f"setup-open-{account}")] for account in self.accounts]
        await settle(self.context, self.name, rows)

    async def step(self, process: Process) -> None:
        chance = process.chance
        account = self._zipf.one(chance)
        drawn = chance.random()
        if drawn < WRITES:
            amount = f"{chance.randint(1, 99)}"
            reply = await process.ask(requests.deposit(account, ASSET, amount, key=process.new_key()))
            if reply.outcome == "ok" and chance.random() < 0.5:
                # Its own write, elsewhere.
                await process.ask(self._session(process, account), process.elsewhere())
        elif drawn < 0.65:
            await process.ask(requests.read_account(account), self._where(process))
        elif drawn < 0.80:
            await process.ask(self._session(process, account), self._where(process))
        else:
            await process.ask(requests.read_account(account, consistency="local"), self._where(process))

    def _session(self, process: Process, account: str) -> Request:
        """seen: the newest index that this client knows of; what it reads must not be older."""
        if not process.session:
            return requests.read_account(account)
        request = requests.read_account(account, consistency="session", session=process.session)
        return replace(request, args={**request.args, "seen": process.seen})

    def _where(self, process: Process) -> str:
        """Any replica, and its home as often as all others."""
        if process.chance.random() < BY_GATEWAY and self.context.gateways:
            return process.chance.choice(list(self.context.gateways))
        return process.elsewhere() or process.home if process.chance.random() < 0.5 else process.home
