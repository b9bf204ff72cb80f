"""The message logs that end with the process: one keeps messages in memory, the other keeps nothing.

`MemoryMessageLog` grows with every message, so it is for tests and trials. Neither opens a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence

import attrs
from twisted.internet.defer import Deferred, succeed

from chatrelay.model import LoggedMessage, Message, user_key

MICROSECONDS = 1_000_000
"""Microseconds in a second. Times are read as integers, which are exact."""


@attrs.define
class MemoryRow:
    """A message with its number, its places and whether it was delivered."""

    number: int
    message: Message
    from_place: int
    to_place: int
    delivered: bool = True


class MemoryMessageLog:
    """Keeps messages in a list, and reads them.

    :ivar rows: the kept messages, oldest first.
    :ivar is_open: always True.
    :ivar is_alive: always True.
    """

    is_open = True
    is_alive = True

    def __init__(self) -> None:
        self.rows: list[MemoryRow] = []
        self._inbox: Counter[str] = Counter()

    def start(self) -> None:
        """Do nothing: there is no file to open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch; return the numbers of its messages."""
        numbers = []
        for message in messages:
            number = len(self.rows) + 1
            numbers.append(number)
            to_user = user_key(message.to_uid)
            from_user = user_key(message.from_uid)
            for user in {from_user, to_user}:
                self._inbox[user] += 1
            self.rows.append(MemoryRow(number, message, self._inbox[from_user], self._inbox[to_user]))
        return succeed(numbers)

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Mark messages as delivered to nobody."""
        for number in numbers:
            self.rows[number - 1].delivered = False
        return succeed(None)

    def messages(self) -> Generator[LoggedMessage, None, None]:
        """Yield every message, oldest first."""
        for row in self.rows:
            message = row.message
            yield LoggedMessage(
                row.number,
                user_key(message.from_uid),
                user_key(message.to_uid),
                message.time_stamp,
                message.content,
                int(message.received_at * MICROSECONDS),
                row.delivered,
            )

    def stop(self) -> Deferred[None]:
        """Do nothing: there is no file to close."""
        return succeed(None)


class NoMessageLog:
    """Numbers messages and keeps none, so C1 (logged once) and C8 (logged first) of the promise do not hold.

    :ivar is_open: always True.
    :ivar is_alive: always True.
    """

    is_open = True
    is_alive = True

    def __init__(self) -> None:
        self._last = 0

    def start(self) -> None:
        """Do nothing: there is no file to open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Return the next numbers for a batch."""
        first = self._last + 1
        self._last += len(messages)
        return succeed(range(first, self._last + 1))

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Do nothing: there is no file to close."""
        return succeed(None)
