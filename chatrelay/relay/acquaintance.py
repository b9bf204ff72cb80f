"""Acquaintance: find out who is known to whom. B is known to A if B has written to A by a message that stands.

On v2 connections, a user learns nothing about unknown people. Pure: the reader of the message log is passed in. This
module must not know what a user learns about known people.

What is found is kept in a bounded cache, in two parts. That somebody is known stays true until messages are deleted
from the log; then `forget` is called, within a day. That somebody is unknown is true only as long as `wrote` is called
for every message that is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxReader

MAX_PAIRS = 50_000
"""Pairs that are kept of each kind. One more displaces the one that has been kept for longest."""

Pair = tuple[str, str]
"""Two users: whether the second one is known to the first one."""


@attrs.define(eq=False)
class _Question:
    """A read that is under way.

    :ivar waiting: called with the result: a bool, or a failure.
    :ivar is_known: whether the other user has written meanwhile.
    :ivar is_doubtful: whether messages may have been committed meanwhile without a call of `wrote`.
    """

    waiting: list[Deferred[bool]] = attrs.field(factory=list)
    is_known: bool = False
    is_doubtful: bool = False


class Acquaintances:
    """Remembers who is known to whom, and looks up what it does not know.

    :param reader: reads the message log.
    :param by_second: whether the second user of a pair asks, of whom the first one may be told. Otherwise, the first
        one asks. The reader searches what belongs to the user who asks.
    :ivar observer: called by `wrote` with a pair that was not kept as known, and whether it was kept as unknown.
    """

    def __init__(self, reader: InboxReader, by_second: bool = False) -> None:
        self._reader = reader
        self._by_second = by_second
        self.observer: Callable[[Pair, bool], None] | None = None
        self.known_pairs: dict[Pair, None] = {}
        self._unknown: dict[Pair, None] = {}
        self._questions: dict[Pair, _Question] = {}

    def known(self, pair: Pair) -> bool | None:
        """Return whether the second user is known to the first one; None if `look_up` must find out."""
        if pair in self.known_pairs:
            return True
        return False if pair in self._unknown else None

    def look_up(self, pair: Pair) -> Deferred[bool]:
        """Find out whether the second user is known to the first one.

        Lookups of the same pair share one read.

        :returns: a Deferred that fails as those of `chatrelay.interfaces.InboxReader` do.
        """
        answer: Deferred[bool] = Deferred()
        question = self._questions.get(pair)
        if question is None:
            question = self._questions[pair] = _Question()
            question.waiting.append(answer)
            read = maybeDeferred(self._reader.has_written, pair[1], pair[0], self._by_second)
            read.addCallbacks(self._found, self._failed, callbackArgs=(pair,), errbackArgs=(pair,))
        else:
            question.waiting.append(answer)
        return answer

    def look_up_all(self, user: str, peers: Sequence[str]) -> Deferred[Collection[str]]:
        """Find out which of some users are known to a user. One read looks up all who are not remembered.

        :returns: a Deferred that fails as those of `chatrelay.interfaces.InboxReader` do.
        """
        known = {peer for peer in peers if self.known((user, peer))}
        asked = [peer for peer in peers if self.known((user, peer)) is None]
        if not asked:
            return succeed(known)
        # Somebody may write while the log is read. A pair that is being looked up already is for that question to keep.
        pairs = [(user, peer) for peer in asked if (user, peer) not in self._questions]
        self._questions.update((pair, _Question()) for pair in pairs)

        def found(writers: Collection[str]) -> Collection[str]:
            for pair in pairs:
                self._found(pair[1] in writers, pair)
            return known.union(writers, (peer for peer in asked if self.known((user, peer))))

        def failed(failure: Failure) -> Failure:
            for pair in pairs:
                self._failed(failure, pair)
            return failure

        return maybeDeferred(self._reader.writers, user, asked).addCallbacks(found, failed)

    def wrote(self, sender: str, recipient: str) -> None:
        """Note a message that stands: its sender is known to its recipient from now on."""
        pair = (recipient, sender)
        if pair not in self.known_pairs:
            _keep(self.known_pairs, pair)
            was_unknown = self._unknown.pop(pair, 0) is None
            question = self._questions.get(pair)
            if question is not None:
                question.is_known = True
            if self.observer is not None:
                self.observer(pair, was_unknown)

    def forget(self) -> None:
        """Forget everybody, because messages are not in the log any more."""
        self.known_pairs.clear()
        self.forget_unknown()

    def forget_unknown(self) -> None:
        """Forget who is unknown, because messages are committed for which `wrote` is not called."""
        self._unknown.clear()
        for question in self._questions.values():
            question.is_doubtful = True

    def _found(self, has_written: bool, pair: Pair) -> None:
        question = self._questions.pop(pair)
        is_known = has_written or question.is_known
        if is_known:
            if pair not in self.known_pairs:
                _keep(self.known_pairs, pair)
        elif not question.is_doubtful:
            _keep(self._unknown, pair)
        for answer in question.waiting:
            answer.callback(is_known)

    def _failed(self, failure: Failure, pair: Pair) -> None:
        for answer in self._questions.pop(pair).waiting:
            answer.errback(failure)


def _keep(kept: dict[Pair, None], pair: Pair) -> None:
    if len(kept) >= MAX_PAIRS:
        del kept[next(iter(kept))]
    kept[pair] = None
