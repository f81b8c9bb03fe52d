"""Storms and deploys: who may come in and when, and how everyone is sent away."""

import asyncio
import random

import pytest

from gateway.stream.admission import Admission, StreamLimits
from tests.gateway.stream.serving import Client, Serving


def test_a_storm_comes_back_at_the_admitted_rate() -> None:
    """10,000 at once, 500 a second admitted: those turned away are given moments that the rate can take."""
    now_s = 0.0
    limits = StreamLimits(admitted_per_s=500.0, admitted_burst=500, wait_s_max=60.0)
    admission = Admission(limits, clock=lambda: now_s, chance=random.Random(1))
    waits = [admission.admit() for _ in range(10_000)]
    assert sum(wait == 0 for wait in waits) == 500
    coming = sorted(wait for wait in waits if wait)
    assert 18 < coming[-1] < 24, "as long as the rate needs, and a fifth"
    worst = max(sum(second <= wait < second + 1 for wait in coming) for second in range(24))
    assert worst <= 600, worst
    # They do come back then; each gets in after few more tries.
    tries = 0
    for moment_s in coming:
        now_s = moment_s
        tries += bool(admission.admit())
    assert tries < 500, tries


def test_nobody_is_told_to_wait_for_ever() -> None:
    limits = StreamLimits(admitted_per_s=1.0, admitted_burst=1, wait_s_max=10.0)
    admission = Admission(limits, clock=lambda: 0.0, chance=random.Random(1))
    waits = [admission.admit() for _ in range(1_000)]
    assert max(waits) <= 12.0
    late = [wait for wait in waits if wait > 5.0]
    assert len({round(wait, 2) for wait in late}) > 100, "they do not all come back at one moment"


async def test_who_is_turned_away_is_told_when_to_come_back() -> None:
    async with Serving(limits=StreamLimits(admitted_per_s=0.2, admitted_burst=3)).running() as serving:
        refusals = []
        for _ in range(10):
            try:
                await serving.client()
            except ConnectionError as error:
                refusals.append(str(error))
        assert len(serving.server.connections) == 3
        assert len(refusals) == 7 == serving.server.admission.refused
        assert all(" 503 " in one and "Retry-After" in one and "retry_after_ms" in one for one in refusals)
        wait_ms = [float(one.split("X-Retry-After-Ms: ")[1].split("\r\n")[0]) for one in refusals]
        assert wait_ms == sorted(wait_ms) and wait_ms[0] < 7_000 and 25_000 < wait_ms[-1] < 45_000


async def test_a_drain_sends_everyone_away_in_steps() -> None:
    async with Serving().running() as serving:
        clients = [await serving.client() for _ in range(20)]
        for client in clients:
            await client.subscribe("trades", "AAPL")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        ends: list[float] = []
        waits: list[int] = []
        resumes: set[str] = set()

        async def leave(client: Client) -> None:
            closing = await client.until("closing")
            ends.append(loop.time() - began_s)
            waits.append(closing["retry_after_ms"])
            resumes.add(closing["resume"])
            with pytest.raises(ConnectionError, match=r"1012 draining resume=\d+\.1 retry_after_ms="):
                await client.message()

        serving.append("trades", "AAPL", 1)
        leaving = [asyncio.create_task(leave(client)) for client in clients]
        await serving.server.drain(timeout_ms=1_000, spread_ms=5_000)
        await asyncio.gather(*leaving)
        assert max(ends) - min(ends) > 0.7, "not all at once"
        assert resumes == {f"{serving.rings.epoch}.1"}
        assert len(set(waits)) > 10 and max(waits) <= 5_000
        with pytest.raises(ConnectionError, match="503"):
            await serving.client()
