#!/bin/bash
# Klein: a client that disconnects cancels the handler at its await
#
# Guess:     A handler that has begun runs to its end, as it does under twisted.web, where only the answer is lost.
# Behaviour: Klein cancels the handler's Deferred as soon as the connection ends. The coroutine gets CancelledError at the
#            await where it stands, and so does whatever it waits for.
# Matters:   A handler that writes in two steps with an await between them is stopped after the first step by a visitor who
#            reloads the page.
# Seen:      Klein: began, CancelledError
#            twisted.web: began, finished
# Versions:  klein 24.8.0, Twisted 26.10.0, Python 3.11
# Checked:   2026-11-27
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check klein==24.8.0 Twisted==26.10.0

timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
from klein import Klein
from twisted.internet import defer, task
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site


class Steps:
    """Two steps with an await between them, which the test holds."""

    def __init__(self):
        self.seen = []
        self.began = defer.Deferred()
        self.ended = defer.Deferred()
        self.between = defer.Deferred()

    async def run(self):
        self.seen.append("began")
        self.began.callback(None)
        try:
            await self.between
            self.seen.append("finished")
        except defer.CancelledError:
            self.seen.append("CancelledError")
            raise
        finally:
            self.ended.callback(None)
        return b"done"


def with_klein(steps, gone):
    app = Klein()

    @app.route("/")
    async def handler(request):
        request.notifyFinish().addErrback(lambda _: gone.callback(None))
        return await steps.run()

    return app.resource()


def with_twisted(steps, gone):
    class Page(Resource):
        isLeaf = True

        def render_GET(self, request):
            request.notifyFinish().addErrback(lambda _: gone.callback(None))
            defer.ensureDeferred(steps.run())
            return NOT_DONE_YET

    return Page()


async def disconnect_between(reactor, page):
    steps, gone = Steps(), defer.Deferred()
    port = reactor.listenTCP(0, Site(page(steps, gone)), interface="127.0.0.1")
    client = Protocol()
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), client)
    client.transport.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await steps.began
    client.transport.loseConnection()
    await gone
    await task.deferLater(reactor, 0)
    if not steps.between.called:
        steps.between.callback(None)
    await steps.ended
    await port.stopListening()
    return steps.seen


async def main(reactor):
    klein = await disconnect_between(reactor, with_klein)
    twisted = await disconnect_between(reactor, with_twisted)
    print("Klein:", ", ".join(klein))
    print("twisted.web:", ", ".join(twisted))
    if not (klein == ["began", "CancelledError"] and twisted == ["began", "finished"]):
        raise SystemExit("The behaviour has changed.")


task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
PYTHON
