#!/bin/bash
# Linux: the send queue of a UNIX socket is not counted in bytes sent
#
# Guess:     ioctl TIOCOUTQ (SIOCOUTQ) gives the bytes that the peer has not yet taken, on a UNIX socket as on TCP.
# Behaviour: On TCP it is that number. On a UNIX stream socket it is the memory that the kernel charges for the buffers,
#            so ten messages of 100 bytes count for several thousand. A buffer counts in full until its last byte is read.
# Matters:   A limit on what a slow client may have unread is reached several times too early for small messages when the
#            server listens on a UNIX socket behind a proxy. A pace computed from the queue moves in jumps.
# Seen:      TCP: what the peer can read and TIOCOUTQ add up to all that was sent: True
#            UNIX: sent ten times 100, peer can read 1000, TIOCOUTQ 7680
#            UNIX: peer has read 1, TIOCOUTQ 7680
#            UNIX: peer has read 1000, TIOCOUTQ 0
# Versions:  Linux 6.18, Python 3.11
# Checked:   2026-11-27
set -euo pipefail

timeout 60 "${PYTHON:-python3}" - <<'PYTHON'
import fcntl
import socket
import struct
import sys
import termios
import time


def number(request, connection):
    return struct.unpack("i", fcntl.ioctl(connection, request, bytes(4)))[0]


def send_over_tcp():
    """Fill the buffers. Tell whether both ends' numbers add up to what was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = socket.create_connection(listening.getsockname())
        receiver = listening.accept()[0]
    sent = 0
    with sender, receiver:
        sender.setblocking(False)
        try:
            while True:
                sent += sender.send(bytes(100_000))
        except BlockingIOError:
            pass
        for _ in range(50):
            readable, queued = number(termios.FIONREAD, receiver), number(termios.TIOCOUTQ, sender)
            if queued and readable + queued == sent:
                return True
            time.sleep(0.1)
    return False


adds_up = send_over_tcp()
print("TCP: what the peer can read and TIOCOUTQ add up to all that was sent:", adds_up)
sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
with sender, receiver:
    for _ in range(10):
        sender.send(bytes(100))
    readable, queued = number(termios.FIONREAD, receiver), number(termios.TIOCOUTQ, sender)
    receiver.recv(1)
    after_one = number(termios.TIOCOUTQ, sender)
    receiver.recv(1000)
    after_all = number(termios.TIOCOUTQ, sender)
print(f"UNIX: sent ten times 100, peer can read {readable}, TIOCOUTQ {queued}")
print(f"UNIX: peer has read 1, TIOCOUTQ {after_one}")
print(f"UNIX: peer has read 1000, TIOCOUTQ {after_all}")
if not (adds_up and readable == 1000 and queued > 2000 and after_one == queued and after_all == 0):
    sys.exit("The behaviour has changed.")
PYTHON
