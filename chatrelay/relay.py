"""The one path of a message: submit, log, deliver, answer.

`Relay` turns requests into batches for the message log and committed batches
into deliveries and answers. Sockets, embedders and later the HTTP API and
other nodes all enter by `submit`. It must not know how a connection carries
bytes, how the log keeps them, or who may log in.

The order is the promise (docs/design.rst): the log is committed first, then
the message is handed over, then the sender is answered. While one batch
commits, the next one forms: an idle relay answers after one sync, a busy one
shares each sync among all that came meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay import wire
from chatrelay.directory import Directory
from chatrelay.interfaces import Connection, LogUnavailable, Message, MessageLog
from chatrelay.wire import Reason, user_key

MAX_WAITING = 10_000
"""Messages that may wait for the log, the batch being committed included; one more is refused as busy."""


_Submission = tuple[Connection, Message]
"""A message and the connection to be told what became of it."""


class Relay:
    """Carries messages between the users in a directory.

    :param directory: who is here.
    :param message_log: where messages are committed before they are delivered.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param call_soon: runs a callable in a later turn of the reactor.
    """

    log = Logger()

    def __init__(
        self,
        directory: Directory,
        message_log: MessageLog,
        now: Callable[[], float],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._directory = directory
        self._message_log = message_log
        self._now = now
        self._call_soon = call_soon
        self._forming: list[_Submission] = []
        self._committing = 0  # messages in the batch being committed
        self._scheduled = False
        self._marking = 0  # batches of undelivered messages being marked
        self._draining: list[Deferred[None]] = []

    def submit(self, sender: Connection, from_uid: str | int, request: wire.SendRequest) -> None:
        """Take one message from a logged-in user. The answer goes to `sender`, once.

        :param from_uid: the user, as the webserver answered.
        """
        outgoing = request.message
        if not self._directory.connections_of(user_key(outgoing.to_uid)):
            sender.send(wire.not_sent(request.id, Reason.RECEIVING_USER_NOT_CONNECTED))
            return
        if len(self._forming) + self._committing >= MAX_WAITING:
            sender.send(wire.not_sent(request.id, Reason.BUSY))
            return
        message = Message(
            from_uid,
            outgoing.to_uid,
            request.id,
            outgoing.time_stamp,
            outgoing.content,
            self._now(),
        )
        self._forming.append((sender, message))
        if not self._scheduled:
            self._schedule()

    def drain(self) -> Deferred[None]:
        """Wait until every message taken so far has been answered."""
        if self._idle():
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._draining.append(waiting)
        return waiting

    def _schedule(self) -> None:
        """See to it that the forming batch is committed: at the end of this turn, or after the one under way."""
        if not self._scheduled and not self._committing and self._forming:
            self._scheduled = True
            self._call_soon(self._commit)

    def _commit(self) -> None:
        self._scheduled = False
        batch, self._forming = self._forming, []
        self._committing = len(batch)
        # An application's own log may raise instead; then, too, the senders are answered and the next is committed.
        committed = maybeDeferred(self._message_log.append, [message for _, message in batch])
        committed.addCallbacks(self._deliver, self._refuse, callbackArgs=(batch,), errbackArgs=(batch,))
        committed.addErrback(self._report)
        committed.addBoth(self._batch_done)

    def _deliver(self, numbers: Sequence[int], batch: list[_Submission]) -> None:
        connections_of = self._directory.connections_of
        unreached: list[tuple[int, _Submission]] = []
        for place, (sender, message) in enumerate(batch):
            reached = False
            connections = connections_of(user_key(message.to_uid))
            if connections:
                payload = wire.message(message.time_stamp, message.from_uid, message.to_uid, message.content)
                for connection in connections:
                    if connection.send(payload):
                        reached = True
            if reached:
                sender.send(wire.sent(message.client_id))
            else:
                unreached.append((numbers[place], (sender, message)))
        if unreached:
            self._mark(unreached)

    def _mark(self, unreached: list[tuple[int, _Submission]]) -> None:
        """The recipient vanished between the check and the hand-over: mark the rows, then say so."""

        def answer(_: object) -> None:
            for _number, (sender, message) in unreached:
                sender.send(wire.not_sent(message.client_id, Reason.RECEIVING_USER_NOT_CONNECTED))

        def done(_: object) -> None:
            self._marking -= 1
            self._tell_drained()

        self._marking += 1
        marked = maybeDeferred(self._message_log.mark_undelivered, [number for number, _ in unreached])
        # A mark that could not be written is made good when the log recovers;
        # that the message reached nobody is true either way.
        marked.addErrback(lambda failure: failure.trap(LogUnavailable) and None)
        marked.addErrback(self._report)
        marked.addCallback(answer)
        marked.addErrback(self._report)
        marked.addBoth(done)

    def _refuse(self, failure: Failure, batch: list[_Submission]) -> None:
        for sender, message in batch:
            sender.send(wire.not_sent(message.client_id, Reason.LOG_UNAVAILABLE))
        # The log itself has told the operator; anything else is a defect, and is reported.
        failure.trap(LogUnavailable)

    def _report(self, failure: Failure) -> None:
        self.log.failure("a batch of messages met a defect of chatrelay; please report it", failure=failure)

    def _batch_done(self, _: object) -> None:
        self._committing = 0
        self._schedule()
        self._tell_drained()

    def _idle(self) -> bool:
        return not (self._forming or self._committing or self._marking)

    def _tell_drained(self) -> None:
        if self._idle():
            draining, self._draining = self._draining, []
            for waiting in draining:
                waiting.callback(None)
