"""The workloads against a real cluster: each does what it says, and the final reads find what was answered."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise

import pytest
from msgspec import Struct

from chaos.history.file import NEVER_NS, History, Op, read_history
from chaos.history.records import Final
from chaos.workloads.context import Context
from chaos.workloads.crew import Crew
from chaos.workloads.final import read_after_restart, read_final
from chaos.workloads.idempotence import SENT_MAX
from chaos.workloads.register import OPS_MAX
from chaos.workloads.workloads import WORKLOADS
from tests.chaos.workloads.cluster import Cluster, running

TOGETHER = ("bank", "orders", "idempotence", "register", "list-append", "reads", "ap")
APART = ("snapshot-storm", "upgrade")
TOGETHER_CALLS, APART_CALLS, KILLED_CALLS = 1_500, 400, 300
CALLS_S_MAX = 60.0
"""A run lasts for so many calls, however slow the machine; the last one for as many again with a member away."""
RATE_PER_S = 300.0
PROCESSES = 21

KINDS = {
    "bank": {"transfer", "read_accounts", "read_account"},
    "orders": {"place_order", "replace_order", "cancel_order", "read_order", "read_account"},
    "idempotence": {"deposit", "transfer", "request_withdrawal", "open_account", "place_order"},
    "register": {"read_open_orders", "replace_order", "set_reference", "read_reference", "place_order"},
    "list-append": {"open_account", "deposit", "transfer", "read_ledger"},
    "reads": {"deposit", "read_account"},
    "ap": {"add", "remove", "set", "read_items", "read_quotes", "read_portfolio", "read_leaderboard"},
    "snapshot-storm": {"open_account", "deposit", "transfer", "read_status"},
    "upgrade": {
        "place_order", "cancel_order", "request_withdrawal", "close_withdrawal", "change_instrument", "set_reference",
        "transfer", "read_status",
    },
}  # fmt: skip
OK_SHARE = dict.fromkeys(WORKLOADS, 0.8) | {"idempotence": 0.6}
"""Idempotence gives up a part of its calls before they can be answered."""
DONE_SHARE = dict.fromkeys(WORKLOADS, 0.7) | {"idempotence": 0.5, "register": 0.55}
"""Answered with something else than a rule's refusal."""


