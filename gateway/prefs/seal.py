"""Contact addresses and webhook secrets at rest: AES-256-GCM under one of several numbered keys."""

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
NUMBER_BYTES = 4
OVERHEAD_BYTES = NUMBER_BYTES + NONCE_BYTES + 16
KEYS_MAX = 16


class KeyFileRefused(Exception):
    """The key file is missing, readable by others, or not as it should be. The message says which."""


class NotOpened(Exception):
    """Sealed under a key that is not in the file, moved from another user or field, or damaged."""


class Keyring:
    """Seals with the newest key, opens with any. The same file on all gateways: what one site seals, the other sends.

    keys: by number. A number is never used again for another key; it leads the sealed bytes in plain, so that of one
    value sealed twice the one under the newer key is the greater.
    """

    def __init__(self, keys: dict[int, bytes]) -> None:
        if not keys:
            raise KeyFileRefused("no key")
        self._newest = max(keys)
        self._keys = {number: AESGCM(key) for number, key in keys.items()}

    @property
    def newest(self) -> int:
        return self._newest

    def seal(self, plain: bytes, about: str) -> bytes:
        """about: whose, and what; the same words are needed to open it."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        number = self._newest.to_bytes(NUMBER_BYTES, "big")
        return number + nonce + self._keys[self._newest].encrypt(nonce, plain, number + about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """Raises NotOpened."""
        number, nonce = sealed[:NUMBER_BYTES], sealed[NUMBER_BYTES : NUMBER_BYTES + NONCE_BYTES]
        key = self._keys.get(int.from_bytes(number, "big"))
        if key is None or len(sealed) < OVERHEAD_BYTES:
            raise NotOpened(f"{about}: sealed under key {number.hex()}, which is not in the key file")
        try:
            return key.decrypt(nonce, sealed[NUMBER_BYTES + NONCE_BYTES :], number + about.encode())
        except InvalidTag as error:
            raise NotOpened(f"{about}: damaged, or not the value of this user and field") from error

    def is_old(self, sealed: bytes) -> bool:
        """Sealed under another key than the newest; to be sealed anew before that key is taken out of the file."""
        return int.from_bytes(sealed[:NUMBER_BYTES], "big") != self._newest


def make_key_file(path: Path) -> None:
    """A new file with one key, mode 0600. Raises FileExistsError rather than lose the keys of what is sealed."""
    _write(path, {1: secrets.token_bytes(KEY_BYTES)}, os.O_EXCL)


def add_key(path: Path) -> int:
    """A new key under the next number, durable on return; the older ones stay. Raises KeyFileRefused.

    Give the file to all gateways before any of them starts with it: one without the key can't read what it seals.
    """
    keys = _read(path)
    if len(keys) >= KEYS_MAX:
        raise KeyFileRefused(f"{path}: {len(keys)} keys; seal anew and drop the oldest first")
    number = max(keys) + 1
    aside = path.with_name(path.name + ".new")
    _write(aside, {**keys, number: secrets.token_bytes(KEY_BYTES)}, os.O_TRUNC)
    aside.replace(path)
    return number


def read_keyring(path: Path) -> Keyring:
    """Raises KeyFileRefused."""
    return Keyring(_read(path))


def _read(path: Path) -> dict[int, bytes]:
    try:
        mode = path.stat().st_mode
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileRefused(f"{path}: {error}") from error
    if mode & 0o077:
        raise KeyFileRefused(f"{path} has mode {mode & 0o777:o}: others must not read it; chmod 600")
    keys: dict[int, bytes] = {}
    for line in lines:
        try:
            number, key = int(line.split()[0]), bytes.fromhex(line.split()[1])
        except (ValueError, IndexError) as error:
            raise KeyFileRefused(f"{path}: a line that is not `<number> <key in hexadecimal>`") from error
        if len(key) != KEY_BYTES or not 0 < number < 2 ** (8 * NUMBER_BYTES) or number in keys:
            raise KeyFileRefused(f"{path}: key {number} has {len(key)} bytes of {KEY_BYTES}, or stands twice")
        keys[number] = key
    if not keys:
        raise KeyFileRefused(f"{path}: no key in it")
    return keys


def _write(path: Path, keys: dict[int, bytes], flag: int) -> None:
    # Created with its mode: a key must not be readable by others even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(f"{number} {key.hex()}\n" for number, key in sorted(keys.items()))
        file.flush()
        os.fsync(descriptor)
