"""Messages, and a message log whose steps a test triggers."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail

from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import LogUnavailable, Message
from chatrelay.testing import HeldMessageLog


def message(
    content: str = "hej", from_uid: str | int = 1, to_uid: str | int = 2, time_stamp: str | int = "23"
) -> Message:
    """Build a message that was received at a certain moment."""
    return Message(from_uid, to_uid, "id", time_stamp, content, 1_700_000_000.123456)


class SteppedMessageLog(HeldMessageLog):
    """A message log that does each step when the test says so, or fails in each possible way.

    :ivar marks: what waits to be marked undelivered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False
        self.marks: list[tuple[Sequence[int], Deferred[None]]] = []
        self._to_mark: list[int] = []

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch pending."""
        return fail(LogUnavailable("closed")) if self.is_closed else super().append(messages)

    def commit_and_forget(self) -> None:
        """Commit the oldest batch and report a failure: the rows are found later, and marked (the promise's C5)."""
        messages, committed = self.batches.pop(0)
        numbers: Sequence[int] = []
        MemoryMessageLog.append(self, messages).addCallback(lambda found: numbers.extend(found))  # type: ignore[attr-defined]
        self._to_mark.extend(numbers)
        committed.errback(LogUnavailable("the disk failed at the sync"))

    def break_down(self) -> None:
        """Fail with an exception that a log must not raise."""
        self.batches.pop(0)[1].errback(ZeroDivisionError("a defect of the log's"))

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Keep marks pending."""
        marked: Deferred[None] = Deferred()
        self.marks.append((numbers, marked))
        return marked

    def mark(self) -> None:
        """Write the oldest marks."""
        numbers, marked = self.marks.pop(0)
        super().mark_undelivered(numbers).chainDeferred(marked)

    def fail_to_mark(self) -> None:
        """Refuse the oldest marks; they are written when the log recovers."""
        numbers, marked = self.marks.pop(0)
        self._to_mark.extend(numbers)
        marked.errback(LogUnavailable("the disk is full"))

    def recover(self) -> None:
        """Reopen, and write the marks that were left."""
        MemoryMessageLog.mark_undelivered(self, self._to_mark)
        self._to_mark = []

    def stop(self) -> Deferred[None]:
        """Do what is pending, and accept nothing more."""
        self.is_closed = True
        while self.batches:
            self.commit()
        while self.marks:
            self.mark()
        self.recover()
        return super().stop()
