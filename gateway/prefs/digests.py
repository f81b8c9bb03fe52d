"""Digests of documents by bucket: two sites whose buckets agree hold the same, and those that differ are few."""

from collections.abc import Iterator
from hashlib import blake2b

BUCKETS = 1_024
HASH_BYTES = 16


def bucket_of(user: str) -> int:
    return int.from_bytes(blake2b(user.encode(), digest_size=2).digest(), "big") % BUCKETS


def hash_of(user: str, raw: bytes | memoryview) -> bytes:
    """Of one encoded document: its checksum on disk, and what sites compare."""
    return blake2b(raw, digest_size=HASH_BYTES, key=user.encode()[:64]).digest()


class Digests:
    """The hash of each user's document, and of each bucket: the exclusive or of its users' hashes.

    Costs about 150 bytes of memory per user. No protection from users who choose their documents by their hash:
    what they could do is to keep their own from being repaired.
    """

    def __init__(self) -> None:
        self._users: list[dict[str, bytes]] = [{} for _ in range(BUCKETS)]
        self._sums = [0] * BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def set(self, user: str, digest: bytes) -> None:
        bucket = bucket_of(user)
        before = self._users[bucket].get(user)
        if before is None:
            self._count += 1
        else:
            self._sums[bucket] ^= int.from_bytes(before, "big")
        self._users[bucket][user] = digest
        self._sums[bucket] ^= int.from_bytes(digest, "big")

    def get(self, user: str) -> bytes | None:
        return self._users[bucket_of(user)].get(user)

    def sums(self) -> bytes:
        """All buckets in a row, HASH_BYTES each."""
        return b"".join(number.to_bytes(HASH_BYTES, "big") for number in self._sums)

    def differing(self, sums: bytes) -> list[int]:
        """Buckets whose digest is another one there. sums: of exactly BUCKETS buckets."""
        ours = self.sums()
        if ours == sums:
            return []
        places = range(0, BUCKETS * HASH_BYTES, HASH_BYTES)
        return [n for n, at in enumerate(places) if ours[at : at + HASH_BYTES] != sums[at : at + HASH_BYTES]]

    def users(self, bucket: int) -> dict[str, bytes]:
        """Each user of the bucket and its hash. Not to be changed."""
        return self._users[bucket]

    def all_users(self) -> Iterator[str]:
        for users in self._users:
            yield from users
