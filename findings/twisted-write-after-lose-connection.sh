#!/bin/bash
# Twisted: TCP sends what is written after loseConnection(), TLS discards it
#
# Guess:     A write after loseConnection() has the same result on every stream transport.
# Behaviour: Plain TCP appends the bytes to its buffer and sends them before it closes. TLS drops them without an
#            error or a log line.
# Matters:   A last message that the tests see over TCP never reaches a client over TLS. The reverse, too: a bug that
#            writes after closing shows only where TLS ends in a proxy.
# Seen:      TCP: b'before after'
#            TLS: b'before '
# Versions:  Twisted 26.10.0 (epoll reactor), pyOpenSSL 26.4.0, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'Twisted[tls]==26.10.0' pyOpenSSL==26.4.0 trustme==1.2.1

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import trustme
from twisted.internet import defer, ssl, task
from twisted.internet.protocol import ClientFactory, Factory, Protocol

AUTHORITY = trustme.CA()
CERTIFICATE = ssl.PrivateCertificate.loadPEM(AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())


class Server(Protocol):
    def connectionMade(self):
        self.transport.write(b"before ")
        self.transport.loseConnection()
        self.transport.write(b"after")


class Client(Protocol):
    received = b""

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.factory.done.callback(self.received)


def factory_of_clients():
    factory = ClientFactory.forProtocol(Client)
    factory.done = defer.Deferred()
    return factory


async def over_tcp(reactor):
    port = reactor.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")
    factory = factory_of_clients()
    reactor.connectTCP("127.0.0.1", port.getHost().port, factory)
    received = await factory.done
    await port.stopListening()
    return received


async def over_tls(reactor):
    port = reactor.listenSSL(0, Factory.forProtocol(Server), CERTIFICATE.options(), interface="127.0.0.1")
    factory = factory_of_clients()
    trust = ssl.optionsForClientTLS("localhost", trustRoot=ssl.Certificate.loadPEM(AUTHORITY.cert_pem.bytes()))
    reactor.connectSSL("127.0.0.1", port.getHost().port, factory, trust)
    received = await factory.done
    await port.stopListening()
    return received


async def main(reactor):
    tcp = await over_tcp(reactor)
    tls = await over_tls(reactor)
    print(f"TCP: {tcp}\nTLS: {tls}")
    if not (tcp == b"before after" and tls == b"before "):
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
