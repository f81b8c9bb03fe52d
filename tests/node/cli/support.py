"""Runs the command line as a user would, in this process, and gives back what came out."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from node.cli.main import main
from tests.cluster.fake_node import FakeNode, Ledger


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def tiebreak(capfd: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """One run of `tiebreak ARGUMENTS`."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capfd.readouterr()
    return Ran(int(ended.value.code or 0), out, err)


@contextmanager
def fake_node() -> Iterator[FakeNode]:
    """A fake node on a loop of its own, as the command line brings its own too."""
    loop = asyncio.new_event_loop()
    node = FakeNode("fake", Ledger())
    loop.run_until_complete(node.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield node
    finally:
        asyncio.run_coroutine_threadsafe(node.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
