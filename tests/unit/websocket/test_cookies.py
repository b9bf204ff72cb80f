"""The session cookie of an opening handshake: how it is read, and which cookies are ignored."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from chatrelay.model import Verdict
from chatrelay.testing import KnownSessions
from tests.support.frames import HANDSHAKE
from tests.support.relay_case import WebSocketTestCase
from tests.support.v1 import ADMITTED, DENIED


class Cookies(WebSocketTestCase):
    """The session cookie of the handshake."""

    def setUp(self) -> None:
        super().setUp()
        self.factory = self.make_factory(session_cookie="sid", origin=("https://example.com",))

    def answer(self, *headers: str) -> Any:
        """Return the answer to an auth-request without a SESSID after such a handshake."""
        client = self.client().open(*headers)
        client.say_login()
        (answer,) = client.hear()
        return answer

    def test_session_cookie_logs_in(self) -> None:
        for cookie in ("sid=alice", "a=b; sid=alice", "a=b;sid=alice;c=d", "Sid=x; sid=alice; sid=bo"):
            self.assertEqual(self.answer("Origin: https://example.com", f"Cookie: {cookie}"), ADMITTED, cookie)

    def test_cookie_with_a_unicode_line_break_is_read_whole(self) -> None:
        # U+00C5 is C3 85 in UTF-8, and 85 is a line's end to str.splitlines.
        cookie = "city=\u00c5bo; sid=alice"
        self.assertEqual(self.answer("Origin: https://example.com", f"Cookie: {cookie}"), ADMITTED)

    def test_session_cookie_is_passed_on_as_it_came(self) -> None:
        self.factory = self.make_factory(
            KnownSessions({"été": 1}), session_cookie="sid", origin=("https://example.com",)
        )
        self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=été"), ADMITTED)
        self.assertEqual(self.answer("Origin: https://example.com", "Cookie: a=b", "Cookie: sid=été"), ADMITTED)

    def test_other_cookies_in_any_encoding_do_not_prevent_the_login(self) -> None:
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
                self.assertEqual(self.answer(page, *headers), ADMITTED, headers)

    def test_other_headers_in_any_encoding_do_not_prevent_the_login(self) -> None:
        for name in ("User-Agent", "X-Forwarded-For", "Referer", "Accept-Language", "X-Name"):
            for ending in (*"\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\udc85"):
                value = f"Zo{ending}Host: evil{ending}Upgrade: h2c{ending}Cookie: sid=bo"
                self.assertEqual(
                    self.answer("Origin: https://example.com", f"{name}: {value}", "Cookie: sid=alice"), ADMITTED
                )

    def test_folded_or_nameless_header_line_is_ignored(self) -> None:
        for line in (" Host: evil", "\tHost: evil", " Host : evil", "Sec-WebSocket-Key\xa0: 1", ": evil", "evil", " "):
            self.assertEqual(
                self.answer("Origin: https://example.com", "Cookie: sid=alice", f"X: 1\r\n{line}"), ADMITTED
            )

    def test_bare_line_break_in_a_header_is_refused_with_400(self) -> None:
        for broken in ("\r", "\n", "\0", "\nOrigin: https://example.com", "\rCookie: sid=alice"):
            answer = self.client().shake(f"X: a{broken}")
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
            self.assertIn(b"contains a line break or a NUL", answer)

    def test_blank_after_a_header_name_is_refused_with_400(self) -> None:
        for line in ("Origin : https://example.com", "X\t: 1", "X  : 1"):
            answer = self.client().shake(line)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)

    def test_unencoded_target_is_accepted(self) -> None:
        # websocket-client sends its URL so.
        for target in ("/chat?name=Åbo", "/ch\u0085at", "/?a=\udc85\udca0", "/\x0b\x1c"):
            client = self.client()
            self.assertTrue(client.shake(target=target).startswith(b"HTTP/1.1 101 "), target)
        for line in (
            "GET / HTTP/1.1\x85Origin: https://x",
            "GET /\x85Origin: https://x HTTP/1.1",
            "GET\xa0/\xa0HTTP/1.1",
        ):
            client = self.client()
            client.write(HANDSHAKE.replace(b"GET / HTTP/1.1", line.encode("latin-1")))
            self.assertTrue(client.read().startswith(b"HTTP/1.1 400 "), line)

    def test_bytes_of_the_cookie_are_the_session_id(self) -> None:
        sessids = []

        class Noting(KnownSessions):
            def authenticate(self, sessid: str) -> Deferred[Verdict]:
                sessids.append(sessid)
                return super().authenticate(sessid)

        self.factory = self.make_factory(
            Noting({}), session_cookie="sid", origin=("https://example.com",), auth_url="http://site.example/session"
        )
        values = [
            *(b"\xe5", b"a\xc3\x85b", b"\xc3\xa0", b"\xa0\xe2\x80\x83", b'"quoted"', b"a=b==", b"%C3%85"),
            b"\x85\x1c\x0b",
        ]
        for value in values:
            self.answer("Origin: https://example.com", f"Cookie: sid= {value.decode('utf-8', 'surrogateescape')} ; a=b")
        self.assertEqual([sessid.encode("utf-8", "surrogateescape") for sessid in sessids], [b" " + v for v in values])

    def test_cookie_with_bytes_that_cannot_be_posted_is_denied(self) -> None:
        denied = DENIED
        for options in ({"auth_url": "http://site.example/session", "auth_format": "json"}, {}):
            known = KnownSessions({"\udce5": 1})
            self.factory = self.make_factory(known, session_cookie="sid", origin=("https://example.com",), **options)
            self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=\udce5"), denied)

    def test_first_of_two_session_cookies_counts(self) -> None:
        for headers in (
            ("Cookie: sid=alice; sid=bo",),
            ("Cookie: a=b; sid=alice", "Cookie: sid=bo"),
            ("Cookie: sid=; sid=alice",),
        ):
            self.assertEqual(self.answer("Origin: https://example.com", *headers), ADMITTED)

    def test_login_without_cookie_or_sessid_is_denied(self) -> None:
        for headers in (
            (),
            ("Cookie: other=alice",),
            ("Cookie: sid=",),
            (f"Cookie: sid={'x' * 4097}",),
            ("Cookie: xsid=alice",),
        ):
            self.assertEqual(self.answer("Origin: https://example.com", *headers), DENIED)

    def test_cookie_of_a_handshake_without_origin_is_ignored(self) -> None:
        answer = self.answer("Cookie: sid=alice")
        self.assertEqual((answer["type"], answer["reason"]), ("error", "invalid-auth-request"))

    def test_sessid_of_the_message_takes_precedence_over_the_cookie(self) -> None:
        client = self.client().open("Origin: https://example.com", "Cookie: sid=bo")
        client.log_in("alice")
        self.assertEqual(len(self.directory.connections_of("1")), 1)

    def test_cookie_is_not_read_without_the_session_cookie_option(self) -> None:
        self.factory = self.make_factory(origin=("https://example.com",))
        self.assertEqual(self.answer("Origin: https://example.com", "Cookie: sid=alice")["type"], "error")
