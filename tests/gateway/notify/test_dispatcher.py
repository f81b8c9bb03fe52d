"""From the outbox to a channel: once the disk has it, at least once, with back-off, and never for ever."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs

from gateway.notify import outbox
from gateway.notify.addresses import Guard
from gateway.notify.allowance import PER_HOUR, Allowance
from gateway.notify.dispatcher import (
    AGE_S_MAX,
    ATTEMPTS_MAX,
    BACK_OFF_S_MAX,
    CONCURRENT,
    PER_USER,
    Dispatcher,
    back_off_s,
)
from gateway.notify.notice import Kind, Later, Never, Notice
from gateway.notify.notifier import Notifier
from gateway.notify.outbox import DEAD_MAX, USER_MAX, Item, OutboxFull
from gateway.notify.policy import Planned
from gateway.notify.webhook import WebhookSender
from gateway.prefs.errors import StoreFull
from gateway.prefs.fields import Channel, FillNotices, Preferences, QuietHours
from gateway.prefs.store import Store, Writing
from tests.cluster.engines import until
from tests.gateway.notify.servers import Hook

S = 1_000_000
START_US = 1_700_000_000 * S
EMAIL = Preferences(alert_channels=(Channel.email,), email="ann@example.com")

HOOKED = Preferences(
    alert_channels=(Channel.webhook,), webhook_url="https://hooks.example.com/", webhook_secret="s" * 16
)


class Recorder:
    """A channel that does what it is told; None: it delivers."""

    def __init__(self) -> None:
        self.outcomes: list[Exception | None] = []
        self.sent: list[tuple[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, notice: Notice, preferences: Preferences) -> None:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        self.sent.append((notice.user, notice.notice_id))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome

    async def close(self) -> None: ...


class Desk:
    """A store, a dispatcher, a clock that a test moves, and everyone's preferences."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_us = START_US
        self.mail = Recorder()
        self.preferences = EMAIL
        self.shown: list[Notice] = []
        self.store: Store
        self.dispatcher: Dispatcher
        self.notifier: Notifier

    async def start(self) -> None:
        self.store = Store(self.folder, cluster_id="c", site="dc-a", map_bytes=1 << 28, free_bytes_min=0)
        self.dispatcher = Dispatcher(
            self.store,
            self.of,
            {Channel.email: self.mail, Channel.webhook: self.mail},
            clock_us=self.clock,
            chance=random.Random(1),
        )
        self.notifier = Notifier(self.store, self.of, self.dispatcher, self.shown.append, clock_us=self.clock)
        await self.dispatcher.start()

    async def stop(self) -> None:
        await self.notifier.stop()
        await self.store.close()

    def of(self, _user: str) -> Preferences:
        return self.preferences

    def clock(self) -> int:
        return self.now_us

    async def pass_s(self, seconds: float) -> None:
        self.now_us += round(seconds * S)
        self.dispatcher.added([])
        await asyncio.sleep(0.02)

    def waiting(self) -> list[Item]:
        return outbox.load(self.store)

    async def settled(self, holds: Callable[[], bool]) -> None:
        await until(holds)


@asynccontextmanager
async def desk_in(folder: Path) -> AsyncIterator[Desk]:
    desk = Desk(folder)
    await desk.start()
    try:
        yield desk
    finally:
        await desk.stop()


def notice(name: str = "one", user: str = "ann", **details: bool) -> Notice:
    kind = Kind.order_fill if details else Kind.price_alert
    return Notice(name, user, kind, START_US, f"notice {name}", dict(details))


