"""chatrelay as a page of an existing `twisted.web` site: one port for both, and the site's own log-in.

    python examples/twisted_web_site.py [port]

The site has its sessions in a dict and their ids in an HttpOnly cookie. The browser sends the cookie along when the
page connects to /chat, so the page's script needs no SESSID, and `origin` keeps other sites' pages out.
"""

from __future__ import annotations

import secrets
import sys
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from twisted.web.util import redirectTo

from chatrelay import Config, Denied, LoggedIn, Unavailable, build

COOKIE = "session"


class Sessions(dict[str, str]):
    """The site's sessions: id -> user. Also what the relay asks (`chatrelay.Authenticator`)."""

    def authenticate(self, sessid: str) -> Deferred[LoggedIn | Denied | Unavailable]:
        """Say whose session it is."""
        return succeed(LoggedIn(self[sessid]) if sessid in self else Denied())


class FrontPage(Resource):
    """The chat page for those who are logged in, the log-in form for everybody else."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions

    def render_GET(self, request: Request) -> bytes:
        """Show the page."""
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        request.setHeader(b"content-security-policy", b"default-src 'none'; script-src 'self'; connect-src 'self'")
        user = self._sessions.get((request.getCookie(COOKIE.encode()) or b"").decode("latin-1"))
        return LOG_IN_PAGE if user is None else CHAT_PAGE % user.encode()


class LogIn(Resource):
    """Opens a session. An existing site asks for a password here."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions

    def render_POST(self, request: Request) -> bytes:
        """Take the form."""
        # Another site's page must not log a visitor in here as somebody else.
        if request.getHeader("origin") not in (None, f"http://{request.getHeader('host')}"):
            request.setResponseCode(403)
            return b"that form is not ours"
        (name,) = request.args.get(b"name", [b""])[:1]
        if name not in (b"alice", b"bo"):
            request.setResponseCode(403)
            return b"there are alice and bo"
        sessid = secrets.token_urlsafe()
        self._sessions[sessid] = name.decode()
        request.addCookie(COOKIE, sessid, path="/", httpOnly=True, sameSite="lax")
        return bytes(redirectTo(b"/", request))


class Script(Resource):
    """The chat page's script."""

    def render_GET(self, request: Request) -> bytes:
        """Show it."""
        request.setHeader(b"content-type", b"text/javascript; charset=utf-8")
        return SCRIPT


def main(reactor: Any, port: str = "8000") -> Deferred[None]:
    """Run the site until Ctrl-C."""
    sessions = Sessions()
    origin = f"http://127.0.0.1:{port}"
    # No port of its own (listen=()): the site has one already.
    config = Config(listen=(), session_cookie=COOKIE, origin=(origin,), message_log="memory:")
    relay = build(config, reactor, authenticator=sessions)

    root = Resource()
    root.putChild(b"", FrontPage(sessions))
    root.putChild(b"login", LogIn(sessions))
    root.putChild(b"chat.js", Script())
    root.putChild(b"chat", relay.websocket_resource())  # the one line that a site needs

    relay.startService()
    reactor.addSystemEventTrigger("before", "shutdown", relay.stopService)
    reactor.listenTCP(int(port), Site(root), interface="127.0.0.1")
    print(f"The site is at {origin}/, the relay at ws://127.0.0.1:{port}/chat.", flush=True)
    return Deferred()  # which never fires: the site runs until it is stopped


LOG_IN_PAGE = b"""<!DOCTYPE html><title>Log in</title>
<form method="post" action="/login"><button name="name" value="alice">I am alice</button>
<button name="name" value="bo">I am bo</button></form>
"""

CHAT_PAGE = b"""<!DOCTYPE html><title>Chat</title><script src="/chat.js" defer></script>
<p>You are %s.</p>
<form><input name="to" placeholder="To: alice or bo" required> <input name="content" placeholder="Message" required>
<button>Send</button></form>
<pre></pre>
"""

SCRIPT = b"""const socket = new WebSocket(`ws://${location.host}/chat`);
const form = document.querySelector("form");
let id = 0;
socket.onopen = () => socket.send(JSON.stringify({ type: "auth-request" })); // the session cookie says who we are
socket.onmessage = (event) => document.querySelector("pre").append(event.data, "\\n");
form.onsubmit = (event) => {
  event.preventDefault();
  const message = { timeStamp: Date.now(), touID: form.elements.to.value, content: form.elements.content.value };
  socket.send(JSON.stringify({ type: "message-send-request", id: ++id, message }));
};
"""

if __name__ == "__main__":
    react(main, sys.argv[1:2])
