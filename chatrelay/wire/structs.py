"""The JSON objects on the wire, as msgspec Structs: one class for each shape.

Pure: msgspec reads the classes and does the work. Every dialect decodes requests to these classes. This module must not
know what a request means, nor when an answer is sent.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal, NamedTuple

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from chatrelay.model import MAX_INTEGER, MAX_SESSID, MAX_TOKEN
from chatrelay.wire.codes import Reason

_Integer = Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Token = Annotated[str, Meta(max_length=MAX_TOKEN)] | _Integer
"""A value that the client chooses and gets back unchanged: same JSON type, same value."""
IsTrue = Annotated[bool, Meta(extra_json_schema={"const": True})]
"""True. (Before msgspec 0.20, a ``Literal`` of it can't be decoded, and has no schema.)"""
IsFalse = Annotated[bool, Meta(extra_json_schema={"const": False})]
"""False."""
UserID = str | _Integer
"""A uID as it is on the wire. ``"7"`` and ``7`` name the same user: compare the `user_key` of each."""


# Requests ------------------------------------------------------------------


class AuthRequest(Struct, frozen=True, gc=False):
    """A request to log in. Without a SESSID, it is a login by the handshake's session cookie."""

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
    """A request to send a message. The answer has the same id."""

    id: Token
    message: Outgoing
    type: Literal["message-send-request"]


class Kind(enum.Enum):
    """The kinds of request, by their ``type``."""

    AUTH_REQUEST = "auth-request"
    SEND_REQUEST = "message-send-request"


class Header(NamedTuple):
    """The ``type`` and the ``id`` of a frame. The rest of the frame is JSON, and is not checked further."""

    kind: Kind
    request_id: str | int | UnsetType


class UnusableFrame(ValueError):
    """A text message that is not a request.

    :ivar reason: one of the published reasons.
    :ivar detail: one sentence for the developer of the client.
    :ivar send: whether it was meant as a ``message-send-request``.
    :ivar request_id: that request's id, if it could be read.
    """

    def __init__(
        self, reason: Reason, detail: str, *, send: bool = False, request_id: str | int | UnsetType = UNSET
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.send = send
        self.request_id = request_id


class RawHeader(Struct, gc=False):
    """A frame's ``type`` and ``id``, as the bytes that they are written in."""

    type: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


class DisguisedHeader(Struct, gc=False):
    """A `RawHeader` of a frame in disguise, whose key ``id`` may have become ``ic``; see `chatrelay.wire.decoding`."""

    type: Raw | UnsetType = UNSET
    plain_id: Raw | UnsetType = field(name="ic", default=UNSET)
    escaped_id: Raw | UnsetType = field(name="id", default=UNSET)  # a d that is written as \u0064 stays a d

    @property
    def id(self) -> Raw | UnsetType:
        """The id. It is unset if there are two, because the last one would count, and their order is not known here."""
        if isinstance(self.escaped_id, UnsetType):
            return self.plain_id
        return self.escaped_id if isinstance(self.plain_id, UnsetType) else UNSET


# Answers and deliveries ----------------------------------------------------


class AuthResponse(Struct, gc=False, tag_field="type", tag="auth-response"):
    """The answer to an auth-request."""

    response: bool
    reason: Reason | UnsetType = UNSET


class Delivered(Struct, gc=False):
    """The message inside its delivery."""

    time_stamp: str | int = field(name="timeStamp")
    from_uid: str | int = field(name="fromuID")
    to_uid: str | int = field(name="touID")
    content: str


class Delivery(Struct, gc=False, tag_field="type", tag="message"):
    """A message for its recipient."""

    message: Delivered


class Accepted(Struct, gc=False):
    """The outcome of an accepted request to send a message."""

    id: Token
    value: IsTrue


class AcceptedResponse(Struct, gc=False, tag_field="type", tag="send-request-response"):
    """The answer to a message-send-request that was accepted."""

    response: Accepted


class Refused(Struct, gc=False):
    """The outcome of a request that was refused."""

    id: str | int
    value: IsFalse
    reason: Reason


class SendRefused(Struct, gc=False, tag_field="type", tag="send-request-response"):
    """The answer to a message-send-request that was refused."""

    response: Refused


class Error(Struct, gc=False, tag_field="type", tag="error"):
    """The answer to a frame that can't be used."""

    reason: Reason
    detail: str
