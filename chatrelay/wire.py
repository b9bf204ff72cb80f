"""The wire, v1: bytes to requests, and answers to bytes.

Pure. This module knows the JSON objects that cross a connection, the reasons
and the close codes, and the bounds of every value. It must not know who is
logged in, what a connection is, or what time it is. `docs/protocol.rst` is
the contract it keeps; a test sends every example of that page.
"""

from __future__ import annotations

import enum
import json
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

SUBPROTOCOL = "chatrelay.v1"
"""The WebSocket subprotocol of this dialect; a client that offers none speaks it too."""

MAX_INTEGER = 2**53
"""Integers on the wire lie within ± this, inclusive: up to here JavaScript's numbers are exact (RFC 8259, 6)."""

MAX_SESSID = 4096
"""Characters of a SESSID."""

MAX_TOKEN = 64
"""Characters of a client's ``id`` or ``timeStamp``, where they are strings, and of a uID."""

MAX_CONTENT = 16 * 1024
"""Bytes of a message's ``content``, encoded as UTF-8."""

MAX_BYTES_A_CHARACTER = 4
"""The longest UTF-8 sequence (RFC 3629, section 3)."""


class Reason(enum.StrEnum):
    """Why something was not done. Published, with what a client should do, in docs/protocol.rst."""

    RECEIVING_USER_NOT_CONNECTED = "receiving-user-not-connected"
    INVALID_MESSAGE = "invalid-message"
    LOG_UNAVAILABLE = "log-unavailable"
    BUSY = "busy"
    RATE_LIMITED = "rate-limited"
    WEBSERVER_UNAVAILABLE = "webserver-unavailable"
    LOGIN_PENDING = "login-pending"
    ALREADY_LOGGED_IN = "already-logged-in"
    INVALID_JSON = "invalid-json"
    UNKNOWN_TYPE = "unknown-type"
    INVALID_AUTH_REQUEST = "invalid-auth-request"


class CloseCode(enum.IntEnum):
    """Why a connection was closed. 4000-4499: reconnect; 4500-4999: do not (docs/protocol.rst)."""

    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    MESSAGE_TOO_BIG = 1009
    STOPPING = 4000
    LOGIN_TIMEOUT = 4001
    UNREAD = 4002
    NO_PONG = 4004
    LOGIN_REFUSED = 4500
    SESSION_ENDED = 4501
    UNUSABLE_FRAMES = 4502
    RATE_LIMIT = 4503
    TOO_MANY_CONNECTIONS = 4504
    ENDED = 4505


# What clients send ---------------------------------------------------------

_Integer = Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Token = Annotated[str, Meta(max_length=MAX_TOKEN)] | _Integer
"""A value of the client's own that is given back as it came: same JSON type, same value."""
UserID = str | _Integer
"""A uID as it travels. ``"7"`` and ``7`` name the same user: compare `user_key` of each."""


class AuthRequest(Struct, frozen=True, gc=False, tag_field="type", tag="auth-request"):
    """Log me in. Without a SESSID, the handshake's session cookie is meant."""

    sessid: Annotated[str, Meta(min_length=1, max_length=MAX_SESSID)] | UnsetType = field(name="SESSID", default=UNSET)

    def __repr__(self) -> str:  # a session id is never logged, anywhere
        return "AuthRequest(sessid=<hidden>)"


class Outgoing(Struct, frozen=True, gc=False):
    """The message inside a request to send it."""

    time_stamp: Token = field(name="timeStamp")
    to_uid: UserID = field(name="touID")
    content: str


class SendRequest(Struct, frozen=True, gc=False, tag_field="type", tag="message-send-request"):
    """Send this message, and answer under this id."""

    id: Token
    message: Outgoing


