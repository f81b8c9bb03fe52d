"""Two gateways with alerts, fills and channels wired as the app wires them, on two linked stores."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.alerts.engine import Stage
from gateway.alerts.fills import Fills
from gateway.alerts.ownership import owner
from gateway.alerts.service import Alerts
from gateway.notify.addresses import Guard
from gateway.notify.dispatcher import Dispatcher
from gateway.notify.notice import Notice
from gateway.notify.notifier import Notifier
from gateway.notify.webhook import WebhookSender
from gateway.prefs.fields import Channel
from tests.gateway.prefs.sites import RING, Pair, Side


def now_us() -> int:
    return time.time_ns() // 1_000


class Gate:
    """One gateway. shown: what its WebSockets got."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.shown: list[Notice] = []
        self.alerts: Alerts
        self.notifier: Notifier
        self.fills: Fills

    @property
    def site(self) -> str:
        return self.side.site

    async def start(self) -> None:
        """On a side that runs."""
        store, prefs, links = self.side.store, self.side.prefs, self.side.links
        webhook = WebhookSender(Guard(["127.0.0.0/8"]), plain_http=True)
        dispatcher = Dispatcher(store, prefs.preferences, {Channel.webhook: webhook})
        self.notifier = Notifier(store, prefs.preferences, dispatcher, self.shown.append)
        self.alerts = Alerts(store, RING, show=self.notifier.show, queued=dispatcher.added)
        self.fills = Fills(store.site, show=self.notifier.show, queue=self.notifier.queue)
        links.on_link(lambda _site, _up: self.live_changed())
        await dispatcher.start()
        await self.alerts.start()
        self.live_changed()

    def live_changed(self) -> None:
        live = self.side.links.live_sites()
        self.alerts.set_live(live)
        self.fills.set_live(live, now_us())

    async def stop(self) -> None:
        await self.alerts.stop()
        await self.notifier.stop()
        await self.side.stop()

    def tick(self, price: int, symbol: str = "AAPL") -> None:
        self.alerts.tick(symbol, price, now_us())

    def fired(self, user: str, alert_id: str) -> int:
        return self.side.prefs.alert(user, alert_id).fired

    def stage(self, user: str, alert_id: str) -> Stage | None:
        return self.alerts.engine.stage(user, alert_id)

    def ids(self) -> list[str]:
        return [notice.notice_id for notice in self.shown]


class Gates:
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.a, self.b = Gate(pair.a), Gate(pair.b)

    def owner_and_other(self, user: str, alert_id: str) -> tuple[Gate, Gate]:
        a_owns = owner(f"{user}/{alert_id}", ["dc-a", "dc-b"]) == "dc-a"
        return (self.a, self.b) if a_owns else (self.b, self.a)


@asynccontextmanager
async def gates_in(folder: Path) -> AsyncIterator[Gates]:
    pair = Pair(folder)
    await pair.cut.start()
    gates = Gates(pair)
    for gate in (gates.a, gates.b):
        await gate.side.start()
        await gate.start()
    await pair.linked()
    try:
        yield gates
    finally:
        for gate in (gates.a, gates.b):
            await gate.stop()
        await pair.cut.stop()
