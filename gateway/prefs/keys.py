"""The key file of a running gateway: read anew when it was replaced, and never so that something can't be read."""

import asyncio
from pathlib import Path

import structlog

from gateway.prefs.seal import KeyFileRefused, Keyring, read_keys
from gateway.prefs.service import Prefs

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("tiebreak.gateway")

LOOK_S = 2.0


class SealKeys:
    """keyring: of the same file, changed in place."""

    def __init__(self, path: Path, keyring: Keyring, prefs: Prefs) -> None:
        self.keyring = keyring
        self._path = path
        self._prefs = prefs
        self._used = self._stamp()
        self._one = asyncio.Lock()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    async def run(self) -> None:
        """Look for a new file, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._stamp() != self._used:
                try:
                    await self.look()
                except KeyFileRefused as error:
                    log.error("the new key file is not used, the old keys stay in use", error=str(error))

    async def look(self) -> None:
        """Take the file's keys into use. Raises KeyFileRefused: it is not as it should be, or lacks a key that is
        still needed; that is not tried again before the file changes."""
        async with self._one:
            if (found := self._stamp()) == self._used:
                return
            self._used = found
            keys, waiting = read_keys(self._path)
            needed = [number for number in await self._prefs.sealed_under() if number in self.keyring.numbers]
            if missing := [number for number in needed if number not in keys]:
                raise KeyFileRefused(
                    f"{self._path} lacks key {', '.join(map(str, missing))}, under which documents are still sealed"
                )
            self.keyring.take_over(keys, waiting)
            self._prefs.keys_changed()
            log.info("the key file was read anew", keys=self.keyring.numbers, seals_with=self.keyring.newest)

    async def seal_anew(self) -> int:
        """Put under the newest key what is under older ones; how many documents that were."""
        async with self._one:
            return await self._prefs.seal_anew()
