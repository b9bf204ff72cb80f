"""One login from start to end, from a client's SESSID to the verdict, and how many connections a user may have.

`Logins.begin` notes that the login is pending, and has the throttle ask for a verdict. When the verdict comes,
`Logins._decided` checks that the session was not ended meanwhile. Then it gives the verdict to the client's
`LoginSession`, which answers the client. If that logs the client in, the session is indexed and re-checked from then
on. `Logins.resume` begins a login by a resume token instead: the token takes the place of the verdict.

This module must not know WebSocket, frames, or how a verdict is made: a client is a `LoginClient`, and an
`Authenticator` gives verdicts.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.auth.diagnosis import MissingCookie
from chatrelay.auth.rechecks import Rechecks
from chatrelay.auth.resume import Grant
from chatrelay.auth.resumption import Resumption
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

    @property
    def takes_tokens(self) -> bool:
        """Whether the client's dialect has resume tokens."""

    def send_token(self, token: str) -> None:
        """Send the client a new resume token, which replaces the one it has."""

    def resume_failed(self) -> None:
        """Act on a resume token that can't be used: log in by the rest of the auth-request, or refuse it."""

    def prepare(self, verdict: Verdict) -> Deferred[None] | None:
        """Begin what must be done before `answered` is called with this verdict.

        :returns: a Deferred that fires when it is done, and never fails; None if there is nothing to do.
        """

    def answered(self, verdict: Verdict) -> bool:
        """Act on the verdict: add a user to the directory, and send the client the auth-response.

        :returns: whether the client is now logged in as the user of this verdict.
        """


class LoginClient(Protocol):
    """A client that asks to be logged in."""

    @property
    def outgoing(self) -> Connection:
        """The client's connection, as it is in the directory."""

    @property
    def session(self) -> LoginSession | None:
        """The state of the client's login."""

    def apply_user_limits(self) -> None:
        """Apply a user's limits from now on: the client has logged in for the first time."""


@attrs.define
class _Asking:
    """The pending requests about one session.

    :ivar since: when the first of them began, in seconds since 1970 UTC.
    :ivar count: how many there are.
    """

    since: float
    count: int = 0


class VerdictSource:
    """Asks an authenticator, and returns a verdict even if it fails. A `LoggedIn` says when the site was asked.

    An authenticator may share one request among all that ask about a session. So a request that joins pending ones has
    the time of the first of them: what the site said may be as old as that.

    :param authenticator: says whose session it is.
    :param now: the wall clock, in seconds since 1970 UTC.
    :ivar give_up: called with a Deferred that `ask` returned, when nobody waits for its verdict any more.
    """

    def __init__(self, authenticator: Authenticator, now: Callable[[], float]) -> None:
        self._authenticator = authenticator
        self._now = now
        self._pending: dict[str, _Asking] = {}  # by SESSID
        self._tickets = authenticator if isinstance(authenticator, TicketAuthenticator) else None
        self.give_up: Callable[[Deferred[Any]], None] = (
            authenticator.give_up if isinstance(authenticator, Abandons) else Deferred.cancel
        )

    def ask(self, sessid: str, is_ticket: bool = False) -> Deferred[Verdict]:
        """Ask whose session it is. Cancelling gives up the request, and the Deferred still fires with a verdict."""
        authenticate = self._authenticator.authenticate
        if is_ticket and self._tickets is not None:
            authenticate = self._tickets.authenticate_ticket
        asking = self._pending.get(sessid)
        if asking is None:
            asking = self._pending[sessid] = _Asking(self._now())
        asking.count += 1
        return maybeDeferred(authenticate, sessid).addErrback(_failed).addCallback(self._answered, sessid, asking)

    def _answered(self, verdict: Verdict, sessid: str, asking: _Asking) -> Verdict:
        asking.count -= 1
        if not asking.count:
            del self._pending[sessid]
        return attrs.evolve(verdict, asked_at=asking.since) if isinstance(verdict, LoggedIn) else verdict


def _failed(failure: Failure) -> Verdict:
    if not failure.check(CancelledError):
        # The exception's text may contain the session id, so only its type and its traceback are logged.
        log.critical(
            "an authenticator raised {kind}, which it must not do; it did so in:\n{frames}",
            kind=failure.value.__class__.__name__,
            frames="".join(traceback.format_tb(failure.getTracebackObject())),
        )
    return Unavailable("the authenticator failed")


