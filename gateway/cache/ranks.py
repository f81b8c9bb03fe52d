"""The leaderboard in the cache: a sorted set per period, replaced whole, for whoever reads ranks beside the gateway."""

import asyncio
from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.cache.state import TIMEOUT_S, CacheAway

LIFE_S = 60
"""A set that is not written again is gone soon: ranks of a gateway that left are nobody's."""


class CacheRanks:
    """scope: names the cluster and the site. Keys: {tb:SCOPE}:ranks:PERIOD; members are accounts.

    Scores are negative returns, so that ZRANGE gives the best first and equal ones by name, as the API does.
    """

    def __init__(self, client: "Redis", scope: str) -> None:
        self._client = client
        self._prefix = f"{{tb:{scope}}}:ranks:"

    def key(self, period: str) -> str:
        return self._prefix + period

    async def write(self, period: str, returns: Mapping[str, float]) -> None:
        """returns: of the accounts that are shown. A reader finds the old set or the new one. Raises CacheAway."""
        key, draft = self.key(period), self.key(f"{period}:draft")
        pipe = self._client.pipeline(transaction=True)
        pipe.delete(draft)
        if returns:
            pipe.zadd(draft, {account: -value for account, value in returns.items()})
            pipe.expire(draft, LIFE_S)
            pipe.rename(draft, key)
        else:
            pipe.delete(key)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise CacheAway(f"{type(error).__name__}: {error}"[:300]) from error
