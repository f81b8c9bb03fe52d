"""What `tiebreak status` makes of what members say, edge by edge."""

import pytest
from msgspec.structs import replace
from rich.console import Console

from cluster.client import Health, Member
from cluster.wire import MemberView
from node.cli.status import LAG_MAX, _state, judge, picture, with_gateways
from node.cli.status_gateways import STALE_MS_MAX, TOKEN_S_MIN, GatewayView, Heard, SiteLink, judge_gateways

BASE = MemberView(
    name="dc-a",
    site="dc-a",
    role="replica",
    state="leader",
    leader="dc-a",
    term=3,
    epoch=1,
    has_quorum=True,
    ready=True,
    first_index=1,
    last_index=20_000,
    durable_index=20_000,
    commit_index=20_000,
    applied_index=20_000,
    stored_index=19_990,
    time_us=1,
    digest="",
    digest_index=0,
    writes_stopped=False,
    uptime_s=1.0,
    pid=1,
    version="0",
)
A = BASE
B = replace(BASE, name="dc-b", site="dc-b", state="follower")
T = replace(BASE, name="tiebreaker", site="tiebreaker", role="witness", state="follower", applied_index=0)
SAME = {"dc-a": "aa", "dc-b": "aa"}


def health(view: MemberView) -> Health:
    return Health(Member("http://x", view.name), view, answers=True)


# members, digests, healthy, what the second one's health says
ROWS = [
    ([A, B, T], SAME, True, "ok"),
    ([A, B, T], {"dc-a": "aa", "dc-b": "bb"}, False, "digests differ"),
    ([A, B, T], {"dc-a": "aa"}, True, "ok"),  # nothing to compare with is no disagreement
    ([A, replace(B, applied_index=20_000 - LAG_MAX), T], SAME, True, "ok"),
    ([A, replace(B, applied_index=20_000 - LAG_MAX - 1), T], SAME, False, "lagging"),
    ([A, replace(B, ready=False), T], SAME, False, "not ready"),
    ([A, replace(B, has_quorum=False), T], SAME, False, "no quorum"),
    ([A, replace(B, writes_stopped=True), T], SAME, False, "writes stopped"),
    ([A, replace(B, rejoining=True), T], SAME, False, "rejoining"),
    ([A, replace(B, refusal="the log is at its limit"), T], SAME, False, "no room"),
    ([A, replace(B, barred="clock is 700 ms from the median of 3"), T], SAME, False, "wrong clock"),
    ([replace(A, state="follower"), B, T], SAME, False, "no leader"),
    # A leader of an older term that does not know it yet is not the leader.
    ([replace(A, term=2), replace(B, state="leader"), T], SAME, True, "ok"),
]


@pytest.mark.parametrize(("views", "digests", "healthy", "second"), ROWS)
def test_judge(views: list[MemberView], digests: dict[str, str], healthy: bool, second: str) -> None:
    report = judge([health(view) for view in views], digests, 20_000)
    assert (report.healthy, report.members[1].health) == (healthy, second)


def test_the_leader_is_the_one_of_the_highest_term() -> None:
    report = judge([health(replace(A, term=2)), health(replace(B, state="leader")), health(T)], SAME, 1)
    assert report.leader == "dc-b"


def test_a_silent_member_is_not_healthy() -> None:
    report = judge(
        [health(A), health(B), Health(Member("http://x", "tiebreaker"), error="connection refused")], SAME, 1
    )
    assert not report.healthy
    assert report.members[2].health == "unreachable"


def test_a_member_that_can_not_answer_a_read_is_not_ready() -> None:
    # It says that it is ready, and knows leader and quorum; but its log does not get on.
    report = judge([health(A), Health(Member("http://x", "dc-b"), B, answers=False), health(T)], SAME, 1)
    assert [row.health for row in report.members] == ["ok", "not ready", "ok"]


def test_lag_of_a_witness_is_that_of_its_log() -> None:
    report = judge([health(A), health(B), health(replace(T, durable_index=19_000))], SAME, 1)
    assert report.members[2].lag == 1_000


