#!/bin/bash
# Twisted: a transport that is paused is not told that its peer has gone
#
# Guess:     pauseProducing() holds back data. connectionLost() is called all the same when the peer closes or resets.
# Behaviour: The reactor stops watching a paused socket that has nothing to write. Neither an end (FIN) nor a reset (RST) is
#            noticed until resumeProducing() or a write.
# Matters:   A server that pauses slow or noisy clients keeps the connections, file descriptors and state of those that have
#            gone, for as long as it pauses them. Bound the pause, or resume from time to time to look.
# Seen:      not paused, end: told ConnectionDone within 1 s
#            not paused, reset: told ConnectionLost within 1 s
#            paused, end: told nothing within 1 s, ConnectionDone after resumeProducing()
#            paused, reset: told nothing within 1 s, ConnectionLost after resumeProducing()
# Versions:  Twisted 26.10.0 (epoll reactor), Python 3.11, Linux 6.18
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import socket
import struct

from twisted.internet import defer, task
from twisted.internet.protocol import Factory, Protocol

RESET = struct.pack("ii", 1, 0)


class Server(Protocol):
    end = "nothing"

    def connectionMade(self):
        self.factory.connected.callback(self)

    def connectionLost(self, reason):
        self.end = reason.type.__name__


async def end_of(reactor, paused, reset):
    """Give what the server was told within a second, and after it has resumed reading."""
    factory = Factory.forProtocol(Server)
    factory.connected = defer.Deferred()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    client = socket.create_connection(("127.0.0.1", port.getHost().port))
    server = await factory.connected
    if paused:
        server.transport.pauseProducing()
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    await task.deferLater(reactor, 1)
    told = server.end
    server.transport.resumeProducing()
    await task.deferLater(reactor, 0.5)
    await port.stopListening()
    return told, server.end


async def main(reactor):
    as_described = True
    for paused in (False, True):
        for reset in (False, True):
            told, later = await end_of(reactor, paused, reset)
            name = ("paused" if paused else "not paused") + (", reset" if reset else ", end")
            print(f"{name}: told {told} within 1 s" + (f", {later} after resumeProducing()" if paused else ""))
            end = "ConnectionLost" if reset else "ConnectionDone"
            as_described &= (told, later) == ("nothing" if paused else end, end)
    if not as_described:
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
