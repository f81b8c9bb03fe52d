"""The benchmark of two sites cut apart while users write on both: what is lost, and how soon they are equal."""

import asyncio
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import Struct

from bench import host
from bench.load import waited_s
from bench.report import Figure, Report, at_most, exactly
from bench.running import RunError, run_loop
from bench.stats import percentile
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.measure import Side, Two
from gateway.prefs.service import Prefs

HEAL_MS_MAX = 5_000.0
WAIT_S = 60.0
LINKED_S = 10.0
USERS = 1_000
"""Whose preferences both sites have before the first cut."""
OWN_USERS = 50
SHARED_USERS = 25
SHARED_ALERTS = 4
RATE_PER_S = 100

Key = tuple[str, str]
"""A user, and the id of an alert; without one, the user's name in the ranking."""
Value = str | int | None
"""A name, or an alert's price; None: it is not there."""


class Kept(Struct):
    """The last write of each key that one site acknowledged."""

    own: dict[Key, Value] = {}
    shared: dict[Key, Value] = {}
    writes: int = 0
    took_ms: list[float] = []


class Cut(Struct, frozen=True):
    """heal_ms: until both are equal; -1: not within a minute. waited_ms: of it, while others had the core.

    gone: keys whose last write only a lost disk had.
    """

    writes: int
    contested: int
    lost: int
    heal_ms: float
    waited_ms: float
    took_ms: list[float]
    gone: int = 0
    wipe_ms: float = 0.0


def partition(
    folder: Path, *, runs: int = 3, cut_s: float = 3.0, rate_per_s: int = RATE_PER_S, seed: int = 1
) -> Report:
    """Two sites cut apart, preferences and alerts written on both: 0 lost, equal within 5 s; once a disk is lost."""
    began = time.monotonic()
    root = folder / "gateway-partition"
    root.mkdir(parents=True, exist_ok=True)
    cuts, lost_disk = run_loop(_partition(root, runs, cut_s, rate_per_s, seed))
    heals = [cut.heal_ms if cut.heal_ms >= 0 else WAIT_S * 1e3 for cut in cuts]
    took = [ms for cut in cuts for ms in cut.took_ms]
    return Report(
        benchmark="gateway-partition",
        figures=[
            exactly("acknowledged writes lost", sum(cut.lost for cut in cuts), 0),
            Figure("equal after the heal, median", percentile(heals, 50), "ms"),
            at_most("equal after the heal, longest", max(heals), HEAL_MS_MAX, "ms"),
            Figure(
                "  of the longest, while others had the core", max(cuts, key=lambda cut: cut.heal_ms).waited_ms, "ms"
            ),
            Figure("writes during the cuts, both sites", sum(cut.writes for cut in cuts)),
            Figure("keys that both sites wrote", sum(cut.contested for cut in cuts)),
            Figure("a write, p50", percentile(took, 50), "ms"),
            Figure("a write, p99", percentile(took, 99), "ms"),
            exactly("a site without its disk: acknowledged writes lost", lost_disk.lost, 0),
            at_most(
                "  equal after the heal",
                lost_disk.heal_ms if lost_disk.heal_ms >= 0 else WAIT_S * 1e3,
                HEAL_MS_MAX,
                "ms",
            ),
            Figure("  of it, while others had the core", lost_disk.waited_ms, "ms"),
            Figure("  writes during the cut, both sites", lost_disk.writes),
            Figure("  keys whose last write only the lost disk had", lost_disk.gone),
            Figure("  the site was away for", lost_disk.wipe_ms, "ms"),
        ],
        settings={
            "runs": f"{runs}, and one with a lost disk",
            "cut_s": cut_s,
            "writes_per_s": f"{rate_per_s} at each site",
            "users": USERS,
            "mix": "half to keys that both sites write; names in the ranking, alerts set, alerts removed",
            "link": "mutual TLS through a proxy that drops every byte and keeps the connections open",
            "seed": seed,
        },
        host=host.describe(folder),
        seconds=time.monotonic() - began,
        notes=[
            "lost: a key that after the heal is not, at both sites, what one site wrote to it last; an alert that one "
            "site set last and the other removed must be there",
            "the lost disk: halfway through the cut; what that site had acknowledged since the cut began goes with it, "
            "as promised, and counts apart; everything else must be there",
            "both sites run in one process, with a store on disk each; an answered write is synced",
        ],
    )


async def _partition(folder: Path, runs: int, cut_s: float, rate_per_s: int, seed: int) -> tuple[list[Cut], Cut]:
    two = Two(folder)
    await two.start()
    try:
        await asyncio.gather(
            *(two.a.prefs.change(f"user-{n}", {"leaderboard_name": f"Bull {n}"}) for n in range(USERS))
        )
        await _equal(two)
        cuts = [await _cut(two, number, cut_s, rate_per_s, seed) for number in range(runs)]
        return cuts, await _cut(two, runs, cut_s, rate_per_s, seed, wipe=True)
    finally:
        await two.stop()


