"""Counts requests by user and slot in the cache: one script, one round trip."""

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.cache.state import CacheAway

TIMEOUT_S = 0.1
"""A request does not wait longer for being counted."""

# KEYS: the slot before, this slot; one hash tag, so one place in a cluster. ARGV: the limit, the share of the slot
# before that is still in the window, its life in ms. A request beyond the limit is not counted.
_SCRIPT = """
local before = tonumber(redis.call('GET', KEYS[1]) or '0')
local current = tonumber(redis.call('GET', KEYS[2]) or '0')
if before * tonumber(ARGV[2]) + current + 1 <= tonumber(ARGV[1]) then
  redis.call('INCR', KEYS[2])
  if current == 0 then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
end
return {before, current + 1}
"""


class CacheRates:
    """scope: names the cluster; sites with one cache then share the count."""

    def __init__(self, client: "Redis", scope: str) -> None:
        self._script: Any = client.register_script(_SCRIPT)
        self._scope = scope

    async def count(self, user: str, slot: int, window_s: float, limit: int, passed_s: float) -> tuple[int, int]:
        """(count of the slot before, count of this one with this request). Raises CacheAway."""
        keys = [f"{{tb:{self._scope}:rate:{user}}}:{one}" for one in (slot - 1, slot)]
        arguments = [limit, 1.0 - passed_s / window_s, int(window_s * 2_500)]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                before, current = await self._script(keys=keys, args=arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise CacheAway(f"{type(error).__name__}: {error}"[:300]) from error
        return int(before), int(current)
