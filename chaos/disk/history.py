"""A seeded log of real batches over many days: what a store under test applies, and the digests it must reach."""

from hashlib import blake2b
from random import Random

from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import AddAsset, AddInstrument, CancelOrder, Command, Deposit, OpenAccount, PlaceOrder
from statemachine.machine import Machine
from statemachine.memory import MemoryBacking
from statemachine.store_rows import DAY_US
from statemachine.types import OrderType, Side, TimeInForce

START_US = 20_000 * DAY_US
STEP_US = DAY_US // 120
"""A day every 120 batches, so that days are sealed and pruned under way."""
ACCOUNTS = ("anna", "bert", "cleo")


def payload(seed: int, index: int) -> bytes:
    """The batch of one index: the first sets everything up, the others trade."""
    if index == 1:
        commands: list[Command] = [AddAsset("USD", 2, 10**15), AddAsset("XYZ", 0, 10**12)]
        commands.append(AddInstrument("XYZ-USD", "XYZ", "USD", 2, 0, 1, 1, 10, 20))
        for account in ACCOUNTS:
            commands += [OpenAccount(account), Deposit(account, "USD", 10**10), Deposit(account, "XYZ", 10**7)]
        return encode_batch(
            START_US, [Envelope("@operator", f"first-{n}", 0, encode_command(one)) for n, one in enumerate(commands)]
        )
    random = Random(int.from_bytes(blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()))
    envelopes = []
    for number in range(random.randint(1, 8)):
        account = random.choice(ACCOUNTS)
        command: Command = PlaceOrder(
            account, "XYZ-USD", random.choice((Side.buy, Side.sell)), OrderType.limit,
            random.choice((TimeInForce.gtc, TimeInForce.ioc)), random.randint(9_990, 10_010), random.randint(1, 50),
        )  # fmt: skip
        if random.random() < 0.3:
            command = CancelOrder(account, random.randint(1, 4 * index))
        envelopes.append(Envelope(account, f"{index}-{number}", 0, encode_command(command)))
    return encode_batch(START_US + index * STEP_US, envelopes)


class Digests:
    """The digest that a machine has after each index, computed once, in memory."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._backing = MemoryBacking(keep_history=False)
        self._machine = Machine(self._backing)
        self._known: list[str] = [self._machine.digest.hex()]

    def at(self, index: int) -> str:
        while len(self._known) <= index:
            number = len(self._known)
            self._backing.write(self._machine.apply(number, payload(self._seed, number)))
            self._known.append(self._machine.digest.hex())
        return self._known[index]
