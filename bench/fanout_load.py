"""A load generator for streams, one process of many: thousands of sockets behind one epoll, frames barely looked at.

It shares the cores with what it measures, so it costs as little as it can: no event loop, no decoding but of samples.
Started by fanout_case.py with its options in its argument. It says on stdout when all are subscribed, takes on stdin
when to measure, and says what it counted.
"""

import base64
import os
import random
import select
import socket
import struct
import sys
import time
from array import array

import msgspec
from msgspec import Struct

SAMPLE_EVERY = 50
"""Of so many frames one is decoded, for the age of what is in it."""
UNDER_WAY_MAX = 256
READ_BYTES = 65_536
_AT_SEQ = struct.Struct(">Q")
_MASK = b"\x00\x00\x00\x00"
"""A mask of zeros leaves the payload as it is; servers must take any."""


class LoadOptions(Struct, frozen=True, kw_only=True):
    """hosts: connections go to each in turn. catalogue: how many symbols there are, S0 and on."""

    hosts: list[str]
    port: int
    sockets: int
    symbols: int
    catalogue: int
    token: str
    seed: int
    json: bool = False
    rate: str = "live"


class Loaded(Struct, frozen=True):
    """connect_s: until the last one was subscribed. retries: connections that had to be tried again."""

    connected: int
    connect_s: float
    retries: int


class Counted(Struct, frozen=True):
    """Between begin and end. latency_us: from the beginning of the round of sending to here, of each frame, sorted in
    hundredths: 101 values. age_us: from when a sampled update became true to the round that sent it, likewise.
    """

    frames: int
    updates: int
    bytes: int
    latency_us: list[int]
    age_us: list[int]
    whole_us: list[int]
    """From when a sampled update became true to here."""
    open: int
    receiving: int
    """How many sockets got something."""
    cpu_s: float


