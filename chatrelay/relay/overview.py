"""Read how far conversations were received and read, for the answers to requests for history and conversations.

Pure: the reader of the message log is passed in. This module must not know what else an answer has.

All conversations of an answer are read together: in one read of the log, or in two if it must be looked up who has
written to the user. What is read does not depend on whether somebody is connected. About people who have never written
to the user, this module reads only whether they have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import UNSET

from chatrelay.interfaces import InboxReader
from chatrelay.model import Conversation, LoggedMessage, MarkKind
from chatrelay.relay.acquaintance import Acquaintances
from chatrelay.relay.marks import Marks as KeptMarks
from chatrelay.wire.structs_v2 import Marks

MAX_UNREAD = 100
"""The number of unread messages of a conversation at which counting stops."""


class Overview:
    """Looks up how far conversations have been received and read.

    :param reader: reads the message log.
    :param asking: who is known to a user, for questions that this user causes.
    :param marks: the marks that are kept.
    :param tells_receipts: whether a user is told how far the others have received and read.
    """

    def __init__(
        self, reader: InboxReader, asking: Acquaintances, marks: KeptMarks, tells_receipts: bool = True
    ) -> None:
        self._reader = reader
        self._asking = asking
        self._marks = marks
        self._tells_receipts = tells_receipts

    async def marks_of(
        self, user: str, last: Mapping[str, LoggedMessage | None], through: int | None = None
    ) -> dict[str, Marks]:
        """Return how far conversations of a user have been received and read, by the other user's key.

        :param last: for each conversation its last message, if it was read; this saves further reads.
        :param through: count unread messages, up to this place; None not to count them.
        :raises LogUnavailable: if the log can't be read.
        :raises LogBusy: if too many reads wait.
        """
        known = await self._known(user, last)
        conversations = [self._conversation(user, peer, message, peer in known) for peer, message in last.items()]
        limit = 0 if through is None else MAX_UNREAD
        found = await self._reader.progress(user, conversations, through=through or 0, limit=limit)
        marks: dict[str, Marks] = {}
        for peer, progress in zip(last, found, strict=True):
            received = progress.received if peer in known else UNSET
            read = progress.read if peer in known else UNSET
            unread = UNSET if through is None else progress.unread
            marks[peer] = Marks(received=received, read=read, read_by_me=progress.read_by_me, unread=unread)
        return marks

    async def _known(self, user: str, last: Mapping[str, LoggedMessage | None]) -> Collection[str]:
        """Return which of the other users are known to the user; nobody, if nobody is told of receipts."""
        if not self._tells_receipts:
            return ()
        wrote_last = {peer for peer, message in last.items() if message is not None and message.from_uid == peer}
        asked = await self._asking.look_up_all(user, [peer for peer in last if peer not in wrote_last])
        return wrote_last.union(asked)

    def _conversation(self, user: str, peer: str, last: LoggedMessage | None, is_known: bool) -> Conversation:
        """Return a conversation with the marks that are not saved yet. Those of unknown people are not looked at."""
        unsaved = self._marks.unsaved
        return Conversation(
            peer,
            last,
            is_known,
            unsaved(user, MarkKind.READ, peer),
            unsaved(peer, MarkKind.RECEIVED) if is_known else 0,
            unsaved(peer, MarkKind.READ, user) if is_known else 0,
        )
