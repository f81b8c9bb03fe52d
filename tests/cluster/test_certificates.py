"""Certificates are changed under running members: nobody is cut off, nothing old lives on, nothing bad is taken."""

import asyncio
import contextlib
import datetime
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster import rotation
from cluster.certificates import (
    TlsFiles,
    check_identity,
    make_all,
    make_certificate,
    read_certificates,
    tls_files,
)
from cluster.consensus.engine import NoQuorum
from cluster.consensus.messages import Application
from cluster.rotation import Seen, Step
from tests.cluster.engines import Cluster, run, until
from tests.cluster.link_ends import End, Ends

NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.consensus.transport.LOOK_SECONDS", 0.1)


def serial(certs: Path, name: str) -> int:
    return read_certificates(certs / f"{name}.crt")[0].serial_number


def shown(end: End) -> dict[str, int]:
    """Serial numbers of what each peer showed when its present link was made."""
    found = {}
    for name, peer in end.links.peers.items():
        if peer.connection is not None and peer.connection._transport is not None:
            found[name] = int(peer.connection._transport.get_extra_info("peercert")["serialNumber"], 16)
    return found


def all_current(ends: Ends) -> bool:
    return all(
        shown(end) == {other: serial(ends.certs, other) for other in NAMES if other != name}
        for name, end in ends.ends.items()
    )


