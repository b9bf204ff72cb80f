"""Copy a message log in SQLite, whether a relay writes to it or not.

This module does not print, ask or read a command line: `chatrelay.app.cli` does.

A copy is made page by page in one read transaction. SQLite's shell does not use such a transaction, so it starts again
at each commit of the relay and never ends. During the transaction SQLite can't restart its write-ahead log, which grows
by everything that the relay writes.

A copy is written beside its destination as ``DESTINATION.unfinished``, synced and read back. Then it gets its name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

import attrs

from chatrelay.messagelog.sqlite.files import LogFiles, size_of
from chatrelay.messagelog.sqlite.opening import reading, schema_of
from chatrelay.messagelog.sqlite.verify import Contents, Report, verify
from chatrelay.permissions import why_not_found, why_not_writable

UNFINISHED_SUFFIX = ".unfinished"
"""The end of the name of an incomplete copy."""

PAGES_PER_STEP = 256
"""The pages of a database that are copied in one step: 1 MiB with SQLite's pages of 4 KiB."""

BYTES_PER_SYNC = 8 * 1024 * 1024
"""The bytes that are written between two syncs. The relay's own syncs would have to wait for one large sync."""

DATA_SUFFIXES = ("-wal", "-journal")
"""The ends of the names of files that hold parts of a database. SQLite reads any such file beside a database."""

INDEX_SUFFIX = "-shm"
"""The end of the name of the index of the ``-wal``, which SQLite makes again if it is missing."""

_NO_LOCKS_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_WRITE_ERRORS = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE),
    *(sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_CANTOPEN),
)
"""The errors that SQLite raises for the file that it writes."""

NO_LINKS_ERRORS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class CopyFailed(Exception):
    """A copy that could not be made or put in place. The text gives the cause."""


def back_up(log: str, destination: str, *, replace: bool, report: Report, commit: Callable[[], None]) -> Contents:
    """Copy a message log, check the copy by reading it, and give it its name.

    :param destination: the file to make.
    :param replace: whether an existing file of that name is replaced.
    :param commit: called when the copy is complete. Nothing may interrupt the steps after it.
    :raises CopyFailed: if no copy was made. An existing file was not changed.
    :raises UnusableLog: if the log is not a complete message log.
    """
    target = resolve_destination(log, destination, replace=replace)
    with unfinished_copy(target) as unfinished:
        contents = copy_log(log, unfinished, report)
        commit()
        put_in_place(unfinished, target, replace=replace)
    return contents


def resolve_destination(log: str | None, destination: str, *, replace: bool) -> str:
    """Return the path of a copy, with symbolic links resolved.

    :param log: the message log; None if it is not in a file.
    :raises CopyFailed: if no copy can be written there.
    """
    with write_errors(destination):  # for a relative path without a working directory
        target = os.path.realpath(destination)
        if why := why_not_found(target):
            remedy = f"{'make it, or ' if why.startswith('there is no') else ''}name another destination"
            raise CopyFailed(f"{destination} cannot be written: {why}: {remedy}")
        return _check_target(log, target, destination, replace=replace)


def _check_target(log: str | None, target: str, destination: str, *, replace: bool) -> str:
    if os.path.isdir(target) or destination.endswith(os.sep):
        raise CopyFailed(f"{destination} is a folder: name a file in it")
    if log is not None:
        _check_not_of_the_log(log, target, destination)
    if os.path.lexists(target):
        if not os.path.isfile(target):
            raise CopyFailed(f"{destination} is not a file: name another destination")
        if not replace:
            raise CopyFailed(f"{destination} exists: name another destination, or replace it with --yes")
    return target


def _check_not_of_the_log(log: str, target: str, destination: str) -> None:
    files = LogFiles(log)
    of_the_log = (files.path, files.lock, *(files.path + part for part in (*DATA_SUFFIXES, INDEX_SUFFIX)))
    if {target, target + UNFINISHED_SUFFIX}.intersection(of_the_log) or is_same_file(files.path, target):
        raise CopyFailed(f"{destination} belongs to the message log itself: name another destination")
    for part in DATA_SUFFIXES:
        if size_of(target + part):
            raise CopyFailed(
                f"SQLite would take {target}{part} for a part of the copy: "
                "move that file away if no program uses it, or name another destination"
            )


# The copy -----------------------------------------------------------------------


@attrs.frozen
class Unfinished:
    """An incomplete copy that no other command writes.

    :ivar descriptor: keeps it locked.
    """

    path: str
    descriptor: int


