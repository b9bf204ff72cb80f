#!/bin/bash
# Twisted: the endpoint tls:8443 listens on port 443, and without a certificate
#
# Guess:     tls:8443 listens on port 8443, as tcp:8443 does, and fails without a certificate, as ssl:8443 does.
# Behaviour: The first argument of tls: is a folder of PEM files, and the port, 443 unless it is given, comes second. A
#            folder that is not there counts as an empty one: it listens, and every handshake fails.
# Matters:   Only clients notice a wrong folder name, or a port in its place. Check the folder first.
# Seen:      tls:8443 would listen on port 443
#            tls:nowhere:0 listens; a client's handshake ends with SSLError
# Versions:  Twisted 26.10.0, pyOpenSSL 26.4.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'Twisted[tls]==26.10.0' pyOpenSSL==26.4.0
cd "$folder"

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import socket
import ssl
import sys
from importlib.metadata import version

from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

print("Twisted", version("Twisted"), "pyOpenSSL", version("pyOpenSSL"))
found = []


class Ports:
    """As much of a reactor as an endpoint needs to say where it would listen."""

    def listenTCP(self, port, factory, **options):
        found.append(port)
        print("tls:8443 would listen on port", port)
        raise OSError("not here")


serverFromString(Ports(), "tls:8443").listen(Factory()).addErrback(lambda failure: failure.trap(OSError))


def shake_hands(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("::1", port), 10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost"):
                return "succeeds"
    except (ssl.SSLError, ConnectionResetError) as error:
        return f"ends with {type(error).__name__}"


def listening(port):
    return deferToThread(shake_hands, port.getHost().port)


def told(outcome):
    print("tls:nowhere:0 listens; a client's handshake", outcome)
    found.append(outcome)
    reactor.stop()


serving = serverFromString(reactor, r"tls:nowhere:0:interface=\:\:1").listen(Factory.forProtocol(Protocol))
serving.addCallback(listening).addBoth(told)
reactor.run()
if found[0] != 443 or not str(found[1]).startswith("ends with"):
    sys.exit("The behaviour has changed.")
PYTHON
