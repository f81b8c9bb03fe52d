"""Gives each intent the key of its command, and names the order that it changes by the key of that one.

So nothing has to wait for an id: an order may be changed and canceled while its placing is under way. That
holds as long as all commands of a flow travel in order, on one connection.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from bench.flow import Act, Intent


class Asked(NamedTuple):
    """An intent as it is sent: under `key`; `order` is the key of the order that it changes, or ""."""

    intent: Intent
    key: str
    order: str


class Dispatcher:
    """Hands out intents in their order. run: begins every key, so that two runs never share one.

    The caller tells what was refused: an order that was never placed is not canceled, one that was not
    reduced keeps its name. What is under way by then can't be called back.
    """

    def __init__(self, intents: Iterator[Intent], run: str) -> None:
        self._intents = intents
        self._run = run
        self._number = 0
        self._orders: dict[int, list[str]] = {}
        """By reference: the keys that an order has had, the present one last."""
        self.exhausted = False
        """The intents have come to their end."""
        self.dropped = 0
        """Intents on orders whose placing was refused."""

    def take(self, count: int) -> list[Asked]:
        """The next `count` intents, fewer only at the end of the flow."""
        taken: list[Asked] = []
        while len(taken) < count and not self.exhausted:
            part = list(islice(self._intents, count - len(taken)))
            self.exhausted = not part
            taken += [asked for intent in part if (asked := self._named(intent)) is not None]
        return taken

    def _named(self, intent: Intent) -> Asked | None:
        order = ""
        if intent.act in (Act.reduce, Act.cancel):
            keys = self._orders.get(intent.ref)
            if not keys:
                self.dropped += 1
                return None
            order = keys[-1]
        self._number += 1
        key = f"{self._run}-{self._number}"
        if intent.act == Act.place:
            self._orders[intent.ref] = [key]
        elif intent.act == Act.reduce:
            self._orders[intent.ref].append(key)
        elif intent.act == Act.cancel:
            del self._orders[intent.ref]
        return Asked(intent, key, order)

    def refused(self, asked: Asked) -> None:
        """A command that was taken had no effect."""
        keys = self._orders.get(asked.intent.ref, [])
        if asked.intent.act in (Act.place, Act.reduce) and asked.key in keys:
            keys.remove(asked.key)
