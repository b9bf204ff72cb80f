"""Frames, handshakes, deadlines and close codes, byte by byte, on a clock that the test holds.

The client's side of RFC 6455 is written out here by hand: nothing is shared
with the code under test.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import string
import struct
import tracemalloc
import zlib
from operator import attrgetter
from random import Random
from typing import Any
from unittest.mock import patch

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web.client import HTTPConnectionPool

from chatrelay.auth import client as webserver
from chatrelay.auth.throttle import DenialCache
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.testing import HeldAuthenticator, KnownSessions
from chatrelay.websocket import outbox as outgoing
from chatrelay.websocket.compression import MAX_ADDED
from chatrelay.websocket.factory import ChatFactory
from chatrelay.websocket.protocol import ChatProtocol
from chatrelay.wire import codes

# The same tests hold with the fast path and without it; end to end, the relay reads this variable itself.
FAST_PATH = os.environ.get("CHATRELAY_FAST_PATH", "yes") == "yes"

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
PEER = IPv4Address("TCP", "192.0.2.1", 4321)
YES = {"type": "auth-response", "response": True}


def frame(payload: bytes, opcode: int = TEXT, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A client's frame (RFC 6455, section 5.2)."""
    length = len(payload)
    mask_bit = 0x80 if masked else 0
    if length < 126:
        size = bytes([mask_bit | length])
    elif length < 65536:
        size = bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        size = bytes([mask_bit | 127]) + struct.pack("!Q", length)
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if not masked:
        return first + size + payload
    mask = b"\x12\x34\x56\x78"
    return first + size + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def frames(stream: bytes) -> list[tuple[int, bytes]]:
    """The server's frames in a stream: (opcode, payload)."""
    found = []
    while stream:
        opcode, length, start = stream[0] & 15, stream[1], 2
        if length == 126:
            (length,), start = struct.unpack("!H", stream[2:4]), 4
        elif length == 127:
            (length,), start = struct.unpack("!Q", stream[2:10]), 10
        found.append((opcode, stream[start : start + length]))
        stream = stream[start + length :]
    return found


class Transport(StringTransport):
    """A socket whose client is not there: keeps what is written, and how it ended."""

    aborted = False
    no_delay = False

    def __init__(self, peer: IAddress = PEER) -> None:
        super().__init__(peerAddress=peer)

    def abortConnection(self) -> None:
        self.aborted = True

    def setTcpNoDelay(self, on: bool) -> None:
        self.no_delay = on

    def resumeProducing(self) -> None:
        """As TCP's does, and unlike the parent's: one that is closing is read no more."""
        if not self.disconnecting:
            super().resumeProducing()

    def unregisterProducer(self) -> None:
        """As TCP's does, and unlike the parent's: none need be registered."""
        if self.producer is not None:
            super().unregisterProducer()  # type: ignore[no-untyped-call]


