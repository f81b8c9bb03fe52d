"""Where a user's webhook may lead: public addresses only, so that nobody reaches our own network through us."""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from gateway.notify.notice import Never

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Addresses of IPv6 that carry one of IPv4 are as public as that one is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


class Guard:
    """allowed: networks that are reached though they are not public."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed: list[Network] = [ipaddress.ip_network(network) for network in allowed]

    def check(self, address: str) -> None:
        """Raises Never."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if not is_public(found) and not any(found in network for network in self._allowed):
            raise Never(f"{address} is no public address")

    def check_host(self, host: str) -> None:
        """A host that is an address is not resolved, so it is looked at here. Raises Never."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        self.check(host)


class GuardedResolver(AbstractResolver):
    """What it gives is what is connected to: a name can't be another address between the look and the call."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            # One private address among public ones is refused too: nobody needs that but to get in.
            self._guard.check(each["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


def connector_options(guard: Guard) -> dict[str, Any]:
    """For aiohttp's TCPConnector."""
    return {"resolver": GuardedResolver(guard), "force_close": True, "limit": 256, "limit_per_host": 8}
