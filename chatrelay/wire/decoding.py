"""The common parts of all decoders: the defences against costly bytes, and the header of a refused frame.

Pure. A dialect decodes a frame with msgspec. If msgspec refuses the frame, this module finds out what the frame was
meant to be. It must not know the requests of any dialect, nor what happens when one is refused.

A client can send as many frames that can't be used as frames that can. So finding out what one was meant to be must not
take longer than using one: msgspec alone reads it, once more, and keeps two values. For some bytes, Python's own
decoder takes 200 times as long as msgspec.
"""

from __future__ import annotations

import enum
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from chatrelay.model import MAX_CONTENT, MAX_TOKEN
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import DisguisedHeader, RawHeader, Token, UnusableFrame

MAX_SURE_CHARACTERS = MAX_CONTENT // 4
"""Content of so many characters is never too large: in UTF-8, each has at most 4 bytes (RFC 3629, section 3)."""

# msgspec decodes an escaped NUL. PostgreSQL would refuse the whole batch with it, and SQLite would store the text with
# a wrong length. So it is refused. (A raw NUL is not JSON at all.)
ESCAPED_NUL = rb"\u0000"
_ESCAPED_BACKSLASH = rb"\\"

BACKSLASH = ord("\\")

JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors that msgspec raises for invalid bytes."""

NUL_REFUSED = "a string holds U+0000, which is not accepted anywhere"
"""The detail of the refusal of a frame with an escaped NUL."""

CONTENT_REFUSED = f"content is larger than {MAX_CONTENT} bytes of UTF-8"
"""The detail of the refusal of content that is too large."""


def holds_nul(payload: bytes) -> bool:
    """Return whether a text message has an escaped NUL.

    :param payload: a text message in which `ESCAPED_NUL` was found. Behind an escaped backslash, these bytes are
        ordinary text.
    """
    # Escapes are read from the left. So in a run of backslashes each pair is an escaped backslash, and only one without
    # a partner begins another escape. Each pair is replaced by two other characters, because removing it would join the
    # texts on both sides. A regular expression would read every byte.
    return ESCAPED_NUL in payload.replace(_ESCAPED_BACKSLASH, b"--")


def is_too_large(content: str) -> bool:
    """Return whether content has more than `MAX_CONTENT` bytes of UTF-8."""
    return len(content.encode("utf-8")) > MAX_CONTENT


# This table disguises JSON: its structure stays the same, and it has no surrogates, because no escape begins with \ud
# or \uD any more. (Replacing only those escapes would take two searches, which some texts make ten times as long.) The
# key `id` becomes `ic`. No other key becomes `ic`: a `c` becomes a `C`, and its escape \u0063 becomes \u0062.
DISGUISE = bytes.maketrans(b"dDc3", b"cCC2")


class TypeAndID(NamedTuple):
    """A frame's ``type`` and ``id``, as the bytes that they are written in."""

    type: Raw | UnsetType
    id: Raw | UnsetType


_raw_header_decoder: msgspec.json.Decoder[RawHeader] = msgspec.json.Decoder(RawHeader)
_disguised_header_decoder: msgspec.json.Decoder[DisguisedHeader] = msgspec.json.Decoder(DisguisedHeader)
_token_decoder: msgspec.json.Decoder[Token] = msgspec.json.Decoder(Token)

# Each character may be escaped: six bytes, or twelve for one that takes a pair of surrogates.
_LONGEST_TOKEN = 2 + 12 * MAX_TOKEN


def type_and_id(payload: bytes) -> TypeAndID:
    """Read the type and the id of one text message, and check nothing else of it.

    :param payload: the whole message, UTF-8.
    :raises UnusableFrame: if it is not a JSON object.
    """
    try:
        raw = _raw_header_decoder.decode(payload)
    except JSON_ERRORS as error:
        return type_and_id_despite(payload, error)
    return TypeAndID(raw.type, raw.id)


def type_and_id_despite(payload: bytes, error: Exception) -> TypeAndID:
    """Read the type and the id of a text message that msgspec has refused, if it is JSON after all.

    `JSON.stringify` writes half an emoji as a lone surrogate. That is JSON (RFC 8259, section 8.2), and the request
    must be refused under its id. msgspec refuses a lone surrogate as malformed.

    :raises UnusableFrame: if it is not a JSON object.
    """
    if isinstance(error, RecursionError | msgspec.ValidationError) or BACKSLASH not in payload:
        raise _not_json(error) from None
    # msgspec finds the values in the disguised bytes. Its `Raw` is a view of the buffer. So when the original bytes are
    # back in the buffer, the values are those of the original.
    buffer = bytearray(payload.translate(DISGUISE))
    try:
        found = _disguised_header_decoder.decode(buffer)
    except JSON_ERRORS as other:
        raise _not_json(other) from None
    buffer[:] = payload
    return TypeAndID(found.type, found.id)


def _not_json(error: Exception) -> UnusableFrame:
    if isinstance(error, RecursionError):
        detail = "nested too deeply"
    elif isinstance(error, msgspec.ValidationError):
        detail = "expected a JSON object"
    else:
        detail = f"not JSON: {error}"
    return UnusableFrame(Reason.INVALID_JSON, detail)


def token_in(raw: Raw | UnsetType) -> str | int | UnsetType:
    """Return the id that is written in these bytes; UNSET if it can't be used."""
    if isinstance(raw, UnsetType) or len(raw) > _LONGEST_TOKEN:
        return UNSET
    try:
        token = _token_decoder.decode(raw)
    except JSON_ERRORS:
        return UNSET
    return UNSET if isinstance(token, str) and "\0" in token else token


def without_nul(request_id: str | int) -> str | int | UnsetType:
    """Return the id of a request that was decoded; UNSET if it has a NUL, and can't be used."""
    return UNSET if isinstance(request_id, str) and "\0" in request_id else request_id


KindT = TypeVar("KindT", bound=enum.Enum)


class Kinds(Generic[KindT]):
    """The kinds of request of one dialect, by their ``type``.

    :param kinds: an enumeration whose values are the types.
    """

    def __init__(self, kinds: type[KindT]) -> None:
        self._decoder: msgspec.json.Decoder[KindT] = msgspec.json.Decoder(kinds)
        self._longest = 2 + 6 * max(len(kind.value) for kind in kinds)

    def kind_of(self, raw: Raw | UnsetType) -> KindT | None:
        """Return the kind that is written in these bytes; None if it is none of them."""
        if isinstance(raw, UnsetType) or len(raw) > self._longest:
            return None
        try:
            return self._decoder.decode(raw)
        except JSON_ERRORS:
            return None
