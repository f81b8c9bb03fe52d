"""Links without an engine: each end writes down what its receiver is told."""

from pathlib import Path
from types import TracebackType

from cluster.certificates import TlsFiles, client_context, make_all, server_context, tls_files
from cluster.consensus.messages import Application, Message
from cluster.consensus.settings import Limits
from cluster.consensus.transport import Links
from cluster.topology import LAN, Timing
from tests.cluster.engines import free_port

CLUSTER_ID = "c"


class End:
    """A receiver. news: ("up" | "down", member) or ("got", member, body), in order."""

    def __init__(self) -> None:
        self.news: list[tuple[str, str] | tuple[str, str, bytes]] = []
        self.errors: list[BaseException] = []
        self.farewell: Message | None = None
        self.links: Links

    def link_up(self, member: str) -> None:
        self.news.append(("up", member))

    def link_down(self, member: str) -> None:
        self.news.append(("down", member))

    def received(self, member: str, message: Message) -> None:
        assert isinstance(message, Application)
        self.news.append(("got", member, message.body))

    def links_failed(self, error: BaseException) -> None:
        self.errors.append(error)

    def stranger(self, member: str) -> Message | None:
        assert member
        return self.farewell

    def linked(self, *members: str) -> bool:
        return {name for name, peer in self.links.peers.items() if peer.connection is not None} == set(members)


class Ends:
    """`async with Ends(tmp_path, "a", "b")`: each end knows the peers that `start` is given, and no others."""

    def __init__(self, folder: Path, *names: str, timing: Timing = LAN, limits: Limits | None = None) -> None:
        self.certs = folder / "certs"
        self.timing = timing
        self.limits = limits or Limits()
        base = free_port(len(names))
        self.addresses = {name: ("127.0.0.1", base + i) for i, name in enumerate(names)}
        self.ends: dict[str, End] = {}
        make_all(self.certs, CLUSTER_ID, list(names))

    async def __aenter__(self) -> "Ends":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self.ends.values():
            await end.links.stop()
        assert kind is not None or [end.errors for end in self.ends.values() if end.errors] == []

    def of(self, *names: str) -> dict[str, tuple[str, int]]:
        return {name: self.addresses[name] for name in names}

    def make(self, name: str, *peers: str, tls: TlsFiles | None = None) -> End:
        end = self.ends[name] = End()
        files = tls or tls_files(self.certs, name)
        end.links = Links(
            member=name,
            cluster_id=CLUSTER_ID,
            listen=self.addresses[name],
            dial=self.of(*peers),
            server_tls=server_context(files),
            client_tls=client_context(files),
            timing=self.timing,
            limits=self.limits,
            delay_ms={},
            receiver=end,
        )
        return end

    async def start(self, name: str, *peers: str, tls: TlsFiles | None = None) -> End:
        end = self.make(name, *peers, tls=tls)
        await end.links.start()
        return end
