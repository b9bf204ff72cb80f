"""The dialect v1: decode requests, and encode answers and deliveries.

Pure. This module is a `chatrelay.interfaces.Dialect`, and keeps the contract of `docs/protocol.rst`; a test sends every
example of that page. This module must not know who is logged in, what a connection is, or what time it is.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from chatrelay.model import Message
from chatrelay.wire.codes import Reason
from chatrelay.wire.decoding import (
    BACKSLASH,
    CONTENT_REFUSED,
    ESCAPED_NUL,
    JSON_ERRORS,
    MAX_SURE_CHARACTERS,
    NUL_REFUSED,
    Kinds,
    TypeAndID,
    holds_nul,
    is_too_large,
    token_in,
    type_and_id,
    type_and_id_despite,
    without_nul,
)
from chatrelay.wire.structs import (
    AuthRequest,
    AuthResponse,
    Delivered,
    Delivery,
    Error,
    Header,
    Kind,
    Refused,
    SendRefused,
    SendRequest,
    UnusableFrame,
)

SUBPROTOCOL = "chatrelay.v1"
"""The WebSocket subprotocol of this dialect; a client that offers none uses it too."""


# There is one decoder for each type of request, and the type is a field like any other. A decoder of a tagged union
# would search for the tag first, and then read everything before it a second time. A decoder of a single tagged Struct
# would accept an object without a tag.
_send_request_decoder: msgspec.json.Decoder[SendRequest] = msgspec.json.Decoder(SendRequest)
_auth_request_decoder: msgspec.json.Decoder[AuthRequest] = msgspec.json.Decoder(AuthRequest)
_decode_send_request = _send_request_decoder.decode

_kinds = Kinds(Kind)


def decode(payload: bytes) -> AuthRequest | SendRequest:
    """Decode a request from one text message.

    :param payload: the whole message. The caller has checked that it is UTF-8 (RFC 6455, section 8.1), because msgspec
        does not check the fields that it skips.
    :raises UnusableFrame: if it is not a request. No bytes cause any other error.
    """
    request: AuthRequest | SendRequest
    try:
        request = _decode_send_request(payload)
    except JSON_ERRORS as error:
        request = _decode_other(payload, error)
    if BACKSLASH in payload and ESCAPED_NUL in payload and holds_nul(payload):
        raise _nul_in(request)
    if type(request) is SendRequest:
        content = request.message.content
        if len(content) > MAX_SURE_CHARACTERS and is_too_large(content):
            raise _invalid_message(CONTENT_REFUSED, request.id)
    return request


def _decode_other(payload: bytes, error: Exception) -> AuthRequest:
    """Decode a text message that is not a message-send-request.

    :param error: why it is not one.
    """
    if isinstance(error, msgspec.ValidationError):
        try:
            return _auth_request_decoder.decode(payload)
        except JSON_ERRORS as of_auth_request:
            # msgspec stops at the first value that is wrong, so it may not have read the type.
            header = read_header(payload)
            error = error if header.kind is Kind.SEND_REQUEST else of_auth_request
    else:
        header = _header(type_and_id_despite(payload, error))
    if header.kind is Kind.SEND_REQUEST:
        raise _invalid_message(str(error), header.request_id) from None
    raise UnusableFrame(Reason.INVALID_AUTH_REQUEST, str(error)) from None


def _nul_in(request: AuthRequest | SendRequest) -> UnusableFrame:
    """Return the error for a request that contains U+0000."""
    if not isinstance(request, SendRequest):
        return UnusableFrame(Reason.INVALID_AUTH_REQUEST, NUL_REFUSED)
    return _invalid_message(NUL_REFUSED, without_nul(request.id))


def read_header(payload: bytes) -> Header:
    """Read the type and the id of one text message, and check nothing else of it.

    :param payload: as for `decode`.
    :raises UnusableFrame: if it is not a JSON object, or its ``type`` is not one that clients send.
    """
    return _header(type_and_id(payload))


def _header(raw: TypeAndID) -> Header:
    kind = _kinds.kind_of(raw.type)
    if kind is None:
        raise UnusableFrame(Reason.UNKNOWN_TYPE, 'expected "type" to be "auth-request" or "message-send-request"')
    return Header(kind, token_in(raw.id))


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
    return _encode(SendRefused(Refused(request_id, False, reason)))


def error(reason: Reason, detail: str) -> bytes:
    """Encode the answer to a frame that can't be used."""
    return _encode(Error(reason, detail))
