"""Find out whether a message log in SQLite is the one that was open last, or an earlier copy that was put in its place.

Clients remember places. In an earlier copy, the places after its end will be given to other messages. So each life of
a log has a name, its epoch, and a log that may be a copy gets a new one. The database can't tell alone, because a copy
has everything that the database had. So a relay notes beside it, in ``PATH.lock``, what the database must have:

- the name of the last opening, which is random. A copy from before that opening has another one.
- the number of the last message, about a second old. A copy from before that message has fewer messages.
- the inode of the file. A copy that was moved to that path has another one.

Without a note, there is a new epoch. The only copy that is not noticed is one of the whole folder, such as a snapshot
of the file system. This module must not know the tables of messages.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from contextlib import suppress

import msgspec

from chatrelay.messagelog.sqlite.files import LogFiles


class Note(msgspec.Struct):
    """What a relay notes beside a database.

    :ivar openings: the name of the last opening. Between the note and the commit, the one before as well.
    :ivar inode: of the database.
    :ivar number: of the last message that was committed, or of an earlier one.
    """

    openings: tuple[str, ...]
    inode: int
    number: int


def is_continued(note: Note | None, opening: str, inode: int, last_number: int) -> bool:
    """Return whether a database is the one of the note.

    :param opening: the name of the last opening that is in the database.
    """
    return note is not None and opening in note.openings and inode == note.inode and last_number >= note.number


class Life:
    """The epoch of one message log.

    Call `begin` in a transaction, `begun` after its commit, `note` from time to time, and `end` before the lock is
    released.

    :param files: locked whenever a method is called.
    :param new_name: returns a random name.
    :ivar epoch: its name; empty before the log was opened.
    """

    def __init__(self, files: LogFiles, new_name: Callable[[], str] = lambda: secrets.token_urlsafe(9)) -> None:
        self._files = files
        self._new_name = new_name
        self.epoch = ""
        self._opening = ""
        self._inode = 0
        self._is_synced = True  # whether a power cut leaves no note that knows the opening before
        self._noted: int | None = None  # the last number that was noted; None unless the log is open

    def begin(self, connection: sqlite3.Connection, last_number: int) -> None:
        """Take the epoch of a database, or give it a new one.

        A database that this object has had open, and that nobody else has had since, is not written to.

        :param last_number: of the messages in the database.
        :raises sqlite3.Error: if the database can't be read or written.
        :raises OSError: if the note can't be written.
        """
        self._inode = self._files.inode()
        epoch, opening = connection.execute("SELECT epoch, opening FROM life").fetchone() or ("", "")
        goes_on = is_continued(_decode(self._files.read_note()), opening, self._inode, last_number)
        if goes_on and opening == self._opening:
            return
        self.epoch = epoch if goes_on else self._new_name()
        self._opening = self._new_name()
        self._is_synced = False
        # A crash between this note and the commit leaves the earlier opening in the database.
        openings = (opening, self._opening) if goes_on else (self._opening,)
        self._files.write_note(msgspec.json.encode(Note(openings, self._inode, last_number)), sync=True)
        connection.execute("DELETE FROM life")
        connection.execute("INSERT INTO life (epoch, opening) VALUES (?, ?)", (self.epoch, self._opening))

    def begun(self, last_number: int) -> None:
        """Note that the transaction of `begin` is committed.

        :raises OSError: if the note can't be written.
        """
        self._noted = -1
        self.note(last_number)
        if not self._is_synced:
            # Otherwise a power cut could leave the note of `begin`, and a copy from before the opening would fit it.
            self._files.sync_note()
            self._is_synced = True

    def note(self, last_number: int) -> None:
        """Note the number of the last message that is committed.

        :raises OSError: if it can't be written.
        """
        if self._noted is not None and last_number != self._noted:
            self._files.write_note(msgspec.json.encode(Note((self._opening,), self._inode, last_number)))
            self._noted = last_number

    def end(self, last_number: int) -> None:
        """Note the last message of a log that is being closed, if it was open. This never fails."""
        with suppress(OSError):  # then the last note stands
            self.note(last_number)
        self._noted = None


def _decode(text: bytes) -> Note | None:
    try:
        return msgspec.json.decode(text, type=Note)
    except (msgspec.MsgspecError, UnicodeError):
        return None
