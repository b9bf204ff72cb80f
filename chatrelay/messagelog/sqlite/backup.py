"""Copies of a message log in SQLite: one made beside a running relay, and one put in the log's place.

Nothing here prints, asks or reads a command line: `chatrelay.app.cli` does.

A copy is made page by page inside one read transaction. SQLite's shell, which takes no such transaction, starts over at
each commit of the relay's, and never ends. The transaction keeps SQLite from starting its write-ahead log over, which
grows by what is written meanwhile.

A copy is written beside its destination as ``DESTINATION.unfinished``, synced, read back, and only then given its name.
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
from chatrelay.messagelog.sqlite.reading import reading, schema_of
from chatrelay.messagelog.sqlite.verify import Contents, Report, verify
from chatrelay.permissions import why_not_found, why_not_writable

UNFINISHED = ".unfinished"
"""Ends the name of a copy that is not known to be whole."""

COPY_PAGES = 256
"""Pages of a database that are copied at once: 1 MiB, where a page has SQLite's 4 KiB."""

SYNC_BYTES = 8 * 1024 * 1024
"""How much of a copy is written between two syncs. The relay's own syncs would wait behind one of everything."""

PARTS = ("-wal", "-journal")
"""Files beside a database that hold parts of it. SQLite reads those that it finds, whichever database they are of."""

INDEX = "-shm"
"""The index of the ``-wal``, which SQLite makes of it whenever it is not there."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NOT_WRITTEN = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_TRUNCATE),
    *(sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_CANTOPEN),
)
"""What SQLite says of the file that it writes."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class NotDone(Exception):
    """A copy that could not be made or put in place; the text is a sentence that says why."""


def back_up(log: str, destination: str, *, replace: bool, report: Report, commit: Callable[[], None]) -> Contents:
    """Copy a message log, whether a relay writes to it or not; read the copy, and give it its name.

    :param destination: the file to make.
    :param replace: whether a file of that name is replaced.
    :param commit: called when the copy is whole; nothing may interrupt what comes then.
    :raises NotDone: where there is no such copy now. The file that was there before stays.
    :raises NotUsable: where the log is not a whole message log.
    """
    target = checked_destination(log, destination, replace=replace)
    with unfinished_copy(target) as unfinished:
        contents = copied(log, unfinished, report)
        commit()
        with told(target):
            if replace:
                os.replace(unfinished.path, target)
            else:
                _rename_to_new(unfinished.path, target)
            sync_folder(target)
    return contents


def checked_destination(log: str, destination: str, *, replace: bool) -> str:
    """Where a copy goes, symbolic links followed.

    :raises NotDone: where none can go there.
    """
    with told(destination):  # a relative path where there is no working directory
        target = os.path.realpath(destination)
        if why := why_not_found(target):
            remedy = "make it, or name another destination" if why.startswith("there is no") else "name another"
            raise NotDone(f"{destination} cannot be written: {why}: {remedy}")
        return _checked_target(log, target, destination, replace=replace)


def _checked_target(log: str, target: str, destination: str, *, replace: bool) -> str:
    if os.path.isdir(target) or destination.endswith(os.sep):
        raise NotDone(f"{destination} is a folder: name a file in it")
    files = LogFiles(log)
    of_the_log = (files.path, files.lock, *(files.path + part for part in (*PARTS, INDEX)))
    if {target, target + UNFINISHED}.intersection(of_the_log) or is_same(files.path, target):
        raise NotDone(f"{destination} is of the message log itself: name another destination")
    for part in PARTS:
        if size_of(target + part):
            raise NotDone(
                f"{target}{part} would pass for a part of the copy: "
                "move it away if no program uses it, or name another destination"
            )
    if os.path.lexists(target):
        if not os.path.isfile(target):
            raise NotDone(f"{destination} is not a file: name another destination")
        if not replace:
            raise NotDone(f"{destination} exists: name another destination, or replace it with --yes")
    return target


# The copy -----------------------------------------------------------------------


@attrs.frozen
class _Unfinished:
    """A file that nobody else writes, under a name that says that it is not whole.

    :ivar descriptor: holds it locked.
    """

    path: str
    descriptor: int


