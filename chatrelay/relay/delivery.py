"""The one path of a message: submit, log, deliver, answer.

A `chatrelay.interfaces.Submitter`, such as a session of v1, calls `Relay.submit`, and a `StoreSubmitter`, such as a
session of v2, calls `Relay.store`. This module must not know how a message is encoded, how a connection carries bytes,
how the log keeps messages, or who may log in.

The promise needs this order (docs/design.rst): first the log commits the message, then it is handed over, then the
submitter is answered. While one batch commits, the next one forms. So an idle relay answers after one sync, and a busy
one shares each sync among all messages that came meanwhile.

A message of v1 is refused if the recipient is not here, or has gone when it is committed. Then it is marked as
undelivered. Its places are settled when it was handed over, or when the mark is committed. A message of v2 stands once
it is committed. While nobody speaks v2 here, a batch is delivered without a look at places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import CommitUnknown, Connection, InboxConnection, MessageLog, StoreSubmitter, Submitter
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import LogUnavailable, Message, user_key
from chatrelay.relay.acquaintance import Pair
from chatrelay.relay.answers import MICROSECONDS
from chatrelay.relay.directory import Directory
from chatrelay.relay.resending import ID, Waiting
from chatrelay.relay.storing import ANSWER_SECONDS, Storing, pair_of
from chatrelay.wire.codes import Reason

log = Logger("chatrelay.relay")

MAX_WAITING = 10_000
"""The most messages that may wait for the log, with the batch that is being committed; one more is refused as busy."""


MARK_SECONDS = 1.0
"""Seconds after which a mark of undelivered messages that could not be committed is tried again."""

_Submission = tuple[Any, Message]
"""A message, and its submitter: a `StoreSubmitter` if the message has a unique id, else a `Submitter`."""


@attrs.define(eq=False)
class _Doubtful:
    """A batch of which it is not known whether it is in the log.

    :ivar stored: how many of its messages are of v2. The others have been refused.
    :ivar is_over: whether nobody waits for it: there is no message of v2 in it, or their submitters were told that it
        took too long to find out.
    """

    batch: list[_Submission]
    number: int
    stored: int
    is_over: bool


@attrs.define(eq=False)
class _Unmarked:
    """Messages that reached nobody, with their numbers, whose mark is not committed yet.

    :ivar epoch: that of the log in which they have these numbers; None if the log has none.
    """

    unreached: list[tuple[int, _Submission]]
    epoch: str | None


class Relay:
    """Carries messages between the users in a directory.

    :param directory: the connections by user.
    :param message_log: where messages are committed before they are delivered.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param call_soon: runs a callable in a later turn of the reactor.
    :param storing: decides about messages of v2; None if the message log does not number inboxes.
    :param clock: for timers, if there is `storing`.
    :ivar now: the same clock, for the `received_at` of messages.
    """

    def __init__(
        self,
        directory: Directory,
        message_log: MessageLog,
        now: Callable[[], float],
        call_soon: Callable[[Callable[[], None]], object],
        storing: Storing | None = None,
        clock: Any = None,
    ) -> None:
        self._directory = directory
        self._message_log = message_log
        self.now = now
        self._call_soon = call_soon
        self._forming: list[_Submission] = []
        self._in_commit: list[_Submission] = []
        self._waiting = 0  # messages in the batch being committed, and in doubtful batches
        self._doubtful: list[_Doubtful] = []
        self._scheduled = False
        self._begun = 0  # batches that were handed to the log; also the number of the last one
        # For each batch, by its number, oldest first: the steps that remain until all its submitters have been
        # answered.
        self._unanswered: dict[int, int] = {}
        self._draining: list[tuple[int, Deferred[None]]] = []
        self._storing = storing
        # Whether there is a message of v2 in the batch that is forming, and in the one that is being committed.
        self._forms_stored = self._commits_stored = False
        self._indexes: dict[int, Waiting] = {}  # of batches that were searched for a message, by the id of the list
        if storing is not None:
            storing.attach(self._take, self._find_waiting)
            self._outcome_deadlines: DeadlineTimer[_Doubtful] = DeadlineTimer(clock, ANSWER_SECONDS, self._time_passed)
            self._mark_retries: DeadlineTimer[_Unmarked] = DeadlineTimer(clock, MARK_SECONDS, self._mark_again)

    def submit(self, message: Message, submitter: Submitter) -> None:
        """Take one message, and call `submitter.accepted` or `submitter.refused` once, now or later."""
        # This is `user_key`, inlined: the call would take as long again for every message.
        uid = message.to_uid
        if not self._directory.connections_of(uid if type(uid) is str else str(uid)):
            submitter.refused(message, Reason.RECEIVING_USER_NOT_CONNECTED)
        elif len(self._forming) + self._waiting >= MAX_WAITING:
            submitter.refused(message, Reason.BUSY)
        else:
            self._forming.append((submitter, message))
            if not self._scheduled:
                self._schedule()

    def store(
        self, message: Message, submitter: StoreSubmitter, again: bool = False, reject: bool | None = None
    ) -> None:
        """Take one message of v2, and call `stored`, `refused` or `unknown` of `submitter` once, now or later.

        The relay must have been made with `storing`. A message to a recipient who is not here is stored.

        :param message: one with a unique id.
        :param again: whether the client has sent it before, and does not know what became of it. Then a refusal as busy
            says nothing of the first one.
        :param reject: whether it is refused if its sender knows the recipient, and the recipient is not here; None for
            the operator's default.
        """
        storing = self._storing
        assert storing is not None, "only a log that numbers inboxes can store messages of v2"
        # `storing.waiting` is looked up without a call.
        if len(self._forming) + self._waiting + len(storing.tickets.pending) >= MAX_WAITING:
            submitter.refused(message, Reason.BUSY)
        else:
            storing.submit(message, submitter, again, reject)

    def drain(self) -> Deferred[None]:
        """Wait until the submitters of all messages taken so far have been answered. Do not wait for later messages."""
        if self._storing is not None and self._storing.waiting:
            return self._storing.tickets.all_closed().addCallback(lambda _: self._drain_batches())
        return self._drain_batches()

    def _drain_batches(self) -> Deferred[None]:
        last = self._begun + bool(self._forming)
        if self._all_answered(last):
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._draining.append((last, waiting))
        return waiting

    def _schedule(self) -> None:
        """Have the forming batch committed in a later turn of the reactor, unless a batch is being committed now."""
        if not self._scheduled and not self._in_commit and self._forming:
            self._scheduled = True
            self._call_soon(self._commit)

    def _commit(self) -> None:
        self._scheduled = False
        batch, self._forming = self._forming, []
        self._in_commit = batch
        self._commits_stored, self._forms_stored = self._forms_stored, False
        self._waiting += len(batch)
        self._begun += 1
        number = self._begun
        self._unanswered[number] = 1
        # An embedding program's log may raise instead of failing its Deferred. Even then, all submitters are answered,
        # and the next batch follows.
        committed = maybeDeferred(self._message_log.append, [message for _, message in batch])
        committed.addCallbacks(self._deliver, self._refuse, callbackArgs=(batch, number), errbackArgs=(batch,))
        committed.addErrback(self._report)
        committed.addBoth(self._batch_done, number)

    def _take(self, message: Message, submitter: StoreSubmitter) -> None:
        """Put a message of v2 into the batch that is forming."""
        self._forming.append((submitter, message))
        self._forms_stored = True
        if not self._scheduled:
            self._schedule()

    def _find_waiting(self, message_id: ID) -> Message | None:
        """Find a message of v2 that waits for the log."""
        for batch in (self._forming, self._in_commit, *(doubtful.batch for doubtful in self._doubtful)):
            if not batch:
                continue  # it is replaced, and its index would stay
            index = self._indexes.get(id(batch))
            if index is None:
                index = self._indexes[id(batch)] = Waiting(batch)
            found = index.find(message_id)
            if found is not None:
                return found
        return None

    def _deliver(self, numbers: Sequence[int], batch: list[_Submission], number: int) -> None:
        storing = self._storing
        if storing is not None:
            if self._commits_stored or storing.inboxes:
                self._deliver_places(numbers, batch, number, storing)
                return
            storing.forget_unknown()
        connections_of = self._directory.connections_of
        unreached: list[tuple[int, _Submission]] = []
        for place, (submitter, message) in enumerate(batch):
            uid = message.to_uid
            connections = connections_of(uid if type(uid) is str else str(uid))  # `user_key`, as in `submit`
            if len(connections) == 1:  # as almost always: then the loops of `hand_over` would take as long as the rest
                connection = connections[0]
                is_handed_over = connection.send(connection.dialect.delivery(message))
            else:
                is_handed_over = hand_over(message, connections)
            if is_handed_over:
                submitter.accepted(message)
            else:
                self._hold(message)
                unreached.append((numbers[place], (submitter, message)))
        if unreached:
            self._mark(unreached, number)

    def _deliver_places(self, numbers: Sequence[int], batch: list[_Submission], number: int, storing: Storing) -> None:
        """Deliver a batch in which a message of v2 is, or while somebody who speaks v2 is here."""
        storing.check_epoch()
        unreached: list[tuple[int, _Submission]] = []
        for index, (submitter, message) in enumerate(batch):
            if message.has_unique_id:
                if not self._deliver_as_usual(message, submitter, storing):
                    self._deliver_stored(message, submitter, pair_of(message), number, storing)
                continue
            pair = pair_of(message)
            if self._hand_over(message, pair, None, storing):
                storing.committed(message, pair)
                submitter.accepted(message)
            else:
                self._hold(message)
                unreached.append((numbers[index], (submitter, message)))
        if unreached:
            self._mark(unreached, number)

    def _deliver_as_usual(self, message: Message, submitter: StoreSubmitter, storing: Storing) -> bool:
        """Deliver a message of v2 and answer it if this is the usual case, and return whether it is.

        In the usual case both users have one connection, of v2, and know each other. Then most steps of
        `_deliver_stored` find nothing to do, and looking for it takes longer than the rest. This looks once, and does
        what is left of them, in the same order. A test compares both.
        """
        sender, recipient = message.from_uid, message.to_uid
        if type(sender) is not str or type(recipient) is not str or sender == recipient:
            return False
        # Before anything depends on who is here: people who do not know each other must not learn of it by the time.
        if not storing.is_usual(message, submitter, sender, recipient):
            return False
        inboxes, connections = storing.inboxes, self._directory.connections_of(recipient)
        own, theirs = inboxes.get(sender), inboxes.get(recipient)
        if own is None or theirs is None or len(connections) != 1 or connections[0] not in theirs.connections:
            return False
        answered, cursor = own.only_cursor, theirs.only_cursor
        if answered is None or cursor is None or answered.connection is not submitter.connection:
            return False
        place, from_place = message.to_place, message.from_place
        # As `Inbox.deliver` does, for both inboxes. The sender's only cursor is that of the answer.
        if place > theirs.last:
            theirs.last = place
        is_reached = cursor.offer(place, inboxes.dialect.delivery(message, place))
        if from_place > own.last:
            own.last = from_place
        arrivals = storing.arrivals_of(recipient)
        if arrivals is not None:
            arrivals.add(place, sender, from_place)
        submitter.stored(message, from_place, int(message.received_at * MICROSECONDS), is_reached)
        return True

    def _deliver_stored(
        self, message: Message, submitter: StoreSubmitter | None, pair: Pair, number: int, storing: Storing
    ) -> None:
        """Deliver a message of v2, and answer it.

        :param submitter: None if nobody waits for the answer any more.
        """
        answered = None if submitter is None else submitter.connection
        is_reached = self._hand_over(message, pair, answered, storing)
        storing.committed(message, pair)
        if submitter is not None and not storing.answers.give(submitter, message, pair, is_reached):
            self._unanswered[number] += 1
            storing.answers.keep(submitter, message, pair, is_reached, partial(self._answered, number))
        if storing.resendings.remembered:
            storing.answer_copies(message)

    def _hand_over(self, message: Message, pair: Pair, answered: InboxConnection | None, storing: Storing) -> bool:
        """Hand a message over to the recipient, then to the sender's other connections of v2.

        :param answered: the connection of the sender whose answer takes the message's place.
        :returns: whether a connection of the recipient took it.
        """
        sender, recipient = pair
        connections = self._directory.connections_of(recipient)
        inbox = storing.inboxes.get(recipient)
        is_reached = False
        if inbox is not None:
            is_own = sender == recipient
            is_reached = inbox.deliver(message, message.to_place, answered if is_own else None)
            is_reached = is_reached or (is_own and answered in inbox.connections)
            if len(connections) == 1:
                connections = () if connections[0] in inbox.connections else connections
            else:
                connections = tuple(each for each in connections if each not in inbox.connections)
        if connections:
            is_reached = hand_over(message, connections) or is_reached
        if sender != recipient and (is_reached or message.has_unique_id):
            inbox = storing.inboxes.get(sender)
            if inbox is not None:
                inbox.deliver(message, message.from_place, answered)
        return is_reached

    def _hold(self, message: Message) -> None:
        """Note that the places of a message are not settled: nothing at them or after them may be sent."""
        if self._storing is not None:
            for user, place in _places(message):
                self._storing.inboxes.hold(user, place)

    def _release(self, message: Message) -> None:
        """Note that the places of a message are void, and settled."""
        if self._storing is not None:
            for user, place in _places(message):
                self._storing.inboxes.release_void(user, place)

    def _mark(self, unreached: list[tuple[int, _Submission]], number: int) -> None:
        """Mark messages whose recipients disconnected before the hand-over as undelivered, then refuse them."""

        def answer(_marked: object) -> None:
            for _, (submitter, message) in unreached:
                submitter.refused(message, Reason.RECEIVING_USER_NOT_CONNECTED)

        self._unanswered[number] += 1
        # After a failure, the log writes the mark when it recovers. The message reached nobody either way.
        marked = self._commit_mark(_Unmarked(unreached, None if self._storing is None else self._storing.epoch))
        marked.addCallback(answer)
        marked.addErrback(self._report)
        marked.addBoth(lambda _: self._answered(number))

    def _commit_mark(self, unmarked: _Unmarked) -> Deferred[None]:
        """Mark messages as undelivered; the Deferred fires when that is committed, or has failed."""
        numbers = [number for number, _ in unmarked.unreached]
        marked = maybeDeferred(self._message_log.mark_undelivered, numbers)
        marked.addCallbacks(self._marked, self._mark_failed, callbackArgs=(unmarked,), errbackArgs=(unmarked,))
        marked.addErrback(self._report)
        return marked

    def _marked(self, _: object, unmarked: _Unmarked) -> None:
        if self._is_current(unmarked):
            for _number, (_submitter, message) in unmarked.unreached:
                self._release(message)

    def _mark_failed(self, failure: Failure, unmarked: _Unmarked) -> None:
        # The log marks the messages when it recovers. Until then their places are not settled, so this is tried again.
        if self._storing is not None:
            self._mark_retries.start(unmarked)
        failure.trap(LogUnavailable)

    def _mark_again(self, unmarked: _Unmarked) -> None:
        if self._is_current(unmarked):
            self._commit_mark(unmarked)

    def _is_current(self, unmarked: _Unmarked) -> bool:
        """Return whether these messages still have their numbers and places: in another epoch, others have them."""
        return self._storing is not None and self._storing.epoch == unmarked.epoch

    def _refuse(self, failure: Failure, batch: list[_Submission]) -> None:
        is_doubtful = self._storing is not None and isinstance(failure.value, CommitUnknown)
        for submitter, message in batch:
            if not message.has_unique_id:
                submitter.refused(message, Reason.LOG_UNAVAILABLE)
            elif not is_doubtful:
                self._refuse_stored(message, submitter)
        if is_doubtful:
            assert isinstance(failure.value, CommitUnknown)
            stored = sum(message.has_unique_id for _, message in batch)
            doubtful = _Doubtful(batch, self._begun, stored, is_over=not stored)
            self._doubtful.append(doubtful)
            if stored:
                self._waiting += stored
                self._unanswered[doubtful.number] += 1
                self._outcome_deadlines.start(doubtful)
            failure.value.outcome.addCallback(self._outcome_known, doubtful).addErrback(self._report)
        # The message log has reported a `LogUnavailable` itself. Any other failure is a defect, and is reported here.
        failure.trap(LogUnavailable)

    def _refuse_stored(self, message: Message, submitter: StoreSubmitter | None) -> None:
        """Refuse a message of v2 that was taken, and is not in the log."""
        assert self._storing is not None
        self._storing.failed(message)
        if submitter is not None:
            submitter.refused(message, Reason.LOG_UNAVAILABLE)

    def _outcome_known(self, is_in_log: bool, doubtful: _Doubtful) -> None:
        """Deliver or refuse the messages of v2 in a batch that was doubtful. The others have been refused."""
        storing = self._storing
        assert storing is not None
        self._outcome_deadlines.stop(doubtful)
        self._doubtful.remove(doubtful)
        self._waiting -= doubtful.stored
        self._indexes.pop(id(doubtful.batch), None)
        if is_in_log:
            storing.check_epoch()
        for submitter, message in doubtful.batch:
            waiting = None if doubtful.is_over else submitter
            if message.has_unique_id:
                if is_in_log:
                    pair = pair_of(message)
                    self._deliver_stored(message, waiting, pair, doubtful.number, storing)
                else:
                    self._refuse_stored(message, waiting)
            elif is_in_log:
                self._release(message)
        if not doubtful.is_over:
            self._answered(doubtful.number)

    def _time_passed(self, doubtful: _Doubtful) -> None:
        """Tell submitters that it is not known in time what became of their messages of v2."""
        doubtful.is_over = True
        for submitter, message in doubtful.batch:
            if message.has_unique_id:
                submitter.unknown(message)
        self._answered(doubtful.number)

    def _report(self, failure: Failure) -> None:
        log.failure("delivering a batch of messages failed; please report it", failure=failure)

    def _batch_done(self, _: object, number: int) -> None:
        batch, self._in_commit = self._in_commit, []
        self._waiting -= len(batch)
        if self._indexes:
            self._indexes.pop(id(batch), None)
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


def hand_over(message: Message, connections: tuple[Connection, ...]) -> bool:
    """Send a message to connections of the recipient; return whether one of them took it (the promise's C2)."""
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
    return is_handed_over


def _places(message: Message) -> set[tuple[str, int]]:
    """Return the places of a message, each with its user; only one for a message to oneself."""
    return {(user_key(message.from_uid), message.from_place), (user_key(message.to_uid), message.to_place)}
