#!/bin/bash
# treq: timeout= ends when the headers have arrived, and the body may take forever
#
# Guess:     treq.get(url, timeout=1) bounds the request, its body included, or at least each wait for more data.
# Behaviour: The time-out ends with the response's headers. content(), text() and json() then wait without a limit for a server
#            that sends its headers at once and its body slowly, or never.
# Matters:   A health check or a login that has a "timeout" hangs on a slow site. Put request and body in one coroutine, and call
#            addTimeout() on its Deferred.
# Seen:      timeout=1, headers after 2 s: cancelled after 1 s
#            timeout=1, body after 2 s: complete after 2 s
#            addTimeout(1) around request and body, body after 2 s: cancelled after 1 s
# Versions:  treq 26.7.0, Twisted 26.10.0, Python 3.11
# Checked:   2026-11-28
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check treq==26.7.0 Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import time

import treq
from twisted.internet import defer, error, task
from twisted.web.client import ResponseFailed
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

SERVER_SECONDS = 2
CANCELLED = (defer.CancelledError, defer.TimeoutError, error.TimeoutError, ResponseFailed)


class Slow(Resource):
    """Wait before the headers or after them."""

    isLeaf = True

    def __init__(self, reactor, headers_first):
        super().__init__()
        self.reactor, self.headers_first = reactor, headers_first

    def render_GET(self, request):
        request.notifyFinish().addErrback(lambda failure: timer.cancel())
        if self.headers_first:
            request.write(b"begun, ")
        timer = self.reactor.callLater(SERVER_SECONDS, lambda: (request.write(b"done"), request.finish()))
        return NOT_DONE_YET


async def get(url, **arguments):
    response = await treq.get(url, persistent=False, **arguments)
    return await response.content()


async def outcome(request):
    began = time.monotonic()
    try:
        await request
        word = "complete"
    except CANCELLED:
        word = "cancelled"
    return f"{word} after {time.monotonic() - began:.0f} s"


async def main(reactor):
    root = Resource()
    root.putChild(b"headers", Slow(reactor, False))
    root.putChild(b"body", Slow(reactor, True))
    port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}"
    headers = await outcome(get(f"{url}/headers", timeout=1))
    body = await outcome(get(f"{url}/body", timeout=1))
    around = await outcome(defer.ensureDeferred(get(f"{url}/body")).addTimeout(1, reactor))
    await port.stopListening()
    print("timeout=1, headers after 2 s:", headers)
    print("timeout=1, body after 2 s:", body)
    print("addTimeout(1) around request and body, body after 2 s:", around)
    if [headers, body, around] != ["cancelled after 1 s", "complete after 2 s", "cancelled after 1 s"]:
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
