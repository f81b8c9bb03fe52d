"""What a stranger can do to the library's port on loopback, before anybody has asked who it is; ours: test_links.py."""

import errno
import pickle
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pysyncobj
import pytest
from pysyncobj import _COMMAND_TYPE, SyncObj, SyncObjConf
from pysyncobj.encryptor import SALT, getEncryptor

from cluster.consensus.settings import FRAME_BYTES_MAX
from tests.cluster.engines import free_port
from tests.cluster.lab import Clock, StockLab
from tests.cluster.stock_disk import hears, unclosed_files_allowed


class Served(SyncObj):
    """The library on its own transport, which nobody dials but the test."""

    def __init__(self) -> None:
        self.ports = [port := free_port(3), port + 1, port + 2]
        me, self.peer, other = (f"127.0.0.1:{port}" for port in self.ports)
        timeouts = {"raftMinTimeout": 60, "raftMaxTimeout": 61, "connectionTimeout": 100}
        super().__init__(me, [self.peer, other], SyncObjConf(autoTick=False, dynamicMembershipChange=True, **timeouts))
        self.values: list[Any] = []

    @pysyncobj.replicated
    def put(self, value: Any) -> None:
        self.values.append(value)

    def entry(self, value: Any, index: int, term: int) -> tuple[bytes, int, int]:
        return b"\0" + pickle.dumps((self._methodToID["put_v0"], (value,)), 2), index, term

    @property
    def last_index(self) -> int:
        return int(self._SyncObj__raftLog[-1][1])


class Stranger:
    """A connection without any credentials."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.socket = socket.create_connection(("127.0.0.1", served.ports[0]))
        self.pump()

    def pump(self, ticks: int = 10) -> None:
        for _ in range(ticks):
            self.served.doTick(0.002)

    def says(self, *messages: Any) -> None:
        for message in messages:
            data = zlib.compress(pickle.dumps(message, 2), 3)
            self.socket.sendall(struct.pack("i", len(data)) + data)
        self.pump()

    def hears(self) -> Any:
        self.socket.settimeout(10)
        size = struct.unpack("i", self._exactly(4))[0]
        return pickle.loads(zlib.decompress(self._exactly(size)))

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += self.socket.recv(size - len(found))
        return found

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with unclosed_files_allowed():
        served = Served()
        yield served
        served.destroy()
        served.doTick(0)


@pytest.fixture
def strangers(served: Served) -> Iterator[Any]:
    opened: list[Stranger] = []

    def make() -> Stranger:
        opened.append(Stranger(served))
        return opened[-1]

    yield make
    for stranger in opened:
        stranger.close()


def appended(term: int, previous: int, entries: list[Any], commit_index: int) -> dict[str, Any]:
    head = {"type": "append_entries", "term": term, "commit_index": commit_index, "entries": entries}
    return head | {"prevLogIdx": previous, "prevLogTerm": term if previous > 1 else 0}


class Touches:
    """Unpickled, it makes a file: any other call would do as well."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_stock_runs_the_code_of_a_stranger(strangers: Any, tmp_path: Path) -> None:
    strangers().says(Touches(tmp_path / "ran"))
    assert (tmp_path / "ran").exists()


def test_stock_tells_a_stranger_its_state_and_takes_orders(served: Served, strangers: Any) -> None:
    stranger = strangers()
    stranger.says(["status"])
    assert stranger.hears()["version"] == "0.3.17"
    stranger = strangers()
    served._SyncObj__onBecomeLeader()
    served._SyncObj__raftLastApplied = served._SyncObj__noopIDx
    stranger.says(["add", "127.0.0.1:9"])
    assert served._SyncObj__raftLog[-1][0][:1] == bytes([_COMMAND_TYPE.MEMBERSHIP])


def test_stock_applies_the_command_of_whoever_says_a_members_name(served: Served, strangers: Any) -> None:
    strangers().says(served.peer, appended(5, 1, [served.entry("forged", 2, 5)], 2))
    assert served.values == ["forged"]


