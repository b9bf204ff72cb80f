"""Addresses of clients: how limits count them, and which proxies are believed about them.

Pure: addresses and headers are handed in. This module must not know connections.

Anybody can write an ``X-Forwarded-For`` header, and every proxy on the way adds to its right end the address that
connected to it. So it is read from the right, as far as the proxies that wrote it are trusted, and no further. A client
may have made up what stands to the left of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

UNIX = "unix"
"""What stands for the peers of UNIX sockets, which have no address."""

_ENTRY = re.compile(r"(?P<v4>[0-9.]+)(?::[0-9]+)?|(?P<v6>[0-9A-Fa-f:.]+)|\[(?P<bracketed>[0-9A-Fa-f:.]+)\](?::[0-9]+)?")
"""An entry of the header: an address. Some proxies add the port; IPv6 is then in brackets (RFC 3986, section 3.2.2)."""


def plain_address(host: str) -> IPv4Address | IPv6Address:
    """An address in the one form in which addresses are compared.

    :raises ValueError: where it is none.
    """
    address = ip_address(host)
    # As a socket that takes both kinds shows IPv4 (RFC 4291, section 2.5.5.2).
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def address_key(host: str) -> str:
    """Under which name limits count an address: itself, or of an IPv6 address its /64 network, which one customer has.

    :param host: an IPv4 or IPv6 address.
    :raises ValueError: where it is none.
    """
    address = plain_address(host)
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), 64), strict=False))


class TrustedProxies:
    """The proxies whose ``X-Forwarded-For`` is believed.

    :param names: addresses, networks such as 10.0.0.0/8, or `UNIX`.
    :raises ValueError: for what is none of them, naming it.
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
        """Whether any is trusted."""
        return self._unix or bool(self._networks)

    def trusts(self, host: str | None) -> bool:
        """Whether this is a trusted proxy.

        :param host: an address; None for the peer of a UNIX socket.
        """
        if host is None:
            return self._unix
        if not self._networks:
            return False
        address = _address(host)
        return any(address in network for network in self._networks)

    def client_of(self, host: str | None, forwarded: Sequence[str]) -> str | None:
        """Whom a connection is from: the first address, from the right, that is no trusted proxy's.

        :param host: who made the connection; None for the peer of a UNIX socket.
        :param forwarded: the values of ``X-Forwarded-For``, in the order in which they came.
        :returns: the address of the client; of a trusted proxy where it names nobody that can be read; None where a
            UNIX socket's peer does not.
        """
        hops = ",".join(forwarded).split(",")
        while hops and self.trusts(host):
            hop = address_in(hops.pop())
            if hop is None:
                break
            host = hop
        return host


def address_in(entry: str) -> str | None:
    """The address in an entry of the header, or elsewhere where a proxy names one; None where there is none."""
    found = _ENTRY.fullmatch(entry.strip(" \t"))
    if found is None:
        return None
    try:
        return str(_address(found["v4"] or found["v6"] or found["bracketed"]))
    except ValueError:
        return None


def _address(host: str) -> IPv4Address | IPv6Address:
    """An address without the zone that a link-local one may name."""
    return plain_address(host.partition("%")[0])


def _network(name: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(name)
    except ValueError as error:
        raise ValueError(
            f"{name!r} is neither an address, nor a network such as 10.0.0.0/8, nor {UNIX}: {error}"
        ) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError(f"{name!r} means addresses of IPv4: write them so, such as 10.0.0.0/8")
    return network
