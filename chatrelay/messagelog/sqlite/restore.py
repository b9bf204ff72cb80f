"""Put a backup in the place of a message log in SQLite, and keep the old log under another name.

This module does not print, ask or read a command line: `chatrelay.app.cli` does. `backup` makes the copy.

SQLite writes a database in two files, and two files cannot be replaced in one step. So the contents of the ``-wal`` are
first written into the database. Then one rename replaces the log.
"""

from __future__ import annotations

import glob
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import attrs

from chatrelay.messagelog.sqlite import recovery
from chatrelay.messagelog.sqlite.backup import (
    DATA_SUFFIXES,
    INDEX_SUFFIX,
    NO_LINKS_ERRORS,
    UNFINISHED_SUFFIX,
    CopyFailed,
    copy_log,
    is_same_file,
    sync_folder,
    unfinished_copy,
    write_errors,
)
from chatrelay.messagelog.sqlite.files import LogFiles, size_of
from chatrelay.messagelog.sqlite.opening import UnusableLog, reading
from chatrelay.messagelog.sqlite.schema import LOCK_WAIT_SECONDS
from chatrelay.messagelog.sqlite.verify import Contents, Report, summary
from chatrelay.model import LogUnavailable
from chatrelay.permissions import why_not_found

REPLACED_INFIX = ".replaced-"
"""The part of a replaced message log's name that precedes the time."""


@attrs.frozen
class Restored:
    """A restored message log.

    :ivar contents: its messages.
    :ivar kept: the path of the message log that it replaced, or of its ``-wal`` if that was all; None if there was
        no message log.
    """

    contents: Contents
    kept: str | None


def restore(
    log: str,
    backup: str,
    *,
    now: float,
    confirm: Callable[[Contents, Contents | UnusableLog], None],
    report: Report,
    commit: Callable[[], None],
) -> Restored:
    """Put a copy of a backup in the place of a message log that no relay has open, and keep the old log.

    If the process is killed at any moment, either the old message log or the new one is there. Then call this again.

    :param log: the path of the message log, which need not exist.
    :param backup: a file that `back_up` made, or another message log with its ``-wal``.
    :param now: seconds since 1970 UTC.
    :param confirm: called if there is a message log, with the contents of the backup and of the log, or the error that
        reading the log raised. It raises `CopyFailed` if the log must not be replaced.
    :param commit: called when the copy is complete. Nothing may interrupt the steps after it.
    :raises CopyFailed: if nothing was restored. The old log was not changed.
    :raises UnusableLog: if the backup is not a complete message log.
    """
    files = LogFiles(log)
    log = files.path
    owner = _check_paths(log, backup)
    # Two commands that restore the same log can't call `_undo_interrupted` at once: the first has locked the copy.
    with unfinished_copy(log) as unfinished:
        _undo_interrupted(log)
        mixed = _foreign_wal_error(files)
        with _locked(files, owner):
            new = summary(backup)
            if os.path.exists(log):
                confirm(new, mixed or _summary_if_any(log))
            _change_owner(unfinished.descriptor, owner)
            contents = copy_log(backup, unfinished, report)
            is_whole = mixed is None and _checkpoint(log)
            commit()
            with write_errors(log):
                files.write_note(b"", sync=True)  # the restored log gets a new epoch, whatever it has
                kept = _replace(log, unfinished.path, f"{log}{REPLACED_INFIX}{_stamp(now)}", is_whole)
    return Restored(contents, kept)


def _check_paths(log: str, backup: str) -> os.stat_result:
    """Check the paths; return the owner for the new log.

    :raises CopyFailed: with the remedy.
    """
    if why := why_not_found(log):
        hint = ": make it, or name another file with --message-log" if why.startswith("there is no") else ""
        raise CopyFailed(why + hint)
    if why := why_not_found(backup):
        raise CopyFailed(f"there is no message log at {backup}: {why}")
    if os.path.exists(log) and not os.path.isfile(log):
        raise CopyFailed(f"{log} is not a file: name a file with --message-log")
    if is_same_file(log, backup):
        raise CopyFailed(f"{backup} is the message log itself: name a backup")
    if is_same_file(log + UNFINISHED_SUFFIX, backup):
        raise CopyFailed(f"{backup} may be incomplete: name another backup, or rename this one")
    return _owner(log)


def _foreign_wal_error(files: LogFiles) -> UnusableLog | None:
    """Return the error for a ``-wal`` that belongs to another message log; None if it belongs to this one.

    Call it before the lock is taken, because afterwards no descriptor of the database may be closed.
    """
    try:
        recovery.check_wal(files)
    except LogUnavailable as error:
        return UnusableLog(str(error))
    except OSError:
        return None
    return None


