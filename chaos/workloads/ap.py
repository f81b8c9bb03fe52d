"""ap: at both gateways users add and remove alerts and write preferences, whatever is cut, and look at screens."""

from collections import deque

from chaos.workloads import at_gateways
from chaos.workloads.context import Context
from chaos.workloads.process import Process
from chaos.workloads.screens import warm
from chaos.workloads.workload import Workload
from chaos.workloads.zipf import Zipf

ACTIVE = 12
"""Users at a time; few write most."""
ADDS_MAX = 90
"""A user may have 100 alerts. One who added so many is left, and another begins."""
VALUES = ("leaderboard_name", "language")
LANGUAGES = ("en", "de", "fr", "pt-BR")


class User:
    """items: alerts that were added and acknowledged, with the gateway that said so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.adds = 0
        self.items: deque[tuple[str, str]] = deque()


class Ap(Workload):
    name = "ap"
    home = "gateways"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._made = 0
        self._places = Zipf(range(ACTIVE), skew=0.7)
        self._users = [self._new() for _ in range(ACTIVE)]

    def _new(self) -> User:
        self._made += 1
        name = f"user-{self.context.seed}-{self._made}"
        self.context.users.add(name)
        return User(name)

    async def setup(self) -> None:
        """An alert is taken of a symbol that has quotes."""
        await warm(self.context, self.name)

    async def step(self, process: Process) -> None:
        chance = process.chance
        place = self._places.one(chance)
        user = self._users[place]
        if user.adds >= ADDS_MAX:
            user = self._users[place] = self._new()
        drawn = chance.random()
        if drawn < 0.22:
            await self._add(process, user)
        elif drawn < 0.34 and user.items:
            await self._remove(process, user)
        elif drawn < 0.46:
            name = chance.choice(VALUES)
            value = chance.choice(LANGUAGES) if name == "language" else f"Bull {process.number} {chance.random():.6f}"
            await process.ask(at_gateways.set_value(user.name, name, value))
        elif drawn < 0.58:
            await process.ask(at_gateways.read_items(user.name))
        elif drawn < 0.66:
            await process.ask(at_gateways.read_values(user.name, VALUES))
        elif drawn < 0.84:
            await process.ask(at_gateways.read_quotes(self.context.symbols))
        elif drawn < 0.94 and self.context.accounts:
            await process.ask(at_gateways.read_portfolio(chance.choice(sorted(self.context.accounts))))
        else:
            await process.ask(at_gateways.read_leaderboard())

    async def _add(self, process: Process, user: User) -> None:
        """Each under an id of its own: what was added and never removed must be there in the end."""
        user.adds += 1
        item = f"p{process.number}-{user.adds}-{process.chance.randrange(16**6):06x}"
        target = process.somewhere()
        price = at_gateways.ALERT_PRICE + process.chance.randrange(1_000)
        reply = await process.ask(at_gateways.add(user.name, item, symbol=self.context.symbols[0], price=price), target)
        if reply.outcome == "ok":
            user.items.append((item, target))

    async def _remove(self, process: Process, user: User) -> None:
        """At the gateway that took it, or at the other, which may not know of it yet."""
        user.items.rotate(process.chance.randrange(8))
        item, target = user.items.popleft()
        if process.chance.random() < 0.3:
            target = process.home
        await process.ask(at_gateways.remove(user.name, item), target)
