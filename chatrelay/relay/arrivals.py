"""The latest messages to one user, by place, so that a mark of the user can be translated without a read of the log.

Pure, and bounded. This module must not know what a mark means, nor whom it is told to.

A mark of the user names a place in their own inbox, and the sender has the message at another place. Usually a mark
names a message that has just arrived, so both places are here. If they are not, the message log has to be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

MAX_MESSAGES = 64
"""Messages that are kept until the user has acknowledged them. One more displaces the oldest."""

MAX_PEERS = 32
"""Senders whose last message is kept. One more displaces the one that has been kept for longest."""

Places = tuple[int, int]
"""The places of one message: in the recipient's inbox, and in the sender's."""


class Arrivals:
    """The latest messages to one user.

    :param since: the place after which all messages will be added.
    :ivar since: the place after which all messages are known that are not acknowledged.
    """

    __slots__ = ("_latest", "_messages", "since")

    def __init__(self, since: int) -> None:
        self.since = since
        self._messages: deque[tuple[int, str, int]] = deque()  # ascending: place, sender, place of the sender
        self._latest: dict[str, Places] = {}

    def add(self, place: int, sender: str, place_of_sender: int) -> None:
        """Add a message that stands. Places come in ascending order."""
        if len(self._messages) == MAX_MESSAGES:
            self.since = self._messages.popleft()[0]
        self._messages.append((place, sender, place_of_sender))
        self._latest[sender] = (place, place_of_sender)
        if len(self._latest) > MAX_PEERS:
            del self._latest[next(iter(self._latest))]

    def acknowledge(self, through: int) -> Mapping[str, Places]:
        """Forget the messages up to a place, but the last one of each sender.

        :returns: by sender, the last message up to that place, among those that were not acknowledged before.
        """
        found: dict[str, Places] = {}
        messages = self._messages
        while messages and messages[0][0] <= through:
            place, sender, place_of_sender = messages.popleft()
            found[sender] = (place, place_of_sender)
        self.since = max(self.since, through)
        return found

    def last(self, sender: str, through: int) -> Places | None:
        """Return the last message of a sender up to a place; None if that is not known here."""
        latest = self._latest.get(sender)
        if latest is None or latest[0] <= through:
            return latest
        for place, each, place_of_sender in reversed(self._messages):
            if each == sender and place <= through:
                return place, place_of_sender
        return None
