#!/bin/bash
# Linux: TCP_USER_TIMEOUT ends a connection whose peer is alive and reads
#
# Guess:     TCP_USER_TIMEOUT ends a connection whose peer no longer answers. A peer that acknowledges every probe keeps
#            it.
# Behaviour: The timer also runs while the peer's receive window is closed. Acknowledgements of window probes do not stop
#            it. A peer that reads all the time, but slowly, opens its window only when a good part of its buffer is free,
#            so the connection ends with ETIMEDOUT.
# Matters:   A server that sets the option to find dead peers loses live ones with a slow reader: a phone, a busy tab, a
#            proxy that holds its own buffers back. The error looks like a broken network. TCP keepalive does not have this
#            effect.
# Seen:      keepalive of 3 s: open; the peer had read 4000 bytes after 10 s
#            TCP_USER_TIMEOUT of 3 s: ETIMEDOUT after 3.5 s; the last acknowledgement was 1.5 s old or newer all the time
# Versions:  Linux 6.18, Python 3.11
# Checked:   2026-11-27
set -euo pipefail

timeout 60 "${PYTHON:-python3}" - <<'PYTHON'
import errno
import socket
import struct
import sys
import time


def connect(options):
    """Give a sender whose buffers are full, and its receiver."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        sender = socket.create_connection(listening.getsockname())
        receiver = listening.accept()[0]
    for level, option, value in options:
        sender.setsockopt(level, option, value)
    sender.setblocking(False)
    receiver.settimeout(5)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        return sender, receiver


def age_of_last_acknowledgement(sender):
    """Give tcpi_last_ack_recv of struct tcp_info, in seconds."""
    return struct.unpack_from("I", sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 56)[0] / 1000


def watch(options):
    """Read 100 bytes each 0.25 s for 10 s. Give the sender's error, when it came, the oldest acknowledgement, the bytes."""
    sender, receiver = connect(options)
    start, oldest, count = time.monotonic(), 0.0, 0
    with sender, receiver:
        while time.monotonic() < start + 10:
            time.sleep(0.25)
            age = age_of_last_acknowledgement(sender)
            error = sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return errno.errorcode[error], time.monotonic() - start, oldest, count
            oldest = max(oldest, age)
            count += len(receiver.recv(100))
    return "open", 10.0, oldest, count


KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
]
kept, limited = watch(KEEPALIVE), watch([(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)])
print(f"keepalive of 3 s: {kept[0]}; the peer had read {kept[3]} bytes after 10 s")
print("TCP_USER_TIMEOUT of 3 s: {} after {:.1f} s; ".format(*limited), end="")
print(f"the last acknowledgement was {limited[2]:.1f} s old or newer all the time")
if not (kept[0] == "open" and limited[0] == "ETIMEDOUT" and limited[2] < 2.9):
    sys.exit("The behaviour has changed.")
PYTHON
