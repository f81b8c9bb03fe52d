"""The projection's copy in the cache: written by one script that takes only what continues the stored position.

So two gateways that write to one cache, or one that comes back with old news, can't mix what they know. Keys carry
a hash tag, so that a Redis Cluster keeps them together: a script may touch one slot only.
"""

from collections.abc import AsyncIterator, Iterable

from gateway.cache.client import TIMEOUT_S, CacheClient, Script
from gateway.events import Position

FORMAT = 2
WRITES_MAX = 2_000
"""Fields in one call of the script: it blocks the server while it runs."""
SCAN_COUNT = 1_000
ANSWER_S = 2 * TIMEOUT_S

# KEYS: the position, then one hash per kind. ARGV: expected, new, then per kind: its number of fields to set, the
# pairs, its number of fields to delete, the fields. One call changes all or nothing. No hash is ever gone, for it has
# an empty field: a cluster that moves a slot answers TRYAGAIN to a script of whose keys one is missing.
_WRITE = Script("""
local stored = redis.call('GET', KEYS[1]) or ''
if stored ~= ARGV[1] then return stored end
local at = 3
for kind = 2, #KEYS do
  redis.call('HSETNX', KEYS[kind], '', '')
  local sets = tonumber(ARGV[at]); at = at + 1
  for i = 1, sets do
    redis.call('HSET', KEYS[kind], ARGV[at], ARGV[at + 1]); at = at + 2
  end
  local gone = tonumber(ARGV[at]); at = at + 1
  for i = 1, gone do
    redis.call('HDEL', KEYS[kind], ARGV[at]); at = at + 1
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return 'ok'
""")

Changes = dict[str, dict[str, bytes | None]]
"""kind -> field -> value; None deletes."""


class Elsewhere(RuntimeError):
    """The cache is not at the position from which these changes go on: nothing was written."""

    def __init__(self, stored: str) -> None:
        super().__init__(f"the cache is at {stored or 'nothing'!r}")
        self.stored = stored


class StateCache:
    """One gateway's projection in one cache. scope: names the site and the cluster.

    Positions are strings: the feed's position, with `~` and a count behind it while a large write is half done.
    """

    def __init__(self, client: CacheClient, scope: str, kinds: Iterable[str]) -> None:
        self._client = client
        self._prefix = f"{{tb:{scope}}}:{FORMAT}:"
        self.kinds = tuple(kinds)
        self.stored = ""
        """The position that the cache had when it was last asked."""

    def _keys(self) -> list[str]:
        return [self._prefix + "position", *(self._prefix + kind for kind in self.kinds)]

    async def position(self) -> Position | None:
        """Where the cache stands; None where it is empty, or stopped in the middle. Raises CacheAway."""
        raw = await self._client.ask("GET", self._prefix + "position", timeout_s=ANSWER_S)
        self.stored = raw.decode() if raw else ""
        try:
            return Position.parse(self.stored) if self.stored else None
        except ValueError:
            return None

    async def load(self) -> AsyncIterator[tuple[str, str, bytes]]:
        """Everything that is there: (kind, field, value). Raises CacheAway."""
        for kind in self.kinds:
            cursor = 0
            while True:
                cursor, found = await self._client.ask(
                    "HSCAN", self._prefix + kind, cursor, "COUNT", SCAN_COUNT, timeout_s=ANSWER_S
                )
                for field, value in found.items():
                    if field:
                        yield kind, field.decode(), value
                if not cursor:
                    break

    async def write(self, changes: Changes, position: Position) -> None:
        """Go from the stored position to this one. Raises Elsewhere, CacheAway; the position tells how far it came."""
        pieces = _pieces(changes)
        for number, piece in enumerate(pieces, 1):
            goal = str(position) if number == len(pieces) else f"{position}~{number}"
            arguments: list[str | bytes | int] = [self.stored, goal]
            for kind in self.kinds:
                fields = piece.get(kind, {})
                there = [(field, value) for field, value in fields.items() if value is not None]
                gone = [field for field, value in fields.items() if value is None]
                arguments.append(len(there))
                for field, value in there:
                    arguments += (field, value)
                arguments += (len(gone), *gone)
            answer = await self._client.run(_WRITE, self._keys(), arguments, timeout_s=ANSWER_S)
            if answer != b"ok":
                self.stored = answer.decode()
                raise Elsewhere(self.stored)
            self.stored = goal

    async def clear(self) -> None:
        """Forget everything, to begin anew. Raises CacheAway."""
        await self._client.ask("UNLINK", *self._keys(), timeout_s=ANSWER_S)
        self.stored = ""


def _pieces(changes: Changes) -> list[Changes]:
    pieces: list[Changes] = [{}]
    count = 0
    for kind, fields in changes.items():
        for field, value in fields.items():
            if count == WRITES_MAX:
                pieces.append({})
                count = 0
            pieces[-1].setdefault(kind, {})[field] = value
            count += 1
    return pieces
