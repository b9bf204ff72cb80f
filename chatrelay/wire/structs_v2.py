"""The JSON objects of the dialect v2, as msgspec Structs: one class for each shape.

Pure: msgspec reads the classes and does the work. The published JSON Schema is made from these classes and from those
of `chatrelay.wire.structs`, so a docstring here is a description there. This module must not know what a request means,
nor when an answer is sent.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from chatrelay.model import MAX_INTEGER, MAX_TOKEN
from chatrelay.wire.codes import Reason
from chatrelay.wire.structs import AuthRequest, IsTrue, Refused, Token, UnusableFrame

MIN_UNIQUE_ID = 8
"""The fewest characters of the ``id`` of a message-send-request; `MAX_TOKEN` is the most."""

MAX_RESUME = 8000
"""The most characters of a ``resume`` token."""

MAX_LIMIT, DEFAULT_LIMIT = 100, 50
"""The most entries of an answer to a history-request or conversations-request, and how many without a ``limit``."""

MAX_WATCHED = 100
"""The most uIDs in a presence-request."""

UniqueID = Annotated[str, Meta(min_length=MIN_UNIQUE_ID, max_length=MAX_TOKEN)]
UserID = (
    Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN)] | Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
)
ResumeToken = Annotated[str, Meta(min_length=1, max_length=MAX_RESUME)]
Place = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
Milliseconds = int

_TRUE = Raw(b"true")


# Requests ------------------------------------------------------------------


class Kind(enum.Enum):
    """The kinds of request, by their ``type``."""

    AUTH_REQUEST = "auth-request"
    SEND_REQUEST = "message-send-request"
    HISTORY_REQUEST = "history-request"
    CONVERSATIONS_REQUEST = "conversations-request"
    PRESENCE_REQUEST = "presence-request"
    RECEIVED = "received"
    READ = "read"
    TYPING = "typing"
    PING = "ping"


MARKS = frozenset((Kind.PRESENCE_REQUEST, Kind.RECEIVED, Kind.READ, Kind.TYPING, Kind.PING))
"""The kinds of request that share a separate bucket, and are not counted as messages."""

ANSWERED = frozenset((Kind.SEND_REQUEST, Kind.HISTORY_REQUEST, Kind.CONVERSATIONS_REQUEST, Kind.PRESENCE_REQUEST))
"""The kinds of request that are answered under their ids if they can't be used."""


class After(Struct, frozen=True, gc=False):
    """The last place that a client has."""

    epoch: str
    n: Place


class LoginRequest(AuthRequest, frozen=True, gc=False):
    """A request to log in. Without a SESSID, it is a login by the handshake's session cookie, or by ``resume``."""

    after: After | UnsetType = UNSET
    resume: ResumeToken | UnsetType = UNSET

    def __repr__(self) -> str:  # a session id and a resume token are never logged, anywhere
        return "LoginRequest(sessid=<hidden>, resume=<hidden>)"


class LenientLoginRequest(AuthRequest, frozen=True, gc=False):
    """A `LoginRequest` whose ``after`` and ``resume`` may be anything: an unusable one is no reason to refuse it."""

    after: Raw | UnsetType = UNSET
    resume: Raw | UnsetType = UNSET


class Outgoing(Struct, frozen=True, gc=False):
    """The message inside a request to send it."""

    time_stamp: Token = field(name="timeStamp")
    to_uid: UserID = field(name="touID")
    content: str


class SendRequest(Struct, frozen=True, gc=False):
    """A request to send a message. ``again`` counts only if it is ``true``."""

    id: UniqueID
    message: Outgoing
    type: Literal["message-send-request"]
    again: Raw | UnsetType = UNSET
    offline: Literal["store", "reject"] | UnsetType = UNSET

    @property
    def comes_again(self) -> bool:
        """Whether the client says that it has sent this message before."""
        return not isinstance(self.again, UnsetType) and self.again == _TRUE


class HistoryRequest(Struct, frozen=True, gc=False):
    """A request for messages of one conversation: newest first, or with ``after`` oldest first."""

    id: Token
    peer: UserID = field(name="with")
    type: Literal["history-request"]
    before: Place | UnsetType = UNSET
    after: Place | UnsetType = UNSET
    limit: Limit = DEFAULT_LIMIT


class ConversationsRequest(Struct, frozen=True, gc=False):
    """A request for the last message of each conversation, newest first."""

    id: Token
    type: Literal["conversations-request"]
    before: Place | UnsetType = UNSET
    limit: Limit = DEFAULT_LIMIT