@contextmanager
def unfinished_copy(target: str) -> Iterator[_Unfinished]:
    """Make an empty file beside `target`; remove it if anything fails."""
    path = target + UNFINISHED
    with told(path):
        descriptor = _create(path)
    try:
        yield _Unfinished(path, descriptor)
    except BaseException:
        # Once the file has its name, a file with the name that it had is another one.
        with suppress(OSError):
            if _is_open_as(descriptor, path):
                os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _create(path: str) -> int:
    """Create a file that only its owner may read, in the place of one that a killed command left; lock it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            with suppress(FileNotFoundError):  # meanwhile finished
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
        os.close(descriptor)  # another command took it for a left one


def _lock_against_others(descriptor: int, path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NotDone(f"another command is writing {path}: wait until it has ended") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # some network file systems
            raise


def copied(source: str, unfinished: _Unfinished, report: Report) -> Contents:
    """Copy a message log into a file, sync it, and read it back."""
    with reading(source) as connection:
        schema_of(connection, source)
        _check_room(connection, source, unfinished.path)
        _copy_pages(connection, unfinished, report)
    with told(unfinished.path):
        # The file needs no write-ahead log: it is whole without. (SQLite's file format, section 1.3.3.)
        os.pwrite(unfinished.descriptor, b"\x01\x01", 18)
        os.fsync(unfinished.descriptor)
        os.posix_fadvise(unfinished.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # it is read back from the disk
    return verify(unfinished.path, report, f"what was copied from {source}")


def _check_room(connection: sqlite3.Connection, source: str, path: str) -> None:
    """Refuse a copy that would fill the disk, on which the relay may have its message log."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    folder = os.path.dirname(path)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < pages * page_size:
        raise NotDone(
            f"a copy of {source} takes {_mib(pages * page_size)} MiB, and {folder} has {_mib(free)} free: "
            "make room there"
        )


def _copy_pages(connection: sqlite3.Connection, unfinished: _Unfinished, report: Report) -> None:
    """Copy a database as it is now into a file."""
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    synced = 0

    def step(_status: int, remaining: int, total: int) -> None:
        nonlocal synced
        done = (total - remaining) * page_size
        report("copying", done, total * page_size)
        if done - synced >= SYNC_BYTES:
            synced = done
            os.fdatasync(unfinished.descriptor)

    try:
        # Locked by its descriptor already, which on network file systems would keep SQLite's own locks away.
        uri = f"file:{quote(os.fsencode(unfinished.path))}?mode=rw&nolock=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")
            copy.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # now the transaction has begun
            connection.backup(copy, pages=COPY_PAGES, progress=step)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) in _NOT_WRITTEN:
            why = "the disk is full" if error.sqlite_errorcode == sqlite3.SQLITE_FULL else str(error)
            raise NotDone(f"{unfinished.path} cannot be written: {why}") from error
        raise
    except OSError as error:
        raise _not_written(unfinished.path, error) from error


# Putting it in place ------------------------------------------------------------


def _rename_to_new(path: str, target: str) -> None:
    """Rename a file; never replace one."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise NotDone(f"{target} exists by now: name another destination, or replace it with --yes") from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.rename(path, target)  # nobody made it a moment ago; this file system offers no more
    else:
        os.unlink(path)


# Files --------------------------------------------------------------------------


@contextmanager
def told(path: str) -> Iterator[None]:
    """Turn what the file system says about a path into one sentence."""
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: str, error: OSError) -> NotDone:
    why = "the disk is full" if error.errno == errno.ENOSPC else os.strerror(error.errno or errno.EIO)
    if error.errno in (errno.EACCES, errno.EROFS):
        why = why_not_writable(os.path.dirname(os.path.abspath(path))) or why
    return NotDone(f"{path} cannot be written: {why}")


def sync_folder(path: str) -> None:
    """Make the names in the folder of `path` durable."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_open_as(descriptor: int, path: str) -> bool:
    """Whether a path names the file that is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def is_same(path: str, other: str) -> bool:
    """Whether two paths name one file."""
    try:
        return os.path.samefile(path, other)
    except FileNotFoundError:
        return False


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f}"
