"""Bring a message log in SQLite from an older schema to the present one, after a copy of the file was made.

A migration is one transaction, so a process that is killed leaves the file as it was. This module must not know what
the steps do: `schema` does.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable

import attrs
from twisted.logger import Logger

from chatrelay.messagelog.sqlite import schema
from chatrelay.messagelog.sqlite.backup import CopyFailed, copy_log, sync_folder, unfinished_copy
from chatrelay.messagelog.sqlite.opening import UnusableLog
from chatrelay.messagelog.sqlite.verify import summary
from chatrelay.model import LogUnavailable

log = Logger("chatrelay.messagelog")

SECONDS_PER_REPORT = 5.0
"""The time between two log messages that say how far a migration is."""

SECONDS_PER_SIGN = 1.0
"""The time between two calls of `Migrating.on_progress`."""

_STEPS_PER_SIGN = 100_000
"""The steps of SQLite's virtual machine between two reads of the clock, about a millisecond."""


@attrs.define(kw_only=True)
class Migrating:
    """How a message log is migrated.

    :ivar makes_copy: whether a copy of the file is made first.
    :ivar on_progress: called about once a second while the migration runs.
    :ivar monotonic: a monotonic clock, in seconds.
    """

    makes_copy: bool = True
    on_progress: Callable[[], object] = lambda: None
    monotonic: Callable[[], float] = time.monotonic


def migrate(
    connection: sqlite3.Connection, path: str, version: int, steps: tuple[schema.Step, ...], how: Migrating
) -> None:
    """Bring a message log to the present schema.

    :param connection: to the file, whose write-ahead log is empty.
    :param path: of the file.
    :param version: of its schema; 0 for an empty file, which is not copied.
    :param steps: from an empty file to the present schema.
    :raises LogUnavailable: if the copy can't be made. The text has the remedy.
    :raises sqlite3.Error: if a step fails. The file is as it was.
    """
    if version == len(steps):
        return
    if not version:
        schema.migrate(connection, 0, steps)
        return
    progress = _Progress(path, how)
    progress.sign()
    kept = _copy(path, version, progress) if how.makes_copy else None
    log.warn(
        "upgrading the message log {path} from schema {old} to {new}, which an older chatrelay can't use. {copy}",
        path=path,
        old=version,
        new=len(steps),
        copy="There is no copy of it" if kept is None else f"A copy of it is at {kept}",
    )
    begun = how.monotonic()
    connection.set_progress_handler(progress.sign, _STEPS_PER_SIGN)
    try:
        schema.migrate(connection, version, steps, progress)
    finally:
        connection.set_progress_handler(None, 0)
    log.info("upgraded the message log {path} in {seconds:.1f} s", path=path, seconds=how.monotonic() - begun)


def _copy(path: str, version: int, report: schema.Progress) -> str:
    """Copy a message log beside itself, unless a copy of it is there; return the name of the copy.

    A process that was killed after it had made the copy begins again, and must not make another one each time.
    """
    name = f"{path}.schema-{version}"
    number = 1
    try:
        while os.path.lexists(name):
            if _is_same(path, name):
                return name
            number += 1
            name = f"{path}.schema-{version}-{number}"
        with unfinished_copy(name) as unfinished:
            copy_log(path, unfinished, report)
            os.rename(unfinished.path, name)
            sync_folder(name)
    except (CopyFailed, UnusableLog, OSError) as error:
        raise LogUnavailable(
            f"the message log {path} must be upgraded, and no copy of it can be made first: {error}. "
            "To upgrade it without a copy, start once with --no-copy yes"
        ) from error
    return name


def _is_same(path: str, copy: str) -> bool:
    """Return whether a file is a copy of a message log: a log only grows."""
    try:
        ours, theirs = summary(path), summary(copy)
    except UnusableLog:
        return False
    return attrs.evolve(ours, size=0) == attrs.evolve(theirs, size=0)


class _Progress:
    """Reports how far a migration is, and that it is still running."""

    def __init__(self, path: str, how: Migrating) -> None:
        self._path = path
        self._how = how
        self._report_at = how.monotonic() + SECONDS_PER_REPORT
        self._sign_at = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        """Log how much of a step is done, now and then."""
        self.sign()
        if self._how.monotonic() >= self._report_at:
            self._report_at = self._how.monotonic() + SECONDS_PER_REPORT
            log.info(
                "upgrading the message log {path}: {step}, {percent} % done",
                path=self._path,
                step=step,
                percent=done * 100 // max(total, 1),
            )

    def sign(self) -> int:
        """Report now and then that the migration is running. Return 0, so that SQLite continues."""
        now = self._how.monotonic()
        if now >= self._sign_at:
            self._sign_at = now + SECONDS_PER_SIGN
            self._how.on_progress()
        return 0
