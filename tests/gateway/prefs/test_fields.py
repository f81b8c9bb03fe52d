"""Preferences: each refusal beside the neighbour that passes, sealed ones unreadable on disk, and keys that change."""

from pathlib import Path
from typing import Any

import pytest

from gateway.prefs.crdt import EMPTY, Register, with_fields
from gateway.prefs.errors import InvalidPreference
from gateway.prefs.fields import DEFAULTS, HIDDEN, SEALED, Channel, QuietHours, about, checked, read, shown, stored
from gateway.prefs.hlc import Stamp
from gateway.prefs.seal import (
    KEYS_MAX,
    KeyFileRefused,
    Keyring,
    NotOpened,
    add_key,
    drop_older,
    make_key_file,
    read_keyring,
    read_keys,
    use_newest,
)

NOW = Stamp(1, 0, "dc-a.1")
OLD, NEW = b"o" * 32, b"n" * 32

ROWS: list[tuple[str, Any, bool]] = [
    ("language", "de-AT", True),
    ("language", "German", False),
    ("language", 7, False),
    ("time_zone", "Europe/Vienna", True),
    ("time_zone", "Europe/Nowhere", False),
    ("time_zone", "../../etc/passwd", False),
    ("quiet_hours", {"start": "22:00", "end": "07:00", "days": ["fri"]}, True),
    ("quiet_hours", {"start": "22:00", "end": "22:00"}, False),
    ("quiet_hours", {"start": "24:00", "end": "07:00"}, False),
    ("quiet_hours", {"start": "22:00"}, False),
    ("quiet_hours", {"start": "22:00", "end": "07:00", "loud": True}, False),
    ("alert_channels", ["email", "webhook"], True),
    ("alert_channels", [], True),
    ("alert_channels", ["email", "email"], False),
    ("alert_channels", ["pigeon"], False),
    ("fill_notices", "complete", True),
    ("fill_notices", "some", False),
    ("leaderboard_hidden", True, True),
    ("leaderboard_hidden", "yes", False),
    ("leaderboard_name", "Bull", True),
    ("leaderboard_name", " Bull", False),
    ("leaderboard_name", "B\u202eull", False),
    ("email", "ann@example.com", True),
    ("email", "ann@example.com\r\nBcc: all@example.com", False),
    ("email", "ann@localhost", False),
    ("phone", "+436601234567", True),
    ("phone", "0660 1234567", False),
    ("webhook_url", "https://hooks.example.com/x?y=1", True),
    ("webhook_url", "ftp://hooks.example.com/", False),
    ("webhook_url", "https://user:word@hooks.example.com/", False),
    ("webhook_url", "https://hooks.example.com:99999/", False),
    ("webhook_url", "https://hooks.example.com/ x", False),
    ("webhook_url", "https://", False),
    ("webhook_secret", "s" * 16, True),
    ("webhook_secret", "s" * 15, False),
    ("push_token", "t" * 512, True),
    ("push_token", "t" * 513, False),
    ("shoe_size", 42, False),
]


@pytest.mark.parametrize(("name", "value", "passes"), ROWS)
def test_the_edges(name: str, value: object, passes: bool) -> None:
    if passes:
        assert set(checked({name: value})) == {name}
        assert checked({name: None}) == {name: None}
        return
    with pytest.raises(InvalidPreference) as caught:
        checked({name: value})
    assert caught.value.field == name


def test_a_secret_is_not_repeated_in_its_refusal() -> None:
    with pytest.raises(InvalidPreference) as caught:
        checked({"webhook_secret": "hush-hush"})
    assert "hush" not in caught.value.message


def test_what_was_set_is_read_and_the_rest_is_as_by_default() -> None:
    ring = Keyring({1: OLD})
    assert read("ann", EMPTY, ring) == DEFAULTS
    values = checked({"quiet_hours": {"start": "22:00", "end": "07:00"}, "email": "ann@example.com", "language": None})
    found = read("ann", with_fields(EMPTY, stored("ann", values, ring), NOW), ring)
    assert found.quiet_hours == QuietHours("22:00", "07:00")
    assert found.email == "ann@example.com"
    assert found.language == DEFAULTS.language
    assert found.alert_channels == (Channel.websocket,)


