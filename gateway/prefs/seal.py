"""Contact addresses and webhook secrets at rest: AES-256-GCM under one of several numbered keys."""

import os
import secrets
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
NUMBER_BYTES = 4
OVERHEAD_BYTES = NUMBER_BYTES + NONCE_BYTES + 16
KEYS_MAX = 16
WAITS = "waits"


class KeyFileRefused(Exception):
    """The key file is missing, readable by others, or not as it should be. The message says which."""


class NotOpened(Exception):
    """Sealed under a key that is not in the file, moved from another user or field, or damaged."""


class Keyring:
    """Seals with the newest key, opens with any. The same file on all gateways: what one site seals, the other sends.

    keys: by number. A number is never used again for another key; it leads the sealed bytes in plain, so that of one
    value sealed twice the one under the newer key is the greater. waiting: keys that open and do not seal yet, because
    another gateway may not have them.
    """

    def __init__(self, keys: dict[int, bytes], *, waiting: Collection[int] = ()) -> None:
        self.take_over(keys, waiting)

    def take_over(self, keys: dict[int, bytes], waiting: Collection[int] = ()) -> None:
        """Have these keys from now on. Raises KeyFileRefused: none of them seals; then nothing is changed."""
        sealing = set(keys) - set(waiting)
        if not sealing:
            raise KeyFileRefused("no key")
        self._newest = max(sealing)
        self._keys = {number: AESGCM(key) for number, key in keys.items()}

    @property
    def newest(self) -> int:
        """That seals."""
        return self._newest

    @property
    def numbers(self) -> list[int]:
        """Of all keys that open."""
        return sorted(self._keys)

    def seal(self, plain: bytes, about: str) -> bytes:
        """about: whose, and what; the same words are needed to open it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        number = self._newest.to_bytes(NUMBER_BYTES, "big")
        return number + nonce + self._keys[self._newest].encrypt(nonce, plain, number + about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """Raises NotOpened."""
        number, nonce = sealed[:NUMBER_BYTES], sealed[NUMBER_BYTES : NUMBER_BYTES + NONCE_BYTES]
        key = self._keys.get(self.number_of(sealed))
        if key is None or len(sealed) < OVERHEAD_BYTES:
            raise NotOpened(f"{about}: sealed under key {number.hex()}, which is not in the key file")
        try:
            return key.decrypt(nonce, sealed[NUMBER_BYTES + NONCE_BYTES :], number + about.encode())
        except InvalidTag as error:
            raise NotOpened(f"{about}: damaged, or not the value of this user and field") from error

    @staticmethod
    def number_of(sealed: bytes) -> int:
        """Of the key that a value is sealed under."""
        return int.from_bytes(sealed[:NUMBER_BYTES], "big")

    def is_old(self, sealed: bytes) -> bool:
        """Sealed under another key than the newest; to be sealed anew before that key is taken out of the file."""
        return self.number_of(sealed) != self._newest


def make_key_file(path: Path) -> None:
    """A new file with one key, mode 0600. Raises FileExistsError rather than lose the keys of what is sealed."""
    _write(path, {1: secrets.token_bytes(KEY_BYTES)}, os.O_EXCL)


def add_key(path: Path) -> int:
    """A new key under the next number, durable on return; the older ones stay. Raises KeyFileRefused.

    It waits: it opens and does not seal before `use_newest`, since a gateway without it could not read what it seals.
    Where a key waits already, that is the one; nothing is changed.
    """
    keys, waiting = read_keys(path)
    if waiting:
        return max(waiting)
    if len(keys) >= KEYS_MAX:
        raise KeyFileRefused(f"{path}: {len(keys)} keys; seal anew and drop the oldest first")
    number = max(keys) + 1
    _replace(path, {**keys, number: secrets.token_bytes(KEY_BYTES)}, {number})
    return number


def use_newest(path: Path) -> int:
    """Let the newest key seal, durable on return, and return its number. Raises KeyFileRefused."""
    keys, waiting = read_keys(path)
    if waiting:
        _replace(path, keys, set())
    return max(keys)


def drop_older(path: Path) -> list[int]:
    """Keep the key that seals and those that wait; returns the numbers that went. Raises KeyFileRefused.

    What is sealed under a key that went can't be read any more.
    """
    keys, waiting = read_keys(path)
    newest = max(set(keys) - waiting)
    gone = sorted(number for number in keys if number < newest)
    if gone:
        _replace(path, {number: key for number, key in keys.items() if number >= newest}, waiting)
    return gone


def _replace(path: Path, keys: dict[int, bytes], waiting: set[int]) -> None:
    aside = path.with_name(path.name + ".new")
    _write(aside, keys, os.O_TRUNC, waiting)
    aside.replace(path)


def read_keyring(path: Path) -> Keyring:
    """Raises KeyFileRefused."""
    keys, waiting = read_keys(path)
    return Keyring(keys, waiting=waiting)


def read_keys(path: Path) -> tuple[dict[int, bytes], set[int]]:
    """(keys, the numbers of those that wait). A line is `<number> <key in hexadecimal>`, and `waits` if it does.

    Raises KeyFileRefused.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileRefused(f"{path}: {error}") from error
    if mode & 0o077:
        raise KeyFileRefused(f"{path} has mode {mode & 0o777:o}: others must not read it; chmod 600")
    keys: dict[int, bytes] = {}
    waiting: set[int] = set()
    for line in lines:
        try:
            number, key = int(line.split()[0]), bytes.fromhex(line.split()[1])
        except (ValueError, IndexError) as error:
            raise KeyFileRefused(f"{path}: a line that is not `<number> <key in hexadecimal>`") from error
        if len(key) != KEY_BYTES or not 0 < number < 2 ** (8 * NUMBER_BYTES) or number in keys:
            raise KeyFileRefused(f"{path}: key {number} has {len(key)} bytes of {KEY_BYTES}, or stands twice")
        keys[number] = key
        if line.split()[2:] == [WAITS]:
            waiting.add(number)
    if not set(keys) - waiting:
        raise KeyFileRefused(f"{path}: no key in it")
    return keys, waiting


def _write(path: Path, keys: dict[int, bytes], flag: int, waiting: Collection[int] = ()) -> None:
    # Created with its mode: a key must not be readable by others even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(
            f"{number} {key.hex()}{f' {WAITS}' if number in waiting else ''}\n" for number, key in sorted(keys.items())
        )
        file.flush()
        os.fsync(descriptor)
