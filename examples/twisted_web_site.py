"""chatrelay as a page of an existing `twisted.web` site: one port for both, and the login of the site.

    python examples/twisted_web_site.py [port]

The site keeps its sessions in a dict and their ids in an HttpOnly cookie. The browser sends the cookie when the page
connects to /chat, so the script of the page needs no SESSID. `origin` keeps pages of other sites out.
"""

from __future__ import annotations

import json
import secrets
import sys
from importlib.resources import files
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from twisted.web.util import redirectTo

from chatrelay import ChatRelayService, Config, Denied, LoggedIn, Unavailable, build

COOKIE = "session"


class Sessions(dict[str, str]):
    """The sessions of the site: id -> user. The relay asks them, too (`chatrelay.Authenticator`)."""

    def authenticate(self, sessid: str) -> Deferred[LoggedIn | Denied | Unavailable]:
        """Say whose session it is."""
        return succeed(LoggedIn(self[sessid]) if sessid in self else Denied())


def session_id(request: Request) -> str:
    """Give the id in the visitor's cookie."""
    return (request.getCookie(COOKIE.encode()) or b"").decode("latin-1")


def is_foreign(request: Request) -> bool:
    """Say whether a page of another site has sent this form. Such a form must not log anybody in or out."""
    return request.getHeader("origin") not in (None, f"http://{request.getHeader('host')}")


class FrontPage(Resource):
    """The chat page for users who are logged in, and the login form for everybody else."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions

    def render_GET(self, request: Request) -> bytes:
        """Show the page."""
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        request.setHeader(b"content-security-policy", b"default-src 'none'; script-src 'self'; connect-src 'self'")
        user = self._sessions.get(session_id(request), "").encode()
        return CHAT_PAGE % (user, user) if user else LOG_IN_PAGE


class WhoAmI(Resource):
    """Tell the script of the page who is logged in now: another user may have logged in in another tab."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__()
        self._sessions = sessions

    def render_GET(self, request: Request) -> bytes:
        """Answer as the site answers the relay."""
        request.setHeader(b"content-type", b"application/json")
        user = self._sessions.get(session_id(request))
        return json.dumps({"loggedin": user is not None, "uID": user}).encode()


class LogOut(Resource):
    """End a session, and the chat with it."""

    def __init__(self, sessions: Sessions, relay: ChatRelayService) -> None:
        super().__init__()
        self._sessions = sessions
        self._relay = relay

    def render_POST(self, request: Request) -> bytes:
        """Take the form."""
        if is_foreign(request):
            request.setResponseCode(403)
            return b"that form is not ours"
        self.end(session_id(request))
        return bytes(redirectTo(b"/", request))

    def end(self, sessid: str) -> None:
        """End a session, if there is one: first here, then in the chat, or the chat could log in by it again."""
        self._sessions.pop(sessid, None)
        self._relay.end_session(sessid)


class LogIn(Resource):
    """Open a session. A real site asks for a password here."""

    def __init__(self, sessions: Sessions, log_out: LogOut) -> None:
        super().__init__()
        self._sessions = sessions
        self._log_out = log_out

    def render_POST(self, request: Request) -> bytes:
        """Take the form."""
        if is_foreign(request):
            request.setResponseCode(403)
            return b"that form is not ours"
        (name,) = request.args.get(b"name", [b""])[:1]
        if name not in (b"alice", b"bo"):
            request.setResponseCode(403)
            return b"there are alice and bo"
        # Pages that are open in this browser must not continue as the user who was logged in before.
        self._log_out.end(session_id(request))
        sessid = secrets.token_urlsafe()
        self._sessions[sessid] = name.decode()
        request.addCookie(COOKIE, sessid, path="/", httpOnly=True, sameSite="lax")
        return bytes(redirectTo(b"/", request))


class Script(Resource):
    """A script of the chat page."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self._text = text

    def render_GET(self, request: Request) -> bytes:
        """Show it."""
        request.setHeader(b"content-type", b"text/javascript; charset=utf-8")
        return self._text


def main(reactor: Any, port: str = "8000") -> Deferred[None]:
    """Run the site until Ctrl-C."""
    sessions = Sessions()
    origin = f"http://127.0.0.1:{port}"
    # The relay opens no port of its own (listen=()): the site has one already.
    config = Config(listen=(), session_cookie=COOKIE, origin=(origin,), message_log="memory:")
    relay = build(config, reactor, authenticator=sessions)

    root = Resource()
    root.putChild(b"", FrontPage(sessions))
    log_out = LogOut(sessions, relay)
    root.putChild(b"login", LogIn(sessions, log_out))
    root.putChild(b"logout", log_out)
    root.putChild(b"whoami", WhoAmI(sessions))
    root.putChild(b"chat.js", Script(SCRIPT))
    root.putChild(b"chatrelay.js", Script(files("chatrelay").joinpath("static", "chatrelay.js").read_bytes()))
    root.putChild(b"chat", relay.websocket_resource())  # the one line that a site needs

    relay.startService()
    reactor.addSystemEventTrigger("before", "shutdown", relay.stopService)
    reactor.listenTCP(int(port), Site(root), interface="127.0.0.1")
    print(f"The site is at {origin}/, the relay at ws://127.0.0.1:{port}/chat.", flush=True)
    return Deferred()  # it never fires: the site runs until it is stopped


LOG_IN_PAGE = b"""<!DOCTYPE html><title>Log in</title>
<form method="post" action="/login"><button name="name" value="alice">I am alice</button>
<button name="name" value="bo">I am bo</button></form>
"""

CHAT_PAGE = b"""<!DOCTYPE html><title>Chat</title><script src="/chat.js" type="module"></script>
<p>You are %s. <output></output></p>
<form data-user="%s"><input name="to" placeholder="To: alice or bo" required>
<input name="content" placeholder="Message" required> <button>Send</button></form>
<pre></pre>
<form method="post" action="/logout"><button>Log out</button></form>
"""

SCRIPT = b"""import { ChatClient } from "/chatrelay.js";
const form = document.querySelector("form");
const show = (text) => document.querySelector("pre").append(text, "\\n");
const client = new ChatClient("/chat", { user: form.dataset.user, whoami: "/whoami" });
client.addEventListener("message", ({ message }) => show(`${message.fromuID}: ${message.content}`));
client.addEventListener("state", ({ state }) => { document.querySelector("output").value = state.name; });
client.connect();
form.onsubmit = async (event) => {
  event.preventDefault();
  const { to, content } = form.elements;
  const { result, reason } = await client.send(to.value, content.value);
  show(`to ${to.value}: ${content.value} (${reason ?? result})`);
};
"""

if __name__ == "__main__":
    react(main, sys.argv[1:2])
