"""The published vocabulary of the wire: reasons of refusals, close codes, and the reason sent with each code.

Pure. `docs/protocol.rst` publishes the tables, and a test compares them with this module. This module must not know
when a connection is closed or a request refused.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Reason(enum.StrEnum):
    """The reasons for refusing a request. docs/protocol.rst says what a client should do about each."""

    RECEIVING_USER_NOT_CONNECTED = "receiving-user-not-connected"
    RECEIVING_USER_FULL = "receiving-user-full"
    ID_REUSED = "id-reused"
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
    INVALID_REQUEST = "invalid-request"
    RESUME_EXPIRED = "resume-expired"


OF_V2 = frozenset((Reason.INVALID_REQUEST, Reason.RESUME_EXPIRED, Reason.ID_REUSED, Reason.RECEIVING_USER_FULL))
"""The reasons that only clients of v2 are told."""


class CloseCode(enum.IntEnum):
    """The codes of close frames. 4000-4499: reconnect; 4500-4999: do not (docs/protocol.rst)."""

    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    MESSAGE_TOO_BIG = 1009
    STOPPING = 4000
    LOGIN_TIMEOUT = 4001
    UNREAD = 4002
    NO_PONG = 4004
    LOG_LOST = 4005
    LOGIN_REFUSED = 4500
    SESSION_ENDED = 4501
    UNUSABLE_FRAMES = 4502
    RATE_LIMIT = 4503
    TOO_MANY_CONNECTIONS = 4504
    ENDED = 4505
    REPLACED = 4506


class Close(NamedTuple):
    """The code and the reason of a close frame that the relay sends.

    The values below are all of them, except those that Autobahn sends itself, whose codes are below 4000.

    :ivar code: the close code (RFC 6455, section 7.4).
    :ivar reason: at most 123 bytes of UTF-8, for the developer of the client.
    """

    code: CloseCode
    reason: str


MESSAGE_TOO_SLOW = Close(CloseCode.PROTOCOL_ERROR, "a message took too long")
BINARY_MESSAGE = Close(CloseCode.UNSUPPORTED_DATA, "binary messages are not accepted: send JSON as text")
STOPPING = Close(CloseCode.STOPPING, "the relay is stopping")
LOGIN_TIMEOUT = Close(CloseCode.LOGIN_TIMEOUT, "not logged in in time")
UNREAD = Close(CloseCode.UNREAD, "not reading fast enough")
NO_PONG = Close(CloseCode.NO_PONG, "no answer to pings")
LOG_LOST = Close(CloseCode.LOG_LOST, "the message log was lost or can't be read")
LOGIN_REFUSED = Close(CloseCode.LOGIN_REFUSED, "login refused three times")
SESSION_ENDED = Close(CloseCode.SESSION_ENDED, "the session at the site has ended")
SESSION_UNCONFIRMED = Close(CloseCode.SESSION_ENDED, "the site could not be asked about the session for too long")
UNUSABLE_FRAMES = Close(CloseCode.UNUSABLE_FRAMES, "ten frames could not be used")
RATE_LIMIT = Close(CloseCode.RATE_LIMIT, "kept on past the rate limit")
TOO_MANY_CONNECTIONS = Close(CloseCode.TOO_MANY_CONNECTIONS, "too many connections of this user: the oldest goes")
ENDED = Close(CloseCode.ENDED, "ended by the operator or the site")
REPLACED = Close(CloseCode.REPLACED, "replaced by a resumed connection")


def too_many_frames(limit: int) -> Close:
    """Return the close for a message in more than `limit` frames."""
    return Close(CloseCode.PROTOCOL_ERROR, f"a message in more than {limit} frames")


def message_too_big(limit: int) -> Close:
    """Return the close for a message of more than `limit` bytes."""
    return Close(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {limit} bytes")


def too_many_control_frames(limit: float) -> Close:
    """Return the close for more than `limit` pings and pongs a second."""
    return Close(CloseCode.PROTOCOL_ERROR, f"more than {limit:g} pings and pongs a second")
