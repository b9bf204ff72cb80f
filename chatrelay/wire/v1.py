"""The wire, v1: bytes to requests, and answers to bytes.

Pure. This module knows the JSON objects that cross a connection, and the
bounds of every value. It must not know who is
logged in, what a connection is, or what time it is. `docs/protocol.rst` is
the contract it keeps; a test sends every example of that page.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from chatrelay.model import MAX_CONTENT, MAX_INTEGER, MAX_SESSID, MAX_TOKEN
from chatrelay.wire.codes import Reason

SUBPROTOCOL = "chatrelay.v1"
"""The WebSocket subprotocol of this dialect; a client that offers none speaks it too."""

MAX_BYTES_A_CHARACTER = 4
"""The longest UTF-8 sequence (RFC 3629, section 3)."""


# What clients send ---------------------------------------------------------

_Integer = Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Token = Annotated[str, Meta(max_length=MAX_TOKEN)] | _Integer
"""A value of the client's own that is given back as it came: same JSON type, same value."""
UserID = str | _Integer
"""A uID as it travels. ``"7"`` and ``7`` name the same user: compare `user_key` of each."""


class AuthRequest(Struct, frozen=True, gc=False):
    """Log me in. Without a SESSID, the handshake's session cookie is meant."""

    type: Literal["auth-request"]
    sessid: Annotated[str, Meta(min_length=1, max_length=MAX_SESSID)] | UnsetType = field(name="SESSID", default=UNSET)

    def __repr__(self) -> str:  # a session id is never logged, anywhere
        return "AuthRequest(sessid=<hidden>)"


class Outgoing(Struct, frozen=True, gc=False):
    """The message inside a request to send it."""

    time_stamp: Token = field(name="timeStamp")
    to_uid: UserID = field(name="touID")
    content: str


class SendRequest(Struct, frozen=True, gc=False):
    """Send this message, and answer under this id."""

    id: Token
    message: Outgoing
    type: Literal["message-send-request"]


