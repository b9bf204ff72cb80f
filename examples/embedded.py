"""chatrelay inside a Twisted application that itself knows who is logged in.

    python examples/embedded.py [port]

No HTTP request is made: `Sessions` says whose session it is. Messages are kept until the program ends
(`message_log="memory:"`). To keep them longer, name a file: `"sqlite:messages.sqlite3"`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import react

from chatrelay import Config, Denied, LoggedIn, Unavailable, build


class Sessions:
    """An authenticator (`chatrelay.Authenticator`) with a dict of sessions: SESSID -> uID."""

    def __init__(self, users: Mapping[str, str | int]) -> None:
        self._users = users

    def authenticate(self, sessid: str) -> Deferred[LoggedIn | Denied | Unavailable]:
        """Say whose session it is, in a Deferred: an application may have to ask its database first."""
        return succeed(LoggedIn(self._users[sessid]) if sessid in self._users else Denied())


def main(reactor: Any, port: str = "8080") -> Deferred[None]:
    """Run the application until Ctrl-C."""
    users = {"alice-session": 1, "bo-session": 2}
    config = Config(listen=(f"tcp:{port}:interface=127.0.0.1",), message_log="memory:")
    relay = build(config, reactor, authenticator=Sessions(users))

    application = MultiService()
    relay.setServiceParent(application)
    # The rest of the application is a service beside the relay: here, a heartbeat.
    TimerService(60.0, print, "still here", flush=True).setServiceParent(application)

    application.startService()
    reactor.addSystemEventTrigger("before", "shutdown", application.stopService)
    print(f"The relay listens on ws://127.0.0.1:{port}/ for the sessions {', '.join(users)}.", flush=True)
    return Deferred()  # it never fires: the application runs until it is stopped


if __name__ == "__main__":
    react(main, sys.argv[1:2])
