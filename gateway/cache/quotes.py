"""Quotes in the cache: each symbol's best prices and last trade, so that who comes next has them with their age.

Memory answers first. What is here is for a gateway that starts again, for another one on the same cache, and for a
symbol that memory does not know. One key per symbol; all under one hash tag, as a script may touch one slot only.
"""

from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec
from msgspec import Struct

from gateway.cache.client import CacheClient, Script
from gateway.feeds.ticks import Trade
from gateway.market.nbbo import Nbbo

FORMAT = 1
LIFE_S = 86_400
"""A quote that is not written again is gone after a day, or sooner where memory is short."""
WRITES_MAX = 500
"""Symbols in one call of the script: it blocks the server while it runs."""
READ_MAX = 1_000
READ_S = 0.1
"""A request does not wait longer for what memory does not know."""
STAMP_CHARS = 16

# KEYS: of symbols. ARGV: their life, then a value each, which begins with the time when it was worked out. Where two
# gateways write, the newest stays. Digits of one length sort as numbers do, whatever the server's locale.
_WRITE = Script("""
for i = 1, #KEYS do
  local value = ARGV[i + 1]
  if redis.call('GETRANGE', KEYS[i], 0, 15) <= string.sub(value, 1, 16) then
    redis.call('SET', KEYS[i], value, 'EX', ARGV[1])
  end
end
return #KEYS
""")


class Known(Struct, frozen=True, array_like=True):
    """What is known of a symbol: its best prices, its last trade, or both."""

    nbbo: Nbbo | None = None
    last: Trade | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Known).decode


class CacheQuotes:
    """scope: names the cluster: all gateways with one cache share what they know. Every method raises CacheAway."""

    def __init__(self, client: CacheClient, scope: str) -> None:
        self._client = client
        self._prefix = f"{{tb:{scope}:quotes}}:{FORMAT}:"
        self._index = f"{self._prefix}symbols"
        self._indexed: set[str] = set()

    def key(self, symbol: str) -> str:
        return f"{self._prefix}of:{symbol}"

    async def write(self, found: Sequence[tuple[str, Known]], now_us: int) -> None:
        """What is newer there stays. now_us: when it was worked out."""
        stamp, prefix = f"{now_us:0{STAMP_CHARS}d}".encode(), f"{self._prefix}of:"
        for start in range(0, len(found), WRITES_MAX):
            part = found[start : start + WRITES_MAX]
            keys = [prefix + symbol for symbol, _ in part]
            await self._client.run(_WRITE, keys, [LIFE_S, *[stamp + _encode(known) for _, known in part]])
        new = [symbol for symbol, _ in found if symbol not in self._indexed]
        if new:
            await self._client.ask("SADD", self._index, *new)
            await self._client.ask("EXPIRE", self._index, LIFE_S)
        self._indexed.update(new)

    def forget_index(self) -> None:
        """Name every symbol anew when it is written next: the list may have gone where memory was short."""
        self._indexed.clear()

    async def read(self, symbols: Sequence[str]) -> list[tuple[str, Known]]:
        """Those of them that are there. What can't be read is not there."""
        raws = await self._client.ask("MGET", *[self.key(symbol) for symbol in symbols], timeout_s=READ_S)
        return list(_found(symbols, raws))

    async def everything(self) -> AsyncIterator[tuple[str, Known]]:
        """Every symbol that the list names."""
        names = sorted(await self._client.ask("SMEMBERS", self._index))
        symbols = [name.decode() for name in names]
        for start in range(0, len(symbols), READ_MAX):
            part = symbols[start : start + READ_MAX]
            raws = await self._client.ask("MGET", *[self.key(symbol) for symbol in part])
            for one in _found(part, raws):
                yield one


def _found(symbols: Iterable[str], raws: Iterable[bytes | None]) -> Iterable[tuple[str, Known]]:
    for symbol, raw in zip(symbols, raws, strict=True):
        if raw is not None:
            try:
                yield symbol, _decode(raw[STAMP_CHARS:])
            except msgspec.MsgspecError:
                continue  # of another version: its writer will be back, or it ends with its life
