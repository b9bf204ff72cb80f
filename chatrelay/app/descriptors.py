"""The limit of file descriptors of the process, and how many of them connections may use.

Each connection, each file of the message log and each request to the session page is a descriptor. If connections used
all of them, the message log could not be reopened and nobody could log in. This module only counts and raises the
limit; `chatrelay.limits.admission` refuses connections.
"""

from __future__ import annotations

import resource
from contextlib import suppress

MAX_DESCRIPTORS = 1_048_576
"""The highest limit that is requested: Linux's default limit for a process (fs.nr_open)."""

RESERVED_DESCRIPTORS = 48
"""Descriptors kept for everything but connections and requests to the session page: 5 for the message log, 16 for the
ops endpoint, about 15 for Python, twistd, the reactor and its listening sockets, and the rest for name look-ups."""

RESERVED_REQUESTS = 100
"""The descriptors kept for requests to the session page if ``webserver-checks`` is 0, which means no limit."""


def limit() -> int:
    """Return how many descriptors this process may have open; `MAX_DESCRIPTORS` if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Raise the soft limit of this process (`RLIMIT_NOFILE`) to the hard limit, but not above `MAX_DESCRIPTORS`.

    It changes the whole process, so a program that embeds chatrelay has to raise its own limit.

    :returns: the limit from now on. It is never lowered, and does not change if the system refuses to raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # in a sandbox, or where the system grants less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def max_connections(descriptors: int, webserver_checks: int) -> int:
    """Return for how many connections the descriptors are enough: 90 % of them, or fewer.

    One descriptor is kept for each request to the session page, and `RESERVED_DESCRIPTORS` for everything else, but
    never more than half of all descriptors.

    :param webserver_checks: the option of that name; 0 for no limit.
    """
    reserved = max(descriptors // 10, RESERVED_DESCRIPTORS + (webserver_checks or RESERVED_REQUESTS))
    return descriptors - min(reserved, descriptors // 2)
