"""Say why the files of a message log in SQLite can't be written, in words for the operator.

This module must not know the tables, nor what is done about a failure.
"""

from __future__ import annotations

import os
import sqlite3

from chatrelay.messagelog.sqlite import schema
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.model import LogUnavailable
from chatrelay.permissions import why_not_found, why_not_usable, why_not_writable


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether a read has failed because a page of the file is damaged. Other pages may be whole."""
    # The lowest byte is the kind. An error of Python's own has no code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def as_unavailable(error: Exception, files: LogFiles) -> LogUnavailable:
    """Return the error to raise for a message log whose files have failed. The text has the remedy, if one is known."""
    if isinstance(error, LogUnavailable):
        return error
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
        return LogUnavailable(schema.not_a_database_text(files.path))
    why = _diagnose(files) or _in_words(error)
    return LogUnavailable(f"the message log {files.path} cannot be written: {why}")


def _in_words(error: Exception) -> str:
    """Return the text of an error for the operator."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if isinstance(error.filename, str) else error.strerror
    return str(error)


def _diagnose(files: LogFiles) -> str | None:
    """Return what is wrong with the files, and the remedy; None if SQLite's own error says more."""
    if why := why_not_found(files.path):
        return f"{why}: make it, or name another file with --message-log" if why.startswith("there is no") else why
    for path in (files.path, files.lock, files.wal, f"{files.path}-shm"):
        if why := why_not_usable(path, write=True):
            return f"{why}: give it to that user, or name another file with --message-log"
    if why := why_not_writable(os.path.dirname(files.path)):
        return f"{why}: give that user the right, or name a file in another folder with --message-log"
    return None