async def test_it_is_on_disk_before_it_is_sent_and_gone_when_it_was(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.gate.clear()
        desk.notifier.queue(notice())
        await desk.settled(lambda: desk.mail.at_once == 1)
        assert [item.notice.notice_id for item in desk.waiting()] == ["one"]
        desk.mail.gate.set()
        await desk.settled(lambda: desk.waiting() == [])
        assert desk.mail.sent == [("ann", "one")]
        await desk.settled(lambda: desk.dispatcher.waiting == 0)


async def test_what_a_stopped_gateway_left_is_sent_after_its_start(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.gate.clear()
        desk.notifier.queue(notice())
        await desk.settled(lambda: desk.mail.at_once == 1)
        await desk.stop()
        desk.mail.gate.set()
        await desk.start()
        await desk.settled(lambda: desk.mail.sent == [("ann", "one")])
        await desk.settled(lambda: desk.waiting() == [])


async def test_the_same_notice_waits_once(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.gate.clear()
        for _ in range(3):
            desk.notifier.queue(notice())
        desk.notifier.queue(notice("two"))
        await desk.settled(lambda: len(desk.waiting()) == 2)
        desk.mail.gate.set()
        await desk.settled(lambda: desk.waiting() == [])
        assert sorted(desk.mail.sent) == [("ann", "one"), ("ann", "two")]


async def test_it_backs_off_and_tries_again(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.outcomes = [Later("busy"), Later("busy", retry_after_s=500), OSError("surprise")]
        desk.notifier.queue(notice())
        await desk.settled(lambda: desk.waiting() != [] and desk.waiting()[0].attempts == 1)
        assert desk.waiting()[0].error == "busy"
        desk.notifier.queue(notice())  # a repeat does not begin anew
        await asyncio.sleep(0.02)
        assert [item.attempts for item in desk.waiting()] == [1]
        await desk.pass_s(0.9)
        assert len(desk.mail.sent) == 1
        await desk.pass_s(1.2)
        await desk.settled(lambda: desk.waiting()[0].attempts == 2)
        await desk.pass_s(499)  # it asked for 500 s
        assert len(desk.mail.sent) == 2
        await desk.pass_s(1)
        await desk.settled(lambda: desk.waiting()[0].attempts == 3)
        await desk.pass_s(10)
        await desk.settled(lambda: desk.waiting() == [])
        assert len(desk.mail.sent) == 4
        assert desk.dispatcher.counters["delivered_email"] == 1


def test_waits_double_up_to_their_bound_and_differ() -> None:
    chance = random.Random(1)
    for attempts in range(1, 40):
        waits = {back_off_s(attempts, chance) for _ in range(50)}
        longest = min(2.0 * 2 ** (attempts - 1), BACK_OFF_S_MAX)
        assert len(waits) > 40
        assert longest / 2 <= min(waits) < max(waits) <= longest


async def test_a_dead_letter_is_read_sent_again_or_thrown_away(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.outcomes = [Never("no such user")] * 3
        for name in ("one", "two", "three"):
            desk.notifier.queue(notice(name, user="bob" if name == "two" else "ann"))
            await desk.settled(lambda name=name: any(d.item.notice.notice_id == name for d in letters(desk)))  # type: ignore[misc]
            desk.now_us += S
        assert desk.waiting() == []
        found = letters(desk)
        assert [letter.item.notice.notice_id for letter in found] == ["one", "two", "three"]
        assert found[0].item.error == "no such user"
        assert [letter.item.notice.notice_id for letter in desk.dispatcher.dead_letters(user="bob")] == ["two"]
        assert len(desk.dispatcher.dead_letters(limit=2)) == 2

        ids = [letter.letter_id for letter in found]
        assert {len(letter_id) for letter_id in ids} == {32}
        assert await desk.dispatcher.forget([ids[1], ids[1], "junk", "00"]) == 1
        assert await desk.dispatcher.redrive([ids[0], ids[0], "junk", "00"]) == 1
        await desk.settled(lambda: desk.waiting() == [])
        assert desk.mail.sent[-1] == ("ann", "one")
        assert [letter.item.notice.notice_id for letter in letters(desk)] == ["three"]


def letters(desk: Desk) -> list[outbox.DeadLetter]:
    return desk.dispatcher.dead_letters()


async def test_nothing_is_tried_for_ever(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.outcomes = [Later("busy")] * 100
        desk.notifier.queue(notice())
        for attempt in range(1, ATTEMPTS_MAX):
            await desk.settled(lambda attempt=attempt: [i.attempts for i in desk.waiting()] == [attempt])  # type: ignore[misc]
            await desk.pass_s(BACK_OFF_S_MAX)
        await desk.settled(lambda: len(letters(desk)) == 1)
        assert len(desk.mail.sent) == ATTEMPTS_MAX
        await desk.dispatcher.redrive([letters(desk)[0].letter_id])
        await desk.settled(lambda: [item.attempts for item in desk.waiting()] == [1])
        desk.mail.outcomes = [Never("no"), *desk.mail.outcomes]
        await desk.pass_s(BACK_OFF_S_MAX)
        await desk.settled(lambda: len(letters(desk)) == 1)
        desk.notifier.queue(notice("old"))
        await desk.settled(lambda: len(desk.waiting()) == 1)
        await desk.pass_s(AGE_S_MAX + 1)
        await desk.settled(lambda: len(letters(desk)) == 2)


async def test_a_channel_that_this_gateway_does_not_have_is_a_dead_letter(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.preferences = Preferences(alert_channels=(Channel.sms,), phone="+436601234567")
        desk.notifier.queue(notice())
        await desk.settled(lambda: len(letters(desk)) == 1)
        assert letters(desk)[0].item.error == "this gateway has no sms"


async def test_who_changed_their_mind_is_not_told(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.outcomes = [Later("busy")]
        desk.notifier.queue(notice())
        await desk.settled(lambda: [item.attempts for item in desk.waiting()] == [1])
        desk.preferences = structs.replace(EMAIL, alert_channels=())
        await desk.pass_s(10)
        await desk.settled(lambda: desk.waiting() == [])
        assert len(desk.mail.sent) == 1
        assert desk.dispatcher.counters["unwanted"] == 1


async def test_a_mistake_of_ours_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk_in(tmp_path) as desk:
        wrong = [True]

        def of(user: str) -> Preferences:
            if wrong:
                wrong.clear()
                raise KeyError("a mistake")
            return EMAIL

        monkeypatch.setattr(desk.dispatcher, "_preferences", of)
        desk.notifier.queue(notice())
        await desk.settled(lambda: not wrong)
        await desk.pass_s(59)
        assert desk.mail.sent == []
        await desk.pass_s(2)
        await desk.settled(lambda: desk.waiting() == [])
        assert len(desk.mail.sent) == 1


async def test_quiet_hours_are_waited_for_also_when_they_are_set_later(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:  # it is 22:13:20
        desk.preferences = structs.replace(EMAIL, quiet_hours=QuietHours("22:00", "23:00"))
        desk.notifier.queue(notice())
        await desk.settled(lambda: len(desk.waiting()) == 1)
        desk.preferences = structs.replace(EMAIL, quiet_hours=QuietHours("22:00", "23:30"))
        await desk.pass_s(2_900)  # 23:01:40
        assert desk.mail.sent == []
        assert [item.attempts for item in desk.waiting()] == [0]
        await desk.pass_s(1_700)
        await desk.settled(lambda: desk.mail.sent == [("ann", "one")])


async def test_fills_are_told_as_the_user_wishes(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.preferences = structs.replace(
            EMAIL, fill_channels=(Channel.websocket, Channel.email), fill_notices=FillNotices.complete
        )
        for name, complete in (("part", False), ("last", True)):
            desk.notifier.show(notice(name, complete=complete))
            desk.notifier.queue(notice(name, complete=complete))
        await desk.settled(lambda: desk.mail.sent == [("ann", "last")])
        assert [each.notice_id for each in desk.shown] == ["last"]
        syncs = desk.store.syncs
        desk.preferences = structs.replace(EMAIL, fill_channels=(Channel.websocket,))
        desk.notifier.queue(notice("more", complete=True))
        await asyncio.sleep(0.02)
        assert desk.store.syncs <= syncs + 1, "who wants no more than a WebSocket costs no write"


async def test_one_users_flood_is_not_everyones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = USER_MAX // 10
    monkeypatch.setattr(outbox, "USER_MAX", most)
    async with desk_in(tmp_path) as desk:
        desk.mail.gate.clear()
        desk.preferences = HOOKED
        planned = [Planned(Channel.webhook, START_US)]

        def fill(writing: Writing) -> None:
            for n in range(most):
                outbox.add(writing, notice(f"n{n}"), planned, START_US)

        await desk.store.write(fill)
        with pytest.raises(OutboxFull, match="this user"):
            await desk.store.write(lambda writing: outbox.add(writing, notice("more"), planned, START_US))
        # The neighbour in the table, and one whose name begins alike.
        for user in ("an", "anna", "bob"):
            name = notice("other", user=user)
            await desk.store.write(lambda writing, name=name: outbox.add(writing, name, planned, START_US))  # type: ignore[misc]
        desk.dispatcher.added(desk.waiting())
        await desk.settled(lambda: desk.mail.at_once == PER_USER + 3)
        desk.mail.gate.set()
        await desk.settled(lambda: desk.waiting() == [])
        assert len(desk.mail.sent) == len(set(desk.mail.sent)) == most + 3


async def test_only_so_many_are_under_way(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        desk.mail.gate.clear()
        for n in range(3 * CONCURRENT):
            desk.notifier.queue(notice("one", user=f"user-{n}"))
        await desk.settled(lambda: len(desk.waiting()) == 3 * CONCURRENT)
        await desk.settled(lambda: desk.mail.at_once == CONCURRENT)
        await asyncio.sleep(0.05)
        assert desk.mail.at_once == CONCURRENT
        desk.mail.gate.set()
        await desk.settled(lambda: desk.waiting() == [])
        assert desk.mail.most_at_once == CONCURRENT
        assert len(set(desk.mail.sent)) == 3 * CONCURRENT


async def test_a_full_outbox_is_tried_again_and_a_full_disk_takes_what_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.notify.notifier.TRY_AGAIN_S", 0.05)
    async with desk_in(tmp_path) as desk:
        desk.mail.gate.clear()
        desk.notifier.queue(notice("one"))
        await desk.settled(lambda: desk.mail.at_once == 1)
        desk.store._free_bytes_min = 1 << 60
        with pytest.raises(StoreFull):
            await desk.store.write(lambda writing: outbox.add(writing, notice("x"), [Planned(Channel.email, 0)], 0))
        desk.notifier.queue(notice("two"))
        desk.mail.gate.set()
        await desk.settled(lambda: desk.waiting() == [])
        desk.store._free_bytes_min = 0
        await desk.settled(lambda: ("ann", "two") in desk.mail.sent)


async def test_the_oldest_dead_letters_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.notify.outbox.DEAD_MAX", 3)
    assert DEAD_MAX == 10_000
    async with desk_in(tmp_path) as desk:
        for n in range(5):
            item = Item(notice(f"n{n}"), Channel.email, START_US, START_US)
            await desk.store.write(lambda writing, item=item, n=n: outbox.bury(writing, item, START_US + n))  # type: ignore[misc]
        assert [letter.item.notice.notice_id for letter in letters(desk)] == ["n2", "n3", "n4"]


async def test_a_webhook_end_to_end(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk, Hook() as hook:
        hook.statuses = [503]
        desk.preferences = Preferences(
            alert_channels=(Channel.webhook,), webhook_url=hook.url(), webhook_secret="s" * 16
        )
        desk.dispatcher._senders[Channel.webhook] = WebhookSender(Guard(["127.0.0.0/8"]), plain_http=True)
        desk.notifier.queue(notice())
        await desk.settled(lambda: [item.attempts for item in desk.waiting()] == [1])
        await desk.pass_s(5)
        await desk.settled(lambda: desk.waiting() == [])
        assert len(hook.got) == 2


async def test_a_user_gets_only_so_many_an_hour_and_the_rest_later(tmp_path: Path) -> None:
    async with desk_in(tmp_path) as desk:
        most = PER_HOUR[Channel.email]
        for n in range(most + 3):
            desk.notifier.queue(notice(f"n{n}"))
        desk.notifier.queue(notice("other", user="bob"))
        await desk.settled(lambda: len(desk.mail.sent) == most + 1)
        later = [(0, START_US + 3_600 * S)] * 3
        await desk.settled(lambda: [(item.attempts, item.due_us) for item in desk.waiting()] == later)
        assert ("bob", "other") in desk.mail.sent
        await desk.pass_s(3_599)
        assert len(desk.waiting()) == 3
        await desk.pass_s(1)
        await desk.settled(lambda: desk.waiting() == [])
        assert len(desk.mail.sent) == most + 4


def test_the_allowances_of_many_users_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.notify.allowance.USERS_MAX", 3)
    allowance = Allowance()
    for n in range(3):
        assert allowance.take(f"user-{n}", Channel.sms, START_US + n) == START_US + n
    allowance.take("user-3", Channel.sms, START_US + 3)
    assert [user for user, _ in allowance._tried] == ["user-1", "user-2", "user-3"]
    allowance.take("user-4", Channel.sms, START_US + 3_600 * S + 2)
    assert [user for user, _ in allowance._tried] == ["user-3", "user-4"]


def test_every_channel_of_the_outbox_has_an_allowance() -> None:
    assert set(PER_HOUR) == set(Channel) - {Channel.websocket}
