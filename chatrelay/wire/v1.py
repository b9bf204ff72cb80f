"""The dialect v1: decode requests, and encode answers and deliveries.

Pure. This module is a `chatrelay.interfaces.Dialect`, and keeps the contract of `docs/protocol.rst`; a test sends every
example of that page. This module must not know who is logged in, what a connection is, or what time it is.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from chatrelay.model import MAX_CONTENT, MAX_TOKEN, Message
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import (
    AuthRequest,
    AuthResponse,
    Delivered,
    Delivery,
    DisguisedHeader,
    Error,
    Header,
    Kind,
    Outcome,
    RawHeader,
    SendRequest,
    SendResponse,
    Token,
    UnusableFrame,
)

SUBPROTOCOL = "chatrelay.v1"
"""The WebSocket subprotocol of this dialect; a client that offers none uses it too."""

MAX_BYTES_A_CHARACTER = 4
"""The most bytes of a character in UTF-8 (RFC 3629, section 3)."""


# There is one decoder for each type of request, and the type is a field like any other. A decoder of a tagged union
# would search for the tag first, and then read everything before it a second time. A decoder of a single tagged Struct
# would accept an object without a tag.
_send_request_decoder: msgspec.json.Decoder[SendRequest] = msgspec.json.Decoder(SendRequest)
_auth_request_decoder: msgspec.json.Decoder[AuthRequest] = msgspec.json.Decoder(AuthRequest)
_decode_send_request = _send_request_decoder.decode
# msgspec decodes an escaped NUL. PostgreSQL would refuse the whole batch with it, and SQLite would store the text with
# a wrong length. So it is refused here. (A raw NUL is not JSON at all.)
_ESCAPED_NUL = rb"\u0000"
_ESCAPED_BACKSLASH = rb"\\"

_BACKSLASH = ord("\\")

_JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode(payload: bytes) -> AuthRequest | SendRequest:
    """Decode a request from one text message.

    :param payload: the whole message. The caller has checked that it is UTF-8 (RFC 6455, section 8.1), because msgspec
        does not check the fields that it skips.
    :raises UnusableFrame: if it is not a request. No bytes cause any other error.
    """
    request: AuthRequest | SendRequest
    try:
        request = _decode_send_request(payload)
    except _JSON_ERRORS as error:
        request = _decode_other(payload, error)
    if _BACKSLASH in payload and _ESCAPED_NUL in payload and _holds_nul(payload):
        raise _nul_in(request)
    if type(request) is SendRequest:
        content = request.message.content
        if len(content) * MAX_BYTES_A_CHARACTER > MAX_CONTENT and len(content.encode("utf-8")) > MAX_CONTENT:
            raise _invalid_message(f"content is larger than {MAX_CONTENT} bytes of UTF-8", request.id)
    return request


def _decode_other(payload: bytes, error: Exception) -> AuthRequest:
    """Decode a text message that is not a message-send-request.

    :param error: why it is not one.
    """
    if isinstance(error, msgspec.ValidationError):
        try:
            return _auth_request_decoder.decode(payload)
        except _JSON_ERRORS as of_auth_request:
            # msgspec stops at the first value that is wrong, so it may not have read the type.
            header = read_header(payload)
            error = error if header.kind is Kind.SEND_REQUEST else of_auth_request
    else:
        header = _header_despite(payload, error)
    if header.kind is Kind.SEND_REQUEST:
        raise _invalid_message(str(error), header.request_id) from None
    raise UnusableFrame(Reason.INVALID_AUTH_REQUEST, str(error)) from None


def _holds_nul(payload: bytes) -> bool:
    # Escapes are read from the left. So in a run of backslashes each pair is an escaped backslash, and only one without
    # a partner begins another escape. Each pair is replaced by two other characters, because removing it would join the
    # texts on both sides. A regular expression would read every byte.
    return _ESCAPED_NUL in payload.replace(_ESCAPED_BACKSLASH, b"--")


def _nul_in(request: AuthRequest | SendRequest) -> UnusableFrame:
    """Return the error for a request that contains U+0000."""
    detail = "a string holds U+0000, which is not accepted anywhere"
    if not isinstance(request, SendRequest):
        return UnusableFrame(Reason.INVALID_AUTH_REQUEST, detail)
    has_nul = isinstance(request.id, str) and "\0" in request.id
    return _invalid_message(detail, UNSET if has_nul else request.id)


# What a frame was meant to be --------------------------------------------------
#
# A client can send as many frames that can't be used as frames that can. So finding out what one was meant to be must
# not take longer than using one: msgspec alone reads it, once more, and keeps two values. For some bytes, Python's own
# decoder takes 200 times as long as msgspec.


# This table disguises JSON: its structure stays the same, and it has no surrogates, because no escape begins with \ud
# or \uD any more. (Replacing only those escapes would take two searches, which some texts make ten times as long.) The
# key `id` becomes `ic`. No other key becomes `ic`: a `c` becomes a `C`, and its escape \u0063 becomes \u0062.
DISGUISE = bytes.maketrans(b"dDc3", b"cCC2")


_raw_header_decoder: msgspec.json.Decoder[RawHeader] = msgspec.json.Decoder(RawHeader)
_disguised_header_decoder: msgspec.json.Decoder[DisguisedHeader] = msgspec.json.Decoder(DisguisedHeader)
_token_decoder: msgspec.json.Decoder[Token] = msgspec.json.Decoder(Token)
_type_decoder: msgspec.json.Decoder[Kind] = msgspec.json.Decoder(Kind)

# Each character may be escaped: six bytes, or twelve for one that takes a pair of surrogates.
_LONGEST_TYPE = 2 + 6 * max(len(kind.value) for kind in Kind)
_LONGEST_TOKEN = 2 + 12 * MAX_TOKEN


def read_header(payload: bytes) -> Header:
    """Read the type and the id of one text message, and check nothing else of it.

    :param payload: as for `decode`.
    :raises UnusableFrame: if it is not a JSON object, or its ``type`` is not one that clients send.
    """
    try:
        raw = _raw_header_decoder.decode(payload)
    except _JSON_ERRORS as error:
        return _header_despite(payload, error)
    return _header(raw.type, raw.id)


def _header_despite(payload: bytes, error: Exception) -> Header:
    """Read the header of a text message that msgspec has refused, if it is JSON after all.

    `JSON.stringify` writes half an emoji as a lone surrogate. That is JSON (RFC 8259, section 8.2), and the request
    must be refused under its id. msgspec refuses a lone surrogate as malformed.
    """
    if isinstance(error, RecursionError | msgspec.ValidationError) or _BACKSLASH not in payload:
        raise _not_json(error) from None
    # msgspec finds the values in the disguised bytes. Its `Raw` is a view of the buffer. So when the original bytes are
    # back in the buffer, the values are those of the original.
    buffer = bytearray(payload.translate(DISGUISE))
    try:
        found = _disguised_header_decoder.decode(buffer)
    except _JSON_ERRORS as other:
        raise _not_json(other) from None
    buffer[:] = payload
    return _header(found.type, found.id)


def _not_json(error: Exception) -> UnusableFrame:
    if isinstance(error, RecursionError):
        detail = "nested too deeply"
    elif isinstance(error, msgspec.ValidationError):
        detail = "expected a JSON object"
    else:
        detail = f"not JSON: {error}"
    return UnusableFrame(Reason.INVALID_JSON, detail)


def _header(type: Raw | UnsetType, id: Raw | UnsetType) -> Header:
    kind = _kind_of(type)
    if kind is None:
        raise UnusableFrame(Reason.UNKNOWN_TYPE, 'expected "type" to be "auth-request" or "message-send-request"')
    return Header(kind, _token_in(id))


def _kind_of(raw: Raw | UnsetType) -> Kind | None:
    if isinstance(raw, UnsetType) or len(raw) > _LONGEST_TYPE:
        return None
    try:
        return _type_decoder.decode(raw)
    except _JSON_ERRORS:
        return None


def _token_in(raw: Raw | UnsetType) -> str | int | UnsetType:
    if isinstance(raw, UnsetType) or len(raw) > _LONGEST_TOKEN:
        return UNSET
    try:
        token = _token_decoder.decode(raw)
    except _JSON_ERRORS:
        return UNSET
    return UNSET if isinstance(token, str) and "\0" in token else token


def _invalid_message(detail: str, request_id: str | int | UnsetType) -> UnusableFrame:
    return UnusableFrame(Reason.INVALID_MESSAGE, detail, send=True, request_id=request_id)


# What chatrelay sends ------------------------------------------------------


_encode = msgspec.json.Encoder().encode

# A template, because this answer is sent for every message and only its id varies. Two Structs take twice as long.
_ACCEPTED = b'{"type":"send-request-response","response":{"id":%b,"value":true}}'


def auth_response(value: bool, reason: Reason | None = None) -> bytes:
    """Encode the answer to an auth-request."""
    return _encode(AuthResponse(value, UNSET if reason is None else reason))


def delivery(message: Message) -> bytes:
    """Encode a message for its recipient, from its known fields only: nothing else that a client sent is passed on."""
    return _encode(Delivery(Delivered(message.time_stamp, message.from_uid, message.to_uid, message.content)))


def accepted(message: Message) -> bytes:
    """Encode the answer to the sender of a message that was accepted."""
    return _ACCEPTED % _encode(message.client_id)


def refused(request_id: str | int, reason: Reason) -> bytes:
    """Encode the answer to a message-send-request that was refused."""
    return _encode(SendResponse(Outcome(request_id, False, reason)))


def error(reason: Reason, detail: str) -> bytes:
    """Encode the answer to a frame that can't be used."""
    return _encode(Error(reason, detail))
