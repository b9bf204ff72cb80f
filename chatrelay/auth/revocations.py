"""Revocations: which sessions and users were ended so recently that a resume token of theirs may still be valid.

Sessions and users are digests (`chatrelay.auth.session_index`). This process's own revocations are in memory. Where
tokens outlive the process, they are also kept as marks in the message log, so that a relay that starts later, or
another one, finds them. This module must not know tokens, nor why a session was ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxLog
from chatrelay.model import LogBusy, LogUnavailable, Mark, MarkKey, MarkKind

log = Logger("chatrelay.auth")

RETRY_SECONDS = 1.0
"""The seconds after a failure until the revocations that could not be saved are saved again."""

BUSY_SECONDS = 0.05
"""The seconds until the log is read again, if too many other reads were waiting."""


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
        self._until: dict[bytes, float] = {}  # by digest, when it may be forgotten; the oldest first
        self._unsaved: dict[bytes, float] = {}
        self._retry_at = 0.0

    def add(self, digest: bytes) -> None:
        """Revoke a session or a user."""
        self._until.pop(digest, None)
        self._until[digest] = self._now() + self._life
        if self._log is not None:
            self._unsaved[digest] = self._until[digest]
            self._save([digest])

    def has(self, digests: Iterable[bytes]) -> bool:
        """Return whether one of these was revoked by this process."""
        revoked = self._until
        return bool(revoked) and any(digest in revoked for digest in digests)

    def find(self, digests: Sequence[bytes]) -> Deferred[bool | None]:
        """Look whether one of these was revoked, by any process that shares the message log.

        :returns: a Deferred that never fails. It fires with None if the message log can't be read.
        """
        if self._log is None or self.has(digests):
            return succeed(self.has(digests))
        return Deferred.fromCoroutine(self._find(self._log, [_key(digest) for digest in digests])).addErrback(_failed)

    async def _find(self, message_log: InboxLog, keys: Sequence[MarkKey]) -> bool | None:
        while True:
            try:
                kept: Mapping[MarkKey, int] = await message_log.reader.marks(keys)
            except LogBusy:
                # Thousands of clients may return at once. The site must not be asked about each because of that.
                await deferLater(self._reactor, BUSY_SECONDS)
                continue
            now = self._now()
            return any(until > now for until in kept.values())

    def sweep(self) -> None:
        """Forget the revocations that are old enough, and save those again that could not be kept."""
        now = self._now()
        old = []
        for digest, until in self._until.items():
            if until > now:
                break
            old.append(digest)
        for digest in old:
            del self._until[digest]
            self._unsaved.pop(digest, None)
        if self._unsaved and self._retry_at and self._reactor.seconds() >= self._retry_at:
            self._retry_at = 0.0
            self._save(list(self._unsaved))

    def __len__(self) -> int:
        """Return how many revocations of this process are kept."""
        return len(self._until)

    def _save(self, digests: Sequence[bytes]) -> None:
        assert self._log is not None
        marks = [Mark(*_key(digest), int(self._unsaved[digest]) + 1) for digest in digests]
        self._log.save_marks(marks).addCallbacks(self._saved, self._not_saved, (digests,))

    def _saved(self, _: None, digests: Sequence[bytes]) -> None:
        for digest in digests:
            self._unsaved.pop(digest, None)

    def _not_saved(self, failure: Failure) -> None:
        self._retry_at = self._reactor.seconds() + RETRY_SECONDS
        # The message log has reported a `LogUnavailable` itself.
        if not failure.check(LogUnavailable):
            log.failure("keeping a revocation in the message log failed; please report it", failure=failure)


def _key(digest: bytes) -> MarkKey:
    # All of them have the empty user, which nobody is. So a log can delete the old ones without a search for them.
    return "", MarkKind.REVOKED, digest.hex()


def _failed(failure: Failure) -> None:
    if not failure.check(LogUnavailable, CancelledError):
        log.failure("looking for revocations in the message log failed; please report it", failure=failure)
