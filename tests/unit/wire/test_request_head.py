"""The head of a handshake: every way of looking a header up gives the same result."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.wire.request_head import BrokenHead, RequestHead, header_values

PIECES = (b"Host", b"host", b"Ho", b"X-Host", b":", b" ", b"\t", b",", b"\r\n", b"\r\n ", b"\x85", b"\xe5", b"a", b"")


class Lookups(SynchronousTestCase):
    """`RequestHead.values` and `header_values` find the same."""

    def test_header_begins_its_line_and_has_a_colon(self) -> None:
        raw = b"GET /Host:0 HTTP/1.1\r\nHost: 1\r\nhOST:\t2 \r\nX-Host: 3\r\nX: Host: 4\r\n Host: 5\r\nHost\r\nHost: \r\n\r\n"
        self.assertEqual(RequestHead.of(raw).values(b"host"), [b"1", b"2", b""])
        self.assertEqual(header_values(raw, "Host"), ["1", "2", ""])

    @given(st.lists(st.sampled_from(PIECES), max_size=20))
    def test_values_and_header_values_find_the_same(self, pieces: list[bytes]) -> None:
        raw = b"GET / HTTP/1.1\r\n" + b"".join(pieces) + b"\r\n\r\n"
        try:
            head = RequestHead.of(raw)
        except BrokenHead:
            return
        self.assertEqual([value.decode("latin-1") for value in head.values(b"host")], header_values(raw, "host"))

    @given(st.lists(st.sampled_from(PIECES), max_size=20))
    def test_head_for_autobahn_has_the_same_headers(self, pieces: list[bytes]) -> None:
        raw = b"GET / HTTP/1.1\r\n" + b"".join(pieces) + b"\r\n\r\n"
        try:
            head = RequestHead.of(raw)
        except BrokenHead:
            return
        lines = head.for_autobahn(None).decode("latin-1").splitlines()
        self.assertEqual(lines[0], "GET / HTTP/1.1")
        found = [line.partition(": ")[::2] for line in lines[1:-1]]
        told = [(name.decode(), value.decode("latin-1").replace("\x85", "?")) for name, value in head.fields]
        self.assertEqual(found, told)

    def test_unprintable_target_is_encoded_for_autobahn(self) -> None:
        head = RequestHead.of("GET /\u00e5\x0b?x=y HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        self.assertEqual(head.for_autobahn(None).split(b"\r\n")[0], b"GET /%C3%A5%0B?x=y HTTP/1.1")
