"""Two sites over real TLS: cut, healed, restarted, wiped, rolled back, and whom they do not talk to."""

import asyncio
import shutil
import ssl
from functools import partial
from pathlib import Path

import pytest

from cluster import rotation
from cluster.certificates import client_context, make_all, make_certificate, read_certificates, tls_files
from gateway.identity import Identity
from gateway.prefs.alert import Condition, Terms
from gateway.prefs.crdt import EMPTY, with_fields
from gateway.prefs.errors import StoreFull
from gateway.prefs.hlc import CLOCK_AHEAD_MS_MAX, Stamp, wall_ms
from gateway.prefs.link import Sites, certificate_name
from gateway.prefs.merging import Merged, merge_documents
from gateway.prefs.store import Store, Writing
from gateway.prefs.sync import FRAME_BYTES_MAX, Documents
from tests.cluster.engines import until
from tests.gateway.prefs.sites import Pair, Side, speak

ABOVE = Terms("AAPL", Condition.above, price_e9=200)


async def test_a_write_is_at_the_other_site_in_a_moment(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        await pair.a.prefs.change("ann", {"language": "de", "email": "ann@example.com"})
        await until(pair.equal)
        assert pair.b.prefs.preferences("ann").email == "ann@example.com"
        await pair.b.prefs.put_alert("ann", "x", ABOVE)
        await until(pair.equal)
        assert [alert.alert_id for alert in pair.a.prefs.alerts("ann")] == ["x"]
        await pair.a.prefs.remove_alert("ann", "x")
        await until(pair.equal)
        assert pair.b.prefs.alerts("ann") == []
        await until(lambda: pair.a.links.status()["dc-b"]["waiting"] == 0)


async def write_on(side: Side, wrote: dict[str, str], seconds: float) -> None:
    """New users, and users that both sides write, until the time is up."""
    end = asyncio.get_running_loop().time() + seconds
    number = 0
    while asyncio.get_running_loop().time() < end:
        user, name = f"{side.site}-{number}", f"Bull {side.site} {number}"
        await side.prefs.change(user, {"leaderboard_name": name})
        await side.prefs.put_alert("shared", f"{side.site}-{number % 40}", ABOVE)
        await side.prefs.change("shared", {"leaderboard_name": name})
        wrote[user] = name
        number += 1
        await asyncio.sleep(0.01)


async def test_new_certificates_are_taken_while_the_sites_stay_together(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        identities = {}
        for side in (pair.a, pair.b):
            identity = identities[side.site] = Identity(certificate_name(side.site), pair.tls(side.site))
            links = side.links
            identity.on_taken.append(partial(renew, links, identity))
        await pair.linked()
        certs = tmp_path / "certs"
        before = {"renewed": 0}
        serials = {name: serial(certs, name) for name in ("gateway-dc-a", "gateway-dc-b")}

        async def taken() -> None:
            for identity in identities.values():
                assert not await identity.look()  # settles
                assert await identity.look()
                assert not await identity.look()
            await pair.linked()
            # The link that stood was made anew, by whichever side was first.
            assert pair.a.links.counters["renewed"] + pair.b.links.counters["renewed"] >= before["renewed"] + 1
            before["renewed"] += 1

        # A new authority in its three steps, as `cluster rotate-certificates --authority` takes them.
        thief = shutil.copytree(certs, tmp_path / "thief")
        rotation.trust(certs, "c")
        await taken()
        rotation.sign(certs, [certificate_name(site) for site in ("dc-a", "dc-b", "dc-c")], days=1)
        await taken()
        rotation.drop(certs, [certificate_name(site) for site in ("dc-a", "dc-b", "dc-c")])
        await taken()
        await pair.a.prefs.change("ann", {"language": "de"})
        await until(pair.equal)
        assert not set(serials.values()) & {serial(certs, name) for name in serials}
        # What the old authority signed is worth nothing: the port shows a certificate that it did not sign, and the
        # thief's own is refused, whatever he trusts.
        address = ("127.0.0.1", pair.ports["dc-a"])
        seen = await asyncio.to_thread(rotation.look, certs, "gateway-dc-a", address)
        assert (seen.answered, seen.current, seen.trusts) == (True, True, True)
        seen = await asyncio.to_thread(rotation.look, thief, "gateway-dc-a", address)
        assert (seen.answered, seen.current, seen.trusts) == (True, False, False)


async def test_files_that_can_not_be_used_leave_the_old_ones_in_use(tmp_path: Path) -> None:
    make_all(tmp_path, "c", ["gateway-dc-a", "gateway-dc-b"])
    identity = Identity("gateway-dc-a", tls_files(tmp_path, "gateway-dc-a"))
    before = identity.server
    shutil.copy(tmp_path / "gateway-dc-b.crt", tmp_path / "gateway-dc-a.crt")
    assert [await identity.look() for _ in range(3)] == [False] * 3
    assert identity.server is before and identity.counters == {"certificates_refused": 1}
    shutil.copy(tmp_path / "gateway-dc-b.key", tmp_path / "gateway-dc-a.key")
    assert [await identity.look() for _ in range(2)] == [False] * 2  # another's, whole as it is
    make_certificate(tmp_path, "gateway-dc-a")
    assert [await identity.look() for _ in range(2)] == [False, True]
    assert identity.server is not before


async def renew(links: Sites, identity: Identity) -> None:
    await links.use(identity.server, identity.client)


def serial(certs: Path, name: str) -> int:
    return read_certificates(certs / f"{name}.crt")[0].serial_number


async def test_a_cut_with_writes_on_both_sides_loses_nothing_and_heals_within_5_s(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        pair.cut.cut = True
        wrote: dict[str, str] = {}
        await asyncio.gather(write_on(pair.a, wrote, 3.0), write_on(pair.b, wrote, 3.0))
        assert not pair.a.linked
        assert not pair.b.linked
        assert pair.a.store.document("dc-b-0") == EMPTY
        assert not pair.equal()
        pair.cut.cut = False
        assert await until(pair.equal, within=5.0) < 5.0
        for side in (pair.a, pair.b):
            found = {user: side.prefs.preferences(user).leaderboard_name for user in wrote}
            assert found == wrote
            assert len(side.prefs.alerts("shared")) == 80
        assert len(wrote) > 10


async def test_a_site_without_its_disk_is_filled_and_its_old_writes_come_back(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        for number in range(50):
            await pair.a.prefs.put_alert(f"user-{number}", "x", ABOVE)
        await until(pair.equal)
        before = pair.a.store.incarnation
        await pair.a.stop()
        pair.lose(pair.a)
        await pair.a.start()
        await until(lambda: pair.equal() and len(pair.a.store.digests) == 50)
        assert pair.a.store.incarnation != before
        # Its first dot under the new name is not taken for the one that the peer has seen.
        await pair.a.prefs.put_alert("user-7", "y", ABOVE)
        await until(pair.equal)
        assert [alert.alert_id for alert in pair.b.prefs.alerts("user-7")] == ["x", "y"]


async def test_a_disk_that_is_an_old_copy_does_not_reuse_its_dots(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        await pair.a.prefs.put_alert("ann", "x", ABOVE)
        await until(pair.equal)
        await pair.a.stop()
        shutil.copytree(pair.a.folder, tmp_path / "copy")
        await pair.a.start()
        before = pair.a.store.incarnation
        await pair.linked()
        await pair.a.prefs.put_alert("ann", "y", ABOVE)
        await until(pair.equal)
        await pair.a.stop()
        pair.lose(pair.a)
        shutil.copytree(tmp_path / "copy", pair.a.folder)
        await pair.a.start()
        await until(lambda: pair.a.store.incarnation != before)
        await until(pair.equal)
        assert [alert.alert_id for alert in pair.a.prefs.alerts("ann")] == ["x", "y"]


async def test_a_clock_far_ahead_waits_outside_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        ahead = Stamp(wall_ms() + CLOCK_AHEAD_MS_MAX + 600_000, 0, pair.b.store.incarnation)

        def work(writing: Writing) -> None:
            writing.put("ann", with_fields(writing.document("ann"), {"language": b"\xa2fr"}, ahead))

        await pair.a.prefs.change("ann", {"time_zone": "Europe/Vienna"})
        await pair.b.store.write(work)
        await pair.b.prefs.change("ann", {"leaderboard_hidden": True})
        await until(lambda: pair.a.prefs.preferences("ann").leaderboard_hidden)
        assert pair.a.prefs.preferences("ann").language == "en"
        assert pair.a.links.counters["held_back"] >= 1
        assert pair.a.store.clock.ahead_ms() == 0
        seen = pair.a.links.counters["documents_merged"]
        await asyncio.sleep(0.5)
        # It is not sent back and forth meanwhile.
        assert pair.a.links.counters["documents_merged"] - seen < 5


async def test_the_last_write_wins_though_the_clocks_are_seconds_apart(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        pair.b.ahead_ms = 5_000
        await pair.b.prefs.change("ann", {"language": "fr"})
        await until(pair.equal)
        await pair.a.prefs.change("ann", {"language": "de"})
        await until(pair.equal)
        assert pair.b.prefs.preferences("ann").language == "de"


async def test_a_full_disk_is_filled_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.prefs.link.FAILED_MS", 200)
    async with Pair(tmp_path) as pair:
        await pair.linked()
        pair.a.store._free_bytes_min = 1 << 60
        with pytest.raises(StoreFull):
            await pair.a.prefs.change("bob", {"language": "de"})
        await pair.b.prefs.change("ann", {"language": "de"})
        await until(lambda: pair.a.links.counters["refused_by_disk"] > 0)
        pair.a.store._free_bytes_min = 0
        await until(pair.equal)
        assert pair.a.prefs.preferences("ann").language == "de"


async def test_one_document_that_can_not_be_does_not_stop_the_others(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()

        def work(writing: Writing) -> None:
            bad = with_fields(EMPTY, {"f" * 40: b""}, writing.clock.next())
            writing.put("bad", bad)
            writing.put("good", with_fields(EMPTY, {"language": b"\xa2fr"}, writing.clock.next()))

        await pair.b.store.write(work)
        await until(lambda: pair.a.prefs.preferences("good").language == "fr")
        await until(lambda: pair.a.links.counters["refused_documents"] >= 1)
        assert pair.a.linked


async def test_a_mistake_of_ours_ends_a_link_and_not_the_linking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.prefs.link.FAILED_MS", 100)
    async with Pair(tmp_path) as pair:
        await pair.linked()
        failing = [pair.a.store, pair.b.store]

        async def merges(store: Store, site: str, message: Documents) -> Merged:
            if store in failing:
                failing.remove(store)
                raise KeyError("a mistake")
            return await merge_documents(store, site, message)

        monkeypatch.setattr("gateway.prefs.link.merge_documents", merges)
        await pair.a.prefs.change("ann", {"language": "de"})
        await pair.b.prefs.change("bob", {"language": "de"})
        await until(lambda: not failing and pair.equal())
        assert pair.a.links.counters["failed"] == pair.b.links.counters["failed"] == 1


# -- strangers -------------------------------------------------------------------------------------


async def test_only_the_named_site_of_this_cluster_is_heard(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        port, name = pair.ports["dc-a"], certificate_name("dc-a")
        junk = b"\x00\x00\x00\x01\xc1"
        assert await speak(port, None, name, junk) == b""

        without = ssl.create_default_context(cafile=str(pair.tls("dc-a").ca))
        assert await speak(port, without, name, junk) == b""

        # Its own certificate, or one of a site that is no peer: a good signature is not enough.
        for site in ("dc-a", "dc-c"):
            counted = pair.a.links.counters["refused_stranger"]
            assert await speak(port, client_context(pair.tls(site)), name, junk) == b""
            assert pair.a.links.counters["refused_stranger"] == counted + 1

        make_all(tmp_path / "foreign", "c", [certificate_name("dc-b")])
        foreign = client_context(tls_files(tmp_path / "foreign", certificate_name("dc-b")))
        foreign.check_hostname = False
        foreign.verify_mode = ssl.CERT_NONE
        assert await speak(port, foreign, name, junk) == b""
        assert pair.a.linked


@pytest.mark.parametrize(
    "said",
    [
        b"\x00\x00\x00\x01\xc1",
        (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
        b"\x00\x00\x00\x04\x92\x06\x91\xa1",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_garbage_ends_a_link_and_nothing_else(said: bytes, tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        context = client_context(pair.tls("dc-b"))
        refused = pair.a.links.counters["refused_link"]
        await speak(pair.ports["dc-a"], context, certificate_name("dc-a"), said)
        assert pair.a.links.counters["refused_link"] == refused + 1
        await pair.b.prefs.change("ann", {"language": "de"})
        await until(pair.equal)


async def test_another_cluster_is_refused(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        await pair.linked()
        await pair.b.stop()
        pair.lose(pair.b)
        await pair.b.start(cluster_id="other")
        await until(lambda: pair.a.links.counters["refused_link"] > 0)
        assert not pair.a.linked
