"""Records the event feed in `events.jsonl` as one reader gets it: from one member, then from another when that dies."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from chaos.history.records import Event
from chaos.live.asking import get

PAGE_EVENTS = 2_000
WAIT_MS = 500
TIMEOUT_S = 2.0
PAUSE_S = 0.1
BEGINNING = "0.1.0.0"
"""The position before every event of a new cluster."""


class Follower:
    """Nothing is sorted, dropped or repeated here: what a member sends behind a position is what is written.

    counts: pages, events, errors, hops. refused: the last page that a member refused, with its words.
    """

    def __init__(self, members: Mapping[str, str], token: Callable[[], str] | str, path: Path) -> None:
        """members: the API of each full replica by its name. token: an auditor's."""
        self.counts = {"pages": 0, "events": 0, "errors": 0, "hops": 0}
        self.refused = ""
        self.after = BEGINNING
        self._members = dict(members)
        self._token = token
        self._path = path
        self._source = next(iter(self._members))

    async def run(self) -> None:
        """Until cancelled. Lines are flushed to the system page by page."""
        with self._path.open("ab") as file:
            while True:
                lines = await self._page()
                if lines is None:
                    self._hop()
                    await asyncio.sleep(PAUSE_S)
                    continue
                file.write(msgspec.json.Encoder().encode_lines(lines))
                file.flush()

    async def drain(self, index: int, timeout_s: float = 30.0) -> bool:
        """Wait, while `run` runs, until everything up to a log index was read. False: not in time."""
        deadline = time.monotonic() + timeout_s
        while position(self.after)[0] < index:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(PAUSE_S)
        return True

    async def _page(self) -> list[Event] | None:
        url = f"{self._members[self._source]}/v1/feed?after={self.after}&limit={PAGE_EVENTS}&wait_ms={WAIT_MS}"
        token = self._token if isinstance(self._token, str) else self._token()
        try:
            answer = await get(url, token=token, timeout_s=TIMEOUT_S)
            if answer.status != 200:
                self.refused = f"{self._source}: {answer.status} {answer.body[:200]!r}"
                self.counts["errors"] += 1
                return None
            page = msgspec.json.decode(answer.body)
        except (OSError, TimeoutError, ValueError):
            self.counts["errors"] += 1
            return None
        at_ns = time.monotonic_ns()
        self.after = str(page["next"])
        self.counts["pages"] += 1
        self.counts["events"] += len(page["events"])
        return [_event(at_ns, self._source, event) for event in page["events"]]

    def _hop(self) -> None:
        names = list(self._members)
        self._source = names[(names.index(self._source) + 1) % len(names)]
        self.counts["hops"] += 1


def _event(at_ns: int, source: str, fields: dict[str, Any]) -> Event:
    index, seq = position(str(fields.pop("position", "")))
    return Event(at_ns, source, index, seq, str(fields.pop("type", "")), fields)


def position(text: str) -> tuple[int, int]:
    """(index, seq) of GROUP.EPOCH.INDEX.SEQ. Raises ValueError."""
    _, _, index, seq = text.split(".")
    return int(index), int(seq)
