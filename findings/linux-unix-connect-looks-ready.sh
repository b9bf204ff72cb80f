#!/bin/bash
# Linux: a UNIX socket whose connect() gave EAGAIN looks ready, and is not connected
#
# Guess:     A non-blocking connect() to a busy listener is in progress: wait until poll() says writable, then look at
#            SO_ERROR, as with TCP.
# Behaviour: With the listener's backlog full, connect() on a UNIX socket fails with EAGAIN, and nothing is in progress.
#            poll() says writable at once and SO_ERROR is 0, but there is no peer, also after the listener has accepted
#            others. Only a new connect() connects.
# Matters:   A proxy or client that takes EAGAIN for "in progress" believes that it is connected and fails at its first
#            write. asyncio's open_unix_connection() of Python 3.11 returns such a transport. Under many connects at once,
#            raise the listener's backlog, and repeat a connect() that gave EAGAIN.
# Seen:      UNIX, backlog full: EAGAIN, writable True, SO_ERROR 0, peer ENOTCONN
#            UNIX, listener accepted all: writable True, SO_ERROR 0, peer ENOTCONN
#            UNIX, second connect(): done
#            asyncio.open_unix_connection(): first has a peer True, with the backlog full False
#            TCP: EINPROGRESS, writable True, SO_ERROR 0, peer known
# Versions:  Linux 6.18, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

timeout 60 "${PYTHON:-python3}" - "$folder/socket" <<'PYTHON'
import asyncio
import errno
import select
import socket
import sys
from contextlib import ExitStack


def connect(client, address):
    code = client.connect_ex(address)
    return errno.errorcode[code] if code else "done"


def state(client):
    """Give what an event loop looks at, and whether there is a peer."""
    poll = select.poll()
    poll.register(client, select.POLLOUT)
    writable = any(event & select.POLLOUT for _, event in poll.poll(1000))
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        client.getpeername()
    except OSError as failure:
        return f"writable {writable}, SO_ERROR {error}, peer {errno.errorcode[failure.errno]}"
    return f"writable {writable}, SO_ERROR {error}, peer known"


def non_blocking(family):
    client = stack.enter_context(socket.socket(family))
    client.setblocking(False)
    return client


async def open_with_asyncio(path):
    """Open connections that nobody accepts. Tell which have a peer."""
    with socket.socket(socket.AF_UNIX) as unattended:
        unattended.bind(path)
        unattended.listen(1)
        writers = [(await asyncio.open_unix_connection(path))[1] for _ in range(3)]
        peers = [bool(writer.get_extra_info("peername")) for writer in writers]
        for writer in writers:
            writer.transport.abort()
    return peers[0], peers[-1]


with ExitStack() as stack:
    listening = stack.enter_context(socket.socket(socket.AF_UNIX))
    listening.bind(sys.argv[1])
    listening.listen(1)
    waiting = 0
    while (first := connect(client := non_blocking(socket.AF_UNIX), sys.argv[1])) == "done" and waiting < 100:
        waiting += 1
    full = state(client)
    for _ in range(waiting):
        stack.enter_context(listening.accept()[0])
    accepted = state(client)
    second = connect(client, sys.argv[1])

    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    other = non_blocking(socket.AF_INET)
    begun = connect(other, tcp.getsockname())
    ready = state(other)

print(f"UNIX, backlog full: {first}, {full}")
print(f"UNIX, listener accepted all: {accepted}")
print(f"UNIX, second connect(): {second}")
opened = asyncio.run(asyncio.wait_for(open_with_asyncio(sys.argv[1] + "-2"), 30))
print("asyncio.open_unix_connection(): first has a peer {}, with the backlog full {}".format(*opened))
print(f"TCP: {begun}, {ready}")
unconnected = "writable True, SO_ERROR 0, peer ENOTCONN"
if not (
    (first, full, accepted, second) == ("EAGAIN", unconnected, unconnected, "done")
    and (begun, ready) == ("EINPROGRESS", "writable True, SO_ERROR 0, peer known")
    and opened == (True, False)
):
    sys.exit("The behaviour has changed.")
PYTHON
