"""The limits on messages that are stored for people who have not written back, or who are not connected.

Pure: the time is passed in. This module must not know who is known to whom, who is connected, nor what follows when a
bound is reached. All counts are kept in memory, and begin again after a restart.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable

import attrs

from chatrelay.relay.acquaintance import Pair

DAY = 24 * 60 * 60.0
"""Seconds in which the messages to a stranger are counted."""

MAX_STRANGERS = 100_000
"""Pairs that are counted. One more displaces the one whose last message is the oldest."""

MAX_AWAY = 100_000
"""Recipients that are counted. One more displaces the one that has been counted for longest."""

SENDERS_SHARE = 10
"""A sender may fill one part of so many of what may be stored for a recipient."""


@attrs.define(eq=False)
class _Away:
    """A recipient who is not here.

    :ivar base: the last place when the last connection went.
    :ivar last: the last place now.
    :ivar waiting: messages to this recipient that wait for the log.
    :ivar senders: the messages since, by sender, including those that wait.
    """

    base: int
    last: int
    waiting: int = 0
    senders: Counter[str] = attrs.field(factory=Counter)


class Strangers:
    """The messages to people who have never written back.

    :param limit: messages from one user to another in 24 hours; 0 for no limit.
    :param seconds: any clock that runs forward.
    """

    def __init__(self, limit: int, seconds: Callable[[], float]) -> None:
        self._limit = limit
        self._seconds = seconds
        # The oldest last message first. An array takes a tenth of the memory of a deque.
        self._times: dict[Pair, array[float]] = {}

    def is_full(self, pair: Pair) -> bool:
        """Return whether the first user may send the second one no further message now."""
        times = self._times.get(pair)
        if times is None:
            return False
        self._drop_old(times)
        return len(times) >= self._limit

    def take(self, pair: Pair) -> None:
        """Count a message that will be stored."""
        if self._limit:
            times = self._times.pop(pair, None) or array("d")
            times.append(self._seconds())
            self._times[pair] = times
            self._forget()

    def give_back(self, pair: Pair) -> None:
        """Count a message no more: it was refused after all."""
        times = self._times.get(pair)
        if times:
            times.pop()
            if not times:
                del self._times[pair]

    def forget(self, pair: Pair) -> None:
        """Forget two users: they have written to each other."""
        if self._times:
            self._times.pop(pair, None)

    def __len__(self) -> int:
        """Return how many pairs are counted."""
        return len(self._times)

    def _forget(self) -> None:
        """Forget the oldest pair if it is out of date, or if there are too many."""
        pair, times = next(iter(self._times.items()))
        self._drop_old(times)
        if not times or len(self._times) > MAX_STRANGERS:
            del self._times[pair]

    def _drop_old(self, times: array[float]) -> None:
        now = self._seconds()
        while times and times[0] <= now - DAY:
            del times[0]


class Away:
    """The messages that are stored for people who are not here.

    :param limit: places of a recipient beyond the last one when their last connection went; 0 for no limit. One sender
        may fill a tenth of them, but at least one.
    :ivar recipients: those that are counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = max(1, limit // SENDERS_SHARE)
        self.recipients: dict[str, _Away] = {}

    def is_known(self, recipient: str) -> bool:
        """Return whether `is_full` can tell; otherwise `note` must be called first."""
        return not self._limit or recipient in self.recipients

    def note(self, recipient: str, left_at: int | None, last: int) -> None:
        """Note the state of an inbox.

        :param left_at: the last place when the last connection went; None if that is not known.
        :param last: the last place now.
        """
        if recipient not in self.recipients:
            if len(self.recipients) >= MAX_AWAY:
                del self.recipients[next(iter(self.recipients))]
            self.recipients[recipient] = _Away(last if left_at is None else left_at, last)

    def is_full(self, sender: str, recipient: str) -> bool:
        """Return whether a sender may store no further message for a recipient now."""
        away = self.recipients.get(recipient)
        if away is None:
            return False
        return away.last + away.waiting - away.base >= self._limit or away.senders[sender] >= self._share

    def take(self, sender: str, recipient: str) -> None:
        """Count a message that will be stored."""
        away = self.recipients.get(recipient)
        if away is not None:
            away.waiting += 1
            away.senders[sender] += 1

    def committed(self, recipient: str, place: int, was_taken: bool) -> None:
        """Note a message that was committed.

        :param was_taken: whether `take` was called for it.
        """
        away = self.recipients.get(recipient)
        if away is not None:
            away.last = max(away.last, place)
            if was_taken and away.waiting:
                away.waiting -= 1

    def give_back(self, sender: str, recipient: str) -> None:
        """Count a message no more: it was refused after all."""
        away = self.recipients.get(recipient)
        if away is not None and away.waiting:
            away.waiting -= 1
            away.senders[sender] -= 1

    def forget(self) -> None:
        """Forget all recipients, because the message log has another epoch."""
        self.recipients.clear()

    def returned(self, recipient: str) -> None:
        """Forget a recipient, who has a connection again."""
        self.recipients.pop(recipient, None)

    def __len__(self) -> int:
        """Return how many recipients are counted."""
        return len(self.recipients)
