"""Marks on their way to the message log: they are kept in memory until they are saved, and count at once.

Pure: the message log and the clock are passed in. This module must not know what a mark means.

Marks that are set in one turn of the reactor are saved together. The log saves them with its next batch, or alone after
a second. So a crash may lose the last second of marks, and clients set them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.interfaces import InboxLog
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import LogUnavailable, Mark, MarkKey, MarkKind

log = Logger("chatrelay.relay")

MAX_UNSAVED = 100_000
"""The most marks that wait while the log can't be written. One more displaces the one that has waited for longest."""

RETRY_SECONDS = 1.0
"""Seconds after which marks that could not be saved are saved again."""


class Marks:
    """The marks of all users, as far as they are not saved yet, and a way to read those that are.

    :param message_log: where marks are saved.
    :param call_soon: runs a callable in a later turn of the reactor.
    :param clock: for timers.
    """

    def __init__(self, message_log: InboxLog, call_soon: Callable[[Callable[[], None]], object], clock: Any) -> None:
        self._log = message_log
        self._call_soon = call_soon
        self._epoch: str | None = None  # that of the places of all unsaved marks
        self._unsaved: dict[MarkKey, int] = {}
        self._changed: dict[MarkKey, int] = {}  # those of them that are not being saved
        self._is_scheduled = False
        self._retries: DeadlineTimer[Marks] = DeadlineTimer(clock, RETRY_SECONDS, Marks._schedule)

    def __len__(self) -> int:
        """Return how many marks are not saved yet."""
        return len(self._unsaved)

    @property
    def epoch(self) -> str:
        """The epoch in which a mark that is set now names a place."""
        return self._log.epoch

    def set(self, user: str, kind: MarkKind, peer: str, value: int) -> None:
        """Keep a mark, if it is greater than the one that is not saved yet; parameters as in `Mark`."""
        self._drop_other_epoch()
        key = (user, kind, peer)
        if value <= self._unsaved.get(key, -1):
            return
        if len(self._unsaved) >= MAX_UNSAVED and key not in self._unsaved:
            oldest = next(iter(self._unsaved))
            del self._unsaved[oldest]
            self._changed.pop(oldest, None)
        self._unsaved[key] = self._changed[key] = value
        self._schedule()

    def unsaved(self, user: str, kind: MarkKind, peer: str = "") -> int:
        """Return the value of a mark that is not saved yet; 0 if it is saved, or not kept at all."""
        return self._unsaved.get((user, kind, peer), 0)

    def read(self, keys: Sequence[MarkKey]) -> Deferred[Mapping[MarkKey, int]]:
        """Read marks, whether they are saved or not. A mark that is not kept is left out.

        :returns: a Deferred that fails as those of `chatrelay.interfaces.InboxReader` do.
        """
        # A mark may be saved after the log was read and before the answer comes. So both its values count.
        unsaved = {key: self._unsaved[key] for key in keys if key in self._unsaved}
        if not keys:
            return succeed(unsaved)
        found: Deferred[Mapping[MarkKey, int]] = maybeDeferred(self._log.reader.marks, keys)
        return found.addCallback(self._merged, keys, unsaved)

    def stop(self) -> None:
        """Pass all marks that have changed to the log, for the last time."""
        self.save()
        self._retries.clear()

    def _merged(
        self, found: Mapping[MarkKey, int], keys: Sequence[MarkKey], before: Mapping[MarkKey, int]
    ) -> Mapping[MarkKey, int]:
        merged: dict[MarkKey, int] = {}
        for key in keys:
            values = [marks[key] for marks in (found, before, self._unsaved) if key in marks]
            if values:
                merged[key] = max(values)
        return merged

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self.save)

    def save(self) -> None:
        """Pass all marks that have changed to the log at once."""
        self._is_scheduled = False
        self._drop_other_epoch()
        marks, self._changed = self._changed, {}
        if marks:
            saving = maybeDeferred(self._log.save_marks, [Mark(*key, value) for key, value in marks.items()])
            saving.addCallbacks(self._saved, self._failed, callbackArgs=(marks,), errbackArgs=(marks,))
            saving.addErrback(self._report)

    def _saved(self, _: object, marks: Mapping[MarkKey, int]) -> None:
        for key, value in marks.items():
            if self._unsaved.get(key) == value:
                del self._unsaved[key]

    def _failed(self, failure: Failure, marks: Mapping[MarkKey, int]) -> None:
        failure.trap(LogUnavailable)  # the message log has reported it itself
        for key, value in marks.items():
            if self._unsaved.get(key) == value:
                self._changed[key] = value
        self._retries.start(self)

    def _report(self, failure: Failure) -> None:
        log.failure("saving marks failed; please report it", failure=failure)

    def _drop_other_epoch(self) -> None:
        """Forget the marks of another epoch: the log was replaced, and they name places of the old one."""
        epoch = self._log.epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self._unsaved.clear()
            self._changed.clear()