class PresenceRequest(Struct, frozen=True, gc=False):
    """A request to watch whether users are connected. It replaces the last one."""

    id: Token
    of: Annotated[list[UserID], Meta(max_length=MAX_WATCHED)]
    type: Literal["presence-request"]


class Received(Struct, frozen=True, gc=False):
    """A mark: everything up to this place is on this device."""

    received: Place
    type: Literal["received"]


class Read(Struct, frozen=True, gc=False):
    """A mark: the person has seen a conversation up to this place."""

    peer: UserID = field(name="with")
    read: Place
    type: Literal["read"]


class Typing(Struct, frozen=True, gc=False):
    """The person is typing a message."""

    to_uid: UserID = field(name="touID")
    type: Literal["typing"]


class Ping(Struct, frozen=True, gc=False):
    """A request for a pong, which shows that the connection works."""

    id: Token
    type: Literal["ping"]


class UnknownRequest(Struct, frozen=True, gc=False):
    """A request of a type that this version does not know. It is ignored."""

    type: str


Request = (
    LoginRequest
    | SendRequest
    | HistoryRequest
    | ConversationsRequest
    | PresenceRequest
    | Received
    | Read
    | Typing
    | Ping
    | UnknownRequest
)


class UnusableRequest(UnusableFrame):
    """A text message that can't be used, although its type is known.

    :ivar kind: what it was meant as.
    """

    def __init__(self, kind: Kind, reason: Reason, detail: str, request_id: str | int | UnsetType = UNSET) -> None:
        super().__init__(reason, detail, send=kind is Kind.SEND_REQUEST, request_id=request_id)
        self.kind = kind


# Answers -------------------------------------------------------------------


class Limits(Struct, gc=False):
    """The relay's limits, for a client to keep within. 0 means that there is no limit. ``again`` is in seconds."""

    content: int
    message_burst: int | float = field(name="messageBurst")
    messages_per_second: int | float = field(name="messagesPerSecond")
    again: int | float


class LoginResponse(Struct, gc=False, kw_only=True, tag_field="type", tag="auth-response"):
    """The answer to the auth-request that logs a client in."""

    response: IsTrue
    uid: str = field(name="uID")
    epoch: str
    n: Place
    first: Place
    recovered: bool | UnsetType = UNSET
    resume: str | UnsetType = UNSET
    now: Milliseconds
    features: list[str]
    limits: Limits

    def __repr__(self) -> str:  # a resume token is never logged, anywhere
        return f"LoginResponse(uid={self.uid!r}, n={self.n}, resume=<hidden>)"


class Delivered(Struct, gc=False):
    """A message, as it is delivered and kept."""

    time_stamp: Token = field(name="timeStamp")
    from_uid: str = field(name="fromuID")
    to_uid: str = field(name="touID")
    content: str


class Delivery(Struct, gc=False, kw_only=True, tag_field="type", tag="message"):
    """A message at its place in the inbox of the user who gets it. The id is there if the sender spoke v2."""

    n: Place
    at: Milliseconds
    id: str | UnsetType = UNSET
    message: Delivered


class UniqueDelivery(Struct, gc=False, tag_field="type", tag="message"):
    """A `Delivery` with an id. It is made by position, which takes less time: one is made for each message."""

    n: Place
    at: Milliseconds
    id: str | int
    message: Delivered


class Void(Struct, gc=False, kw_only=True, tag_field="type", tag="void"):
    """There is nothing at this place, or no longer; with ``from``, this is true of all places from that one on."""

    first: Place | UnsetType = field(name="from", default=UNSET)
    n: Place


class Erased(Struct, gc=False, tag_field="type", tag="erased"):
    """What was at these places was erased: the client must forget it."""

    n: Place
    places: list[tuple[Place, Place]]


class Accepted(Struct, gc=False):
    """The outcome of a message that was accepted."""

    id: str
    value: IsTrue
    n: Place
    at: Milliseconds
    delivery: Literal["delivered", "stored"]


class AcceptedResponse(Struct, gc=False, tag_field="type", tag="send-request-response"):
    """The answer to a message-send-request that was accepted."""

    response: Accepted


class HistoryRefused(Struct, gc=False, tag_field="type", tag="history-response"):
    """The answer to a history-request that was refused."""

    response: Refused


class ConversationsRefused(Struct, gc=False, tag_field="type", tag="conversations-response"):
    """The answer to a conversations-request that was refused."""

    response: Refused


