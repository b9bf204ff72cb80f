"""Decide whether a message of v2 is accepted, and do what follows from it besides its delivery.

Pure: clocks, the directory and the message log are passed in. This module must not know how batches are committed, nor
how a message is handed over: `chatrelay.relay.delivery.Relay` does both, and calls this module before and after.

A message is taken at once if the sender knows the recipient, and the recipient is connected. Any other message may need
a read before: one that is sent again is searched for in the log, and limits and ``offline`` depend on who is known to
whom. Messages from one user to another wait in one queue, so that they are taken in the order in which they were sent
(the promise's C7).

Whatever is read for people who are unknown to the sender, and whatever is done about them, does not depend on whether
they are here or exist.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxLog, StoreSubmitter
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import InboxState, LogBusy, LoggedMessage, LogUnavailable, Message, user_key
from chatrelay.relay.acquaintance import Acquaintances, Pair
from chatrelay.relay.answers import Answers, microseconds
from chatrelay.relay.arrivals import Arrivals
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.directory import Directory
from chatrelay.relay.inbox import Inboxes
from chatrelay.relay.offline import Away, Strangers
from chatrelay.relay.resending import ID, Copy, Resending, Resendings
from chatrelay.relay.tickets import Tickets
from chatrelay.wire.codes import Reason

log = Logger("chatrelay.relay")

ANSWER_SECONDS = 10.0
"""Seconds after which the sender is told that it is not known whether a message is in the log."""

SEARCH_SECONDS = 1.0
"""Seconds after which a search for a message that came again is repeated, if it has failed."""


@attrs.frozen
class StorePolicy:
    """What the operator allows; see the options of the same names.

    :ivar reject: whether messages to people who are not here are refused, unless the client says otherwise.
    :ivar offline_messages: places that may be stored for somebody who is not here; 0 for no limit.
    :ivar stranger_messages: messages in 24 hours to somebody who has never written back; 0 for no limit.
    :ivar again_time: seconds in which a message that is sent again is found; 0 for no limit.
    """

    reject: bool = False
    offline_messages: int = 10_000
    stranger_messages: int = 20
    again_time: float = 86_400.0


@attrs.define(eq=False)
class _Held:
    """A message that is not taken yet.

    :ivar rejects: whether it is refused if the sender knows the recipient, and the recipient is not here.
    :ivar id: its sender and id.
    :ivar is_again: whether it is searched for in the log first.
    :ivar is_known: whether the sender knows the recipient, if that was read for this message.
    :ivar is_asking: whether a read for this message is under way.
    :ivar is_done: whether it was taken, answered or refused.
    :ivar failure: why a read has failed.
    :ivar searched_since: when the search for a message that came again began.
    """

    message: Message
    submitter: StoreSubmitter
    pair: Pair
    rejects: bool
    id: ID
    is_again: bool
    ticket: int
    is_known: bool | None = None
    is_asking: bool = False
    is_done: bool = False
    failure: Reason | None = None
    searched_since: float = 0.0


class Storing:
    """Decides about the messages of v2.

    :param directory: the connections by user.
    :param message_log: where messages are searched for.
    :param inboxes: the inboxes with a cursor.
    :param policy: what the operator allows.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param clock: for time and timers.
    :ivar acquaintances: who is known to whom.
    :ivar inboxes: the same inboxes.
    :ivar resendings: the ids that came with ``again``.
    :ivar arrivals_of: called with the key of a user; returns where messages to the user are noted, if anywhere.
    """

    def __init__(
        self,
        directory: Directory,
        message_log: InboxLog,
        inboxes: Inboxes,
        policy: StorePolicy,
        now: Callable[[], float],
        clock: Any,
    ) -> None:
        self._connections_of = directory.connections_of
        self._log = message_log
        self._policy = policy
        self._now = now
        self._epoch: str | None = None  # of what is known of the log; None before anything is
        self.inboxes = inboxes
        self.acquaintances = Acquaintances(message_log.reader)
        self.answers = Answers(self.acquaintances)
        self.tickets = Tickets()
        self._awareness: Awareness | None = None
        self._told_pairs: Container[Pair] = self.acquaintances.known_pairs
        self.arrivals_of: Callable[[str], Arrivals | None] = _no_arrivals
        self._strangers = Strangers(policy.stranger_messages, clock.seconds)
        self._away = Away(policy.offline_messages)
        directory.watch(self._away.returned, lambda _: None)
        self.resendings = Resendings(clock.seconds)
        self._deadlines: DeadlineTimer[Copy] = DeadlineTimer(clock, ANSWER_SECONDS, self._time_passed)
        self._searches: DeadlineTimer[_Held] = DeadlineTimer(clock, SEARCH_SECONDS, self._search)
        self._seconds = clock.seconds
        self._held: dict[Pair, deque[_Held]] = {}
        self._held_ids: dict[ID, Message] = {}
        self._advancing: set[Pair] = set()
        # Messages that are counted by `_strangers` (True) or `_away` (False), while they wait for the log.
        self._counted: dict[int, bool] = {}
        self._take: Callable[[Message, StoreSubmitter], None]
        self._find_waiting: Callable[[ID], Message | None]

    def attach(
        self, take: Callable[[Message, StoreSubmitter], None], find_waiting: Callable[[ID], Message | None]
    ) -> None:
        """Connect this with the relay.

        :param take: puts a message into the batch that is forming.
        :param find_waiting: finds a message of v2 that waits for the log.
        """
        self._take = take
        self._find_waiting = find_waiting

    def tell(self, awareness: Awareness) -> None:
        """Tell awareness of every message that stands, from now on."""
        self._awareness = awareness
        self._told_pairs = awareness.told_pairs
        self.arrivals_of = awareness.receipts.arrivals.get

    @property
    def epoch(self) -> str:
        """The epoch of the message log."""
        return self._log.epoch

    def check_epoch(self) -> None:
        """Forget what is known of the message log if it has another epoch."""
        self.inboxes.check_epoch()
        if self._epoch != self._log.epoch:
            if self._epoch is not None:
                self._away.forget()
                self.resendings.forget()
                self.forget_acquaintances()
            self._epoch = self._log.epoch

    def forget_acquaintances(self) -> None:
        """Forget who is known to whom, because messages are not in the message log any more."""
        self.acquaintances.forget()
        if self._awareness is not None:
            self._awareness.forget()

    # Before the commit -----------------------------------------------------

    def submit(self, message: Message, submitter: StoreSubmitter, again: bool, reject: bool | None) -> None:
        """Take a message, answer it or refuse it, now or later.

        :param again: whether the client has sent it before, and does not know what became of it.
        :param reject: whether the message is refused if the recipient is not here; None for the operator's default.
        """
        if self._epoch != self._log.epoch:
            self.check_epoch()
        # This is `pair_of`, inlined.
        uid, to_uid = message.from_uid, message.to_uid
        sender = uid if type(uid) is str else str(uid)
        recipient = to_uid if type(to_uid) is str else str(to_uid)
        pair, id = (sender, recipient), (sender, message.client_id)
        if (
            pair in self.acquaintances.known_pairs
            and not again
            and (not self._held or pair not in self._held)
            and (not self.resendings.remembered or id not in self.resendings.remembered)
            and self._connections_of(recipient)
        ):
            self._take(message, submitter)
            return
        resending = self.resendings.get(id)
        if resending is None and again:
            first = self._held_ids.get(id) or self._find_waiting(id)
            resending = self.resendings.begin(id, first or message)
            if first is None:
                self._hold(_Held(message, submitter, pair, self._rejects(reject), id, True, self.tickets.open()))
                return
        if resending is None:
            self._hold(_Held(message, submitter, pair, self._rejects(reject), id, False, self.tickets.open()))
        elif not resending.is_same(message):
            submitter.refused(message, Reason.ID_REUSED)
        else:
            copy = Copy(message, submitter, self.tickets.open())
            if resending.copies is None:
                self._answer_copy(copy, resending)
            else:
                resending.copies.append(copy)
                self._deadlines.start(copy)

    @property
    def waiting(self) -> int:
        """How many messages are not taken, answered or refused yet."""
        return len(self.tickets.pending)

    def _rejects(self, reject: bool | None) -> bool:
        return self._policy.reject if reject is None else reject

    def _hold(self, held: _Held) -> None:
        self._held.setdefault(held.pair, deque()).append(held)
        self._held_ids[held.id] = held.message
        if held.is_again:
            held.is_asking = True
            held.searched_since = self._seconds()
            self._search(held)
        self._advance(held.pair)

    def _advance(self, pair: Pair) -> None:
        """Decide about the messages of a queue, until one has to wait for a read."""
        if pair in self._advancing:
            return  # a read was answered at once: the loop below goes on
        self._advancing.add(pair)
        try:
            queue = self._held.get(pair)
            while queue and not queue[0].is_asking:
                held = queue[0]
                if self._decide(held):
                    queue.popleft()
                    self._held_ids.pop(held.id, None)
                    self.tickets.close(held.ticket)
            if not queue:
                self._held.pop(pair, None)
        finally:
            self._advancing.remove(pair)

    def _decide(self, held: _Held) -> bool:
        """Decide about the first message of a queue; return False if a read must come first."""
        message, pair = held.message, held.pair
        if held.is_done:
            return True
        if held.failure is not None:
            self._refuse(held, held.failure)
            return True
        is_known = self.acquaintances.known(pair) if held.is_known is None else held.is_known
        is_full = self._strangers.is_full(pair)
        if is_known is None and (held.rejects or is_full):
            self._ask(held, self.acquaintances.look_up(pair), self._looked_up)
            return False
        if not is_known:
            message.is_to_stranger = True
            if is_full:
                self._refuse(held, Reason.RECEIVING_USER_FULL)
                return True
            self._strangers.take(pair)
            self._counted[id(message)] = True
        elif not self._connections_of(pair[1]):
            if held.rejects:
                self._refuse(held, Reason.RECEIVING_USER_NOT_CONNECTED)
                return True
            if not self._away.is_known(pair[1]):
                self._ask(held, maybeDeferred(self._log.inbox, pair[1]), self._inbox_read)
                return False
            if self._away.is_full(*pair):
                self._refuse(held, Reason.RECEIVING_USER_FULL)
                return True
            self._away.take(*pair)
            self._counted[id(message)] = False
        self._take(message, held.submitter)
        if is_known is None:
            self.answers.find_out(pair)  # so that it is known when the message is committed
        return True

    def _refuse(self, held: _Held, reason: Reason) -> None:
        held.submitter.refused(held.message, reason)
        if self.resendings:
            self._refuse_copies(held.id, reason)

    def _ask(self, held: _Held, read: Deferred[Any], then: Callable[[Any, _Held], None]) -> None:
        held.is_asking = True
        self._then(read, held, then)

    def _then(self, read: Deferred[Any], held: _Held, then: Callable[[Any, _Held], None]) -> None:
        """Have a read change what is known for a message, and go on with its queue."""
        read.addCallback(then, held)
        read.addErrback(self._read_failed, held)
        read.addErrback(self._report)
        read.addCallback(lambda _: self._asked(held))
        read.addErrback(self._report)

    def _asked(self, held: _Held) -> None:
        held.is_asking = False
        self._advance(held.pair)

    def _looked_up(self, is_known: bool, held: _Held) -> None:
        held.is_known = is_known

    def _inbox_read(self, state: InboxState, held: _Held) -> None:
        # Messages that were deleted since are not stored any more.
        left_at = None if state.left_at is None else max(state.left_at, state.first - 1)
        self._away.note(held.pair[1], left_at, state.last)

    def _search(self, held: _Held) -> None:
        """Look in the log for a message that came again."""
        again_time = self._policy.again_time
        since = microseconds(self._now() - again_time) if again_time else 0
        found = maybeDeferred(self._log.reader.find, held.id[0], str(held.id[1]), since)
        found.addCallbacks(self._found, self._search_failed, callbackArgs=(held,), errbackArgs=(held,))
        found.addErrback(self._report)

    def _search_failed(self, failure: Failure, held: _Held) -> None:
        # A refusal would say that nobody sees the message, and the first one may have been delivered.
        if self._seconds() - held.searched_since < ANSWER_SECONDS:
            self._searches.start(held)
        else:
            held.is_done = True
            held.submitter.unknown(held.message)
            for copy in self.resendings.drop(held.id):
                self._deadlines.stop(copy)
                if copy.ticket is not None:
                    self._time_passed(copy)
            self._asked(held)
        failure.trap(LogUnavailable, LogBusy)

    def _found(self, found: LoggedMessage | None, held: _Held) -> None:
        """Answer a message that was sent again, if the log has it."""
        if found is not None:
            held.is_done = True
            resending = self.resendings.get(held.id) or self.resendings.begin(held.id, found)
            if resending.is_same(found):
                copies = resending.settle(found.from_place, found.to_place, found.received_at)
                for copy in (Copy(held.message, held.submitter, self.tickets.open()), *copies):
                    self._answer_copy(copy, resending)
            else:
                self._refuse(held, Reason.ID_REUSED)
        self._asked(held)

    def _read_failed(self, failure: Failure, held: _Held) -> None:
        held.failure = Reason.BUSY if failure.check(LogBusy) else Reason.LOG_UNAVAILABLE
        failure.trap(LogUnavailable, LogBusy)

    def _report(self, failure: Failure) -> None:
        log.failure("delivering a batch of messages failed; please report it", failure=failure)

    # After the commit ------------------------------------------------------

    def committed(self, message: Message, pair: Pair) -> None:
        """Note a message that stands, of v1 or v2."""
        other = (pair[1], pair[0])
        if other not in self.acquaintances.known_pairs:
            self.acquaintances.wrote(*pair)
            self._strangers.forget(other)
        if self._awareness is not None:
            self._awareness.committed(message, pair)
        if self._counted or self._away.recipients:
            was_stranger = self._counted.pop(id(message), None)
            self._away.committed(pair[1], message.to_place, was_stranger is False)

    def is_usual(self, message: Message, submitter: StoreSubmitter, sender: str, recipient: str) -> bool:
        """Return whether a message that stands changes nothing here, and can be answered at once.

        The users know each other, no count includes the message, and neither a copy of it nor an earlier answer waits.
        """
        known_pairs, back = self.acquaintances.known_pairs, (recipient, sender)
        counted, away = self._counted, self._away.recipients
        remembered, waiting = self.resendings.remembered, self.answers.waiting
        return (
            (sender, recipient) in known_pairs
            and back in known_pairs
            and back in self._told_pairs
            # These are almost always empty, or never hold what a connected user sends for the first time.
            and not (counted and id(message) in counted)
            and not (away and recipient in away)
            and not (remembered and (sender, message.client_id) in remembered)
            and not (waiting and submitter in waiting)
        )

    def forget_unknown(self) -> None:
        """Note that messages are committed for which `committed` is not called."""
        self.acquaintances.forget_unknown()
        if self._awareness is not None:
            self._awareness.forget_unknown()

    def erased(self, told: Mapping[str, int]) -> None:
        """Note that messages were erased: who is known to whom may have changed, and inboxes have further entries.

        :param told: the users who are told, each with the last place of the inbox.
        """
        self.forget_acquaintances()
        for user, last in told.items():
            self.inboxes.grew(user, last)

    def answer_copies(self, message: Message) -> None:
        """Answer those who have sent a message again that is now committed and handed over."""
        resending = self.resendings.get((user_key(message.from_uid), message.client_id))
        for copy in self.resendings.committed(message):
            assert resending is not None
            self._answer_copy(copy, resending)

    def failed(self, message: Message) -> None:
        """Note a message that was taken, and is not in the log."""
        pair = pair_of(message)
        was_stranger = self._counted.pop(id(message), None)
        if was_stranger:
            self._strangers.give_back(pair)
        elif was_stranger is False:
            self._away.give_back(*pair)
        if self.resendings:
            self._refuse_copies((pair[0], message.client_id), Reason.LOG_UNAVAILABLE)

    # Copies ----------------------------------------------------------------

    def _answer_copy(self, copy: Copy, resending: Resending) -> None:
        """Answer a message that was sent again as if the first one had just been answered."""
        self._deadlines.stop(copy)
        if copy.ticket is None:
            return
        pair = pair_of(copy.message)
        is_known = self.acquaintances.known(pair)
        found = self.answers.find_out(pair) if is_known is None else succeed(is_known)
        found.addCallback(lambda known: known and self._has_received(pair[1], resending.to_place))
        found.addCallback(lambda delivered: self._copy_answered(copy, resending, delivered))
        found.addErrback(self._report)

    def _has_received(self, user: str, place: int) -> bool | Deferred[bool]:
        """Return whether a user is here, or has said to have received a place."""
        if self._connections_of(user):
            return True
        received: Deferred[Any] = maybeDeferred(self._log.inbox, user)
        received.addCallback(lambda state: state.received >= place)
        received.addErrback(_as_not_received)
        return received

    def _copy_answered(self, copy: Copy, resending: Resending, is_delivered: bool) -> None:
        copy.submitter.stored(copy.message, resending.place, resending.at, is_delivered)
        self._close(copy)

    def _refuse_copies(self, id: ID, reason: Reason) -> None:
        for copy in self.resendings.drop(id):
            if copy.ticket is not None:
                self._deadlines.stop(copy)
                copy.submitter.refused(copy.message, reason)
                self._close(copy)

    def _time_passed(self, copy: Copy) -> None:
        copy.submitter.unknown(copy.message)
        self._close(copy)

    def _close(self, copy: Copy) -> None:
        assert copy.ticket is not None
        self.tickets.close(copy.ticket)
        copy.ticket = None


def _no_arrivals(user: str) -> None:
    """Note messages nowhere: nobody is told what was received."""


def _as_not_received(failure: Failure) -> bool:
    failure.trap(LogUnavailable)
    return False


def pair_of(message: Message) -> Pair:
    """Return the keys of the sender and the recipient."""
    # This is `user_key`, inlined: the calls would take longer than the rest.
    sender, recipient = message.from_uid, message.to_uid
    return (
        sender if type(sender) is str else str(sender),
        recipient if type(recipient) is str else str(recipient),
    )
