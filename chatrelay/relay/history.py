"""The answers to requests for history, conversations and presence, read from the message log.

Pure: the reader of the log and the dialect are passed in. This module must not know who may ask, nor how often.

An answer has what the user has at places up to the last settled one. So it never has a message that is refused later.
"""

from __future__ import annotations

from msgspec import UnsetType

from chatrelay.model import InboxEntry, user_key
from chatrelay.relay.session_marks import SessionMarks
from chatrelay.relay.v2_parts import SessionDialect, V2Parts
from chatrelay.wire.structs_v2 import ConversationsRequest, HistoryRequest, PresenceRequest

MAX_ANSWER_CONTENT = 256 * 1024
"""Bytes of content that are read for one answer. The answer itself has no more bytes than that."""


async def answer_history(
    shared: V2Parts, dialect: SessionDialect, request: HistoryRequest, user: str, through: int
) -> bytes:
    """Return the answer to a history-request, encoded.

    :param user: the key of the user who asks.
    :param through: the user's last settled place.
    :raises LogUnavailable: if the log can't be read.
    :raises LogBusy: if too many reads wait.
    """
    reader, peer = shared.log.reader, user_key(request.peer)
    page = await reader.history(
        user,
        peer,
        before=None if isinstance(request.before, UnsetType) else request.before,
        after=None if isinstance(request.after, UnsetType) else request.after,
        through=through,
        limit=request.limit,
        size=MAX_ANSWER_CONTENT,
    )
    is_newest = isinstance(request.before, UnsetType) and isinstance(request.after, UnsetType)
    last = page.entries[0].message if is_newest and page.entries else None
    marks = await shared.awareness.overview.marks_of(user, {peer: last})
    return dialect.history(request.id, peer, page, marks[peer])


async def answer_presence(marks: SessionMarks, dialect: SessionDialect, request: PresenceRequest) -> bytes:
    """Return the answer to a presence-request, encoded. Errors are as in `answer_history`."""
    online, offline = await marks.watch(request.of)
    return dialect.presences(request.id, online, offline)


async def answer_conversations(
    shared: V2Parts, dialect: SessionDialect, request: ConversationsRequest, user: str, through: int
) -> bytes:
    """Return the answer to a conversations-request, encoded. Parameters and errors are as in `answer_history`."""
    reader = shared.log.reader
    page = await reader.conversations(
        user,
        before=None if isinstance(request.before, UnsetType) else request.before,
        through=through,
        limit=request.limit,
        size=MAX_ANSWER_CONTENT,
    )
    last = {_peer_of(user, entry): entry for entry in page.entries}
    marks = await shared.awareness.overview.marks_of(
        user, {peer: entry.message for peer, entry in last.items()}, through
    )
    return dialect.conversations(request.id, [(peer, entry, marks[peer]) for peer, entry in last.items()], page.more)


def _peer_of(user: str, entry: InboxEntry) -> str:
    """Return the key of the other user of a conversation; `user` itself in the one with oneself."""
    message = entry.message
    assert message is not None
    return message.from_uid if message.from_uid != user else message.to_uid
