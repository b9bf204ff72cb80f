"""Clients that send the same bytes repeatedly, as fast as their limits allow, in a separate process.

    python -m tests.trials.flood PORT SECONDS FILE...

Each FILE is JSON: the address of its connections, their SESSIDs (or none, for visitors), and for each of them the bytes
of one message in hexadecimal. Each connection sends its bytes ten times a second, or as often as the relay reads them.
The program prints a line when all are connected, and one at its end with the number of complete sends.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import v1
from tests.support.frames import frame
from tests.trials.crowd import Crowd, opened

EVERY = 0.1
"""Seconds between two messages of a connection."""


class Sender:
    """One connection, and what it has sent."""

    def __init__(self, connection: socket.socket, data: bytes, first_at: float) -> None:
        self.socket = connection
        self.sent = 0
        self._data = data
        self._due = first_at
        self._rest = memoryview(b"")

    def go_on(self, now: float) -> None:
        """Send what is due, as far as the relay accepts it, and discard what was received."""
        if not self._rest and now >= self._due:
            self._rest = memoryview(self._data)
            self._due = max(self._due + EVERY, now - EVERY)
        if self._rest:
            try:
                self._rest = self._rest[self.socket.send(self._rest) :]
            except BlockingIOError:
                return
            self.sent += not self._rest


def connect(crowd: Crowd, plans: Sequence[dict[str, object]]) -> list[Sender]:
    """Connect all, and log users in."""
    senders: list[Sender] = []
    begin = time.monotonic()
    for plan in plans:
        sessids, messages = plan["sessids"], plan["data"]
        assert isinstance(sessids, list) and isinstance(messages, list)
        for number, data in enumerate(messages):
            one = opened(crowd, str(plan["address"]))
            if sessids:
                one.sendall(frame(v1.encoded(v1.login(sessids[number]))))
                answer = one.recv(4096)
                assert b'"response":true' in answer, answer
            one.setblocking(False)
            # Not all at once: their turns are spread over the time between two.
            senders.append(Sender(one, bytes.fromhex(data), begin + EVERY * (len(senders) % 50) / 50))
    return senders


def main(port: str, seconds: str, *files: str) -> int:
    """Flood a relay."""
    plans = [json.loads(Path(file).read_text()) for file in files]
    with Crowd(int(port)) as crowd:
        senders = connect(crowd, plans)
        print("connected", flush=True)
        until = time.monotonic() + float(seconds)
        while (now := time.monotonic()) < until:
            readable, _, _ = select.select([sender.socket for sender in senders], [], [], 0.002)
            for one in readable:
                if not one.recv(65536):
                    print("closed", flush=True)
                    return 1
            for sender in senders:
                sender.go_on(now)
    print(sum(sender.sent for sender in senders), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
