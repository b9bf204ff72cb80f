"""The dialect v2: decode requests, and encode answers and events.

Pure. `docs/protocol.rst` states the rules of this dialect, and a test sends every example of that page. This module
must not know who is logged in, what a connection is, or in which order places are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from chatrelay.model import InboxEntry, LoggedMessage, Message, Page, user_key
from chatrelay.wire import structs_v2 as shapes
from chatrelay.wire.codes import Close, Reason
from chatrelay.wire.decoding import (
    BACKSLASH,
    CONTENT_REFUSED,
    ESCAPED_NUL,
    JSON_ERRORS,
    MAX_SURE_CHARACTERS,
    NUL_REFUSED,
    Kinds,
    holds_nul,
    is_too_large,
    token_in,
    type_and_id,
    type_and_id_despite,
    without_nul,
)
from chatrelay.wire.structs import AuthResponse, Error, Refused, SendRefused, UnusableFrame
from chatrelay.wire.structs_v2 import (
    ANSWERED,
    Kind,
    LoginRequest,
    Marks,
    Request,
    SendRequest,
    UnknownRequest,
    UnusableRequest,
)

SUBPROTOCOL = "chatrelay.v2"
"""The WebSocket subprotocol of this dialect."""

MAX_ANSWER = 256 * 1024
"""The most bytes of an answer with several messages; one that would be larger gets fewer messages."""

AROUND_ENTRIES = 2048
"""The most bytes of an answer besides its entries. For example, an id of 64 escaped characters has 386."""

MICROSECONDS = 1_000_000
"""Microseconds in a second."""

MILLISECONDS = 1000
"""Milliseconds in a second, and microseconds in a millisecond."""

NO_AFTER = shapes.After("", 0)
"""The place of a client that has sent an unusable ``after``: no log has this epoch."""

UNKNOWN = UnknownRequest("")
"""Stands for every request whose type this version does not know."""

_QUOTE = b'"'
_INVALID = {Kind.AUTH_REQUEST: Reason.INVALID_AUTH_REQUEST, Kind.SEND_REQUEST: Reason.INVALID_MESSAGE}
_kinds = Kinds(Kind)

_send_request_decoder: msgspec.json.Decoder[SendRequest] = msgspec.json.Decoder(SendRequest)
_decode_send_request = _send_request_decoder.decode


def decode(payload: bytes) -> Request:
    """Decode a request from one text message.

    :param payload: the whole message. The caller has checked that it is UTF-8 (RFC 6455, section 8.1), because msgspec
        does not check the fields that it skips.
    :returns: the request; `UNKNOWN` if its type is not one of this version.
    :raises UnusableFrame: if it is not a request. If its type is known, that is an `UnusableRequest`. No bytes cause
        any other error.
    """
    request: Request
    try:
        request = _decode_send_request(payload)
    except JSON_ERRORS as error:
        request = _decode_other(payload, error)
    if BACKSLASH in payload and ESCAPED_NUL in payload and request is not UNKNOWN and holds_nul(payload):
        raise _unusable(Kind(request.type), NUL_REFUSED, without_nul(getattr(request, "id", "\0")))
    if type(request) is SendRequest:
        outgoing = request.message
        content, to_uid = outgoing.content, outgoing.to_uid
        if len(content) > MAX_SURE_CHARACTERS and is_too_large(content):
            raise _unusable(Kind.SEND_REQUEST, CONTENT_REFUSED, request.id)
        if type(to_uid) is str and not to_uid.isprintable():
            raise _unusable(Kind.SEND_REQUEST, str(_NOT_PRINTABLE), request.id)
    return request


def _decode_other(payload: bytes, error: Exception) -> Request:
    """Decode a text message that is not a usable message-send-request.

    :param error: why it is not one.
    """
    is_json = isinstance(error, msgspec.ValidationError)
    header = type_and_id(payload) if is_json else type_and_id_despite(payload, error)
    kind = _kinds.kind_of(header.type)
    if kind is None:
        if isinstance(header.type, UnsetType) or not bytes(header.type).startswith(_QUOTE):
            raise UnusableFrame(Reason.UNKNOWN_TYPE, 'expected "type" to be a string') from None
        return UNKNOWN
    if is_json and kind is not Kind.SEND_REQUEST:
        try:
            return _DECODERS[kind](payload)
        except JSON_ERRORS as of_kind:
            error = of_kind
    raise _unusable(kind, str(error), token_in(header.id)) from None


def _unusable(kind: Kind, detail: str, request_id: str | int | UnsetType) -> UnusableRequest:
    reason = _INVALID.get(kind, Reason.INVALID_REQUEST)
    return UnusableRequest(kind, reason, detail, request_id if kind in ANSWERED else UNSET)


# Requests other than to send a message ------------------------------------------

_NOT_PRINTABLE = msgspec.ValidationError("a uID must consist of printable characters")
_BOTH = msgspec.ValidationError("before and after exclude each other")

_login_decoder: msgspec.json.Decoder[LoginRequest] = msgspec.json.Decoder(LoginRequest)
_lenient_login_decoder: msgspec.json.Decoder[shapes.LenientLoginRequest] = msgspec.json.Decoder(
    shapes.LenientLoginRequest
)
_after_decoder: msgspec.json.Decoder[shapes.After] = msgspec.json.Decoder(shapes.After)
_resume_decoder: msgspec.json.Decoder[shapes.ResumeToken] = msgspec.json.Decoder(shapes.ResumeToken)
_history_decoder: msgspec.json.Decoder[shapes.HistoryRequest] = msgspec.json.Decoder(shapes.HistoryRequest)
_presence_decoder: msgspec.json.Decoder[shapes.PresenceRequest] = msgspec.json.Decoder(shapes.PresenceRequest)
_read_decoder: msgspec.json.Decoder[shapes.Read] = msgspec.json.Decoder(shapes.Read)
_typing_decoder: msgspec.json.Decoder[shapes.Typing] = msgspec.json.Decoder(shapes.Typing)


def _check_uid(uid: str | int) -> None:
    if isinstance(uid, str) and not uid.isprintable():
        raise _NOT_PRINTABLE


def _login(payload: bytes) -> LoginRequest:
    try:
        return _login_decoder.decode(payload)
    except JSON_ERRORS:
        # An unusable `after` or `resume` is no reason to refuse the login.
        request = _lenient_login_decoder.decode(payload)
    after: shapes.After | UnsetType = UNSET
    resume: str | UnsetType = UNSET
    if not isinstance(request.after, UnsetType):
        try:
            after = _after_decoder.decode(request.after)
        except JSON_ERRORS:
            after = NO_AFTER
    if not isinstance(request.resume, UnsetType):
        try:
            resume = _resume_decoder.decode(request.resume)
        except JSON_ERRORS:
            resume = ""
    return LoginRequest(request.type, request.sessid, after, resume)


def _history(payload: bytes) -> shapes.HistoryRequest:
    request = _history_decoder.decode(payload)
    _check_uid(request.peer)
    if not isinstance(request.before, UnsetType) and not isinstance(request.after, UnsetType):
        raise _BOTH
    return request


def _presence(payload: bytes) -> shapes.PresenceRequest:
    request = _presence_decoder.decode(payload)
    for uid in request.of:
        _check_uid(uid)
    return request


def _read(payload: bytes) -> shapes.Read:
    request = _read_decoder.decode(payload)
    _check_uid(request.peer)
    return request


def _typing(payload: bytes) -> shapes.Typing:
    request = _typing_decoder.decode(payload)
    _check_uid(request.to_uid)
    return request


_DECODERS: Mapping[Kind, Callable[[bytes], Request]] = {
    Kind.AUTH_REQUEST: _login,
    Kind.HISTORY_REQUEST: _history,
    Kind.CONVERSATIONS_REQUEST: msgspec.json.Decoder(shapes.ConversationsRequest).decode,
    Kind.PRESENCE_REQUEST: _presence,
    Kind.RECEIVED: msgspec.json.Decoder(shapes.Received).decode,
    Kind.READ: _read,
    Kind.TYPING: _typing,
    Kind.PING: msgspec.json.Decoder(shapes.Ping).decode,
}


# Answers ---------------------------------------------------------------------


_encode = msgspec.json.Encoder().encode

# A template, because this is sent for every message, and most of it never varies.
_ACCEPTED = b'{"type":"send-request-response","response":{"id":%b,"value":true,"n":%d,"at":%d,"delivery":"%b"}}'
_REFUSED: Mapping[Kind, Callable[[Refused], object]] = {
    Kind.SEND_REQUEST: SendRefused,
    Kind.HISTORY_REQUEST: shapes.HistoryRefused,
    Kind.CONVERSATIONS_REQUEST: shapes.ConversationsRefused,
    Kind.PRESENCE_REQUEST: shapes.PresenceRefused,
}


def auth_response(value: bool, reason: Reason | None = None) -> bytes:
    """Encode the answer to an auth-request that does not log the client in for the first time."""
    return _encode(AuthResponse(value, UNSET if reason is None else reason))


def logged_in(
    uid: str | int,
    epoch: str,
    place: int,
    first: int,
    recovered: bool | None,
    now: float,
    features: Sequence[str],
    limits: shapes.Limits,
    resume: str | None = None,
) -> bytes:
    """Encode the answer to the auth-request that logs a client in.

    :param place: the last settled place.
    :param first: the first place that is kept.
    :param recovered: whether the places after the client's own will follow; None if the client has given none.
    :param now: the wall clock, in seconds since 1970 UTC.
    """
    return _encode(
        shapes.LoginResponse(
            response=True,
            uid=user_key(uid),
            epoch=epoch,
            n=place,
            first=first,
            recovered=UNSET if recovered is None else recovered,
            resume=UNSET if resume is None else resume,
            now=milliseconds(now),
            features=list(features),
            limits=limits,
        )
    )


def milliseconds(seconds: float) -> int:
    """Return a time in milliseconds, as it is on the wire."""
    return int(seconds * MILLISECONDS)


def accepted(request_id: str | int, place: int, at: int, delivered: bool) -> bytes:
    """Encode the answer to the sender of a message that was accepted.

    :param place: its place in the sender's inbox.
    :param at: when the relay received it, in microseconds since 1970 UTC.
    :param delivered: whether to say that it was delivered, or that it was stored.
    """
    return _ACCEPTED % (_encode(request_id), place, at // MILLISECONDS, b"delivered" if delivered else b"stored")


def refused(request_id: str | int, reason: Reason, kind: Kind = Kind.SEND_REQUEST) -> bytes:
    """Encode the answer to a request that was refused: to send a message, or of another kind that is answered."""
    return _encode(_REFUSED[kind](Refused(request_id, False, reason)))


def pong(request_id: str | int, last: int | None) -> bytes:
    """Encode the answer to a ping.

    :param last: the last settled place; None before the login.
    """
    return _encode(shapes.Pong(request_id, UNSET if last is None else last))


def error(reason: Reason, detail: str) -> bytes:
    """Encode the answer to a frame that can't be used."""
    return _encode(Error(reason, detail))


