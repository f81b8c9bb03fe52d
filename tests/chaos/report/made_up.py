"""A run's folder as a real run leaves it, made up from a seed: two cuts, a kill, elections, refusals and unknowns."""

import random
from pathlib import Path

import msgspec

from chaos.check.verdict import Check, Verdict
from chaos.history.records import Call, Fault, Line, Outcome, Phase, Return, Seen
from chaos.history.run import Planned, Run, write_run

SECOND = 1_000_000_000
BEGAN_NS = 5_000 * SECOND
CUTS = ((10.0, 22.0), (34.0, 42.0))
KILL = (47.0, 49.5)
ELECTION_S = 0.7
SITES = {"dc-a": "dc-a", "dc-b": "dc-b", "tiebreaker": "tiebreaker", "gateway-dc-a": "dc-a", "gateway-dc-b": "dc-b"}


def make_run(folder: Path, *, seed: int = 7, verdict: Verdict | None = None) -> Path:
    """Write run.json, history.jsonl and verdict.json (unless it is None) into a new folder."""
    folder.mkdir(parents=True)
    plan = [
        Planned(1, 5.0, 12.0, "dc-cut", ["dc-a", "dc-b"], {"tiebreaker": "dc-b"}),
        Planned(2, 29.0, 8.0, "dc-cut", ["dc-a", "dc-b"], {"tiebreaker": "dc-a"}),
        Planned(3, 42.0, 2.5, "kill", ["leader"]),
    ]
    run = Run(
        scenario="dc-cut",
        seed=seed,
        seconds=60.0,
        shape="1+1+1",
        engine="hardened",
        program="shipped",
        repeat_with=f"tiebreak chaos run dc-cut --seconds 60 --seed {seed} --shape 1+1+1",
        versions={"commit": "0123abc", "python": "3.11.2", "toxiproxy": "2.12.0"},
        started_at="2026-11-20T12:00:00Z",
        plan=plan,
        expect=["dc-cut"],
        min_ok=1_000,
        sites=SITES,
        story="The network between the datacenters is cut. The tiebreaker stays with one side, which must go on.",
    )
    write_run(folder, run)
    encode = msgspec.json.Encoder().encode
    lines = sorted(_lines(random.Random(seed)), key=lambda line: line.at_ns)
    (folder / "history.jsonl").write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    if verdict is not None:
        (folder / "verdict.json").write_bytes(msgspec.json.encode(verdict))
    return folder


def passed() -> Verdict:
    checks = [
        Check(
            "index replay", "pass", "every answer is the one that the log gives", {"operations": 9_812, "reads": 2_301}
        ),
        Check("idempotence", "pass", "no key was executed twice", {"keys": 7_511}),
        Check("convergence", "pass", "both sites have the same preferences after the heal", {"users": 64}),
    ]
    return Verdict(
        "pass",
        checks,
        {
            "converged_ms": 812,
            "outage_p50_ms": 713.0,
            "gateway_reads": 481,
            "gateway_reads_answered": 480,
            "answered_by_gateway-dc-a_percent": 100.0,
        },
    )


def failed() -> Verdict:
    lost = {"op": 17, "kind": "transfer", "key": "<b>k-17</b>", "answer": {"moved": "5"}}
    checks = [
        Check("acknowledged", "fail", "1 acknowledged command is not in the log", {"acknowledged": 9_812}, [lost]),
        *passed().checks,
    ]
    return Verdict("fail", checks)


def _at(seconds: float) -> int:
    return BEGAN_NS + int(seconds * SECOND)


def _lines(chance: random.Random) -> list[Line]:
    lines: list[Line] = [
        Phase(_at(-3), "start"),
        Phase(_at(0), "warmup"),
        Phase(_at(5), "faults"),
        Phase(_at(56), "healing"),
        Phase(_at(60), "final"),
        Phase(_at(68), "end"),
    ]
    for number, (cut_from, cut_to) in enumerate(CUTS, 1):
        targets = ["dc-b->dc-a", "gateway-dc-a->gateway-dc-b", "tiebreaker->dc-a"]
        lines.append(Fault(number, _at(cut_from), "dc-cut", "begin", targets, {"way": "both"}))
        lines.append(Fault(number, _at(cut_from + 0.3), "dc-cut", "bite", targets, {"seen": "no echo in 500 ms"}))
        lines.append(Fault(number, _at(cut_to), "dc-cut", "end", targets))
    lines.append(Fault(3, _at(KILL[0]), "kill", "begin", ["dc-a"]))
    lines.append(Fault(3, _at(KILL[0] + 0.1), "kill", "bite", ["dc-a"], {"seen": "pid gone"}))
    lines.append(Fault(3, _at(KILL[1]), "kill", "end", ["dc-a"]))
    lines.append(Fault(4, _at(50), "clock-jump", "begin", ["dc-b"], {"jump_ms": 900}))
    lines.append(Fault(4, _at(51), "clock-jump", "failed", ["dc-b"]))
    lines += _sightings()
    op = 0
    for name in ("dc-a", "dc-b", "gateway-dc-a", "gateway-dc-b"):
        at = 0.1
        while at < 59:
            at += chance.expovariate(60 if name.startswith("gateway") else 45)
            op += 1
            lines += _operation(chance, op, name, at)
    return lines


def _sightings() -> list[Line]:
    lines: list[Line] = []
    for tenth in range(680):
        at = tenth / 10
        leader, term = _leader(at)
        for name in SITES:
            dead = name == "dc-a" and KILL[0] <= at < KILL[1]
            state = "leader" if name == leader else "follower"
            pid = 400 if name == "dc-a" and at >= KILL[1] else 300
            detail = {"pid": pid, "counters": {"truncations": 1 if at > 22 else 0, "pre_votes": tenth // 100}}
            if dead:
                lines.append(Seen(_at(at), name, up=False))
            elif name.startswith("gateway"):
                lines.append(Seen(_at(at), name, up=True))
            else:
                lines.append(Seen(_at(at), name, up=True, state=state, term=term, detail=detail))
    return lines


def _leader(at: float) -> tuple[str, int]:
    changes = ((0.0, "dc-a", 2), (CUTS[0][0], "dc-b", 3), (CUTS[1][0], "dc-a", 4), (KILL[0], "dc-b", 5))
    leader, term = "", 1
    for since, name, number in changes:
        if at >= since + (ELECTION_S if since else 0):
            leader, term = name, number
        elif at >= since:
            leader, term = "", number - 1
    return leader, term


def _operation(chance: random.Random, op: int, name: str, at: float) -> list[Line]:
    outcome: Outcome = "ok"
    took = chance.uniform(0.002, 0.02)
    if not name.startswith("gateway"):
        leader, _ = _leader(at)
        cut_off = [name != _leader(cut_to - 0.1)[0] for cut_from, cut_to in CUTS if cut_from <= at < cut_to]
        dead = name == "dc-a" and KILL[0] <= at < KILL[1]
        if dead:
            outcome = "fail"
        elif any(cut_off) or not leader:
            outcome = "unknown" if chance.random() < 0.25 else "fail"
            took = 1.0 if outcome == "unknown" else 0.3
    if name.startswith("gateway"):
        call = Call(op, op % 15, _at(at), "ap", "read_quotes", name, args={"symbols": ["AAPL"]})
    else:
        call = Call(op, op % 15, _at(at), "bank", "open_account", name, f"k-{op}", {"account": f"bank-{op}"})
    if outcome == "unknown" and op % 3 == 0:
        return [call]
    error = {"fail": "no_quorum", "unknown": "outcome_unknown"}.get(outcome, "")
    return [call, Return(op, _at(at + took), outcome, error=error)]
