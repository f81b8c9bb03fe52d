"""A gateway's worker that notes when each quote passes it: `python -m bench.spans.quote_worker FOLDER OPTIONS`.

Frames are noted for some clients only, which come from an address of their own: noting all would cost as much as
sending. On SIGUSR1 what was noted goes to FOLDER/worker-NUMBER.stamps.
"""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path
from time import monotonic_ns, thread_time_ns
from typing import Any

import msgspec
import uvloop

from bench.spans.quote_kinds import KINDS, TRACED_HOST, number_of
from bench.spans.stamps import Stamps
from gateway.fanout.hub import Hub, Round
from gateway.stream import server
from gateway.stream.connection import Connection
from gateway.workers import worker
from gateway.workers.link import CoreLink
from gateway.workers.words import Tick
from gateway.workers.worker import Worker, WorkerOptions
from node.tracing import configure_logging

NBBO = 2
stamps = Stamps(KINDS)
add = stamps.add
_packed = msgspec.msgpack.Decoder(tuple[int, list[Any]])


class Now:
    received = 0


class StampedLink(CoreLink):
    def data_received(self, data: bytes) -> None:
        Now.received = monotonic_ns()
        super().data_received(data)

    def _tick(self, message: Tick) -> None:
        received = Now.received
        super()._tick(message)
        published = monotonic_ns()
        for row in message.newest:
            if row.channel == "nbbo" and row.msgpack:
                add("Reached", number_of(_packed.decode(row.msgpack)[1][2]), received, published)


class StampedHub(Hub):
    began = marked = 0

    async def flush(self) -> None:
        self.began = monotonic_ns()
        self.marked = 0
        await super().flush()
        add("Turn", self.round.at_us, self.began, self.marked)

    def _mark(self) -> None:
        super()._mark()
        self.marked = monotonic_ns()


class StampedConnection(Connection):
    port = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        host, port, *_ = self.transport.get_extra_info("peername")
        if host == TRACED_HOST:
            self.port = port

    def write(self, now: Round) -> int:
        if not self.port:
            return super().write(now)
        writing, cpu = monotonic_ns(), thread_time_ns()
        sent = super().write(now)
        if sent:
            add("Wrote", self.port, now.at_us, writing, monotonic_ns(), thread_time_ns() - cpu)
        return sent


def main() -> None:
    folder, text = sys.argv[1:]
    options = WorkerOptions.parse(text)
    configure_logging("warning", member=f"worker-{options.number}")
    vars(worker)["Hub"] = StampedHub
    vars(worker)["CoreLink"] = StampedLink
    vars(server)["Connection"] = StampedConnection

    async def run() -> None:
        write = partial(stamps.write, Path(folder) / f"worker-{options.number}.stamps")
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write)
        await Worker(options).run()

    uvloop.run(run())


if __name__ == "__main__":
    main()
