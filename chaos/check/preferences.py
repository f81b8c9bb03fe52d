"""What gateways take on any side of a cut: no acknowledged item is lost, none comes back, the last writer wins."""

from collections import defaultdict

from msgspec import Struct

from chaos.check.judging import Wrong, invalid, judge
from chaos.check.told import Told
from chaos.check.verdict import Check
from chaos.history.file import NEVER_NS, Op

Item = tuple[str, str]


class Life(Struct):
    """Calls that concern one item, each id being added once at most."""

    adds: list[Op]
    removes: list[Op]


def check_items(told: Told) -> Check:
    """By the history and by what each gateway has in the end."""
    if lacks := told.lacks("final.json"):
        return invalid("items", lacks)
    lives: dict[Item, Life] = defaultdict(lambda: Life([], []))
    sets: dict[Item, list[Op]] = defaultdict(list)
    reads = []
    for op in told.history.ops:
        if op.kind == "add":
            lives[op.args["user"], op.args["item"]].adds.append(op)
        elif op.kind == "remove":
            lives[op.args["user"], op.args["item"]].removes.append(op)
        elif op.kind == "set":
            sets[op.args["user"], op.args["name"]].append(op)
        elif op.kind == "read_items" and op.ok:
            reads.append(op)
    wrong: Wrong = []
    for site, users in sorted(told.final.sites.items()):
        for (user, item), life in lives.items():
            has = user in users and item in users[user].get("items", ())
            if why := _wrong_in_the_end(life, has=has):
                wrong.append((f"{site}, {user}, {item}: {why}", {"site": site, "user": user, "item": item}))
        for user, of in users.items():
            wrong += [
                (f"{site} has {item} of {user}, which nobody added", {"site": site, "user": user, "item": item})
                for item in of.get("items", ())
                if (user, item) not in lives
            ]
        for (user, name), ops in sets.items():
            value = users.get(user, {}).get("values", {}).get(name)
            if why := _wrong_value(ops, value):
                wrong.append((f"{site}, {user}: {name} is {value!r}; {why}", {"site": site, "user": user}))
    by_user: dict[str, dict[str, Life]] = defaultdict(dict)
    for (user, item), life in lives.items():
        by_user[user][item] = life
    for read in reads:
        mine = by_user[read.args["user"]]
        wrong += [(f"operation {read.op}: {why}", read.said()) for why in _wrong_in_between(read, mine)]
    counts = {
        "items": len(lives),
        "added": sum(any(op.ok for op in life.adds) for life in lives.values()),
        "removed": sum(any(op.ok for op in life.removes) for life in lives.values()),
        "reads": len(reads),
    }
    return judge("items", "no acknowledged item is lost, and none that was removed came back", wrong, counts)


def _wrong_in_the_end(life: Life, *, has: bool) -> str:
    if has:
        if all(op.outcome == "fail" for op in life.adds):
            return "it was refused, and is there"
        last_add_ns = max(op.return_ns for op in life.adds)
        if any(op.ok and op.call_ns > last_add_ns for op in life.removes):
            return "it was removed, and came back"
        return ""
    if any(op.ok for op in life.adds) and all(op.outcome == "fail" for op in life.removes):
        return "it was added and acknowledged, and is lost"
    return ""


def _wrong_value(ops: list[Op], value: str | None) -> str:
    """A value that was overwritten at the same gateway can't win: later stamps there are higher, whatever the clock."""
    if value is None:
        return "it was set and acknowledged, and is lost" if any(op.ok for op in ops) else ""
    writers = [op for op in ops if op.args["value"] == value and op.outcome != "fail"]
    if not writers:
        return "nobody wrote that"
    for writer in writers:
        later = [op for op in ops if op.ok and op.target == writer.target and op.call_ns > writer.return_ns]
        if not later:
            return ""
    return "it was overwritten at the same gateway"


def _wrong_in_between(read: Op, lives: dict[str, Life]) -> list[str]:
    """A gateway shows what it took itself, and nothing that was taken away there. lives: this user's, by item."""
    if "items" not in read.answer:
        return []
    shown = set(read.answer["items"])
    found = [f"it shows {item}, which nobody added" for item in sorted(shown - lives.keys())]
    for item, life in lives.items():
        here = [op for op in life.adds if op.ok and op.target == read.target and op.return_ns < read.call_ns]
        gone = any(op.outcome != "fail" and op.call_ns < read.return_ns for op in life.removes)
        if here and not gone and item not in shown:
            found.append(f"it does not show {item}, which was added here")
        ended_ns = max((op.return_ns for op in life.adds), default=NEVER_NS)
        removed = [op for op in life.removes if op.ok and op.target == read.target and op.return_ns < read.call_ns]
        if item in shown and any(op.call_ns > ended_ns for op in removed):
            found.append(f"it shows {item}, which was removed here")
    return found
