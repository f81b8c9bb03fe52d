"""How many messages one user gets by one channel in an hour: an SMS costs money, and a flood of e-mail a good name."""

from collections import deque

from gateway.prefs.fields import Channel

HOUR_US = 3_600 * 1_000_000
PER_HOUR = {Channel.email: 60, Channel.sms: 20, Channel.push: 120, Channel.webhook: 10_000}
USERS_MAX = 100_000


class Allowance:
    """Counts what was tried in the last hour, in memory: a restart begins anew. Not for the WebSocket."""

    def __init__(self) -> None:
        self._tried: dict[tuple[str, Channel], deque[int]] = {}

    def take(self, user: str, channel: Channel, now_us: int) -> int:
        """When it may be sent: now_us, and then it counts; or later, and then ask again."""
        tried = self._tried.get((user, channel))
        if tried is None:
            if len(self._tried) >= USERS_MAX:
                self._forget(now_us)
            tried = self._tried[user, channel] = deque()
        while tried and tried[0] <= now_us - HOUR_US:
            tried.popleft()
        if len(tried) >= PER_HOUR[channel]:
            return tried[0] + HOUR_US
        tried.append(now_us)
        return now_us

    def _forget(self, now_us: int) -> None:
        """Those who got nothing for an hour; if there are none, the one who was first."""
        old = [key for key, tried in self._tried.items() if not tried or tried[-1] <= now_us - HOUR_US]
        for key in old or [next(iter(self._tried))]:
            del self._tried[key]
