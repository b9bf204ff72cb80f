"""The other end of each connection: its address, even behind proxies, its name, and how it is counted.

A proxy names its client by the PROXY protocol or by ``X-Forwarded-For``. This module must not know frames or sessions,
nor how a connection is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autobahn.websocket.types import ConnectionDeny
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.logger import Logger
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper

from chatrelay.limits.addresses import UNIX, TrustedProxies, address_in, address_key
from chatrelay.limits.admission import Admission, LimitReached, Slot
from chatrelay.websocket.closing import printable, status_when_full
from chatrelay.wire.request_head import header_values

log = Logger("chatrelay.websocket")

HAPROXY_NAMES = ("getPeer", "transport")
"""The names that are used of Twisted's `HAProxyProtocolWrapper`, whose module is private."""


def why_full(full: LimitReached) -> str:
    """Return the reason for refusing a handshake because a limit is reached."""
    return f"{full.why} ({full.option} {full.limit})"


class Peer:
    """The other end of one connection, as far as it is known.

    :param transport: the connection's transport.
    :ivar slot: how the connection is counted; None if it was refused when it was accepted.
    """

    __slots__ = ("_forwarded_for", "_transport", "slot")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._forwarded_for: str | None = None
        self.slot: Slot | None = None

    @property
    def host(self) -> str | None:
        """The address that made the connection, as far as it is known by now; None for a UNIX socket."""
        peer = self._transport.getPeer()
        if not isinstance(peer, IPv4Address | IPv6Address):
            return None
        # Twisted accepts any text as an address in a PROXY header.
        return address_in(peer.host) if self.has_proxy_protocol else peer.host

    @property
    def name(self) -> str:
        """The client's address, for the operator."""
        if self._forwarded_for is not None:
            return self._forwarded_for
        peer = self._transport.getPeer()
        return printable(f"{peer.host}:{peer.port}" if isinstance(peer, IPv4Address | IPv6Address) else str(peer))

    @property
    def address(self) -> str | None:
        """The address under which limits count this client; None if it has none, or before its handshake."""
        return None if self.slot is None else self.slot.address

    @property
    def has_proxy_protocol(self) -> bool:
        """Whether the connection came through a port with the PROXY protocol."""
        return isinstance(self._transport, HAProxyProtocolWrapper)

    @property
    def is_announced(self) -> bool:
        """Whether a PROXY header has named the proxy's client.

        A proxy that connects for itself, as in a health check, names none.
        """
        transport = self._transport
        return self.has_proxy_protocol and transport.transport.getPeer() != transport.getPeer()

    def forwarded(self, client: str) -> None:
        """Note the client's address that a trusted proxy has put into ``X-Forwarded-For``."""
        self._forwarded_for = client


class Peers:
    """Finds the address of each client, even behind proxies, and counts its connection under that address.

    :param trusted_proxies: addresses, networks or `UNIX`, whose ``X-Forwarded-For`` is trusted.
    :param admission: counts the connections.
    """

    def __init__(self, trusted_proxies: Iterable[str], admission: Admission) -> None:
        self._trusted = TrustedProxies(trusted_proxies)
        self._admission = admission
        self._logged_forwarding = self._logged_no_client = False

    def admit(self, peer: Peer) -> LimitReached | None:
        """Count a connection that was just accepted, or return the limit that it would exceed.

        A proxy that speaks the PROXY protocol has not named its client yet, so its connection has no address so far.
        """
        admitted = self._admission.admit(None if peer.has_proxy_protocol else self._key(peer.host))
        if isinstance(admitted, LimitReached):
            return admitted
        peer.slot = admitted
        return None

    def locate(self, peer: Peer, request: bytes) -> None:
        """Find the client of a handshake, and count its connection under its address.

        :param request: the handshake.
        :raises ConnectionDeny: if there are too many connections from that address.
        """
        host = peer.host
        forwarded = self._forwarded_for(request, peer)
        if peer.address is not None:
            return  # it was counted when it was accepted, or when its PROXY header came
        client = self._trusted.client_of(host, forwarded) if forwarded else host
        if client is not None and client != host:
            peer.forwarded(client)
        if peer.has_proxy_protocol and not peer.is_announced:
            return
        address = self._key(client)
        if address is None:
            self._log_no_client(peer)
        assert peer.slot is not None
        full = self._admission.locate(peer.slot, address)
        if full is not None:
            raise ConnectionDeny(status_when_full(full), why_full(full))

    def locate_announced(self, peer: Peer) -> LimitReached | None:
        """Count a connection under the address in its PROXY header, or return the limit that it would exceed.

        The header comes before the handshake. The connection is counted without waiting for the handshake, because a
        client could otherwise exceed the limits by sending none.
        """
        assert peer.slot is not None
        return self._admission.locate(peer.slot, self._key(peer.host))

    def disconnected(self, peer: Peer) -> None:
        """Stop counting a connection."""
        assert peer.slot is not None
        self._admission.disconnected(peer.slot)

    def _key(self, host: str | None) -> str | None:
        """Return the address under which a client is counted; None for a trusted proxy, which has many clients."""
        return None if host is None or self._trusted.trusts(host) else address_key(host)

    def _forwarded_for(self, request: bytes, peer: Peer) -> list[str]:
        """Return the values of a handshake's ``X-Forwarded-For`` if its sender is trusted, else nothing."""
        host = peer.host
        is_trusted = self._trusted.trusts(host)
        is_news = is_trusted or not self._logged_forwarding
        if not is_news or b"x-forwarded-for" not in request.lower():
            return []
        forwarded = header_values(request, "x-forwarded-for")
        if is_trusted or not forwarded:
            return forwarded
        self._logged_forwarding = True
        log.warn(
            "the X-Forwarded-For of a handshake from {peer} was ignored: if that is your proxy, set --trusted-proxy "
            "{host} (logged once)",
            peer=peer.name,
            host=UNIX if host is None else host,
        )
        return []

    def _log_no_client(self, peer: Peer) -> None:
        """Log, once, that a proxy names no client, so that its connections are counted under no address."""
        host = peer.host
        is_trusted = self._trusted.trusts(host)
        if self._logged_no_client or (self._logged_forwarding and not is_trusted):
            return
        self._logged_no_client = True
        log.warn(
            "a handshake from {peer} named no client, so no limit for an address applies to clients that come this "
            "way: have the proxy there set X-Forwarded-For, and set --trusted-proxy {host} here (logged once)",
            peer=peer.name,
            host=UNIX if host is None else host,
        )