def closing(close: Close, retry_after: float, resume: str | None = None) -> bytes:
    """Encode the notice that the connection is about to be closed.

    :param retry_after: after how many seconds the client should reconnect.
    """
    return _encode(shapes.Closing(int(close.code), milliseconds(retry_after), UNSET if resume is None else resume))


def resume(resume: str) -> bytes:
    """Encode a new token with which to resume the session."""
    return _encode(shapes.Resume(resume))


# Places ----------------------------------------------------------------------


def delivery(message: Message | LoggedMessage, place: int) -> bytes:
    """Encode a message for a user who has it at `place`. Nothing else that a client sent is passed on."""
    if type(message) is Message:
        # This is `user_key`, inlined: the calls would take a sixth of the whole.
        sender, recipient = message.from_uid, message.to_uid
        delivered = shapes.Delivered(
            message.time_stamp,
            sender if type(sender) is str else str(sender),
            recipient if type(recipient) is str else str(recipient),
            message.content,
        )
        at = int(message.received_at * MICROSECONDS) // MILLISECONDS  # exactly as the log has it
        if message.has_unique_id:
            return _encode(shapes.UniqueDelivery(place, at, message.client_id, delivered))
        return _encode(shapes.Delivery(n=place, at=at, message=delivered))
    assert isinstance(message, LoggedMessage)
    at = message.received_at // MILLISECONDS
    return _encode(shapes.Delivery(n=place, at=at, id=_id_of(message), message=_delivered(message)))


