"""The newest fills of each account as this gateway saw them: what is shown of the past while no node can be asked."""

from collections import OrderedDict, deque
from typing import Any

from gateway.events import Traded
from gateway.projection.projector import Batch

FILLS_MAX = 100
ACCOUNTS_MAX = 50_000
Row = dict[str, Any]


class History:
    """apply, reset: hooks of the projection. The whole history is the nodes'; nothing of it is kept over a restart."""

    def __init__(self) -> None:
        self._fills: OrderedDict[str, deque[Row]] = OrderedDict()

    def reset(self) -> None:
        self._fills.clear()

    def apply(self, batch: Batch) -> None:
        for event in batch.events:
            if isinstance(event, Traded):
                self._add(event.taker_account, _row(event, taker=True))
                self._add(event.maker_account, _row(event, taker=False))

    def _add(self, account: str, row: Row) -> None:
        fills = self._fills.get(account)
        if fills is None:
            if len(self._fills) >= ACCOUNTS_MAX:
                self._fills.popitem(last=False)  # who has not traded for longest
            fills = self._fills[account] = deque(maxlen=FILLS_MAX)
        self._fills.move_to_end(account)
        fills.append(row)

    def newest(self, account: str) -> list[Row]:
        """The newest first, with the fields of a node's answer."""
        return list(reversed(self._fills.get(account, ())))


def _row(event: Traded, *, taker: bool) -> Row:
    maker_side = "sell" if event.taker_side == "buy" else "buy"
    return {
        "id": event.trade_id,
        "symbol": event.symbol,
        "price": format(event.price, "f"),
        "qty": format(event.qty, "f"),
        "taker_side": event.taker_side,
        "at": event.at,
        "index": int(event.position.split(".")[2]),
        "account": event.taker_account if taker else event.maker_account,
        "order_id": event.taker_order_id if taker else event.maker_order_id,
        "side": event.taker_side if taker else maker_side,
        "liquidity": "taker" if taker else "maker",
        "fee": format(event.taker_fee if taker else event.maker_fee, "f"),
    }
