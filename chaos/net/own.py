"""The process of our own proxy: takes orders on a socket that it inherits, and ends when that is closed.

A process of its own, for its loop must not wait for whatever the run does, nor the run for it.
"""

import asyncio
import socket
import sys

import msgspec
import uvloop
from msgspec import Struct

from chaos.net.lanes import Faults, Proxied, directions
from chaos.net.links import Address, Way


class Order(Struct):
    """verb: a verb of chaos.net.links.Network, or add or look. numbers: what the verb takes, in its order."""

    id: int
    verb: str
    link: str
    way: Way = "both"
    numbers: list[float] = []
    listen: Address = ("", 0)
    target_at: Address = ("", 0)


class Answer(Struct):
    """error: empty, it is done. The rest is the link afterwards; passed: bytes to the target, and to the dialer."""

    id: int
    error: str = ""
    connections: int = 0
    held: int = 0
    queued_bytes: int = 0
    passed: tuple[int, int] = (0, 0)


class Proxies:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._links: dict[str, Proxied] = {}
        self._eras = 0

    async def carry_out(self, order: Order) -> Answer:
        try:
            link = await self._link(order)
            await self._do(order, link)
        except (OSError, LookupError) as error:
            return Answer(order.id, f"{order.link}: {error}")
        return Answer(
            order.id,
            "",
            len(link.connections),
            sum(connection.held for connection in link.connections),
            sum(lane.queued_bytes for connection in link.connections for lane in connection.lanes.values()),
            (link.passed["to_target"], link.passed["to_dialer"]),
        )

    async def _link(self, order: Order) -> Proxied:
        if order.verb == "add":
            self._links[order.link] = Proxied(order.link, order.listen, order.target_at, self._seed)
        if order.link not in self._links:
            raise LookupError("there is no such link")
        return self._links[order.link]

    async def _do(self, order: Order, link: Proxied) -> None:
        match order.verb:
            case "add":
                await link.open()
            case "look":
                pass
            case "refuse":
                link.shut()
                link.end_all()
            case "reset":
                link.end_all(reset=True)
            case "hold_old":
                link.hold_old()
            case "heal":
                await link.heal()
            case _:
                for way in directions(order.way):
                    self._strike(order, link.faults[way])

    def _strike(self, order: Order, faults: Faults) -> None:
        match order.verb, order.numbers:
            case "stall", []:
                faults.stalled = True
            case "drop", []:
                faults.dropping = True
            case "slow", [latency_ms, jitter_ms]:
                faults.latency_s, faults.jitter_s = latency_ms / 1000, jitter_ms / 1000
            case "slice", [size_bytes, delay_us]:
                faults.slice_bytes, faults.slice_delay_s = int(size_bytes), delay_us / 1e6
            case "cut_after", [size_bytes]:
                self._eras += 1
                faults.cut_after_bytes, faults.era = int(size_bytes), self._eras
            case verb, numbers:
                raise LookupError(f"no verb {verb} with {numbers}")


async def serve(orders: socket.socket, seed: int) -> None:
    reader, writer = await asyncio.open_connection(sock=orders)
    proxies = Proxies(seed)
    while line := await reader.readline():
        order = msgspec.json.decode(line, type=Order)
        writer.write(msgspec.json.encode(await proxies.carry_out(order)) + b"\n")


if __name__ == "__main__":
    uvloop.run(serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
