"""The undocumented names of Autobahn that chatrelay uses still exist; test_twisted_names.py checks those of Twisted."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.config.options import Config
from chatrelay.testing import KnownSessions
from chatrelay.websocket import autobahn
from chatrelay.websocket.factory import ChatFactory
from tests.support.frames import HANDSHAKE, frame
from tests.support.memory import PEER, MemoryClient, Transport
from tests.support.relay_case import chat_factory

MOVED = "has moved {}; see chatrelay/websocket/autobahn.py"


def make_factory(**options: Any) -> ChatFactory:
    """Return a factory with these options."""
    return chat_factory(Config(**options), Clock(), KnownSessions({}))


class AutobahnNames(SynchronousTestCase):
    """Autobahn's own protocol, as a program without chatrelay uses it."""

    def setUp(self) -> None:
        factory: Any = WebSocketServerFactory(reactor=Clock())
        factory.protocol = WebSocketServerProtocol
        self.protocol = factory.buildProtocol(PEER)
        self.protocol.makeConnection(Transport())

    def test_protocol_class_has_each_name(self) -> None:
        for name in autobahn.NAMES:
            self.assertTrue(hasattr(WebSocketServerProtocol, name), f"Autobahn {MOVED.format(name)}")

    def test_open_connection_has_each_attribute(self) -> None:
        self.protocol.dataReceived(HANDSHAKE)
        for name in autobahn.ATTRIBUTES:
            self.assertIn(name, vars(self.protocol), f"Autobahn {MOVED.format(name)}")
        moved = autobahn.HANDSHAKE.keys() - vars(self.protocol).keys()
        self.assertEqual(moved, set(), f"Autobahn {MOVED.format(moved)}")

    def test_open_connection_has_each_rare_attribute_with_its_first_value(self) -> None:
        self.protocol.dataReceived(HANDSHAKE)
        kept = vars(self.protocol)
        self.assertEqual({name: kept.get(name, "moved") for name in autobahn.RARE}, autobahn.RARE)

    def test_frame_that_has_begun_has_each_attribute(self) -> None:
        self.protocol.dataReceived(HANDSHAKE + frame(b"half")[:8])
        for name in autobahn.FRAME_ATTRIBUTES:
            self.assertTrue(hasattr(self.protocol, name), f"Autobahn {MOVED.format(name)}")
        self.assertEqual(self.protocol.current_frame.length, 4)
        self.assertEqual(self.protocol.message_data_total_length, 4)
        self.assertEqual(self.protocol.current_frame_masker.pointer(), 2)


class AutobahnOptions(SynchronousTestCase):
    """Autobahn's options are read from the factory."""

    def test_connection_has_the_options_of_its_factory(self) -> None:
        factory = make_factory(message_size=1234)
        client = MemoryClient(factory)
        names = WebSocketServerProtocol.CONFIG_ATTRS
        self.assertIn("maxMessagePayloadSize", names)
        self.assertEqual(
            {name: getattr(client.protocol, name) for name in names}, {name: getattr(factory, name) for name in names}
        )
        self.assertEqual(client.protocol.maxMessagePayloadSize, 1234)
        self.assertFalse(set(names) - {"trackTimings"} & vars(client.protocol).keys())
        # And Autobahn finds this one when it wants it: a batch does not wait for the client's ACK.
        self.assertTrue(client.transport.no_delay)

    def test_connection_has_no_queue_and_no_validator_before_they_are_needed(self) -> None:
        client = MemoryClient(make_factory(fast_path=True)).open()
        self.assertFalse({"send_queue", "utf8validator"} & vars(client.protocol).keys())
        client.write(frame(b"half")[:8])
        self.assertIn("utf8validator", vars(client.protocol))

    def test_open_connection_keeps_no_handshake_and_no_rare_attribute(self) -> None:
        client = MemoryClient(make_factory()).open()
        kept = vars(client.protocol).keys()
        self.assertFalse(kept & (autobahn.HANDSHAKE.keys() | autobahn.RARE.keys()))
        self.assertEqual(client.protocol.autoPingPendingSeq, 0)
