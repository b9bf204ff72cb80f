"""The private names of Twisted on which the relay relies; test_autobahn.py checks those of Autobahn."""

from __future__ import annotations

import socket
from operator import attrgetter
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web.client import HTTPConnectionPool

from chatrelay.auth import client as session_page
from chatrelay.websocket import outbox as outgoing
from chatrelay.websocket import peer


class TwistedNames(SynchronousTestCase):
    """Names that Twisted does not document are still there."""

    def test_tcp_server_has_each_name(self) -> None:
        with socket.socket() as unconnected:
            transport = Server(unconnected, None, ("192.0.2.1", 4321), None, 0, MemoryReactorClock())  # type: ignore[arg-type]
            for name in outgoing.TCP_SERVER_NAMES:
                self.assertTrue(hasattr(transport, name), f"Twisted has moved {name}; see Outbox.flush")

    def test_tls_transport_has_each_name_and_holds_what_is_not_sent(self) -> None:
        clock = Clock()
        wrapping = TLSMemoryBIOFactory(optionsForClientTLS("relay.example"), True, Factory.forProtocol(Protocol), clock)
        transport: Any = wrapping.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4321))
        transport.makeConnection(StringTransport())
        for name in outgoing.TLS_NAMES:
            self.assertTrue(hasattr(transport, name), f"Twisted has moved {name}; see held_by_tls")
        self.assertEqual(outgoing.held_by_tls(transport), 0)
        transport.write(b"x" * 1000)
        self.assertFalse(transport._appSendBuffer)
        self.assertEqual(outgoing.held_by_tls(transport), 1000)
        clock.advance(0)  # the handshake is not done
        self.assertTrue(transport._appSendBuffer)
        self.assertEqual(outgoing.held_by_tls(transport), 1000)

    def test_wrapper_for_the_proxy_protocol_has_each_name(self) -> None:
        reactor = MemoryReactorClock()
        serverFromString(reactor, "haproxy:tcp:8080").listen(Factory.forProtocol(Protocol))
        ((_, wrapping, *_),) = reactor.tcpServers
        wrapper = wrapping.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4321))
        wrapper.makeConnection(StringTransport())
        self.assertIsInstance(wrapper, peer.HAProxyProtocolWrapper)
        for name in peer.HAPROXY_NAMES:
            self.assertTrue(hasattr(wrapper, name), f"Twisted has moved {name}; see Peer")

    def test_http_client_has_each_name(self) -> None:
        pool = HTTPConnectionPool(None)
        known = {"HTTPConnectionPool": pool, "HTTP11ClientProtocol": HTTP11ClientProtocol}
        for name in session_page.TWISTED_NAMES:
            owner, _, attribute = name.partition(".")
            attrgetter(attribute)(known[owner])
        self.assertIs(pool._factory(len, "")._quiescentCallback, len)
