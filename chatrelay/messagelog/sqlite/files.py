"""The files of a message log in SQLite: their names, their identity, and the lock on them.

It checks and moves SQLite's own files beside the database (``-wal``, ``-shm``), and never writes to them. This module
must not know SQL or the schema.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime

from chatrelay.model import LogUnavailable

LOCKS_DATABASE = sys.platform == "linux"
"""Whether the database itself is locked with flock(2), too.

On Linux, flock() is independent of the locks that SQLite takes with fcntl(). On other systems it is not, and would keep
readers out.
"""

HEADER_SIZE = 100
"""The bytes of the header of a database."""

NOTE_SIZE = 256
"""The bytes of ``PATH.lock``. A disk writes them whole or not at all."""

_locked_here: set[str] = set()
"""The databases that this process has locked. It is global because the locks belong to the process."""

FileId = tuple[int, int] | None
"""Device and inode of a file; None if there is none."""

Identity = tuple[FileId, FileId]
"""The identity of the files of a log: the database and its write-ahead log."""


class LogInUse(LogUnavailable):
    """Another process has the lock of a message log."""


class LogFiles:
    """The files of one message log.

    A symbolic link is resolved each time the lock is taken. SQLite resolves links, too, and all files of a log must be
    in the same folder.

    :param path: the database, as configured. A relative path starts at the current working directory.
    :raises LogUnavailable: if the path is relative and there is no working directory.
    :ivar path: the database, without symbolic links.
    :ivar wal: SQLite's write-ahead log. It holds the newest messages.
    :ivar lock: the lock file, ``PATH.lock``, which keeps a second relay away.
    """

    def __init__(self, path: str) -> None:
        try:
            self._given = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
        except OSError as error:
            raise LogUnavailable(
                f"the message log {path} cannot be found, because the working directory is gone: give its absolute path"
            ) from error
        self._resolve()
        self._lock: int | None = None
        self._database_lock: int | None = None
        self._made_lock = False  # whether this object made PATH.lock, and keep_lock_file was not called since

    def _resolve(self) -> None:
        self.path = os.path.realpath(self._given)
        self.wal = f"{self.path}-wal"
        self.lock = f"{self.path}.lock"

    # The lock -----------------------------------------------------------------

    def take_lock(self) -> None:
        """Keep every other relay from these files, until `release_lock`.

        There are two locks. The lock on ``PATH.lock`` works before there is a database. The lock on the database still
        works when ``PATH.lock`` is removed or the database is moved.

        Closing any descriptor of the database drops the locks that SQLite has on it in this process. So call this
        before SQLite opens the database, and `release_lock` after SQLite has closed it.

        :raises LogInUse: if another relay has the lock.
        :raises OSError: if a file can't be opened or locked.
        """
        self.release_lock()
        self._resolve()
        self._has_database()  # raises for a path that is not a message log, before a lock file is made beside it
        try:
            self._lock = self._locked_file()
            self.lock_database()
            _locked_here.add(self.path)
        except BaseException:
            self.release_lock()
            raise

    def keep_lock_file(self) -> None:
        """Keep ``PATH.lock`` when the lock is released. Call it when the file is known to be a message log.

        As root, also give it to the owner of the database. SQLite does so with its own files.
        """
        self._made_lock = False
        # The folder may belong to another user, who could have put a further name of any file there.
        if os.geteuid() == 0 and self._lock is not None and os.fstat(self._lock).st_nlink == 1:
            owner = os.stat(self.path)
            with suppress(PermissionError):  # root may lack the right, in a container
                os.fchown(self._lock, owner.st_uid, owner.st_gid)

    def lock_database(self) -> None:
        """Lock the database as well, if it exists and is not locked yet.

        `take_lock` calls it. Call it again when a database has been made.
        """
        if not self._has_database() or self._database_lock is not None or not LOCKS_DATABASE:
            return
        self._database_lock = descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self._flock(descriptor, self.path)

    def _has_database(self) -> bool:
        """Return whether there is a database.

        :raises LogUnavailable: if the path is something else, or has hard links.
        """
        found = _stat(self.path)
        if found is None:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise LogUnavailable(f"the message log {self.path} is not a file: name a file with --message-log")
        if found.st_nlink > 1:
            raise LogUnavailable(
                f"the message log {self.path} has more than one name (hard links), and SQLite finds the newest "
                "messages beside one of them only: remove the other names. After a chatrelay restore that was "
                "killed, run it again"
            )
        return True

    def restore_lock(self) -> bool:
        """Make and lock ``PATH.lock`` again if it was removed or replaced.

        :returns: whether it was locked again.
        :raises LogUnavailable: if another relay may have used the files in the meantime.
        """
        assert self._lock is not None
        if _file_id(self.lock) == _id_of(os.fstat(self._lock)):
            return False
        if self._database_lock is None:
            raise LogUnavailable(f"the lock {self.lock} was removed or replaced while the relay ran")
        try:
            lock = self._locked_file()
        except LogUnavailable:
            # Another relay has it until it finds the database locked. The next check finds the file free.
            return False
        note = self.read_note()
        os.close(self._lock)
        self._lock = lock
        self.write_note(note)
        self.keep_lock_file()
        return True

    def release_lock(self) -> None:
        """Let other relays use these files. This never fails.

        A ``PATH.lock`` that was made for a file that is not a message log is removed.
        """
        if self._lock is not None and self._made_lock:
            with suppress(OSError):  # while it is still locked, so that another process notices the removal
                os.unlink(self.lock)
        self._made_lock = False
        for descriptor in (self._lock, self._database_lock):
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)
        if self._lock is not None:
            _locked_here.discard(self.path)
        self._lock = self._database_lock = None

    def _locked_file(self) -> int:
        """Return a descriptor of ``PATH.lock``, locked."""
        while True:
            made = True
            try:
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                made = False
                descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                self._flock(descriptor, self.lock)
                if _file_id(self.lock) == _id_of(os.fstat(descriptor)):
                    self._made_lock = made
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the file was removed between the two calls, so its lock has no effect

    def _flock(self, descriptor: int, path: str) -> None:
        """Lock a file.

        :param path: its name, for the error.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LogInUse(
                f"the message log {self.path} is in use by another chatrelay: stop that one, or give each its own file"
            ) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error

    def read_note(self) -> bytes:
        """Return what is written in ``PATH.lock``; empty if nothing is. Call it while the lock is taken."""
        assert self._lock is not None
        return os.pread(self._lock, NOTE_SIZE, 0)

    def write_note(self, note: bytes, *, sync: bool = False) -> None:
        """Write into ``PATH.lock``. Call it while the lock is taken.

        :param note: at most `NOTE_SIZE` bytes of JSON.
        :param sync: whether the note, and the name of the file, survive a power cut when this returns.
        :raises OSError: if it can't be written.
        """
        assert self._lock is not None
        os.pwrite(self._lock, note.ljust(NOTE_SIZE), 0)
        if sync:
            self.sync_note()
            self._sync_folder()

    def sync_note(self) -> None:
        """Let the note survive a power cut. Call it while the lock is taken.

        :raises OSError: if it can't be synced.
        """
        assert self._lock is not None
        os.fsync(self._lock)

    @property
    def is_locked_here(self) -> bool:
        """Whether this process has the lock. Then SQLite has locks in this process, too, which must not be dropped."""
        return self.path in _locked_here

    # The files ----------------------------------------------------------------

    def database_header(self) -> bytes:
        """Return the first 100 bytes of the database, or fewer if it is shorter.

        :raises OSError: if it can't be read.
        """
        if self._database_lock is not None:
            return os.pread(self._database_lock, HEADER_SIZE, 0)
        return read_header(self.path)

    def inode(self) -> int:
        """Return the inode of the database.

        :raises OSError: if there is no database.
        """
        return os.stat(self.path).st_ino

    def make_database(self) -> None:
        """Make an empty database if there is none. Only this user may read it.

        SQLite gives its other files the same mode.
        """
        os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))

    def identity(self) -> tuple[Identity, int, int]:
        """Return the identity of the files that have these names now, and the sizes of database and write-ahead log.

        The database is found by its configured name, so a changed symbolic link is noticed.

        :returns: the identity, and two sizes in bytes.
        :raises OSError: if a file can't be checked.
        """
        database, wal = _stat(self._given), _stat(self.wal)
        return (
            (_id_of(database), _id_of(wal)),
            database.st_size if database else 0,
            wal.st_size if wal else 0,
        )

    def set_wal_aside(self, now: float) -> str:
        """Rename the write-ahead log, so that SQLite does not find it and can't delete it.

        Call it while the lock is taken and no connection is open.

        :param now: seconds since 1970 UTC, for the name.
        :returns: the new name.
        :raises OSError: if it can't be renamed.
        """
        aside = self.aside_name(now)
        os.rename(self.wal, aside)
        self._sync_folder()
        return aside

    def _sync_folder(self) -> None:
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def aside_name(self, now: float) -> str:
        """Return a free name for the write-ahead log that contains the time."""
        stem = f"{self.wal}.orphaned-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
        name, count = stem, 1
        while os.path.lexists(name):
            count += 1
            name = f"{stem}-{count}"
        return name


def read_header(path: str) -> bytes:
    """Return the first 100 bytes of a file.

    :raises OSError: if it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.pread(descriptor, HEADER_SIZE, 0)
    finally:
        os.close(descriptor)


def size_of(path: str) -> int:
    """Return the size of a file in bytes; 0 if there is no file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _id_of(found: os.stat_result | None) -> FileId:
    return (found.st_dev, found.st_ino) if found else None


def _file_id(path: str) -> FileId:
    return _id_of(_stat(path))
