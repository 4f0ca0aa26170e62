"""The unit of bounds on peers without a name: an IPv4 address, or an IPv6 network."""

from __future__ import annotations

import ipaddress

_IPV6_PREFIX = 64


def network_of(host: str) -> str:
    """Return the IPv4 address of a host, or the /64 network of its IPv6 address: an IPv6 host has 2^64 addresses.

    An IPv4 address mapped into IPv6 is the IPv4 address.

    Example:
        >>> network_of("192.0.2.7"), network_of("::ffff:192.0.2.7"), network_of("2001:db8::7%eth0")
        ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.IPv6Network((address, _IPV6_PREFIX), strict=False))
