"""Addresses of clients: how limits count them, and which proxies are trusted to name them.

Pure: addresses and headers are passed in. This module must not know connections.

Anybody can send an ``X-Forwarded-For`` header, and every proxy on the way appends to its right end the address that
connected to it. So it is read from the right, up to the first address that is not a trusted proxy's. A client may have
made up everything to the left of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

UNIX = "unix"
"""The name of the peers of UNIX sockets, which have no address."""

_ENTRY = re.compile(r"(?P<v4>[0-9.]+)(?::[0-9]+)?|(?P<v6>[0-9A-Fa-f:.]+)|\[(?P<bracketed>[0-9A-Fa-f:.]+)\](?::[0-9]+)?")
"""An entry of the header: an address. Some proxies add the port; IPv6 is then in brackets (RFC 3986, section 3.2.2)."""


def plain_address(host: str) -> IPv4Address | IPv6Address:
    """Return an address in the form in which addresses are compared.

    :raises ValueError: if `host` is not an address.
    """
    address = ip_address(host)
    # A socket for both IPv6 and IPv4 shows an IPv4 address like this (RFC 4291, section 2.5.5.2).
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_key(host: str) -> str:
    """Return the key under which limits count an address: an IPv4 address itself; the /64 network of an IPv6 address.

    One customer usually has a whole /64 network.

    :param host: an IPv4 or IPv6 address.
    :raises ValueError: if it is not one.
    """
    address = plain_address(host)
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), 64), strict=False))


class TrustedProxies:
    """The proxies whose ``X-Forwarded-For`` is trusted.

    :param names: addresses, networks such as 10.0.0.0/8, or `UNIX`.
    :raises ValueError: if a name is none of these; the text quotes it.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._unix = False
        for name in names:
            if name == UNIX:
                self._unix = True
            else:
                self._networks.append(_network(name))

    def __bool__(self) -> bool:
        """Return whether any proxy is trusted."""
        return self._unix or bool(self._networks)

    def trusts(self, host: str | None) -> bool:
        """Return whether this is a trusted proxy.

        :param host: an address; None for the peer of a UNIX socket.
        """
        if host is None:
            return self._unix
        if not self._networks:
            return False
        address = _address(host)
        return any(address in network for network in self._networks)

    def client_of(self, host: str | None, forwarded: Sequence[str]) -> str | None:
        """Return the client's address: the first one from the right that is not a trusted proxy's.

        :param host: the address that made the connection; None for the peer of a UNIX socket.
        :param forwarded: the values of ``X-Forwarded-For``, in the order in which they came.
        :returns: the address of the client. If a trusted proxy names no address that can be read, it is the proxy's
            own, or None if the proxy is the peer of a UNIX socket.
        """
        hops = ",".join(forwarded).split(",")
        while hops and self.trusts(host):
            hop = address_in(hops.pop())
            if hop is None:
                break
            host = hop
        return host


def address_in(entry: str) -> str | None:
    """Return the address in an entry of ``X-Forwarded-For``, or in a PROXY header; None if it is not an address."""
    found = _ENTRY.fullmatch(entry.strip(" \t"))
    if found is None:
        return None
    try:
        return str(_address(found["v4"] or found["v6"] or found["bracketed"]))
    except ValueError:
        return None


def _address(host: str) -> IPv4Address | IPv6Address:
    """Return an address, without the zone that a link-local one may have."""
    return plain_address(host.partition("%")[0])


def _network(name: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(name)
    except ValueError as error:
        raise ValueError(
            f"{name!r} is neither an address, nor a network such as 10.0.0.0/8, nor {UNIX}: {error}"
        ) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{name!r} means IPv4 addresses: write them as IPv4, such as 10.0.0.0/8")
    return network
