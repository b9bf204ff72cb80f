"""Revocations: which sessions and users were ended so recently that a resume token of theirs may still be valid.

Sessions and users are digests (`chatrelay.auth.session_index`). A revocation is about the tokens that rest on what the
site said before it: a user whom the site confirms afterwards gets tokens that can be used. This process's own
revocations are in memory. Where tokens outlive the process, they are also kept as marks in the message log, so that a
relay that starts later, or another one, finds them. Beyond `MAX_REVOCATIONS` the oldest are dropped, and every token is
refused that rests on something older than what was dropped. This module must not know tokens, nor why a session was
ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxLog
from chatrelay.model import LogBusy, LogUnavailable, Mark, MarkKey, MarkKind

log = Logger("chatrelay.auth")

RETRY_SECONDS = 1.0
"""The seconds after a failure until the revocations that could not be saved are saved again."""

CLOCK_TOLERANCE_SECONDS = 5.0
"""By how many seconds the clocks of two relays may differ. A revocation in the message log counts even if it is older
than what the site said, by up to this: it may be from another relay, whose clock is behind. If it is not, that costs
one request to the site."""

BUSY_SECONDS = 0.05
"""The seconds until the log is read again, if too many other reads were waiting."""


MAX_REVOCATIONS = 100_000
"""The most revocations that are kept, in memory and in the message log, of one process."""

_ALL = b""
"""Stands for all sessions and users, where a digest does."""


@attrs.define
class _Saving:
    """A call of the message log that saves revocations.

    :ivar is_over: whether it has succeeded or failed.
    :ivar error: why it failed; None if it did not.
    :ivar waiting: fire when it is over.
    """

    is_over: bool = False
    error: Failure | None = None
    waiting: list[Deferred[None]] = attrs.field(factory=list)

    def end(self, error: Failure | None) -> None:
        """Note that it is over, and tell those who wait."""
        self.is_over, self.error = True, error
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(None) if error is None else each.errback(error)


class Revocations:
    """The revoked sessions and users.

    :param life: how long a revocation is kept, in seconds: at least the life of a token.
    :param now: the wall clock, in seconds since 1970 UTC.
    :param reactor: for time.
    :param message_log: keeps them for later processes; None if no token outlives this one.
    """

    def __init__(self, life: float, now: Callable[[], float], reactor: Any, message_log: InboxLog | None) -> None:
        self._life = life
        self._now = now
        self._reactor = reactor
        self._log = message_log
        self._revoked: dict[bytes, float] = {}  # by digest, when; the oldest first
        self._all_revoked = -math.inf  # when those that were dropped were revoked, at the latest
        self._forgotten = 0.0  # the same of those that were dropped or are old enough
        self._added = 0  # how many were added since the log was last told to drop old ones, and before if they are kept
        self._unsaved: dict[bytes, float] = {}
        self._waiting: set[bytes] = set()  # those of them that the next sweep saves
        self._newest = _Saving(is_over=True)
        self._retry_at = 0.0

    def add(self, digest: bytes, at_once: bool = True) -> None:
        """Revoke a session or a user.

        :param at_once: whether this is saved at once; otherwise `sweep` saves it, together with others.
        """
        self._revoked.pop(digest, None)
        now = self._revoked[digest] = self._now()
        self._added += 1
        changed = {digest: now}
        if self._added > MAX_REVOCATIONS:
            self._drop_oldest()
            changed[_ALL] = self._forgotten
        if self._log is not None:
            self._unsaved.update(changed)
            if at_once:
                self._save(list(changed))
            elif not self._retry_at:  # when it is tried again, all that are unsaved are saved
                self._waiting.update(changed)

    def _drop_oldest(self) -> None:
        """Drop the oldest tenth of the revocations, unless `sweep` has made as much room."""
        surplus = len(self._revoked) - MAX_REVOCATIONS * 9 // 10
        for digest in list(islice(self._revoked, max(0, surplus))):
            self._all_revoked = self._forgotten = self._revoked.pop(digest)
            self._unsaved.pop(digest, None)
        self._added = len(self._revoked)

    def saved(self) -> Deferred[None]:
        """Return a Deferred that fires when the newest revocation outlives this process, if tokens do.

        It fails with `LogUnavailable` if it can't be saved now. That is tried again each second.
        """
        newest = self._newest
        if newest.is_over:
            return succeed(None) if newest.error is None else fail(newest.error)
        newest.waiting.append(Deferred())
        return newest.waiting[-1]

    def has(self, digests: Iterable[bytes], confirmed: float) -> bool:
        """Return whether one of these was revoked by this process.

        :param confirmed: when the site was asked about the session, which it confirmed; a revocation before that does
            not count.
        """
        revoked = self._revoked
        return self._all_revoked >= confirmed or (
            bool(revoked) and any(revoked.get(digest, -math.inf) >= confirmed for digest in digests)
        )

    def find(self, digests: Sequence[bytes], confirmed: float) -> Deferred[bool | None]:
        """Find out whether one of these was revoked by any process that shares the message log.

        A revocation in the message log counts even if it is older than `confirmed` by `CLOCK_TOLERANCE_SECONDS`.

        :param confirmed: as for `has`.
        :returns: a Deferred that never fails. It fires with None if the message log can't be read.
        """
        if self._log is None or self.has(digests, confirmed):
            return succeed(self.has(digests, confirmed))
        keys = [_key(digest) for digest in (*digests, _ALL)]
        return Deferred.fromCoroutine(self._find(self._log, keys, confirmed)).addErrback(_failed)

    async def _find(self, message_log: InboxLog, keys: Sequence[MarkKey], confirmed: float) -> bool | None:
        while True:
            try:
                kept: Mapping[MarkKey, int] = await message_log.reader.marks(keys)
            except LogBusy:
                # Thousands of clients may return at once. The site must not be asked about each because of that.
                await deferLater(self._reactor, BUSY_SECONDS)
                continue
            now, since = self._now(), confirmed - CLOCK_TOLERANCE_SECONDS
            return any(until > now and until - self._life >= since for until in kept.values())

    def sweep(self) -> None:
        """Forget the revocations that are old enough, and save those that wait or could not be saved before."""
        before = self._now() - self._life
        old = []
        for digest, revoked in self._revoked.items():
            if revoked > before:
                break
            old.append(digest)
            self._forgotten = revoked
        for digest in old:
            del self._revoked[digest]
            self._unsaved.pop(digest, None)
        if self._retry_at > self._reactor.seconds():
            return
        due = [digest for digest in self._unsaved if self._retry_at or digest in self._waiting]
        self._retry_at = 0.0
        self._waiting.clear()
        if due:
            self._save(due)

    def __len__(self) -> int:
        """Return how many revocations of this process are kept."""
        return len(self._revoked)

    def _save(self, digests: Sequence[bytes]) -> None:
        assert self._log is not None
        saving = self._newest = _Saving()
        saved = {digest: self._unsaved[digest] for digest in digests}
        # Rounded up: a log keeps whole seconds.
        marks = [Mark(*_key(digest), int(revoked + self._life) + 1) for digest, revoked in saved.items()]
        self._log.save_marks(marks).addCallbacks(
            self._saved, self._not_saved, callbackArgs=(saved, saving), errbackArgs=(saving,)
        )

    def _saved(self, _: None, saved: Mapping[bytes, float], saving: _Saving) -> None:
        for digest, revoked in saved.items():
            if self._unsaved.get(digest) == revoked:  # else it was revoked again meanwhile
                del self._unsaved[digest]
        saving.end(None)

    def _not_saved(self, failure: Failure, saving: _Saving) -> None:
        self._retry_at = self._reactor.seconds() + RETRY_SECONDS
        # The message log has reported a `LogUnavailable` itself.
        if not failure.check(LogUnavailable):
            log.failure("keeping a revocation in the message log failed; please report it", failure=failure)
        saving.end(failure)


def _key(digest: bytes) -> MarkKey:
    # All of them have the empty user, which nobody is. So a log can delete the old ones without a search for them.
    return "", MarkKind.REVOKED, digest.hex()


def _failed(failure: Failure) -> None:
    if not failure.check(LogUnavailable, CancelledError):
        log.failure("looking for revocations in the message log failed; please report it", failure=failure)