class PresenceRefused(Struct, gc=False, tag_field="type", tag="presence-response"):
    """The answer to a presence-request that was refused."""

    response: Refused


class Marks(Struct, frozen=True, gc=False):
    """The marks of a conversation in an answer, and how many messages are unread.

    ``received`` and ``read`` say how far the other user has received and read this user's messages. Both are absent if
    the other user has never written. ``readByMe`` says how far this user has read.
    """

    received: Place | UnsetType = UNSET
    read: Place | UnsetType = UNSET
    read_by_me: Place | UnsetType = field(name="readByMe", default=UNSET)
    unread: int | UnsetType = UNSET


class Entry(Struct, gc=False, kw_only=True):
    """A message of a conversation, at its place in the inbox of the user who asked."""

    n: Place
    at: Milliseconds
    id: str | UnsetType = UNSET
    message: Delivered


class History(Struct, gc=False):
    """Messages of one conversation, and its `Marks`."""

    id: str | int
    value: IsTrue
    peer: str = field(name="with")
    messages: list[Entry]
    more: bool
    received: Place | UnsetType = UNSET
    read: Place | UnsetType = UNSET
    read_by_me: Place | UnsetType = field(name="readByMe", default=UNSET)


class HistoryResponse(Struct, gc=False, tag_field="type", tag="history-response"):
    """The answer to a history-request."""

    response: History


class Conversation(Struct, gc=False, kw_only=True):
    """The last message of a conversation, and its `Marks`. ``unread`` is counted up to 100."""

    peer: str = field(name="with")
    n: Place
    at: Milliseconds
    id: str | UnsetType = UNSET
    message: Delivered
    unread: int | UnsetType = UNSET
    received: Place | UnsetType = UNSET
    read: Place | UnsetType = UNSET
    read_by_me: Place | UnsetType = field(name="readByMe", default=UNSET)


class Conversations(Struct, gc=False):
    """The conversations of a user, by last message, newest first."""

    id: str | int
    value: IsTrue
    conversations: list[Conversation]
    more: bool


class ConversationsResponse(Struct, gc=False, tag_field="type", tag="conversations-response"):
    """The answer to a conversations-request."""

    response: Conversations


class Presences(Struct, gc=False):
    """Who is connected, and when the others were last connected. A user who is in neither list may or may not exist."""

    id: str | int
    value: IsTrue
    online: list[str]
    offline: dict[str, Milliseconds | None]


class PresenceResponse(Struct, gc=False, tag_field="type", tag="presence-response"):
    """The answer to a presence-request."""

    response: Presences


# Events --------------------------------------------------------------------


class Receipt(Struct, gc=False, tag_field="type", tag="receipt"):
    """How far another user has received and read this user's messages, in places of this user's inbox."""

    peer: str = field(name="with")
    received: Place | UnsetType = UNSET
    read: Place | UnsetType = UNSET


class ReadMark(Struct, gc=False, tag_field="type", tag="read"):
    """How far the user has read a conversation on another connection."""

    peer: str = field(name="with")
    read: Place


class Presence(Struct, gc=False, tag_field="type", tag="presence"):
    """A watched user has connected or disconnected."""

    uid: str = field(name="uID")
    online: bool
    last_seen: Milliseconds | UnsetType | None = field(name="lastSeen", default=UNSET)


class IsTyping(Struct, gc=False, tag_field="type", tag="typing"):
    """Another user is typing a message to this one."""

    from_uid: str = field(name="fromuID")


class Resume(Struct, gc=False, tag_field="type", tag="resume"):
    """A new token with which to resume the session."""

    resume: str

    def __repr__(self) -> str:  # a resume token is never logged, anywhere
        return "Resume(resume=<hidden>)"


class Closing(Struct, gc=False, tag_field="type", tag="closing"):
    """The connection is about to be closed; ``retryAfter`` says after how many milliseconds to reconnect."""

    code: int
    retry_after: Milliseconds = field(name="retryAfter")
    resume: str | UnsetType = UNSET

    def __repr__(self) -> str:  # a resume token is never logged, anywhere
        return f"Closing(code={self.code}, retry_after={self.retry_after}, resume=<hidden>)"


class Pong(Struct, gc=False, tag_field="type", tag="pong"):
    """The answer to a ping, with the last place that is settled. Before the login there is no ``last``."""

    id: str | int
    last: Place | UnsetType = UNSET
