"""The frames that the tests' clients encode and decode, against the examples of RFC 6455."""

from __future__ import annotations

import pytest

from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Decoder,
    close_code,
    close_frame,
    fragments,
    frame,
    frames,
    split,
)


def test_examples_of_the_rfc_are_encoded_byte_by_byte() -> None:
    """Section 5.7."""
    assert frame(b"Hello") == bytes.fromhex("818537fa213d7f9f4d5158")
    assert frame(b"Hello", masked=False) == bytes.fromhex("810548656c6c6f")
    assert frame(b"Hel", fin=False, masked=False) == bytes.fromhex("010348656c")
    assert frame(b"lo", CONTINUATION, masked=False) == bytes.fromhex("80026c6f")
    assert frame(b"Hello", PING, masked=False) == bytes.fromhex("890548656c6c6f")
    assert frame(bytes(256), BINARY, masked=False)[:4] == bytes.fromhex("827e0100")
    assert frame(bytes(65536), BINARY, masked=False)[:10] == bytes.fromhex("827f0000000000010000")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_frame_of_any_size_is_decoded_as_it_was_encoded(size: int) -> None:
    payload = bytes(number & 255 for number in range(size))
    stream = frame(payload, BINARY, masked=False) + close_frame(4000, "bye", masked=False)
    assert frames(stream) == [(BINARY, payload), (CLOSE, (4000).to_bytes(2, "big") + b"bye")]
    decoder = Decoder()
    found = [part for start in range(0, len(stream), 1000) for part in decoder.feed(stream[start : start + 1000])]
    assert [(first & 15, payload) for first, payload in found] == frames(stream)
    assert [payload for _, payload, _ in split(stream[:-1])] == [payload]


def test_close_code_of_an_empty_payload_is_1005() -> None:
    assert [close_code(payload) for payload in (b"", b"\x0f\xa0", b"\x03\xe8bye")] == [1005, 4000, 1000]


def test_fragments_carry_the_whole_payload_and_only_the_last_is_final() -> None:
    stream = fragments(b"abcdefg", 3, rsv=4)
    unmasked = [(0x41, b"abc"), (0x00, b"def"), (0x80, b"g")]
    assert stream == b"".join(
        frame(payload, first & 15, fin=first >= 0x80, rsv=first >> 4 & 7) for first, payload in unmasked
    )
    assert unmasked[0][0] & 15 == TEXT
