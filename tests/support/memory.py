"""A client without a network: a transport in memory, directly or through a proxy that speaks the PROXY protocol."""

from __future__ import annotations

import json
import socket
from typing import Any, Protocol, Self

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from tests.support.client import Speaker
from tests.support.frames import CLOSE, TEXT, close_code, frames, handshake
from tests.support.v1 import ADMITTED

PEER = IPv4Address("TCP", "192.0.2.1", 4321)

OFFICE, ELSEWHERE = "192.0.2.1", "198.51.100.7"
PROXY = "10.0.0.1"
"""Addresses of clients, and of a proxy."""


class Factory(Protocol):
    """What a client connects to: the relay's factory."""

    def buildProtocol(self, addr: Any) -> Any: ...


def address(host: str) -> IAddress:
    """Build the address of one end of a TCP connection."""
    kind = IPv6Address if ":" in host else IPv4Address
    peer: IAddress = kind("TCP", host, 4321)
    return peer


class Transport(StringTransport):
    """A socket without a peer: it keeps what is written, and how it ended."""

    aborted = False
    no_delay = False

    def __init__(self, peer: IAddress = PEER) -> None:
        super().__init__(peerAddress=peer)

    def abortConnection(self) -> None:
        self.aborted = True

    def setTcpNoDelay(self, on: bool) -> None:
        self.no_delay = on

    def resumeProducing(self) -> None:
        """Resume as TCP does, unlike the parent: a closing transport is not read any more."""
        if not self.disconnecting:
            super().resumeProducing()

    def unregisterProducer(self) -> None:
        """Unregister as TCP does, unlike the parent: no producer has to be registered."""
        if self.producer is not None:
            super().unregisterProducer()  # type: ignore[no-untyped-call]


class MemoryClient(Speaker):
    """The client's end of one connection.

    :param factory: the relay's.
    :ivar protocol: the relay's end.
    """

    def __init__(self, factory: Factory, transport: Transport | None = None) -> None:
        self.transport = transport or Transport()
        self.protocol: Any = factory.buildProtocol(PEER)
        self.protocol.makeConnection(self.transport)

    def shake(self, *headers: str, target: str = "/") -> bytes:
        """Send an opening handshake; return the answer."""
        self.write(handshake(*headers, target=target))
        return self.read()

    def open(self, *headers: str) -> Self:
        """Complete the opening handshake."""
        answer = self.shake(*headers)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return self

    def write(self, data: bytes) -> None:
        """Send bytes to the relay, in one piece."""
        self.protocol.dataReceived(data)

    def read(self) -> bytes:
        """Return the bytes from the relay since the last look."""
        self.protocol.outgoing.flush()  # as at the end of a turn of the reactor
        data = self.transport.value()
        self.transport.clear()
        return data

    def hear(self) -> list[Any]:
        """Return what the relay sent: JSON values, (close code, reason), and (opcode, payload) of other frames."""
        heard: list[Any] = []
        for opcode, payload in frames(self.read()):
            if opcode == TEXT:
                heard.append(json.loads(payload))
            elif opcode == CLOSE:
                heard.append((close_code(payload), payload[2:].decode()))
            else:
                heard.append((opcode, payload))
        return heard

    def log_in(self, sessid: str = "alice") -> Self:
        """Log in, and check that it succeeds."""
        self.say_login(sessid)
        assert self.hear() == [ADMITTED]
        return self

    def lost(self, error: Exception | None = None) -> None:
        """End the TCP connection, by default with a FIN from the client."""
        self.protocol.connectionLost(Failure(error or ConnectionDone()))


class ProxiedClient(MemoryClient):
    """A client at the far end of a proxy that speaks the PROXY protocol.

    :param header: the proxy's first bytes.
    """

    def __init__(self, factory: Factory, header: bytes, proxy: str = PROXY) -> None:
        reactor = MemoryReactorClock()
        serverFromString(reactor, "haproxy:tcp:8080").listen(factory)
        ((_, wrapping, *_),) = reactor.tcpServers
        self.transport = Transport(address(proxy))
        self.wrapper = wrapping.buildProtocol(address(proxy))
        self.wrapper.makeConnection(self.transport)
        self.protocol = self.wrapper.wrappedProtocol
        if header:
            self.write(header)

    def write(self, data: bytes) -> None:
        """Send bytes to the relay, through the proxy."""
        if self.wrapper.wrappedProtocol is not None:  # else it is lost
            self.wrapper.dataReceived(data)

    def lost(self, error: Exception | None = None) -> None:
        """End the TCP connection."""
        self.wrapper.connectionLost(Failure(ConnectionDone() if error is None else error))


def proxy_header_1(host: str) -> bytes:
    """Encode a PROXY header of version 1, in text."""
    family = b"TCP6" if ":" in host else b"TCP4"
    return b"PROXY %b %b %b 4321 8080\r\n" % (family, host.encode(), host.encode())


def proxy_header_2(host: str | None) -> bytes:
    """Encode a PROXY header of version 2, in binary; None: the proxy speaks for itself (LOCAL)."""
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    if host is None:
        return signature + b"\x20\x00\x00\x00"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host)
    body = packed + packed + (4321).to_bytes(2, "big") + (8080).to_bytes(2, "big")
    return signature + bytes([0x21, 0x21 if ":" in host else 0x11]) + len(body).to_bytes(2, "big") + body
