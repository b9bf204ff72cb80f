"""Ports for programs that have to be told one before they listen.

A port that the kernel chooses is from the range of its outgoing connections. It may be taken again, by any of the
clients, before the program listens. So ports are chosen below that range here. The tests use this, too.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket

FIRST, COUNT = 10_000, 20_000
"""The ports to choose from. Linux takes those of outgoing connections from 32,768 on, unless it is set otherwise."""

_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
# Each process begins at another place, and no port comes twice in one.
_PORTS = itertools.count(random.Random(f"{os.getpid()} {_WORKER}").randrange(COUNT))


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens, and that this process has not returned before."""
    for number in itertools.islice(_PORTS, COUNT):
        port = FIRST + number % COUNT
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port
    raise OSError(errno.EADDRINUSE, "every port is in use")
