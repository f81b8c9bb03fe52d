"""Feeds the fan-out from a core: market data each tick, private events, portfolios, notices and the leaderboard."""

import asyncio
import contextlib
import secrets
from functools import partial
from typing import Any

from gateway.api.portfolio import body_of
from gateway.api.ranking import table_body
from gateway.core import Core
from gateway.events import OrderClosed, OrderOpened, Traded, Transferred
from gateway.fanout import views
from gateway.fanout.fragment import Fragment
from gateway.fanout.hub import Hub
from gateway.fanout.market import MarketPublisher, changed
from gateway.fanout.private import PrivateEvents
from gateway.fanout.ring import Rings
from gateway.fanout.source import LocalSource
from gateway.notify.notice import Notice
from gateway.projection.projector import Batch
from gateway.views.leaderboard import Period

PORTFOLIO_S = 1.0
"""Portfolios move with prices; who looks at one is told once a second, and at once after an event of his own."""


class Streams:
    """hub, rings, source: for a StreamServer, or for the workers. on_gap: private events may be missing."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.rings = Rings(secrets.randbits(40))
        self.hub = Hub(self.rings.epoch)
        self.publisher = MarketPublisher(
            core.market, self.hub, self.rings, is_listed=lambda symbol: symbol in core.accounts.instruments
        )
        self.private = PrivateEvents(self.hub, self.rings)
        self.source = LocalSource(
            self.hub,
            self.rings,
            {
                **self.publisher.providers(),
                "orders": self._no_state,
                "alerts": self._no_state,
                "leaderboard": self._leaderboard_now,
                "portfolio": self._portfolio_now,
            },
        )
        core.on_ticks.append(self.publisher.take)
        core.on_notice = self._notice
        core.on_ranked.append(self._ranked)
        core.projection.on_batch += [self.private.apply, self._moved]
        core.projection.on_reset.append(self.private.reset)

    # ---- time ----

    async def run(self) -> None:
        """Publish what changed, once per tick of the fan-out, until cancelled."""
        due_s = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.hub.pace.tick_ms / 1000)
            changed(self.core.market, self.publisher)
            standing = self.core.projection.standing
            self.source.is_live = bool(self.core.follower.node)
            self.source.age_ms = max(0, standing.staleness_ms)
            if loop.time() >= due_s:
                due_s = loop.time() + PORTFOLIO_S
                for channel, account in list(self.hub.topics):
                    if channel == "portfolio":
                        self._tell(account)

    # ---- what comes ----

    def _notice(self, notice: Notice) -> None:
        key = ("alerts", notice.user)
        value = {
            "notice_id": notice.notice_id,
            "kind": notice.kind.value,
            "at_us": notice.at_us,
            "subject": notice.subject,
            **notice.details,
        }
        kept = self.rings.append(key, views.plain("alerts", notice.user, value, notice.at_us))
        self.hub.append(kept.key, kept.fragment, kept.seq)

    def _moved(self, batch: Batch) -> None:
        accounts: set[str] = set()
        for event in batch.events:
            if isinstance(event, Traded):
                accounts |= {event.taker_account, event.maker_account}
            elif isinstance(event, Transferred):
                accounts |= {event.source, event.target}
            elif isinstance(event, OrderOpened | OrderClosed):
                accounts.add(event.account)
        for account in accounts:
            self._tell(account)

    def _tell(self, account: str) -> None:
        topic = self.hub.topics.get(("portfolio", account))
        if topic is not None:
            with contextlib.suppress(LookupError):
                self.hub.publish(topic, self._portfolio_now(account))

    def _ranked(self) -> None:
        topic = self.hub.topics.get(("leaderboard", ""))
        fragment = self._leaderboard_now("") if topic is not None else None
        if topic is not None and fragment is not None:
            self.hub.publish(topic, fragment)

    # ---- the newest state ----

    def _no_state(self, _symbol: str) -> Fragment | None:
        return None

    def _portfolio_now(self, account: str) -> Fragment:
        """Raises LookupError."""
        found = self.core.accounts.accounts.get(account)
        if found is None:
            raise LookupError(f"there is no account {account!r} here")
        return _late("portfolio", account, partial(body_of, self.core, account), self.core.projection.standing.as_of_us)

    def _leaderboard_now(self, _symbol: str) -> Fragment | None:
        tables = self.core.leaderboard.tables
        if not tables:
            return None
        return _late(
            "leaderboard",
            "",
            lambda: [table_body(self.core, tables[period], 100) for period in Period],
            tables[Period.day].as_of_us,
        )


def _late(channel: str, symbol: str, value: Any, born_us: int) -> Fragment:
    """Worked out when someone is sent it."""
    made: list[Any] = []

    def make(formats: int) -> Any:
        if not made:
            made.append(value())
        return views.plain(channel, symbol, made[0], born_us)._make(formats)  # type: ignore[misc]

    return Fragment(make, born_us)
