#!/bin/bash
# Autobahn: allowedOrigins=["https://example.com"] refuses the pages of https://example.com
#
# Guess:     The list has origins as browsers send them: https://example.com, without the default port.
# Behaviour: Autobahn adds the port to the origin of the handshake (443 for https) and compares that with the list, as a pattern.
#            An entry without a port matches no page. Only https://example.com:443 matches.
# Matters:   Every page is refused with 400. The error names the origin as it stands in the list, so the list looks right. A test
#            with a program that sends no Origin passes.
# Seen:      allowedOrigins https://example.com: https://example.com refused, without Origin accepted
#            allowedOrigins https://example.com:443: https://example.com accepted, without Origin accepted
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


class Client(WebSocketClientProtocol):
    def onOpen(self):
        self.factory.outcome.callback("accepted")

    def onClose(self, wasClean, code, reason):
        if not self.factory.outcome.called:
            self.factory.outcome.callback("refused" if "400" in reason else reason)


async def connect(reactor, allowed, origin):
    server = WebSocketServerFactory()
    server.protocol = WebSocketServerProtocol
    server.setProtocolOptions(allowedOrigins=[allowed])
    listening = reactor.listenTCP(0, server, interface="127.0.0.1")
    port = listening.getHost().port
    client = WebSocketClientFactory(f"ws://127.0.0.1:{port}", origin=origin)
    client.protocol = Client
    client.outcome = defer.Deferred()
    connector = reactor.connectTCP("127.0.0.1", port, client)
    outcome = await client.outcome
    connector.disconnect()
    await listening.stopListening()
    return outcome


async def main(reactor):
    found = []
    for allowed in ("https://example.com", "https://example.com:443"):
        page = await connect(reactor, allowed, "https://example.com")
        program = await connect(reactor, allowed, None)
        print(f"allowedOrigins {allowed}: https://example.com {page}, without Origin {program}")
        found.append((page, program))
    if found != [("refused", "accepted"), ("accepted", "accepted")]:
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
