"""Who belongs to the group, and the changes of it: each is one log entry, and each says why it can't be.

One change at a time, of one member, after Ongaro's thesis ("Consensus: Bridging Theory and Practice", 2014, section
4.1) with his correction of 2015: two majorities, before and after a change of one voter, always share a member, so
a configuration counts as soon as it is in the log, committed or not. What only a leader can see, whether a learner
has caught up, say, is checked in consensus/raft.py.
"""

import msgspec
from msgspec import Struct

from cluster.topology import (
    VOTERS_MIN,
    InvalidTopology,
    Member,
    MemberRole,
    Standing,
    Topology,
    check_members,
)

REMOVED_MAX = 1000


class Configuration(Struct, frozen=True, forbid_unknown_fields=True):
    """The members from one log entry on.

    generation: how often a configuration was forced, after a majority was lost. Entries of lower ones count no more.
    removed: names that were members. A name never comes back: certificates go by it.
    demoted: learners that a leader made of voters which were away for too long; it promotes them again.
    """

    generation: int
    members: list[Member]
    removed: list[str] = []
    demoted: list[str] = []

    def member(self, name: str) -> Member | None:
        for member in self.members:
            if member.name == name:
                return member
        return None

    @property
    def voters(self) -> frozenset[str]:
        return frozenset(member.name for member in self.members if member.standing is Standing.voter)

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1


class Add(Struct, frozen=True, forbid_unknown_fields=True, tag="add"):
    """A new member, as learner or read replica."""

    member: Member


class Promote(Struct, frozen=True, forbid_unknown_fields=True, tag="promote"):
    """A learner that has caught up becomes a voter."""

    name: str


class Demote(Struct, frozen=True, forbid_unknown_fields=True, tag="demote"):
    """A voter becomes a learner. away: by the leader, because the others' logs can't wait any longer."""

    name: str
    away: bool = False


class Remove(Struct, frozen=True, forbid_unknown_fields=True, tag="remove"):
    name: str


Change = Add | Promote | Demote | Remove


class InvalidChange(ValueError):
    """This change can't be made to this configuration; nothing was logged."""


def first_configuration(topology: Topology) -> Configuration:
    """What a member starts from whose log says nothing."""
    return Configuration(0, list(topology.members))


def changed(configuration: Configuration, change: Change) -> Configuration:
    """The configuration after a change; the same one when it holds already, so that a repeat does no harm.

    Raises InvalidChange.
    """
    match change:
        case Add(member):
            return _added(configuration, member)
        case Promote(name):
            return _promoted(configuration, name)
        case Demote(name, away):
            return _demoted(configuration, name, away=away)
        case Remove(name):
            return _removed(configuration, name)


def _added(configuration: Configuration, member: Member) -> Configuration:
    if member.standing is Standing.voter:
        raise InvalidChange(f"{member.name} can't begin as a voter: it has to catch up first")
    if member.name in configuration.removed:
        raise InvalidChange(f"{member.name} was a member and was removed: a name never comes back, take another")
    present = configuration.member(member.name)
    if present is not None:
        # A repeat of the request that added it, whatever became of the member since.
        if msgspec.structs.replace(present, standing=member.standing) == member:
            return configuration
        raise InvalidChange(f"{member.name} is a member already, with other settings")
    members = [*configuration.members, member]
    try:
        check_members(members)
    except InvalidTopology as error:
        raise InvalidChange(str(error)) from error
    return msgspec.structs.replace(configuration, members=members)


def _promoted(configuration: Configuration, name: str) -> Configuration:
    member = _known(configuration, name)
    if member.standing is Standing.voter:
        return configuration
    if member.standing is Standing.read_replica:
        raise InvalidChange(f"{name} is a read replica, which never votes; add a learner instead")
    return _with(configuration, name, Standing.voter)


def _demoted(configuration: Configuration, name: str, *, away: bool) -> Configuration:
    member = _known(configuration, name)
    if member.standing is not Standing.voter:
        return configuration
    left = [other for other in configuration.members if other.name != name]
    _check_voters(left, name, voters_min=1 if away else VOTERS_MIN)
    after = _with(configuration, name, Standing.learner)
    return msgspec.structs.replace(after, demoted=[*after.demoted, name]) if away else after


def _removed(configuration: Configuration, name: str) -> Configuration:
    if name in configuration.removed:
        return configuration
    member = _known(configuration, name)
    left = [other for other in configuration.members if other.name != name]
    if member.standing is Standing.voter or name in configuration.demoted:
        _check_voters(left, name, voters_min=VOTERS_MIN)
    # Bounded: the names of members that went long ago may come back, under new certificates.
    removed = [*configuration.removed, name][-REMOVED_MAX:]
    demoted = [other for other in configuration.demoted if other != name]
    return msgspec.structs.replace(configuration, members=left, removed=removed, demoted=demoted)


def _known(configuration: Configuration, name: str) -> Member:
    member = configuration.member(name)
    if member is None:
        names = ", ".join(other.name for other in configuration.members)
        raise InvalidChange(f"{name} is no member; the members are {names}")
    return member


def _check_voters(left: list[Member], name: str, *, voters_min: int) -> None:
    voters = [member for member in left if member.standing is Standing.voter]
    replicas = [member for member in voters if member.role is MemberRole.replica]
    if len(voters) < voters_min:
        raise InvalidChange(
            f"without {name} {len(voters)} voters are left; at least {voters_min} are needed to survive the loss of "
            "one: add and promote another member first"
        )
    if len(replicas) < (1 if voters_min == 1 else 2):
        raise InvalidChange(f"without {name} {len(replicas)} full replicas vote: a witness can't restore the state")


def _with(configuration: Configuration, name: str, standing: Standing) -> Configuration:
    members = [
        msgspec.structs.replace(member, standing=standing) if member.name == name else member
        for member in configuration.members
    ]
    demoted = [other for other in configuration.demoted if other != name]
    return msgspec.structs.replace(configuration, members=members, demoted=demoted)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Configuration)


def encode(configuration: Configuration) -> bytes:
    return _encoder.encode(configuration)


def decode(raw: bytes) -> Configuration:
    """Raises msgspec.DecodeError: written by a newer version, or damaged."""
    return _decoder.decode(raw)
