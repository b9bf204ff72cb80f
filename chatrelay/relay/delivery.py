"""The one path of a message: submit, log, deliver, answer.

A `chatrelay.interfaces.Submitter`, such as a session, calls `Relay.submit`. This module must not know how a message is
encoded, how a connection carries bytes, how the log keeps messages, or who may log in.

The promise needs this order (docs/design.rst): first the log commits the message, then it is handed over, then the
submitter is answered. While one batch commits, the next one forms. So an idle relay answers after one sync, and a busy
one shares each sync among all messages that came meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import Connection, MessageLog, Submitter
from chatrelay.model import LogUnavailable, Message
from chatrelay.relay.directory import Directory
from chatrelay.wire.codes import Reason

log = Logger("chatrelay.relay")

MAX_WAITING = 10_000
"""The most messages that may wait for the log, with the batch that is being committed; one more is refused as busy."""


_Submission = tuple[Submitter, Message]
"""A message, and its submitter, whose `accepted` or `refused` is called."""


class Relay:
    """Carries messages between the users in a directory.

    :param directory: the connections by user.
    :param message_log: where messages are committed before they are delivered.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param call_soon: runs a callable in a later turn of the reactor.
    :ivar now: the same clock, for the `received_at` of messages.
    """

    def __init__(
        self,
        directory: Directory,
        message_log: MessageLog,
        now: Callable[[], float],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._directory = directory
        self._message_log = message_log
        self.now = now
        self._call_soon = call_soon
        self._forming: list[_Submission] = []
        self._committing = 0  # messages in the batch being committed
        self._scheduled = False
        self._begun = 0  # batches that were handed to the log; also the number of the last one
        # For each batch, by its number, oldest first: the steps that remain until all its submitters have been
        # answered.
        self._unanswered: dict[int, int] = {}
        self._draining: list[tuple[int, Deferred[None]]] = []

    def submit(self, message: Message, submitter: Submitter) -> None:
        """Take one message, and call `submitter.accepted` or `submitter.refused` once, now or later."""
        # This is `user_key`, inlined: the call would take as long again for every message.
        uid = message.to_uid
        if not self._directory.connections_of(uid if type(uid) is str else str(uid)):
            submitter.refused(message, Reason.RECEIVING_USER_NOT_CONNECTED)
        elif len(self._forming) + self._committing >= MAX_WAITING:
            submitter.refused(message, Reason.BUSY)
        else:
            self._forming.append((submitter, message))
            if not self._scheduled:
                self._schedule()

    def drain(self) -> Deferred[None]:
        """Wait until the submitters of all messages taken so far have been answered. Do not wait for later messages."""
        last = self._begun + bool(self._forming)
        if self._all_answered(last):
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._draining.append((last, waiting))
        return waiting

    def _schedule(self) -> None:
        """Have the forming batch committed in a later turn of the reactor, unless a batch is being committed now."""
        if not self._scheduled and not self._committing and self._forming:
            self._scheduled = True
            self._call_soon(self._commit)

    def _commit(self) -> None:
        self._scheduled = False
        batch, self._forming = self._forming, []
        self._committing = len(batch)
        self._begun += 1
        number = self._begun
        self._unanswered[number] = 1
        # An embedding program's log may raise instead of failing its Deferred. Even then, all submitters are answered,
        # and the next batch follows.
        committed = maybeDeferred(self._message_log.append, [message for _, message in batch])
        committed.addCallbacks(self._deliver, self._refuse, callbackArgs=(batch, number), errbackArgs=(batch,))
        committed.addErrback(self._report)
        committed.addBoth(self._batch_done, number)

    def _deliver(self, numbers: Sequence[int], batch: list[_Submission], number: int) -> None:
        connections_of = self._directory.connections_of
        unreached: list[tuple[int, _Submission]] = []
        for place, (submitter, message) in enumerate(batch):
            uid = message.to_uid
            connections = connections_of(uid if type(uid) is str else str(uid))  # `user_key`, as in `submit`
            is_handed_over = False
            while connections:  # once for each dialect, so that the message is encoded once for each
                dialect = connections[0].dialect
                payload = dialect.delivery(message)
                others: tuple[Connection, ...] = ()
                for connection in connections:
                    if connection.dialect is not dialect:
                        others = (*others, connection)
                    elif connection.send(payload):
                        is_handed_over = True
                connections = others
            if is_handed_over:
                submitter.accepted(message)
            else:
                unreached.append((numbers[place], (submitter, message)))
        if unreached:
            self._mark(unreached, number)

    def _mark(self, unreached: list[tuple[int, _Submission]], number: int) -> None:
        """Mark messages whose recipients disconnected before the hand-over as undelivered, then refuse them."""

        def answer(_marked: object) -> None:
            for _, (submitter, message) in unreached:
                submitter.refused(message, Reason.RECEIVING_USER_NOT_CONNECTED)

        self._unanswered[number] += 1
        marked = maybeDeferred(self._message_log.mark_undelivered, [row for row, _ in unreached])
        # After a failure, the log writes the mark when it recovers. The message reached nobody either way.
        marked.addErrback(lambda failure: failure.trap(LogUnavailable) and None)
        marked.addErrback(self._report)
        marked.addCallback(answer)
        marked.addErrback(self._report)
        marked.addBoth(lambda _: self._answered(number))

    def _refuse(self, failure: Failure, batch: list[_Submission]) -> None:
        for submitter, message in batch:
            submitter.refused(message, Reason.LOG_UNAVAILABLE)
        # The message log has reported a `LogUnavailable` itself. Any other failure is a defect, and is reported here.
        failure.trap(LogUnavailable)

    def _report(self, failure: Failure) -> None:
        log.failure("delivering a batch of messages failed; please report it", failure=failure)

    def _batch_done(self, _: object, number: int) -> None:
        self._committing = 0
        self._schedule()
        self._answered(number)

    def _answered(self, number: int) -> None:
        """Note that some submitters of a batch were answered: those whose messages were handed over, or all others."""
        self._unanswered[number] -= 1
        if not self._unanswered[number]:
            del self._unanswered[number]
            draining, self._draining = self._draining, []
            for last, waiting in draining:
                if self._all_answered(last):
                    waiting.callback(None)
                else:
                    self._draining.append((last, waiting))

    def _all_answered(self, last: int) -> bool:
        """Return whether all submitters of all batches up to number `last` have been answered."""
        return self._begun >= last and next(iter(self._unanswered), last + 1) > last
