"""Changes of the cluster, asked of any member: the leader makes them, once, and how they ended is told as it is."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.consensus.engine import (
    ChangeUnknown,
    EngineStatus,
    GroupStatus,
    NoLeader,
    NotLeader,
    PeerStatus,
    Role,
)
from cluster.membership import Add, Change, Demote, Promote, Remove
from cluster.topology import Member, Standing
from node import changes
from node.changes import ASK, Changes
from node.errors import NodeError
from node.leading import CLOSE_ENTRIES, Leading
from tests.node.fakes import SoloEngine, make_config, named, running

SHORT_MS = 300
OPERATOR: dict[str, Any] = {"role": "operator", "accounts": ("*",)}


MEMBERS = ("dc-a", "dc-b", "dc-c", "tiebreaker")


class Group:
    """Members that share one truth about who leads. lost: messages that never arrive. takes_s: a hand-over's time.

    handed_over: who was asked to, with whom. refuses: the leader's engine does not get it done.
    """

    def __init__(self, leader: str = "dc-a") -> None:
        self.leader: str | None = leader
        self.term = 1
        self.index = 0
        self.configuration = SoloEngine("dc-a", ("dc-b", "dc-c", "tiebreaker")).configuration
        self.dies_after_logging = False
        self.takes_s = 0.0
        self.at_once = self.at_once_max = 0
        self.refuses = False
        self.lag = dict.fromkeys(MEMBERS, 0)
        self.gone: set[str] = set()
        self.lost: list[str] = []
        self.handed_over: list[tuple[str, str | None]] = []
        self.engines = {name: Engine(self, name) for name in MEMBERS}
        self.changes = {name: Changes(one, Leading(one, one.successors)) for name, one in self.engines.items()}

    def leads(self, member: str | None) -> None:
        self.leader, self.term = member, self.term + 1


class Engine(SoloEngine):
    def __init__(self, group: Group, member: str) -> None:
        super().__init__(member, tuple(name for name in MEMBERS if name != member))
        self.all = group

    def status(self) -> EngineStatus:
        group = self.all
        self.leader, self.term, self.index = group.leader, group.term, 1_000
        self.role = Role.leader if group.leader == self.member else Role.follower
        status = super().status()
        for place, name in enumerate(self.others):
            status.peers[place] = PeerStatus(name, name not in group.gone, 1_000 - group.lag[name], 0, 1)
        return status

    def successors(self) -> list[str]:
        found = [peer for peer in self.status().peers if peer.connected and peer.name != "tiebreaker"]
        return [peer.name for peer in sorted(found, key=lambda peer: -peer.matched_index)]

    def send(self, member: str, kind: str, body: bytes) -> bool:
        if member in self.all.gone:
            return False
        if kind in self.all.lost:
            return True
        asyncio.get_running_loop().call_soon(self.all.changes[member].received, self.member, kind, body)
        return True

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        self.all.handed_over.append((self.member, target))
        self.all.at_once += 1
        self.all.at_once_max = max(self.all.at_once_max, self.all.at_once)
        await asyncio.sleep(self.all.takes_s)
        self.all.at_once -= 1
        if self.all.refuses:
            return False
        self.all.leads(target)
        return True

    def group(self) -> GroupStatus:
        return GroupStatus(self.all.index, True, self.all.configuration)

    async def change_membership(self, change: Change, *, timeout_ms: int) -> GroupStatus:
        if isinstance(change, Remove) and change.name == self.member:
            self.all.leads("dc-b")
            raise NotLeader("handed over")
        self.configuration = self.all.configuration
        await super().change_membership(change, timeout_ms=timeout_ms)
        if self.configuration is not self.all.configuration:
            self.all.index, self.all.configuration = self.all.index + 1, self.configuration
        if self.all.dies_after_logging:
            self.all.dies_after_logging = False
            self.all.leads("dc-b")
            raise ChangeUnknown("stopped leading")
        return self.group()


def run(talk: Callable[[Group], Awaitable[None]], leader: str = "dc-a") -> None:
    async def main() -> None:
        group = Group(leader)
        async with asyncio.timeout(10):
            await talk(group)
        for one in group.changes.values():
            await one.stop()

    asyncio.run(main())


async def word(asked: Awaitable[Any]) -> str:
    """How it ended: the word of its error, or who leads now."""
    try:
        return str((await asked).leader)
    except NodeError as error:
        return error.error


@pytest.mark.parametrize("asked", ["dc-a", "dc-b", "dc-c", "tiebreaker"])
def test_any_member_may_be_asked_and_a_repeat_does_no_more(asked: str) -> None:
    async def talk(group: Group) -> None:
        for _ in range(2):
            view = await group.changes[asked].transfer("dc-b", timeout_ms=2_000)
            assert (view.leader, view.term) == ("dc-b", 2)
        assert group.handed_over == [("dc-a", "dc-b")]

    run(talk)


# asked for, and how it ends when dc-a leads, dc-b lags and dc-c is not connected
ENDS = [
    ("dc-a", "dc-a"),
    ("nobody", "member_not_found"),
    ("tiebreaker", "member_is_witness"),
    ("dc-c", "member_not_reached"),
    ("dc-b", "member_behind"),
]


@pytest.mark.parametrize("asked", ["dc-a", "dc-b"])
@pytest.mark.parametrize(("target", "end"), ENDS)
def test_what_can_not_be_is_named_and_not_done(asked: str, target: str, end: str) -> None:
    async def talk(group: Group) -> None:
        group.gone.add("dc-c")
        group.lag["dc-b"] = CLOSE_ENTRIES + 1
        assert await word(group.changes[asked].transfer(target, timeout_ms=SHORT_MS)) == end
        assert group.handed_over == []

    run(talk)


def test_one_that_is_nearly_there_is_waited_for() -> None:
    async def talk(group: Group) -> None:
        group.lag["dc-b"] = CLOSE_ENTRIES + 1
        handing = asyncio.create_task(group.changes["dc-a"].transfer("dc-b", timeout_ms=5_000))
        await asyncio.sleep(0.1)
        assert group.handed_over == []
        group.lag["dc-b"] = CLOSE_ENTRIES
        assert (await handing).leader == "dc-b"

    run(talk)


def test_without_a_name_the_furthest_takes_over_and_only_once() -> None:
    async def talk(group: Group) -> None:
        group.lag["dc-b"] = 1
        group.takes_s = 0.2
        # Its question reaches the leader; the answer does not come back, so it asks again.
        group.lost.append(changes.TOLD)
        handing = asyncio.create_task(group.changes["dc-b"].transfer(timeout_ms=2_000))
        await asyncio.sleep(0.3)
        group.lost.clear()
        assert (await handing).leader == "dc-c"
        assert group.handed_over == [("dc-a", "dc-c")]
        # The same request again, with the leader that it was meant for.
        assert (await group.changes["dc-b"].transfer(source="dc-a", timeout_ms=2_000)).leader == "dc-c"
        assert group.handed_over == [("dc-a", "dc-c")]

    run(talk)


def test_nobody_to_hand_over_to() -> None:
    async def talk(group: Group) -> None:
        group.gone |= {"dc-b", "dc-c"}
        assert await word(group.changes["dc-a"].transfer(timeout_ms=SHORT_MS)) == "member_not_reached"

    run(talk)


def test_without_a_leader_nothing_was_done() -> None:
    async def talk(group: Group) -> None:
        group.leads(None)
        assert await word(group.changes["dc-a"].transfer("dc-b", timeout_ms=SHORT_MS)) == "no_leader"
        # A witness that leads hands over by itself; until then nobody leads for clients.
        group.leads("tiebreaker")
        assert await word(group.changes["dc-a"].transfer("dc-b", timeout_ms=SHORT_MS)) == "no_leader"
        assert group.handed_over == []

    run(talk)


def test_an_election_meanwhile_is_waited_for() -> None:
    async def talk(group: Group) -> None:
        group.leads(None)
        handing = asyncio.create_task(group.changes["dc-b"].transfer("dc-a", timeout_ms=5_000))
        await asyncio.sleep(0.1)
        group.leads("dc-c")
        assert (await handing).leader == "dc-a"
        assert group.handed_over == [("dc-c", "dc-a")]

    run(talk)


def test_what_is_not_known_is_not_told_as_failed() -> None:
    async def talk(group: Group) -> None:
        group.refuses = True  # its engine gave up, but the target may have been told to take over
        for asked in ("dc-a", "dc-b"):
            assert await word(group.changes[asked].transfer("dc-b", timeout_ms=2_000)) == "change_unknown"
        group.lost.append(changes.TOLD)
        assert await word(group.changes["dc-b"].transfer("dc-b", timeout_ms=SHORT_MS)) == "change_unknown"
        group.lost[:] = [ASK]
        assert await word(group.changes["dc-b"].transfer("dc-b", timeout_ms=SHORT_MS)) == "change_unknown"

    run(talk)


def test_a_leader_that_is_not_reached_was_not_asked() -> None:
    async def talk(group: Group) -> None:
        group.gone.add("dc-a")
        assert await word(group.changes["dc-b"].transfer("dc-b", timeout_ms=SHORT_MS)) == "no_leader"

    run(talk)


def test_many_at_once_are_one_after_the_other() -> None:
    async def talk(group: Group) -> None:
        group.takes_s = 0.05
        asked = [
            group.changes[name].transfer(target, timeout_ms=5_000)
            for target in ("dc-b", "dc-c")
            for name in ("dc-a", "dc-b", "dc-c", "tiebreaker")
        ]
        found = await asyncio.gather(*asked)
        assert [view.leader for view in found] == ["dc-b"] * 4 + ["dc-c"] * 4
        # However often it was asked for, leadership moved once per change of mind.
        assert all(source != target for source, target in group.handed_over)
        assert group.at_once_max == 1

    run(talk)


def new(name: str, **other: Any) -> Member:
    fields = {"standing": Standing.learner} | other
    return msgspec.structs.replace(named(name, 50), **fields)


@pytest.mark.parametrize("asked", MEMBERS)
def test_members_change_wherever_it_is_asked_for_and_once(asked: str) -> None:
    async def talk(group: Group) -> None:
        steps = [
            (Add(new("dc-d")), "learner", 1),
            (Add(new("dc-d")), "learner", 1),
            (Promote("dc-d"), "voter", 2),
            (Promote("dc-d"), "voter", 2),
            (Add(new("dc-d")), "voter", 2),
            (Demote("dc-d"), "learner", 3),
            (Remove("dc-d"), "", 4),
            (Remove("dc-d"), "", 4),
        ]
        for change, standing, index in steps:
            view = await group.changes[asked].change(change, timeout_ms=2_000)
            found = {one.name: one.standing for one in view.members}
            assert (found.get("dc-d", ""), view.configuration_index) == (standing, index), change
            assert view == await group.changes[asked].look(timeout_ms=2_000)
        assert view.removed == ["dc-d"]

    run(talk)


# of 1+1+1+1, dc-a leading: a change and the word of its refusal
REFUSED = [
    (Promote("nobody"), "member_not_found"),
    (Demote("nobody"), "member_not_found"),
    (Remove("nobody"), "member_not_found"),
    (Add(new("dc-b")), "change_refused"),
    (Add(new("dc-d", standing=Standing.voter)), "change_refused"),
    (Add(new("dc-d", peer_port=10_001, peer_host="127.0.0.1")), "change_refused"),
    (Add(new("d d")), "change_refused"),
]


@pytest.mark.parametrize("asked", ["dc-a", "dc-b"])
@pytest.mark.parametrize(("change", "says"), REFUSED)
def test_changes_that_can_not_be(asked: str, change: Change, says: str) -> None:
    async def talk(group: Group) -> None:
        assert await word(group.changes[asked].change(change, timeout_ms=2_000)) == says
        assert group.index == 0

    run(talk)


def test_a_name_that_was_removed_is_not_unknown() -> None:
    async def talk(group: Group) -> None:
        changes = group.changes["dc-b"]
        await changes.change(Remove("dc-c"), timeout_ms=2_000)
        assert await word(changes.change(Promote("dc-c"), timeout_ms=2_000)) == "change_refused"
        assert await word(changes.change(Add(new("dc-c")), timeout_ms=2_000)) == "change_refused"
        assert await word(changes.transfer("dc-c", timeout_ms=2_000)) == "member_not_found"

    run(talk)


def test_one_that_does_not_vote_can_not_lead() -> None:
    async def talk(group: Group) -> None:
        await group.changes["dc-b"].change(Demote("dc-c"), timeout_ms=2_000)
        assert await word(group.changes["dc-b"].transfer("dc-c", timeout_ms=2_000)) == "member_not_voter"

    run(talk)


@pytest.mark.parametrize("asked", ["dc-a", "dc-c"])
def test_a_leader_that_is_removed_hands_over_and_the_next_one_does_it(asked: str) -> None:
    async def talk(group: Group) -> None:
        view = await group.changes[asked].change(Remove("dc-a"), timeout_ms=2_000)
        assert (view.leader, view.removed) == ("dc-b", ["dc-a"])

    run(talk)


@pytest.mark.parametrize("asked", ["dc-a", "dc-c"])
def test_a_change_of_which_the_leader_is_not_sure_is_asked_of_the_next_one(asked: str) -> None:
    async def talk(group: Group) -> None:
        group.dies_after_logging = True
        view = await group.changes[asked].change(Add(new("dc-d")), timeout_ms=2_000)
        assert (view.leader, view.configuration_index) == ("dc-b", 1)

    run(talk)


def test_who_may_have_made_it_is_not_answered_for_by_another() -> None:
    async def talk(group: Group) -> None:
        group.lost.append(changes.TOLD)
        asking = asyncio.create_task(word(group.changes["dc-c"].change(Promote("dc-d"), timeout_ms=2_000)))
        await asyncio.sleep(0.1)
        group.lost.clear()
        group.leads("dc-b")
        # dc-b knows of no dc-d; but dc-a was asked, and has not said so.
        assert await asking == "change_unknown"

    run(talk)


def test_a_bug_in_a_leader_is_not_told_as_a_refusal() -> None:
    async def talk(group: Group) -> None:
        group.engines["dc-a"].read_index = None  # type: ignore[assignment]
        assert await word(group.changes["dc-b"].look(timeout_ms=SHORT_MS)) == "internal_error"

    run(talk)


@pytest.mark.parametrize("asked", [("dc-a", "dc-a", "dc-a"), ("dc-b", "dc-b", "dc-c")])
def test_too_many_are_turned_away(asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the member that is asked, and by a leader that many ask."""

    async def talk(group: Group) -> None:
        group.takes_s = 0.2
        monkeypatch.setattr(changes, "WAITING_MAX", 2)
        waiting = [word(group.changes[name].transfer("dc-c", timeout_ms=2_000)) for name in asked]
        assert sorted(await asyncio.gather(*waiting)) == ["dc-c", "dc-c", "overloaded"]

    run(talk)


