"""What comes in over a link and is not from a member is refused and counted, and changes nothing."""

import asyncio
import contextlib
import random
import re
import shutil
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from cluster.certificates import make_all, make_certificate, tls_files
from cluster.consensus import refusals
from cluster.consensus.messages import (
    PROTOCOL_VERSION,
    Append,
    AppendReply,
    Application,
    Hello,
    Malformed,
    Message,
    Ping,
    RequestVote,
    decode,
    encode,
)
from cluster.consensus.peers import CLOCK_SAMPLES, ClockSamples
from cluster.consensus.settings import EXIT_BROKEN_INVARIANT, FRAME_BYTES_MAX, EngineSettings
from tests.cluster.engines import Cluster, free_port, run, until
from tests.cluster.link_ends import Ends


def frame(message: Message) -> bytes:
    content = encode(message)
    return struct.pack(">I", len(content)) + content


class Impostor:
    """Someone who dials a1 with whatever certificate and bytes it has."""

    def __init__(self, cluster: Cluster, folder: Path, name: str | None) -> None:
        self.address = (cluster.member("a1").peer_host, cluster.member("a1").peer_port)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        if name is not None:
            files = tls_files(folder, name)
            self.context.load_cert_chain(files.certificate, files.key)

    async def say(self, *content: bytes) -> bytes:
        """Everything that came back until the other side closed."""
        reader, writer = await asyncio.open_connection(*self.address, ssl=self.context)
        try:
            for part in content:
                writer.write(part)
            async with asyncio.timeout(3):
                return await reader.read()
        except (ssl.SSLError, ConnectionError):
            return b""
        finally:
            writer.transport.abort()


USURPER = frame(Append(99, 1, 1, 0, 1, 0, [(99, b"\0forged")]))

Attack = Callable[[Cluster, Path], Awaitable[object]]


async def no_certificate(cluster: Cluster, folder: Path) -> None:
    await Impostor(cluster, folder, None).say(USURPER)


async def another_authority(cluster: Cluster, folder: Path) -> None:
    make_all(folder / "other", "other", ["b1"])
    await Impostor(cluster, folder / "other", "b1").say(USURPER)


async def not_a_member(cluster: Cluster, folder: Path) -> None:
    make_certificate(folder / "certs", "mallory")
    hello = frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "mallory", 1))
    await Impostor(cluster, folder / "certs", "mallory").say(hello, USURPER)


async def another_cluster(cluster: Cluster, folder: Path) -> None:
    hello = frame(Hello(PROTOCOL_VERSION, "another", "b1", 1))
    await Impostor(cluster, folder / "certs", "b1").say(hello, USURPER)


async def another_epoch(cluster: Cluster, folder: Path) -> None:
    hello = frame(Hello(PROTOCOL_VERSION, msgspec.structs.replace(cluster.topology, epoch=2).history, "b1", 1))
    await Impostor(cluster, folder / "certs", "b1").say(hello, USURPER)


async def another_version(cluster: Cluster, folder: Path) -> None:
    hello = frame(Hello(PROTOCOL_VERSION + 1, cluster.topology.cluster_id, "b1", 1))
    await Impostor(cluster, folder / "certs", "b1").say(hello, USURPER)


async def a_gateway(cluster: Cluster, folder: Path) -> None:
    make_certificate(folder / "certs", "gateway-dc-a")
    hello = frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "gateway-dc-a", 1))
    await Impostor(cluster, folder / "certs", "gateway-dc-a").say(hello, USURPER)


async def its_own_name(cluster: Cluster, folder: Path) -> None:
    hello = frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "a1", 1))
    await Impostor(cluster, folder / "certs", "a1").say(hello, USURPER)


async def another_name(cluster: Cluster, folder: Path) -> None:
    hello = frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "t1", 1))
    await Impostor(cluster, folder / "certs", "b1").say(hello, USURPER)


async def no_hello(cluster: Cluster, folder: Path) -> None:
    await Impostor(cluster, folder / "certs", "b1").say(USURPER)


async def garbage(cluster: Cluster, folder: Path) -> None:
    await Impostor(cluster, folder / "certs", "b1").say(struct.pack(">I", 10) + b"0123456789")