class Message(Struct, gc=False):
    """One message on its way, as it is logged and delivered. Nobody changes it.

    A Struct, though it crosses no wire: one is made for every message, and
    attrs takes three times as long.

    :ivar from_uid: the sender, as the webserver answered.
    :ivar to_uid: the recipient, as the sender wrote it.
    :ivar client_id: the sender's id for the request.
    :ivar time_stamp: the sender's timeStamp.
    :ivar received_at: when the relay got it, in seconds since 1970 UTC.
    """

    from_uid: str | int
    to_uid: str | int
    client_id: str | int
    time_stamp: str | int
    content: str
    received_at: float


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


_request_decoder: msgspec.json.Decoder[AuthRequest | SendRequest] = msgspec.json.Decoder(AuthRequest | SendRequest)
_decode = _request_decoder.decode
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
    try:
        request = _decode(payload)
    except _JSON_ERRORS as error:
        raise _diagnose(payload, error) from None
    if _BACKSLASH in payload and _ESCAPED_NUL in payload and _holds_nul(payload):
        raise _diagnose(payload, ValueError("a string holds U+0000, which is not accepted anywhere"))
    if type(request) is SendRequest:
        content = request.message.content
        if len(content) * MAX_BYTES_A_CHARACTER > MAX_CONTENT and len(content.encode("utf-8")) > MAX_CONTENT:
            raise UnusableFrame(
                Reason.INVALID_MESSAGE,
                f"content is larger than {MAX_CONTENT} bytes of UTF-8",
                send=True,
                request_id=request.id,
            )
    return request


def _holds_nul(payload: bytes) -> bool:
    # Escapes are read from the left, so what is left of a run of backslashes without its pairs is the escape's own. The
    # pairs leave something behind, lest what stood on both sides come together. An expression would look at each byte.
    return _ESCAPED_NUL in payload.replace(_ESCAPED_BACKSLASH, b"--")


def _diagnose(payload: bytes, error: Exception) -> UnusableFrame:
    """Say what a frame that could not be decoded was meant to be, and what is wrong with it.

    Python's own decoder reads more than msgspec's does: half an emoji, which
    `JSON.stringify` writes as a lone surrogate, must still be refused under
    the id of its request.
    """
    try:
        frame = json.loads(payload.decode("utf-8"), parse_int=_integer, parse_constant=_refuse_constant)
    except RecursionError:
        return UnusableFrame(Reason.INVALID_JSON, "nested too deeply")
    except ValueError as why:
        return UnusableFrame(Reason.INVALID_JSON, f"not JSON: {why}")
    if not isinstance(frame, dict):
        return UnusableFrame(Reason.INVALID_JSON, "expected a JSON object")
    kind = frame.get("type")
    if kind == "auth-request":
        return UnusableFrame(Reason.INVALID_AUTH_REQUEST, str(error))
    if kind == "message-send-request":
        return UnusableFrame(
            Reason.INVALID_MESSAGE,
            str(error),
            send=True,
            request_id=frame["id"] if _is_token(frame.get("id")) else UNSET,
        )
    return UnusableFrame(Reason.UNKNOWN_TYPE, 'expected "type" to be "auth-request" or "message-send-request"')


def _integer(digits: str) -> int:
    # Python refuses to read thousands of digits; beyond these, every integer is out of bounds alike.
    return int(digits) if len(digits) < 20 else MAX_INTEGER + 1


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _is_token(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TOKEN and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
    return _is_integer(value)


def _is_integer(value: object) -> bool:
    # To Python, True is an integer; to JSON it is none.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def user_key(uid: str | int) -> str:
    """The one name of a user, however the uID was written: ``7`` and ``"7"`` are the same."""
    return uid if type(uid) is str else str(uid)


def is_uid(value: object) -> bool:
    """Whether a webserver may name a user so: 1 to 64 printable characters, or an integer within ±2^53."""
    if isinstance(value, str):
        return 1 <= len(value) <= MAX_TOKEN and value.isprintable()
    return _is_integer(value)


def is_sessid(value: object) -> bool:
    """Whether this could be a SESSID: 1 to 4096 characters, no lone surrogates among them."""
    return (
        isinstance(value, str) and 1 <= len(value) <= MAX_SESSID and not any("\ud800" <= c <= "\udfff" for c in value)
    )


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
