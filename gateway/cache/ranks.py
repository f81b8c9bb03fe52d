"""The leaderboard in the cache: a sorted set per period, replaced whole, for whoever reads ranks beside the gateway."""

from collections.abc import Mapping

from gateway.cache.client import CacheClient, Script

LIFE_S = 60
"""A set that is not written again is gone soon: ranks of a gateway that left are nobody's."""

# KEYS: the set. ARGV: its life, then score and member of each.
_REPLACE = Script("""
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'ok'
""")


class CacheRanks:
    """scope: names the cluster and the site. Keys: {tb:SCOPE}:ranks:PERIOD; members are accounts.

    Scores are negative returns, so that ZRANGE gives the best first and equal ones by name, as the API does.
    """

    def __init__(self, client: CacheClient, scope: str) -> None:
        self._client = client
        self._prefix = f"{{tb:{scope}}}:ranks:"

    def key(self, period: str) -> str:
        return self._prefix + period

    async def write(self, period: str, returns: Mapping[str, float]) -> None:
        """returns: of the accounts that are shown. A reader finds the old set or the new one. Raises CacheAway."""
        pairs = [word for account, value in returns.items() for word in (-value, account)]
        await self._client.run(_REPLACE, [self.key(period)], [LIFE_S, *pairs])
