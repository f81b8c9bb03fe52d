"""Requests at the door of a node that may be behind: what is not known here is looked for once more, up to date."""

from collections.abc import Sequence

from cluster import wire
from node.auth import Principal
from node.door import Door, Unseen
from node.errors import NodeError
from node.reads import Reads
from node.submit import Prepared


class Intake:
    """The door, and a look at the group's newest state before anything is said not to exist."""

    def __init__(self, door: Door, reads: Reads) -> None:
        self._door = door
        self._reads = reads

    async def take(
        self, requests: Sequence[wire.AnyRequest], principal: Principal, *, header_key: str = ""
    ) -> list[Prepared | NodeError]:
        """One outcome per request, in order: ready to be submitted, or the error that it ends with.

        Waits only when something named is unknown here or left out, and then for one linearizable read for all.
        """
        envelope = self._door.envelope
        taken: list[Prepared | NodeError] = []
        unseen: list[int] = []
        for position, request in enumerate(requests):
            try:
                taken.append(envelope(request, principal, header_key=header_key))
            except Unseen as error:
                unseen.append(position)
                taken.append(error)
            except NodeError as error:
                taken.append(error)
        if unseen:
            await self._look_again(requests, principal, header_key, taken, unseen)
        return taken

    async def one(self, request: wire.AnyRequest, principal: Principal, *, header_key: str = "") -> Prepared:
        """As `take`, for one request. Raises its NodeError."""
        try:
            return self._door.envelope(request, principal, header_key=header_key)
        except Unseen:
            await self._reads.linearizable()
            return self._door.envelope(request, principal, header_key=header_key, looked=True)

    async def _look_again(
        self,
        requests: Sequence[wire.AnyRequest],
        principal: Principal,
        header_key: str,
        taken: list[Prepared | NodeError],
        unseen: list[int],
    ) -> None:
        envelope = self._door.envelope
        behind: NodeError | None = None
        try:
            await self._reads.linearizable()
        except NodeError as error:
            behind = error
        for position in unseen:
            if behind is not None:
                # Whether it exists is not known. Nothing was logged: the caller may send it again.
                taken[position] = behind
                continue
            try:
                taken[position] = envelope(requests[position], principal, header_key=header_key, looked=True)
            except NodeError as error:
                taken[position] = error
