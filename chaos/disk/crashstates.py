"""Builds what a disk may hold after a power cut, from what a process did to it: any part of what was not synced.

The model is POSIX at its strictest. A write is durable when its file is synced; a name when its folder is. Until then
each write may be there, be missing, or be torn at a sector; names come and go in the order of the calls, folder by
folder. Real file systems promise more.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

from msgspec import Struct

from chaos.disk.tracing import MakeFile, MakeFolder, Operation, Remove, Rename, Said, Sync, Truncate, Write

SECTOR_BYTES = 512
ALL_SUBSETS_MAX = 5
"""Up to so many writes in the air every subset is built; with more, the telling ones and some by chance."""
IGNORED = ("lock.mdb",)
"""LMDB makes its lock file anew when nobody has it open; it is written through a mapping, which no trace shows."""

Change = Write | Truncate


class State(Struct, frozen=True):
    """One folder that a power cut may leave. acked, begun: what had been said before it. what: how it came about."""

    folders: tuple[str, ...]
    files: dict[str, bytes]
    acked: int
    begun: int
    what: str

    def build(self, root: Path) -> None:
        """Below `root`, which is there and empty."""
        for folder in sorted(self.folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            (root / path).write_bytes(data)


class _Node:
    """A file or a folder, by whatever names. content: what a file certainly holds; pending: what it may hold, too.

    names, name_changes: the same of a folder, each change a list of (name, node) with None for a removal.
    """

    def __init__(self, *, folder: bool) -> None:
        self.folder = folder
        self.content = bytearray()
        self.pending: list[Change] = []
        self.names: dict[str, _Node] = {}
        self.name_changes: list[list[tuple[str, _Node | None]]] = []

    def now(self) -> "dict[str, _Node]":
        return _named(self.names, self.name_changes)


def _named(names: dict[str, _Node], changes: Sequence[Sequence[tuple[str, _Node | None]]]) -> dict[str, _Node]:
    found = dict(names)
    for change in changes:
        for name, node in change:
            if node is None:
                found.pop(name, None)
            else:
                found[name] = node
    return found


def _apply(content: bytearray, change: Change) -> None:
    if isinstance(change, Truncate):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    if len(content) < change.offset:
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


class _Disk:
    def __init__(self) -> None:
        self.root = _Node(folder=True)
        self.acked = self.begun = 0

    def find(self, path: str) -> _Node:
        node = self.root
        for name in path.split("/"):
            node = node.now()[name]
        return node

    def _parent(self, path: str) -> tuple[_Node, str]:
        before, _, name = path.rpartition("/")
        return (self.find(before) if before else self.root), name

    def do(self, operation: Operation) -> None:
        match operation:
            case MakeFolder(path) | MakeFile(path):
                parent, name = self._parent(path)
                parent.name_changes.append([(name, _Node(folder=isinstance(operation, MakeFolder)))])
            case Rename(source, target):
                (parent, old), (other, new) = self._parent(source), self._parent(target)
                node = parent.now()[old]
                if parent is other:
                    parent.name_changes.append([(old, None), (new, node)])
                else:
                    other.name_changes.append([(new, node)])
                    parent.name_changes.append([(old, None)])
            case Remove(path):
                parent, name = self._parent(path)
                parent.name_changes.append([(name, None)])
            case Write(path, _, _, at_once):
                node = self.find(path)
                if at_once:
                    _apply(node.content, operation)
                else:
                    node.pending.append(operation)
            case Truncate(path):
                self.find(path).pending.append(operation)
            case Sync(path):
                node = self.find(path) if path else self.root
                for change in node.pending:
                    _apply(node.content, change)
                node.pending.clear()
                node.names = node.now()
                node.name_changes.clear()
            case Said("begun", number):
                self.begun = max(self.begun, number)
            case Said(_, number):
                self.acked, self.begun = max(self.acked, number), max(self.begun, number)

    # -- what a cut may leave ----------------------------------------------------------------------

    def in_the_air(self) -> list[tuple[_Node, Change]]:
        """Every write that nobody has synced."""
        return [(node, change) for node in self._nodes(self.root) if node.pending for change in node.pending]

    def folders(self) -> list[_Node]:
        """The folders in which names are not synced."""
        return [node for node in self._nodes(self.root) if node.name_changes]

    def _nodes(self, node: _Node) -> Iterator[_Node]:
        yield node
        for name, child in node.now().items():
            if name not in IGNORED:
                yield from self._nodes(child)

    def state(self, there: Sequence[tuple[_Node, Change]], names: dict[int, int], what: str) -> State:
        """there: the writes that made it. names: by folder, how many of its changes made it; all of them otherwise."""
        by_node: dict[int, list[Change]] = {}
        for node, change in there:
            by_node.setdefault(id(node), []).append(change)
        folders: list[str] = []
        files: dict[str, bytes] = {}

        def walk(node: _Node, path: str) -> None:
            if not node.folder:
                content = bytearray(node.content)
                for change in by_node.get(id(node), ()):
                    _apply(content, change)
                files[path] = bytes(content)
                return
            if path:
                folders.append(path)
            for name, child in _named(node.names, node.name_changes[: names.get(id(node))]).items():
                if name not in IGNORED:
                    walk(child, f"{path}/{name}" if path else name)

        walk(self.root, "")
        return State(tuple(folders), files, self.acked, self.begun, what)


def states(
    operations: Sequence[Operation], *, seed: int = 1, per_point_max: int = 24, start: int = 0
) -> Iterator[State]:
    """Every point of the run at which something new may be lost, and up to so many states at each.

    start: the first operation before which a cut is looked at. A point is just before something becomes durable, or is
    called durable: until then the writes only add up.
    """
    random = Random(seed)
    disk = _Disk()
    for number, operation in enumerate(operations):
        at_once = isinstance(operation, Write) and operation.at_once
        if number >= start and (at_once or isinstance(operation, Sync | Said)):
            where = f"before call {number} ({type(operation).__name__.lower()})"
            yield from _at(disk, random, per_point_max, where, operation if isinstance(operation, Write) else None)
        disk.do(operation)
    yield from _at(disk, random, per_point_max, "at the end", None)


def _at(disk: _Disk, random: Random, count_max: int, where: str, under_way: Write | None) -> Iterator[State]:
    air = disk.in_the_air()
    if under_way is not None:
        # A synchronous write that was cut off is there, or not, or torn: like one in the air.
        air.append((disk.find(under_way.path), under_way))
    drawn: list[State] = []
    chosen = list(_subsets(air, random))
    random.shuffle(chosen)
    everything = list(range(len(air)))
    for subset in ([], everything, *chosen):
        drawn.append(disk.state([air[i] for i in subset], {}, f"{where}: writes {subset} of {len(air)}"))
        torn = [i for i in subset if isinstance(air[i][1], Write) and _sectors(air[i][1]) > 1]
        if torn:
            drawn.append(_torn(disk, air, subset, random, where))
    for folder in disk.folders():
        for kept in range(len(folder.name_changes)):
            what = f"{where}: {kept} of {len(folder.name_changes)} names"
            drawn.insert(0, disk.state(air, {id(folder): kept}, what))
    yield from drawn[:count_max]


def _subsets(air: Sequence[object], random: Random) -> Iterator[list[int]]:
    every = range(len(air))
    if len(air) <= ALL_SUBSETS_MAX:
        for size in range(1, len(air)):
            yield from (list(one) for one in combinations(every, size))
        return
    for one in every:
        yield [one]
        yield [other for other in every if other != one]
        yield list(range(one))
        yield [other for other in every if random.random() < 0.5]


def _sectors(write: Change) -> int:
    if isinstance(write, Truncate):
        return 0
    return (write.offset + len(write.data) - 1) // SECTOR_BYTES - write.offset // SECTOR_BYTES + 1


def _torn(disk: _Disk, air: Sequence[tuple[_Node, Change]], subset: list[int], random: Random, where: str) -> State:
    """One of the writes is there in part: its beginning, its end, or any of its sectors."""
    at = random.choice([i for i in subset if _sectors(air[i][1]) > 1])
    node, write = air[at]
    if not isinstance(write, Write):
        raise TypeError("only writes tear")
    starts = [
        write.offset,
        *range((write.offset // SECTOR_BYTES + 1) * SECTOR_BYTES, write.offset + len(write.data), SECTOR_BYTES),
    ]
    cut = random.randint(1, len(starts) - 1)
    kind = random.choice(("beginning", "end", "mixture"))
    kept = {"beginning": starts[:cut], "end": starts[cut:]}.get(kind, [one for one in starts if random.random() < 0.5])
    there: list[tuple[_Node, Change]] = []
    for i in subset:
        if i != at:
            there.append(air[i])
            continue
        for start in kept:
            end = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, write.offset + len(write.data))
            piece = write.data[start - write.offset : end - write.offset]
            there.append((node, Write(write.path, start, piece, False)))
    return disk.state(there, {}, f"{where}: writes {subset} of {len(air)}, the {kind} of {at}")