def test_stock_hears_a_connection_that_another_has_replaced(served: Served, strangers: Any) -> None:
    old, new = strangers(), strangers()
    old.says(served.peer)
    entries = [served.entry(value, index, 5) for index, value in enumerate("abc", 2)]
    new.says(served.peer, appended(5, 1, entries, 1))
    assert served.last_index == 4
    old.says(appended(5, 1, entries[:1], 1))
    assert served.last_index == 2, "what came on the newer one, and was acknowledged, is dropped"


def test_stock_takes_a_frame_of_any_size_and_what_it_inflates_to(served: Served, strangers: Any) -> None:
    frame = b"\0" * (FRAME_BYTES_MAX * 2)
    stranger = strangers()
    stranger.says(served.peer)
    heard: list[int] = []
    served._SyncObj__transport.setOnMessageReceivedCallback(lambda _node, message: heard.append(len(message["data"])))
    data = zlib.compress(pickle.dumps({"type": "x", "data": frame}, 2), 3)
    assert len(data) < 1 << 20
    stranger.socket.sendall(struct.pack("i", len(data)) + data)
    stranger.pump(50)
    assert heard == [FRAME_BYTES_MAX * 2]


def test_stock_never_listens_again_after_one_failed_accept(served: Served, strangers: Any) -> None:
    server = served._SyncObj__transport._server
    real = server._TcpServer__socket

    class Exhausted:
        """A socket of a process that has too many files open, for a moment."""

        def accept(self) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    waiting = socket.create_connection(("127.0.0.1", served.ports[0]))
    server._TcpServer__socket = Exhausted()
    for _ in range(20):
        served.doTick(0.002)
    waiting.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", served.ports[0]), 1).close()
    assert served._SyncObj__transport.ready, "and says that all is well"


def test_stock_shows_its_whole_log_to_whoever_says_readonly(served: Served, strangers: Any) -> None:
    served._SyncObj__raftLog.add(*served.entry("private", 2, 0))
    stranger = strangers()
    stranger.says("readonly")
    assert len(served.readonlyNodes) == 1
    [reader] = served.readonlyNodes
    served._SyncObj__onBecomeLeader()
    served._SyncObj__raftNextIndex[reader] = 2
    served._SyncObj__sendAppendEntries()
    seen = [stranger.hears() for _ in range(2)]
    assert b"private" in b"".join(entry[0] for message in seen for entry in message["entries"])


def test_stock_has_one_key_for_all_members_and_a_salt_for_all_clusters() -> None:
    """With a password: who has it may say any member's name, and it is as strong as the password is."""
    one, other = getEncryptor("secret"), getEncryptor("secret")
    assert other.decrypt(one.encrypt(b"I am any of you")) == b"I am any of you"
    assert len(SALT) == 16


@pytest.mark.parametrize("kind", [_COMMAND_TYPE.REGULAR, _COMMAND_TYPE.MEMBERSHIP, _COMMAND_TYPE.VERSION])
def test_stock_unpickles_what_is_in_the_log(clock: Clock, tmp_path: Path, kind: int) -> None:
    """So a safe format on the wire alone would not help."""
    lab = StockLab(clock, "abc")
    entry = bytes([kind]) + pickle.dumps(Touches(tmp_path / "ran"), 2)
    message = {"type": "append_entries", "term": 1, "commit_index": 2, "prevLogIdx": 1, "prevLogTerm": 0}
    hears(lab["a"], "b", message | {"entries": [(entry, 2, 1)]})
    with suppress(TypeError, KeyError, AttributeError):  # what it makes of the result
        lab["a"].doTick(0)
    assert (tmp_path / "ran").exists()


def test_stock_unpickles_a_large_entry_as_it_comes_in(clock: Clock, tmp_path: Path) -> None:
    lab = StockLab(clock, "abc")
    message = {"type": "append_entries", "term": 1, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0}
    whole = pickle.dumps(Touches(tmp_path / "ran"), 2)
    hears(lab["a"], "b", message | {"transmission": "start", "data": whole[:10]})
    with pytest.raises(TypeError):
        hears(lab["a"], "b", message | {"transmission": "finish", "data": whole[10:]})
    assert (tmp_path / "ran").exists()


IMPORTED = """
import sys
import cluster.consensus.hardened
from cluster.consensus import messages, transport
for module in (messages, transport):
    assert not any("pickle" in name for name in vars(module)), module
"""


def test_ours_reads_the_wire_without_pickle() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
