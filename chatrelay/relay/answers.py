"""The answers to stored messages: decide what they may say about the recipient, and in which order they are sent.

Pure. This module must not know how an answer is encoded, nor who is known to whom: `Acquaintances` does.

An answer says that a message was delivered only if the sender knows the recipient. If that is not known yet, the answer
waits, and so do later answers to the same submitter: then the answers are in the order of places, and each moves the
cursor. Nothing else waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import StoreSubmitter
from chatrelay.model import LogBusy, LogUnavailable, Message
from chatrelay.relay.acquaintance import Acquaintances, Pair

log = Logger("chatrelay.relay")

MICROSECONDS = 1_000_000
"""Microseconds in a second."""


def microseconds(seconds: float) -> int:
    """Return a time as the message log keeps it: a place has the same time in all frames."""
    return int(seconds * MICROSECONDS)


@attrs.define(eq=False)
class _Waiting:
    """An answer that waits.

    :ivar is_reached: whether the message was handed over.
    :ivar is_known: whether the sender knows the recipient; None if that is not known yet.
    :ivar done: called when the answer has been given.
    """

    message: Message
    is_reached: bool
    is_known: bool | None
    done: Callable[[], None]


class Answers:
    """Gives the answers to stored messages, in order for each submitter.

    :param acquaintances: who is known to whom.
    :ivar waiting: the answers that wait, by submitter.
    """

    def __init__(self, acquaintances: Acquaintances) -> None:
        self._acquaintances = acquaintances
        self.waiting: dict[StoreSubmitter, deque[_Waiting]] = {}

    def give(self, submitter: StoreSubmitter, message: Message, pair: Pair, is_reached: bool) -> bool:
        """Answer a message that is committed, and return True; return False if the answer has to wait.

        :param pair: the sender and the recipient.
        :param is_reached: whether the message was handed over.
        """
        is_known = self._acquaintances.known(pair)
        if is_known is None or (self.waiting and submitter in self.waiting):
            return False
        submitter.stored(message, message.from_place, microseconds(message.received_at), is_reached and is_known)
        return True

    def keep(
        self, submitter: StoreSubmitter, message: Message, pair: Pair, is_reached: bool, done: Callable[[], None]
    ) -> None:
        """Answer a message that `give` did not answer, when it is known what the answer may say.

        Whether the recipient is here makes no difference to what is read, and to how long that takes.

        :param done: called when the answer has been given.
        """
        is_known = self._acquaintances.known(pair)
        answer = _Waiting(message, is_reached, is_known, done)
        self.waiting.setdefault(submitter, deque()).append(answer)
        if is_known is None:
            found = self.find_out(pair)
            found.addCallback(self._found, answer, submitter)
            found.addErrback(self._report)

    def find_out(self, pair: Pair) -> Deferred[bool]:
        """Find out whether somebody is known. If the log can't be read, they count as unknown."""
        found = self._acquaintances.look_up(pair)
        found.addErrback(_as_unknown)
        return found

    def _found(self, is_known: bool, answer: _Waiting, submitter: StoreSubmitter) -> None:
        answer.is_known = is_known
        waiting = self.waiting.get(submitter)
        given = []
        while waiting and waiting[0].is_known is not None:
            given.append(waiting.popleft())
        if not waiting:
            self.waiting.pop(submitter, None)
        for each in given:
            message = each.message
            is_delivered = each.is_reached and bool(each.is_known)
            submitter.stored(message, message.from_place, microseconds(message.received_at), is_delivered)
            each.done()

    def _report(self, failure: Failure) -> None:
        log.failure("delivering a batch of messages failed; please report it", failure=failure)


def _as_unknown(failure: Failure) -> bool:
    failure.trap(LogUnavailable, LogBusy)
    return False
