"""The message log: the durable record of messages, one implementation a module.

`message_log` and `message_reader` choose by URL. `chatrelay.interfaces` says what each implementation promises, and one
contract test checks all of them. This package must not know connections, delivery, or who reads the log and why.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from chatrelay.interfaces import MessageLog, MessageReader

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads

SQLITE = "sqlite:"


class BadMessageLogURL(ValueError):
    """A message log's URL that names no message log; the text says what would."""


def check_url(url: str) -> None:
    """Refuse what `message_log` could not open.

    :raises BadMessageLogURL: with what would do.
    """
    if "\0" in url:
        raise BadMessageLogURL(f"{url!r} has a NUL in it, which no file's name may have")
    if url in ("memory:", "none") or (url.startswith(SQLITE) and sqlite_path(url)):
        return
    meant = _meant(url)
    hint = f" (did you mean {meant}?)" if meant else ""
    raise BadMessageLogURL(f"{url!r} names no message log: use sqlite:PATH, memory: or none{hint}")


def _meant(url: str) -> str | None:
    """The URL that somebody may have meant by one that names no message log."""
    kind, colon, path = url.partition(":")
    if kind.lower() in ("memory", "none"):
        return "memory:" if kind.lower() == "memory" else "none"
    if not colon and url:
        return f"{SQLITE}{'PATH' if kind.lower() == 'sqlite' else url}"
    is_sqlite = kind.lower() == "file" or difflib.get_close_matches(kind.lower(), ["sqlite"], cutoff=0.75)
    return f"{SQLITE}{path}" if is_sqlite and path else None


def sqlite_path(url: str) -> str:
    """The path in a ``sqlite:PATH`` URL."""
    return url.removeprefix(SQLITE)


def message_log(url: str, reactor: IReactorFromThreads) -> MessageLog:
    """Make the message log that `url` names; it is not opened yet.

    :raises BadMessageLogURL: where it names none.
    """
    check_url(url)
    if url == "memory:":
        from chatrelay.messagelog.memory import MemoryMessageLog

        return MemoryMessageLog()
    if url == "none":
        from chatrelay.messagelog.memory import NoMessageLog

        return NoMessageLog()
    from chatrelay.messagelog.sqlite import SqliteMessageLog

    return SqliteMessageLog(sqlite_path(url), reactor)


def message_reader(url: str) -> MessageReader:
    """Make a reader of the message log that `url` names, for a process that is not the relay.

    :raises BadMessageLogURL: where it names none, or one that only the relay can read.
    """
    check_url(url)
    if not url.startswith(SQLITE):
        raise BadMessageLogURL(f"a {url.rstrip(':')} message log can't be read from outside the relay")
    from chatrelay.messagelog.sqlite import SqliteMessageReader

    return SqliteMessageReader(sqlite_path(url))
