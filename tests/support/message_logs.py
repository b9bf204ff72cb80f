"""Messages, and a message log whose steps a test triggers."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail

from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.model import LogUnavailable, Message
from chatrelay.testing import HeldMessageLog


def message(
    content: str = "hej",
    from_uid: str | int = 1,
    to_uid: str | int = 2,
    time_stamp: str | int = "23",
    unique_id: str | None = None,
    received_at: float = 1_700_000_000.123456,
) -> Message:
    """Build a message that was received at a certain moment.

    :param unique_id: of a sender who speaks v2; None for one who speaks v1.
    """
    return Message(from_uid, to_uid, unique_id or "id", time_stamp, content, received_at, unique_id is not None)


class SteppedMessageLog(HeldMessageLog):
    """A message log that does each step when the test says so, or fails in each possible way.

    :ivar unmarked: what waits to be marked undelivered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False
        self.unmarked: list[tuple[Sequence[int], Deferred[None]]] = []
        self._to_mark: list[int] = []

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch pending."""
        return fail(LogUnavailable("closed")) if self.is_closed else super().append(messages)

    def commit(self) -> None:
        """Commit the oldest batch. A log does that only after it has looked for the rows of a doubtful one."""
        self._settle_all()
        super().commit()

    def commit_and_forget(self) -> None:
        """Commit the oldest batch and report a failure: the rows are found later, and marked (the promise's C5)."""
        self.commit_unknown()

    def break_down(self) -> None:
        """Fail with an exception that a log must not raise."""
        self._take_batch()[1].errback(ZeroDivisionError("a defect of the log's"))
        self._batch_done()

    def mark_undelivered(self, numbers: Sequence[int]) -> Deferred[None]:
        """Keep marks pending."""
        marked: Deferred[None] = Deferred()
        self.unmarked.append((numbers, marked))
        return marked

    def mark(self) -> None:
        """Write the oldest marks."""
        numbers, marked = self.unmarked.pop(0)
        super().mark_undelivered(numbers).chainDeferred(marked)

    def fail_to_mark(self) -> None:
        """Refuse the oldest marks; they are written when the log recovers."""
        numbers, marked = self.unmarked.pop(0)
        self._to_mark.extend(numbers)
        marked.errback(LogUnavailable("the disk is full"))

    def recover(self) -> None:
        """Reopen, find the rows of doubtful batches, and write the marks that were left."""
        self._settle_all()
        MemoryMessageLog.mark_undelivered(self, self._to_mark)
        self._to_mark = []

    def stop(self) -> Deferred[None]:
        """Do what is pending, and accept nothing more."""
        self.is_closed = True
        while self.batches:
            self.commit()
        while self.unmarked:
            self.mark()
        self.recover()
        return super().stop()

    def _settle_all(self) -> None:
        while self.doubtful:
            self.settle(True)
