"""Order fills told to their users as they wish: by one site, and by the other when that one is away."""

from collections import Counter, deque
from collections.abc import Callable, Iterable

from msgspec import Struct

from gateway.alerts.ownership import owner
from gateway.notify.notice import Kind, Notice

REMEMBERED_S = 15
REMEMBERED_MAX = 50_000


class Fill(Struct, frozen=True):
    """A fill from the event feed. position: epoch, index and seq, the same at both sites. Texts are decimals.

    complete: nothing of the order is left. at_us: the batch's time.
    """

    position: tuple[int, int, int]
    user: str
    order_id: str
    symbol: str
    side: str
    price: str
    quantity: str
    complete: bool
    at_us: int

    @property
    def notice_id(self) -> str:
        return "fill/" + "/".join(map(str, self.position)) + f"/{self.order_id}"


def notice_of(fill: Fill) -> Notice:
    details: dict[str, str | int | bool] = {
        "order_id": fill.order_id,
        "symbol": fill.symbol,
        "side": fill.side,
        "price": fill.price,
        "quantity": fill.quantity,
        "complete": fill.complete,
    }
    subject = f"{fill.side} {fill.quantity} {fill.symbol} at {fill.price}" + (", complete" if fill.complete else "")
    return Notice(fill.notice_id, fill.user, Kind.order_fill, fill.at_us, subject, details)


class Fills:
    """Without I/O. show: given each notice, for the WebSockets here. queue: given those that this site sends by e-mail,
    webhook and so on.

    Both sites see every fill in their feed. The owner sends; the other remembers for REMEMBERED_S, and sends what the
    owner may not have sent when it goes away. So a fill may come twice, with one id, and none is left out.
    """

    def __init__(self, site: str, *, show: Callable[[Notice], None], queue: Callable[[Notice], None]) -> None:
        self._site = site
        self._show = show
        self._queue = queue
        self._live = [site]
        self._others: deque[tuple[int, Notice]] = deque(maxlen=REMEMBERED_MAX)
        self.counters: Counter[str] = Counter()

    def filled(self, fill: Fill, now_us: int) -> None:
        notice = notice_of(fill)
        self._show(notice)
        if owner(notice.notice_id, self._live) == self._site:
            self._queue(notice)
            return
        while self._others and self._others[0][0] < now_us - REMEMBERED_S * 1_000_000:
            self._others.popleft()
        self._others.append((now_us, notice))

    def set_live(self, sites: Iterable[str], now_us: int) -> None:
        """The sites that are heard now, this one included."""
        self._live = sorted({self._site, *sites})
        others, self._others = self._others, deque(maxlen=REMEMBERED_MAX)
        for at_us, notice in others:
            if at_us < now_us - REMEMBERED_S * 1_000_000:
                continue
            if owner(notice.notice_id, self._live) == self._site:
                self.counters["takeovers"] += 1
                self._queue(notice)
            else:
                self._others.append((at_us, notice))
