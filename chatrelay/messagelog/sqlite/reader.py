"""The reader of a message log in SQLite for another process than the relay, whether a relay writes to the log or not.

It never writes, and takes none of the relay's locks. This module must not know how messages are found.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from chatrelay.interfaces import ALL_MESSAGES, LogReplaced
from chatrelay.messagelog.sqlite.opening import MissingLog, UnusableLog, reading, schema_of
from chatrelay.messagelog.sqlite.schema import MIGRATIONS
from chatrelay.messagelog.sqlite.search import Search, epoch_of, inbox_of, last_number, read_blocks
from chatrelay.model import InboxEntry, InboxState, LoggedMessage, LogUnavailable, Selection

POLLS_AFTER_CHANGE = 5
"""How often the log is read again after its files changed. Two changes may have the same time."""


class SqliteMessageReader:
    """The `chatrelay.interfaces.LogReader` of a message log in a file.

    :param path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def messages(
        self, selection: Selection = ALL_MESSAGES, *, through: int | None = None, newest_first: bool = False
    ) -> Generator[LoggedMessage, None, None]:
        """Yield the committed messages that are wanted.

        Close the generator if you do not read it to its end: this removes the files that SQLite made beside a log that
        no relay has open.

        :raises LogUnavailable: if the file can't be read, or is not a message log.
        """
        with opened(self._path) as connection:
            use_index = selection.user is not None or selection.since is not None
            search = Search(connection, os.path.realpath(self._path), use_index=use_index)
            for message in search.messages(selection, newest_first=newest_first):
                if through is None or message.number <= through:
                    yield message
                elif not newest_first:
                    return

    def epoch(self) -> str:
        """Return the log's epoch."""
        with opened(self._path) as connection:
            return epoch_of(connection)

    def inbox(self, user: str) -> InboxState:
        """Return a user's inbox."""
        with opened(self._path) as connection:
            return inbox_of(connection, user)

    def entries(self, user: str, after: int, through: int) -> Generator[InboxEntry, None, None]:
        """Yield the entries of some places. Close the generator if you do not read it to its end."""
        with opened(self._path) as connection:
            yield from Search(connection, os.path.realpath(self._path)).entries(user, after, through)

    def follower(self) -> SqliteLogFollower:
        """Return what reads the messages that are committed from now on."""
        return SqliteLogFollower(self._path)


class SqliteLogFollower:
    """Reads what is added to a message log: `chatrelay.interfaces.LogFollower`.

    It opens the log for each read. So it holds no lock while nothing happens, and notices if the file is replaced.

    :raises LogUnavailable: if the file can't be read, or is not a message log.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        with opened(path) as connection:
            self.through = last_number(connection)
            self._epoch = epoch_of(connection)
        self.first = self.through + 1
        self._last = self.through
        self._state: object = None  # of the files, at the last read
        self._polls = 0  # that are still to be made after a change

    def new_messages(self) -> Sequence[LoggedMessage]:
        """Return messages that were committed since the last call."""
        state = self._files_state()
        if state != self._state:
            self._state = state
            self._polls = POLLS_AFTER_CHANGE
        if not self._polls:
            return ()
        self._polls -= 1
        with opened(self._path) as connection:
            epoch = epoch_of(connection)
            # The first relay that opens a log gives it an epoch.
            if (self._epoch and epoch != self._epoch) or last_number(connection) < self._last:
                raise LogReplaced(
                    f"{self._path} is another message log now, or an earlier copy: run this command again"
                )
            self._epoch = epoch
            found = read_blocks(connection, self._last)
        if found:
            self._last = found[-1].number
            self._polls = POLLS_AFTER_CHANGE
        return [each.logged() for each in found if each.stored.is_message]

    def close(self) -> None:
        """Do nothing: nothing is open between two reads."""

    def _files_state(self) -> object:
        return [_state(self._path), _state(f"{os.path.realpath(self._path)}-wal")]


def _state(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def opened(path: str) -> Iterator[sqlite3.Connection]:
    """Open a message log.

    :raises LogUnavailable: if it can't be read, at once or later in the block. The text is a sentence with the remedy.
    """
    try:
        with reading(path) as connection:
            if schema_of(connection, path) < len(MIGRATIONS):
                raise LogUnavailable(f"{path} was made by an older chatrelay: start the relay once to upgrade it")
            yield connection
    except MissingLog as error:
        raise LogUnavailable(f"{error}; name another file with --message-log sqlite:PATH") from error
    except UnusableLog as error:
        raise LogUnavailable(str(error)) from error
    except sqlite3.Warning as error:
        raise LogUnavailable(f"the message log {path} cannot be read: {error}") from error
    except msgspec.MsgspecError as error:
        raise LogUnavailable(f"the message log {path} is damaged: {error}") from error
