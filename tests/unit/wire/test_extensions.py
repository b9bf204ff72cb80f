"""Offers of extensions: which are accepted, which are declined, and that no offer refuses a client."""

from __future__ import annotations

import contextlib

import pytest

from chatrelay.wire.extensions import BrokenOffers, acceptable, offers_in
from tests.support.frames import CLOSE, TEXT, frame, frames
from tests.support.relay_case import WebSocketTestCase

DEFLATE = "permessage-deflate"


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (DEFLATE, DEFLATE),
        ("Permessage-Deflate", DEFLATE),
        (f"{DEFLATE}; client_max_window_bits", f"{DEFLATE}; client_max_window_bits"),
        (f"{DEFLATE};client_max_window_bits=15", f"{DEFLATE}; client_max_window_bits"),
        # It looks back no further than it says, and nothing need be asked of it.
        (f"{DEFLATE};client_max_window_bits=8", DEFLATE),
        (f"{DEFLATE};client_max_window_bits=11", DEFLATE),
        (f"{DEFLATE} ; server_max_window_bits = 10 ", f"{DEFLATE}; server_max_window_bits=10"),
        (f'{DEFLATE}; server_max_window_bits="10"', f"{DEFLATE}; server_max_window_bits=10"),
        (f'{DEFLATE}; server_max_window_bits="1\\0"', f"{DEFLATE}; server_max_window_bits=10"),
        (f"{DEFLATE}; server_no_context_takeover", f"{DEFLATE}; server_no_context_takeover"),
        (f"{DEFLATE}; client_no_context_takeover", f"{DEFLATE}; client_no_context_takeover"),
        # An offer that can't be accepted is skipped, and the next one is accepted.
        (f"{DEFLATE}; server_max_window_bits=8, {DEFLATE}", DEFLATE),
        (f"{DEFLATE}; x=1,,{DEFLATE}; y, foo; bar=2, {DEFLATE}", DEFLATE),
        (f"x-webkit-deflate-frame, {DEFLATE}", DEFLATE),
    ],
)
def test_acceptable_offer_is_accepted(header: str, taken: str) -> None:
    assert acceptable([header]) == taken
    assert acceptable(header.split(",")) == taken


@pytest.mark.parametrize(
    "header",
    [
        *("", " , ,", "foo; bar=1; bar=2", "permessage-bzip2; client_max_compress_level=99", f"{DEFLATE}; unknown"),
        *(f"{DEFLATE}; server_max_window_bits=8", f"{DEFLATE}; server_max_window_bits=7"),
        *(f"{DEFLATE}; server_max_window_bits=16", f"{DEFLATE}; server_max_window_bits=010"),
        *(f"{DEFLATE}; server_max_window_bits=x", f"{DEFLATE}; server_max_window_bits"),
        *(f"{DEFLATE}; client_max_window_bits=7", f"{DEFLATE}; client_max_window_bits=015"),
        *(f"{DEFLATE}; server_no_context_takeover=1", f"{DEFLATE}; client_no_context_takeover=true"),
        f"{DEFLATE}; client_max_window_bits; client_max_window_bits=10",
        f"{DEFLATE}; server_no_context_takeover; Server_No_Context_Takeover",
    ],
)
def test_unacceptable_offer_is_declined(header: str) -> None:
    assert acceptable([header]) is None


@pytest.mark.parametrize(
    "header",
    [
        *(f"{DEFLATE};", f"{DEFLATE}; =1", f"{DEFLATE}; a=", f'{DEFLATE}; a="', f'{DEFLATE}; a=""'),
        *(f'{DEFLATE}; a="b,c"', f"{DEFLATE} foo", "=", ";", "\u00e5", f"{DEFLATE}, a@b"),
    ],
)
def test_header_that_does_not_follow_the_grammar_is_broken(header: str) -> None:
    with pytest.raises(BrokenOffers):
        acceptable([header])


def test_parameters_are_read_as_meant() -> None:
    assert list(offers_in('a; b; C="d\\e" ,, F;g = h')) == [("a", [("b", None), ("c", "de")]), ("f", [("g", "h")])]


def test_long_header_is_read_once() -> None:
    for header in ("a;b=" * 4000, 'a;b="' + "\\a" * 8000, " " * 16000 + ";", "a" + " " * 16000 + "=", "," * 16000):
        with contextlib.suppress(BrokenOffers):
            acceptable([header])


class Offers(WebSocketTestCase):
    """The answer to a client that offers extensions."""

    DECLINED = (
        f"{DEFLATE}; unknown=1",
        f"{DEFLATE}; server_max_window_bits=8",
        f"{DEFLATE}; server_no_context_takeover=1",
        f"{DEFLATE}; a; a",
        "permessage-bzip2; client_max_compress_level=99",
    )

    def test_unacceptable_offer_is_declined(self) -> None:
        for compression in (False, True):
            self.factory = self.make_factory(compression=compression)
            for offer in self.DECLINED:
                client = self.client()
                answer = client.shake(f"Sec-WebSocket-Extensions: {offer}")
                self.assertTrue(answer.startswith(b"HTTP/1.1 101 "), offer)
                self.assertNotIn(b"Extensions", answer)
                client.log_in()

    def test_next_acceptable_offer_is_accepted(self) -> None:
        self.factory = self.make_factory(compression=True)
        for offer in self.DECLINED:
            for headers in (
                (f"{offer}, {DEFLATE}; server_max_window_bits=10",),
                (offer, f"{DEFLATE}; server_max_window_bits=10"),
                (f'{offer}, foo; bar="b", {DEFLATE}; server_max_window_bits="10"', DEFLATE),
            ):
                client = self.client()
                answer = client.shake(*(f"Sec-WebSocket-Extensions: {header}" for header in headers))
                self.assertIn(b"permessage-deflate; ", answer, headers)
                self.assertIn(b"server_max_window_bits=10", answer)
                client.log_in()

    def test_no_client_is_given_a_larger_window_than_it_offers(self) -> None:
        self.factory = self.make_factory(compression=True)
        for bits in range(8, 16):
            answer = self.client().shake(f"Sec-WebSocket-Extensions: {DEFLATE}; client_max_window_bits={bits}")
            self.assertEqual(b"client_max_window_bits=12" in answer, bits >= 12, answer)
            self.assertEqual(b"client_max_window_bits" in answer, bits >= 12, answer)

    def test_header_that_cannot_be_read_is_refused_with_a_reason(self) -> None:
        for compression in (False, True):
            self.factory = self.make_factory(compression=compression)
            answer = self.client().shake(f"Sec-WebSocket-Extensions: {DEFLATE}; =")
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
            self.assertIn(b"Sec-WebSocket-Extensions can't be read", answer)

    def test_empty_offers_are_none(self) -> None:
        for header in ("Sec-WebSocket-Extensions:", "Sec-WebSocket-Extensions: , ,", "Sec-WebSocket-Protocol:"):
            self.client().open(header).log_in()

    def test_declined_compression_is_not_used(self) -> None:
        self.factory = self.make_factory(compression=True)
        client = self.client().open(f"Sec-WebSocket-Extensions: {self.DECLINED[1]}")
        client.write(frame(b"x", TEXT, rsv=4))
        ((opcode, payload),) = frames(client.read())
        self.assertEqual((opcode, payload[:2]), (CLOSE, b"\x03\xea"))
