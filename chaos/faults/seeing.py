"""How a cut is seen from outside: who no longer hears whom, and which connections stand."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chaos.faults.target import Target
from chaos.net import sockets
from chaos.net.links import Link, Way

DEAF_MS = 800
"""Members that are linked hear each other at least each 200 ms."""
STALE_MS = 1_500
"""A node tells a gateway that follows it something each second."""
ESTABLISHED = "01"
FROZEN_S = 1.0


async def connections(target: Target, links: Iterable[Link]) -> dict[str, frozenset[int]]:
    """By link, the dialer's ports of the connections that stand on it; a new connection has another port.

    On another thread: the kernel takes up to a tenth of a second to list them, and clients wait on this one.
    """
    pids = {link: target.pid(link.dialer) for link in links}
    return await asyncio.to_thread(_connections, pids)


def _connections(pids: dict[Link, int | None]) -> dict[str, frozenset[int]]:
    listed: dict[str, list[list[str]]] = {}
    found: dict[str, frozenset[int]] = {}
    for link, pid in pids.items():
        try:
            network = os.readlink(f"/proc/{pid}/ns/net")
            if network not in listed:
                lines = Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]
                listed[network] = [line.split() for line in lines]
            rows = listed[network]
        except OSError:
            rows = []
        wanted = f":{link.listen[1]:04X}"
        found[link.name] = frozenset(
            int(row[1].rpartition(":")[2], 16) for row in rows if row[2].endswith(wanted) and row[3] == ESTABLISHED
        )
    return found


def deaf_ends(link: Link, way: Way) -> list[tuple[str, str]]:
    """(who hears nothing, of whom) while this way is cut."""
    ends = [(link.target, link.dialer), (link.dialer, link.target)]
    return ends if way == "both" else ends[:1] if way == "to_target" else ends[1:]


async def unheard(target: Target, pairs: Iterable[tuple[str, str]]) -> str:
    """What shows that no listener that runs hears its speaker, or nothing yet. Of members alone."""
    wanted = [(listener, speaker) for listener, speaker in pairs if target.pid(listener) is not None]
    statuses = await _ask(target, {listener for listener, _ in wanted})
    seen = ""
    for listener, speaker in wanted:
        status = statuses[listener]
        if status is None:
            return ""
        for peer in status["peers"]:
            if peer["name"] == speaker:
                if peer["connected"] and (peer["heard_ms_ago"] or 0) < DEAF_MS:
                    return ""
                word = f"heard {speaker} {peer['heard_ms_ago']} ms ago" if peer["connected"] else f"has lost {speaker}"
                seen = seen or f"{listener} {word}"
    return seen and f"{seen}; so for all of {len(wanted)}"


async def gateways_unheard(target: Target, links: Iterable[Link]) -> str:
    """What shows that site, node, feed and cache links are cut, or nothing yet.

    A gateway that reaches one of its nodes goes on with that: its node links show only where all are cut.
    """
    cut = [link for link in links if link.kind != "peer" and target.pid(link.dialer) is not None]
    statuses = await _ask(target, {link.dialer for link in cut})
    seen = []
    for link in cut:
        status = statuses[link.dialer]
        if status is None:
            return ""
        kept = [one for one in target.links if one.dialer == link.dialer and one.kind == "node" and one not in cut]
        if link.kind == "node" and kept:
            continue
        word = _lost(target, link, status)
        if not word:
            return ""
        seen.append(f"{link.dialer}: {word}")
    return "; ".join(dict.fromkeys(seen))


def _lost(target: Target, link: Link, status: dict[str, Any]) -> str:
    match link.kind:
        case "site":
            site = target.site_of(link.target)
            return "" if status["sites"].get(site, {}).get("linked", True) else f"not linked with {site}"
        case "node":
            stale_ms = status["staleness_ms"]
            return f"{stale_ms} ms stale" if stale_ms > STALE_MS else ""
        case "feed":
            return ", ".join(f"feed {name} {state}" for name, state in status["feeds"].items() if state != "up")
        case "cache":
            return "" if status["cache"] in ("ok", "starting", "none") else f"cache {status['cache']}"
        case _:
            return ""


async def frozen(links: Iterable[Link]) -> str:
    """What shows that each target sends on and its dialer gets nothing, in a second by the kernel's counts; or
    nothing yet."""
    watched = list(links)
    before = await asyncio.to_thread(_sent, watched)
    await asyncio.sleep(FROZEN_S)
    after = await asyncio.to_thread(_sent, watched)
    got = [after[link.name][1] - before[link.name][1] for link in watched]
    waits = [after[link.name][0] - before[link.name][0] for link in watched]
    if any(got) or not all(waits):
        return ""
    return f"{', '.join(map(str, waits))} bytes were sent or wait, and none arrived"


def _sent(links: list[Link]) -> dict[str, tuple[int, int]]:
    """By link: what its target wrote, and what its dialer was sent."""
    found = {link.name: (0, 0) for link in links}
    for one in sockets.connections():
        for link in links:
            wrote, reached = found[link.name]
            if one.local == link.target_at:
                found[link.name] = (wrote + one.sent_bytes + one.unsent_bytes, reached)
            elif one.local == link.listen:
                found[link.name] = (wrote, reached + one.sent_bytes)
    return found


async def _ask(target: Target, names: set[str]) -> dict[str, dict[str, Any] | None]:
    ordered = sorted(names)
    return dict(zip(ordered, await asyncio.gather(*map(target.status, ordered)), strict=True))
