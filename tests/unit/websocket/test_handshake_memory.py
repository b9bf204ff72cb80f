"""What a connection keeps of its opening handshake, and how many parts a handshake may have."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from typing import Any

from autobahn.websocket.types import ConnectionRequest

from chatrelay.model import MAX_SESSID
from chatrelay.relay.session import Session
from chatrelay.websocket.factory import ChatFactory
from chatrelay.websocket.protocol import ChatProtocol
from tests.support.frames import DEFLATE, HANDSHAKE, handshake
from tests.support.large_handshakes import FILL, HANDSHAKES, MAX_PARTS, PAGE
from tests.support.memory import MemoryClient, ProxiedClient, proxy_header_2
from tests.support.relay_case import WebSocketTestCase

MOST_KEPT = 4096
"""Bytes that a connection may keep of what is special about its handshake."""


class Asking(ChatProtocol):
    """A protocol of an embedding program, which reads what Autobahn documents until `onOpen` has returned."""

    seen: list[object]

    def onConnect(self, request: ConnectionRequest) -> Any:
        self.seen = [dict(request.headers)["x-mine"], request.params, request.path]
        return super().onConnect(request)

    def onOpen(self) -> None:
        super().onOpen()
        self.seen += [self.http_headers["x-mine"], self.http_request_params, self.http_request_path]
        self.seen += [self.websocket_protocols, self.websocket_origin, b"x-mine" in self.http_request_data]


class HandshakeMemory(WebSocketTestCase):
    """What a connection keeps."""

    def setUp(self) -> None:
        super().setUp()
        gc.collect()
        gc.freeze()  # all that is there already need not be looked through each time
        self.addCleanup(gc.unfreeze)

    def kept(self, come: Any, *pieces: bytes) -> int:
        """Return the bytes that one more connection takes after such handshakes."""
        for _ in range(2):  # the first one finds nothing prepared
            client = come()
            tracemalloc.start()
            try:
                for piece in pieces:
                    client.write(piece)
                del piece
                client.read()
                gc.collect()
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        return kept

    def test_open_connection_keeps_nothing_of_its_handshake(self) -> None:
        for compression in (False, True):
            self.factory = self.make_factory(compression=compression)
            for name, (target, headers) in HANDSHAKES.items():
                plain = self.kept(self.client, handshake(*([DEFLATE] if name.startswith("compressed") else [])))
                whole = handshake(*headers, target=target)
                for pieces in (
                    [whole],
                    [whole[:-1], whole[-1:]],
                    [whole[n : n + 500] for n in range(0, len(whole), 500)],
                ):
                    client = self.client()
                    for piece in pieces:
                        client.write(piece)
                    self.assertTrue(client.read().startswith(b"HTTP/1.1 101 "), name)
                    self.assertLess(self.kept(self.client, *pieces), plain + MOST_KEPT, name)

    def test_open_connection_behind_the_proxy_protocol_keeps_nothing_of_its_handshake(self) -> None:
        def come() -> MemoryClient:
            return ProxiedClient(self.factory, proxy_header_2("192.0.2.3"))

        plain = self.kept(come, handshake())
        for name, (target, headers) in HANDSHAKES.items():
            self.assertLess(self.kept(come, handshake(*headers, target=target)), plain + MOST_KEPT, name)

    def test_refused_connection_keeps_nothing_of_its_handshake(self) -> None:
        self.factory = self.make_factory(origin=("https://other.example",))
        refused = (
            handshake(PAGE),
            *(
                handshake(*headers, *([] if "igin" in "".join(headers) else [PAGE]), target=target)
                for target, headers in HANDSHAKES.values()
            ),
            handshake(PAGE, "x: " + "x" * 16384),
            handshake(PAGE, *(["x:"] * 2000)),
            handshake(target="/" + "x" * FILL).replace(b"GET", b"x" * 500),
            handshake(PAGE) + b"x" * 60_000,
            handshake(f"{DEFLATE}; ={'x' * FILL}"),
            handshake("Origin: " + "x" * FILL),
        )
        least = self.kept(self.client, refused[0])
        for whole in refused:
            client = self.client()
            client.write(whole)
            self.assertTrue(client.read().startswith(b"HTTP/1.1 4"))
            self.assertLess(self.kept(self.client, whole), least + MOST_KEPT)

    def test_session_keeps_only_the_value_of_its_cookie(self) -> None:
        self.factory = self.make_factory(session_cookie="sid", origin=("https://example.com",))
        plain = self.kept(self.client, handshake(PAGE))
        others = "b=" + "x" * 10_000
        longest = "x" * MAX_SESSID
        for value, most in (
            (longest, MAX_SESSID),
            ("\N{GRINNING FACE}" + "x" * (MAX_SESSID - 4), MAX_SESSID),
            ("å" * 2048, 4096),
        ):
            whole = handshake(PAGE, f"Cookie: a=1; sid={value}; {others}")
            client = self.client()
            client.write(whole)
            session = client.protocol.session
            assert isinstance(session, Session)
            self.assertEqual(session._cookie_text, value)
            self.assertLess(self.kept(self.client, whole), plain + most + MOST_KEPT)

    def test_session_cookie_above_max_sessid_is_not_used(self) -> None:
        self.factory = self.make_factory(session_cookie="sid", origin=("https://example.com",))
        for value, is_used in (("å" * 2048, True), ("å" * 2049, False), ("x" * 4097, False)):
            client = self.client().open(PAGE, f"Cookie: sid={value}")
            session = client.protocol.session
            assert isinstance(session, Session)
            self.assertEqual(session._cookie_text == value, is_used)

    def test_subclass_reads_the_handshake_until_it_is_open(self) -> None:
        factory: ChatFactory = self.factory
        factory.protocol = Asking
        client = MemoryClient(factory)
        client.write(handshake("X-Mine: 7", PAGE, "Sec-WebSocket-Protocol: chatrelay.v1", target="/a?b=c"))
        protocol = client.protocol
        assert isinstance(protocol, Asking)
        expected = ["7", {"b": ["c"]}, "/a", "7", {"b": ["c"]}, "/a", ["chatrelay.v1"], "https://example.com", False]
        self.assertEqual(protocol.seen[:-1], expected[:-1])
        # Afterwards they are there, and empty.
        self.assertEqual((dict(protocol.http_headers), protocol.http_request_path), ({}, ""))
        self.assertEqual(protocol.websocket_protocol_in_use, "chatrelay.v1")

    def test_send_queue_is_made_when_it_is_needed(self) -> None:
        client = self.client().open()
        self.assertNotIn("send_queue", vars(client.protocol))
        self.patch(client.protocol, "_trigger", lambda: None)  # which would go on by a timer of the reactor's
        client.protocol.sendData(b"pieces", chopsize=2)
        self.assertEqual([piece for piece, _ in client.protocol.send_queue], [b"pi", b"ec", b"es"])


class HandshakeParts(WebSocketTestCase):
    """The limits on headers, query parameters and offers."""

    def answer(self, whole: bytes) -> bytes:
        """Return the answer to a handshake that is sent whole or in two pieces."""
        answers = set()
        for cut in (0, 1, len(whole) // 2, len(whole) - 3):
            client = self.client()
            client.write(whole[:cut])
            client.write(whole[cut:])
            answers.add(client.read())
        (answer,) = answers
        return answer

    def assert_bounded(self, fits: bytes, does_not: bytes, reason: str) -> None:
        self.assertTrue(self.answer(fits).startswith(b"HTTP/1.1 101 "))
        answer = self.answer(does_not)
        self.assertTrue(answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), answer)
        self.assertIn(reason.encode(), answer)

    def test_handshake_above_max_headers_is_refused(self) -> None:
        room = MAX_PARTS - HANDSHAKE.count(b": ")
        for value in ("", "1", "\u0085x:" * 30, "\x0bx:" * 30):
            fits, does_not = (
                handshake(*(f"x{number}:{value}" for number in range(count))) for count in (room, room + 1)
            )
            self.assert_bounded(fits, does_not, "more than 100 headers")
        self.assert_bounded(handshake(*["x: 1"] * room), handshake(*["x: 1"] * (room + 1)), "100 headers")

    def test_handshake_above_max_query_parameters_is_refused(self) -> None:
        fits, does_not = (handshake(target="/?" + "&".join(["a=1"] * count)) for count in (MAX_PARTS, MAX_PARTS + 1))
        self.assert_bounded(fits, does_not, "more than 100 query parameters")

    def test_handshake_above_max_offers_is_refused(self) -> None:
        for line, separator in (
            ("Sec-WebSocket-Protocol: chatrelay.v1", ","),
            ("Sec-WebSocket-Extensions: x", ","),
            ("Sec-WebSocket-Extensions: x", ";"),
            ("SEC-WEBSOCKET-EXTENSIONS: x", ";"),
        ):
            fits, does_not = (
                handshake(line + "".join(f"{separator}a{number}" for number in range(count)))
                for count in (MAX_PARTS - 1, MAX_PARTS)
            )
            self.assert_bounded(fits, does_not, "offers more than 100 subprotocols, extensions and parameters")

    def test_commas_in_other_headers_do_not_count_as_offers(self) -> None:
        self.assertTrue(self.answer(handshake("x: " + ",;&" * 500)).startswith(b"HTTP/1.1 101 "))


class Calls(WebSocketTestCase):
    """The cost of a handshake does not depend on the number of its cookies."""

    def calls(self, cookies: str) -> int:
        """Return the number of function calls for a handshake with these cookies."""
        client, called = self.client(), 0

        def count(*_: object) -> None:
            nonlocal called
            called += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            client.write(handshake(PAGE, f"Cookie: {cookies}"))
        finally:
            sys.setprofile(before)
        self.assertIn(b"HTTP/1.1 101 ", client.read())
        return called

    def test_many_cookies_cost_few_more_calls_than_one(self) -> None:
        self.factory = self.make_factory(session_cookie="sid", origin=("https://example.com",))
        for one, many in (
            ("a" * FILL, ";" * FILL),
            ("a" * FILL, "a=;" * (FILL // 3)),
            ("a" * FILL, "; ;" * (FILL // 3)),
            ("sid=1", ";" * FILL + "sid=1"),
            ("sid=1", "sid=;" * (FILL // 5 - 1) + "sid=1"),
        ):
            self.calls(one)  # caches are filled now
            self.assertLess(self.calls(many), 3 * self.calls(one), many[:10])
