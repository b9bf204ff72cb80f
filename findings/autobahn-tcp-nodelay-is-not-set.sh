#!/bin/bash
# Autobahn: under Twisted, tcpNoDelay=True leaves TCP_NODELAY off
#
# Guess:     TCP_NODELAY is on: the option tcpNoDelay is True by default.
# Behaviour: connectionMade() reads the option before the protocol has copied it from its factory. The AttributeError is
#            caught and dropped, so TCP_NODELAY stays off. setProtocolOptions(tcpNoDelay=True) changes nothing.
# Matters:   With Nagle's algorithm a small frame waits until the peer has acknowledged the one before, which can take 40 ms. Call
#            self.transport.setTcpNoDelay(True) in onConnect().
# Seen:      by default: option True, TCP_NODELAY off
#            setProtocolOptions(tcpNoDelay=True): option True, TCP_NODELAY off
#            setTcpNoDelay(True) in onConnect(): option True, TCP_NODELAY on
# Versions:  autobahn 26.10.2, Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check autobahn==26.10.2 Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from twisted.internet import defer, task


class Server(WebSocketServerProtocol):
    def onOpen(self):
        on = "on" if self.transport.getTcpNoDelay() else "off"
        self.factory.opened.callback(f"option {self.tcpNoDelay}, TCP_NODELAY {on}")


class ServerThatSetsIt(Server):
    def onConnect(self, request):
        self.transport.setTcpNoDelay(True)


async def state(reactor, protocol, **options):
    factory = WebSocketServerFactory()
    factory.protocol = protocol
    factory.opened = defer.Deferred()
    factory.setProtocolOptions(**options)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    client = WebSocketClientFactory(f"ws://127.0.0.1:{port.getHost().port}")
    client.protocol = WebSocketClientProtocol
    connector = reactor.connectTCP("127.0.0.1", port.getHost().port, client)
    found = await factory.opened
    connector.disconnect()
    await port.stopListening()
    return found


async def main(reactor):
    default = await state(reactor, Server)
    with_option = await state(reactor, Server, tcpNoDelay=True)
    by_hand = await state(reactor, ServerThatSetsIt)
    print("by default:", default)
    print("setProtocolOptions(tcpNoDelay=True):", with_option)
    print("setTcpNoDelay(True) in onConnect():", by_hand)
    off, on = "option True, TCP_NODELAY off", "option True, TCP_NODELAY on"
    if [default, with_option, by_hand] != [off, off, on]:
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
