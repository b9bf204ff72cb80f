"""Free ports for programs that must get a port number before they listen.

A port that the kernel chooses is from its range for outgoing connections. Before the program listens, any outgoing
connection may take that port. So this module chooses ports below that range. The tests use it, too.
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
# Each process begins at a different port, and returns no port twice.
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
