"""After a majority is lost for good: tells what is left on disk, and makes the survivors a group of their own.

Offline, by an operator's decision, because nothing in the group may decide it: those who are gone may have
acknowledged what no survivor has. See DESIGN.md.
"""

from pathlib import Path

from msgspec import Struct, structs

from cluster.consensus.journal import Base, JournalRefused, newest_of, read_configuration
from cluster.consensus.storage import LmdbStorage
from cluster.membership import Configuration
from cluster.topology import MemberRole, Standing, Topology


class LeftBehind(Struct, frozen=True):
    """What one stopped member has. commit_index: what it knows to be committed; more of its log may be.

    generation, configuration_index: where the configuration that it goes by comes from; None before the first start.
    joined: False on a disk that had not caught up: it may lack anything.
    """

    member: str
    first_index: int
    last_index: int
    last_term: int
    commit_index: int
    term: int
    joined: bool
    configuration: Configuration | None
    configuration_index: int


class CanNotRecover(ValueError):
    """These survivors can't be a group. Nothing was changed."""


def inspect_journal(folder: Path, *, cluster_id: str, member: str) -> LeftBehind:
    """Read a stopped member's journal, with every checksum. Raises JournalRefused: in use, damaged, another's."""
    storage = LmdbStorage(folder, cluster_id=cluster_id, member=member)
    try:
        loaded = storage.load(tail_bytes_max=0)
        bases = [] if loaded.base is None else [loaded.base]
        bases += [read_configuration(index, command) for index, command in loaded.configurations]
        base = newest_of(bases) if bases else None
        return LeftBehind(
            member=member,
            first_index=loaded.first_index,
            last_index=loaded.last_index,
            last_term=loaded.tail[-1][2] if loaded.tail else 0,
            commit_index=min(loaded.commit_index, loaded.last_index),
            term=loaded.vote.term,
            joined=loaded.disk.joined,
            configuration=base.configuration if base is not None else None,
            configuration_index=base.index if base is not None else 0,
        )
    finally:
        storage.close()


def forced_configuration(topology: Topology, known: Configuration, survivors: list[str]) -> Configuration:
    """The survivors as voters, everybody else removed for good. Its generation is the epoch that begins with it.

    topology: of the epoch that ends. known: the newest configuration that any survivor has.
    Raises CanNotRecover.
    """
    names = [member.name for member in known.members]
    strangers = [name for name in survivors if name not in names]
    if strangers or not survivors:
        raise CanNotRecover(f"{strangers or 'nobody'}: survivors are some of {names}")
    kept = [member for member in known.members if member.name in survivors]
    if all(member.role is MemberRole.witness for member in kept):
        raise CanNotRecover(f"{survivors}: without a full replica nobody has the state; restore a backup instead")
    if topology.epoch < known.generation:
        raise CanNotRecover(
            f"epoch = {topology.epoch} in the topology, the journals know {known.generation}: use the newest file"
        )
    voters = [structs.replace(member, standing=Standing.voter) for member in kept]
    gone = [name for name in names if name not in survivors]
    return Configuration(topology.epoch + 1, voters, [*known.removed, *gone])


def force_configuration(folder: Path, configuration: Configuration, *, cluster_id: str, member: str) -> None:
    """Let a stopped survivor go by `configuration`, whatever its log says. Durable on return; may be repeated.

    The same is to be done to every survivor before any of them starts, under a topology of the new epoch.
    Raises CanNotRecover, JournalRefused.
    """
    storage = LmdbStorage(folder, cluster_id=cluster_id, member=member)
    try:
        loaded = storage.load(tail_bytes_max=0)
        if configuration.member(member) is None:
            raise CanNotRecover(f"{member} is not among {sorted(configuration.voters)}")
        if not loaded.disk.joined:
            raise CanNotRecover(f"{member} is on a disk that had not caught up: what it lacks nobody can tell")
        if loaded.base is not None and loaded.base.configuration.generation > configuration.generation:
            raise CanNotRecover(
                f"{folder} is of generation {loaded.base.configuration.generation}, "
                f"newer than {configuration.generation}"
            )
        storage.write([Base(0, configuration, forced=True)])
    finally:
        storage.close()


__all__ = [
    "CanNotRecover",
    "JournalRefused",
    "LeftBehind",
    "force_configuration",
    "forced_configuration",
    "inspect_journal",
]