async def _equal(two: Two) -> None:
    """Linked, and nothing left to tell. Raises RunError."""
    deadline = time.monotonic() + LINKED_S
    while len(two.a.links.live_sites()) < 2 or len(two.b.links.live_sites()) < 2:
        if time.monotonic() > deadline:
            raise RunError(f"the sites are not linked after {LINKED_S:g} s")
        await asyncio.sleep(0.02)
    if await two.until_equal(LINKED_S) < 0:
        raise RunError(f"the sites are not equal after {LINKED_S:g} s, before any cut")


async def _cut(two: Two, number: int, cut_s: float, rate_per_s: int, seed: int, *, wipe: bool = False) -> Cut:
    two.gap.cut = True
    wipe_ms = 0.0
    if not wipe:
        a, b = await asyncio.gather(
            *(_write(side, number, cut_s, rate_per_s, f"{seed} {number} {side.site}") for side in (two.a, two.b))
        )
        gone: dict[Key, Value] = {}
        writes = a.writes + b.writes
    else:
        writing = asyncio.create_task(_write(two.a, number, cut_s, rate_per_s, f"{seed} {number} dc-a"))
        before = await _write(two.b, number, cut_s / 2, rate_per_s, f"{seed} {number} dc-b")
        began = time.monotonic()
        await two.b.stop()
        shutil.rmtree(two.b.folder)
        await two.start_side(two.b)
        wipe_ms = (time.monotonic() - began) * 1e3
        b = await _write(two.b, number, cut_s / 2, rate_per_s, f"{seed} {number} dc-b again")
        a = await writing
        gone = {key: value for key, value in (before.own | before.shared).items() if key not in b.own | b.shared}
        writes = a.writes + b.writes + before.writes
    if two.equal():
        raise RunError("the sites were not cut apart: nothing was measured")
    two.gap.cut = False
    waited_before = waited_s()
    healed_s = await two.until_equal(WAIT_S)
    waited_ms = (waited_s() - waited_before) * 1e3
    missing = sum(lost(partial(_shown, side.prefs), a, b, gone) for side in (two.a, two.b))
    return Cut(
        writes=writes,
        contested=len(a.shared.keys() & b.shared.keys()),
        lost=missing,
        heal_ms=healed_s * 1e3 if healed_s >= 0 else -1,
        waited_ms=waited_ms,
        took_ms=a.took_ms + b.took_ms,
        gone=len(gone),
        wipe_ms=wipe_ms,
    )


async def _write(side: Side, number: int, seconds: float, rate_per_s: int, seed: str) -> Kept:
    """One write after the other, each when it is due or as soon as the one before is answered."""
    chance, kept = random.Random(seed), Kept()
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        shared = chance.random() < 0.5
        if shared:
            user = f"both-{number}-{chance.randrange(SHARED_USERS)}"
        else:
            user = f"{side.site}-{number}-{chance.randrange(OWN_USERS)}"
        alert = f"alert-{chance.randrange(SHARED_ALERTS)}" if chance.random() < 0.6 else ""
        key, held = (user, alert), kept.shared if shared else kept.own
        value: Value
        if not alert:
            value = f"{side.site} {kept.writes}"
            await side.prefs.change(user, {"leaderboard_name": value})
        elif held.get(key) is not None and chance.random() < 0.4:
            value = None
            await side.prefs.remove_alert(user, alert)
        else:
            value = (kept.writes + 1) * 1_000 + (side.site == "dc-b")
            await side.prefs.put_alert(user, alert, Terms("AAPL", Condition.above, price_e9=value))
        held[key] = value
        kept.took_ms.append((time.monotonic() - now) * 1e3)
        kept.writes += 1
        await asyncio.sleep(max(0.0, began + kept.writes / rate_per_s - time.monotonic()))
    return kept


def lost(shown: Callable[[Key], Value], a: Kept, b: Kept, gone: dict[Key, Value]) -> int:
    """Keys that one site does not show as they must be."""
    found = 0
    for key in a.own.keys() | b.own.keys() | a.shared.keys() | b.shared.keys():
        allowed = {kept[key] for kept in (a.own, b.own, a.shared, b.shared) if key in kept}
        if len(allowed) > 1:
            allowed.discard(None)  # set on one side while it was removed on the other: it stays
        found += shown(key) not in allowed
    # What only the lost disk had may be gone, and must not come back as something that it never was at the end.
    only_there = {key: value for key, value in gone.items() if key not in a.own and key not in a.shared}
    return found + sum(shown(key) not in (None, value) for key, value in only_there.items())


def _shown(prefs: Prefs, key: Key) -> Value:
    user, alert = key
    if not alert:
        return prefs.preferences(user).leaderboard_name
    return next((one.terms.price_e9 for one in prefs.alerts(user) if one.alert_id == alert), None)
