"""Whom a member links with, and where they are: its topology, its log, and what newer members say of each other.

No majority hangs on this. It lets a member that was away, or is new, find those who came meanwhile.
"""

from cluster.consensus.journal import Base
from cluster.consensus.messages import Members, Removed
from cluster.membership import Configuration
from cluster.topology import Member, Topology


class AddressBook:
    """The newest word counts: a topology file's for where its members are, a configuration's for who is one."""

    def __init__(self, topology: Topology, member: str) -> None:
        self._member = member
        self._topology = {one.name: one for one in topology.members}
        self._committed = (0, 0)
        self._in_force = Configuration(0, list(topology.members))
        self._leaving: Configuration | None = None
        self._heard = Members(0, 0, [], [])

    def configured(self, base: Base, *, committed: bool) -> None:
        """A configuration is in force here. Until it is committed, whom it leaves out is still a peer."""
        if not committed:
            self._leaving = self._leaving or self._in_force
        else:
            self._leaving = None
            self._committed = (base.configuration.generation, base.index)
        self._in_force = base.configuration

    def heard(self, message: Members) -> bool:
        """Another member's word. False: it is no newer than what is known."""
        if (message.generation, message.index) <= max((self._heard.generation, self._heard.index), self._committed):
            return False
        self._heard = message
        return True

    def told(self) -> Members:
        """What to say to others: the newest committed configuration that is known here."""
        if (self._heard.generation, self._heard.index) > self._committed:
            return self._heard
        known = self._leaving or self._in_force
        return Members(*self._committed, known.members, known.removed)

    def _removed(self) -> set[str]:
        known = set((self._leaving or self._in_force).removed)
        if (self._heard.generation, self._heard.index) > self._committed:
            known |= set(self._heard.removed)
        return known

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Every peer and where it listens."""
        found: dict[str, Member] = {}
        for members in (self._heard.members, (self._leaving or self._in_force).members, self._in_force.members):
            found |= {one.name: one for one in members}
        # The file is where an operator says that a member moved.
        found |= self._topology
        gone = self._removed()
        return {
            name: (one.peer_host, one.peer_port)
            for name, one in found.items()
            if name != self._member and name not in gone
        }

    def farewell(self, member: str) -> Removed | None:
        """What a member that was removed for good is told; None where it is merely unknown."""
        if member not in self._removed():
            return None
        newest = max(self._committed, (self._heard.generation, self._heard.index))
        return Removed(*newest)

    def believes(self, message: Removed) -> bool:
        """That this member was removed: only by a configuration that is newer than its own."""
        return (message.generation, message.index) > self._committed
