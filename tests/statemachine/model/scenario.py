"""From a few bytes per step to commands that meet each other: few accounts, two books, prices within six ticks.

Steps are bytes rather than drawn fields because hypothesis makes and shrinks them fast; what a step means
depends only on the bytes and on where the model stands, so that a failure repeats and shrinks.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from chaos.check.ledger import Model
from statemachine.codec import Envelope, encode_command
from statemachine.commands import (
    ActivateRules,
    AddAsset,
    AddInstrument,
    BeatSession,
    Calendar,
    CancelAccountOrders,
    CancelInstrumentOrders,
    CancelOrder,
    CloseSession,
    Command,
    Deposit,
    Limits,
    OpenAccount,
    OpenSession,
    PlaceOrder,
    PostWithdrawal,
    ReplaceOrder,
    ReportDigest,
    RequestWithdrawal,
    SessionHours,
    SetCalendar,
    SetFees,
    SetLimits,
    SetMode,
    SetReference,
    TimeStep,
    Transfer,
    VoidWithdrawal,
)
from statemachine.types import Mode, OrderType, SelfTrade, Side, TimeInForce

T = TypeVar("T")
STEP_BYTES = 14
START_US = 1_750_086_000_000_000
"""Monday 16 June 2025, 15:00 UTC: day 20255 since 1970."""
SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US

ACCOUNTS = ("ann", "bob", "cid")
SYMBOLS = ("AAA-USD", "BBB-AAA")
ASSETS = ("USD", "AAA", "BBB")
SESSIONS = ("s1", "s2", "s3")

ALWAYS = Calendar()
LONG_DAY = SessionHours(0, 1_440)
WEEK = Calendar(weekly=(LONG_DAY,) * 7)
OFFICE = Calendar(weekly=(SessionHours(540, 1_020),) * 5 + (None, None), utc_offset_minutes=60)
NIGHT = Calendar(weekly=(SessionHours(1_080, 1_740),) * 7, utc_offset_minutes=-300)
HOLIDAY = Calendar(weekly=(LONG_DAY,) * 7, exceptions=((20_256, None), (20_257, SessionHours(0, 720))))
OVERLAPPING = Calendar(weekly=(SessionHours(600, 2_400),) * 7, utc_offset_minutes=-90)
CALENDARS = (ALWAYS, WEEK, OVERLAPPING, HOLIDAY, OFFICE, NIGHT)
BAD_CALENDARS = (
    Calendar(weekly=(None,)),
    Calendar(weekly=(LONG_DAY,) * 6),
    Calendar(weekly=(SessionHours(9, 9),) * 7),
    Calendar(exceptions=((20_256, None),)),
    Calendar(weekly=(LONG_DAY,) * 7, exceptions=((20_256, None), (20_256, LONG_DAY))),
)
FEES = ((0, 0), (10, 25), (1_000, 1_000), (0, 33), (777, 0), (333, 700), (50, 500), (500, 50))
TICKS_US = (0, 0, -SECOND_US, 1, 2, 1_000, 100_000, 200_000)
STEPS_US = (SECOND_US, SECOND_US, 6 * SECOND_US, 90 * SECOND_US)
LEAPS_US = (HOUR_US, 7 * HOUR_US, 13 * HOUR_US, 25 * HOUR_US)


class Shape(NamedTuple):
    """What one example starts with."""

    fees: int
    band_bps: int
    collar_bps: int
    open_orders_max: int
    calendar: int
    lot: int
    cash: int
    reference: int


def choose(options: Sequence[T], byte: int) -> T:
    return options[byte % len(options)]


def listing(shape: Shape) -> list[Command]:
    limits = Limits(
        quantity_lots_max=8,
        notional_units_min=0,
        notional_units_max=1_900,
        reference_age_us_max=30 * SECOND_US,
        open_orders_max=shape.open_orders_max,
        band_bps=shape.band_bps,
        collar_bps=shape.collar_bps,
    )
    maker, taker = FEES[shape.fees]
    # AAA is base of one and quote of the other: a fee, a hold and a delivery can meet in one balance.
    listed = [
        AddInstrument("AAA-USD", "AAA", "USD", 1, 0, 1, shape.lot, maker, taker, limits, CALENDARS[shape.calendar]),
        AddInstrument("BBB-AAA", "BBB", "AAA", 0, 1, 1, 10, taker, maker, limits, ALWAYS),
    ]
    return [AddAsset("USD", 2, 10**9), AddAsset("AAA", 1, 10**6), AddAsset("BBB", 0, 10**5), *listed]


def funding(shape: Shape) -> list[Command]:
    opened: list[Command] = [
        OpenAccount(account, keys_max) for account, keys_max in zip(ACCOUNTS, (40, 40, 20), strict=True)
    ]
    for account in ACCOUNTS:
        opened += [Deposit(account, "USD", shape.cash), Deposit(account, "AAA", 4 * shape.cash // 10)]
        opened.append(Deposit(account, "BBB", 30))
    if shape.reference:
        opened += [SetReference(symbol, shape.reference, START_US) for symbol in SYMBOLS]
    return opened


def ahead_us(byte: int) -> int:
    """How far a step's batch is stamped after the one before: mostly next to nothing, sometimes a day."""
    if byte < 216:
        return choose(TICKS_US, byte)
    return choose(STEPS_US, byte) if byte < 250 else choose(LEAPS_US, byte)


