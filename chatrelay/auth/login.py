"""One login from start to end: from a client's SESSID to a user who is logged in, or to none.

It decides in which order the parts of auth/ and the connection hear of a login. It must not know WebSocket, frames or
how a verdict comes about: a client is a `LoginClient`, and verdicts come from an `Authenticator`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.auth.diagnosis import MissingCookie
from chatrelay.auth.rechecks import Rechecks
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import LoginThrottle
from chatrelay.interfaces import Abandons, Authenticator, Connection, TicketAuthenticator
from chatrelay.model import LoggedIn, Unavailable, Verdict
from chatrelay.relay.directory import Directory
from chatrelay.wire import codes

log = Logger("chatrelay.auth")


class LoginSession(Protocol):
    """The state of a client's login; `chatrelay.relay.session.Session` is one."""

    @property
    def logged_in(self) -> bool:
        """Whether the client is logged in."""

    def answered(self, verdict: Verdict) -> bool:
        """Take the verdict, enter a user in the directory, and send the client the auth-response.

        :returns: whether the client is now logged in as the user of this verdict.
        """


class LoginClient(Protocol):
    """A client that asks to be logged in.

    :ivar outgoing: its connection, as the directory knows it.
    """

    @property
    def outgoing(self) -> Connection: ...

    @property
    def session(self) -> LoginSession | None:
        """The state of its login."""

    def logged_in(self) -> None:
        """Apply a user's limits from here on: the client has just been logged in for the first time."""


class VerdictSource:
    """An authenticator of which a verdict always comes, whatever it does.

    :param authenticator: says whose session it is.
    :ivar give_up: called with what `ask` has returned, when nobody waits for the verdict any more.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._tickets = authenticator if isinstance(authenticator, TicketAuthenticator) else None
        self.give_up: Callable[[Deferred[Any]], None] = (
            authenticator.give_up if isinstance(authenticator, Abandons) else Deferred.cancel
        )

    def ask(self, sessid: str, is_ticket: bool = False) -> Deferred[Verdict]:
        """Ask whose session it is. Cancelling gives up; a verdict comes all the same."""
        authenticate = self._authenticator.authenticate
        if is_ticket and self._tickets is not None:
            authenticate = self._tickets.authenticate_ticket
        return maybeDeferred(authenticate, sessid).addErrback(_failed)


def _failed(failure: Failure) -> Verdict:
    if not failure.check(CancelledError):
        # The exception's own text may contain the session id, so only its type and its place are logged.
        log.critical(
            "an authenticator raised {kind}, which it must not do; it did so in:\n{frames}",
            kind=failure.value.__class__.__name__,
            frames="".join(traceback.format_tb(failure.getTracebackObject())),
        )
    return Unavailable("the authenticator failed")


class Logins:
    """Logs clients in.

    :param directory: the connections by user.
    :param index: the connections by session, to end those of a session from outside.
    :param throttle: asks for verdicts, within the limits of the client's address.
    :param rechecks: asks again about the sessions of users.
    :param missing_cookie: counts logins without a session cookie, to diagnose a wrong setup; None where none is used.
    :param auth_tickets: whether a SESSID that is no cookie is good for one request only.
    :param connections_per_user: how many connections a user may have; 0 for no limit.
    """

    def __init__(
        self,
        directory: Directory,
        index: SessionIndex,
        throttle: LoginThrottle,
        rechecks: Rechecks,
        missing_cookie: MissingCookie | None,
        auth_tickets: bool,
        connections_per_user: int,
    ) -> None:
        self.index = index
        self.throttle = throttle
        self.rechecks = rechecks
        self._directory = directory
        self._missing_cookie = missing_cookie
        self._auth_tickets = auth_tickets
        self._connections_per_user = connections_per_user
        self._pending: dict[Connection, Deferred[Verdict]] = {}

    def begin(self, client: LoginClient, address: str | None, sessid: str, is_cookie: bool) -> None:
        """Ask whose session it is; `_decided` goes on when the verdict comes.

        :param address: under which limits count the client; None where it has none.
        :param sessid: whose session is it?
        :param is_cookie: whether that is the session cookie of the client's handshake.
        """
        connection = client.outgoing
        self.index.asked(connection, sessid)
        if is_cookie and self._missing_cookie is not None:
            self._missing_cookie.came()
        is_ticket = self._auth_tickets and not is_cookie
        # A ticket is used up by its login, so nothing can be asked by it later, nor a session be ended by it.
        lasting = None if is_ticket else sessid
        pending = self._pending[connection] = self.throttle.ask(address, sessid, is_ticket)
        pending.addCallback(self._decided, client, lasting)

    def _decided(self, verdict: Verdict, client: LoginClient, sessid: str | None) -> None:
        """Let the client in, if the verdict says so.

        :param sessid: what the session is known by from here on; None where that is up to the verdict.
        """
        connection, session = client.outgoing, client.session
        assert session is not None
        self._pending.pop(connection, None)
        user, handle = (verdict.user, verdict.session) if isinstance(verdict, LoggedIn) else (None, None)
        if not self.index.answered(connection, user, handle):
            # The session or the user was ended while the verdict was pending, so the verdict may be out of date.
            connection.close(codes.ENDED)
            return
        was_logged_in = session.logged_in
        if not session.answered(verdict) or not isinstance(verdict, LoggedIn):
            return
        if not was_logged_in:
            client.logged_in()
            if self._missing_cookie is not None:
                self._missing_cookie.let_in()
        self.index.entered(connection, {name for name in (sessid, handle) if name is not None})
        self.rechecks.entered(connection, sessid if handle is None else handle, verdict)
        limit = self._connections_per_user
        if limit and len(self._directory.connections_of(verdict.user)) > limit:
            for oldest in self._directory.oldest_beyond(verdict.user, limit):
                oldest.close(codes.TOO_MANY_CONNECTIONS)

    def left(self, connection: Connection) -> None:
        """Forget a connection that is closing, and give up its pending login. Unknown connections are ignored."""
        pending = self._pending.pop(connection, None)
        if pending is not None:
            pending.cancel()
        self.index.left(connection)
        self.rechecks.left(connection)

    def __len__(self) -> int:
        """How many logins are pending."""
        return len(self._pending)
