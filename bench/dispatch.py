"""Which intents may go out now: a cancel has to wait for the id that its order gets.

Traders can't cancel what has not been confirmed. So an intent on an order whose answer is still under
way is parked until it comes; all others go on. That reorders a pipelined flow a little against the
recording (by what is under way), as every real feed of orders through a network does.
"""

from collections import deque
from collections.abc import Iterator

from bench.flow import Act, Intent


class Dispatcher:
    """Hands out intents in order, as far as their orders' ids are known.

    The caller tells each answer by `answered`, in any order; until then the order counts as under way.
    """

    def __init__(self, intents: Iterator[Intent]) -> None:
        self._intents = intents
        self._ids: dict[int, str] = {}
        self._parked: dict[int, deque[Intent]] = {}
        """By reference, of each order whose id is under way."""
        self._released: deque[Intent] = deque()
        self.exhausted = False
        """The intents have come to their end; parked ones may still follow."""
        self.dropped = 0
        """Intents on orders that were refused, or lost in an unknown outcome."""

    def take(self, count: int) -> list[tuple[Intent, str]]:
        """At most `count` intents that can go out now, each with the id of the order that it changes, or ""."""
        taken: list[tuple[Intent, str]] = []
        while len(taken) < count:
            if self._released:
                intent = self._released.popleft()
            else:
                following = next(self._intents, None)
                if following is None:
                    self.exhausted = True
                    break
                intent = following
            ref = intent.ref
            if intent.act in (Act.take, Act.mode):
                taken.append((intent, ""))
            elif ref in self._parked:
                self._parked[ref].append(intent)
            elif intent.act == Act.place:
                self._parked[ref] = deque()
                taken.append((intent, ""))
            elif ref not in self._ids:
                self.dropped += 1
            elif intent.act == Act.reduce:
                self._parked[ref] = deque()
                taken.append((intent, self._ids[ref]))
            else:
                taken.append((intent, self._ids.pop(ref)))
        return taken

    def answered(self, intent: Intent, order_id: str) -> None:
        """The answer to an intent that was taken. order_id: the order's id from now on, "" if there is none."""
        if intent.act not in (Act.place, Act.reduce):
            return
        parked = self._parked.pop(intent.ref)
        if order_id:
            self._ids[intent.ref] = order_id
        else:
            self._ids.pop(intent.ref, None)
        self._released.extend(parked)

    @property
    def waiting(self) -> int:
        """Intents that are parked or released but not yet taken."""
        return len(self._released) + sum(map(len, self._parked.values()))