@attrs.frozen(eq=False)
class _Login:
    """A pending login.

    :ivar sessid: the SESSID that names the session from now on; None if only the verdict can name it.
    :ivar cookie: the SESSID of the session cookie, if the login is by cookie; else None.
    :ivar grant: what the resume token says, if the login is by one; else None.
    """

    client: LoginClient
    sessid: str | None = attrs.field(repr=False)
    cookie: str | None = attrs.field(repr=False)
    grant: Grant | None = None


class Logins:
    """Logs clients in.

    :param directory: the connections by user.
    :param index: the connections by session, so that a session can be ended from outside.
    :param throttle: asks for verdicts, within the limits of the client's address.
    :param rechecks: asks again about the sessions of users who are logged in.
    :param missing_cookie: counts logins without a session cookie, to diagnose a wrong setup; None if none is used.
    :param auth_tickets: whether a SESSID that is not from the cookie is a ticket, valid for one request only.
    :param connections_per_user: how many connections a user may have; 0 for no limit.
    :param resumption: gives resume tokens, and opens them; None if there are none.
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
        resumption: Resumption | None = None,
    ) -> None:
        self.index = index
        self.throttle = throttle
        self.rechecks = rechecks
        self._directory = directory
        self._missing_cookie = missing_cookie
        self._auth_tickets = auth_tickets
        self._connections_per_user = connections_per_user
        self.resumption = resumption
        self._pending: dict[Connection, Deferred[Any]] = {}

    def begin(self, client: LoginClient, address: str | None, sessid: str, is_cookie: bool) -> None:
        """Begin a login; `_decided` finishes it when the verdict comes.

        :param address: the address under which limits count the client; None if it has none.
        :param sessid: the SESSID that the client logs in by.
        :param is_cookie: whether `sessid` is from the session cookie of the client's handshake.
        """
        connection = client.outgoing
        self.index.asked(connection, sessid)
        if is_cookie and self._missing_cookie is not None:
            self._missing_cookie.login_with_cookie()
        is_ticket = self._auth_tickets and not is_cookie
        # The login uses up a ticket, so the ticket can neither be re-checked, nor name a session that is to be ended.
        login = _Login(client, None if is_ticket else sessid, sessid if is_cookie else None)
        pending = self._pending[connection] = self.throttle.ask(address, sessid, is_ticket)
        pending.addCallback(self._verdict_came, login)

    def resume(self, client: LoginClient, token: str, cookie: str | None) -> None:
        """Begin a login by a resume token. If it can't be used, for whatever reason, the client's session is told so.

        The limits of logins do not count it: nobody can guess a token, and the site is not asked.

        :param token: what the client has sent as its token.
        :param cookie: the SESSID of the session cookie in the client's handshake; None if there is none.
        """
        resumption, connection = self.resumption, client.outgoing
        grant = None
        if resumption is not None:
            grant = resumption.open(token, None if cookie is None else self.index.digest(cookie))
        if resumption is None or grant is None:
            assert client.session is not None
            client.session.resume_failed()
            return
        # A session without a name, such as that of a ticket, gets one that nothing else has.
        self.index.resuming(connection, grant.names[0] if grant.names else grant.connection)
        looking = self._pending[connection] = resumption.find_revoked(grant)
        looking.addCallback(self._looked, _Login(client, None, None, grant))

    def _looked(self, is_revoked: bool | None, login: _Login) -> Deferred[None] | None:
        """Log a client in by a resume token, unless its session is revoked.

        :param is_revoked: None if that can't be found out now.
        """
        connection, session, grant = login.client.outgoing, login.client.session, login.grant
        assert session is not None
        assert grant is not None
        if connection not in self._pending:
            return None  # it is closing, so the look was given up
        if is_revoked:
            del self._pending[connection]
            self.index.answered(connection, None)
            session.resume_failed()
            return None
        if is_revoked is None:
            # The token may be usable, so the client must not drop it.
            return self._verdict_came(Unavailable("the message log can't be read"), login)
        return self._verdict_came(LoggedIn(grant.uid, session=grant.handle), login)

    def _verdict_came(self, verdict: Verdict, login: _Login) -> Deferred[None] | None:
        """Decide about the login, at once or when the client's session is prepared for it."""
        assert login.client.session is not None
        preparing = login.client.session.prepare(verdict)
        if preparing is None:
            self._decided(verdict, login)
            return None
        # Until then the login is pending, so it can be cancelled, and its session can be ended.
        return preparing.addCallback(lambda _: self._decided(verdict, login))

    def _decided(self, verdict: Verdict, login: _Login) -> None:
        """Log the client in if the verdict says so."""
        client, grant = login.client, login.grant
        connection, session = client.outgoing, client.session
        assert session is not None
        self._pending.pop(connection, None)
        user, named = (verdict.user, verdict.session) if isinstance(verdict, LoggedIn) else (None, None)
        if not self.index.answered(connection, user, named):
            # This session, or all sessions of the user, were ended meanwhile, so the verdict may be out of date.
            connection.close(codes.ENDED)
            return
        if grant is not None and self.resumption is not None and not self.resumption.is_usable(grant):
            session.resume_failed()  # meanwhile it expired, or a re-check has found that the session is denied
            return
        was_logged_in = session.logged_in
        handle = login.sessid if named is None else named
        resumption = self.resumption if session.takes_tokens else None
        wait: float | None = None
        if resumption is not None and isinstance(verdict, LoggedIn) and not was_logged_in:
            # Before the answer, which contains the token.
            wait = self._hold(resumption, session, verdict, login, handle)
        if not session.answered(verdict) or not isinstance(verdict, LoggedIn):
            if resumption is not None and not was_logged_in:
                resumption.disconnected(connection)
            return
        if not was_logged_in:
            client.apply_user_limits()
            if self._missing_cookie is not None:
                self._missing_cookie.logged_in()
        elif resumption is not None:
            wait = self._hold(resumption, session, verdict, login, handle)
        if grant is None:
            self.index.entered(connection, {name for name in (login.sessid, named) if name is not None})
            self.rechecks.entered(connection, handle, verdict, wait)
        else:
            self._replace(connection, grant, wait)
        limit = self._connections_per_user
        if limit and len(self._directory.connections_of(verdict.user)) > limit:
            for oldest in self._directory.oldest_beyond(verdict.user, limit):
                oldest.close(codes.TOO_MANY_CONNECTIONS)

    def _hold(
        self, resumption: Resumption, session: LoginSession, verdict: LoggedIn, login: _Login, handle: str | None
    ) -> float | None:
        """Give the client's connection tokens from now on.

        :param handle: the SESSID about which re-checks ask; None if there is none.
        :returns: the seconds until the next re-check; None if there is none.
        """
        connection, grant = login.client.outgoing, login.grant
        if grant is not None:
            is_rechecked = grant.handle is not None and self.rechecks.are_on
            wait = resumption.wait(grant) if is_rechecked else None
            resumption.resumed(connection, session, grant, wait)
            return wait
        wait = self.rechecks.wait_after(handle, verdict)
        sessids = dict.fromkeys(name for name in (login.sessid, verdict.session) if name is not None)
        names = [self.index.digest(sessid) for sessid in sessids]
        cookie = None if login.cookie is None else self.index.digest(login.cookie)
        resumption.logged_in(connection, session, verdict.uid, handle, names, cookie, wait, verdict.asked_at)
        return wait

    def _replace(self, connection: Connection, grant: Grant, wait: float | None) -> None:
        """Put a connection that has logged in by a token in the place of the one that got the token.

        :param wait: the seconds until the next re-check; None if there is none.
        """
        assert self.resumption is not None
        self.index.resumed(connection, grant.names)
        if wait is not None and grant.handle is not None:
            self.rechecks.resumed(connection, grant.handle, grant.user, wait)
        replaced = self.resumption.holder(grant)
        if replaced is not None:
            replaced.close(codes.REPLACED)

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection that is closing, and give up its pending login. Unknown connections are ignored."""
        pending = self._pending.pop(connection, None)
        if pending is not None:
            pending.cancel()
        self.index.disconnected(connection)
        self.rechecks.disconnected(connection)
        if self.resumption is not None:
            self.resumption.disconnected(connection)

    def __len__(self) -> int:
        """Return how many logins are pending."""
        return len(self._pending)