@contextmanager
def unfinished_copy(target: str) -> Iterator[Unfinished]:
    """Make an empty file beside `target`; remove it if anything fails."""
    path = target + UNFINISHED_SUFFIX
    with write_errors(path):
        descriptor = _create(path)
    try:
        yield Unfinished(path, descriptor)
    except BaseException:
        # After the file has got its final name, a file with the old name belongs to another command.
        with suppress(OSError):
            if _is_open_as(descriptor, path):
                os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _create(path: str) -> int:
    """Create and lock a file that only its owner may read. Replace one that a killed command has left."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            with suppress(FileNotFoundError):  # the other command has just finished
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    _lock_against_others(descriptor, path)
                    if _is_open_as(descriptor, path):
                        os.unlink(path)
                finally:
                    os.close(descriptor)
            continue
        try:
            _lock_against_others(descriptor, path)
            os.fchmod(descriptor, 0o600)
            if _is_open_as(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another command took it for a leftover and removed it


def _lock_against_others(descriptor: int, path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CopyFailed(f"another command is writing {path}: wait until it has ended") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS_ERRORS:  # some network file systems
            raise


def copy_log(source: str, unfinished: Unfinished, report: Report) -> Contents:
    """Copy a message log into a file, sync the file, and check it by reading it."""
    with reading(source) as connection:
        schema_of(connection, source)
        _check_room(connection, source, unfinished.path)
        _copy_pages(connection, unfinished, report)
    with write_errors(unfinished.path):
        # Mark the file as one without a write-ahead log, as it is complete. (SQLite's file format, section 1.3.3.)
        os.pwrite(unfinished.descriptor, b"\x01\x01", 18)
        os.fsync(unfinished.descriptor)
        os.posix_fadvise(unfinished.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read back from the disk
    return verify(unfinished.path, report, f"what was copied from {source}")


def _check_room(connection: sqlite3.Connection, source: str, path: str) -> None:
    """Refuse a copy that would fill the disk, because the message log of the relay may be on the same disk."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    folder = os.path.dirname(path)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < pages * page_size:
        raise CopyFailed(
            f"a copy of {source} needs {_as_mib(pages * page_size)} MiB, and {folder} has {_as_mib(free)} MiB free: "
            "free some space there"
        )


def _copy_pages(connection: sqlite3.Connection, unfinished: Unfinished, report: Report) -> None:
    """Copy the current contents of a database into a file."""
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    synced = 0

    def step(_status: int, remaining: int, total: int) -> None:
        nonlocal synced
        done = (total - remaining) * page_size
        report("copying", done, total * page_size)
        if done - synced >= BYTES_PER_SYNC:
            synced = done
            os.fdatasync(unfinished.descriptor)

    try:
        # The descriptor has locked it, and on network file systems SQLite could not lock it again.
        uri = f"file:{quote(os.fsencode(unfinished.path))}?mode=rw&nolock=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")
            copy.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the first read begins the transaction
            connection.backup(copy, pages=PAGES_PER_STEP, progress=step)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) in _WRITE_ERRORS:
            why = "the disk is full" if error.sqlite_errorcode == sqlite3.SQLITE_FULL else str(error)
            raise CopyFailed(f"{unfinished.path} cannot be written: {why}") from error
        raise
    except OSError as error:
        raise _not_written(unfinished.path, error) from error


# The name of the copy ------------------------------------------------------------


def put_in_place(unfinished: Unfinished, target: str, *, replace: bool) -> None:
    """Give a complete file its name, durably.

    :param replace: whether an existing file of that name is replaced.
    :raises CopyFailed: if it can't be named so.
    """
    with write_errors(target):
        if replace:
            os.replace(unfinished.path, target)
        else:
            _rename_to_new(unfinished.path, target)
        sync_folder(target)


def _rename_to_new(path: str, target: str) -> None:
    """Rename a file, but never replace one."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise CopyFailed(f"{target} now exists: name another destination, or replace it with --yes") from None
    except OSError as error:
        if error.errno not in NO_LINKS_ERRORS:
            raise
        os.rename(path, target)  # it did not exist a moment ago, and this file system has no safer way
    else:
        os.unlink(path)


# Files --------------------------------------------------------------------------


@contextmanager
def write_errors(path: str) -> Iterator[None]:
    """Raise `CopyFailed` instead of an `OSError` that writing a path raised."""
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> CopyFailed:
    why = "the disk is full" if error.errno == errno.ENOSPC else os.strerror(error.errno or errno.EIO)
    if error.errno in (errno.EACCES, errno.EROFS):
        why = why_not_writable(os.path.dirname(os.path.abspath(path))) or why
    return CopyFailed(f"{path} cannot be written: {why}")


def sync_folder(path: str) -> None:
    """Sync the folder of `path`, which makes the names in it durable."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_open_as(descriptor: int, path: str) -> bool:
    """Return whether a path still names the file that a descriptor has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def is_same_file(path: str, other: str) -> bool:
    """Return whether two paths name the same file."""
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def _as_mib(size: int) -> str:
    return f"{size / 1024**2:,.0f}"
