"""Test doubles, for the tests of chatrelay and of programs that embed it.

Each implements a Protocol of `chatrelay.interfaces`, and passes the contract test of that Protocol. The test decides
when each succeeds or fails. This module must not open a socket or a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from chatrelay.interfaces import CommitUnknown, Dialect
from chatrelay.messagelog.memory import MemoryInboxReader, MemoryMessageLog
from chatrelay.model import Denied, InboxState, LogBusy, LoggedIn, LogUnavailable, Message, Verdict
from chatrelay.wire import v1
from chatrelay.wire.codes import Close


class KnownSessions:
    """An `Authenticator` that knows some sessions, and gives its verdicts at once.

    :param users: SESSID -> uID; others are denied.
    """

    def __init__(self, users: Mapping[str, str | int]) -> None:
        self.users = users

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Look the session up."""
        return succeed(LoggedIn(self.users[sessid]) if sessid in self.users else Denied())


class HeldAuthenticator:
    """An `Authenticator` that gives a verdict when the test calls `answer`.

    :ivar asked: the pending requests: (SESSID, the Deferred to fire with a verdict).
    :ivar cancelled: the SESSIDs of the requests that were given up.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Verdict]]] = []
        self.cancelled: list[str] = []

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Keep the request until the test answers it."""

        def give_up(answer: Deferred[Verdict]) -> None:
            self.asked[:] = [pending for pending in self.asked if pending[1] is not answer]
            self.cancelled.append(sessid)

        answer: Deferred[Verdict] = Deferred(give_up)
        self.asked.append((sessid, answer))
        return answer

    def answer(self, verdict: Verdict) -> None:
        """Answer the oldest pending request."""
        self.asked.pop(0)[1].callback(verdict)


class RecordedConnection:
    """A `Connection` and `InboxConnection` that records the messages sent to it.

    :ivar dialect: the dialect in which messages are delivered to it.
    :ivar unsent: the bytes that wait; the test sets them.
    :ivar sent: the messages sent to it, as JSON values.
    :ivar closed: the close code and the reason, once it is closed; None before.
    """

    dialect: Dialect = v1

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: Close | None = None
        self.unsent = 0
        self._drained: Callable[[], None] | None = None

    @property
    def is_behind(self) -> bool:
        """Whether bytes wait."""
        return self.unsent > 0

    def call_when_drained(self, call: Callable[[], None]) -> None:
        """Keep the call until the test calls `drain`."""
        self._drained = call

    def drain(self) -> None:
        """Have no bytes wait, and make the call that `call_when_drained` was given, if there is one."""
        self.unsent = 0
        call, self._drained = self._drained, None
        if call is not None and self.closed is None:
            call()

    def send(self, payload: bytes) -> bool:
        """Record a message, unless the connection is closed."""
        if self.closed is not None:
            return False
        self.sent.append(json.loads(payload))
        return True

    def close(self, close: Close) -> None:
        """Close the connection. Later calls change nothing."""
        if self.closed is None:
            self.closed = close

    def take(self) -> list[Any]:
        """Return the messages that were sent since the last call."""
        sent, self.sent = self.sent, []
        return sent


