"""Opening handshakes: which are accepted, and how a refusal is worded."""

from __future__ import annotations

from twisted.logger import LogLevel

from tests.support.frames import HANDSHAKE, frame, handshake
from tests.support.relay_case import ConnectingTestCase

OTHER_ORIGINS = (
    # The scheme
    *("http://example.com", "wss://example.com", "httpss://example.com", "https:example.com", "//example.com"),
    *("example.com", "https://", "file://", "about:blank"),
    # The port
    *("https://example.com:444", "https://example.com:80", "https://example.com:", "https://example.com:443:443"),
    *("https://example.com:443.evil.test", "https://example.com:443@evil.test"),
    # A name that begins like it, or ends so
    *("https://example.com.evil.test", "https://example.community", "https://evilexample.com"),
    *("https://evil-example.com", "https://www.example.com", "https://example.com.", "https://example.co"),
    "https://example",
    # User names, paths and the like
    *("https://example.com@evil.test", "https://evil.test@example.com", "https://@example.com"),
    *("https://example.com/", "https://example.com/.evil.test", "https://evil.test/https://example.com"),
    *("https://evil.test?https://example.com", "https://evil.test#https://example.com", "https://example.com?"),
    *("https://example.com#", "https://example.com\\.evil.test", "https://evil.test\\@example.com"),
    *("https://example%2ecom", "https://example.com%00.evil.test"),
    # A Cyrillic a, as it is and as a browser would send it; and characters that Unicode calls compatible
    *("https://ex\u0430mple.com", "https://xn--exmple-4nf.com", "https://\uff45xample.com", "https://example\u3002com"),
    # No origin
    *("https://*", "https://*.com", "*", "null", "NULL", ""),
    # Several in one
    *("https://example.com, https://evil.test", "https://evil.test, https://example.com"),
    *("https://example.com https://evil.test", "https://example.com,"),
    # Spaces and control characters
    *("https:// example.com", "https://exam\tple.com", "https://example.com\x00", "https://example.com\x0b.evil.test"),
    "https://example.com\u0085X: y",
)
"""Origins that are not https://example.com, although some look alike."""


