"""Putting a backup in the place of a message log in SQLite, which is kept under another name.

Nothing here prints, asks or reads a command line: `chatrelay.app.cli` does. `backup` makes the copy.

SQLite keeps a database in two files while it is written, and two files cannot be replaced at one moment. So what is in
the ``-wal`` is first written into the database. Then one file is replaced by one file.
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
    INDEX,
    NO_LINKS,
    PARTS,
    UNFINISHED,
    NotDone,
    copied,
    is_same,
    sync_folder,
    told,
    unfinished_copy,
)
from chatrelay.messagelog.sqlite.files import LogFiles, size_of
from chatrelay.messagelog.sqlite.reading import NotUsable, reading
from chatrelay.messagelog.sqlite.schema import LOCK_WAIT_SECONDS
from chatrelay.messagelog.sqlite.verify import Contents, Report, summary
from chatrelay.model import LogUnavailable
from chatrelay.permissions import why_not_found

REPLACED = ".replaced-"
"""Comes before the time in the name of a message log that a restored one has replaced."""


@attrs.frozen
class Restored:
    """What a restored message log holds.

    :ivar contents: what is in it.
    :ivar kept: where the message log is that it replaced (a ``-wal`` alone, where there was no more); None where there
        was none.
    """

    contents: Contents
    kept: str | None


def restore(
    log: str,
    backup: str,
    *,
    now: float,
    confirm: Callable[[Contents, Contents | NotUsable], None],
    report: Report,
    commit: Callable[[], None],
) -> Restored:
    """Put a copy of a backup in the place of a message log that no relay has open, and keep what was there.

    Killed at any moment, it leaves the old message log or the new one, and can be run again.

    :param log: the message log's path, where there may be none.
    :param backup: a file that `back_up` made, or another message log: with what is in its ``-wal``.
    :param now: the time, seconds since 1970.
    :param confirm: called where there is a message log, with what the backup holds and what the log does, or why that
        can't be read; raises `NotDone` where the log must not be replaced.
    :param commit: called when the copy is whole; nothing may interrupt what comes then.
    :raises NotDone: where it is not restored. The log that was there before stays.
    :raises NotUsable: where the backup is not a whole message log.
    """
    files = LogFiles(log)
    log = files.path
    owner = _checked(log, backup)
    # Two commands that restore one log can't come to `_undo_half_of_it` together: one has the copy.
    with unfinished_copy(log) as unfinished:
        _undo_half_of_it(log)
        mixed = _why_mixed(files)
        with _locked(files, owner):
            new = summary(backup)
            if os.path.exists(log):
                confirm(new, mixed or _summary_if_any(log))
            _give(unfinished.descriptor, owner)
            contents = copied(backup, unfinished, report)
            is_whole = mixed is None and _take_in_wal(log)
            commit()
            with told(log):
                kept = _replace(log, unfinished.path, f"{log}{REPLACED}{_stamp(now)}", is_whole)
    return Restored(contents, kept)


def _checked(log: str, backup: str) -> os.stat_result:
    """Refuse paths that can't be; return whose the new log is to be.

    :raises NotDone: with the remedy.
    """
    if why := why_not_found(log):
        hint = ": make it, or name another file with --message-log" if why.startswith("there is no") else ""
        raise NotDone(why + hint)
    if why := why_not_found(backup):
        raise NotDone(f"there is no message log at {backup}: {why}")
    if os.path.exists(log) and not os.path.isfile(log):
        raise NotDone(f"{log} is not a file: name a file with --message-log")
    if is_same(log, backup):
        raise NotDone(f"{backup} is the message log itself: name a backup")
    if is_same(log + UNFINISHED, backup):
        raise NotDone(f"{backup} is not known to be whole: name another backup, or give it another name")
    return _owner(log)


def _why_mixed(files: LogFiles) -> NotUsable | None:
    """Why the ``-wal`` beside a message log is not its own; None where it is, or nothing can be said.

    Call it before the lock is taken: afterwards, no descriptor of the database may be closed.
    """
    try:
        recovery.check_wal(files)
    except LogUnavailable as error:
        return NotUsable(str(error))
    except OSError:
        return None
    return None


def _summary_if_any(log: str) -> Contents | NotUsable:
    try:
        return summary(log)
    except NotUsable as error:
        return error


@contextmanager
def _locked(files: LogFiles, owner: os.stat_result) -> Iterator[None]:
    """Keep relays from a message log.

    :param owner: whose the lock is to be.
    :raises NotDone: where a relay has it.
    """
    with suppress(FileNotFoundError):
        if os.stat(files.path).st_nlink > 1:
            raise NotDone(f"{files.path} has more than one name (hard links): remove the others")
    try:
        with told(files.lock):
            files.take_lock()
            _give(files.lock, owner)
    except LogUnavailable:
        raise NotDone(f"a relay, or another command, has {files.path} open: stop it first") from None
    try:
        yield
        files.keep_files()
    finally:
        files.release_lock()


def _take_in_wal(log: str) -> bool:
    """Let SQLite write what a killed relay left in the ``-wal`` into the database; return whether the file is whole.

    Two files cannot be replaced at one moment, one can. Where the two make no whole database, both stay as they are.
    """
    if not any(size_of(log + part) for part in PARTS) or not os.path.exists(log):
        return not any(size_of(log + part) for part in PARTS)
    try:
        with reading(log) as connection:  # what was opened to be written is written into when it is closed
            if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return False
        with closing(sqlite3.connect(log, timeout=LOCK_WAIT_SECONDS, isolation_level=None)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except (NotUsable, sqlite3.Error):
        return False
    if busy or any(size_of(log + part) for part in PARTS):
        raise NotDone(f"another program has {log} open: end it, and try again; nothing was changed")
    return True


def _replace(log: str, new: str, kept: str, is_whole: bool) -> str | None:
    """Give a file the message log's name, and the log another; return that, or None where there was no log.

    See `_undo_half_of_it` for a process that is killed in between.
    """
    kept = _free_name(kept)
    exists = os.path.exists(log)
    try:
        if exists:
            _give_second_name(log, kept)
        for part in PARTS:
            with suppress(FileNotFoundError):
                if is_whole:
                    os.unlink(log + part)  # empty
                else:
                    os.rename(log + part, kept + part)
        with suppress(FileNotFoundError):
            os.unlink(log + INDEX)
        os.rename(new, log)
    except OSError:
        if exists and not os.path.exists(log):
            os.rename(kept, log)
        _undo_half_of_it(log)
        raise
    sync_folder(log)
    if exists:
        return kept
    return next((kept + part for part in PARTS if os.path.exists(kept + part)), None)


def _give_second_name(log: str, kept: str) -> None:
    """Give a file a second name, durably. Where the file system has no links, the second name replaces the first."""
    try:
        os.link(log, kept)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.rename(log, kept)
    sync_folder(log)


def _undo_half_of_it(log: str) -> None:
    """Where a process was killed before it replaced the log, take away the other names that it had given its files."""
    for name in glob.glob(f"{glob.escape(log)}{REPLACED}*"):
        if is_same(log, name):
            for part in PARTS:
                if os.path.exists(name + part) and not size_of(log + part):
                    os.rename(name + part, log + part)
            os.unlink(name)


def _free_name(name: str) -> str:
    """A name that no file has, nor any with it as its beginning."""
    number = 1
    free = name
    while any(os.path.lexists(free + part) for part in ("", *PARTS)):
        number += 1
        free = f"{name}-{number}"
    return free


def _owner(log: str) -> os.stat_result:
    """Whose a new log is to be: the owner's of the one that it replaces, or of the folder where there is none.

    :raises NotDone: where this user may not give it to them.
    """
    with suppress(FileNotFoundError):
        owner = os.stat(log)
        if os.geteuid() not in (0, owner.st_uid):
            raise NotDone(
                f"{log} belongs to another user, whose relay could not open what takes its place: "
                "run this command as that user, or as root"
            )
        return owner
    return os.stat(os.path.dirname(log))


def _give(file: int | str, owner: os.stat_result) -> None:
    """Let root give a file to a user and group. Files that other users make are theirs.

    :param file: its descriptor or path.
    """
    if os.geteuid() == 0:
        # The folder may be another user's, who could have put a link to any file there.
        os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(file, int))


def _stamp(now: float) -> str:
    """A moment in a file's name, UTC."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