def test_contacts_and_secrets_are_unreadable_at_rest() -> None:
    ring = Keyring({1: OLD})
    given = {
        "email": "ann@example.com",
        "phone": "+436601234567",
        "push_token": "token-of-ann",
        "webhook_url": "https://ann.example.com/",
        "webhook_secret": "secret-of-ann-123",
    }
    assert set(given) == SEALED
    at_rest = stored("ann", checked(given), ring)
    for name, value in given.items():
        raw = at_rest[name]
        assert raw is not None
        assert value.encode() not in raw
    seen = shown(read("ann", with_fields(EMPTY, at_rest, NOW), ring))
    assert seen["webhook_secret"] == HIDDEN
    assert seen["email"] == "ann@example.com"


def test_a_sealed_value_is_of_one_user_and_one_field() -> None:
    ring = Keyring({1: OLD})
    at_rest = with_fields(EMPTY, stored("ann", {"email": "ann@example.com"}, ring), NOW)
    assert read("bob", at_rest, ring).email is None
    moved = with_fields(EMPTY, {"phone": at_rest.fields["email"].value}, NOW)
    assert read("ann", moved, ring).phone is None


def test_one_flipped_bit_is_seen() -> None:
    ring = Keyring({1: OLD})
    sealed = ring.seal(b"ann@example.com", about("ann", "email"))
    for place in range(len(sealed)):
        with pytest.raises(NotOpened):
            ring.open(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], about("ann", "email"))


def test_old_keys_open_and_the_newest_seals() -> None:
    before = Keyring({1: OLD}).seal(b"x", "ann/email")
    both = Keyring({1: OLD, 2: NEW})
    assert both.open(before, "ann/email") == b"x"
    assert both.is_old(before)
    after = both.seal(b"x", "ann/email")
    assert not both.is_old(after)
    assert after > before  # so that a merge of the same write takes the one under the newer key
    with pytest.raises(NotOpened, match="not in the key file"):
        Keyring({1: OLD}).open(after, "ann/email")


def test_a_field_of_a_newer_program_is_passed_over() -> None:
    document = with_fields(EMPTY, {"hologram": b"\xc3"}, NOW)
    assert read("ann", document, Keyring({1: OLD})) == DEFAULTS
    damaged = {"language": Register(NOW, b"\xc1"), "email": Register(NOW, b"short")}
    assert read("ann", type(document)(damaged), Keyring({1: OLD})) == DEFAULTS


# -- the key file ----------------------------------------------------------------------------------


def test_a_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    sealed = read_keyring(path).seal(b"x", "ann/email")
    with pytest.raises(FileExistsError):
        make_key_file(path)
    for _ in range(2):  # the second time it waits already
        assert add_key(path) == 2
        assert path.stat().st_mode & 0o777 == 0o600
        ring = read_keyring(path)
        assert (ring.newest, ring.numbers) == (1, [1, 2])
        assert drop_older(path) == []
    under_2 = Keyring({2: read_keys(path)[0][2]}).seal(b"y", "ann/email")
    assert ring.open(under_2, "ann/email") == b"y"  # another gateway may seal with it already
    for _ in range(2):
        assert use_newest(path) == 2
        ring = read_keyring(path)
        assert (ring.newest, ring.number_of(ring.seal(b"x", "ann/email"))) == (2, 2)
    assert ring.open(sealed, "ann/email") == b"x"
    assert [drop_older(path), drop_older(path)] == [[1], []]
    assert read_keyring(path).numbers == [2]
    with pytest.raises(NotOpened):
        read_keyring(path).open(sealed, "ann/email")
    path.chmod(0o640)
    with pytest.raises(KeyFileRefused, match="chmod 600"):
        read_keyring(path)


def test_keys_do_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    make_key_file(path)
    for _ in range(KEYS_MAX - 1):
        add_key(path)
        use_newest(path)
    with pytest.raises(KeyFileRefused, match="16 keys"):
        add_key(path)


@pytest.mark.parametrize(
    "text",
    ["", "1\n", "1 zz\n", "1 00\n", f"0 {'00' * 32}\n", f"1 {'00' * 32}\n" * 2, f"1 {'00' * 32} waits\n", "\xff"],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(KeyFileRefused):
        read_keyring(path)
    with pytest.raises(KeyFileRefused):
        read_keyring(tmp_path / "missing.key")
