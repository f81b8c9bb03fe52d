"""Balances from events alone: what a follower that never saw a command must arrive at."""

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

from statemachine.events import (
    AnyEvent,
    AssetAdded,
    HoldReleased,
    InstrumentChanged,
    OrderClosed,
    OrderOpened,
    OrderReduced,
    Traded,
    Transferred,
    WithdrawalClosed,
    WithdrawalOpened,
)
from statemachine.types import FEES, Side

Balances = dict[tuple[str, str], int]


class Replay:
    """owned and held by (account, asset). Fees and their rounding are one account here: events do not split them."""

    def __init__(self) -> None:
        self.owned: Balances = defaultdict(int)
        self.held: Balances = defaultdict(int)
        self.open: dict[int, OrderOpened] = {}
        self.leaves: dict[int, int] = {}
        self.filled: dict[int, int] = {}
        self.holds: dict[int, int] = {}
        self.scales: dict[str, int] = {}
        self.instruments: dict[str, InstrumentChanged] = {}

    def follow(self, events: Iterable[AnyEvent]) -> None:
        for event in events:
            match event:
                case AssetAdded():
                    self.scales[event.asset] = event.scale
                case InstrumentChanged():
                    self.instruments[event.symbol] = event
                case Transferred():
                    self.owned[event.source, event.asset] -= event.amount_units
                    self.owned[event.target, event.asset] += event.amount_units
                    if not event.source.startswith("@"):
                        told = (self.owned[event.source, event.asset], event.source_units)
                        if told[0] != told[1]:
                            raise AssertionError(f"replayed {told[0]}, told {told[1]}: {event}")
                case WithdrawalOpened():
                    self.held[event.account, event.asset] += event.amount_units
                case WithdrawalClosed():
                    self.held[event.account, event.asset] -= event.amount_units
                case OrderOpened():
                    self.open[event.order_id] = event
                    self.leaves[event.order_id] = event.quantity_lots - event.filled_lots
                    self.filled[event.order_id] = event.filled_lots
                    self.hold(event.order_id, event.hold_units)
                case Traded():
                    self.trade(event)
                case HoldReleased():
                    self.hold(event.order_id, -event.released_units)
                case OrderReduced():
                    self.hold(event.order_id, -event.released_units)
                    self.leaves[event.order_id] -= event.reduced_lots
                case OrderClosed():
                    self.hold(event.order_id, -event.released_units)
                    if self.holds.pop(event.order_id):
                        raise AssertionError(f"a closed order still holds: {event}")
                    del self.open[event.order_id], self.leaves[event.order_id], self.filled[event.order_id]
                case _:
                    pass

    def hold(self, order_id: int, units: int) -> None:
        order = self.open[order_id]
        instrument = self.instruments[order.symbol]
        asset = instrument.quote if order.side == Side.buy else instrument.base
        self.held[order.account, asset] += units
        self.holds[order_id] = self.holds.get(order_id, 0) + units
        if self.holds[order_id] < 0:
            raise AssertionError(f"order {order_id} holds {self.holds[order_id]}")

    def trade(self, event: Traded) -> None:
        instrument = self.instruments[event.symbol]
        lot = Fraction(instrument.lot, 10**instrument.quantity_scale) * 10 ** self.scales[instrument.base]
        base_units = int(event.quantity_lots * lot)
        taker = (event.taker_order_id, event.taker_account, event.taker_fee_units, event.taker_leaves_lots)
        maker = (event.maker_order_id, event.maker_account, event.maker_fee_units, event.maker_leaves_lots)
        buyer, seller = (taker, maker) if event.taker_side == Side.buy else (maker, taker)
        self.owned[buyer[1], instrument.quote] -= event.notional_units + buyer[2]
        self.owned[seller[1], instrument.quote] += event.notional_units - seller[2]
        self.owned[FEES, instrument.quote] += buyer[2] + seller[2]
        self.owned[seller[1], instrument.base] -= base_units
        self.owned[buyer[1], instrument.base] += base_units
        self.hold(buyer[0], -event.notional_units - buyer[2])
        self.hold(seller[0], -base_units)
        for order_id, _, _, leaves in (taker, maker):
            self.filled[order_id] += event.quantity_lots
            self.leaves[order_id] -= 0 if self.open[order_id].budget_units else event.quantity_lots
            if self.leaves[order_id] != leaves:
                raise AssertionError(f"order {order_id}: replayed leaves {self.leaves[order_id]}, told {leaves}")
