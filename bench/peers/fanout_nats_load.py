"""The load generator of fanout_load.py for NATS: the same sockets and the same reading, its words in the frames."""

import msgspec

from bench.fanout_load import SAMPLE_EVERY, Loader, main

MESSAGE = b"MSG S"
"""Each update begins so: its subject is a symbol."""
END = b"\r\n"


class NatsLoader(Loader):
    """Text of the protocol in binary frames, several messages in one where the server had them together."""

    def greeting(self, key: str) -> bytes:
        return (
            f"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def wanting(self, names: list[str]) -> bytes:
        who = msgspec.json.encode({"verbose": False, "pedantic": False, "auth_token": self.options.token})
        wanted = "".join(f"SUB {name} {number}\r\n" for number, name in enumerate(names, 1))
        return b"CONNECT " + who + END + wanted.encode()

    def count(self, descriptor: int, data: bytes, begin: int, size: int, now_us: int) -> None:
        """Timed by the first message of a frame, which is the oldest: of every frame, as ours are."""
        updates = data.count(MESSAGE, begin, begin + size)
        if not updates:
            return
        self.tally(descriptor, updates, size)
        born_us = self._first_born_us(data, begin, begin + size)
        if born_us:
            self.latency_us.append(now_us - born_us)
            if self.frames % SAMPLE_EVERY == 0:
                self.whole_us.append(now_us - born_us)

    def _first_born_us(self, data: bytes, begin: int, end: int) -> int:
        """When the first update became true; 0 where the frame does not begin with one."""
        if not data.startswith(MESSAGE, begin):
            return 0
        head_end = data.index(END, begin, end)
        payload_bytes = int(data[data.rindex(b" ", begin, head_end) : head_end])
        first = head_end + len(END)
        as_of_us: int = msgspec.msgpack.decode(data[first : first + payload_bytes])[1][7]
        return as_of_us


if __name__ == "__main__":
    main(NatsLoader)
