"""Who the members are, where they listen, and how long they wait for each other: written as TOML, checked at start."""

import tomllib
from collections import Counter
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

import msgspec
from msgspec import Struct

TIEBREAKER_SITE = "tiebreaker"
VOTERS_MIN = 3
MEMBERS_MAX = 32
NAME_LENGTH_MAX = 63
GATEWAY_PREFIX = "gateway-"
EPOCH_MAX = 2**31 - 1


class InvalidTopology(ValueError):
    """The members or the timing contradict each other. Nothing was started."""

    code = "invalid_topology"


class MemberRole(StrEnum):
    """A replica holds log and state; a witness holds the log and votes, but never applies it."""

    replica = "replica"
    witness = "witness"


class Standing(StrEnum):
    """A voter counts for elections and majorities. A learner catches up and may be promoted; a read replica stays."""

    voter = "voter"
    learner = "learner"
    read_replica = "read_replica"


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    site: str
    role: MemberRole
    peer_host: str
    peer_port: int
    api_host: str
    api_port: int
    standing: Standing = Standing.voter


class Timing(Struct, frozen=True, forbid_unknown_fields=True):
    """All in milliseconds. The defaults suit a LAN; `WAN` below suits sites up to 100 ms apart.

    heartbeat_ms: a leader without work speaks this often.
    election_ms_min, election_ms_max: a follower that hears no leader campaigns after a random time between
        the two; a leader that hears no majority for election_ms_min steps down.
    witness_patience: a witness waits this many times longer, so that a replica campaigns first.
    link_silent_ms_max: a link that is silent for so long is closed and dialed anew.
    disk_stall_ms: a leader whose disk takes longer for one sync steps down, and a member does not campaign.
    clock_offset_ms_max: a member whose clock is further from the median of at least three may not lead.
    """

    heartbeat_ms: int = 50
    election_ms_min: int = 300
    election_ms_max: int = 600
    witness_patience: int = 2
    ping_ms: int = 200
    link_silent_ms_max: int = 1000
    redial_ms_min: int = 50
    redial_ms_max: int = 500
    disk_stall_ms: int = 2000
    clock_offset_ms_max: int = 500


LAN = Timing()
WAN = Timing(
    heartbeat_ms=150,
    election_ms_min=1000,
    election_ms_max=2000,
    ping_ms=500,
    link_silent_ms_max=3000,
    redial_ms_max=1000,
    disk_stall_ms=5000,
)
TIMINGS = {"lan": LAN, "wan": WAN}
"""What an operator chooses from when a cluster is made; each value may be changed in its topology file."""


class Topology(Struct, frozen=True, forbid_unknown_fields=True):
    """Who the members are at the first start; later the log says so, and this tells where to find them.

    epoch: of the cluster's history. To be raised by one, on all members, when their data goes back to a backup: what
    clients hold of the future that was undone is then refused, and members of two epochs do not take each other for
    one cluster.
    configuration_index: of the log entry that this was written after; 0 for a new cluster. What is asked of a new
    cluster's members, an odd number of voters and the like, a change under way may break for a while.
    """

    cluster_id: str
    members: list[Member]
    timing: Timing = LAN
    epoch: int = 1
    configuration_index: int = 0

    @property
    def history(self) -> str:
        """What members must agree on before they link: which cluster, and which of its histories."""
        return self.cluster_id if self.epoch == 1 else f"{self.cluster_id} epoch {self.epoch}"

    def member(self, name: str) -> Member:
        """Raises InvalidTopology when there is no such member."""
        for member in self.members:
            if member.name == name:
                return member
        raise InvalidTopology(f"no member {name!r}; the topology has {[m.name for m in self.members]}")

    def others(self, name: str) -> list[Member]:
        return [member for member in self.members if member.name != name]

    @property
    def voters(self) -> list[Member]:
        return [member for member in self.members if member.standing is Standing.voter]

    @property
    def quorum(self) -> int:
        return len(self.voters) // 2 + 1


def check(topology: Topology) -> Topology:
    """Return the topology when it holds together.

    Raises InvalidTopology naming both values of the first pair that does not.
    """
    check_members(topology.members)
    weak = weaknesses(topology.members)
    if weak and not topology.configuration_index:
        raise InvalidTopology(weak[0])
    check_timing(topology.timing)
    if not topology.cluster_id:
        raise InvalidTopology("cluster_id is empty")
    if not 1 <= topology.epoch <= EPOCH_MAX:
        raise InvalidTopology(f"epoch = {topology.epoch}: must be between 1 and {EPOCH_MAX}")
    return topology


def check_members(members: list[Member]) -> None:
    """Raises InvalidTopology when two members can't be beside each other, or one can't be at all."""
    if len(members) > MEMBERS_MAX:
        raise InvalidTopology(f"{len(members)} members: at most {MEMBERS_MAX}")
    names = Counter(member.name for member in members)
    for name, count in names.items():
        if count > 1:
            sites = [m.site for m in members if m.name == name]
            raise InvalidTopology(f"{count} members are named {name!r}, at {' and '.join(sites)}")
        if not name or not name.isascii() or not all(c.isalnum() or c in "-." for c in name):
            raise InvalidTopology(
                f"member name {name!r}: letters, digits, '-' and '.' only; it goes into a certificate"
            )
        if name.startswith(GATEWAY_PREFIX) or len(name) > NAME_LENGTH_MAX:
            raise InvalidTopology(
                f"member name {name!r}: at most {NAME_LENGTH_MAX} characters, and {GATEWAY_PREFIX!r} is for gateways"
            )
    taken: dict[tuple[str, int], str] = {}
    for member in members:
        if member.role is MemberRole.witness and member.standing is Standing.read_replica:
            raise InvalidTopology(f"{member.name} is a witness: it serves no reads, so it can't be a read replica")
        for what, host, port in (
            ("peer_port", member.peer_host, member.peer_port),
            ("api_port", member.api_host, member.api_port),
        ):
            if not 1 <= port <= 65535:
                raise InvalidTopology(f"{member.name}.{what} = {port}: must be between 1 and 65535")
            mine = f"{member.name}.{what}"
            other = taken.setdefault((host, port), mine)
            if other != mine:
                raise InvalidTopology(f"{other} and {mine} are both {host}:{port}")


