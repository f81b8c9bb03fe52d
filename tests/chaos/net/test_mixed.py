"""Two links, each through its own kind of proxy: one verb, both kinds, one run."""

import asyncio
from pathlib import Path

import pytest

from chaos.net import server
from chaos.net.links import Link, NotCut
from chaos.net.mixed import MixedNetwork
from tests.chaos.net.echo import HOST, Client, Echo, free_port


@pytest.mark.skipif(bool(server.unavailable()), reason=server.unavailable() or "there")
def test_each_link_has_the_proxy_that_it_needs(tmp_path: Path) -> None:
    async def run() -> None:
        echo = Echo()
        await echo.start()
        plain, special = (
            Link(f"{dialer}->dc-a", "peer", dialer, "dc-a", (HOST, free_port()), (HOST, echo.port))
            for dialer in ("dc-b", "tiebreaker")
        )
        network = MixedNetwork(tmp_path, lambda link: link.dialer == "tiebreaker")
        await network.open([plain, special])
        clients = [await Client.dial(plain), await Client.dial(special)]
        try:
            for client in clients:
                await client.talk(b"before")
            for link in (plain, special):
                await network.stall(link.name)
            for client in clients:
                client.say(b"held")
            assert await asyncio.gather(*(client.silent() for client in clients)) == [True, True]
            await network.heal_all()
            for client in clients:
                assert await client.hear(4) == b"held"
            await network.hold_old(special.name)
            with pytest.raises(NotCut, match="OwnNetwork"):
                await network.hold_old(plain.name)
            with pytest.raises(NotCut, match="no link x"):
                await network.heal("x")
            assert network.restarts == []
        finally:
            for client in clients:
                client.close()
            await network.close()
            await echo.end()

    asyncio.run(run())