def test_garbage_is_an_error_of_its_sender() -> None:
    async def talk(group: Group) -> None:
        for kind in (ASK, changes.TOLD):
            with pytest.raises(ValueError, match="of dc-b"):
                group.changes["dc-a"].received("dc-b", kind, b"\xc1")
        assert not group.changes["dc-a"].received("dc-b", "forward", b"\xc1")

    run(talk)


def test_over_http(tmp_path: Path) -> None:
    async def main() -> None:
        engine = SoloEngine()
        async with running(make_config(tmp_path), engine) as caller:
            path = "/v1/cluster/transfer"
            assert await caller.ok("POST", path, {"to": "dc-a"}, **OPERATOR) == {"leader": "dc-a", "term": 1}
            for body, status, error in (
                ({"to": "nobody"}, 404, "member_not_found"),
                ({"to": "tiebreaker"}, 409, "member_is_witness"),
                ({"to": "x" * 65}, 422, "invalid_field"),
                ({"whom": "dc-b"}, 400, "malformed"),
                ({"to": "dc-b"}, 503, "change_unknown"),
            ):
                found, told, _ = await caller.call("POST", path, body, **OPERATOR)
                assert (found, told["error"]) == (status, error), told
                assert told.get("definite", True) == (error != "change_unknown")
            engine.refuse = NoLeader("none")
            found, told, _ = await caller.call("POST", f"{path}?timeout_ms=100", {"to": "dc-a"}, **OPERATOR)
            assert (found, told["error"]) == (503, "no_leader")
            found, told, _ = await caller.call("POST", path, {"to": "dc-b"})
            assert (found, told["error"]) == (403, "forbidden")

    asyncio.run(main())


