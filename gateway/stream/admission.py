"""Who may come in now: new streams at a bounded rate, each that is turned away with a time of its own to come back."""

import random
import time
from collections.abc import Callable

from msgspec import Struct, structs


class StreamLimits(Struct, frozen=True, kw_only=True):
    """Bounds of a gateway, or of one connection of it. Seconds, bytes and counts."""

    admitted_per_s: float = 500.0
    admitted_burst: int = 500
    wait_s_max: float = 60.0
    """Nobody is told to wait longer."""
    connections_per_user_max: int = 100
    subscriptions_per_connection_max: int = 1_000
    subscriptions_per_user_max: int = 10_000
    message_bytes_max: int = 65_536
    messages_per_s: float = 50.0
    messages_burst: int = 100
    pending_max: int = 16
    """Subscriptions that a worker has asked the core for and not heard of yet, per connection."""
    authenticate_s: float = 10.0
    heartbeat_s: float = 5.0
    """A stream that was sent nothing for so long gets a heartbeat: a send costs the same with nothing in it."""
    ping_s: float = 30.0
    silent_s: float = 75.0
    """Without any sign of life, pongs included: half-open."""
    stuck_s: float = 10.0
    """Without room to send."""
    send_buffer_bytes: int = 65_536
    """Of the kernel's: what is in it is old when a slow reader gets to it. 0: as the system has it."""

    def part(self, share: int) -> "StreamLimits":
        """What one of so many processes admits while it can't ask what the others do."""
        return structs.replace(
            self,
            admitted_per_s=max(1e-9, self.admitted_per_s / share),
            admitted_burst=max(1, self.admitted_burst // share),
        )

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < (0 if name == "send_buffer_bytes" else 1e-9):
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        if self.ping_s >= self.silent_s:
            raise ValueError(f"ping_s {self.ping_s} must be below silent_s {self.silent_s}: else nobody could answer")


class Admission:
    """A bucket of new streams. Those that find it empty queue up for its coming tokens, without waiting here.

    Each refusal takes the next free moment, so a storm comes back at the admitted rate and not as another storm.
    """

    def __init__(
        self, limits: StreamLimits, *, clock: Callable[[], float] = time.monotonic, chance: random.Random | None = None
    ) -> None:
        self.refused = 0
        self.limits = limits
        self._clock = clock
        self._chance = chance or random.Random()
        self._tokens = float(limits.admitted_burst)
        self._filled_at_s = clock()
        self._next_free_s = 0.0

    def admit(self) -> float:
        """0: come in. Else the seconds to wait before coming back."""
        limits, now_s = self.limits, self._clock()
        rate = limits.admitted_per_s
        self._tokens = min(self._tokens + (now_s - self._filled_at_s) * rate, limits.admitted_burst)
        self._filled_at_s = now_s
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        self.refused += 1
        self._next_free_s = max(self._next_free_s, now_s) + 1.0 / rate
        wait_s = min(self._next_free_s - now_s, limits.wait_s_max)
        if wait_s == limits.wait_s_max:  # beyond this the moments would all be one
            wait_s *= self._chance.uniform(0.5, 1.0)
        return wait_s * self._chance.uniform(1.0, 1.2)


class Allowance:
    """How often one client may ask. A bucket of two numbers, since there are many."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, limits: StreamLimits, now_s: float) -> None:
        self._tokens, self._at_s = float(limits.messages_burst), now_s

    def take(self, limits: StreamLimits, now_s: float) -> bool:
        self._tokens = min(self._tokens + (now_s - self._at_s) * limits.messages_per_s, limits.messages_burst)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