class Handshakes(ConnectingTestCase):
    """Which handshakes are accepted, and how the others are refused."""

    def test_handshake_with_no_subprotocol_or_v1_is_accepted(self) -> None:
        self.assertNotIn(b"Sec-WebSocket-Protocol", self.client().shake())
        for offer in ("chatrelay.v1", "chatrelay.v9, chatrelay.v1"):
            answer = self.client().shake(f"Sec-WebSocket-Protocol: {offer}")
            self.assertIn(b"Sec-WebSocket-Protocol: chatrelay.v1\r\n", answer)

    def test_handshake_with_another_subprotocol_is_refused_with_400(self) -> None:
        client = self.client()
        answer = client.shake("Sec-WebSocket-Protocol: chatrelay.v9")
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"))
        self.assertIn(b"offer chatrelay.v1, or none", answer)
        self.assertTrue(client.transport.disconnecting)

    def test_handshake_stripped_by_a_proxy_is_refused_with_the_headers_to_pass_on(self) -> None:
        upgrade, connection = "Upgrade: websocket\r\n", "Connection: Upgrade\r\n"
        for line, headers, status in (
            ("GET / HTTP/1.0", "", 505),
            ("GET / HTTP/1.0", "Connection: close\r\n", 505),  # nginx without further configuration
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
            self.assertEqual(head.endswith(b"\r\nUpgrade: websocket"), status == 426)
            for needed in (
                b"speaks WebSocket here",
                b"HTTP/1.1",
                b"Upgrade: websocket",
                b"Connection: Upgrade",
                b"proxy",
            ):
                self.assertIn(needed, body, (line, headers))
        self.factory = self.make_factory(origin=("https://example.com",))
        self.assertNotIn(b"proxy", self.client().shake("Origin: https://evil.test"))

    def test_offer_of_compression_is_declined_by_default(self) -> None:
        self.assertNotIn(b"deflate", self.client().shake("Sec-WebSocket-Extensions: permessage-deflate"))

    def test_any_origin_is_accepted_without_the_origin_option(self) -> None:
        for origin in ("https://example.com", "null", "http://127.0.0.1:8000", "capacitor://localhost"):
            self.client().open(f"Origin: {origin}")

    def test_listed_origin_and_no_origin_are_accepted(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com", "http://localhost:8000"))
        for origin in (
            "https://example.com",
            "https://example.com:443",
            "HTTPS://EXAMPLE.COM",
            "http://localhost:8000",
        ):
            self.client().open(f"Origin: {origin}")
        self.client().open()

    def test_unlisted_origin_is_refused_with_403(self) -> None:
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

    def test_refused_origin_is_logged_with_how_to_admit_it(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        for _ in range(3):
            self.client().shake("Origin: https://www.example.com")
        self.client().shake("Origin: null")
        self.client().shake("Origin: ")
        self.client().shake("Origin: https://a.test", "Origin: https://b.test")
        warnings = self.said(LogLevel.warn)
        self.assertEqual(len(warnings), 4)
        self.assertIn("from origin (empty) was refused", warnings[2])
        self.assertIn("https://a.test, https://b.test", warnings[3])
        self.assertIn("allow it with --origin https://www.example.com (logged once", warnings[0])
        self.assertIn("this origin can't be allowed", warnings[1])
        told = self.said(LogLevel.info)
        self.assertEqual(len(told), 6)
        self.assertIn("handshake from 192.0.2.1:4321 refused with 403", told[0])

    def test_refused_origin_under_another_name_of_the_machine_is_logged_with_both_remedies(self) -> None:
        for options, is_told in ({"session_cookie": "sid"}, True), ({}, False):
            self.events.clear()
            self.factory = self.make_factory(origin=("https://example.com",), **options)
            request = handshake("Origin: http://127.0.0.1:3000").replace(b"relay.example", b"localhost:8080")
            self.client().write(request)
            (warning,) = self.said(LogLevel.warn)
            self.assertIn("allow it with --origin http://127.0.0.1:3000", warning)
            self.assertEqual("open the page at http://localhost:3000, or connect to" in warning, is_told)

    def test_many_refused_origins_do_not_hide_a_new_one_from_the_log(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        for number in range(1000):
            self.client().shake(f"Origin: https://made-up-{number}.test")
            if number in (500, 600):  # a page, which tries again
                self.client().shake("Origin: https://www.example.com")
        self.pass_time(120)
        warnings = self.said(LogLevel.warn)
        self.assertEqual(len(warnings), 12)
        self.assertIn("origin https://www.example.com was refused", warnings[10])
        self.assertIn("too many refused origins at once: 991 more handshakes from pages were refused", warnings[11])

    def test_refused_handshake_is_logged_escaped_and_without_its_cookie(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        self.client().shake("Origin: https://\x1b[2J.test")
        for request in (
            "Cookie: sid=CANARY\r\n\r\n",
            "GET /\x1b[2J HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ):
            client = self.client()
            client.write(request.encode())
            client.read()
        told = self.said()
        # The refused origin, twice. A request that is not a handshake at all is not logged.
        self.assertEqual(len(told), 2)
        self.assertNotIn("\x1b", "".join(told))
        self.assertNotIn("CANARY", "".join(self.said(*LogLevel.iterconstants())))

    def test_handshake_above_handshake_size_is_refused(self) -> None:
        bare = len(handshake("X: "))
        self.client().open("X: " + "x" * (16384 - bare))
        client = self.client()
        answer = client.shake("X: " + "x" * (16384 - bare + 1))
        self.assertTrue(answer.startswith(b"HTTP/1.1 431 "), answer)
        self.assertTrue(client.transport.disconnecting)

    def test_handshake_size_of_zero_is_no_limit(self) -> None:
        self.factory = self.make_factory(handshake_size=0)
        self.client().open("X: " + "x" * 20_000)

    def test_endless_handshake_is_refused_at_handshake_size(self) -> None:
        client = self.client()
        client.write(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(90):
            client.write(b"x" * 200)
        self.assertTrue(client.read().startswith(b"HTTP/1.1 431 "))
        self.assertLess(len(client.protocol.data), 16385)

    def test_frames_behind_a_handshake_do_not_count_towards_its_size(self) -> None:
        client = self.client()
        client.write(HANDSHAKE + frame(b'{"type":"auth-request","SESSID":"alice"}') + frame(b"x" * 20000))
        self.assertTrue(client.read().startswith(b"HTTP/1.1 101 "))
        self.assertEqual(len(self.directory), 1)

    def test_unfinished_handshake_is_aborted_after_handshake_timeout(self) -> None:
        client = self.client()
        client.write(b"GET / HTTP/1.1\r\n")
        self.pass_time(4.5)
        self.assertFalse(client.transport.aborted)
        client.write(b"Host: h\r\n")
        self.pass_time(1)
        self.assertTrue(client.transport.aborted)
