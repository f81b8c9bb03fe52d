"""A member on the library as it is published, with its own journal, wire format and thread: `... MEMBER.toml`.

The rest of the member is the product, so that both stand behind the same load. The library is set for its least
latency (each entry is sent at once), its compaction is off (it would need our state), and it syncs nothing. It serves
commands of clients that ask the leader and keeps no promise: see the table of its defects in cluster/DESIGN.md.
With `--forward` before the file, followers pass commands on to the leader. `... --log JOURNAL` prints what a stopped
one's journal holds: a line with the index up to which it knew of a majority, then the entries.
"""

import asyncio
import base64
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal
from pysyncobj.node import TCPNode

from cluster.consensus.engine import (
    ChangeRefused,
    Engine,
    EngineStatus,
    GroupStatus,
    NoLeader,
    NotLeader,
    PeerStatus,
    Role,
)
from cluster.consensus.messages import SnapshotOffer
from cluster.consensus.snapshots import SnapshotHome
from cluster.membership import Change, first_configuration
from cluster.topology import Member, MemberRole
from node import app
from node.config import NodeConfig, read_config
from node.tracing import configure_logging

LOOK_S = 0.01
NEVER = 10**9
WITNESS_PATIENCE = 20
"""A witness that is elected could serve nobody, and the library knows no witness: it comes last, by far."""
ENTRY_BYTES = 1 << 20
FORWARD = "--forward"
REGULAR = b"\x00"
"""The first byte of an entry that holds a call."""
ROLES = {0: Role.follower, 1: Role.candidate, 2: Role.leader}


class Dialed(TCPNode):  # type: ignore[misc]
    """A member that is known by its address and dialed at another, where a proxy stands."""

    def __init__(self, address: str, dial: tuple[str, int]) -> None:
        super().__init__(address)
        self._dial = dial

    @property
    def ip(self) -> str:
        return self._dial[0]

    @property
    def port(self) -> int:
        return self._dial[1]


class StockLog(SyncObj):  # type: ignore[misc]
    """told(index, payload) and heard(index, target, source, kind, body) are called on the library's thread for each
    entry that it applies: a batch, or what one member says to another."""

    def __init__(
        self,
        me: str,
        others: list[TCPNode],
        conf: SyncObjConf,
        told: Callable[[int, bytes], None],
        heard: Callable[[int, str, str, str, bytes], None],
    ) -> None:
        self._told = told
        self._heard = heard
        super().__init__(me, others, conf)

    @replicated  # type: ignore[untyped-decorator]
    def put(self, payload: bytes) -> None:
        self._told(self.raftLastApplied + 1, payload)

    @replicated  # type: ignore[untyped-decorator]
    def tell(self, target: str, source: str, kind: str, body: bytes) -> None:
        self._heard(self.raftLastApplied + 1, target, source, kind, body)


