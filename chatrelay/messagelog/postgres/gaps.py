"""Remember which numbers of messages are missing, while messages are read in the order of their numbers.

With several relays, a message may be committed after one with a larger number. So a number that is missing is looked
for again, until it must belong to a batch that was rolled back. Pure: time is handed in. This module must not read
messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GAP_SECONDS = 60.0
"""How long a missing number is looked for. A relay numbers and commits a batch in one statement, which the server ends
after 8 s."""

MAX_GAPS = 10_000
"""The most missing numbers that are looked for. The smallest are given up."""


class Gaps:
    """The numbers that have not been seen.

    :param through: the numbers up to this one count as seen.
    :ivar through: the largest number that was seen.
    """

    def __init__(self, through: int) -> None:
        self.through = through
        self._until: dict[int, float] = {}  # by number: when it is given up

    def missing(self, now: float) -> Sequence[int]:
        """Return the numbers that may still come.

        :param now: monotonic, in seconds.
        """
        self._until = {number: until for number, until in self._until.items() if now < until}
        return sorted(self._until)

    def seen(self, numbers: Iterable[int], now: float) -> None:
        """Note numbers that were seen."""
        for number in sorted(numbers):
            if number > self.through:
                self.add(range(max(self.through + 1, number - MAX_GAPS), number), now)
                self.through = number
            self._until.pop(number, None)

    def add(self, numbers: Iterable[int], now: float) -> None:
        """Note numbers that are missing."""
        for number in numbers:
            self._until[number] = now + GAP_SECONDS
        for number in sorted(self._until)[:-MAX_GAPS]:
            del self._until[number]
