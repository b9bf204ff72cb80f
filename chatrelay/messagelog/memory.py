"""The message logs that do not outlive the process: one in memory, and one that keeps nothing.

`MemoryMessageLog` is for tests and trials, as it grows with every message. Neither opens a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence

import attrs
from twisted.internet.defer import Deferred, succeed

from chatrelay.model import LoggedMessage, Message, user_key

MICROSECONDS = 1_000_000
"""In a second; times are read as integers, which are exact."""


@attrs.define
class MemoryRow:
    """A message with what the log added to it."""

    number: int
    message: Message
    from_place: int
    to_place: int
    delivered: bool = True


class MemoryMessageLog:
    """Keeps messages in a list, and reads them.

    :ivar rows: what was committed, oldest first.
    :ivar is_open: always.
    :ivar is_alive: always.
    """

    is_open = True
    is_alive = True

    def __init__(self) -> None:
        self.rows: list[MemoryRow] = []
        self._inbox: Counter[str] = Counter()

    def start(self) -> None:
        """Nothing to open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch."""
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
        """Note that these messages reached nobody."""
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
        """Nothing to close."""
        return succeed(None)


class NoMessageLog:
    """Numbers messages and keeps none: C1 and C8 of the promise are waived.

    :ivar is_open: always.
    :ivar is_alive: always.
    """

    is_open = True
    is_alive = True

    def __init__(self) -> None:
        self._last = 0

    def start(self) -> None:
        """Nothing to open."""

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Number a batch."""
        first = self._last + 1
        self._last += len(messages)
        return succeed(range(first, self._last + 1))

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Nothing to mark."""
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Nothing to close."""
        return succeed(None)
