#!/bin/bash
# Twisted: ten blocking calls in threads delay every new connection by host name
#
# Guess:     deferToThread() keeps blocking work away from the network: new connections do not wait for it.
# Behaviour: HostnameEndpoint (and so twisted.web's Agent and treq) looks a name up with getaddrinfo() in the same pool of ten
#            threads. With ten calls under way the look-up waits behind them, also for localhost and for an address such as
#            127.0.0.1. TCP4ClientEndpoint with an address needs no thread.
# Matters:   Ten slow database calls or file reads make all outgoing requests late, and their time-outs run meanwhile. Give
#            blocking work a ThreadPool of its own (deferToThreadPool).
# Seen:      idle, HostnameEndpoint to localhost: at once
#            ten calls of 2 s, HostnameEndpoint to localhost: after 2 s
#            ten calls of 2 s, HostnameEndpoint to 127.0.0.1: after 2 s
#            ten calls of 2 s, TCP4ClientEndpoint to 127.0.0.1: at once
# Versions:  Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import time

from twisted.internet import defer, task
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

SECONDS = 2


async def connect(reactor, endpoint, calls):
    """Give when the connection was made."""
    blocking = [deferToThread(time.sleep, SECONDS) for _ in range(calls)]
    began = time.monotonic()
    client = await connectProtocol(endpoint, Protocol())
    took = time.monotonic() - began
    client.transport.loseConnection()
    await defer.DeferredList(blocking)
    return "at once" if took < SECONDS * 0.5 else f"after {took:.0f} s"


async def main(reactor):
    listening = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
    port = listening.getHost().port
    by_name = HostnameEndpoint(reactor, "localhost", port)
    by_address = HostnameEndpoint(reactor, "127.0.0.1", port)
    idle = await connect(reactor, by_name, 0)
    name = await connect(reactor, by_name, 10)
    address = await connect(reactor, by_address, 10)
    direct = await connect(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port), 10)
    print("idle, HostnameEndpoint to localhost:", idle)
    print("ten calls of 2 s, HostnameEndpoint to localhost:", name)
    print("ten calls of 2 s, HostnameEndpoint to 127.0.0.1:", address)
    print("ten calls of 2 s, TCP4ClientEndpoint to 127.0.0.1:", direct)
    if [idle, name, address, direct] != ["at once", "after 2 s", "after 2 s", "at once"]:
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
