"""The message log: the durable record of messages, with one module or package for each implementation.

`message_log` and `message_reader` choose by URL. `chatrelay.interfaces` says what each implementation promises, and one
contract test checks all of them. This package must not know connections, delivery, or who reads the log and why.
"""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from chatrelay.interfaces import LogReader, MessageLog
from chatrelay.messagelog.erasing import LogEraser

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads

SQLITE = "sqlite:"

POSTGRES = ("postgresql://", "postgres://")
"""The beginnings of the URLs of message logs in PostgreSQL. libpq accepts both."""

_PASSWORD = re.compile(r"(?<=://)([^/?@:]*):.*@", re.DOTALL)
_PASSWORD_PARAMETER = re.compile(r"((?:ssl)?password=)[^&]*", re.IGNORECASE)


class BadMessageLogURL(ValueError):
    """A URL that does not name a message log. The text gives the remedy."""


def without_password(url: str) -> str:
    """Return a URL as it may be logged: a password in it is replaced with ``***``."""
    if "://" not in url:
        return url
    return _PASSWORD_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


def check_url(url: str) -> None:
    """Check that a URL names a message log.

    :raises BadMessageLogURL: if it does not, or what it needs is not installed.
    """
    if url.startswith(POSTGRES):
        _check_postgres(url)
        return
    if "\0" in url:
        raise BadMessageLogURL(f"{url!r} contains a NUL character, which is not allowed in a file name: remove it")
    if url in ("memory:", "none") or (url.startswith(SQLITE) and sqlite_path(url)):
        return
    meant = _meant(url)
    hint = f" (did you mean {meant}?)" if meant else ""
    raise BadMessageLogURL(
        f"{without_password(url)!r} is not a message log: use sqlite:PATH, postgresql://USER@HOST/DATABASE, memory: or "
        f"none{hint}"
    )


def _check_postgres(url: str) -> None:
    if find_spec("psycopg") is None:
        raise BadMessageLogURL("a message log in PostgreSQL needs psycopg: pip install 'chatrelay[postgres]'")
    try:
        from chatrelay.messagelog.postgres.address import BadAddress, parse
    except ImportError as error:  # psycopg itself is there, and finds no libpq
        raise BadMessageLogURL(
            f"psycopg cannot be used here ({' '.join(str(error).split())}): pip install 'chatrelay[postgres]'"
        ) from error
    try:
        parse(url)
    except BadAddress as error:
        raise BadMessageLogURL(str(error)) from error


def _meant(url: str) -> str | None:
    """Return the URL that a wrong one was probably meant to be; None if there is no likely one."""
    kind, colon, path = url.partition(":")
    if kind.lower() in ("memory", "none"):
        return "memory:" if kind.lower() == "memory" else "none"
    if kind.lower() in ("postgresql", "postgres", "postgre", "pg", "psql", "psycopg"):
        return "postgresql://USER@HOST/DATABASE"
    if not colon and url:
        return f"{SQLITE}{'PATH' if kind.lower() == 'sqlite' else url}"
    is_sqlite = kind.lower() == "file" or difflib.get_close_matches(kind.lower(), ["sqlite"], cutoff=0.75)
    return f"{SQLITE}{path}" if is_sqlite and path else None


def sqlite_path(url: str) -> str:
    """Return the path in a ``sqlite:PATH`` URL."""
    return url.removeprefix(SQLITE)


def message_log(
    url: str, reactor: IReactorFromThreads, makes_copy: bool = True, again_seconds: float = 86_400.0
) -> MessageLog:
    """Return the message log that `url` names. It is not open yet.

    :param makes_copy: whether a file of an older chatrelay is copied before it is migrated.
    :param again_seconds: for how long a message that is sent again is recognized; 0 for no limit. A log that several
        relays write to keeps the unique ids for that time.
    :raises BadMessageLogURL: if the URL does not name a message log.
    """
    check_url(url)
    if url == "memory:":
        from chatrelay.messagelog.memory import MemoryMessageLog

        return MemoryMessageLog()
    if url == "none":
        from chatrelay.messagelog.memory import NoMessageLog

        return NoMessageLog()
    if url.startswith(POSTGRES):
        from chatrelay.messagelog.postgres import PostgresMessageLog

        return PostgresMessageLog(url, reactor, again_seconds)
    from chatrelay.messagelog.sqlite import SqliteMessageLog

    return SqliteMessageLog(sqlite_path(url), reactor, makes_copy=makes_copy)


def message_reader(url: str) -> LogReader:
    """Return a reader of the message log that `url` names, for a process that is not the relay.

    :raises BadMessageLogURL: if the URL does not name a message log, or only the relay can read that log.
    """
    check_url(url)
    if url.startswith(POSTGRES):
        from chatrelay.messagelog.postgres import PostgresMessageReader

        return PostgresMessageReader(url)
    if not url.startswith(SQLITE):
        raise BadMessageLogURL(f"a {url.rstrip(':')} message log can't be read from outside the relay")
    from chatrelay.messagelog.sqlite import SqliteMessageReader

    return SqliteMessageReader(sqlite_path(url))


def message_eraser(url: str) -> LogEraser:
    """Return what erases messages in the message log that `url` names, for a process that is not the relay.

    :raises BadMessageLogURL: if the URL does not name a message log, or nothing can be erased there.
    """
    check_url(url)
    if not url.startswith(SQLITE):
        kind = "PostgreSQL" if url.startswith(POSTGRES) else url.rstrip(":")
        raise BadMessageLogURL(f"messages can't be erased in a {kind} message log")
    from chatrelay.messagelog.sqlite import SqliteEraser

    return SqliteEraser(sqlite_path(url))
