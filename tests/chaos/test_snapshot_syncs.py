"""What a snapshot puts on disk is synced, each file and each name, before anybody builds on it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.install import WISH, Install, decide
from tests.cluster.test_snapshots import Road, run

Place = tuple[int, int]


def place(path: Path) -> Place:
    found = path.stat()
    return found.st_dev, found.st_ino


class Syncs:
    """What was synced and what was named since, in order, by the system's own calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, Place]] = []
        self._watch(monkeypatch, "fsync", self._synced)
        self._watch(monkeypatch, "rename", self._named)
        self._watch(monkeypatch, "mkdir", self._made)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, name: str, note: Callable[..., None]) -> None:
        real = getattr(os, name)

        def called(*words: Any, **named: Any) -> Any:
            result = real(*words, **named)
            note(*words)
            return result

        monkeypatch.setattr(os, name, called)

    def _synced(self, descriptor: Any) -> None:
        found = os.fstat(descriptor)
        self.events.append(("synced", (found.st_dev, found.st_ino)))

    def _named(self, _source: Any, target: Any) -> None:
        self.events.append(("changed", place(Path(target).parent)))

    def _made(self, path: Any, *_: Any) -> None:
        self.events.append(("changed", place(Path(path).parent)))

    def holds(self, file: Path) -> bool:
        """The file's content is on disk."""
        return ("synced", place(file)) in self.events

    def names(self, folder: Path) -> bool:
        """Whatever was last made or renamed in it is on disk."""
        last = [what for what, where in self.events if where == place(folder)]
        return bool(last) and last[-1] == "synced"


def test_a_received_snapshot_is_on_disk_before_it_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)

    async def main() -> None:
        road = Road(tmp_path)
        await road.arrived()
        [(_, staged)] = road.homes["b"].came
        files = [path for path in staged.rglob("*") if path.is_file()]
        assert files
        assert [path.name for path in files if not syncs.holds(path)] == []
        folders = [staged / "segments", staged, staged.parent]
        assert [folder.name for folder in folders if not syncs.names(folder)] == []
        await road.stop()

    run(main)


def test_the_wish_is_on_disk_when_it_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    decide(tmp_path, Install("c1", "m2", 7, 1, "snapshots/x"))
    assert syncs.holds(tmp_path / WISH)
    assert syncs.names(tmp_path)
