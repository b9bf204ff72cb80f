"""The parts that all commands about a message log share: its option, its summary, and how a command ends.

This module must not know any single command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from chatrelay.app.cli.terminal import Interrupted, Progress, Refused, complain, rfc3339
from chatrelay.messagelog import POSTGRES, SQLITE, BadMessageLogURL, check_url, sqlite_path
from chatrelay.messagelog.sqlite.backup import CopyFailed
from chatrelay.messagelog.sqlite.opening import DamagedLog, UnusableLog
from chatrelay.messagelog.sqlite.verify import Contents
from chatrelay.model import LogUnavailable

VARIABLE = "CHATRELAY_MESSAGE_LOG"

DEFAULT = "sqlite:chatrelay.sqlite3"
"""The message log if neither the command line nor the environment names one."""


def add_option(command: argparse.ArgumentParser) -> None:
    """Give a command the option ``--message-log``."""
    command.add_argument(
        "--message-log",
        metavar="URL",
        help=f"the relay's message log, such as sqlite:PATH [default: ${VARIABLE}, else {DEFAULT}]",
    )


def url_of(url: str | None, verb: str) -> str:
    """Return the URL of a message log that another process than the relay can read.

    :param url: from the command line; None for the one in the environment, or else the default.
    :param verb: the participle of what the command does with it, such as "read".
    :raises BadMessageLogURL: if there is none. The text names the place where it was set.
    """
    return _checked(url, lambda chosen: _why_not(chosen, verb))


def path_of(url: str | None, verb: str) -> str:
    """Return the path of a message log's file; see `url_of`."""

    def why_not(chosen: str) -> str | None:
        if chosen.startswith(POSTGRES):
            return f"a message log in PostgreSQL can't be {verb} by this command: use pg_dump and pg_restore"
        return _why_not(chosen, verb)

    return sqlite_path(_checked(url, why_not))


def _why_not(url: str, verb: str) -> str | None:
    if url.startswith((SQLITE, *POSTGRES)):
        return None
    return f"a {url.rstrip(':')} message log can't be {verb} from outside the relay"


def _checked(url: str | None, why_not: Callable[[str], str | None]) -> str:
    place = VARIABLE if url is None else "--message-log"
    chosen = os.environ.get(VARIABLE, DEFAULT) if url is None else url
    try:
        check_url(chosen)
        if why := why_not(chosen):
            raise BadMessageLogURL(why)
    except BadMessageLogURL as error:
        raise BadMessageLogURL(f"{place}: {error}") from None
    return chosen


def run(work: Callable[[Progress], None], outcome: str | Callable[[], str]) -> int:
    """Run a command that can be interrupted until it commits; return its exit status.

    :param outcome: the result of an interruption, such as "no backup was made"; or what returns it.
    """

    def result() -> str:
        return outcome if isinstance(outcome, str) else outcome()

    progress = Progress(sys.stderr, time.monotonic)
    try:
        work(progress)
    except (BadMessageLogURL, LogUnavailable, CopyFailed, UnusableLog, Refused) as error:
        progress.end()
        complain(f"{error}; {result()}" if isinstance(error, DamagedLog) else str(error))
        return 1
    except Interrupted:
        progress.end()
        complain(f"interrupted; {result()}")
        raise
    return 0


def as_json(contents: Contents) -> dict[str, object]:
    """Return the summary of a message log for a program."""
    received_at = contents.last_received_at
    return {
        "messages": contents.messages,
        "lastReceivedAt": None if received_at is None else rfc3339(received_at),
        "schema": contents.schema,
        "bytes": contents.size,
    }


def described(contents: Contents) -> str:
    """Return the summary of a message log for a person."""
    last = "" if contents.last_received_at is None else f", the last one at {rfc3339(contents.last_received_at)}"
    mib = contents.size / 1024**2
    size = f"{mib:,.1f} MiB" if mib >= 1 else f"{mib * 1024:,.0f} KiB"
    return f"{contents.messages:,} message{'s' if contents.messages != 1 else ''} ({size}){last}"