def handshake_of(line: str) -> bytes:
    """An opening handshake with this request line."""
    lines = [
        line,
        "Host: relay.example",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"


class Client:
    """The client's end of one connection."""

    def __init__(self, factory: ChatFactory, transport: Transport | None = None) -> None:
        self.transport = transport or Transport()
        self.protocol: ChatProtocol = factory.buildProtocol(PEER)  # type: ignore[assignment]
        self.protocol.makeConnection(self.transport)

    def shake(self, *headers: str) -> bytes:
        """Send an opening handshake; return the answer."""
        # Lone surrogates stand for bytes that are no UTF-8.
        more = "".join(f"{header}\r\n" for header in headers).encode("utf-8", "surrogateescape")
        self.write(handshake_of("GET / HTTP/1.1").removesuffix(b"\r\n") + more + b"\r\n")
        return self.read()

    def open(self, *headers: str) -> Client:
        """Complete the opening handshake."""
        answer = self.shake(*headers)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return self

    def write(self, data: bytes) -> None:
        """Bytes to the relay, in one piece."""
        self.protocol.dataReceived(data)

    def read(self) -> bytes:
        """Bytes from the relay since the last look."""
        self.protocol.outgoing.flush()  # as at the end of a turn of the reactor
        data = self.transport.value()
        self.transport.clear()
        return data

    def say(self, **message: Any) -> None:
        """One text message."""
        self.write(frame(json.dumps(message).encode()))

    def hear(self) -> list[Any]:
        """What the relay sent: JSON values, and (close code, reason)."""
        heard: list[Any] = []
        for opcode, payload in frames(self.read()):
            if opcode == TEXT:
                heard.append(json.loads(payload))
            elif opcode == CLOSE:
                heard.append((struct.unpack("!H", payload[:2])[0], payload[2:].decode()))
            else:
                heard.append((opcode, payload))
        return heard

    def log_in(self, sessid: str = "alice") -> Client:
        """Log in."""
        self.say(type="auth-request", SESSID=sessid)
        assert self.hear() == [YES]
        return self

    def send(self, to: object, content: str = "hej", id: object = 1) -> None:
        """A message-send-request."""
        self.say(type="message-send-request", id=id, message={"timeStamp": 1, "touID": to, "content": content})

    def lost(self, error: Exception | None = None) -> None:
        """The TCP connection ends; by a FIN from the client, unless it is told otherwise."""
        from twisted.internet.error import ConnectionDone
        from twisted.python.failure import Failure

        self.protocol.connectionLost(Failure(error or ConnectionDone()))


OTHER_ORIGINS = (
    "http://example.com",  # the scheme
    "wss://example.com",
    "httpss://example.com",
    "https:example.com",
    "//example.com",
    "example.com",
    "https://example.com:444",  # the port
    "https://example.com:80",
    "https://example.com:",
    "https://example.com:443:443",
    "https://example.com:443.evil.test",
    "https://example.com:443@evil.test",
    "https://example.com.evil.test",  # a name that begins like it, or ends so
    "https://example.community",
    "https://evilexample.com",
    "https://evil-example.com",
    "https://www.example.com",
    "https://example.com.",
    "https://example.co",
    "https://example",
    "https://example.com@evil.test",  # user names, paths and the like
    "https://evil.test@example.com",
    "https://@example.com",
    "https://example.com/",
    "https://example.com/.evil.test",
    "https://evil.test/https://example.com",
    "https://evil.test?https://example.com",
    "https://evil.test#https://example.com",
    "https://example.com?",
    "https://example.com#",
    "https://example.com\\.evil.test",
    "https://evil.test\\@example.com",
    "https://example%2ecom",
    "https://example.com%00.evil.test",
    "https://ex\u0430mple.com",  # a Cyrillic a: as it is, and as a browser would send it
    "https://xn--exmple-4nf.com",
    "https://\uff45xample.com",  # what Unicode calls compatible
    "https://example\u3002com",
    "https://*",
    "https://*.com",
    "*",
    "null",
    "NULL",
    "",
    "https://",
    "file://",
    "about:blank",
    "https://example.com, https://evil.test",  # several in one
    "https://evil.test, https://example.com",
    "https://example.com https://evil.test",
    "https://example.com,",
    "https:// example.com",  # spaces and control characters
    "https://exam\tple.com",
    "https://example.com\x00",
    "https://example.com\x0b.evil.test",
    "https://example.com\u0085X: y",
)
"""What is not https://example.com, however it may look."""


def told_by(test: SynchronousTestCase) -> list[str]:
    """What the operator is told from now on, a line each."""
    lines: list[str] = []

    def note(event: Any) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    test.addCleanup(globalLogPublisher.removeObserver, note)
    return lines


class WebSocketTestCase(SynchronousTestCase):
    """A relay without a port."""

    chance = 0.5

    def setUp(self) -> None:
        self.clock = Clock()
        self.factory = self.make_factory()

    def make_factory(self, authenticator: Any = None, **options: Any) -> ChatFactory:
        """A factory with these options."""
        self.directory = Directory()
        self.log = MemoryMessageLog()
        relay = Relay(self.directory, self.log, self.clock.seconds, lambda call: self.clock.callLater(0, call))
        options.setdefault("fast_path", FAST_PATH)
        options.setdefault("unauthenticated_per_address", 0)  # nobody here hangs up
        options.setdefault("ping_interval", 0)  # what is heard is what a test is about
        known = authenticator or KnownSessions({"alice": 1, "bo": 2})
        factory = ChatFactory(Config(**options), relay, self.directory, known, self.clock, chance=lambda: self.chance)
        factory.start_sweeping()
        self.addCleanup(factory.stop_sweeping)
        return factory

    def client(self) -> Client:
        """A new TCP connection."""
        return Client(self.factory)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, a sweep at a time."""
        self.clock.pump([0.125] * int(seconds / 0.125))


class Handshakes(WebSocketTestCase):
    """Who may connect, and how it is refused."""

    def test_no_subprotocol_and_v1(self) -> None:
        self.assertNotIn(b"Sec-WebSocket-Protocol", self.client().shake())
        for offer in ("chatrelay.v1", "chatrelay.v2, chatrelay.v1"):
            answer = self.client().shake(f"Sec-WebSocket-Protocol: {offer}")
            self.assertIn(b"Sec-WebSocket-Protocol: chatrelay.v1\r\n", answer)

    def test_other_subprotocols_are_refused(self) -> None:
        client = self.client()
        answer = client.shake("Sec-WebSocket-Protocol: chatrelay.v2")
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"))
        self.assertIn(b"offer chatrelay.v1, or none", answer)
        self.assertTrue(client.transport.disconnecting)

    def test_a_browser_that_visits_is_told(self) -> None:
        client = self.client()
        client.write(b"GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n")
        answer = client.read()
        self.assertTrue(answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n"))
        self.assertIn(b"\r\nUpgrade: websocket\r\n", answer)
        self.assertIn(b"chatrelay speaks WebSocket here", answer)

    def test_a_proxy_that_takes_websocket_out_is_told_what_to_pass_on(self) -> None:
        upgrade, connection = "Upgrade: websocket\r\n", "Connection: Upgrade\r\n"
        for line, headers, status in (
            ("GET / HTTP/1.0", "", 505),
            ("GET / HTTP/1.0", "Connection: close\r\n", 505),  # nginx, unless it is told
            ("GET / HTTP/1.0", upgrade + connection, 505),
            ("GET / HTTP/1.1", "", 426),
            ("GET / HTTP/1.1", connection, 426),
            ("GET / HTTP/1.1", upgrade, 400),
            ("GET / HTTP/1.1", upgrade + "Connection: close\r\n", 400),
            ("GET / HTTP/1.1", "Upgrade: h2c\r\n" + connection, 400),
            ("OPTIONS / HTTP/1.0", "", 405),  # haproxy, with option httpchk
        ):
            client = self.client()
            client.write(f"{line}\r\nHost: h\r\n{headers}\r\n".encode())
            head, _, body = client.read().partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 %d " % status), (line, headers, head))
            self.assertIn(f"\r\nContent-Length: {len(body)}\r\n".encode(), head)
            for needed in (b"HTTP/1.1", b"Upgrade: websocket", b"Connection: Upgrade", b"proxy"):
                self.assertIn(needed, body, (line, headers))
        self.factory = self.make_factory(origin=("https://example.com",))
        self.assertNotIn(b"proxy", self.client().shake("Origin: https://evil.test"))

    def test_compression_is_not_taken_up(self) -> None:
        self.assertNotIn(b"deflate", self.client().shake("Sec-WebSocket-Extensions: permessage-deflate"))

    def test_without_origin_option_any_origin_may_connect(self) -> None:
        for origin in ("https://example.com", "null", "http://127.0.0.1:8000", "capacitor://localhost"):
            self.client().open(f"Origin: {origin}")

    def test_listed_origins_and_programs_without_any_may_connect(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com", "http://localhost:8000"))
        for origin in (
            "https://example.com",
            "https://example.com:443",
            "HTTPS://EXAMPLE.COM",
            "http://localhost:8000",
        ):
            self.client().open(f"Origin: {origin}")
        self.client().open()

    def test_every_other_origin_is_refused(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        for origin in OTHER_ORIGINS:
            client = self.client()
            answer = client.shake(f"Origin: {origin}")
            self.assertTrue(answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), (origin, answer))
            self.assertTrue(client.transport.disconnecting)
        for headers in (
            ("Origin: https://example.com", "Origin: https://example.com"),
            ("Origin: https://example.com", "origin: https://evil.test"),
            ("ORIGIN: https://evil.test", "Origin: https://example.com"),
            ("Origin: https://example.com", "Origin:"),
            ("Origin:", "Origin: https://example.com"),
            ("Origin: https://evil.test", "Origin : https://example.com"),
        ):
            answer = self.client().shake(*headers)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), (headers, answer))

    def test_the_operator_is_told_which_origin_and_how_to_admit_it(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for _ in range(3):
            self.client().shake("Origin: https://www.example.com")
        self.client().shake("Origin: null")
        self.client().shake("Origin: ")
        self.client().shake("Origin: https://a.test", "Origin: https://b.test")
        warnings = [formatEvent(event) for event in events if event.get("log_level") is LogLevel.warn]
        self.assertEqual(len(warnings), 4)
        self.assertIn("of origin (empty) was refused", warnings[2])
        self.assertIn("https://a.test, https://b.test", warnings[3])
        self.assertIn("admit it with --origin https://www.example.com (told once", warnings[0])
        self.assertIn("no origin which could be admitted", warnings[1])
        told = [formatEvent(event) for event in events if event.get("log_level") is LogLevel.info]
        self.assertEqual(len(told), 6)
        self.assertIn("handshake from 192.0.2.1:4321 refused with 403", told[0])

    def test_a_stranger_cannot_keep_the_operator_from_being_told(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for number in range(1000):
            self.client().shake(f"Origin: https://made-up-{number}.test")
            if number in (500, 600):  # a page, which tries again
                self.client().shake("Origin: https://www.example.com")
        self.pass_time(120)
        warnings = [formatEvent(event) for event in events if event.get("log_level") is LogLevel.warn]
        self.assertEqual(len(warnings), 12)
        self.assertIn("origin https://www.example.com was refused", warnings[10])
        self.assertIn("too many origins at once: 991 more handshakes of pages were refused", warnings[11])

    def test_what_strangers_send_is_safe_to_print_and_no_cookie_is_in_it(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.client().shake("Origin: https://\x1b[2J.test")
        for request in (
            "Cookie: sid=CANARY\r\n\r\n",
            "GET /\x1b[2J HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ):
            client = self.client()
            client.write(request.encode())
            client.read()
        told = [formatEvent(event) for event in events if event["log_level"] >= LogLevel.info]
        self.assertEqual(len(told), 2)  # the refused origin, twice; what is no handshake at all is not worth a line
        self.assertNotIn("\x1b", "".join(told))
        self.assertNotIn("CANARY", "".join(formatEvent(event) for event in events))

    def test_a_handshake_up_to_its_size_and_no_further(self) -> None:
        bare = len(
            b"GET / HTTP/1.1\r\nHost: relay.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX: \r\n\r\n"
        )
        self.client().open("X: " + "x" * (16384 - bare))
        client = self.client()
        answer = client.shake("X: " + "x" * (16384 - bare + 1))
        self.assertTrue(answer.startswith(b"HTTP/1.1 431 "), answer)
        self.assertTrue(client.transport.disconnecting)

    def test_no_handshake_size_is_no_limit(self) -> None:
        self.factory = self.make_factory(handshake_size=0)
        self.client().open("X: " + "x" * 20_000)

    def test_an_endless_handshake_is_cut_at_its_size(self) -> None:
        client = self.client()
        client.write(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(90):
            client.write(b"x" * 200)
        self.assertTrue(client.read().startswith(b"HTTP/1.1 431 "))
        self.assertLess(len(client.protocol.data), 16385)

    def test_frames_behind_a_handshake_count_not_towards_its_size(self) -> None:
        client = self.client()
        handshake = (
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        client.write(handshake + frame(b'{"type":"auth-request","SESSID":"alice"}') + frame(b"x" * 20000))
        self.assertTrue(client.read().startswith(b"HTTP/1.1 101 "))
        self.assertEqual(len(self.directory), 1)

    def test_a_handshake_has_its_time(self) -> None:
        client = self.client()
        client.write(b"GET / HTTP/1.1\r\n")
        self.pass_time(4.5)
        self.assertFalse(client.transport.aborted)
        client.write(b"Host: h\r\n")
        self.pass_time(1)
        self.assertTrue(client.transport.aborted)

    def test_a_refused_client_that_does_not_leave_is_cut(self) -> None:
        client = self.client()
        client.shake("Sec-WebSocket-Protocol: nonsense")
        self.pass_time(1.5)
        self.assertFalse(client.transport.aborted)
        self.pass_time(1)
        self.assertTrue(client.transport.aborted)

    def test_nothing_is_left_of_connections_that_have_gone(self) -> None:
        for step in ("accepted", "refused", "open", "member"):
            client = self.client()
            if step == "refused":
                client.shake("Sec-WebSocket-Protocol: nonsense")
            elif step != "accepted":
                client.open()
            if step == "member":
                client.log_in()
            client.lost()
        factory = self.factory
        kept = [
            factory.registry.handshake_deadlines,
            factory.registry.login_deadlines,
            factory.registry.message_deadlines,
            factory.registry.closing_deadlines,
        ]
        self.assertEqual([len(deadlines) for deadlines in kept], [0, 0, 0, 0])
        self.assertEqual(
            (
                factory.registry.connections,
                len(self.directory),
                len(factory.logins.index),
                len(factory.logins.rechecks),
            ),
            (set(), 0, 0, 0),
        )


class Cookies(WebSocketTestCase):
    """The session cookie of the handshake."""

    def setUp(self) -> None:
        super().setUp()
        self.factory = self.make_factory(session_cookie="sid", origin=("https://example.com",))

    def answer(self, *headers: str) -> Any:
        """What an auth-request without SESSID is answered after such a handshake."""
        client = self.client().open(*headers)
        client.say(type="auth-request")
        (answer,) = client.hear()
        return answer

    def test_the_cookie_logs_in(self) -> None:
        for cookie in ("sid=alice", "a=b; sid=alice", "a=b;sid=alice;c=d", "Sid=x; sid=alice; sid=bo"):
            self.assertEqual(self.answer("Origin: https://example.com", f"Cookie: {cookie}"), YES, cookie)

    def test_a_cookie_with_a_byte_that_splits_lines_elsewhere(self) -> None:
        # U+00C5 is C3 85 in UTF-8, and 85 is a line's end to str.splitlines.
        cookie = "city=\u00c5bo; sid=alice"
        self.assertEqual(self.answer("Origin: https://example.com", f"Cookie: {cookie}"), YES)

    def test_a_cookie_is_passed_on_as_the_browser_sent_it(self) -> None:
        self.factory = self.make_factory(
            KnownSessions({"été": 1}), session_cookie="sid", origin=("https://example.com",)
        )
        self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=été"), YES)
        self.assertEqual(self.answer("Origin: https://example.com", "Cookie: a=b", "Cookie: sid=été"), YES)

    def test_other_cookies_in_any_encoding_lock_nobody_out(self) -> None:
        page, session = "Origin: https://example.com", "sid=alice"
        bytes_of = [bytes([byte]).decode("ascii", "surrogateescape") for byte in range(1, 256) if byte not in b"\r\n;"]
        # Each as if it began a header that there must be once, and with its own line in between.
        others = [f"city={one}bo" for one in bytes_of] + [f"city={one}Host: evil" for one in bytes_of]
        others += [f"city={one}Origin:x{one}Sec-WebSocket-Key:1" for one in bytes_of]
        for other in others:
            for headers in (
                (f"Cookie: {other}; {session}",),
                (f"Cookie: {session}; {other}",),
                (f"Cookie: {other}", f"Cookie: {session}"),
                (f"Cookie: {session}", f"cookie:{other}"),
            ):
                self.assertEqual(self.answer(page, *headers), YES, headers)

    def test_other_headers_in_any_encoding_lock_nobody_out(self) -> None:
        for name in ("User-Agent", "X-Forwarded-For", "Referer", "Accept-Language", "X-Name"):
            for ending in (*"\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\udc85"):
                value = f"Zo{ending}Host: evil{ending}Upgrade: h2c{ending}Cookie: sid=bo"
                self.assertEqual(
                    self.answer("Origin: https://example.com", f"{name}: {value}", "Cookie: sid=alice"), YES
                )

    def test_a_line_that_goes_on_or_has_no_name_is_no_header(self) -> None:
        for line in (" Host: evil", "\tHost: evil", " Host : evil", "Sec-WebSocket-Key\xa0: 1", ": evil", "evil", " "):
            self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=alice", f"X: 1\r\n{line}"), YES)

    def test_a_line_with_a_line_break_of_its_own_is_refused(self) -> None:
        for broken in ("\r", "\n", "\0", "\nOrigin: https://example.com", "\rCookie: sid=alice"):
            answer = self.client().shake(f"X: a{broken}")
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
            self.assertIn(b"contains a line break or a NUL", answer)

    def test_a_name_with_a_blank_after_it_is_refused(self) -> None:
        for line in ("Origin : https://example.com", "X\t: 1", "X  : 1"):
            answer = self.client().shake(line)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)

    def test_a_target_that_is_not_encoded_is_read_as_if_it_were(self) -> None:
        # websocket-client sends its URL so.
        for target in ("/chat?name=Åbo", "/ch\u0085at", "/?a=\udc85\udca0", "/\x0b\x1c"):
            client = self.client()
            request = handshake_of(f"GET {target} HTTP/1.1")
            client.write(request)
            self.assertTrue(client.read().startswith(b"HTTP/1.1 101 "), target)
        for line in (
            "GET / HTTP/1.1\x85Origin: https://x",
            "GET /\x85Origin: https://x HTTP/1.1",
            "GET\xa0/\xa0HTTP/1.1",
        ):
            client = self.client()
            client.write(handshake_of(line.encode("latin-1").decode("ascii", "surrogateescape")))
            self.assertTrue(client.read().startswith(b"HTTP/1.1 400 "), line)

    def test_the_bytes_of_the_cookie_are_the_session_id(self) -> None:
        sessids = []

        class Noting(KnownSessions):
            def authenticate(self, sessid: str) -> Deferred[Verdict]:
                sessids.append(sessid)
                return super().authenticate(sessid)

        self.factory = self.make_factory(
            Noting({}), session_cookie="sid", origin=("https://example.com",), auth_url="http://site.example/session"
        )
        values = [
            b"\xe5",
            b"a\xc3\x85b",
            b"\xc3\xa0",
            b"\xa0\xe2\x80\x83",
            b'"quoted"',
            b"a=b==",
            b"%C3%85",
            b"\x85\x1c\x0b",
        ]
        for value in values:
            self.answer("Origin: https://example.com", f"Cookie: sid= {value.decode('utf-8', 'surrogateescape')} ; a=b")
        self.assertEqual([sessid.encode("utf-8", "surrogateescape") for sessid in sessids], [b" " + v for v in values])

    def test_bytes_that_cannot_be_posted_are_no_session(self) -> None:
        denied = {"type": "auth-response", "response": False}
        for options in ({"auth_url": "http://site.example/session", "auth_format": "json"}, {}):
            known = KnownSessions({"\udce5": 1})
            self.factory = self.make_factory(known, session_cookie="sid", origin=("https://example.com",), **options)
            self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=\udce5"), denied)

    def test_of_two_cookies_of_the_name_the_first_counts(self) -> None:
        for headers in (
            ("Cookie: sid=alice; sid=bo",),
            ("Cookie: a=b; sid=alice", "Cookie: sid=bo"),
            ("Cookie: sid=; sid=alice",),
        ):
            self.assertEqual(self.answer("Origin: https://example.com", *headers), YES)

    def test_a_cookie_longer_than_a_sessid_is_none(self) -> None:
        known = KnownSessions({"x" * 4096: 1, "x" * 4097: 2})
        self.factory = self.make_factory(known, session_cookie="sid", origin=("https://example.com",))
        self.assertEqual(self.answer("Origin: https://example.com", f"Cookie: sid={'x' * 4096}"), YES)
        self.assertNotEqual(self.answer("Origin: https://example.com", f"Cookie: sid={'x' * 4097}"), YES)

    def test_without_the_cookie_it_is_a_denial(self) -> None:
        for headers in (
            (),
            ("Cookie: other=alice",),
            ("Cookie: sid=",),
            (f"Cookie: sid={'x' * 4097}",),
            ("Cookie: xsid=alice",),
        ):
            self.assertEqual(
                self.answer("Origin: https://example.com", *headers), {"type": "auth-response", "response": False}
            )

    def test_a_handshake_without_origin_has_no_cookie(self) -> None:
        answer = self.answer("Cookie: sid=alice")
        self.assertEqual((answer["type"], answer["reason"]), ("error", "invalid-auth-request"))

    def test_sessid_in_the_message_wins(self) -> None:
        client = self.client().open("Origin: https://example.com", "Cookie: sid=bo")
        client.log_in("alice")
        self.assertEqual(len(self.directory.connections_of("1")), 1)

    def test_not_configured_no_cookie_is_read(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=alice")["type"], "error")


class Messages(WebSocketTestCase):
    """Whole messages out of frames, and the limits on them."""

    def member(self, sessid: str = "alice") -> Client:
        """A logged-in client."""
        return self.client().open().log_in(sessid)

    def test_from_one_client_to_another(self) -> None:
        alice, bo = self.member(), self.member("bo")
        alice.send(2, "hej", id="x")
        self.clock.advance(0)
        delivered = {"type": "message", "message": {"timeStamp": 1, "fromuID": 1, "touID": 2, "content": "hej"}}
        self.assertEqual(bo.hear(), [delivered])
        self.assertEqual(alice.hear(), [{"type": "send-request-response", "response": {"id": "x", "value": True}}])

    def test_a_message_may_grow_on_its_way(self) -> None:
        # The bound on what is received is none on what is sent: fromuID is
        # added, and control characters are escaped in six bytes each.
        alice, bo = self.member(), self.member("bo")
        content = "\x01" * 10_900
        alice.send(2, content)
        self.clock.advance(0)
        self.assertEqual(bo.hear()[0]["message"]["content"], content)
        self.assertEqual(alice.hear()[0]["response"]["value"], True)

    def test_byte_by_byte(self) -> None:
        client = self.client().open()
        for byte in frame(b'{"type":"auth-request","SESSID":"alice"}'):
            client.write(bytes([byte]))
        self.assertEqual(client.hear(), [YES])

    def test_in_fragments(self) -> None:
        client = self.client().open()
        client.write(frame(b'{"type":"auth-', fin=False) + frame(b"p", PING))
        client.write(frame(b'request","SESSID":', CONTINUATION, fin=False) + frame(b'"alice"}', CONTINUATION))
        self.assertEqual(client.hear(), [(PONG, b"p"), YES])

    def test_a_message_up_to_its_size_and_no_further(self) -> None:
        client = self.client().open()
        client.write(frame(b" " * 65536))
        (error,) = client.hear()
        self.assertEqual(error["reason"], "invalid-json")
        client.write(frame(b" " * 65537)[:20])
        self.assertEqual(client.hear()[0][0], 1009)

    def test_fragments_add_up_to_the_size(self) -> None:
        client = self.client().open()
        client.write(frame(b" " * 40000, fin=False))
        self.assertEqual(client.hear(), [])
        client.write(frame(b" " * 25537, CONTINUATION))
        self.assertEqual(client.hear()[0][0], 1009)

    def test_as_many_frames_as_may_be_and_no_more(self) -> None:
        client = self.client().open()
        parts = [frame(b"", CONTINUATION, fin=False) for _ in range(62)]
        client.write(frame(b"{", fin=False) + b"".join(parts) + frame(b"}", CONTINUATION))
        self.assertEqual([message["reason"] for message in client.hear()], ["unknown-type"])
        client = self.client().open()
        client.write(frame(b"{", fin=False) + b"".join(parts) + frame(b"", CONTINUATION, fin=False))
        self.assertEqual(client.hear(), [])
        client.write(frame(b"}", CONTINUATION))
        self.assertEqual(client.hear(), [(1002, "a message in more than 64 frames")])

    def test_a_message_has_its_time(self) -> None:
        client = self.member()
        client.write(frame(b"{", fin=False))
        self.pass_time(9.5)
        self.assertEqual(client.hear(), [])
        self.pass_time(1)
        self.assertEqual(client.hear(), [(1002, "a message took too long")])

    def test_a_message_that_ended_has_no_deadline(self) -> None:
        client = self.member()
        client.write(frame(b"{", fin=False) + frame(b"}", CONTINUATION))
        client.hear()
        self.pass_time(30)
        self.assertEqual(client.hear(), [])

    def test_binary_messages_close(self) -> None:
        client = self.member()
        client.write(frame(b"{}", BINARY))
        self.assertEqual(client.hear()[0][0], 1003)

    def test_protocol_errors_close(self) -> None:
        for bad in (
            frame(b"{}", masked=False),
            frame(b"{}", rsv=1),
            frame(b"{}", opcode=3),
            frame(b"{}", CONTINUATION),
            frame(b"", PING, fin=False),
        ):
            client = self.member()
            client.write(bad)
            self.assertEqual(client.hear()[0][0], 1002, bad)

    def test_text_that_is_not_utf8_closes(self) -> None:
        skipped = b'{"type":"auth-request","x":"\xf5\x80\x80\x80"}'  # where the JSON decoder does not look
        for bad in (b"\xff", b'{"type":"auth-request","SESSID":"\xed\xa0\x80"}', b"\xc3", skipped):
            client = self.member()
            client.write(frame(bad))
            self.assertEqual(client.hear()[0][0], 1007, bad)

    def test_nothing_counts_that_comes_after_the_close(self) -> None:
        client, bo = self.member(), self.member("bo")
        client.write(frame(b"x", BINARY))
        client.hear()
        client.send(2)
        self.clock.advance(0)
        self.assertEqual((client.hear(), bo.hear(), self.log.rows), ([], [], []))

    def test_ten_unusable_frames(self) -> None:
        client = self.client().open()
        for _ in range(9):
            client.write(frame(b"x"))
        self.assertEqual(len(client.hear()), 9)
        client.write(frame(b"x") * 3)
        heard = client.hear()
        self.assertEqual(heard[1:], [(4502, "ten frames could not be used")])

    def test_a_bad_frame_does_not_raise_into_autobahn(self) -> None:
        client = self.member()
        client.write(frame(b"[" * 60000))
        self.assertEqual(client.hear()[0]["reason"], "invalid-json")


class Leaving(WebSocketTestCase):
    """However a connection ends, nobody is delivered to it afterwards."""

    def test_a_closing_client_is_gone_at_once(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(struct.pack("!H", 1000), CLOSE))
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(client.hear()[0][0], 1000)
        self.assertTrue(client.transport.disconnecting)

    def test_a_failed_client_is_gone_at_once(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"x", BINARY))
        self.assertEqual(len(self.directory), 0)

    def test_a_lost_client_is_gone_at_once(self) -> None:
        client = self.client().open().log_in()
        client.lost()
        self.assertEqual(len(self.directory), 0)

    def test_a_client_that_does_not_answer_the_close_is_cut(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"x", BINARY))
        self.pass_time(1.5)
        self.assertFalse(client.transport.aborted)
        self.pass_time(1)
        self.assertTrue(client.transport.aborted)

    def test_a_closed_client_has_its_time_to_leave(self) -> None:
        self.factory = self.make_factory(closing_timeout=7)
        closed, refused = self.client().open().log_in(), self.client()
        closed.write(frame(b"x", BINARY))
        refused.shake("Sec-WebSocket-Protocol: nonsense")
        self.pass_time(6.75)
        self.assertEqual([client.transport.aborted for client in (closed, refused)], [False, False])
        self.pass_time(0.5)
        self.assertEqual([client.transport.aborted for client in (closed, refused)], [True, True])

    def test_no_time_to_leave_is_a_quarter_of_a_second(self) -> None:
        for seconds in (0, 0.01):
            self.factory = self.make_factory(closing_timeout=seconds)
            client = self.client().open().log_in()
            client.write(frame(b"x", BINARY))
            self.assertEqual(client.hear()[0][0], 1003)
            self.pass_time(0.125)
            self.assertFalse(client.transport.aborted)
            self.pass_time(0.5)
            self.assertTrue(client.transport.aborted)

    def test_a_client_that_answers_the_close_is_let_go(self) -> None:
        client = self.client().open()
        client.write(frame(b"x", BINARY))
        client.write(frame(struct.pack("!H", 1003), CLOSE))
        self.assertTrue(client.transport.aborted or client.transport.disconnecting)

    def test_stopping_closes_with_4000(self) -> None:
        member, visitor, accepted = self.client().open().log_in(), self.client().open(), self.client()
        closed = self.factory.registry.close_all()
        self.assertEqual(member.hear(), [(4000, "the relay is stopping")])
        self.assertEqual(visitor.hear(), [(4000, "the relay is stopping")])
        self.assertTrue(accepted.transport.aborted)
        self.assertNoResult(closed)
        for client in (member, visitor, accepted):
            client.lost()
        self.successResultOf(closed)

    def test_trouble_with_one_keeps_nobody_else_from_being_closed(self) -> None:
        first, second = (self.client().open().log_in(name) for name in ("alice", "bo"))
        troubled, other = (
            (first, second) if next(iter(self.factory.registry.connections)) is first.protocol else (second, first)
        )
        with patch.object(troubled.protocol, "close", side_effect=RuntimeError("trouble")):
            self.factory.registry.close_all()
        self.assertEqual(other.hear(), [(4000, "the relay is stopping")])
        with patch.object(troubled.protocol, "abort", side_effect=RuntimeError("trouble")):
            self.factory.registry.abort_all()
        self.assertTrue(other.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_who_comes_when_it_has_stopped_is_cut(self) -> None:
        self.factory.registry.abort_all()
        client = self.client()
        self.assertTrue(client.transport.aborted)
        client.lost()
        self.factory.start_sweeping()
        self.client().open().log_in()

    def test_what_comes_while_stopping_is_not_taken(self) -> None:
        client = self.client().open().log_in()
        told = Deferred.fromCoroutine(self.factory.registry.close_by_turns())
        self.successResultOf(told)
        client.send(1)
        self.clock.advance(0)
        self.assertEqual((client.hear(), self.log.rows), ([(4000, "the relay is stopping")], []))


class Ends(WebSocketTestCase):
    """What the operator is told when a connection has ended."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def told(self, level: LogLevel = LogLevel.info) -> list[str]:
        """The lines of a level since the last look."""
        lines = [formatEvent(event) for event in self.events if event["log_level"] is level]
        self.events.clear()
        return lines

    def test_who_closed_and_with_which_code(self) -> None:
        for payload, code in ((struct.pack("!H", 1001) + b"my words", 1001), (b"", 1005)):
            client = self.client().open().log_in()
            self.pass_time(1.5)
            client.write(frame(payload, CLOSE))
            client.lost()
            self.assertEqual(
                self.told(),
                [f"connection of 1 from 192.0.2.1:4321 ended by the client with {code} after 1.5 s: it closed"],
            )

    def test_a_lost_connection(self) -> None:
        self.client().open().log_in("bo").lost()
        self.client().open().log_in("bo").lost(ConnectionLost())
        self.assertEqual(
            self.told(),
            [
                "connection of 2 from 192.0.2.1:4321 ended by the client with 1006 after 0.0 s: "
                "closed without a close frame",
                "connection of 2 from 192.0.2.1:4321 ended by the network with 1006 after 0.0 s: reset by peer",
            ],
        )

    def test_why_the_relay_closed(self) -> None:
        binary = self.client().open().log_in()
        binary.write(frame(b"x", BINARY))
        crooked = self.client().open().log_in()
        crooked.write(frame(b"x", rsv=1))
        stopped = self.client().open().log_in()
        self.factory.registry.close_all()
        for client in (binary, crooked, stopped):
            client.lost()
        binary_line, crooked_line, stopped_line = self.told()
        self.assertIn("ended by the relay with 1003 after 0.0 s: binary messages are not accepted", binary_line)
        self.assertIn("ended by the relay with 1002 after 0.0 s: ", crooked_line)
        self.assertIn("ended by the relay with 4000 after 0.0 s: the relay is stopping", stopped_line)

    def test_who_never_logged_in_is_not_worth_a_line(self) -> None:
        visitor = self.client().open()
        visitor.say(type="auth-request", SESSID="CANARY")
        for client in (visitor, self.client()):
            client.lost()
        debug = [event for event in self.events if event["log_namespace"].startswith("chatrelay.")]
        self.assertEqual([event["log_level"] for event in debug], [LogLevel.debug] * 2)
        self.assertNotIn("CANARY", str(debug))

    def test_many_ends_at_once_are_counted(self) -> None:
        clients = [self.client().open().log_in() for _ in range(30)]
        for client in clients:
            client.lost()
        self.assertEqual(len(self.told()), 25)
        self.pass_time(0.25)
        self.assertEqual(self.told(), ["too many log messages at once: 5 more connections ended"])
        self.pass_time(0.25)
        self.assertEqual(self.told(), [])
        self.client().open().log_in().lost()
        self.assertEqual(len(self.told()), 1)

    def test_for_a_program_that_reads_them_each_is_told(self) -> None:
        self.factory = self.make_factory(log_format="json")
        clients = [self.client().open().log_in() for _ in range(30)]
        for client in clients:
            client.lost()
        self.assertEqual(len(self.told()), 30)

    def test_so_are_refused_handshakes(self) -> None:
        for _ in range(26):
            self.client().shake("Sec-WebSocket-Protocol: nonsense")
        self.assertEqual(len(self.told()), 25)
        self.factory.stop_sweeping()
        self.assertEqual(self.told(), ["too many log messages at once: 1 more handshakes refused"])


class Logins(WebSocketTestCase):
    """The webserver's verdict comes later than other things happen."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.webserver = HeldAuthenticator()
        self.factory = self.make_factory(self.webserver)

    def test_leaving_while_the_webserver_thinks_gives_the_question_up(self) -> None:
        client = self.client().open()
        client.say(type="auth-request", SESSID="alice")
        client.lost()
        self.assertEqual(self.webserver.cancelled, ["alice"])
        self.assertEqual(len(self.directory), 0)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_login_has_its_time(self) -> None:
        client = self.client().open()
        self.pass_time(9.5)
        self.assertEqual(client.hear(), [])
        self.pass_time(1)
        self.assertEqual(client.hear(), [(4001, "not logged in in time")])

    def test_the_time_is_not_prolonged_by_asking(self) -> None:
        client = self.client().open()
        self.pass_time(9.5)
        client.say(type="auth-request", SESSID="slow")
        self.pass_time(1)
        answer, close = client.hear()
        self.assertEqual(answer["reason"], "webserver-unavailable")
        self.assertEqual(close[0], 4001)
        self.assertEqual(self.webserver.cancelled, ["slow"])

    def test_who_is_logged_in_stays(self) -> None:
        client = self.client().open()
        client.say(type="auth-request", SESSID="alice")
        self.webserver.answer(LoggedIn(1))
        self.pass_time(60)
        self.assertEqual(client.hear(), [YES])

    def test_an_authenticator_that_fails_is_reported_and_nobody_is_let_in(self) -> None:
        client = self.client().open()
        client.say(type="auth-request", SESSID="alice")
        self.webserver.asked.pop()[1].errback(KeyError("CANARY"))
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")
        (event,) = [event for event in self.events if event.get("log_level") is LogLevel.critical]
        self.assertIn("KeyError", formatEvent(event))
        self.assertNotIn("CANARY", str(event))

    def test_an_authenticator_that_raises_is_no_different(self) -> None:
        self.patch(self.webserver, "authenticate", {}.__getitem__)
        client = self.client().open()
        client.say(type="auth-request", SESSID="CANARY")
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")
        self.assertNotIn("CANARY", str(self.events))

    def test_trouble_is_answered(self) -> None:
        client = self.client().open()
        client.say(type="auth-request", SESSID="alice")
        self.webserver.answer(Unavailable("down"))
        self.assertEqual(client.hear()[0]["reason"], "webserver-unavailable")


class DeniedLogins(WebSocketTestCase):
    """logins-per-minute; tests/unit/test_attempts.py has it in every detail."""

    def setUp(self) -> None:
        super().setUp()
        self.held = HeldAuthenticator()
        self.factory = self.make_factory(self.held)

    def log_in(self, sessid: str, verdict: Any, client: Client | None = None) -> Any:
        """What a client is answered, and whether anybody was asked."""
        client = client or self.client().open()
        client.say(type="auth-request", SESSID=sessid)
        was_asked = bool(self.held.asked)
        if was_asked:
            self.held.answer(verdict)
        return client.hear()[0]["response"], was_asked

    def test_20_denials_of_an_address_and_no_further(self) -> None:
        for number in range(20):
            self.assertEqual(self.log_in(f"guess {number}", Denied()), (False, True))
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (False, False))
        self.clock.advance(3)
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (True, True))
        self.assertEqual(self.log_in("guess", Denied()), (False, True))
        self.assertEqual(self.log_in("guess", Denied()), (False, False))

    def test_one_that_is_not_asked_about_is_a_denial_of_the_connection(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1)
        client = self.client().open()
        for was_asked in (True, False):
            self.assertEqual(self.log_in("guess", Denied(), client), (False, was_asked))
        client.say(type="auth-request", SESSID="guess")
        self.assertEqual(
            client.hear(), [{"type": "auth-response", "response": False}, (4500, "login refused three times")]
        )

    def test_zero_is_no_limit(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=0)
        for number in range(100):
            self.assertEqual(self.log_in(f"guess {number}", Denied()), (False, True))

    def test_who_has_no_cookie_uses_nothing_up(self) -> None:
        self.factory = self.make_factory(
            self.held, logins_per_minute=1, session_cookie="sid", origin=("https://example.com",)
        )
        for _ in range(30):
            client = self.client().open("Origin: https://example.com")
            client.say(type="auth-request")
            self.assertEqual(client.hear(), [{"type": "auth-response", "response": False}])
        self.assertEqual(self.log_in("alice", LoggedIn(1)), (True, True))

    def test_who_is_in_stays_in_and_is_asked_about_again(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1, recheck_interval=10)
        alice = self.client().open()
        self.assertEqual(self.log_in("alice", LoggedIn(1), alice), (True, True))
        self.log_in("guess", Denied())
        self.assertEqual(self.log_in("guess", Denied()), (False, False))
        self.pass_time(13)
        ((sessid, _),) = self.held.asked
        self.assertEqual(sessid, "alice")
        self.held.answer(LoggedIn(1))
        self.assertEqual(alice.hear(), [])

    def test_the_operator_is_told_once(self) -> None:
        told = told_by(self)
        for number in range(100):
            self.log_in(f"guess {number}", Denied())
        lines = [line for line in told if "too many logins" in line]
        self.assertEqual(len(lines), 1)
        self.assertIn("too many logins from 192.0.2.1 were denied", lines[0])

    def test_who_leaves_while_waiting_for_others_of_the_address(self) -> None:
        self.factory = self.make_factory(self.held, logins_per_minute=1, login_timeout=10)
        first, second, third = (self.client().open() for _ in range(3))
        for client in (first, second, third):
            client.say(type="auth-request", SESSID="alice")
        self.assertEqual(len(self.held.asked), 1)
        second.lost()
        self.held.answer(LoggedIn(1))
        self.assertEqual((first.hear(), third.hear()), ([YES], []))
        self.pass_time(10.5)
        self.assertEqual(
            third.hear(),
            [
                {"type": "auth-response", "response": False, "reason": "webserver-unavailable"},
                (4001, "not logged in in time"),
            ],
        )
        self.assertEqual(len(self.factory.logins.throttle), 0)


class RememberedDenials(WebSocketTestCase):
    """A denial that is remembered, and whom it does not concern."""

    def setUp(self) -> None:
        self.held = HeldAuthenticator()
        self.denials = DenialCache(b"key", 5)
        super().setUp()
        self.factory = self.make_factory(self.held)

    def make_factory(self, authenticator: Any = None, **options: Any) -> ChatFactory:
        factory = super().make_factory(authenticator, logins_per_minute=0, **options)
        self.patch(factory.logins.throttle, "_recent", self.denials)
        return factory

    def ask(self, *headers: str, **keys: str) -> Client:
        """A client that asks to be logged in."""
        client = self.client().open(*headers)
        client.say(type="auth-request", **keys)
        return client

    def deny(self, sessid: str) -> None:
        """Have a session denied."""
        client = self.ask(SESSID=sessid)
        self.held.answer(Denied())
        client.hear()

    def test_it_is_denied_without_asking(self) -> None:
        self.deny("alice")
        self.assertEqual(self.ask(SESSID="alice").hear(), [{"type": "auth-response", "response": False}])
        self.pass_time(5)
        self.ask(SESSID="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_a_recheck_is_not_answered_by_it(self) -> None:
        self.factory = self.make_factory(self.held, recheck_interval=10)
        alice = self.ask(SESSID="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        # Out at the site for a moment, as another page learns; in again by the time of the re-check.
        self.pass_time(7.5)
        self.deny("alice")
        self.pass_time(4.75)
        self.assertEqual([sessid for sessid, _ in self.held.asked], ["alice"])
        self.held.answer(LoggedIn(1))
        self.assertEqual(alice.hear(), [])

    def test_a_denied_recheck_makes_none(self) -> None:
        self.factory = self.make_factory(self.held, recheck_interval=10)
        alice = self.ask(SESSID="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        self.pass_time(13)
        self.held.answer(Denied())
        self.assertEqual(alice.hear(), [(4501, "the session at the site has ended")])
        self.ask(SESSID="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_ending_a_session_from_outside_makes_none(self) -> None:
        alice = self.ask(SESSID="alice")
        self.held.answer(LoggedIn(1))
        alice.hear()
        self.assertEqual(self.factory.logins.index.end_session("alice"), 1)
        self.ask(SESSID="alice")
        self.assertEqual(len(self.held.asked), 1)

    def test_a_ticket_makes_none_and_a_cookie_makes_one(self) -> None:
        self.factory = self.make_factory(
            self.held, auth_tickets=True, session_cookie="sid", origin=("https://example.com",)
        )
        for _ in range(2):
            self.ask(SESSID="ticket")
        self.assertEqual(len(self.held.asked), 2)
        self.held.answer(Denied())
        self.held.answer(Denied())
        self.assertEqual(len(self.denials), 0)
        from_a_page = ("Origin: https://example.com", "Cookie: sid=cookie")
        self.ask(*from_a_page)
        self.held.answer(Denied())
        self.assertEqual(self.ask(*from_a_page).hear(), [{"type": "auth-response", "response": False}])
        self.assertEqual(self.held.asked, [])


class EndedFromOutside(WebSocketTestCase):
    """The operator or the site ends sessions."""

    CLOSED = (4505, "ended by the operator or the site")

    def test_by_user_and_by_sessid(self) -> None:
        alice, tab, bo = (self.client().open().log_in(name) for name in ("alice", "alice", "bo"))
        self.assertEqual(self.factory.logins.index.end_session("alice"), 2)
        self.assertEqual([client.hear() for client in (alice, tab, bo)], [[self.CLOSED], [self.CLOSED], []])
        self.assertEqual(self.factory.logins.index.end_user(2), 1)
        self.assertEqual(bo.hear(), [self.CLOSED])
        self.assertEqual((len(self.directory), len(self.factory.logins.index)), (0, 0))

    def test_nothing_is_delivered_or_taken_afterwards(self) -> None:
        alice, bo = (self.client().open().log_in(name) for name in ("alice", "bo"))
        self.factory.logins.index.end_user(1)
        alice.send(2)
        bo.send(1)
        self.clock.advance(0)
        self.assertEqual(alice.hear(), [self.CLOSED])
        self.assertEqual(bo.hear()[0]["response"]["reason"], "receiving-user-not-connected")
        self.assertEqual(self.log.rows, [])

    def test_one_that_does_not_answer_the_close_is_cut(self) -> None:
        client = self.client().open().log_in()
        self.factory.logins.index.end_user(1)
        self.pass_time(2.5)
        self.assertTrue(client.transport.aborted)

    def test_a_login_under_way(self) -> None:
        webserver = HeldAuthenticator()
        self.factory = self.make_factory(webserver)
        by_sessid, by_user, other = (self.client().open() for _ in range(3))
        by_sessid.say(type="auth-request", SESSID="a")
        by_user.say(type="auth-request", SESSID="b")
        other.say(type="auth-request", SESSID="c")
        self.assertEqual(self.factory.logins.index.end_session("a"), 1)
        self.assertEqual(webserver.cancelled, ["a"])
        self.assertEqual(by_sessid.hear(), [self.CLOSED])
        self.assertEqual(self.factory.logins.index.end_user(7), 0)
        webserver.asked.pop(0)
        webserver.answer(LoggedIn(7))  # as the site saw it before
        webserver.answer(LoggedIn(8))
        self.assertEqual([by_user.hear(), other.hear()], [[self.CLOSED], [YES]])
        self.assertEqual((len(self.directory), len(self.factory.logins.index)), (1, 1))

    def test_by_the_sessid_it_last_logged_in_by(self) -> None:
        self.factory = self.make_factory(KnownSessions({"old": 1, "new": 1, "another": 2}))
        client = self.client().open().log_in("old").log_in("new")
        client.say(type="auth-request", SESSID="another")
        client.say(type="auth-request", SESSID="unknown")
        self.assertEqual([answer["response"] for answer in client.hear()], [False, False])
        self.assertEqual(
            [self.factory.logins.index.end_session(name) for name in ("old", "another", "unknown")], [0, 0, 0]
        )
        self.assertEqual(self.factory.logins.index.end_session("new"), 1)


class AskedAgain(WebSocketTestCase):
    """Whether those who are logged in still are."""

    GONE = (4501, "the session at the site has ended")

    def test_a_session_that_ends_at_the_site(self) -> None:
        known = KnownSessions({"alice": 1, "bo": 2})
        self.factory = self.make_factory(known)
        alice, tab, bo = (self.client().open().log_in(name) for name in ("alice", "alice", "bo"))
        known.users = {"bo": 2}
        self.pass_time(239)
        self.assertEqual([client.hear() for client in (alice, tab, bo)], [[], [], []])
        self.pass_time(122)
        self.assertEqual([client.hear() for client in (alice, tab, bo)], [[self.GONE], [self.GONE], []])
        self.assertEqual(
            (len(self.directory), len(self.factory.logins.index), len(self.factory.logins.rechecks)), (1, 1, 1)
        )

    def test_zero_is_never(self) -> None:
        known = KnownSessions({"alice": 1})
        self.factory = self.make_factory(known, recheck_interval=0)
        alice = self.client().open().log_in("alice")
        known.users = {}
        self.pass_time(1000)
        self.assertEqual(alice.hear(), [])

    def test_they_are_spread_as_was_said(self) -> None:
        for spread, chance, due in ((0.0, 0.0, 100), (50.0, 0.0, 50), (50.0, 1.0, 150)):
            self.chance = chance
            known = KnownSessions({"alice": 1})
            self.factory = self.make_factory(known, recheck_interval=100, recheck_spread=spread)
            alice = self.client().open().log_in("alice")
            known.users = {}
            self.pass_time(due - 1)
            self.assertEqual(alice.hear(), [])
            self.pass_time(2.5)
            self.assertEqual(alice.hear(), [self.GONE])

    def test_an_authenticator_that_fails_is_reported_and_people_stay(self) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        known = KnownSessions({"alice": 1})
        self.factory = self.make_factory(known, recheck_interval=300)
        alice = self.client().open().log_in("alice")
        self.patch(known, "authenticate", {"x": 1}.__getitem__)
        self.pass_time(361)
        self.assertEqual(alice.hear(), [])
        told = [formatEvent(event) for event in events if event.get("log_level") is LogLevel.critical]
        self.assertEqual(len(told), 1)
        self.assertIn("KeyError", told[0])
        self.assertNotIn("alice", str(events))

    def test_some_of_the_webservers_checks_are_left_to_logins(self) -> None:
        for checks, most in ((32, 8), (4, 1), (1, 1), (0, 8)):
            webserver = HeldAuthenticator()
            self.factory = self.make_factory(webserver, webserver_checks=checks)
            for number in range(20):
                self.client().open().say(type="auth-request", SESSID=str(number))
                webserver.answer(LoggedIn(number))
            self.pass_time(361)
            self.assertEqual(len(webserver.asked), most)


class Handles(WebSocketTestCase):
    """By what a session is asked about again, and found when it is to end."""

    def log_in(self, verdict: LoggedIn, *headers: str, **options: Any) -> Client:
        """A client that logged in by "sid", and is due to be asked about."""
        self.webserver = HeldAuthenticator()
        self.factory = self.make_factory(self.webserver, **options)
        client = self.client().open(*headers)
        client.say(type="auth-request", **({} if headers else {"SESSID": "sid"}))
        self.webserver.answer(verdict)
        self.assertEqual(client.hear(), [YES])
        self.pass_time(361)
        return client

    def asked(self) -> list[str]:
        """What the webserver is asked about."""
        return [sessid for sessid, _ in self.webserver.asked]

    def test_the_sessid_unless_the_site_names_another(self) -> None:
        self.log_in(LoggedIn(1))
        self.assertEqual(self.asked(), ["sid"])
        client = self.log_in(LoggedIn(1, session="handle"))
        self.assertEqual(self.asked(), ["handle"])
        self.webserver.answer(Denied())
        self.assertEqual(client.hear()[0][0], 4501)

    def test_a_ticket_is_not_asked_about_again(self) -> None:
        self.log_in(LoggedIn(1, expires_in=1), auth_tickets=True)
        self.assertEqual((self.asked(), len(self.factory.logins.rechecks)), ([], 0))
        self.log_in(LoggedIn(1, session="handle"), auth_tickets=True)
        self.assertEqual(self.asked(), ["handle"])

    def test_a_cookie_is_no_ticket(self) -> None:
        self.log_in(
            LoggedIn(1),
            "Origin: https://example.com",
            "Cookie: c=from-cookie",
            auth_tickets=True,
            session_cookie="c",
            origin=("https://example.com",),
        )
        self.assertEqual(self.asked(), ["from-cookie"])

    def test_only_what_comes_in_a_message_is_asked_about_as_a_ticket(self) -> None:
        tickets: list[str] = []

        class Both(HeldAuthenticator):
            def authenticate_ticket(self, sessid: str) -> Deferred[Verdict]:
                tickets.append(sessid)
                return self.authenticate(sessid)

        self.webserver = Both()
        self.factory = self.make_factory(
            self.webserver, auth_tickets=True, session_cookie="c", origin=("https://example.com",)
        )
        self.client().open("Origin: https://example.com", "Cookie: c=cookie").say(type="auth-request")
        self.client().open("Origin: https://example.com").say(type="auth-request", SESSID="ticket")
        self.webserver.answer(LoggedIn(1))
        self.webserver.answer(LoggedIn(2, session="handle"))
        self.pass_time(361)
        self.assertEqual(sorted(self.asked()), ["cookie", "handle"])
        self.assertEqual(tickets, ["ticket"])

    def test_by_which_name_a_session_ends(self) -> None:
        for tickets, name, ended in (
            (False, "sid", 1),
            (False, "handle", 1),
            (True, "sid", 0),
            (True, "handle", 1),
        ):
            client = self.log_in(LoggedIn(1, session="handle"), auth_tickets=tickets)
            self.assertEqual(self.factory.logins.index.end_session(name), ended, (tickets, name))
            self.assertEqual(len(client.hear()), ended)
            client.lost()
            self.assertEqual(len(self.factory.logins.index), 0)

    def test_a_session_that_ends_while_its_ticket_is_asked_about(self) -> None:
        self.webserver = HeldAuthenticator()
        self.factory = self.make_factory(self.webserver, auth_tickets=True)
        client = self.client().open()
        client.say(type="auth-request", SESSID="ticket")
        self.assertEqual(self.factory.logins.index.end_session("handle"), 0)
        self.webserver.answer(LoggedIn(1, session="handle"))
        self.assertEqual([code for code, _ in client.hear()], [4505])
        self.assertEqual(len(self.directory), 0)

    def test_a_session_that_ends_by_its_handle_while_its_sessid_or_cookie_is_asked_about(self) -> None:
        origin = "https://example.com"
        for by_cookie in (False, True):
            self.webserver = HeldAuthenticator()
            self.factory = self.make_factory(self.webserver, session_cookie="c", origin=(origin,))
            tabs = [self.client().open(f"Origin: {origin}", "Cookie: c=sid") for _ in range(2)]
            for tab in tabs:
                tab.say(type="auth-request", **({} if by_cookie else {"SESSID": "other"}))
            self.assertEqual(self.factory.logins.index.end_session("handle"), 0)
            for _ in tabs:
                self.webserver.answer(LoggedIn(1, session="handle"))
            self.assertEqual([[code for code, _ in tab.hear()] for tab in tabs], [[4505], [4505]])
            self.assertEqual((len(self.directory), len(self.factory.logins.index)), (0, 0))
            again = self.client().open()
            again.say(type="auth-request", SESSID="other")
            self.webserver.answer(LoggedIn(1, session="handle"))
            self.assertEqual(again.hear(), [YES])  # what the site says since then counts
            again.lost()

    def test_two_tickets_at_once_are_two_questions_whoever_answers(self) -> None:
        self.webserver = HeldAuthenticator()
        self.factory = self.make_factory(self.webserver, auth_tickets=True)
        clients = [self.client().open() for _ in range(2)]
        for client in clients:
            client.say(type="auth-request", SESSID="ticket")
        self.webserver.answer(LoggedIn(1))
        self.webserver.answer(Denied())
        self.assertEqual([client.hear()[0]["response"] for client in clients], [True, False])


class SlowReaders(WebSocketTestCase):
    """What a client may leave unread."""

    def test_up_to_the_budget_and_no_further(self) -> None:
        self.factory = self.make_factory(unread_size=1000)
        client = self.client().open().log_in()
        outgoing = client.protocol.outgoing
        payload = b"x" * 100
        self.assertTrue(outgoing.send(b"x" * 5000))  # reads fast enough: no budget needed
        outgoing.pauseProducing()
        for _ in range(10):
            outgoing.pauseProducing()  # Twisted repeats it
            self.assertTrue(outgoing.send(payload))
        self.assertFalse(outgoing.send(payload))
        self.assertEqual(frames(client.read())[-1][1][:2], struct.pack("!H", 4002))
        self.assertEqual(len(self.directory), 0)
        self.pass_time(2.5)
        self.assertTrue(client.transport.aborted)

    def test_pongs_count_too(self) -> None:
        self.factory = self.make_factory(unread_size=1000)
        client = self.client().open().log_in()
        client.write(frame(b"p" * 90, PING))
        self.assertEqual(client.hear(), [(PONG, b"p" * 90)])
        client.protocol.outgoing.pauseProducing()
        client.write(frame(b"p" * 90, PING) * 10)
        self.assertEqual(len(client.hear()), 10)
        client.write(frame(b"p" * 90, PING) * 10)
        self.assertEqual(client.hear()[0][0], 4002)

    def test_who_catches_up_starts_anew(self) -> None:
        self.factory = self.make_factory(unread_size=1000)
        outgoing = self.client().open().log_in().protocol.outgoing
        for _ in range(5):
            outgoing.pauseProducing()
            self.assertTrue(outgoing.send(b"x" * 900))
            outgoing.resumeProducing()

    def test_zero_is_no_limit(self) -> None:
        self.factory = self.make_factory(unread_size=0, unread_time=0)
        outgoing = self.client().open().log_in().protocol.outgoing
        outgoing.pauseProducing()
        for _ in range(20):
            self.assertTrue(outgoing.send(b"x" * 100_000))
            self.pass_time(1)
        self.assertEqual(len(self.directory), 1)

    def test_who_is_behind_has_so_much_time_to_take_it_all(self) -> None:
        clients = [self.client().open().log_in(sessid) for sessid in ("alice", "bo")]
        for client in clients:
            client.protocol.outgoing.pauseProducing()
        self.pass_time(9.875)
        clients[0].protocol.outgoing.resumeProducing()
        self.pass_time(0.375)
        self.assertEqual(
            [client.hear() for client in clients],
            [[], [(4002, "not reading fast enough")]],
        )
        self.assertEqual(len(self.directory), 1)
        self.pass_time(30)
        self.assertEqual([client.transport.aborted for client in clients], [False, True])

    def test_who_is_behind_again_has_their_time_again(self) -> None:
        client = self.client().open().log_in()
        for _ in range(4):
            client.protocol.outgoing.pauseProducing()
            self.pass_time(9)
            client.protocol.outgoing.resumeProducing()
        self.assertEqual(client.hear(), [])

    def test_who_leaves_while_behind_is_forgotten(self) -> None:
        for leave in (Client.lost, lambda client: client.protocol.close(codes.STOPPING)):
            client = self.client().open().log_in()
            client.protocol.outgoing.pauseProducing()
            self.assertEqual(len(self.factory.registry.slow_readers), 1)
            leave(client)
            client.protocol.outgoing.pauseProducing()
            self.assertEqual(len(self.factory.registry.slow_readers), 0)


class Pings(WebSocketTestCase):
    """Clients are pinged, and who gives no sign of life is closed."""

    def setUp(self) -> None:
        super().setUp()
        self.factory = self.make_factory(ping_interval=20, ping_timeout=15)

    def pinged(self) -> Client:
        """A client who has just been pinged."""
        client = self.client().open().log_in()
        while not (heard := client.hear()):
            self.pass_time(0.125)
        self.assertEqual(heard, [(PING, b"")])
        return client

    def test_who_answers_stays_and_is_pinged_again(self) -> None:
        client = self.client().open().log_in()
        heard = []
        for _ in range(800):
            self.pass_time(0.125)
            for ping in client.hear():
                heard.append(ping)
                client.write(frame(b"", PONG))
        self.assertEqual(heard, [(PING, b"")] * 5)

    def test_who_does_not_is_closed(self) -> None:
        client = self.pinged()
        self.pass_time(14.875)
        self.assertEqual((client.hear(), len(self.directory)), ([], 1))
        self.pass_time(0.75)
        self.assertEqual((client.hear(), len(self.directory)), ([(4004, "no answer to pings")], 0))
        self.pass_time(2.5)
        self.assertTrue(client.transport.aborted)

    def test_any_sign_of_life_will_do(self) -> None:
        for sign in (frame(b"", PONG), frame(b"p", PING), frame(b"{}")):
            client = self.pinged()
            client.write(sign)
            client.hear()
            self.pass_time(18)
            self.assertNotIn(4004, [heard[0] for heard in client.hear() if isinstance(heard, tuple)])
            client.lost()

    def test_a_sign_from_before_the_ping_is_none(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"", PONG))
        self.pass_time(36)
        self.assertEqual(client.hear(), [(PING, b""), (4004, "no answer to pings")])

    def test_what_came_while_the_relay_was_held_up_counts(self) -> None:
        client = self.pinged()
        self.clock.advance(100)  # the first sweep comes before anything is read
        self.assertEqual(client.hear(), [])
        client.write(frame(b"", PONG))
        self.pass_time(1)
        self.assertEqual(len(self.directory), 1)

    def test_they_are_found_within_40_seconds_with_the_defaults(self) -> None:
        for chance in (0.0, 0.3, 0.9999):
            self.clock = Clock()
            self.chance = chance
            self.factory = self.make_factory(ping_interval=Config().ping_interval)
            client = self.client().open().log_in()
            while not client.transport.aborted:
                self.pass_time(0.125)
                self.assertLess(self.clock.seconds(), 40)

    def test_pings_are_spread_over_the_interval(self) -> None:
        chances = iter([number / 100 for number in range(100)])
        factory = ChatFactory(
            Config(ping_interval=20, login_timeout=0),
            self.factory.relay,
            self.directory,
            KnownSessions({}),
            self.clock,
            chance=lambda: next(chances),
        )
        clients = [Client(factory).open() for _ in range(100)]
        pinged = []
        for _ in range(82):
            factory.sweep.run()
            pinged.append(sum(client.hear() == [(PING, b"")] for client in clients))
            self.clock.advance(0.25)
        self.assertEqual(sum(pinged), 100)
        self.assertLessEqual(max(pinged), 2)

    def test_who_is_behind_is_left_to_their_unread_time(self) -> None:
        client = self.client().open().log_in()
        client.protocol.outgoing.pauseProducing()
        self.factory.registry.slow_readers.caught_up(client.protocol.outgoing)  # that one's time is another test's
        self.pass_time(60)
        self.assertEqual(client.hear(), [])
        client.protocol.outgoing.resumeProducing()
        self.pass_time(20.25)
        self.assertEqual(client.hear(), [(PING, b"")])

    def test_a_defect_in_one_look_at_the_deadlines_does_not_end_them(self) -> None:
        broken = self.patch(self.factory.logins.throttle, "sweep", lambda: 1 / 0)
        self.pass_time(1)
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        broken.restore()
        client = self.pinged()
        self.pass_time(16)
        self.assertEqual(client.hear(), [(4004, "no answer to pings")])

    def test_who_is_behind_when_the_time_is_over_and_has_gone_is_found_later(self) -> None:
        client = self.pinged()
        self.pass_time(10)
        client.protocol.outgoing.pauseProducing()
        self.pass_time(8)
        client.protocol.outgoing.resumeProducing()  # the kernel took it all; the client reads nothing
        self.pass_time(15)
        self.assertEqual(client.hear(), [(4004, "no answer to pings")])

    def test_where_that_has_no_limit_pings_count_towards_the_budget(self) -> None:
        self.factory = self.make_factory(
            ping_interval=1, ping_timeout=0, unread_time=0, unread_size=60, login_timeout=0
        )
        client = self.client().open()
        client.protocol.outgoing.pauseProducing()
        self.pass_time(10)
        heard = client.hear()
        self.assertEqual(heard[:-1], [(PING, b"")] * 6)
        self.assertEqual(heard[-1], (4002, "not reading fast enough"))

    def test_the_system_is_told_of_both_times_together(self) -> None:
        told: list[float] = []
        self.patch(outgoing.Outbox, "give_up_after", lambda _, seconds: told.append(seconds))
        for interval, timeout in ((20, 15), (0, 15), (20, 0)):
            self.factory = self.make_factory(ping_interval=interval, ping_timeout=timeout)
            self.client()
        self.assertEqual(told, [35])

    def test_only_open_connections_are_pinged(self) -> None:
        self.factory = self.make_factory(ping_interval=0.25, handshake_timeout=0)
        shaking = self.client()
        closing = self.client().open()
        closing.protocol.close(codes.STOPPING)
        closing.read()
        gone = self.client().open()
        gone.lost()
        self.pass_time(1)
        self.assertEqual((shaking.read(), closing.read(), gone.read()), (b"", b"", b""))
        self.assertEqual(len(self.factory.registry.pings), 0)

    def test_who_is_closed_by_the_same_look_at_the_deadlines_is_not_pinged(self) -> None:
        self.factory = self.make_factory(ping_interval=0.25, ping_timeout=0, login_timeout=1)
        client = self.client().open()
        self.pass_time(1.5)
        heard = client.hear()
        self.assertIn((PING, b""), heard)
        self.assertEqual(heard[-1], (4001, "not logged in in time"))

    def test_a_ping_comes_after_what_was_sent_before_it(self) -> None:
        client = self.client().open().log_in()
        client.protocol.outgoing.send(b'"before"')
        client.protocol.ping()
        client.protocol.outgoing.send(b'"after"')
        self.assertEqual(client.hear(), ["before", (PING, b""), "after"])

    def test_zero_is_never(self) -> None:
        for options in ({"ping_interval": 0}, {"ping_interval": 20, "ping_timeout": 0}):
            self.factory = self.make_factory(**options)
            client = self.client().open().log_in()
            self.pass_time(100)
            heard = client.hear()
            self.assertEqual(heard, [(PING, b"")] * (5 if options["ping_interval"] else 0))
            client.lost()


class SendingTooFast(WebSocketTestCase):
    """What a client may send, and that one who goes on is not read for ever."""

    def outcomes(self, client: Client) -> list[Any]:
        """What the answers were: "sent", the reason why not, or the close code."""
        self.clock.advance(0)
        told: list[Any] = []
        for heard in client.hear():
            if isinstance(heard, tuple):
                told.append(heard[0])
            elif heard["type"] == "send-request-response":
                told.append(heard["response"].get("reason", "sent"))
        return told

    def request(self, to: object = 1) -> bytes:
        """The frame of a message-send-request."""
        message = {"timeStamp": 1, "touID": to, "content": "hej"}
        return frame(json.dumps({"type": "message-send-request", "id": 1, "message": message}).encode())

    def test_the_30th_passes_the_31st_does_not_and_a_second_later_ten_more_do(self) -> None:
        client = self.client().open().log_in()
        client.write(self.request() * 31)
        self.assertEqual(sorted(self.outcomes(client)), ["rate-limited"] + ["sent"] * 30)
        self.pass_time(1)
        client.write(self.request() * 11)
        self.assertEqual(sorted(self.outcomes(client)), ["rate-limited"] + ["sent"] * 10)

    def test_the_options_are_heeded(self) -> None:
        self.factory = self.make_factory(messages_per_second=2, message_burst=3, new_recipients_per_minute=2)
        client = self.client().open().log_in()
        for number in range(4):
            client.write(self.request(f"nobody-{number}"))
        self.assertEqual(self.outcomes(client), ["receiving-user-not-connected"] * 2 + ["rate-limited"] * 2)
        self.pass_time(1)
        client.write(self.request() * 3)
        self.assertEqual(self.outcomes(client), ["rate-limited"] * 3)
        self.pass_time(60)
        client.write(self.request() * 4)
        self.assertEqual(sorted(self.outcomes(client)), ["rate-limited"] + ["sent"] * 3)

    def test_who_keeps_on_is_closed_and_not_delivered_from(self) -> None:
        client = self.client().open().log_in()
        client.write(self.request() * 1000)
        told = self.outcomes(client)
        self.assertEqual(told[-1], 4503)
        self.assertEqual(told.count("rate-limited"), 61)
        # The 30 are logged; who has sent them was not there any more to receive them.
        self.assertEqual(len(self.log.rows), 30)

    def test_who_answers_the_close_is_let_go_at_once(self) -> None:
        client = self.client().open().log_in()
        client.write(self.request() * 91)
        self.assertEqual(self.outcomes(client)[-1], 4503)
        client.write(frame(struct.pack("!H", 4503), CLOSE))
        self.assertTrue(client.transport.aborted or client.transport.disconnecting)

    def test_who_goes_on_after_any_close_is_read_no_more_and_cut(self) -> None:
        for piece in (self.request(), frame(b"p", PING), frame(b"", PONG), frame(b"")):
            client = self.client().open().log_in()
            client.write(frame(b"x", BINARY))
            self.assertEqual(client.hear()[0][0], 1003)
            client.write(piece * 20)
            self.assertEqual(client.transport.producerState, "producing")
            client.write(piece * 1000)
            self.assertEqual(client.transport.producerState, "paused")
            self.assertEqual(client.protocol.data, b"")
            client.write(piece)
            self.assertEqual((client.protocol.data, client.hear()), (b"", []))
            self.assertFalse(client.transport.aborted)
            self.pass_time(2.5)
            self.assertTrue(client.transport.aborted)

    def test_20_pings_and_pongs_at_once_and_ten_a_second(self) -> None:
        client = self.client().open().log_in()
        client.write((frame(b"p", PING) + frame(b"", PONG)) * 10)
        self.assertEqual(client.hear(), [(PONG, b"p")] * 10)
        self.pass_time(1)
        client.write(frame(b"p", PING) * 10)
        self.assertEqual(client.hear(), [(PONG, b"p")] * 10)
        client.write(frame(b"", PONG))
        self.assertEqual(client.hear(), [(1002, "more than 10 pings and pongs a second")])
        self.assertEqual(len(self.directory), 0)

    def test_a_close_frame_is_never_one_too_many(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"", PONG) * 20 + frame(struct.pack("!H", 1000), CLOSE))
        self.assertEqual(client.hear()[0][0], 1000)

    def test_so_many_pings_at_once_as_was_said(self) -> None:
        for burst in (3, 50):
            self.factory = self.make_factory(control_frame_burst=burst)
            client = self.client().open().log_in()
            client.write(frame(b"p", PING) * burst)
            self.assertEqual(client.hear(), [(PONG, b"p")] * burst)
            self.pass_time(0.25)
            client.write(frame(b"p", PING) * 3)
            self.assertEqual([what for what, _ in client.hear()], [PONG, PONG, 1002])

    def test_without_a_limit_any_number_of_pings(self) -> None:
        for option in ("control_frames_per_second", "control_frame_burst"):
            self.factory = self.make_factory(frames_per_second=0, **{option: 0})
            client = self.client().open().log_in()
            client.write(frame(b"", PING) * 500)
            self.assertEqual(client.hear(), [(PONG, b"")] * 500)

    def test_users_who_have_gone_are_forgotten_by_the_sweep(self) -> None:
        client = self.client().open().log_in()
        client.send(1)
        client.lost()
        self.assertEqual(len(self.factory.send_limits), 1)
        self.pass_time(61)
        self.assertEqual(len(self.factory.send_limits), 0)


class NamesOfOthers(SynchronousTestCase):
    """What we use of Twisted beyond its documentation is still there."""

    def test_twisteds_tcp(self) -> None:
        with socket.socket() as unconnected:
            transport = Server(unconnected, None, ("192.0.2.1", 4321), None, 0, MemoryReactorClock())  # type: ignore[arg-type]
            for name in outgoing.TCP_SERVER_NAMES:
                self.assertTrue(hasattr(transport, name), f"Twisted has moved {name}; see Outbox.flush")

    def test_twisteds_tls(self) -> None:
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

    def test_twisted(self) -> None:
        pool = HTTPConnectionPool(None)
        known = {"HTTPConnectionPool": pool, "HTTP11ClientProtocol": HTTP11ClientProtocol}
        for name in webserver.TWISTED_NAMES:
            owner, _, attribute = name.partition(".")
            attrgetter(attribute)(known[owner])
        self.assertIs(pool._factory(len, "")._quiescentCallback, len)


class Compression(WebSocketTestCase):
    """Off unless asked for; and then no bomb is unpacked."""

    OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"

    def setUp(self) -> None:
        super().setUp()
        # What a message may be is looked at here, and not how fast it is read.
        self.factory = self.make_factory(compression=True, frames_per_second=0, bytes_per_second=0)

    def deflated(self, *pieces: bytes, bits: int = 12) -> list[bytes]:
        """A message, compressed, in as many pieces."""
        compressor = zlib.compressobj(wbits=-bits)
        parts = [compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        return [*parts[:-1], parts[-1].removesuffix(b"\x00\x00\xff\xff")]

    def test_what_is_negotiated(self) -> None:
        for offer, answer in (
            ("permessage-deflate", "permessage-deflate; client_no_context_takeover"),
            (
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; client_no_context_takeover; client_max_window_bits=12",
            ),
            (
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; client_no_context_takeover",
            ),
            ("permessage-bzip2", None),
        ):
            head = self.client().shake(f"Sec-WebSocket-Extensions: {offer}").decode()
            found = [line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-extensions:")]
            self.assertEqual(found, [] if answer is None else [f"Sec-WebSocket-Extensions: {answer}"])

    def test_messages_compressed_or_not_in_any_mixture(self) -> None:
        request = json.dumps({"type": "auth-request", "SESSID": "alice"}).encode()
        (whole,) = self.deflated(request)
        first, second = self.deflated(request[:10], request[10:])
        stream = (
            frame(whole, rsv=4)
            + frame(request)
            + frame(first, fin=False, rsv=4)
            + frame(b"p", PING)
            + frame(second, CONTINUATION)
            + frame(request)
        )
        for size in (1, 7, len(stream)):
            client = self.client().open(self.OFFER)
            for start in range(0, len(stream), size):
                client.write(stream[start : start + size])
            self.assertEqual(client.hear(), [YES, YES, (PONG, b"p"), YES, YES])

    def test_what_is_sent_is_compressed_where_that_gains_something(self) -> None:
        client = self.client().open(self.OFFER).log_in()
        for size, is_compressed in ((255, False), (256, True), (65536, True), (65537, False)):
            client.protocol.outgoing.send(b"x" * size)
            data = client.read()
            self.assertEqual(bool(data[0] & 0x40), is_compressed, size)
            ((_, payload),) = frames(data)
            if is_compressed:
                self.assertLess(len(payload), size // 4)
                payload = zlib.decompressobj(-12).decompress(payload + b"\x00\x00\xff\xff")
            self.assertEqual(payload, b"x" * size)

    def test_who_does_not_offer_it_gets_none(self) -> None:
        client = self.client().open().log_in()
        client.protocol.outgoing.send(b"x" * 1000)
        self.assertEqual(client.read()[0], 0x81)
        client.write(frame(b"x", rsv=4))
        self.assertEqual(client.hear()[0][0], 1002)

    def packed(self, size: int, level: int, kind: str) -> bytes:
        """A login of so many bytes, compressed; it would read as one also with bytes missing from its end."""
        compressor = zlib.compressobj(level, wbits=-12)
        begin = b'{"type":"auth-request","SESSID":"alice"'
        if kind == "letters":
            letters = "".join(Random(size).choices(string.ascii_letters, k=size // 2)).encode()
            data = compressor.compress((begin + b',"x":"' + letters + b'"}').ljust(size))
        else:
            data = compressor.compress(begin + b"}")
            if kind == "flushed spaces":  # which then are so well compressed that the last bits are many of them
                data += compressor.flush(zlib.Z_FULL_FLUSH)
            data += compressor.compress(b" " * (size - len(begin) - 1))
        return (data + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")

    def answer_to(self, pieces: list[bytes], segment: int = 1_000_000) -> list[object]:
        """What a message in these frames is answered where each arrives in segments of so many bytes."""
        client = self.client().open(self.OFFER)
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            data = frame(piece, CONTINUATION if number else TEXT, fin=is_last, rsv=0 if number else 4)
            for start in range(0, len(data), segment):
                client.write(data[start : start + segment])
        return [heard[0] if isinstance(heard, tuple) else heard for heard in client.hear()]

    def test_as_much_as_a_message_may_be_and_no_more(self) -> None:
        beyond = {0: YES, 1: 1009, 6: 1009, 39: 1009, 296: 1009, 1023: 1009, 1024: 1009, 1025: 1009, 99999: 1009}
        kinds = ((0, "spaces"), (1, "spaces"), (9, "flushed spaces"), (9, "letters"))
        for (level, kind), (more, answer) in itertools.product(kinds, beyond.items()):
            data = self.packed(65536 + more, level, kind)
            for parts, segment in ((1, 1_000_000), (1, 1000), (2, 1_000_000), (60, 700)):
                step = -(-len(data) // parts)
                pieces = [data[start : start + step] for start in range(0, len(data), step)]
                heard = self.answer_to(pieces, segment)
                self.assertEqual(heard, [answer], f"{more=} {level=} {kind=} {parts=} {segment=}")

    def test_of_a_message_that_is_flushed_again_and_again_as_much_and_no_more(self) -> None:
        for size, answer in ((65536, YES), (65537, 1009), (66000, 1009)):
            request = json.dumps({"type": "auth-request", "SESSID": "alice"}).encode().ljust(size)
            pieces = self.deflated(*(request[start : start + 1100] for start in range(0, size, 1100)))
            self.assertEqual(self.answer_to(pieces), [answer], size)

    def test_one_that_is_too_large_is_so_whatever_else_is_wrong_with_it(self) -> None:
        # Its last block is not at its end; and what of it is unpacked ends within a character.
        cut = self.packed(65536 + 5000, 9, "flushed spaces")[:-2]
        compressor = zlib.compressobj(9, wbits=-12)
        characters = compressor.compress("\N{EURO SIGN}".encode() * 25_000) + compressor.flush(zlib.Z_SYNC_FLUSH)
        for data in (cut, characters):
            self.assertEqual(self.answer_to([data]), [1009])

    def test_what_is_packed_is_bound_too(self) -> None:
        # After its end, deflate ignores what follows, and zlib keeps it.
        compressor = zlib.compressobj(wbits=-12)
        whole = compressor.compress(b'{"type":"auth-request","SESSID":"alice"}') + compressor.flush(zlib.Z_FINISH)
        most = 65536 + MAX_ADDED - len(whole)
        for more, answer in ((most, YES), (most + 1, 1009)):
            self.assertEqual(self.answer_to([whole, bytes(30_000), bytes(more - 30_000)]), [answer], more)

    def test_uncompressed_ones_are_bound_as_ever(self) -> None:
        request = b'{"type":"auth-request","SESSID":"alice"}'
        for size, answer in ((65536, YES), (65537, 1009)):
            for parts in (1, 3):
                client = self.client().open(self.OFFER)
                text = request.ljust(size)
                step = -(-size // parts)
                pieces = [text[start : start + step] for start in range(0, size, step)]
                for number, piece in enumerate(pieces):
                    client.write(frame(piece, CONTINUATION if number else TEXT, fin=number == len(pieces) - 1))
                heard = [heard[0] if isinstance(heard, tuple) else heard for heard in client.hear()]
                self.assertEqual(heard, [answer], size)

    def test_a_bomb_is_not_unpacked(self) -> None:
        size = 50_000_000
        compressor = zlib.compressobj(9, wbits=-12)
        bomb = b"".join(compressor.compress(bytes(1_000_000)) for _ in range(size // 1_000_000))
        bomb += compressor.flush(zlib.Z_SYNC_FLUSH)
        half = len(bomb) // 2
        for pieces in (
            [bomb[:60_000]],
            [bomb[:100], bomb[100:30_000], bomb[30_000:60_000]],
            [bomb[:half], bomb[half:]],
        ):
            client = self.client().open(self.OFFER)
            tracemalloc.start()
            for number, piece in enumerate(pieces):
                client.write(frame(piece, TEXT if number == 0 else CONTINUATION, fin=False, rsv=0 if number else 4))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertEqual(client.hear()[0][0], 1009)
            self.assertLess(peak, 1_000_000)  # the frames themselves, some times over, and one message

    def test_nothing_of_a_bomb_stays_when_its_sender_has_left(self) -> None:
        client = self.client().open(self.OFFER)
        client.write(frame(self.packed(1_000_000, 9, "spaces"), rsv=4) * 2)
        self.assertEqual(client.hear()[0][0], 1009)
        self.assertGreater(len(client.protocol.data), 1000)
        client.lost()
        self.assertEqual(client.protocol.data, b"")

    def test_what_is_no_deflate_is_refused(self) -> None:
        client = self.client().open(self.OFFER)
        client.write(frame(b"\xff\xff\xff\xff", rsv=4))
        self.assertEqual(client.hear()[0][0], 1007)

    def test_a_bound_is_needed(self) -> None:
        error = self.assertRaises(ConfigError, Config, compression=True, message_size=0)
        self.assertIn("compression: needs a message-size", str(error))