class Told(Struct):
    """What three runs over one cluster left: nothing cut, the two apart, and with a member killed and started again."""

    together: History
    apart: History
    killed: History
    context: Context
    final: Final
    again: Final


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("workloads") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def told(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("histories")

    async def asked(context: Context, calls: int) -> None:
        until, deadline = context.tally.total() + calls, time.monotonic() + CALLS_S_MAX
        while context.tally.total() < until and time.monotonic() < deadline:  # noqa: ASYNC110 - it counts, it tells nobody
            await asyncio.sleep(0.1)

    async def one(names: tuple[str, ...], seed: int, calls: int, *, kill: str = "") -> Context:
        context = cluster.context(folder / f"{seed}.jsonl", seed=seed)
        crew = Crew(context, names, rate_per_s=RATE_PER_S, processes=PROCESSES)
        await crew.setup()
        crew.start()
        await asked(context, calls)
        if kill:
            await asyncio.to_thread(cluster.launcher.kill, kill)
            await asked(context, calls)
        await crew.stop()
        assert not crew.failed
        return context

    async def all_of_it() -> tuple[Context, Final, Final]:
        for names, seed, calls in ((TOGETHER, 1, TOGETHER_CALLS), (APART, 2, APART_CALLS)):
            (await one(names, seed, calls)).writer.close()
        context = await one(TOGETHER, 3, KILLED_CALLS, kill="dc-b")
        await cluster.start_again("dc-b")
        final = await read_final(context, healed_at_ns=time.monotonic_ns())
        members = list(cluster.launcher.members)
        await asyncio.to_thread(cluster.launcher.stop, members)
        await cluster.start_again(*members)
        again = await read_after_restart(context, final)
        context.writer.close()
        return context, final, again

    context, final, again = asyncio.run(all_of_it())
    histories = [read_history(folder / f"{seed}.jsonl") for seed in (1, 2, 3)]
    return Told(*histories, context=context, final=final, again=again)


def of(history: History, workload: str) -> list[Op]:
    """Its calls; what was set up before left out."""
    return [op for op in history.ops if op.workload == workload and not op.key.startswith("setup-")]


def done(op: Op) -> bool:
    return op.ok and "error" not in op.answer


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_asks_what_it_says_and_mostly_gets_it(told: Told, name: str) -> None:
    ops = of(told.together if name in TOGETHER else told.apart, name)
    kinds = Counter(op.kind for op in ops)
    assert KINDS[name] <= set(kinds), kinds
    assert len(ops) > 30
    errors = Counter((op.kind, op.error or op.answer.get("error")) for op in ops)
    assert sum(op.ok for op in ops) >= OK_SHARE[name] * len(ops), errors
    assert sum(map(done, ops)) >= DONE_SHARE[name] * len(ops), errors


def test_no_history_tells_of_a_call_without_an_end(told: Told) -> None:
    for history in (told.together, told.apart, told.killed):
        assert not history.torn
        assert all(op.return_ns != NEVER_NS for op in history.ops)


def test_a_process_makes_one_call_at_a_time_and_none_after_an_unknown_one(told: Told) -> None:
    unknown = 0
    for history in (told.together, told.apart, told.killed):
        calls: dict[int, list[Op]] = defaultdict(list)
        for op in history.ops:
            calls[op.process].append(op)
        for ops in calls.values():
            assert all(before.return_ns <= after.call_ns for before, after in pairwise(ops))
            assert all(op.outcome != "unknown" for op in ops[:-1])
            assert len({op.workload for op in ops}) == 1
        unknown += sum(op.outcome == "unknown" for op in history.ops)
    assert unknown > 5


def test_who_is_killed_is_asked_on_and_says_nothing(told: Told) -> None:
    ends = Counter((op.target, op.outcome) for op in told.killed.ops)
    assert ends["dc-b", "fail"] > 10
    assert ends["dc-a", "ok"] > 50
    assert told.context.tally == Counter((op.target, op.outcome) for op in told.killed.ops)


def test_few_accounts_are_busy(told: Told) -> None:
    used = Counter(op.args["source"] for op in of(told.together, "bank") if op.kind == "transfer")
    busiest = sum(count for _, count in used.most_common(8))
    assert busiest > 0.35 * used.total()
    assert len(used) > 20


def test_the_whole_bank_is_read_at_one_index_and_adds_up(told: Told) -> None:
    reads = [op for op in of(told.together, "bank") if op.kind == "read_accounts" and op.ok]
    assert reads
    for op in reads:
        assert op.index and len(op.args["accounts"]) == len(op.answer["balances"]) == 64
        assert sum(Decimal(of["USD"][0]) for of in op.answer["balances"].values()) == 64_000


def test_orders_rest_fill_and_are_refused_what_they_can_not_pay(told: Told) -> None:
    placed = [op for op in of(told.together, "orders") if op.kind == "place_order"]
    statuses = Counter(op.answer.get("status", op.answer.get("error")) for op in placed)
    assert {"new", "filled", "insufficient_funds"} <= set(statuses), statuses
    assert {op.args["symbol"] for op in placed} == {"ORDA-USD", "ORDB-USD", "ORDC-USD"}


def test_keys_are_sent_again_elsewhere_and_with_other_bodies(told: Told) -> None:
    ops = of(told.together, "idempotence")
    sent: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        sent[op.key].append(op)
    assert max(map(len, sent.values())) <= SENT_MAX
    assert sum(len(group) > 1 for group in sent.values()) > 10
    assert any(len({op.target for op in group}) > 1 for group in sent.values())
    assert any(len({op.process for op in group}) > 1 for group in sent.values())
    given_up = sum(group[0].outcome == "unknown" for group in sent.values())
    assert 0.1 < given_up / len(sent) < 0.5
    assert any(op.replay for op in ops)
    assert any(op.answer.get("error") == "key_reused" for op in ops)
    for group in sent.values():
        # One result per key, whoever asks: the index of the first stands in the answers of all repeats.
        first = {op.index for op in group if done(op)}
        assert len(first) <= 1, [op.said() for op in group]


def test_registers_are_small_and_do_all_they_can(told: Told) -> None:
    ops = [op for op in of(told.together, "register") if "register" in op.args]
    used = Counter(op.args["register"] for op in ops)
    assert max(used.values()) <= OPS_MAX <= 200
    for register in used:
        assert len({op.process for op in ops if op.args["register"] == register}) <= 20
    assert {op.args["f"] for op in ops} == {"read", "write", "cas"}
    swaps = [op for op in ops if op.args["f"] == "cas"]
    assert any(map(done, swaps)) and any(op.answer.get("error") == "order_not_found" for op in swaps)
    # Each value that was read had been written, or was there when the register was made.
    written = {op.args["value"] for op in ops if "value" in op.args} | {op.key for op in of(told.together, "register")}
    seen = {op.answer["value"] for op in ops if op.args["f"] == "read" and op.ok} - {None}
    assert seen and seen <= written


def test_journals_are_read_in_full_and_only_grow(told: Told) -> None:
    ops = of(told.together, "list-append")
    elements = [op.args["element"] for op in ops if "element" in op.args]
    assert len(set(elements)) == len(elements) > 20
    read: dict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.kind == "read_ledger" and op.ok:
            assert "more" not in op.answer
            read[op.args["account"]].append(op)
    assert any(len(op.answer["rows"]) > 5 for group in read.values() for op in group)
    for group in read.values():
        for before, after in pairwise(sorted(group, key=lambda op: op.index)):
            assert after.answer["rows"][: len(before.answer["rows"])] == before.answer["rows"]
    amounts = {row[2].removeprefix("-") for group in read.values() for op in group for row in op.answer["rows"]}
    assert amounts <= set(elements)


def test_reads_are_of_every_kind_from_every_replica(told: Told, cluster: Cluster) -> None:
    ops = [op for op in of(told.together, "reads") if op.kind == "read_account"]
    kinds = Counter((op.args["consistency"], op.target) for op in ops if op.ok)
    for consistency in ("linearizable", "session", "local"):
        for member in cluster.members:
            assert kinds[consistency, member], kinds
    assert any(op.target in cluster.gateways for op in ops)
    assert all(op.index for op in ops if op.ok)
    sessions = [op for op in ops if op.args["consistency"] == "session" and op.ok]
    assert all(op.index >= op.args["seen"] > 0 for op in sessions)


def test_both_gateways_are_written_and_say_how_old_they_are(told: Told, cluster: Cluster) -> None:
    ops = of(told.together, "ap")
    for kind in ("add", "set", "read_items", "read_quotes"):
        assert {op.target for op in ops if op.kind == kind and op.ok} == set(cluster.gateways)
    quotes = [op for op in ops if op.kind == "read_quotes" and op.ok]
    assert all(0 <= op.age_ms < 60_000 for op in quotes)
    added = [op.args["item"] for op in ops if op.kind == "add"]
    assert len(set(added)) == len(added)
    removed = [op.args["item"] for op in ops if op.kind == "remove"]
    assert removed and set(removed) <= set(added)


def test_members_are_asked_where_their_log_begins(told: Told) -> None:
    seen = [op.answer for op in of(told.apart, "snapshot-storm") if op.kind == "read_status" and op.ok]
    assert seen and all(one["last_index"] >= one["first_index"] for one in seen)


def test_the_final_reads_find_what_was_answered(told: Told, cluster: Cluster) -> None:
    final = told.final
    assert final.complete, final.why
    keys = {op.key for op in told.killed.ops if op.key}
    assert keys == set(told.context.keys) == set(told.again.outcomes)
    assert all(key.startswith("final-") for key in keys - set(final.outcomes))
    for op in told.killed.ops:
        found = final.outcomes.get(op.key)
        if found is None or not done(op):
            continue
        assert found["index"] == op.index, (op.said(), found)
        assert found.get("id") == op.answer.get("id"), (op.said(), found)
    assert sum("none" in found for found in final.outcomes.values()) < len(keys) / 2
    assert len({(one.applied, one.digest) for one in final.digests}) == 1
    assert [one.name for one in final.digests] == list(cluster.members)
    assert final.index and set(final.balances) >= {f"bank-{number:02d}" for number in range(64)}


def test_both_gateways_have_the_same_in_the_end(told: Told, cluster: Cluster) -> None:
    final = told.final
    assert 0 <= final.converged_ms < 30_000
    first, second = (final.sites[gateway] for gateway in cluster.gateways)
    assert first.keys() == second.keys() == told.context.users
    for user, here in first.items():
        assert sorted(here["items"]) == sorted(second[user]["items"]) and here["values"] == second[user]["values"]
    ops = of(told.killed, "ap")
    tried = {op.args["item"] for op in ops if op.kind == "remove"}
    kept = {op.args["item"] for op in ops if op.kind == "add" and op.ok} - tried
    assert kept and kept <= {item for here in first.values() for item in here["items"]}


def test_members_that_were_all_stopped_say_the_same_again(told: Told) -> None:
    assert told.again.complete, told.again.why
    assert {key: told.again.outcomes[key] for key in told.final.outcomes} == told.final.outcomes
    assert told.again.digests == told.final.digests
    assert len({(one.applied, one.digest) for one in told.again.digests_after_restart}) == 1
    assert told.again.index > told.final.index
    assert told.again.sites == told.final.sites