class Writer:
    """Turns steps into envelopes, looking at the model for ids and time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.keys = 0
        self.sent: list[Envelope] = []
        self.digests = 0

    def internal(self, command: Command) -> Envelope:
        return Envelope("@member", "", 0, encode_command(command))

    def keyed(self, command: Command, scope: str, sent_at_us: int = 0) -> Envelope:
        self.keys += 1
        envelope = Envelope(scope, f"k{self.keys}", sent_at_us, encode_command(command))
        self.sent.append(envelope)
        return envelope

    def opening(self, shape: Shape) -> list[Envelope]:
        return [self.keyed(command, "@operator") for command in (*listing(shape), *funding(shape))]

    def step(self, step: bytes) -> Envelope:
        kind, key = step[0], step[12]
        if self.sent and key >= 246:
            return self.again(choose(self.sent[-12:], step[1]), step)
        command = self.command(kind, step)
        if isinstance(command, TimeStep | BeatSession | ReportDigest) and key < 240:
            return self.internal(command)
        if key in (244, 245):
            return Envelope("@operator", "", 0, encode_command(command))
        sent = choose((-30 * HOUR_US, -23 * HOUR_US, 0, 9 * 60 * SECOND_US, 11 * 60 * SECOND_US), step[13])
        sent_at_us = self.model.now + sent if key >= 228 else 0
        account = getattr(command, "account", "") or getattr(command, "source", "")
        trader = isinstance(command, PlaceOrder | ReplaceOrder | CancelOrder | Transfer | CancelAccountOrders)
        return self.keyed(command, account if trader and account else "@operator", sent_at_us)

    def again(self, earlier: Envelope, step: bytes) -> Envelope:
        """An earlier key: with the same body, or with another."""
        if step[2] % 3:
            return earlier
        body = encode_command(Deposit("ann", "USD", 1 + step[3]))
        return Envelope(earlier.scope, earlier.key, earlier.sent_at_us, body)

    def command(self, kind: int, step: bytes) -> Command:
        if kind < 152:
            return self.place(step)
        if kind < 178:
            return self.replace(step)
        if kind < 184:
            account, order_id = self.target(step)
            return CancelOrder(account, *self.named(order_id, step))
        if kind < 187:
            symbol = choose(("", "", *SYMBOLS, "NONE"), step[2])
            return CancelAccountOrders(self.account(step), symbol)
        if kind < 189:
            return CancelInstrumentOrders(choose((*SYMBOLS, *SYMBOLS, "NONE"), step[2]))
        if kind < 200:
            return TimeStep()
        if kind < 214:
            return self.price(step)
        if kind < 226:
            return self.session(step)
        if kind < 238:
            return self.money(step)
        return self.rare(step)

    def account(self, step: bytes) -> str:
        return choose(ACCOUNTS, step[1]) if step[11] < 250 else choose(("nobody", "@fees", "@world"), step[1])

    def target(self, step: bytes) -> tuple[str, int]:
        """Mostly one's own open order, sometimes another's or one that is gone."""
        dead = bool(step[10] % 8 == 0)
        found = [o for o in self.model.open_orders() if bool(self.model.dead(o)) == dead] or self.model.open_orders()
        if not found or step[11] >= 232:
            return self.account(step), 1 + step[2] % (self.model.orders_made + 2)
        order = choose(found, step[2])
        return (order.ask.account if step[11] < 220 else self.account(step)), order.id

    def named(self, order_id: int, step: bytes) -> tuple[int, str]:
        """An order by its id, by its key, or by both."""
        order = self.model.orders.get(order_id)
        key = order.key if order else f"k{1 + step[2] % (self.keys + 1)}"
        return choose(((order_id, ""), (0, key), (0, key), (order_id, f"k{1 + step[10] % (self.keys + 1)}")), step[13])

    def place(self, step: bytes) -> PlaceOrder:
        odd = step[11] >= 226
        side = choose((Side.buy, Side.sell), step[3])
        symbol = choose(SYMBOLS, step[2] // 3) if step[2] < 250 else "NONE"
        priced = symbol in self.model.instruments and self.model.fresh(symbol)
        market = step[4] % 7 < 2 and (bool(priced) or odd)
        budget = market and side == Side.buy and step[5] % 2 == 0
        if market and not odd:
            tif = TimeInForce.ioc if budget else choose((TimeInForce.ioc, TimeInForce.fok), step[6])
        else:
            tif = choose((*(TimeInForce.gtc,) * 3, *TimeInForce), step[6])
        resting = tif in (TimeInForce.gtc, TimeInForce.day, TimeInForce.gtd)
        price = 8 + step[7] % 6
        if (market and step[8] % 3) or (odd and step[8] % 5 == 0):
            price = 0
        lots = choose((1, 1, 1, 2, 2, 3, 5, 8), step[9])
        if budget or (odd and step[9] % 5 == 0):
            lots = 0 if budget or step[9] % 2 else 9
        units = 1 + step[9] * choose((1, 2, 7), step[8]) if budget or (odd and step[8] % 7 == 0) else 0
        expires_at_us = 0
        if tif == TimeInForce.gtd or (odd and step[10] % 9 == 0):
            ahead = choose((1, 2, 3, SECOND_US, 2 * SECOND_US, 20 * SECOND_US, HOUR_US, 30 * HOUR_US), step[10])
            expires_at_us = self.model.now + ahead if step[11] % 16 else choose((0, self.model.now), step[10])
        post_only = step[10] % 5 == 0 and (odd or (resting and not market))
        self_trade = choose(tuple(SelfTrade), step[8] // 3)
        own = [name for account, name in self.model.sessions if account == self.account(step)]
        session = choose(("", *own, *own, *own), step[5] // 2) if not odd else choose(("", *SESSIONS), step[5])
        return PlaceOrder(
            self.account(step),
            symbol,
            side,
            OrderType.market if market else OrderType.limit,
            tif,
            price,
            lots,
            units,
            expires_at_us,
            post_only,
            self_trade,
            session,
        )

    def replace(self, step: bytes) -> ReplaceOrder:
        price = 8 + step[7] % 6 if step[3] % 3 else 0
        account, target = self.target(step)
        order_id, order_key = self.named(target, step)
        order = self.model.orders.get(target)
        symbol = choose(("", order.ask.symbol if order else "", choose(SYMBOLS, step[10])), step[10] // 2)
        return ReplaceOrder(account, order_id, price, step[9] % 9, order_key, symbol)

    def price(self, step: bytes) -> SetReference:
        ago = choose((0,) * 9 + (SECOND_US, 29 * SECOND_US, 60 * SECOND_US, -9 * SECOND_US, -11 * SECOND_US), step[3])
        symbol = choose(SYMBOLS, step[2]) if step[11] < 250 else "NONE"
        return SetReference(symbol, 8 + step[7] % 6, max(0, self.model.now + choose((1, 2, 0), step[4]) - ago))

    def session(self, step: bytes) -> Command:
        account, session = self.account(step), choose(SESSIONS, step[2])
        if step[3] % 8 < 4:
            return OpenSession(account, session, choose((100, 1_500, 60_000, 600_000), step[4]))
        if self.model.sessions and step[11] < 230:
            account, session = choose(sorted(self.model.sessions), step[2])
        return BeatSession(account, session) if step[3] % 8 < 6 else CloseSession(account, session)

    def money(self, step: bytes) -> Command:
        account = self.account(step)
        asset = choose(ASSETS, step[2]) if step[11] < 240 else "NONE"
        amount = 1 + step[4] * choose((1, 1, 5, 10**6), step[5])
        withdrawal_id = 1 + step[2] % (self.model.withdrawals_made + 1)
        match step[3] % 8:
            case 0:
                return Deposit(account, asset, amount)
            case 1 | 2:
                target = choose((*ACCOUNTS, *ACCOUNTS, "nobody", "@rounding"), step[6])
                return Transfer(account, target, asset, amount)
            case 3 | 4 | 5:
                return RequestWithdrawal(account, asset, 1 + step[4])
            case 6:
                return PostWithdrawal(withdrawal_id)
            case _:
                return VoidWithdrawal(withdrawal_id)

    def rare(self, step: bytes) -> Command:
        symbol = choose((*SYMBOLS, *SYMBOLS, "NONE"), step[2])
        match step[3] % 16:
            case 0 | 1:
                return SetMode(choose(("", symbol), step[4]), choose(tuple(Mode), step[5]))
            case 2 | 3 | 4:
                return SetMode("", Mode.trading)
            case 5 | 6:
                return SetFees(symbol, *choose(FEES, step[4]))
            case 7 | 8:
                return SetLimits(symbol, self.limits(step))
            case 9:
                return SetCalendar(symbol, choose((*CALENDARS, *CALENDARS, *BAD_CALENDARS), step[4]))
            case 10:
                return AddAsset(choose(("USD", "NEW"), step[4]), 2, 1_000)
            case 11 | 12:
                return self.instrument(step)
            case 13:
                return OpenAccount(choose(("dan", "ann"), step[4]), 1 + step[5])
            case 14 if step[4] > 200:
                return ActivateRules(1)
            case _:
                self.digests += 1
                digest = bytes(15) + bytes([step[6] // 180])
                member = choose(("a", "b", "c", "d"), step[5])
                return ReportDigest(member, 1 + self.digests // 8, digest, choose((2, 3, 4), step[7]))

    def limits(self, step: bytes) -> Limits:
        return Limits(
            quantity_lots_min=choose((0, 1, 2, 9), step[4]),
            quantity_lots_max=8,
            notional_units_min=choose((0, 0, 100, 50_000), step[5]),
            notional_units_max=choose((40_000, 40_000, 1_000), step[9]),
            reference_age_us_max=choose((SECOND_US, 100 * SECOND_US), step[10]),
            open_orders_max=choose((1, 3, 30), step[6]),
            band_bps=choose((0, 500, 2_000, 3_000), step[7]),
            collar_bps=choose((0, 500, 2_500), step[8]),
        )

    def instrument(self, step: bytes) -> AddInstrument:
        """One that is refused, for each reason in turn, or one that nobody trades."""
        return AddInstrument(
            choose(("AAA-USD", "NEW-USD"), step[4] // 2),
            choose(("AAA", "USD", "NONE", "AAA"), step[5]),
            "USD",
            choose((1, 3), step[6]),
            choose((0, 2), step[7]),
            1,
            1,
            0,
            0,
            Limits(quantity_lots_min=choose((1, 9), step[8]), quantity_lots_max=8),
            choose((ALWAYS, WEEK, *BAD_CALENDARS), step[9]),
        )
