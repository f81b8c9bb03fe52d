"""Counts requests by user and slot in the cache: one script, one round trip."""

from gateway.cache.client import CacheClient, Script

TIMEOUT_S = 0.1
"""A request does not wait longer for being counted."""

# KEYS: a user's counts by slot: one key, so that a cluster that moves it never has a half of it. ARGV: the limit, the
# share of the slot before that is still in the window, its life in ms, the slot before, this slot. A request beyond the
# limit is not counted.
_COUNT = Script("""
local found = redis.call('HMGET', KEYS[1], ARGV[4], ARGV[5])
local before, current = tonumber(found[1] or '0'), tonumber(found[2] or '0')
if before * tonumber(ARGV[2]) + current + 1 <= tonumber(ARGV[1]) then
  if current == 0 then
    for _, slot in ipairs(redis.call('HKEYS', KEYS[1])) do
      if tonumber(slot) < tonumber(ARGV[4]) then redis.call('HDEL', KEYS[1], slot) end
    end
  end
  redis.call('HINCRBY', KEYS[1], ARGV[5], 1)
  if current == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
end
return {before, current + 1}
""")


class CacheRates:
    """scope: names the cluster; sites with one cache then share the count."""

    def __init__(self, client: CacheClient, scope: str) -> None:
        self._client = client
        self._scope = scope

    async def count(self, user: str, slot: int, window_s: float, limit: int, passed_s: float) -> tuple[int, int]:
        """(count of the slot before, count of this one with this request). Raises CacheAway."""
        key = f"{{tb:{self._scope}:rate:{user}}}"
        arguments = [limit, 1.0 - passed_s / window_s, int(window_s * 2_500), slot - 1, slot]
        before, current = await self._client.run(_COUNT, [key], arguments, timeout_s=TIMEOUT_S)
        return int(before), int(current)
