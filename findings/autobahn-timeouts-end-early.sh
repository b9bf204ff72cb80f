#!/bin/bash
# Autobahn: a time-out of one second may end a connection after a tenth of one
#
# Guess:     openHandshakeTimeout=1 gives a client one second, give or take the precision of a timer.
# Behaviour: Autobahn lets its timers fire at whole seconds of the clock, and rounds down. A time-out of 1 s lasts between 0 and
#            1 s, one of 5 s between 4 and 5 s.
# Matters:   With a time-out of 1 s some clients are cut at once and others are not, whatever they do. Set one second more.
# Seen:      handshake time-out of 1 s, clients that come at .1, .5, .9 of a second: cut after 0.9, 0.5, 0.1 s
#            handshake time-out of 2 s, clients that come at .1, .5, .9 of a second: cut after 1.9, 1.5, 1.1 s
# Versions:  autobahn 26.10.2, txaio 26.6.1, Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check autobahn==26.10.2 txaio==26.6.1 Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import time

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import defer, task
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

COME_AT = (0.1, 0.5, 0.9)


class SilentClient(Protocol):
    def __init__(self):
        self.cut = defer.Deferred()

    def connectionLost(self, reason):
        self.cut.callback(None)


async def cut_after(reactor, port, fraction):
    await task.deferLater(reactor, (fraction - reactor.seconds()) % 1)
    began = time.monotonic()
    client = SilentClient()
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), client)
    await client.cut
    return time.monotonic() - began


async def main(reactor):
    as_described = True
    for timeout in (1, 2):
        factory = WebSocketServerFactory(reactor=reactor)
        factory.protocol = WebSocketServerProtocol
        factory.setProtocolOptions(openHandshakeTimeout=timeout)
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        times = [await cut_after(reactor, port.getHost().port, fraction) for fraction in COME_AT]
        await port.stopListening()
        fractions = ", ".join(f"{fraction:.1f}"[1:] for fraction in COME_AT)
        seconds = ", ".join(f"{seconds:.1f}" for seconds in times)
        print(f"handshake time-out of {timeout} s, clients that come at {fractions} of a second: cut after {seconds} s")
        expected = [timeout - fraction for fraction in COME_AT]
        as_described &= all(abs(a - b) < 0.2 for a, b in zip(times, expected, strict=True))
    if not as_described:
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