async def a_pickle(cluster: Cluster, folder: Path) -> None:
    bomb = b"cos\nsystem\n(S'exit 1'\ntR."
    await Impostor(cluster, folder / "certs", "b1").say(struct.pack(">I", len(bomb)) + bomb)


async def a_huge_frame(cluster: Cluster, folder: Path) -> None:
    await Impostor(cluster, folder / "certs", "b1").say(struct.pack(">I", FRAME_BYTES_MAX + 1))


async def no_tls(cluster: Cluster, folder: Path) -> None:
    reader, writer = await asyncio.open_connection(*Impostor(cluster, folder, None).address)
    writer.write(USURPER)
    async with asyncio.timeout(5):
        assert await reader.read() is not None
    writer.close()


async def an_expired_certificate(cluster: Cluster, folder: Path) -> None:
    shutil.copytree(folder / "certs", folder / "over")
    make_certificate(folder / "over", "b1", days=0)
    hello = frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "b1", 1))
    await Impostor(cluster, folder / "over", "b1").say(hello, USURPER)


async def an_older_tls(cluster: Cluster, folder: Path) -> None:
    impostor = Impostor(cluster, folder / "certs", "b1")
    impostor.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await impostor.say(USURPER)


async def random_bytes(cluster: Cluster, folder: Path) -> None:
    reader, writer = await asyncio.open_connection(*Impostor(cluster, folder, None).address)
    writer.write(random.Random(1).randbytes(100_000))
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


ATTACKS = [
    (no_certificate, "refused_certificate"),
    (another_authority, "refused_certificate"),
    (an_expired_certificate, "refused_certificate"),
    (no_tls, "refused_handshake"),
    (random_bytes, "refused_handshake"),
    (an_older_tls, "refused_handshake"),
    (not_a_member, "refused_stranger"),
    (a_gateway, "refused_name"),
    (its_own_name, "refused_name"),
    (another_name, "refused_name"),
    (another_cluster, "refused_cluster"),
    (another_epoch, "refused_cluster"),
    (another_version, "refused_protocol"),
    (no_hello, "refused_garbage"),
    (garbage, "refused_garbage"),
    (a_pickle, "refused_garbage"),
    (a_huge_frame, "refused_length"),
]


def test_strangers_and_garbage_are_refused_counted_and_change_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.propose(b"x")
            target = cluster.engines["a1"]
            before = target.status()
            for attack, counter in ATTACKS:
                count = target.counters[counter]
                await attack(cluster, tmp_path)
                await until(lambda c=counter, n=count: target.counters[c] > n)  # type: ignore[misc]
            after = target.status()
            assert (after.term, after.leader, after.last_index) == (before.term, before.leader, before.last_index)
            assert all(peer.connected for peer in after.peers)
            await cluster.propose(b"y")
        assert cluster.left == []

    run(main())


def test_a_recorded_connection_is_worth_nothing(tmp_path: Path) -> None:
    """All bytes that a member sent, from its first to its last, sent again to the same address."""

    async def main() -> None:
        async with Ends(tmp_path, "a", "b") as ends:
            a = await ends.start("a", "b")
            tape: list[bytes] = []

            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, onto: list[bytes]) -> None:
                with contextlib.suppress(ConnectionError):
                    while data := await reader.read(1 << 16):
                        onto.append(data)
                        writer.write(data)
                writer.close()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                far_reader, far_writer = await asyncio.open_connection(*ends.addresses["a"])
                await asyncio.gather(pump(reader, far_writer, tape), pump(far_reader, writer, []))

            port = free_port()
            proxy = await asyncio.start_server(serve, "127.0.0.1", port)
            b = ends.make("b")
            b.links.set_peers({"a": ("127.0.0.1", port)})
            await b.links.start()
            await until(lambda: a.linked("b") and b.linked("a"))
            assert b.links.send("a", Application("k", b"pay alice"))
            await until(lambda: ("got", "b", b"pay alice") in a.news)
            await ends.ends.pop("b").links.stop()
            proxy.close()
            await until(lambda: a.news[-1] == ("down", "b"))
            news = list(a.news)
            assert len(b"".join(tape)) > 1000
            for number in (1, 2):
                reader, writer = await asyncio.open_connection(*ends.addresses["a"])
                writer.write(b"".join(tape))
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()
                await until(lambda n=number: a.links.counters["refused_handshake"] == n)  # type: ignore[misc]
            assert a.news == news

    run(main())


