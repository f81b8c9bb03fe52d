"""The door to PySyncObj: only the audited files are let in, and every name that we replace must exist."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pysyncobj
import pysyncobj.syncobj as _syncobj
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.journal import Journal as LibraryJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport as LibraryTransport

__all__ = [
    "FOLLOWER",
    "LEADER",
    "NO_OP",
    "REGULAR",
    "LibraryChanged",
    "LibraryJournal",
    "LibraryTransport",
    "Node",
    "SyncObj",
    "SyncObjConf",
    "check_library",
    "construct_with_journal",
    "driven_by",
    "monotonic",
]

VERSION = "0.3.17"

# sha256 of each file of the audited release. Upgrading means auditing again.
FILES = {
    "__init__.py": "4966a9dd893542b1b0e0fcef3d2ea44f2f40919d66b684992e5511be7503c036",
    "atomic_replace.py": "43a5252a241939b7f457cbbf39480260c91f0d2035a62b170bf1e1d20d0f9c1d",
    "config.py": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
    "dns_resolver.py": "4b88da2b45e20fbb299fb7a21f2595369b6314700b687fb8858891999bce14e0",
    "encryptor.py": "db20725465efdfc6d7a3b5b2112f53bc5426d36c56312ebdf5fbcf05423a7c19",
    "fast_queue.py": "8477fe5fdf36d9766df933310d3d66ee953d1afc195b1e6482b3a1498fc517bd",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "monotonic.py": "d116df70e1f81bcab1fb89191fe2fe18486bc25187401d73fd6101cfe686e0a3",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "pickle.py": "e9327780738065cec5d600484b936c91e7c13875206cb584d5ff7f5d0dc9c474",
    "pipe_notifier.py": "587d964bfa5d62320f3541cbb283ff3e282cb2db95e1b8cfd888dc3d53af82aa",
    "poller.py": "f69ac749fb410670282fd9520c5805ffc684c8a5f762a927127753d9be8551e6",
    "serializer.py": "4d39fde2f15000ad8f507ec229ebd4f6a86371b6f84d4dc1439a9cccd52857ee",
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "tcp_connection.py": "7784ed8da031369fe36f805cb186a2e94a3bd6f10fed2dd59c8cc3713fd6331c",
    "tcp_server.py": "bde2f216c1a585029188d0438b44762e2e797dfc53bbce387839daaa46b9a60d",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "utility.py": "1aa0c49d3558c5df6489235b94ae44357b382f9f0792b9d72ae6e5ae0c0039ea",
    "version.py": "0b8426a8b52ecf874193897d26c4214acbd85335145ea9ff17e27a22b1132943",
}

# Methods of SyncObj that raft.py overrides or calls. Inside the class they are written self.__name.
METHODS = (
    "_SyncObj__applyLogEntries",
    "_SyncObj__connectedToAnyone",
    "_SyncObj__deleteEntriesFrom",
    "_SyncObj__deleteEntriesTo",
    "_SyncObj__doApplyCommand",
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__getEntries",
    "_SyncObj__loadDumpFile",
    "_SyncObj__onBecomeLeader",
    "_SyncObj__onMessageReceived",
    "_SyncObj__onNodeConnected",
    "_SyncObj__onNodeDisconnected",
    "_SyncObj__parseChangeClusterRequest",
    "_SyncObj__sendAppendEntries",
    "_SyncObj__sendNextNodeIdx",
    "_SyncObj__setCurrentTerm",
    "_SyncObj__setState",
    "_SyncObj__tryLogCompaction",
    "_applyCommand",
    "_checkCommandsToApply",
    "_onTick",
    "doTick",
)

# What a constructed object must have: raft.py reads or swaps these.
ATTRIBUTES = (
    "_SyncObj__connectedNodes",
    "_SyncObj__lastResponseTime",
    "_SyncObj__newAppendEntriesTime",
    "_SyncObj__noopIDx",
    "_SyncObj__otherNodes",
    "_SyncObj__raftCommitIndex",
    "_SyncObj__raftCurrentTerm",
    "_SyncObj__raftElectionDeadline",
    "_SyncObj__raftLastApplied",
    "_SyncObj__raftLeader",
    "_SyncObj__raftLog",
    "_SyncObj__raftMatchIndex",
    "_SyncObj__raftNextIndex",
    "_SyncObj__raftState",
    "_SyncObj__transferInProgress",
    "_SyncObj__votedForNodeId",
    "_poller",
)

FOLLOWER: int = _syncobj._RAFT_STATE.FOLLOWER
LEADER: int = _syncobj._RAFT_STATE.LEADER
# The first byte of each entry; the library writes NO_OP entries itself.
REGULAR = bytes([_syncobj._COMMAND_TYPE.REGULAR])
NO_OP = bytes([_syncobj._COMMAND_TYPE.NO_OP])


class LibraryChanged(RuntimeError):
    """The installed PySyncObj is not the one that was audited. The member must not start."""

    code = "library_changed"


def check_library(folder: Path | None = None) -> None:
    """Raises LibraryChanged unless the installed files are, byte for byte, the audited ones."""
    folder = folder if folder is not None else Path(pysyncobj.__file__).parent
    found = _syncobj.VERSION
    if found != VERSION:
        raise LibraryChanged(f"PySyncObj is {found}, audited is {VERSION}")
    for name, audited in FILES.items():
        path = folder / name
        if not path.is_file():
            raise LibraryChanged(f"PySyncObj has no {name}")
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
        if actual != audited:
            raise LibraryChanged(f"PySyncObj's {name} has sha256 {actual}, audited is {audited}")
    missing = [name for name in METHODS if not callable(getattr(SyncObj, name, None))]
    if missing or not callable(getattr(_syncobj, "createJournal", None)):
        raise LibraryChanged(f"PySyncObj lacks what we replace: {missing or ['createJournal']}")


def check_attributes(constructed: Any) -> None:
    missing = [name for name in ATTRIBUTES if not hasattr(constructed, name)]
    if missing:
        raise LibraryChanged(f"a constructed SyncObj lacks what we replace: {missing}")


def construct_with_journal(journal: Any, construct: Any) -> None:
    """Run `construct()` while the library's constructor is handed `journal`.

    The hook is a global of the library's module, so it is put back at once.
    """
    original = _syncobj.createJournal
    _syncobj.createJournal = lambda _file: journal
    try:
        construct()
    finally:
        _syncobj.createJournal = original


def monotonic() -> float:
    """Seconds, by the library's clock: its timers and ours must not disagree, in tests neither."""
    return float(_syncobj.monotonicTime())


@contextmanager
def driven_by(clock: Callable[[], float], chance: Any) -> Iterator[None]:
    """For simulations: the library's clock is `clock`, its random timeouts come from `chance.random()`.

    Its sets of nodes then have one order in every process. Globals of the library's module; put back at the end.
    """
    originals = _syncobj.monotonicTime, _syncobj.random, Node.__hash__
    _syncobj.monotonicTime, _syncobj.random = clock, chance
    hashes: dict[str, int] = {}
    Node.__hash__ = lambda node: hashes.get(node._id) or hashes.setdefault(node._id, crc32(node._id.encode()))
    try:
        yield
    finally:
        _syncobj.monotonicTime, _syncobj.random, Node.__hash__ = originals