def _summary_if_any(log: str) -> Contents | UnusableLog:
    try:
        return summary(log)
    except UnusableLog as error:
        return error


@contextmanager
def _locked(files: LogFiles, owner: os.stat_result) -> Iterator[None]:
    """Keep relays from opening a message log.

    :param owner: for the lock file.
    :raises CopyFailed: if a relay has the message log open.
    """
    with suppress(FileNotFoundError):
        if os.stat(files.path).st_nlink > 1:
            raise CopyFailed(f"{files.path} has more than one name (hard links): remove the others")
    try:
        with write_errors(files.lock):
            files.take_lock()
            _change_owner(files.lock, owner)
    except LogUnavailable:
        raise CopyFailed(f"a relay or another command has {files.path} open: stop it first") from None
    try:
        yield
        files.keep_lock_file()
    finally:
        files.release_lock()


def _checkpoint(log: str) -> bool:
    """Let SQLite write the ``-wal`` of a killed relay into the database; return whether the database is complete.

    If the two are not a valid database together, both stay unchanged.
    """
    if not any(size_of(log + part) for part in DATA_SUFFIXES) or not os.path.exists(log):
        return not any(size_of(log + part) for part in DATA_SUFFIXES)
    try:
        with reading(log) as connection:  # read-only: a connection that may write would change the database at its end
            if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return False
        with closing(sqlite3.connect(log, timeout=LOCK_WAIT_SECONDS, isolation_level=None)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except (UnusableLog, sqlite3.Error):
        return False
    if busy or any(size_of(log + part) for part in DATA_SUFFIXES):
        raise CopyFailed(f"another program has {log} open: stop it and try again. Nothing was changed")
    return True


def _replace(log: str, new: str, kept: str, is_whole: bool) -> str | None:
    """Rename the message log, and give its name to a file; return the new name of the log, or None if there was none.

    `_undo_interrupted` repairs the names after a process that was killed in between.
    """
    kept = _free_name(kept)
    exists = os.path.exists(log)
    try:
        if exists:
            _give_second_name(log, kept)
        for part in DATA_SUFFIXES:
            with suppress(FileNotFoundError):
                if is_whole:
                    os.unlink(log + part)  # empty
                else:
                    os.rename(log + part, kept + part)
        with suppress(FileNotFoundError):
            os.unlink(log + INDEX_SUFFIX)
        os.rename(new, log)
    except OSError:
        if exists and not os.path.exists(log):
            os.rename(kept, log)
        _undo_interrupted(log)
        raise
    sync_folder(log)
    if exists:
        return kept
    return next((kept + part for part in DATA_SUFFIXES if os.path.exists(kept + part)), None)


def _give_second_name(log: str, kept: str) -> None:
    """Give a file a second name, durably. On a file system without hard links, rename it."""
    try:
        os.link(log, kept)
    except OSError as error:
        if error.errno not in NO_LINKS_ERRORS:
            raise
        os.rename(log, kept)
    sync_folder(log)


def _undo_interrupted(log: str) -> None:
    """Remove the second names that a killed process gave to the files of a log before it could replace the log."""
    for name in glob.glob(f"{glob.escape(log)}{REPLACED_INFIX}*"):
        if is_same_file(log, name):
            for part in DATA_SUFFIXES:
                if os.path.exists(name + part) and not size_of(log + part):
                    os.rename(name + part, log + part)
            os.unlink(name)


def _free_name(name: str) -> str:
    """Return a name that neither a file nor its ``-wal`` or ``-journal`` has."""
    number = 1
    free = name
    while any(os.path.lexists(free + part) for part in ("", *DATA_SUFFIXES)):
        number += 1
        free = f"{name}-{number}"
    return free


def _owner(log: str) -> os.stat_result:
    """Return the owner for the new log: the owner of the log that it replaces, or of the folder.

    :raises CopyFailed: if this user may not give it to that owner.
    """
    with suppress(FileNotFoundError):
        owner = os.stat(log)
        if os.geteuid() not in (0, owner.st_uid):
            raise CopyFailed(
                f"{log} belongs to another user, whose relay could not open the restored file: "
                "run this command as that user, or as root"
            )
        return owner
    return os.stat(os.path.dirname(log))


def _change_owner(file: int | str, owner: os.stat_result) -> None:
    """As root, give a file to a user and group. As another user, do nothing, because the file belongs to that user.

    :param file: its descriptor or path.
    """
    if os.geteuid() == 0:
        # The folder may belong to another user, who could have put a link to any file there.
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(file, int))


def _stamp(now: float) -> str:
    """Return a time as it is written in a file name, UTC."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
