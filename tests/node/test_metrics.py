"""What /metrics says, and that nodes in one process do not share it."""

import asyncio
from pathlib import Path

from msgspec.structs import replace

from cluster.consensus.engine import EngineStatus, PeerStatus, Role
from node.metrics import Metrics
from tests.node.solo import Solo, list_market, order, run
from tests.node.test_submit import Bench, account


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_indexes_role_and_lags_follow_the_engine() -> None:
    metrics = Metrics("dc-a", "replica")
    peers = [PeerStatus("dc-b", True, 90, 80, 12, 3), PeerStatus("tiebreaker", False, 0, 0, 900)]
    page = metrics.render(EngineStatus("dc-a", Role.leader, "dc-a", 7, True, 1, 100, 99, 98, 95, 60, peers)).decode()
    assert value(metrics, "tiebreak_index", which="commit") == 98
    assert value(metrics, "tiebreak_lag_entries", what="apply") == 3
    assert value(metrics, "tiebreak_lag_entries", what="store") == 35
    assert value(metrics, "tiebreak_peer_lag_entries", peer="dc-b") == 10
    assert value(metrics, "tiebreak_peer_lag_entries", peer="tiebreaker") is None
    assert value(metrics, "tiebreak_peer_clock_offset_seconds", peer="dc-b") == 0.003
    assert (value(metrics, "tiebreak_raft_state", state="leader"), value(metrics, "tiebreak_raft_term")) == (1, 7)
    peers = [PeerStatus("dc-b", True, 0, 0, 12)]
    metrics.render(EngineStatus("dc-a", Role.follower, "dc-b", 8, True, 1, 100, 99, 98, 95, 60, peers))
    # What it knew as a leader is no longer so.
    assert value(metrics, "tiebreak_peer_lag_entries", peer="dc-b") is None
    assert (value(metrics, "tiebreak_raft_state", state="leader"), value(metrics, "tiebreak_raft_term")) == (0, 8)
    assert 'tiebreak_member_info{member="dc-a",role="replica"} 1.0' in page


def test_what_keeps_a_member_from_writing_or_leading_is_a_gauge() -> None:
    metrics = Metrics("dc-a", "replica")
    well = EngineStatus("dc-a", Role.follower, "dc-b", 8, True, 1, 100, 99, 98, 95, 60, [])
    for status, no_room, barred in (
        (well, 0, 0),
        (replace(well, refusal="the log is full"), 1, 0),
        (replace(well, barred="clock is 700 ms from the median of 3"), 0, 1),
    ):
        metrics.render(status)
        assert (value(metrics, "tiebreak_log_no_room"), value(metrics, "tiebreak_barred")) == (no_room, barred)


def test_queues_are_read_when_asked_for() -> None:
    metrics, other = Metrics("a", "replica"), Metrics("b", "replica")
    depth = [3.0]
    metrics.watch(lambda: depth[0], queue="batcher", bound=50)
    assert value(metrics, "tiebreak_queue_depth", queue="batcher") == 3
    depth[0] = 4
    assert value(metrics, "tiebreak_queue_depth", queue="batcher") == 4
    assert value(metrics, "tiebreak_queue_max", queue="batcher") == 50
    assert value(other, "tiebreak_queue_depth", queue="batcher") is None


def test_a_stage_is_timed_whatever_happens_in_it() -> None:
    metrics = Metrics("a", "replica")
    try:
        with metrics.stage("read"):
            raise OSError
    except OSError:
        pass
    assert value(metrics, "tiebreak_stage_seconds_count", stage="read") == 1


def test_a_node_counts_what_it_answers(tmp_path: Path) -> None:
    async def talk() -> None:
        async with Solo(tmp_path) as solo:
            await list_market(solo, "alice")
            client = await solo.stream("trader", "alice")
            await client.submit(order("sell", 1, "9.00"), order("buy", 10**9, "9.00"), order("sell", 1, "9.001"))
            metrics = solo.node.metrics
            before = value(metrics, "tiebreak_commands_total", entry="stream", answer="done")
            await client.submit(order("sell", 1, "9.00"))
            assert value(metrics, "tiebreak_commands_total", entry="stream", answer="done") == (before or 0) + 1
            assert value(metrics, "tiebreak_commands_total", entry="stream", answer="refused") == 1
            assert value(metrics, "tiebreak_commands_total", entry="stream", answer="failed") == 1
            assert (value(metrics, "tiebreak_connections", kind="stream") or 0) >= 1
            assert value(metrics, "tiebreak_connections_max", kind="tcp") == solo.app.config.limits.connections_max
            async with solo.client.get("/metrics") as response:
                text = await response.text()
            assert "tiebreak_ready 1.0" in text
            assert "tiebreak_connections_refused_total 0.0" in text
            assert (value(metrics, "tiebreak_disk_free_bytes") or 0) > 0
            assert "tiebreak_queue_depth" in text
            await client.close()
            await asyncio.sleep(0.05)
            assert value(metrics, "tiebreak_connections", kind="stream") == 0

    run(talk())


def test_forwarded_commands_are_counted_on_both_sides() -> None:
    async def main() -> None:
        follower, leader = Bench(), Bench()
        follower.follow("dc-b")
        waits = follower.submitter.start([account(1), account(2)], timeout_ms=1_000)
        for _, kind, body in follower.engine.sent:
            leader.submitter.received("dc-a", kind, body)
        await asyncio.sleep(0.01)
        for payload in leader.engine.log:
            follower.engine.commit(payload)
        await waits
        assert (follower.submitter.forwarded, follower.submitter.taken_in, follower.submitter.resent) == (2, 0, 0)
        assert (leader.submitter.forwarded, leader.submitter.taken_in) == (0, 2)

    asyncio.run(main())