def test_members_over_http(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(make_config(tmp_path), SoloEngine()) as caller:
            path = "/v1/cluster/members"
            added = msgspec.to_builtins(named("dc-c", 60)) | {"standing": "read_replica"}
            shown = await caller.ok("POST", path, added, **OPERATOR)
            assert shown == await caller.ok("POST", path, added, **OPERATOR)
            assert [one["standing"] for one in shown["members"]] == ["voter"] * 3 + ["read_replica"]
            for query in ("", "?consistency=local"):
                assert await caller.ok("GET", path + query, role="auditor", accounts=()) == shown
            steps = [
                ("POST", f"{path}/dc-c/promote", 409, "change_refused"),
                ("POST", f"{path}/nobody/promote", 404, "member_not_found"),
                ("POST", f"{path}/dc-b/demote", 409, "change_refused"),
                ("DELETE", f"{path}/dc-b", 409, "change_refused"),
            ]
            for method, where, status, error in steps:
                found, told, _ = await caller.call(method, where, **OPERATOR)
                assert (found, told["error"]) == (status, error), told
            for body, status, error in (
                (added | {"standing": "voter"}, 422, "invalid_field"),
                (added | {"peer_port": 0}, 422, "invalid_field"),
                (added | {"peer": "x"}, 400, "malformed"),
            ):
                found, told, _ = await caller.call("POST", path, body, **OPERATOR)
                assert (found, told["error"]) == (status, error), told
            for method, where in (("POST", path), ("DELETE", f"{path}/dc-c"), ("GET", path)):
                found, told, _ = await caller.call(method, where, added if method == "POST" else None)
                assert (found, told["error"]) == (403, "forbidden")
            after = await caller.ok("DELETE", f"{path}/dc-c", **OPERATOR)
            assert after["removed"] == ["dc-c"]
            found, told, _ = await caller.call("GET", f"{path}?consistency=perhaps", **OPERATOR)
            assert (found, told["field"]) == (422, "consistency")

    asyncio.run(main())