def weaknesses(members: list[Member]) -> list[str]:
    """Why these members would not survive the loss of any one of them, or of any one site; empty when they do."""
    voters = [member for member in members if member.standing is Standing.voter]
    count = len(voters)
    found = []
    if count % 2 == 0:
        found.append(f"{count} voters: an even number survives no more failures than {max(count - 1, 0)}")
    if count < VOTERS_MIN:
        found.append(f"{count} voters: at least {VOTERS_MIN} are needed to survive the loss of one")
    sites = list(dict.fromkeys(member.site for member in voters))
    datacenters = [site for site in sites if site != TIEBREAKER_SITE]
    if len(datacenters) < 2:
        found.append(f"datacenters {datacenters}: two are needed, besides {TIEBREAKER_SITE!r}")
    for site in datacenters:
        here = [member for member in voters if member.site == site]
        if all(member.role is MemberRole.witness for member in here):
            found.append(f"datacenter {site!r} has members {[m.name for m in here]} but 0 full replicas; it needs 1")
    for site in sites:
        here_count = sum(member.site == site for member in voters)
        if here_count > count // 2:
            found.append(f"site {site!r} has {here_count} of {count} voters: its loss would stop the rest")
    return found


def check_timing(timing: Timing) -> Timing:
    """Return the timing when no two of its values contradict each other, else raise InvalidTopology with both."""
    for name in timing.__struct_fields__:
        if getattr(timing, name) <= 0:
            raise InvalidTopology(f"timing.{name} = {getattr(timing, name)}: must be positive")
    for left, factor, right, why in (
        ("heartbeat_ms", 3, "election_ms_min", "two lost heartbeats must not cause an election"),
        ("election_ms_min", 1, "election_ms_max", "members would campaign at the same moment"),
        ("election_ms_max", 1, "link_silent_ms_max", "links would be dropped before an election decides"),
        ("election_ms_max", 1, "disk_stall_ms", "a sync that is merely slow must not cost leadership"),
        ("ping_ms", 3, "link_silent_ms_max", "two lost pings must not drop a link"),
        ("redial_ms_min", 1, "redial_ms_max", "redials need room for their jitter"),
    ):
        small, large = getattr(timing, left), getattr(timing, right)
        if small * factor >= large:
            times = f"{factor} * " if factor > 1 else ""
            raise InvalidTopology(
                f"timing.{left} = {small} and timing.{right} = {large}: {times}{left} < {right}; {why}"
            )
    return timing


def new_topology(shape: str, base_port: int, *, host: str = "127.0.0.1", timing: Timing = LAN) -> Topology:
    """A fresh cluster on one host, for trying things out: '1+1+1' or '2+2+1' (dc-a + dc-b + witness).

    Member i listens on base_port + 2i (peers) and base_port + 2i + 1 (API).
    """
    shapes = {"1+1+1": (1, 1), "2+2+1": (2, 2)}
    if shape not in shapes:
        raise InvalidTopology(f"shape {shape!r}: one of {sorted(shapes)}")
    in_a, in_b = shapes[shape]
    plan = [(f"a{i + 1}", "dc-a", MemberRole.replica) for i in range(in_a)]
    plan += [(f"b{i + 1}", "dc-b", MemberRole.replica) for i in range(in_b)]
    plan.append(("t1", TIEBREAKER_SITE, MemberRole.witness))
    members = [
        Member(
            name=name,
            site=site,
            role=role,
            peer_host=host,
            peer_port=base_port + 2 * i,
            api_host=host,
            api_port=base_port + 2 * i + 1,
        )
        for i, (name, site, role) in enumerate(plan)
    ]
    return check(Topology(cluster_id=uuid4().hex, members=members, timing=timing))


def to_toml(topology: Topology) -> str:
    def lines(fields: dict[str, object]) -> list[str]:
        # A TOML basic string takes the same escapes as a JSON string.
        return [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in fields.items()]

    head: dict[str, object] = {"cluster_id": topology.cluster_id, "epoch": topology.epoch}
    if topology.configuration_index:
        head["configuration_index"] = topology.configuration_index
    out = lines(head)
    out += ["", "[timing]", *lines(msgspec.to_builtins(topology.timing))]
    for member in topology.members:
        fields = msgspec.to_builtins(member)
        if member.standing is Standing.voter:
            del fields["standing"]
        out += ["", "[[members]]", *lines(fields)]
    return "\n".join(out) + "\n"


def from_toml(text: str) -> Topology:
    """Raises InvalidTopology for bad TOML, unknown or missing fields, and contradictions."""
    try:
        topology = msgspec.convert(tomllib.loads(text), Topology)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidTopology(str(error)) from error
    return check(topology)


def read_topology(path: Path) -> Topology:
    return from_toml(path.read_text(encoding="utf-8"))


def write_topology(path: Path, topology: Topology) -> None:
    path.write_text(to_toml(check(topology)), encoding="utf-8")