def void(first: int, last: int) -> bytes:
    """Encode that there is nothing at the places from `first` to `last`, which may be the same."""
    return _encode(shapes.Void(first=UNSET if first == last else first, n=last))


def erased(place: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    """Encode the entry at `place`: what was at these ranges of places was erased.

    :param ranges: the first and the last place of each.
    """
    return _encode(shapes.Erased(place, list(ranges)))


def _id_of(message: LoggedMessage) -> str | UnsetType:
    return UNSET if message.unique_id is None else message.unique_id


def _delivered(message: LoggedMessage) -> shapes.Delivered:
    return shapes.Delivered(message.time_stamp, message.from_uid, message.to_uid, message.content)


# Requests that are answered from the message log -------------------------------


def history(request_id: str | int, peer: str | int, page: Page, marks: Marks, size: int = MAX_ANSWER) -> bytes:
    """Encode the answer to a history-request.

    :param page: the messages, in the order that was asked for.
    :param size: bytes of the answer; one that would be larger is cut shorter.
    """
    messages, is_cut = _fitting((_entry(each) for each in page.entries if each.message is not None), size)
    return _encode(
        shapes.HistoryResponse(
            shapes.History(
                request_id,
                True,
                user_key(peer),
                messages,
                page.more or is_cut,
                marks.received,
                marks.read,
                marks.read_by_me,
            )
        )
    )


def conversations(
    request_id: str | int, found: Sequence[tuple[str, InboxEntry, Marks]], more: bool, size: int = MAX_ANSWER
) -> bytes:
    """Encode the answer to a conversations-request.

    :param found: for each conversation the key of the other user, the last message, and the marks.
    :param size: bytes of the answer; one that would be larger is cut shorter.
    """
    conversations, is_cut = _fitting((_conversation(*each) for each in found), size)
    return _encode(shapes.ConversationsResponse(shapes.Conversations(request_id, True, conversations, more or is_cut)))


def _entry(entry: InboxEntry) -> shapes.Entry:
    message = entry.message
    assert message is not None
    at = message.received_at // MILLISECONDS
    return shapes.Entry(n=entry.place, at=at, id=_id_of(message), message=_delivered(message))


def _conversation(peer: str, entry: InboxEntry, marks: Marks) -> shapes.Conversation:
    message = entry.message
    assert message is not None
    return shapes.Conversation(
        peer=peer,
        n=entry.place,
        at=message.received_at // MILLISECONDS,
        id=_id_of(message),
        message=_delivered(message),
        unread=marks.unread,
        received=marks.received,
        read=marks.read,
        read_by_me=marks.read_by_me,
    )


Entries = TypeVar("Entries")


def _fitting(entries: Iterable[Entries], size: int) -> tuple[list[Entries], bool]:
    """Return as many entries as an answer may have, and whether there are more; the first one always fits."""
    fitting: list[Entries] = []
    remaining = size - AROUND_ENTRIES
    for entry in entries:
        remaining -= len(_encode(entry)) + 1
        if fitting and remaining < 0:
            return fitting, True
        fitting.append(entry)
    return fitting, False


# Events ----------------------------------------------------------------------


def presences(request_id: str | int, online: Sequence[str], offline: Mapping[str, int | None]) -> bytes:
    """Encode the answer to a presence-request.

    :param online: the keys of the users who are connected.
    :param offline: of those who are not, when each was last, in milliseconds since 1970 UTC.
    """
    return _encode(shapes.PresenceResponse(shapes.Presences(request_id, True, list(online), dict(offline))))


def presence(user: str, online: bool, last_seen: int | None = None) -> bytes:
    """Encode that a watched user has connected or disconnected.

    :param last_seen: for one who has disconnected: when, in milliseconds since 1970 UTC; None if that is not known.
    """
    return _encode(shapes.Presence(user, online, UNSET if online else last_seen))


def receipt(peer: str, received: int | None, read: int | None) -> bytes:
    """Encode how far another user has received and read this user's messages, in places of this user's inbox."""
    return _encode(shapes.Receipt(peer, UNSET if received is None else received, UNSET if read is None else read))


def read_mark(peer: str, place: int) -> bytes:
    """Encode how far the user has read a conversation on another connection."""
    return _encode(shapes.ReadMark(peer, place))


def typing(user: str) -> bytes:
    """Encode that another user is typing a message to this one."""
    return _encode(shapes.IsTyping(user))
