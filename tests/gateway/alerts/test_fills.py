"""Fills: shown at both sites, sent by one, and by the other when that one goes away."""

from gateway.alerts.fills import REMEMBERED_S, Fill, Fills
from gateway.notify.notice import Notice

NOW = 1_700_000_000_000_000
S = 1_000_000


def fill(seq: int, *, complete: bool = False) -> Fill:
    return Fill((1, 700, seq), "ann", "o-7", "AAPL", "buy", "201.5", "10", complete, NOW)


class Site:
    def __init__(self, site: str, live: list[str]) -> None:
        self.site = site
        self.shown: list[Notice] = []
        self.sent: list[Notice] = []
        self.fills = Fills(site, show=self.shown.append, queue=self.sent.append)
        self.fills.set_live(live, NOW)


BOTH = ["dc-a", "dc-b"]


def test_both_show_and_one_sends() -> None:
    a, b = Site("dc-a", BOTH), Site("dc-b", BOTH)
    for seq in range(200):
        for site in (a, b):
            site.fills.filled(fill(seq), NOW)
    assert len(a.shown) == len(b.shown) == 200
    assert {n.notice_id for n in a.sent} | {n.notice_id for n in b.sent} == {n.notice_id for n in a.shown}
    assert not {n.notice_id for n in a.sent} & {n.notice_id for n in b.sent}
    assert 60 < len(a.sent) < 140


def test_one_that_goes_away_is_stood_in_for_with_the_same_ids() -> None:
    a, b = Site("dc-a", BOTH), Site("dc-b", BOTH)
    for seq in range(100):
        a.fills.filled(fill(seq), NOW)
        b.fills.filled(fill(seq), NOW)
    a.fills.set_live(["dc-a"], NOW + 3 * S)
    assert {n.notice_id for n in a.sent} == {n.notice_id for n in a.shown}
    assert a.fills.counters["takeovers"] == len(b.sent)
    a.fills.filled(fill(1_000), NOW + 4 * S)
    assert len(a.sent) == 101
    a.fills.set_live(["dc-a"], NOW + 5 * S)
    assert len(a.sent) == 101


def test_what_is_older_than_it_can_have_been_missed_is_not_sent_again() -> None:
    a = Site("dc-a", BOTH)
    for seq in range(100):
        a.fills.filled(fill(seq), NOW)
    sent = len(a.sent)
    a.fills.set_live(["dc-a"], NOW + (REMEMBERED_S + 1) * S)
    assert len(a.sent) == sent


def test_what_people_read() -> None:
    a = Site("dc-a", ["dc-a"])
    a.fills.filled(fill(3, complete=True), NOW)
    assert a.sent[0].subject == "buy 10 AAPL at 201.5, complete"
    assert a.sent[0].notice_id == "fill/1/700/3/o-7"
    assert a.sent[0].details["complete"] is True
