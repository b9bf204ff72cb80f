"""The process's file descriptors: as many as it may have, and how many of them connections may take.

Every connection is one, and so is every file of the message log and every
question that is put to the webserver. Where connections had taken all of
them, the log could not be opened again, and nobody could log in.
"""

from __future__ import annotations

import resource
from contextlib import suppress

MOST = 1_048_576
"""Descriptors that are asked for at most: Linux's own bound for a process (fs.nr_open), unless somebody changed it."""

RESERVED = 48
"""Descriptors that are neither connections' nor for questions to the webserver: 5 for the message log, 16 for the ops
endpoint, some 15 for Python, twistd, the reactor and what it listens on, and the rest for name look-ups."""

QUESTIONS = 100
"""Questions to the webserver that have descriptors kept for them where `webserver-checks` is 0: no limit."""


def limit() -> int:
    """How many descriptors this process may have open now; `MOST` where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Raise the process's own limit (`RLIMIT_NOFILE`, soft) as far as it may be raised (hard), to `MOST` at most.

    It is the process's: a program that embeds chatrelay raises its own limit,
    or does not.

    :returns: the limit from now on. It is never lowered, and stays as it is where raising it is refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a sandbox, or a system whose hard limit is more than it grants
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def for_connections(descriptors: int, webserver_checks: int) -> int:
    """How many connections so many descriptors are enough for: 90 % of them, or fewer where that leaves too few.

    One is kept for each question to the webserver, and `RESERVED` for all
    else, but never more than half.

    :param webserver_checks: the option of that name.
    """
    reserved = max(descriptors // 10, RESERVED + (webserver_checks or QUESTIONS))
    return descriptors - min(reserved, descriptors // 2)
