"""The final reads: when all is healed, what became of every key, who owns what, and whether the copies are equal."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import cycle
from typing import Any, TypeVar

from msgspec.structs import replace

from chaos.history.records import Final, Replica
from chaos.workloads import at_gateways, requests
from chaos.workloads.ap import VALUES
from chaos.workloads.connection import Connections
from chaos.workloads.context import Context
from chaos.workloads.operation import Reply, Request, operate
from chaos.workloads.process import Process

TIMEOUT_S = 120.0
KEYS_PER_S_MIN = 200
"""How fast keys are read at the least; a long run has many, and more time."""
QUIET_S = 1.5
"""Beyond the deadline of the last call: by then no member still holds a command that nobody waits for."""
SITES_S = 30.0
POLL_S = 0.05
READERS = 16
READ_S = 2.0
ACCOUNTS_PER_READ = 64
NAMES_CHARS_MAX = 2_000
"""Of the accounts that one token names: a longer token is not taken."""
WORKLOAD = "final"

Item = TypeVar("Item")
Site = dict[str, dict[str, Any]]
"""By user: items and values."""


class _Late(Exception):
    """The time was over. The message says what for."""


async def read_final(context: Context, *, healed_at_ns: int, timeout_s: float = TIMEOUT_S) -> Final:
    """Read everything back. Call it when the workloads have stopped and every fault is healed.

    healed_at_ns: the monotonic clock when the last fault was taken away; convergence counts from there.
    timeout_s: for all that is not a read of a key. What could not be read in time is missing, and `complete` false,
    with why.
    """
    reading = _Reading(context, timeout_s)
    try:
        sites = asyncio.ensure_future(reading.sites(healed_at_ns))
        final = await reading.cluster()
        found, converged_ms = await sites
        return replace(
            final, sites=found, converged_ms=converged_ms, complete=not reading.missing, why="; ".join(reading.missing)
        )
    finally:
        await reading.close()


async def read_after_restart(context: Context, final: Final, *, timeout_s: float = TIMEOUT_S) -> Final:
    """The same once more when all members were stopped and started: their digests, and what they now say of keys and
    balances, in place of what they said before. A member that forgot something contradicts the history."""
    reading = _Reading(context, timeout_s)
    try:
        again = await reading.cluster()
        whole = final.complete and not reading.missing
        missing = [f"after the restart: {what}" for what in reading.missing]
        return replace(
            final,
            complete=whole,
            why="; ".join([*([final.why] if final.why else []), *missing]),
            index=again.index or final.index,
            outcomes={**final.outcomes, **again.outcomes},
            balances=again.balances or final.balances,
            digests_after_restart=again.digests,
        )
    finally:
        await reading.close()


class _Reading:
    """missing: what could not be read, in words."""

    def __init__(self, context: Context, timeout_s: float) -> None:
        self._context = context
        self._deadline = time.monotonic() + timeout_s + len(context.keys) / KEYS_PER_S_MIN
        self._connections: list[Connections] = []
        self.missing: list[str] = []

    async def close(self) -> None:
        for one in self._connections:
            await one.close()

    async def cluster(self) -> Final:
        """What the members say. Nothing else is written meanwhile, so nothing that is read changes any more."""
        final = Final(complete=True)
        try:
            index = await self._barrier()
            outcomes = await self._outcomes(index)
            final = replace(final, outcomes=outcomes)
            at, balances = await self._balances()
            final = replace(final, index=at, balances=balances)
            final = replace(final, digests=await self._digests())
        except _Late as late:
            self.missing.append(str(late))
        return final

    async def _barrier(self) -> int:
        """A command by way of each member, behind all that was sent before, applied by every replica.

        What was sent earlier and is not in the log by then was given up by every member that held it.
        """
        context = self._context
        await asyncio.sleep(context.deadline_ms / 1000 + QUIET_S)
        process = Process(context, WORKLOAD, next(iter(context.members)))
        index = 0
        try:
            for target in context.members:
                account = f"{WORKLOAD}-{context.seed}-{process.number}-{target}"
                context.accounts.add(account)
                reply = await self._until_ok(process, requests.open_account(account, key=account), target)
                index = max(index, reply.index)
        finally:
            await process.close()
        await asyncio.gather(*(self._reaches(target, index) for target in context.members))
        return index

    async def _until_ok(self, process: Process, request: Request, target: str) -> Reply:
        while True:
            reply = await process.ask(request, target)
            if reply.outcome == "ok":
                return reply
            await self._pause(f"{target} takes no command ({reply.error})")

    async def _reaches(self, target: str, index: int) -> None:
        connections = self._new()
        while True:
            status = await self._ask(connections, target, requests.read_status())
            if status.outcome == "ok" and status.answer["applied_index"] >= index:
                return
            await self._pause(f"{target} does not reach index {index}")

    async def _outcomes(self, index: int) -> dict[str, dict[str, Any]]:
        """Asked where they are: every replica is behind the barrier, and no key comes after it."""
        found: dict[str, dict[str, Any]] = {}
        members = list(self._context.members)

        async def read(connections: Connections, numbered: tuple[int, tuple[str, str]]) -> None:
            number, (key, scope) = numbered
            while True:
                number += 1
                request = requests.read_outcome(key, scope, consistency="local")
                reply = await self._ask(connections, members[number % len(members)], request)
                if reply.outcome == "ok" and reply.index >= index:
                    found[key] = reply.answer
                    return
                await self._pause(f"nobody says what became of key {key} ({reply.error})")

        await self._spread(enumerate(list(self._context.keys.items())), read)
        return found

    async def _balances(self) -> tuple[int, dict[str, dict[str, list[str]]]]:
        """Of all accounts, linearizably and at one index: read again where the log went on in between."""
        parts = _parts(sorted(self._context.accounts))
        members = list(self._context.members)
        readers = [self._new() for _ in parts]
        for target in cycle(members):
            replies = await asyncio.gather(
                *(
                    self._ask(reader, target, requests.read_accounts(part))
                    for reader, part in zip(readers, parts, strict=True)
                )
            )
            if all(reply.outcome == "ok" for reply in replies) and len({reply.index for reply in replies}) <= 1:
                balances = {name: of for reply in replies for name, of in reply.answer["balances"].items()}
                return (replies[0].index if replies else 0), balances
            await self._pause("the accounts can't be read at one index")
        raise _Late("the accounts can't be read at one index")

    async def _digests(self) -> list[Replica]:
        """Of every replica after the same entry, the newest that one of them has."""
        members = list(self._context.members)
        readers = [self._new() for _ in members]

        async def ask(request: Request) -> list[Reply]:
            pairs = zip(readers, members, strict=True)
            return list(await asyncio.gather(*(self._ask(reader, target, request) for reader, target in pairs)))

        while True:
            replies = await ask(requests.read_status())
            if all(reply.outcome == "ok" for reply in replies):
                index = max(reply.answer["applied_index"] for reply in replies)
                replies = await ask(requests.read_status(digest_at=index))
                if all(reply.outcome == "ok" and reply.answer["digest_index"] == index for reply in replies):
                    pairs = zip(members, replies, strict=True)
                    return [Replica(target, index, reply.answer["digest"]) for target, reply in pairs]
            silent = [target for target, reply in zip(members, replies, strict=True) if reply.outcome != "ok"]
            await self._pause(
                f"no index at which all replicas say their digest (silent: {', '.join(silent) or 'none'})"
            )

    # ---- gateways ----

    async def sites(self, healed_at_ns: int) -> tuple[dict[str, Site], int]:
        """What each gateway has of every user, and how long after the heal all had the same; -1: never in time.

        Users whose copies are equal are not asked again: nobody writes any more.
        """
        gateways = list(self._context.gateways)
        found: dict[str, Site] = {gateway: {} for gateway in gateways}
        differing = sorted(self._context.users)
        deadline = min(self._deadline, time.monotonic() + SITES_S)
        while differing:

            async def read(connections: Connections, pair: tuple[str, str]) -> None:
                user, gateway = pair
                found[gateway][user] = await self._user(connections, user, gateway)

            try:
                await self._spread([(user, gateway) for user in differing for gateway in gateways], read)
            except _Late as late:
                self.missing.append(str(late))
                return found, -1
            differing = [user for user in differing if len({_form(found[gateway][user]) for gateway in gateways}) > 1]
            if differing and time.monotonic() >= deadline:
                return found, -1
            await asyncio.sleep(POLL_S if differing else 0)
        return found, (time.monotonic_ns() - healed_at_ns) // 1_000_000 if gateways and self._context.users else -1

    async def _user(self, connections: Connections, user: str, gateway: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for request in (at_gateways.read_items(user), at_gateways.read_values(user, VALUES)):
            while True:
                reply = await self._ask(connections, gateway, request, subject=f"final-{user}"[:64])
                if reply.outcome == "ok":
                    found |= reply.answer
                    break
                await self._pause(f"{gateway} does not say what {user} has ({reply.error})")
        return found

    # ---- how ----

    def _new(self) -> Connections:
        self._connections.append(Connections())
        return self._connections[-1]

    async def _ask(self, connections: Connections, target: str, request: Request, *, subject: str = WORKLOAD) -> Reply:
        """Reads only; not part of the history: what they say stands in final.json."""
        context = self._context
        token = context.tokens.token(request.role, request.accounts, subject=subject)
        return await operate(connections, context.address(target), request, token=token, timeout_s=READ_S)

    async def _pause(self, what: str) -> None:
        if time.monotonic() >= self._deadline:
            raise _Late(what)
        await asyncio.sleep(POLL_S)

    async def _spread(self, items: Iterable[Item], work: Callable[[Connections, Item], Awaitable[None]]) -> None:
        """All of it, some at a time. Raises the first failure, when the others have ended."""
        waiting = list(items)[::-1]

        async def some(connections: Connections) -> None:
            while waiting:
                await work(connections, waiting.pop())

        tasks = [asyncio.ensure_future(some(self._new())) for _ in range(min(READERS, len(waiting)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _parts(names: list[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    for name in names:
        if not parts or len(parts[-1]) == ACCOUNTS_PER_READ or sum(map(len, parts[-1])) + len(name) > NAMES_CHARS_MAX:
            parts.append([])
        parts[-1].append(name)
    return parts


def _form(site: dict[str, Any]) -> tuple[Any, ...]:
    """To compare by, without regard to order."""
    return tuple(sorted(site["items"])), tuple(sorted(site["values"].items()))