class StockEngine:
    """Implements what a leader and its followers need of Engine, as well as the library can."""

    def __init__(self, config: NodeConfig, *, forwards: bool = False) -> None:
        """forwards: members that follow know their leader, and send it commands, through the log: the library carries
        nothing else. Without, clients have to ask the leader."""
        self._forwards = forwards
        self.on_committed: Callable[[int, bytes], None] = lambda _index, _payload: None
        self.on_role: Callable[[], None] = lambda: None
        self.on_message: Callable[[str, str, bytes], None] = lambda _member, _kind, _body: None
        self.on_configuration: Callable[[], None] = lambda: None
        self.snapshots: SnapshotHome | None = None
        self.counters: Counter[str] = Counter()
        self._config = config
        self._me = config.member
        self._others = {_address(other): other for other in config.topology.others(config.name)}
        self._log: Any = None
        self._seen: tuple[Role, str | None, bool] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._stored_index = 0
        self._delivered_index = 0

    async def start(self, *, applied_index: int) -> None:
        folder = self._config.data_dir / "stock"
        folder.mkdir(parents=True, exist_ok=True)
        timing = self._config.topology.timing
        patience = WITNESS_PATIENCE if self._me.role is MemberRole.witness else 1
        election_s_max = timing.election_ms_max * patience / 1000
        conf = SyncObjConf(
            journalFile=str(folder / "journal"),
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=ENTRY_BYTES,
            appendEntriesPeriod=timing.heartbeat_ms / 1000,
            raftMinTimeout=timing.election_ms_min * patience / 1000,
            raftMaxTimeout=election_s_max,
            connectionTimeout=max(3.5, 2 * election_s_max),  # 3.5 is its own default
            connectionRetryTime=timing.redial_ms_max / 1000,
            logCompactionMinEntries=NEVER,
            logCompactionMinTime=NEVER,
        )
        loop = asyncio.get_running_loop()

        def told(index: int, payload: bytes) -> None:
            # Started again, it tells of all that it has, from the first entry on.
            if index > applied_index:
                loop.call_soon_threadsafe(self._deliver, index, payload)

        def heard(index: int, target: str, source: str, kind: str, body: bytes) -> None:
            if index > applied_index and target == self._me.name:
                loop.call_soon_threadsafe(self._message, source, kind, body)

        others = [
            Dialed(address, self._config.dial[other.name]) if other.name in self._config.dial else TCPNode(address)
            for address, other in self._others.items()
        ]
        self._delivered_index = applied_index
        self._log = StockLog(_address(self._me), others, conf, told, heard)
        self._looking = loop.create_task(self._look())

    def _deliver(self, index: int, payload: bytes) -> None:
        self._delivered_index = index
        self.on_committed(index, payload)

    def _message(self, source: str, kind: str, body: bytes) -> None:
        self.on_message(source, kind, body)

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        self._log.destroy()

    def propose(self, payload: bytes) -> None:
        if not self._log._isLeader():
            raise NotLeader(f"{self._me.name} does not lead")
        self._log.put(payload)

    async def read_index(self, *, timeout_ms: int) -> int:
        """The library has no linearizable read: whoever knows a leader answers."""
        if self._log._getLeader() is None:
            raise NoLeader("no leader is known")
        return self._delivered_index

    async def transfer_leadership(self, target: str | None, *, timeout_ms: int) -> bool:
        return False

    async def change_membership(self, change: Change, *, timeout_ms: int) -> GroupStatus:
        raise ChangeRefused("not here")

    def group(self) -> GroupStatus:
        return GroupStatus(0, True, first_configuration(self._config.topology))

    def needs_snapshot(self, offer: SnapshotOffer) -> bool:
        return False

    def set_stored_index(self, index: int) -> None:
        self._stored_index = index

    def send(self, member: str, kind: str, body: bytes) -> bool:
        if self._forwards:
            self._log.tell(member, self._me.name, kind, body)
        return self._forwards

    def status(self) -> EngineStatus:
        log = self._log
        role, leader, has_quorum = self._role()
        last_index, applied_index = int(log._SyncObj__raftLog[-1][1]), int(log.raftLastApplied)
        return EngineStatus(
            member=self._me.name,
            role=role,
            leader=leader,
            term=int(log.raftCurrentTerm),
            has_quorum=has_quorum,
            first_index=1,
            last_index=last_index,
            durable_index=0,
            commit_index=int(log.raftCommitIndex),
            applied_index=applied_index,
            stored_index=self._stored_index,
            peers=[PeerStatus(other.name, True, 0, 0, 0) for other in self._others.values()],
        )

    def _role(self) -> tuple[Role, str | None, bool]:
        log = self._log
        if log is None:
            return Role.follower, None, False
        leader = log._getLeader()
        name = None
        if log._isLeader():
            name = self._me.name
        elif leader is not None and (self._forwards or self._me.role is MemberRole.witness):
            name = self._others[str(leader.id)].name
        # Where nothing is forwarded, a replica that follows says that it knows no leader, and clients ask the other.
        connected = 1 + len(log._SyncObj__connectedNodes)
        has_quorum = leader is not None and connected * 2 > len(self._others) + 1
        return ROLES[log._SyncObj__raftState], name, has_quorum

    async def _look(self) -> None:
        """Tell of changes of the role. The library tells on its own thread, and not of all."""
        while True:
            await asyncio.sleep(LOOK_S)
            found = self._role()
            if found != self._seen:
                self._seen = found
                self.on_role()


def _address(member: Member) -> str:
    return f"{member.peer_host}:{member.peer_port}"


def show_log(path: Path) -> None:
    journal = FileJournal(str(path))
    out = sys.stdout.buffer
    out.write(msgspec.json.encode({"commit_index": journal.getRaftCommitIndex()}) + b"\n")
    for at in range(len(journal)):
        command, index, term = journal[at]
        payload = b""
        if command[:1] == REGULAR:
            _, arguments = pickle.loads(command[1:])[:2]  # our own file
            if len(arguments) == 1:
                payload = arguments[0]
        entry = {"index": index, "term": term, "payload": base64.b64encode(payload).decode()}
        out.write(msgspec.json.encode(entry) + b"\n")


def main(arguments: list[str]) -> int:
    if arguments[0] == "--log":
        show_log(Path(arguments[1]))
        return 0
    *flags, path = arguments
    config = read_config(Path(path))
    configure_logging(config.log_level, member=config.name)

    def make_engine(config: NodeConfig) -> Engine:
        return StockEngine(config, forwards=FORWARD in flags)

    vars(app)["make_engine"] = make_engine
    print("the library as published: this member keeps no promise", file=sys.stderr)
    return uvloop.run(app.serve(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