class UnusableFrame(ValueError):
    """A text message that is not a request.

    :ivar reason: one of the published reasons.
    :ivar detail: one sentence for the developer of the client.
    :ivar send: whether it was meant as a ``message-send-request``.
    :ivar request_id: that request's id, where it could be read.
    """

    def __init__(
        self, reason: Reason, detail: str, *, send: bool = False, request_id: str | int | UnsetType = UNSET
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.send = send
        self.request_id = request_id


# One for each type, which is a value like others: a decoder of a tagged union would look for the tag first, past all
# that stands before it, and then read that a second time; one of a single tagged Struct takes an object without a tag.
_send_request_decoder: msgspec.json.Decoder[SendRequest] = msgspec.json.Decoder(SendRequest)
_auth_request_decoder: msgspec.json.Decoder[AuthRequest] = msgspec.json.Decoder(AuthRequest)
_decode_send_request = _send_request_decoder.decode
# msgspec decodes an escaped NUL, but PostgreSQL would refuse the whole batch it is in and SQLite would store it with
# the wrong length, so it stops here. (A raw NUL is not JSON at all.)
_ESCAPED_NUL = rb"\u0000"
_ESCAPED_BACKSLASH = rb"\\"

_BACKSLASH = ord("\\")

_JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decode(payload: bytes) -> AuthRequest | SendRequest:
    """Make a request of one text message.

    :param payload: the whole message. It is UTF-8, as every text message is by the time it comes here
        (RFC 6455, section 8.1); msgspec does not look at the UTF-8 of the fields it skips.
    :raises UnusableFrame: for anything else, whatever the bytes.
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
    """Decode what is no message-send-request, for this error."""
    if isinstance(error, msgspec.ValidationError):
        try:
            return _auth_request_decoder.decode(payload)
        except _JSON_ERRORS as of_auth_request:
            # msgspec has not looked at anything behind the value that is wrong.
            header = read_header(payload)
            error = error if header.kind is Kind.SEND_REQUEST else of_auth_request
    else:
        header = _header_despite(payload, error)
    if header.kind is Kind.SEND_REQUEST:
        raise _invalid_message(str(error), header.request_id) from None
    raise UnusableFrame(Reason.INVALID_AUTH_REQUEST, str(error)) from None


def _holds_nul(payload: bytes) -> bool:
    # Escapes are read from the left, so what is left of a run of backslashes without its pairs is the escape's own. The
    # pairs leave something behind, lest what stood on both sides come together. An expression would look at each byte.
    return _ESCAPED_NUL in payload.replace(_ESCAPED_BACKSLASH, b"--")


def _nul_in(request: AuthRequest | SendRequest) -> UnusableFrame:
    """Refuse a request for a U+0000 in it."""
    detail = "a string holds U+0000, which is not accepted anywhere"
    if not isinstance(request, SendRequest):
        return UnusableFrame(Reason.INVALID_AUTH_REQUEST, detail)
    has_nul = isinstance(request.id, str) and "\0" in request.id
    return _invalid_message(detail, UNSET if has_nul else request.id)


# What a frame was meant to be --------------------------------------------------
#
# A client can send as many frames that can't be used as frames that can. So to find out what one was meant to be may
# not cost more than to use one: msgspec alone goes through it, once more, and keeps two values. To Python's own decoder
# some bytes cost 200 times what they cost msgspec.


class Kind(enum.Enum):
    """What a client's frame is meant to be, by its ``type``."""

    AUTH_REQUEST = "auth-request"
    SEND_REQUEST = "message-send-request"


class Header(NamedTuple):
    """What a frame is, as far as its ``type`` and ``id`` say; nothing else in it is checked but that it is JSON."""

    kind: Kind
    request_id: str | int | UnsetType


class _RawHeader(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


# JSON in disguise: of the same shape, and without surrogates, since no escape begins with \ud or \uD. (To replace just
# those escapes takes two searches, and some text makes them ten times as long.) The key `id` has become `ic`. No other
# key has: a `c` has become a `C`, and the escape \u0063, which is a `c` too, has a 2 for its 3.
_DISGUISE = bytes.maketrans(b"dDc3", b"cCC2")


class _DisguisedHeader(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    plain_id: Raw | UnsetType = field(name="ic", default=UNSET)
    escaped_id: Raw | UnsetType = field(name="id", default=UNSET)  # \u0064 stays the d that it is

    @property
    def id(self) -> Raw | UnsetType:
        if isinstance(self.escaped_id, UnsetType):
            return self.plain_id
        # Which of two came last, and counts, is not known any more.
        return self.escaped_id if isinstance(self.plain_id, UnsetType) else UNSET


_raw_header_decoder: msgspec.json.Decoder[_RawHeader] = msgspec.json.Decoder(_RawHeader)
_disguised_header_decoder: msgspec.json.Decoder[_DisguisedHeader] = msgspec.json.Decoder(_DisguisedHeader)
_token_decoder: msgspec.json.Decoder[Token] = msgspec.json.Decoder(Token)
_type_decoder: msgspec.json.Decoder[Kind] = msgspec.json.Decoder(Kind)

# Each character may be escaped: six bytes, or twelve for one that takes a pair of surrogates.
_LONGEST_TYPE = 2 + 6 * max(len(kind.value) for kind in Kind)
_LONGEST_TOKEN = 2 + 12 * MAX_TOKEN


def read_header(payload: bytes) -> Header:
    """Read what one text message is meant to be, without looking at the rest of it.

    :param payload: as for `decode`.
    :raises UnusableFrame: where it is not a JSON object, or its ``type`` is none that clients send.
    """
    try:
        raw = _raw_header_decoder.decode(payload)
    except _JSON_ERRORS as error:
        return _header_despite(payload, error)
    return _header(raw.type, raw.id)


def _header_despite(payload: bytes, error: Exception) -> Header:
    """Read the header of a text message that msgspec has refused, where it is JSON all the same.

    Half an emoji, which `JSON.stringify` writes as a lone surrogate, is JSON (RFC 8259, section 8.2), and its request
    must be refused under its id. msgspec takes a lone surrogate for malformed.
    """
    if isinstance(error, RecursionError | msgspec.ValidationError) or _BACKSLASH not in payload:
        raise _not_json(error) from None
    # The values are found in the disguise, and then read from the same places of what came: msgspec's `Raw` is a view.
    buffer = bytearray(payload.translate(_DISGUISE))
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


class _AuthResponse(Struct, gc=False, tag_field="type", tag="auth-response"):
    response: bool
    reason: Reason | UnsetType = UNSET


class _Delivered(Struct, gc=False):
    time_stamp: str | int = field(name="timeStamp")
    from_uid: str | int = field(name="fromuID")
    to_uid: str | int = field(name="touID")
    content: str


class _Delivery(Struct, gc=False, tag_field="type", tag="message"):
    message: _Delivered


class _Outcome(Struct, gc=False):
    id: str | int
    value: bool
    reason: Reason


class _SendResponse(Struct, gc=False, tag_field="type", tag="send-request-response"):
    response: _Outcome


class _Error(Struct, gc=False, tag_field="type", tag="error"):
    reason: Reason
    detail: str


_encode = msgspec.json.Encoder().encode

# Written out, as it is sent for every message and has one field: that takes half the time of two Structs.
_SENT = b'{"type":"send-request-response","response":{"id":%b,"value":true}}'


def auth_response(value: bool, reason: Reason | UnsetType = UNSET) -> bytes:
    """The answer to an auth-request."""
    return _encode(_AuthResponse(value, reason))


def message(time_stamp: str | int, from_uid: str | int, to_uid: str | int, content: str) -> bytes:
    """A message for its recipient, built from scratch: nothing a client added comes through."""
    return _encode(_Delivery(_Delivered(time_stamp, from_uid, to_uid, content)))


def sent(request_id: str | int) -> bytes:
    """The answer to a message-send-request that was done."""
    return _SENT % _encode(request_id)


def not_sent(request_id: str | int, reason: Reason) -> bytes:
    """The answer to a message-send-request that was not done."""
    return _encode(_SendResponse(_Outcome(request_id, False, reason)))


def error(reason: Reason, detail: str) -> bytes:
    """The answer to a frame that can't be used."""
    return _encode(_Error(reason, detail))
