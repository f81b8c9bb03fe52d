"""Session tokens: a signed (group, epoch, index), so that a client reads its own writes on any node.

Signed, because a node waits for the index that a token names: a forged one could make it wait for nothing.
"""

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from hashlib import blake2b
from hmac import compare_digest

from node.errors import EpochChanged, InvalidField

TOKEN_VERSION = 1
SIGNATURE_BYTES = 16
_BODY = struct.Struct(">BHIQ")
TOKEN_BYTES = _BODY.size + SIGNATURE_BYTES
FIELD = "X-Session-Token"


class SessionTokens:
    """Makes and reads the tokens of one cluster; all its nodes share the key, 32 bytes."""

    def __init__(self, key: bytes, *, epoch: int, group: int = 0) -> None:
        """Raises ValueError: the key is not 32 bytes."""
        if len(key) != 32:
            raise ValueError(f"the session key must be 32 bytes, not {len(key)}")
        self._signer = blake2b(key=key, digest_size=SIGNATURE_BYTES, person=b"session token")
        self._key = key
        self.group = group
        self.epoch = epoch
        self._newest = (0, "")

    def issue(self, index: int) -> str:
        """The newest one is kept: all answers of a batch have its index."""
        newest, token = self._newest
        if index != newest or not token:
            body = _BODY.pack(TOKEN_VERSION, self.group, self.epoch, index)
            token = urlsafe_b64encode(body + self._signature(body)).rstrip(b"=").decode()
            self._newest = index, token
        return token

    def read(self, token: str) -> int:
        """The index that a read with this token must reflect.

        Raises:
            InvalidField: not a token of this cluster.
            EpochChanged: of another history; the cluster was restored between then and now, or its token
                comes from a history that this node does not know yet.
        """
        body = self._body(token)
        version, group, epoch, index = _BODY.unpack(body)
        if version != TOKEN_VERSION or group != self.group:
            raise InvalidField("the session token is of another cluster or version", field=FIELD)
        if epoch != self.epoch:
            raise EpochChanged(
                f"the session token is of epoch {epoch}, the cluster is in epoch {self.epoch}", field=FIELD
            )
        return int(index)

    def _body(self, token: str) -> bytes:
        try:
            raw = urlsafe_b64decode(token.encode("ascii") + b"==") if len(token) <= 2 * TOKEN_BYTES else b""
        except (NotBase64, ValueError) as error:
            raise InvalidField("the session token is not readable", field=FIELD) from error
        body, signature = raw[: _BODY.size], raw[_BODY.size :]
        if len(raw) != TOKEN_BYTES or not compare_digest(signature, self._signature(body)):
            raise InvalidField("the session token is not one of this cluster", field=FIELD)
        return body

    def _signature(self, body: bytes) -> bytes:
        signer = self._signer.copy()  # the key is absorbed once
        signer.update(body)
        return signer.digest()