# as the member says it, and what stands in the table
STATES = [
    (A, "leader"),
    (B, "follower"),
    (T, "witness"),
    (replace(B, standing="learner"), "learner"),
    (replace(B, standing="read_replica"), "read replica"),
    (replace(T, standing="learner"), "learner"),
    (replace(B, state="candidate"), "candidate"),
]


@pytest.mark.parametrize(("view", "state"), STATES)
def test_what_each_is_to_the_cluster(view: MemberView, state: str) -> None:
    assert _state(view) == state


# ---- gateways ----

G = GatewayView(
    gateway="gateway-dc-a",
    site="dc-a",
    ready=True,
    index=20_000,
    staleness_ms=1_234,
    market_age_ms=50,
    cache="ok",
    feeds={"simulator": "up", "kraken.jsonl": "ended"},
    sites={"dc-b": SiteLink(linked=True)},
    streams=3,
    token_ends_in_s=TOKEN_S_MIN,
)

# a gateway, what its health says
GATEWAYS = [
    (G, "ok"),
    (replace(G, ready=False, reason="leaving"), "leaving"),
    (replace(G, staleness_ms=STALE_MS_MAX), "ok"),
    (replace(G, staleness_ms=STALE_MS_MAX + 1), "stale"),
    (replace(G, staleness_ms=-1), "stale"),  # it has heard nothing yet
    (replace(G, index=20_000 - LAG_MAX), "ok"),
    (replace(G, index=20_000 - LAG_MAX - 1), "lagging"),
    (replace(G, index=20_005), "ok"),  # members were asked a moment before
    (replace(G, cache="away: connection refused"), "cache away"),
    (replace(G, cache="none"), "ok"),
    (replace(G, sites={"dc-b": SiteLink()}), "no link to dc-b"),
    (replace(G, sites={}), "ok"),  # one site alone
    (replace(G, feeds={"kraken": "half_open"}), "feed kraken down"),
    (replace(G, workers_wanted=2, workers=2), "ok"),
    (replace(G, workers_wanted=2, workers=1), "1 of 2 workers"),
    (replace(G, token_ends_in_s=TOKEN_S_MIN - 1), "token ends soon"),
    (replace(G, token_ends_in_s=None), "ok"),  # an older gateway, which does not say
]


@pytest.mark.parametrize(("view", "health"), GATEWAYS)
def test_judge_gateways(view: GatewayView, health: str) -> None:
    (row,) = judge_gateways([Heard("gateway-dc-a", "http://x", view)], 20_000)
    assert (row.health, row.healthy) == (health, health == "ok")


def test_gateways_that_nobody_started_are_no_fault_and_one_beside_another_is() -> None:
    refused = [Heard(name, "http://x", error="connection refused") for name in ("gateway-dc-a", "gateway-dc-b")]
    assert [(row.health, row.healthy) for row in judge_gateways(refused, 0)] == [("not started", True)] * 2
    started = [replace(refused[0], started=True), refused[1]]
    assert [(row.health, row.healthy) for row in judge_gateways(started, 0)] == [("unreachable", False)] * 2
    beside = [Heard("gateway-dc-a", "http://x", G), refused[1]]
    assert [row.health for row in judge_gateways(beside, 20_000)] == ["ok", "unreachable"]


def test_an_unhealthy_gateway_makes_the_whole_unhealthy_and_is_named() -> None:
    members = judge([health(view) for view in (A, B, T)], SAME, 20_000)
    heard = [Heard("gateway-dc-a", "http://x", replace(G, index=19_000, cache="away: gone"))]
    report = with_gateways(members, heard)
    assert members.healthy and not report.healthy
    assert report.gateways[0].lag == 1_000
    console = Console(width=160, record=True)
    console.print(picture(report))
    text = console.export_text()
    assert "not healthy: gateway-dc-a; dc-a leads" in text
    for word in ("gateway-dc-a", "19000", "1000", "1.2s", "0.1s", "linked", "cache away"):
        assert word in text
    assert with_gateways(members, [Heard("gateway-dc-a", "http://x", G)]).healthy