class Traffic:
    """Everybody talks to everybody; gaps: the longest time that each pair was without a link, in seconds."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.gaps: dict[tuple[str, str], float] = {}
        self.sent = 0

    async def talk(self) -> None:
        loop = asyncio.get_running_loop()
        since: dict[tuple[str, str], float] = {}
        while True:
            for name, end in self.ends.ends.items():
                for other in end.links.peers:
                    pair = (name, other)
                    if end.links.send(other, Application("k", b"x" * 1000)):
                        self.sent += 1
                        since[pair] = loop.time()
                    else:
                        gap = loop.time() - since.setdefault(pair, loop.time())
                        self.gaps[pair] = max(gap, self.gaps.get(pair, 0.0))
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def under_traffic(folder: Path) -> AsyncIterator[tuple[Ends, Traffic]]:
    async with Ends(folder, *NAMES) as ends:
        for name in NAMES:
            await ends.start(name, *NAMES)
        await until(lambda: all(end.linked(*[n for n in NAMES if n != name]) for name, end in ends.ends.items()))
        traffic = Traffic(ends)
        talking = asyncio.create_task(traffic.talk())
        try:
            yield ends, traffic
        finally:
            talking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await talking


def test_members_take_new_certificates_while_they_talk(tmp_path: Path) -> None:
    async def main() -> None:
        async with under_traffic(tmp_path) as (ends, traffic):
            assert all_current(ends)
            for name in NAMES:
                make_certificate(ends.certs, name)
            assert not all_current(ends)
            await until(lambda: all_current(ends), within=10)
            # Each end had its certificate exchanged once, and each link once by either end; both at once cost one more.
            assert [end.links.counters["certificates_taken"] for end in ends.ends.values()] == [1, 1, 1]
            assert sum(end.links.counters["link_renewals"] for end in ends.ends.values()) <= 9
            assert max(traffic.gaps.values(), default=0) < ends.timing.redial_ms_max / 1000, traffic.gaps
            assert traffic.sent > 100

    run(main())


def test_an_authority_is_changed_step_by_step_while_members_talk(tmp_path: Path) -> None:
    async def main() -> None:
        async with under_traffic(tmp_path) as (ends, traffic):
            shutil.copytree(ends.certs, tmp_path / "stolen")

            async def seen(name: str) -> Seen:
                return await asyncio.to_thread(rotation.look, ends.certs, name, ends.addresses[name])

            async def all_use_them() -> None:
                for _ in range(100):
                    if [await seen(name) for name in NAMES] == [Seen(answered=True, current=True, trusts=True)] * 3:
                        return
                    await asyncio.sleep(0.05)
                pytest.fail("the certificates are not in use")

            assert rotation.next_step(ends.certs) is Step.trust
            rotation.trust(ends.certs, "c")
            assert (await seen("a")).trusts is False
            await all_use_them()

            assert rotation.next_step(ends.certs) is Step.sign
            rotation.sign(ends.certs, NAMES, days=30)
            assert (await seen("a")).current is False
            await all_use_them()
            await until(lambda: all_current(ends), within=10)

            assert rotation.next_step(ends.certs) is Step.drop
            a = ends.ends["a"]
            taken = a.links.counters["certificates_taken"]
            rotation.drop(ends.certs, NAMES)
            await until(lambda: a.links.counters["certificates_taken"] > taken)
            assert rotation.next_step(ends.certs) is Step.trust
            assert max(traffic.gaps.values(), default=0) < ends.timing.redial_ms_max / 1000

            # What was by the old authority is worth nothing now.
            refused = a.links.counters["refused_certificate"]
            await ends.ends.pop("b").links.stop()
            await until(lambda: a.linked("c"))
            stolen = TlsFiles(ends.certs / "ca.crt", tmp_path / "stolen" / "b.crt", tmp_path / "stolen" / "b.key")
            thief = await ends.start("b", "a", tls=stolen)
            await until(lambda: a.links.counters["refused_certificate"] > refused)
            await asyncio.sleep(0.2)
            assert thief.news == []
            assert a.linked("c")

    run(main())


def wrong_key(certs: Path) -> str:
    make_certificate(certs, "x")
    shutil.copy(certs / "x.key", certs / "b.key")
    return "is not the key of"


def another_member(certs: Path) -> str:
    make_certificate(certs, "x")
    for kind in ("key", "crt"):
        shutil.copy(certs / f"x.{kind}", certs / f"b.{kind}")
    return "names ['x'], the member is 'b'"


def another_authority(certs: Path) -> str:
    make_all(certs / "other", "c", ["b"])
    for kind in ("key", "crt"):
        shutil.copy(certs / "other" / f"b.{kind}", certs / f"b.{kind}")
    return "was issued by"


def expired(certs: Path) -> str:
    make_certificate(certs, "b", days=0)
    return "is good until"


def garbage(certs: Path) -> str:
    (certs / "b.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    return "not used"


def no_file(certs: Path) -> str:
    (certs / "b.crt").unlink()
    return "No such file"


@pytest.mark.parametrize("spoil", [wrong_key, another_member, another_authority, expired, garbage, no_file])
def test_bad_files_are_named_and_not_taken(
    spoil: Callable[[Path], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a", "b") as ends:
            a, b = await ends.start("a", "b"), await ends.start("b", "a")
            await until(lambda: a.linked("b") and b.linked("a"))
            good = shown(a)["b"]
            said = spoil(ends.certs)
            await until(lambda: b.links.counters["certificates_refused"] == 1)
            assert any(said in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
            # A new link is made with the old ones.
            link = b.links.peers["a"].connection
            assert link is not None
            link.abort()
            await until(lambda: b.news.count(("up", "a")) == 2 and a.linked("b"))
            assert shown(a)["b"] == good
            await asyncio.sleep(0.4)
            assert b.links.counters["certificates_refused"] == 1
            make_certificate(ends.certs, "b")
            await until(lambda: shown(a).get("b") == serial(ends.certs, "b"))

    run(main())


def test_a_certificate_that_ends_soon_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Ends(tmp_path, "a") as ends:
            make_certificate(ends.certs, "a", days=31)
            end = await ends.start("a")
            await asyncio.sleep(0.3)
            assert "is good until" not in caplog.text
            make_certificate(ends.certs, "a", days=29)
            await until(lambda: end.links.counters["certificates_taken"] == 1)
            day = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=29, hours=-1)
            await until(lambda: f"the member's certificate is good until {day:%Y-%m-%d}" in caplog.text)

    run(main())


def test_a_cluster_commits_on_while_all_its_certificates_are_changed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            term = leader.status().term
            certs = tmp_path / "certs"
            committed = 0
            for change in (
                lambda: rotation.trust(certs, cluster.topology.cluster_id),
                lambda: rotation.sign(certs, cluster.names, days=30),
                lambda: rotation.drop(certs, cluster.names),
            ):
                change()
                deadline = asyncio.get_running_loop().time() + 2.0
                while asyncio.get_running_loop().time() < deadline:
                    # Each member makes its own links anew one at a time; two members may do so at the same moment.
                    with contextlib.suppress(NoQuorum):
                        await cluster.propose(b"x", engine=leader)
                        committed += 1
                    await asyncio.sleep(0.002)
            assert leader.status().term == term
            assert committed > 100
            for name in cluster.names:
                assert cluster.engines[name].counters["certificates_taken"] == 3
                check_identity(tls_files(certs, name), name)
            assert sum(engine.counters["link_renewals"] for engine in cluster.engines.values()) >= 9

    run(main())


def test_a_step_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    make_all(tmp_path, "c", NAMES)
    old = (tmp_path / "ca.crt").read_bytes()
    rotation.trust(tmp_path, "c")
    both = (tmp_path / "ca.crt").read_bytes()
    # Cut before ca.crt was written.
    (tmp_path / "ca.crt").write_bytes(old)
    assert rotation.next_step(tmp_path) is Step.trust
    rotation.trust(tmp_path, "c")
    assert (tmp_path / "ca.crt").read_bytes() not in (old, both)
    assert len(read_certificates(tmp_path / "ca.crt")) == 2
    # Cut after the first member's certificate.
    make_certificate(tmp_path, "a", authority_key=rotation.NEXT_KEY)
    assert rotation.next_step(tmp_path) is Step.sign
    rotation.sign(tmp_path, NAMES, days=30)
    make_certificate(tmp_path, "b")
    for name in NAMES:
        check_identity(tls_files(tmp_path, name), name)
    rotation.drop(tmp_path, NAMES)
    for name in NAMES:
        check_identity(tls_files(tmp_path, name), name)


def test_the_old_authority_is_not_dropped_while_it_is_needed(tmp_path: Path) -> None:
    make_all(tmp_path, "c", NAMES)
    rotation.trust(tmp_path, "c")
    rotation.sign(tmp_path, ["a", "b"], days=30)
    with pytest.raises(ValueError, match="certificates of c are by the old authority"):
        rotation.drop(tmp_path, NAMES)
    check_identity(tls_files(tmp_path, "c"), "c")
