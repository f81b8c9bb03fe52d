"""PySyncObj as published on its own files: members that write journals and dumps, are killed and start again."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pysyncobj.node import Node

from tests.cluster.lab import Clock, Net, Stock, StockLab

Entry = tuple[bytes, int, int]

# Nobody campaigns unless a test says so.
PATIENT = {"raftMinTimeout": 60, "raftMaxTimeout": 61, "connectionTimeout": 100}


class StockDiskLab(StockLab):
    """Like StockLab, with a journal and a dump per member in `folder`. The dump is written inline, without a fork."""

    def __init__(self, clock: Clock, names: str, folder: Path, cls: type[Stock] = Stock, **conf: Any) -> None:
        self.clock, self.net, self.folder = clock, Net(), folder
        self.cls, self.conf = cls, conf
        self.members: dict[str, Stock] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            self.start(name, names)

    def start(self, name: str, names: str, **conf: Any) -> Stock:
        """Start a member of the cluster `names` on what its files hold, and connect it to whoever is up."""
        files = {
            "journalFile": str(self.folder / f"{name}.journal"),
            "fullDumpFile": str(self.folder / f"{name}.dump"),
            "useFork": False,
        }
        others = [other for other in names if other != name]
        member = self.cls(self.net, name, others, **(files | self.conf | conf))
        self.members[name] = member
        for other in others:
            if other in self.members:
                self.connect(name, other)
        return member

    def connect(self, a: str, b: str) -> None:
        for source, target in ((a, b), (b, a)):
            link = self.members[source].link
            link._onNodeConnected(link.node(target))

    def kill(self, name: str) -> None:
        """As kill -9 does it: what was written to files is there, whether synced or not. Nothing else is."""
        member = self.members.pop(name)
        close(member)
        self.net.receivers.pop(name, None)
        for other, peer in self.members.items():
            for source, target in ((name, other), (other, name)):
                self.net.drop(source, target)
            peer.link._onNodeDisconnected(peer.link.node(name))

    def compact(self, name: str) -> None:
        """Write a dump of what is applied, and drop what it covers from the journal."""
        member = self.members[name]
        member.forceLogCompaction()
        member.doTick(0)
        member.doTick(0)


def close(member: Stock) -> None:
    """Let go of a member's files; the library leaves some open."""
    member._SyncObj__serializer._Serializer__transmissions.clear()
    member._doDestroy()


@contextmanager
def unclosed_files_allowed() -> Iterator[None]:
    """The library opens files and never closes them. That is its fault, but not what is shown here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def hears(member: Stock, source: str, message: dict[str, Any]) -> None:
    """Let one message come in from `source`."""
    member.link._onMessageReceived(member.link.node(source), message)


def append(member: Stock, source: str, entries: list[Entry], **more: Any) -> None:
    """Let a leader's entries come in, in the newest of their terms. Without more: nothing of them is committed."""
    first = entries[0][1]
    previous = member._SyncObj__raftLog[first - 1 - member._SyncObj__raftLog[0][1]]
    head = {"type": "append_entries", "term": entries[-1][2], "commit_index": 1}
    hears(member, source, head | {"prevLogIdx": first - 1, "prevLogTerm": previous[2], "entries": entries} | more)


def command(member: Stock, value: Any) -> bytes:
    """What the log holds for `put(value)`."""
    from pysyncobj import pickle  # noqa: PLC0415 - the library's own

    return b"\0" + pickle.dumps((member._methodToID["put_v0"], (value,)))


def match(member: Stock, name: str) -> int:
    """What a leader believes a follower to have."""
    return int(member._SyncObj__raftMatchIndex[Node(name)])


def restarted(lab: StockDiskLab, name: str, names: str, **conf: Any) -> Stock:
    """Kill a member and start it again."""
    lab.kill(name)
    member = lab.start(name, names, **conf)
    member.doTick(0)
    return member
