"""Which site acts on an alert or a fill: the highest hash among the sites that are heard, the same seen from each."""

from collections.abc import Iterable
from hashlib import blake2b


def owner(name: str, sites: Iterable[str]) -> str:
    """sites: at least one. When a site goes or comes, only what it owns changes hands."""
    return max(sites, key=lambda site: (blake2b(name.encode(), digest_size=8, key=site.encode()[:64]).digest(), site))