class Loader:
    """Sockets by descriptor; `rest`: the beginning of a frame whose end has not come yet."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.chance = random.Random(options.seed)
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.waiting: dict[int, float] = {}
        """Not subscribed yet, with when the connection began."""
        self.rest: dict[int, bytes] = {}
        self.retries = 0
        self.frames = self.updates = self.bytes = 0
        self.heard: set[int] = set()
        self.latency_us = array("q")
        self.age_us = array("q")
        self.whole_us = array("q")
        self.measuring = False

    # ---- connecting ----

    def connect_all(self) -> Loaded:
        began_s = time.monotonic()
        opened, wanted = 0, self.options.sockets
        while opened < wanted or self.waiting:
            while opened < wanted and len(self.waiting) < UNDER_WAY_MAX:
                self._connect(opened)
                opened += 1
            self.turn(0.05)
            for descriptor, since_s in list(self.waiting.items()):
                if time.monotonic() - since_s > 20.0:
                    self._again(descriptor)
        return Loaded(len(self.sockets), time.monotonic() - began_s, self.retries)

    def _connect(self, number: int) -> None:
        host = self.options.hosts[number % len(self.options.hosts)]
        sock = socket.socket()
        sock.connect((host, self.options.port))
        sock.sendall(self.greeting(base64.b64encode(self.chance.randbytes(16)).decode()))
        sock.setblocking(False)
        self.sockets[sock.fileno()] = sock
        self.waiting[sock.fileno()] = time.monotonic()
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def greeting(self, key: str) -> bytes:
        """What opens the WebSocket."""
        protocol = "tiebreak.json" if self.options.json else "tiebreak.msgpack"
        return (
            f"GET /v1/stream HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n"
            f"Authorization: Bearer {self.options.token}\r\n\r\n".encode()
        )

    def _again(self, descriptor: int) -> None:
        self.waiting.pop(descriptor, None)
        self.rest.pop(descriptor, None)
        self.poll.unregister(descriptor)
        self.sockets.pop(descriptor).close()
        self.retries += 1
        self._connect(self.chance.randrange(1 << 16))

    def _subscribe(self, descriptor: int) -> None:
        names = [f"S{number}" for number in self.chance.sample(range(self.options.catalogue), self.options.symbols)]
        payload = self.wanting(names)
        size, opcode = len(payload), 0x81 if self.options.json else 0x82
        head = bytes((opcode, 0x80 | size)) if size < 126 else struct.pack(">BBH", opcode, 0x80 | 126, size)
        self.sockets[descriptor].send(head + _MASK + payload)

    def wanting(self, names: list[str]) -> bytes:
        """What subscribes to these symbols."""
        body = {"action": "subscribe", "channel": "nbbo", "symbols": names, "rate": self.options.rate}
        return msgspec.json.encode(body) if self.options.json else msgspec.msgpack.encode(body)

    # ---- reading ----

    def turn(self, timeout_s: float) -> None:
        for descriptor, _ in self.poll.poll(timeout_s, 1_024):
            try:
                data = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._lost(descriptor)
            elif descriptor in self.waiting:
                self._greeted(descriptor, data)
            else:
                rest = self.rest.pop(descriptor, b"") if self.rest else b""
                self._frames(descriptor, rest + data if rest else data)

    def _lost(self, descriptor: int) -> None:
        if descriptor in self.waiting:
            self._again(descriptor)
        else:
            self.poll.unregister(descriptor)
            self.sockets.pop(descriptor).close()

    def _greeted(self, descriptor: int, data: bytes) -> None:
        data = self.rest.pop(descriptor, b"") + data
        head, found, tail = data.partition(b"\r\n\r\n")
        if not found:
            self.rest[descriptor] = data
        elif b" 101 " not in head[:20]:
            self._again(descriptor)
        else:
            del self.waiting[descriptor]
            self._subscribe(descriptor)
            if tail:
                self._frames(descriptor, tail)

    def _frames(self, descriptor: int, data: bytes) -> None:
        at, end = 0, len(data)
        now_us = time.time_ns() // 1_000 if self.measuring else 0
        while end - at >= 2:
            size, begin = data[at + 1], at + 2
            if size == 126:
                if end - at < 4:
                    break
                size, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                if end - at < 10:
                    break
                size, begin = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if end - begin < size:
                break
            if now_us and size > 20:
                self.count(descriptor, data, begin, size, now_us)
            at = begin + size
        if at < end:
            self.rest[descriptor] = data[at:]

    def count(self, descriptor: int, data: bytes, begin: int, size: int, now_us: int) -> None:
        """A data frame in msgpack is [at_us, seq, [..]]: 0x93 0xcf at 0xcf seq, and how many there are."""
        if data[begin] == 0x93:
            (at_us,) = _AT_SEQ.unpack_from(data, begin + 2)
            count = data[begin + 19] & 0x0F if data[begin + 19] & 0xF0 == 0x90 else int.from_bytes(
                data[begin + 20 : begin + 22], "big"
            )  # fmt: skip
        elif data[begin : begin + 16] == b'{"stream":"data"':
            at_us = int(data[begin + 25 : begin + 41])
            count = data.count(b'"channel"', begin, begin + size)
        else:
            return
        self.tally(descriptor, count, size)
        self.latency_us.append(now_us - at_us)
        if self.frames % SAMPLE_EVERY == 0:
            born_us = self._born(data[begin : begin + size])
            self.age_us.extend(at_us - one for one in born_us)
            self.whole_us.extend(now_us - one for one in born_us)

    def tally(self, descriptor: int, updates: int, size: int) -> None:
        self.frames += 1
        self.updates += updates
        self.bytes += size
        self.heard.add(descriptor)

    def _born(self, payload: bytes) -> list[int]:
        """When each update of a frame became true."""
        if self.options.json:
            found = msgspec.json.decode(payload)["updates"]
            return [one["as_of_us"] for one in found if one["channel"] == "nbbo"]
        return [one[1][7] for one in msgspec.msgpack.decode(payload)[2] if one[0] == 2]

    def measure(self, begin_s: float, end_s: float) -> Counted:
        """Wall-clock times. Reads on meanwhile and until then."""
        while time.time() < begin_s:
            self.turn(0.01)
        self.measuring = True
        cpu_s = time.process_time()
        while time.time() < end_s:
            self.turn(0.01)
        cpu_s = time.process_time() - cpu_s
        return Counted(
            self.frames, self.updates, self.bytes, hundredths(self.latency_us), hundredths(self.age_us),
            hundredths(self.whole_us), len(self.sockets), len(self.heard), cpu_s,
        )  # fmt: skip


def hundredths(values: array) -> list[int]:  # type: ignore[type-arg]
    """The percentiles 0 to 100."""
    found = sorted(values)
    return [found[min(len(found) - 1, len(found) * part // 100)] for part in range(101)] if found else []


def main(kind: type[Loader] = Loader) -> None:
    """Talks with fanout_case.py in lines of JSON."""
    loader = kind(msgspec.json.decode(sys.argv[1], type=LoadOptions))
    sys.stdout.buffer.write(msgspec.json.encode(loader.connect_all()) + b"\n")
    sys.stdout.buffer.flush()
    os.set_blocking(0, False)
    line = b""
    while not line.endswith(b"\n"):  # the sockets are read meanwhile: who does not read is cut
        loader.turn(0.05)
        try:
            got = os.read(0, 1_024)
        except BlockingIOError:
            continue
        if not got:
            return
        line += got
    begin_s, end_s = msgspec.json.decode(line)
    counted = loader.measure(begin_s, end_s)
    sys.stdout.buffer.write(msgspec.json.encode(counted) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
