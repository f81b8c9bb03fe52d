"""The made-up market that every run trades in: accounts, money, one instrument; and intents as commands."""

from collections.abc import Iterator

from bench.flow import Act, Intent
from bench.lobster import PRICE_SCALE
from cluster import wire
from statemachine import commands
from statemachine.types import Mode, OrderType, Side, TimeInForce

CASH = "USD"
CASH_SCALE = PRICE_SCALE
"""One tick of one share is one unit."""
MAKER_BPS = 1
TAKER_BPS = 3
CASH_EACH = 10_000_000_000
SHARES_EACH = 1_000_000_000
MAKERS = 8
TAKERS = 4


class Market:
    """Names and sizes of one run's market."""

    def __init__(self, symbol: str, *, makers: int = MAKERS, takers: int = TAKERS) -> None:
        self.symbol = symbol
        # Each market has traders of its own, so that several can be replayed into one cluster.
        prefix = "".join(letter if letter.isalnum() else "-" for letter in symbol.lower())
        self.makers = [f"{prefix}-maker-{number:02}" for number in range(makers)]
        self.takers = [f"{prefix}-taker-{number:02}" for number in range(takers)]

    @property
    def accounts(self) -> list[str]:
        return [*self.makers, *self.takers]

    def account(self, intent: Intent) -> str:
        return (self.takers if intent.act == Act.take else self.makers)[intent.account]

    def opening_commands(self) -> Iterator[tuple[str, commands.Command]]:
        """(scope, command) that make the market, for the bare machine."""
        yield "@operator", commands.AddAsset(CASH, CASH_SCALE, 2**62)
        yield "@operator", commands.AddAsset(self.symbol, 0, 2**62)
        yield (
            "@operator",
            commands.AddInstrument(self.symbol, self.symbol, CASH, PRICE_SCALE, 0, 1, 1, MAKER_BPS, TAKER_BPS),
        )
        for account in self.accounts:
            yield "@custodian", commands.OpenAccount(account)
            yield "@custodian", commands.Deposit(account, CASH, CASH_EACH * 10**CASH_SCALE)
            yield "@custodian", commands.Deposit(account, self.symbol, SHARES_EACH)

    def listing_requests(self) -> list[wire.AnyRequest]:
        """What an operator sends to list the instrument."""
        return [
            wire.AddAsset(asset=CASH, scale=CASH_SCALE),
            wire.AddAsset(asset=self.symbol, scale=0),
            wire.AddInstrument(
                symbol=self.symbol,
                base=self.symbol,
                quote=CASH,
                tick_size=_dollars(1),
                lot_size="1",
                maker_bps=MAKER_BPS,
                taker_bps=TAKER_BPS,
            ),
        ]

    def account_requests(self) -> list[wire.AnyRequest]:
        """What a custodian sends to open the accounts."""
        return [wire.OpenAccount(account=account) for account in self.accounts]

    def deposit_requests(self) -> list[wire.AnyRequest]:
        """What a custodian sends to fund the accounts."""
        return [
            wire.TransferFunds(kind="deposit", account=account, asset=asset, amount=amount)
            for account in self.accounts
            for asset, amount in ((CASH, str(CASH_EACH)), (self.symbol, str(SHARES_EACH)))
        ]

    def command(self, intent: Intent, order: str) -> tuple[str, commands.Command]:
        """(scope, command) for the bare machine. order: the key of the order that it changes."""
        account = self.account(intent)
        match intent.act:
            case Act.place | Act.take:
                return account, commands.PlaceOrder(
                    account,
                    self.symbol,
                    Side(intent.side),
                    OrderType.limit,
                    TimeInForce.gtc if intent.act == Act.place else TimeInForce.ioc,
                    intent.price,
                    intent.quantity,
                )
            case Act.reduce:
                return account, commands.ReplaceOrder(account, 0, 0, intent.quantity, order, self.symbol)
            case Act.cancel:
                return account, commands.CancelOrder(account, 0, order)
            case _:
                return "@operator", commands.SetMode(self.symbol, Mode(intent.quantity))

    def request(self, intent: Intent, key: str, order: str, sent_at: str) -> wire.AnyRequest:
        """The same for the public API, under `key`. A halt needs an operator's token."""
        account = self.account(intent)
        match intent.act:
            case Act.place | Act.take:
                return wire.PlaceOrder(
                    key=key,
                    sent_at=sent_at,
                    account=account,
                    symbol=self.symbol,
                    side="buy" if intent.side == Side.buy else "sell",
                    type="limit",
                    time_in_force="gtc" if intent.act == Act.place else "ioc",
                    qty=intent.quantity,
                    limit_price=_dollars(intent.price),
                )
            case Act.reduce:
                return wire.ReplaceOrder(
                    key=key,
                    sent_at=sent_at,
                    account=account,
                    original_client_order_id=order,
                    symbol=self.symbol,
                    qty=intent.quantity,
                )
            case Act.cancel:
                return wire.CancelOrder(key=key, sent_at=sent_at, account=account, original_client_order_id=order)
            case _:
                mode: wire.ModeWord = _MODE_WORDS[intent.quantity]
                return wire.ChangeInstrument(key=key, sent_at=sent_at, symbol=self.symbol, mode=mode)


_MODE_WORDS: dict[int, wire.ModeWord] = {Mode.trading: "trading", Mode.post_only: "post_only", Mode.halted: "halted"}


def _dollars(price: int) -> str:
    return f"{price // 10**PRICE_SCALE}.{price % 10**PRICE_SCALE:0{PRICE_SCALE}}"