def test_each_word_that_is_counted_is_explained() -> None:
    folder = Path(refusals.__file__).parent
    text = "".join((folder / name).read_text("utf-8") for name in LINK_FILES)
    counted = set(re.findall(r'refuse\("(\w+)"|counters\["(\w+)"\]', text))
    words = {word for pair in counted for word in pair if word}
    assert words - set(refusals.REFUSALS) == NO_REFUSALS
    assert set(refusals.REFUSALS) - words == {"refused_certificate", "refused_handshake"}


def test_a_silent_stranger_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            impostor = Impostor(cluster, tmp_path / "certs", "b1")
            loop = asyncio.get_running_loop()
            start = loop.time()
            # TLS is fine, but no hello follows.
            await impostor.say()
            assert 0.5 < loop.time() - start < 2.5
            assert cluster.engines["a1"].counters["silent"] == 1

    run(main())


def test_only_the_newest_connection_of_a_peer_delivers(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.leader()
            await cluster.stop("b1")
            target = cluster.engines["a1"]
            impostor = Impostor(cluster, tmp_path / "certs", "b1")
            hello = frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "b1", 1))
            _, old_writer = await asyncio.open_connection(*impostor.address, ssl=impostor.context)
            old_writer.write(hello)
            await until(lambda: "b1" in target._raft.connected)
            old_writer.write(frame(Application("old", b"1")))
            await until(lambda: ("a1", "b1", "old", b"1") in cluster.messages)
            _, new_writer = await asyncio.open_connection(*impostor.address, ssl=impostor.context)
            new_writer.write(hello)
            await until(lambda: target.counters["superseded"] == 1)
            old_writer.write(frame(Application("old", b"2")))
            new_writer.write(frame(Application("new", b"3")))
            await until(lambda: ("a1", "b1", "new", b"3") in cluster.messages)
            assert ("a1", "b1", "old", b"2") not in cluster.messages
            for writer in (old_writer, new_writer):
                writer.transport.abort()
            await until(lambda: "b1" not in target._raft.connected)

    run(main())


def test_a_frame_may_come_byte_by_byte_and_many_may_come_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.stop("b1")
            impostor = Impostor(cluster, tmp_path / "certs", "b1")
            _, writer = await asyncio.open_connection(*impostor.address, ssl=impostor.context)
            for byte in frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "b1", 1)):
                writer.write(bytes([byte]))
                await writer.drain()
            writer.write(b"".join(frame(Application("n", b"%d" % i)) for i in range(100)))
            await until(lambda: len(cluster.messages) == 100)
            assert [body for *_, body in cluster.messages] == [b"%d" % i for i in range(100)]
            writer.transport.abort()

    run(main())


def test_a_crowd_of_strangers_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path)
        cluster.with_limits(strangers_max=5)
        async with cluster:
            await cluster.leader()
            address = (cluster.member("a1").peer_host, cluster.member("a1").peer_port)
            crowd = [socket.create_connection(address) for _ in range(8)]
            await until(lambda: cluster.engines["a1"].counters["refused_crowd"] >= 3)
            for one in crowd:
                one.close()
            await cluster.propose(b"x")

    run(main())


def test_a_peer_that_does_not_read_is_reported_as_disconnected(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path)
        cluster.with_limits(write_buffer_bytes_max=1 << 20, application_buffer_bytes_max=1 << 18)
        async with cluster:
            await cluster.leader()
            await cluster.stop("b1")
            target = cluster.engines["a1"]
            impostor = Impostor(cluster, tmp_path / "certs", "b1")
            _, writer = await asyncio.open_connection(*impostor.address, ssl=impostor.context)
            writer.write(frame(Hello(PROTOCOL_VERSION, cluster.topology.cluster_id, "b1", 1)))
            await until(lambda: "b1" in target._raft.connected)
            writer.transport.pause_reading()
            sent = 0
            while target.send("b1", "flood", b"x" * 100_000):
                sent += 1
                assert sent < 1000
            # Application messages give way first; consensus may use the rest, then the link is given up.
            assert "b1" in target._raft.connected
            while target._links.send("b1", Application("flood", b"x" * 100_000)):
                sent += 1
                assert sent < 1000
            await until(lambda: "b1" not in target._raft.connected)
            assert target.counters["overfull"] == 1
            writer.transport.abort()

    run(main())


