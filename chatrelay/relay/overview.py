"""Read how far conversations were received and read, for the answers to requests for history and conversations.

Pure: the reader of the message log is passed in. This module must not know what else an answer has.

What is read does not depend on whether somebody is connected. About people who have never written to the user, this
module reads only whether they have.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, UnsetType

from chatrelay.interfaces import InboxReader
from chatrelay.model import LoggedMessage, MarkKey, MarkKind
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
        keys: list[MarkKey] = [(user, MarkKind.READ, peer) for peer in last]
        known: set[str] = set()
        if self._tells_receipts:
            for peer in last:
                is_known = self._asking.known((user, peer))
                if await self._asking.look_up((user, peer)) if is_known is None else is_known:
                    known.add(peer)
                    keys += ((peer, MarkKind.RECEIVED, ""), (peer, MarkKind.READ, user))
        found = await self._marks.read(keys)
        marks: dict[str, Marks] = {}
        for peer, message in last.items():
            mine = found.get((user, MarkKind.READ, peer), 0)
            unread: int | UnsetType = UNSET
            if through is not None:
                is_read = message is not None and _place(message, user) <= mine
                unread = 0 if is_read else await self._reader.unread(user, peer, mine, through, MAX_UNREAD)
            received: int | UnsetType = UNSET
            read: int | UnsetType = UNSET
            if peer in known:
                read_mark = found.get((peer, MarkKind.READ, user), 0)
                received_mark = max(read_mark, found.get((peer, MarkKind.RECEIVED, ""), 0))
                received = await self._own_place(user, peer, message, received_mark)
                read = received
                if read_mark != received_mark:
                    read = await self._own_place(user, peer, message, read_mark)
            marks[peer] = Marks(received=received, read=read, read_by_me=mine, unread=unread)
        return marks

    async def _own_place(self, user: str, peer: str, last: LoggedMessage | None, mark: int) -> int:
        """Return the place of the user's last message that a mark of the other user is about; 0 if there is none."""
        if not mark:
            return 0
        if last is not None and last.from_uid == user and last.to_place <= mark:
            return last.from_place
        return await self._reader.place_of_sender(user, peer, mark)


def _place(message: LoggedMessage, user: str) -> int:
    """Return the place of a message in the inbox of its sender or recipient."""
    return message.from_place if message.from_uid == user else message.to_place