class HeldMessageLog(MemoryMessageLog):
    """A message log that commits a batch when the test calls `commit`.

    It looks up an inbox when the earlier batches are done. It answers reads at once, unless `reader.holds` is set.

    :ivar batches: the batches that wait: (messages, the Deferred that fires with their numbers).
    :ivar doubtful: the batches that `commit_unknown` refused and `settle` has not settled: (messages, the outcome).
    :ivar holds_inboxes: whether `inbox` waits until the test calls `answer_inbox` or `fail_inbox`.
    :ivar reader: its `InboxReader`.
    """

    reader: HeldInboxReader

    def __init__(self) -> None:
        super().__init__()
        self.reader = HeldInboxReader(self)
        self.batches: list[tuple[Sequence[Message], Deferred[Sequence[int]]]] = []
        self.doubtful: list[tuple[Sequence[Message], Deferred[bool]]] = []
        self.holds_inboxes = False
        # What waits to be looked up: the batches that must be done before, the user, and the Deferred.
        self._inboxes: list[tuple[int, str, Deferred[InboxState]]] = []
        self._done = 0  # batches that were committed or refused

    def append(self, messages: Sequence[Message]) -> Deferred[Sequence[int]]:
        """Keep a batch until the test commits or refuses it."""
        committed: Deferred[Sequence[int]] = Deferred()
        self.batches.append((messages, committed))
        return committed

    def commit(self) -> None:
        """Commit the oldest batch."""
        if self.doubtful:
            raise AssertionError("call settle first: a log commits nothing before it knows what is in it")
        messages, committed = self._take_batch()
        super().append(messages).chainDeferred(committed)
        self._batch_done()

    def fail(self, why: str = "the disk is full") -> None:
        """Refuse the oldest batch."""
        self._take_batch()[1].errback(LogUnavailable(why))
        self._batch_done()

    def commit_unknown(self, why: str = "the disk failed at the sync") -> None:
        """Refuse the oldest batch with `CommitUnknown`. The test calls `settle` later, or never."""
        messages, committed = self._take_batch()
        outcome: Deferred[bool] = Deferred()
        self.doubtful.append((messages, outcome))
        committed.errback(CommitUnknown(why, outcome))
        self._batch_done()

    def settle(self, is_in_log: bool) -> None:
        """Say whether the oldest doubtful batch is in the log.

        If it is, its messages with a unique id stand, and the others are marked as undelivered.
        """
        messages, outcome = self.doubtful.pop(0)
        if is_in_log:
            numbers = [self._keep(message) for message in messages]
            for number, message in zip(numbers, messages, strict=True):
                self.rows[number - 1].delivered = message.has_unique_id
        outcome.callback(is_in_log)

    def inbox(self, user: str) -> Deferred[InboxState]:
        """Look up a user's inbox when the earlier batches are done."""
        found: Deferred[InboxState] = Deferred()
        self._inboxes.append((self._done + len(self.batches), user, found))
        self._answer_inboxes()
        return found

    def answer_inbox(self) -> None:
        """Answer the oldest `inbox` that waits."""
        _, user, found = self._inboxes.pop(0)
        super().inbox(user).chainDeferred(found)

    def fail_inbox(self, why: str = "the disk is full") -> None:
        """Fail the oldest `inbox` that waits."""
        self._inboxes.pop(0)[2].errback(LogUnavailable(why))

    def _take_batch(self) -> tuple[Sequence[Message], Deferred[Sequence[int]]]:
        if self._inboxes and self._inboxes[0][0] <= self._done:
            raise AssertionError("call answer_inbox first: a log answers it before any later batch")
        return self.batches.pop(0)

    def _batch_done(self) -> None:
        self._done += 1
        self._answer_inboxes()

    def _answer_inboxes(self) -> None:
        while not self.holds_inboxes and self._inboxes and self._inboxes[0][0] <= self._done:
            if self.doubtful:
                self.fail_inbox("the message log is not open")
            else:
                self.answer_inbox()


class HeldInboxReader(MemoryInboxReader):
    """The `InboxReader` of a `HeldMessageLog`.

    :ivar holds: whether a read waits until the test calls `answer` or `fail`.
    :ivar waiting: the reads that wait, oldest first: (what makes the result, the Deferred that fires with it).
    """

    def __init__(self, log: MemoryMessageLog) -> None:
        super().__init__(log)
        self.holds = False
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def _answer(self, read: Callable[[], Any]) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self.waiting.append((read, answer))
        if not self.holds:
            self.answer()
        return answer

    def answer(self) -> None:
        """Answer the oldest read that waits, with what is in the log now."""
        read, answer = self.waiting.pop(0)
        answer.callback(read())

    def fail(self, error: LogUnavailable | LogBusy | None = None) -> None:
        """Fail the oldest read that waits.

        :param error: what it fails with; None for a `LogUnavailable`.
        """
        self.waiting.pop(0)[1].errback(error or LogUnavailable("the disk failed"))