def test_a_task_that_ends_with_an_error_stops_the_member(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.leader()

            async def fails() -> None:
                raise ValueError("a bug")

            cluster.engines["a1"]._links._spawn(fails())
            await until(lambda: bool(cluster.left))
            assert [(name, code) for name, code, _ in cluster.left] == [("a1", EXIT_BROKEN_INVARIANT)]

    run(main())


def test_where_to_dial_is_apart_from_who_answers(tmp_path: Path) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path)

        def crossed(settings: EngineSettings) -> EngineSettings:
            # t1 is told to find a1 where b1 listens: b1's certificate does not name a1.
            if settings.member != "t1":
                return settings
            b1 = cluster.member("b1")
            return msgspec.structs.replace(settings, dial={"a1": (b1.peer_host, b1.peer_port)})

        async with cluster:
            # A new cluster begins when all have met.
            await cluster.leader()
            await cluster.stop("t1")
            cluster.settings_of = crossed
            t1 = await cluster.start("t1")
            await cluster.leader()
            await until(lambda: t1.counters["refused_certificate"] > 0)
            await until(lambda: any(peer.connected for peer in t1.status().peers))
            assert {peer.name: peer.connected for peer in t1.status().peers} == {"a1": False, "b1": True}

    run(main())


LINK_FILES = ("transport.py", "connection.py", "listener.py", "identity.py")
NO_REFUSALS = {
    "application_held_back",
    "certificates_taken",
    "link_renewals",
    "renewals_waiting",
    "strangers_told",
    "superseded",
}


# -- frames ---------------------------------------------------------------------------------------

MALFORMED = [
    b"",
    b"\xc0",
    msgspec.msgpack.encode({"type": "append_entries"}),
    msgspec.msgpack.encode([99, 1]),
    msgspec.msgpack.encode([8, "1"]),
    msgspec.msgpack.encode([8, 1, 2]),
    msgspec.msgpack.encode([8]),
    msgspec.msgpack.encode([1, 1, 1, 1, 1, 1, 1, [["x", b""]]]),
    msgspec.msgpack.encode([2, 1.5, 1, 1, 1, 1]),
    encode(AppendReply(1, 2, 3, 0, 4))[:-1],
    encode(AppendReply(1, 2, 3, 0, 4)) + b"\x00",
]


@pytest.mark.parametrize("content", MALFORMED)
def test_malformed_frames_are_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        decode(content)


@pytest.mark.parametrize(
    "message", [Append(1, 2, 3, 4, 5, 6, [(7, b"\0x")]), RequestVote(1, 2, 3, True), Ping(4), Application("k", b"b")]
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode(encode(message)) == message


def test_the_quickest_round_trip_says_most_about_a_clock() -> None:
    samples = ClockSamples()
    assert samples.offset_ms(wall_us=1_100_000, steady_us=1_100_000) is None
    samples.add(1_000_000, 6_050_000, 1_100_000)  # 100 ms there and back
    assert samples.offset_ms(wall_us=1_100_000, steady_us=1_100_000) == 5000
    samples.add(2_000_000, 7_002_000, 2_002_000)  # 2 ms
    assert samples.offset_ms(wall_us=2_002_000, steady_us=2_002_000) == 5001
    samples.add(3_000_000, 9_000_000, 4_000_000)
    assert samples.offset_ms(wall_us=4_000_000, steady_us=4_000_000) == 5001


@pytest.mark.parametrize("set_ms", [86_400_000, 700, -700])
def test_a_wall_clock_that_is_set_shows_at_once(set_ms: int) -> None:
    """No answer of another is needed: all that was measured before counts with the clock as it is now."""
    samples = ClockSamples()
    wall_us = 1_750_000_000_000_000
    for second in range(CLOCK_SAMPLES):
        sent_us = 5_000_000 + second * 1_000_000
        samples.add(sent_us, wall_us + second * 1_000_000 + 500, sent_us + 1_000)
    now_us = wall_us + CLOCK_SAMPLES * 1_000_000
    steady_us = 5_000_000 + CLOCK_SAMPLES * 1_000_000
    assert samples.offset_ms(wall_us=now_us, steady_us=steady_us) == 0
    assert samples.offset_ms(wall_us=now_us + set_ms * 1_000, steady_us=steady_us) == -set_ms
