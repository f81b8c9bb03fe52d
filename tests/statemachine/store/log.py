"""A log of real batches from a seed: a few accounts trade one instrument over some days."""

from random import Random

from statemachine.codec import Envelope, encode_batch, encode_command
from statemachine.commands import (
    AddAsset,
    AddInstrument,
    BeatSession,
    CancelAccountOrders,
    CancelOrder,
    Command,
    Deposit,
    OpenAccount,
    OpenSession,
    PlaceOrder,
    PostWithdrawal,
    RequestWithdrawal,
    SetReference,
    TimeStep,
    Transfer,
    VoidWithdrawal,
)
from statemachine.store_rows import DAY_US
from statemachine.types import OrderType, Side, TimeInForce

START_US = 20_000 * DAY_US
ACCOUNTS = ("anna", "bert", "cleo", "dora")
QUIET = "eddy"
"""Sends one command early and nothing after it."""


def setup() -> list[Envelope]:
    commands: list[Command] = [AddAsset("USD", 2, 10**15), AddAsset("XYZ", 0, 10**12)]
    commands.append(AddInstrument("XYZ-USD", "XYZ", "USD", 2, 0, 1, 1, 10, 20))
    for account in (*ACCOUNTS, QUIET):
        commands += [OpenAccount(account), Deposit(account, "USD", 10**10), Deposit(account, "XYZ", 10**7)]
    return [Envelope("@operator", f"setup-{n}", 0, encode_command(command)) for n, command in enumerate(commands)]


def one(random: Random, now_us: int) -> Envelope:
    """A command that a trader, a custodian, the feed or a member might send."""
    account = random.choice(ACCOUNTS)
    key = f"k{random.randrange(10**6)}"
    kind = random.randrange(20)
    price = random.randrange(9_990, 10_010)
    scope = account
    command: Command
    if kind < 12:
        command = PlaceOrder(
            account, "XYZ-USD", random.choice((Side.buy, Side.sell)), OrderType.limit,
            random.choice((TimeInForce.gtc, TimeInForce.gtc, TimeInForce.ioc, TimeInForce.day)),
            price, random.randrange(1, 50),
        )  # fmt: skip
    elif kind < 15:
        command = CancelOrder(account, random.randrange(1, 300))
    elif kind == 15:
        command = Transfer(account, random.choice(ACCOUNTS), "USD", random.randrange(1, 1_000))
        scope = "@custodian"
    elif kind == 16:
        number = random.randrange(1, 20)
        command = random.choice(
            (RequestWithdrawal(account, "USD", 500), PostWithdrawal(number), VoidWithdrawal(number))
        )
        scope = "@custodian"
    elif kind == 17:
        command = random.choice((OpenSession(account, "s1", 86_000_000), BeatSession(account, "s1")))
    elif kind == 18:
        command = CancelAccountOrders(account) if random.random() < 0.2 else SetReference("XYZ-USD", price, now_us)
        scope = "@feed"
    else:
        return Envelope("", "", 0, encode_command(TimeStep()))
    return Envelope(scope, key, 0, encode_command(command))


def make_log(batches: int, *, seed: int = 1, step_us: int = DAY_US // 25, commands_max: int = 8) -> list[bytes]:
    """Batch n is the entry of index n + 1; some commands come twice under one key."""
    random = Random(seed)
    log = [encode_batch(START_US, setup())]
    sent: list[Envelope] = []
    for number in range(1, batches):
        now_us = START_US + number * step_us
        commands = [one(random, now_us) for _ in range(random.randrange(commands_max))]
        if sent and random.random() < 0.3:
            commands.append(random.choice(sent[-40:]))
        if number == 1:
            commands.append(Envelope(QUIET, "only", 0, encode_command(CancelOrder(QUIET, 1))))
        sent += [command for command in commands if command.key]
        log.append(encode_batch(now_us, commands))
    return log
