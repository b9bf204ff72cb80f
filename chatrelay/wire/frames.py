"""The fast path for frames: read whole text messages directly from the bytes that were received.

Pure: bytes and a callable come in, a count goes out. This module must not know what a message says, nor what is wrong
with a frame. RFC 6455, section 5.2, has the layout.

Nearly every frame that a chat client sends is of one kind: text, final, masked, not compressed, shorter than 64 KiB,
and complete in what was received. `take_messages` takes such frames one after the other. It stops at the first byte of
any other, and leaves that and all that follows to Autobahn:

- frames of any other opcode (continuation, binary, close, ping, pong);
- frames that are not final, have a reserved bit set, or are not masked;
- lengths of 64 KiB and more, lengths not written in their shortest form, and
  lengths above the limit for a message;
- text that is not UTF-8;
- a frame that is not complete yet.

So only Autobahn handles frames that are invalid.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

_FINAL_TEXT = 0x81
_MASKED = 0x80
_IN_TWO_BYTES = 126
_from_bytes = int.from_bytes
_Decoder = codecs.getincrementaldecoder("utf-8")
_SHORTEST = 6
"""Bytes of the shortest masked frame: two of header, four of mask."""


GOING_AWAY = b"\x03\xe9"
"""The payload of a close frame with 1001 and without a reason."""


def ends_by_going_away(data: bytes) -> bool:
    """Return whether `data` ends with a close frame with 1001, masked or not. Only servers send it without a mask."""
    if data.endswith(b"\x88\x02" + GOING_AWAY):
        return True
    frame = data[-8:]
    is_masked = len(frame) == 8 and frame.startswith(b"\x88\x82")
    return is_masked and bytes((frame[6] ^ frame[2], frame[7] ^ frame[3])) == GOING_AWAY


def take_messages(data: bytes, longest: int, receive: Callable[[bytes], bool]) -> int:
    """Hand whole text messages to `receive`, in order.

    :param data: what was received, beginning with a frame, outside any message.
    :param longest: the most bytes that a message may have; 0 for no limit.
    :param receive: called with one message; returns whether the next may follow:
        False if the call has changed the connection's state.
    :returns: how many bytes were taken; the rest is for Autobahn.
    """
    taken = 0
    size = len(data)
    last = size - _SHORTEST
    while taken <= last and data[taken] == _FINAL_TEXT:
        length = data[taken + 1] - _MASKED
        start = taken + 6
        if length == _IN_TWO_BYTES:
            length = data[taken + 2] << 8 | data[taken + 3]
            start += 2
            if length < _IN_TWO_BYTES:
                break
        elif not 0 <= length < _IN_TWO_BYTES:
            break
        end = start + length
        if end > size or 0 < longest < length:
            break
        # Each four bytes are XORed with the mask (section 5.3); as big integers, that is one step for all of them.
        words = length + 3 >> 2
        mask = _from_bytes(data[start - 4 : start], "little")
        mask *= _ONES[words] if words < 256 else _ones(words)
        payload = (_from_bytes(data[start:end], "little") ^ mask).to_bytes(4 * words, "little")[:length]
        if not (payload.isascii() or is_utf8(payload)):
            break
        taken = end
        if not receive(payload):
            break
    return taken


def _ones(words: int) -> int:
    """Return the number that repeats a mask of four bytes `words` times when the mask is multiplied by it."""
    return int.from_bytes(b"\1\0\0\0" * words, "little")


_ONES = tuple(map(_ones, range(256)))
"""`_ones` for messages of usual lengths. Computing it takes longer than the rest of the unmasking."""


def is_utf8(payload: bytes) -> bool:
    """Return whether a payload is UTF-8 (RFC 3629), as text must be (RFC 6455, section 8.1)."""
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class TextValidator:
    """Checks whether text that comes in pieces is UTF-8. It replaces Autobahn's own validator, which is much slower.

    An error is found when its piece is checked, as RFC 6455 (section 8.1) allows, and not only at the end of the text.
    """

    __slots__ = ("_decoder", "_size")

    def __init__(self) -> None:
        self._decoder = _Decoder()
        self._size = 0

    def reset(self) -> None:
        """Begin another text."""
        self._decoder.reset()
        self._size = 0

    def validate(self, data: bytes) -> tuple[bool, bool, int, int]:
        """Check the next piece.

        :returns: whether the text is UTF-8 so far; whether the piece ends with a whole character; how many bytes of the
            piece are valid; and how many bytes of the text are.
        """
        begun = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(data)
        except UnicodeDecodeError as error:
            valid = error.start - begun
            return False, False, max(0, valid), self._size + valid
        pending = self._decoder.getstate()[0]
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
            # These are two bytes of a surrogate, which is not UTF-8 whatever follows. Python's decoder waits for the
            # third, because its handler "surrogatepass" needs all three.
            valid = len(data) - len(pending)
            return False, False, max(0, valid), self._size + valid
        self._size += len(data)
        return True, not pending, len(data), self._size


def text_frame(payload: bytes) -> bytes:
    """Encode a server's text frame: final, not masked, not compressed."""
    length = len(payload)
    return (_HEADS[length] if length < 1024 else _head(length)) + payload


def _head(length: int) -> bytes:
    """Encode the header of a server's text frame."""
    if length < _IN_TWO_BYTES:
        return bytes((_FINAL_TEXT, length))
    if length < 65536:
        return bytes((_FINAL_TEXT, _IN_TWO_BYTES)) + length.to_bytes(2, "big")
    return bytes((_FINAL_TEXT, 127)) + length.to_bytes(8, "big")


_HEADS = tuple(map(_head, range(1024)))
"""The headers of frames of usual lengths. Encoding one takes longer than the rest of the frame."""
