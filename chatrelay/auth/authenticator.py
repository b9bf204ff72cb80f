"""The authenticator that asks the site's session page whose session it is.

`SessionPageAuthenticator` limits how many requests are pending, sends one request for all logins by the same session,
gives up requests that take too long, and stops asking a site that keeps failing (`chatrelay.auth.breaker`). This module
must not know HTTP (`chatrelay.auth.client`), nor what a verdict means to a connection (`chatrelay.auth.login`).
"""

from __future__ import annotations

import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS

from chatrelay.auth.breaker import Breaker, BreakerState
from chatrelay.auth.client import SessionPage
from chatrelay.auth.diagnosis import DeniedLogins, probable_cause, remedy
from chatrelay.auth.redaction import redacted
from chatrelay.auth.verdicts import NO_WORDS, ConnectFailed, InvalidAnswer, SuspectDenial
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict

log = Logger("chatrelay.auth")

MAX_QUEUE = 5000
"""The most requests that may wait for their turn. A site that serves 32 at once, in 50 ms each, serves them in 8 s."""

MAX_KEPT_CONNECTIONS = 100
"""The most connections to the site that are kept open, if there is no limit on the number of requests."""

STOPPING = "the relay is stopping"

STARTUP_SESSID = "chatrelay-at-start-"
"""The start of the session id in the startup check; random characters follow, so that nobody has it."""


class SessionPageAuthenticator:
    """A `chatrelay.interfaces.Authenticator` that asks the site by HTTP.

    :param reactor: for connections and time.
    :param url: the http or https URL to which to post.
    :param format: ``form`` posts ``SESSID=…`` as a form, ``json`` an object.
    :param secret: sent as a bearer token, so that the site recognises the relay; None sends none.
    :param timeout: seconds from the request to the last byte of the response; 0 for no limit.
    :param checks: how many requests may be pending at once; 0 for no limit.
    :param queue_timeout: seconds for which a request may wait for its turn; 0 for no limit.
    :param queue: how many requests may wait for their turn.
    :param answer_size: bytes that the body of a response may have after decoding; 0 for no limit.
    :param breaker_failures: how many failures in a row stop the requests (`chatrelay.auth.breaker`); 0 for no breaker.
    :param breaker_wait: seconds until one request may be sent as a probe; 0 for no wait.
    :param breaker_longest_wait: the most seconds to which that wait doubles with each failed probe; 0 for no limit.
    :param tls_policy: how the site's certificate is verified; by default against the system's authorities.
    :param host: sent as ``Host``, and over https the name that the certificate must be for; by default the host of
        `url`.
    :param headers: further headers of each request, such as ``X-Forwarded-Proto: https``.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        timeout: float,
        checks: int,
        queue_timeout: float,
        answer_size: int,
        breaker_failures: int,
        breaker_wait: float,
        breaker_longest_wait: float,
        format: str = "form",
        secret: str | None = None,
        queue: int = MAX_QUEUE,
        tls_policy: IPolicyForHTTPS | None = None,
        host: str | None = None,
        headers: Iterable[str] = (),
    ) -> None:
        self._site = urlsplit(url)._replace(query="", fragment="").geturl()
        connections, body_limit = checks or MAX_KEPT_CONNECTIONS, answer_size or sys.maxsize
        self._page = SessionPage(reactor, url, format, secret, connections, body_limit, tls_policy, host, headers)
        self._url = url
        self._format = format
        self._denied_so_far = DeniedLogins(secrets.token_bytes())
        self._checks = checks
        self._max_queue = queue
        self._breaker: Breaker[_Request] = Breaker(breaker_failures, breaker_wait, breaker_longest_wait)
        self._breaker_failures = breaker_failures
        self._reactor = reactor
        # Every request that waits or is pending and may be shared, by its SESSID.
        self._shared: dict[str, _Request] = {}
        self._queue: OrderedDict[_Request, None] = OrderedDict()
        self._pending: set[_Request] = set()
        self._queue_timer = DeadlineTimer(reactor, queue_timeout, self._queued_too_long)
        self._response_timer = DeadlineTimer(reactor, timeout, _Request.run_out_of_time)
        self._startup_timer: DeadlineTimer[Deferred[Verdict]] = DeadlineTimer(
            reactor, timeout, self._startup_check_timed_out
        )
        self._is_queue_logged = False
        self._startup_check: Deferred[None] | None = None
        self._has_startup_check_timed_out = False
        self._is_startup_check_over = False
        self._is_closed = False

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Ask the site about `sessid`; if that fails, the verdict is `Unavailable`.

        If a request about the same session is pending, its verdict is shared: the site gets one POST. No verdict is
        remembered. While the breaker is open, nobody waits: one request is sent as the probe, and all others get
        `Unavailable` at once.
        """
        return self._authenticate(sessid, is_ticket=False)

    def authenticate_ticket(self, sessid: str) -> Deferred[Verdict]:
        """Ask as `authenticate` does. The request is never shared or repeated, because a ticket is valid once."""
        return self._authenticate(sessid, is_ticket=True)

    def _authenticate(self, sessid: str, is_ticket: bool) -> Deferred[Verdict]:
        request = None if is_ticket else self._shared.get(sessid)
        if request is not None and self._breaker.state is BreakerState.CLOSED:
            return request.join()
        must_wait = 0 < self._checks <= len(self._pending)
        if must_wait and len(self._queue) >= self._max_queue:
            return succeed(self._no_turn())
        request = _Request(sessid, is_ticket, self._given_up)
        if not self._breaker.admit(request, self._reactor.seconds()):
            return succeed(self._refused())
        if not is_ticket:
            self._shared[sessid] = request
        verdict = request.join()
        if must_wait:
            self._queue[request] = None
            self._queue_timer.start(request)
        else:
            self._send(request)
        return verdict

    def give_up(self, verdict: Deferred[Any]) -> None:
        """Note that nobody waits for a verdict any more.

        A site that works on a request usually does not stop when the request is cancelled. So a request that was sent
        stays pending until its response comes or its time is over, and then the verdict comes. Later logins by the same
        session send another request, because this verdict may be out of date by then. A request that waits for
        its turn is given up at once. (Cancelling the verdict gives up either kind at once.)

        :param verdict: what `authenticate` or `authenticate_ticket` returned.
        """
        if not isinstance(verdict, _SharedVerdict) or verdict.request.asking is None:
            verdict.cancel()
        elif verdict.request.give_up(verdict):
            self._stop_sharing(verdict.request)

    # The startup check ---------------------------------------------------------

    def startup_check(self) -> None:
        """Ask once about a session id that nobody has, and log a warning unless it is denied.

        This finds a mistake in the URL or in the page before it keeps the first visitor from logging in. The check is
        not a login: it waits for no turn, and its result does not count for the breaker.
        """
        self._is_closed = self._is_startup_check_over = False
        self._startup_check = Deferred.fromCoroutine(self._check_once())

    async def _check_once(self) -> None:
        sessid = STARTUP_SESSID + secrets.token_hex(8)
        asking = self._page.startup_check(sessid)
        self._startup_timer.start(asking)
        self._has_startup_check_timed_out = False
        try:
            verdict = await asking
        except (CancelledError, InvalidAnswer) as error:
            if self._has_startup_check_timed_out:
                self._log_invalid_startup_answer(self._timed_out(self._startup_timer), sessid)
            elif isinstance(error, SuspectDenial) and not self._is_startup_check_over:
                self._log_suspect_startup_denial(error, sessid)
            elif isinstance(error, InvalidAnswer) and not self._is_startup_check_over:
                self._log_invalid_startup_answer(error, sessid)
        else:
            if isinstance(verdict, LoggedIn):
                log.warn(
                    "the session page at {url} accepts a session id that the relay made up: so anybody can log in "
                    "here. Check that auth-url names the right page, and what that page answers",
                    url=self._site,
                )
            else:
                log.info(
                    "the session page at {url} denied a session id that the relay made up, as it should",
                    url=self._site,
                )
        finally:
            self._startup_timer.stop(asking)

    def _startup_check_timed_out(self, asking: Deferred[Verdict]) -> None:
        self._has_startup_check_timed_out = True
        asking.cancel()

    def _log_invalid_startup_answer(self, error: InvalidAnswer, sessid: str) -> None:
        log.warn(
            "the startup check of the session page at {url} found that nobody can log in: {what}. {remedy}. The relay "
            "continues, and asks the page at each login",
            url=self._site,
            what=redacted(error, sessid),
            remedy=remedy(self._url, self._format, error.status, error.location, error.quoted),
        )

    def _log_suspect_startup_denial(self, error: SuspectDenial, sessid: str) -> None:
        assert error.status is not None
        words = redacted(error, sessid)
        log.warn(
            "the startup check of the session page at {url} got status {status} {words} for a session id that the "
            "relay made up. That is a denial, but if the page sends it to everybody, nobody can log in. {cause}. "
            "{silence}",
            url=self._site,
            status=error.status,
            words="without a text" if words == NO_WORDS else f"({words})",
            cause=probable_cause(error.status, error.quoted),
            silence='To avoid this warning, deny with {"loggedin": false}',
        )

    def stop_startup_check(self) -> None:
        """Give up `startup_check`, and log nothing about it: the site may be stopping together with the relay."""
        self._is_startup_check_over = True
        if self._startup_check is not None:
            self._startup_check.cancel()

    def close(self) -> Deferred[None]:
        """Give up all requests, and close the kept connections to the site."""
        self._is_closed = True
        self.stop_startup_check()
        while self._queue:
            waiting = self._next()
            self._stop_sharing(waiting)
            waiting.answer(Unavailable(STOPPING))
        for request in tuple(self._pending):
            assert request.asking is not None
            request.asking.cancel()
        return self._page.close()

    # Turns ---------------------------------------------------------------------

    def _send(self, request: _Request) -> None:
        """Send a request whose turn has come."""
        self._pending.add(request)
        self._response_timer.start(request)
        request.asking = self._page.ask(request.sessid, request.is_ticket)
        request.asking.addBoth(self._answered, request)

    def _answered(self, verdict: Verdict | Failure, request: _Request) -> None:
        """Give the result of a request that was sent to the logins that wait for it."""
        self._response_timer.stop(request)
        self._pending.remove(request)
        self._stop_sharing(request)
        # Twisted reports a cancelled DNS lookup as a failed one. So the error of a cancelled request is ignored.
        if request.is_out_of_time:
            verdict = self._failed(request, self._timed_out(self._response_timer))
        elif not isinstance(verdict, Failure):
            if self._breaker.answered():
                log.warn("the session page at {url} answers again", url=self._site)
            self._count(request, verdict)
        elif isinstance(verdict.value, InvalidAnswer) and request.is_awaited and not self._is_closed:
            is_suspect = not isinstance(verdict.value, ConnectFailed)
            verdict = self._failed(request, verdict.value, is_suspect)
        else:
            self._breaker.given_up(request)
            if verdict.check(InvalidAnswer):
                verdict = Unavailable(STOPPING)  # or nobody waits for it any more
        if self._queue and len(self._pending) < self._checks:
            self._send(self._next())
        elif not self._queue:
            self._is_queue_logged = False
        request.answer(verdict)

    def _count(self, request: _Request, verdict: Verdict) -> None:
        """Count the verdict, and log a warning if the site denies everybody."""
        so_far = self._denied_so_far
        if isinstance(verdict, LoggedIn):
            so_far.logged_in()
        elif isinstance(verdict, Denied) and not request.is_own and so_far.denied(request.sessid, verdict.status):
            log.warn(
                "the session page at {url} denied all of the first {logins} logins (of {sessions}), {how}; nobody has "
                "been let in since the relay started. {cause}",
                logins=so_far.logins,
                sessions="1 session" if so_far.sessions == 1 else f"{so_far.sessions} sessions",
                url=self._site,
                how=so_far.how(),
                cause=so_far.probable_cause(self._format),
            )

    def _next(self) -> _Request:
        """Remove and return the request that has waited longest in the queue."""
        request, _ = self._queue.popitem(last=False)
        self._queue_timer.stop(request)
        return request

    def _failed(self, request: _Request, error: InvalidAnswer, is_suspect: bool = False) -> Unavailable:
        """Note that the site sent no response to a request, or an invalid one.

        :param is_suspect: whether the session id may be the cause.
        """
        # While the breaker is open, a failed probe is not logged: the operator knows already.
        what = redacted(error, request.sessid)
        unavailable = self._unavailable(what, is_news=self._breaker.state is BreakerState.CLOSED)
        if is_suspect and not request.is_own:
            own = _Request(secrets.token_hex(16), True, self._given_up, is_own=True)
            if self._breaker.suspect(request, own):
                own.join().addErrback(Failure.trap, CancelledError)  # when the relay stops
                self._send(own)
            return unavailable
        if self._breaker.failed(request, self._reactor.seconds()):
            log.warn(
                "the session page at {url} has failed {failures} times in a row: until it answers again, the relay "
                "asks it about one login at a time, and refuses all others at once",
                url=self._site,
                failures=self._breaker_failures,
            )
            while self._queue:
                waiting = self._next()
                self._stop_sharing(waiting)
                waiting.answer(self._refused())
        return unavailable

    def _timed_out(self, timer: DeadlineTimer[Any]) -> InvalidAnswer:
        return InvalidAnswer(f"no complete response within {timer.seconds:g} s")

    def _refused(self) -> Unavailable:
        return Unavailable(f"it has failed {self._breaker_failures} times in a row (breaker-failures)")

    def _queued_too_long(self, request: _Request) -> None:
        if request in self._queue:  # else all who waited for it have given up meanwhile
            del self._queue[request]
            self._stop_sharing(request)
            self._breaker.given_up(request)
            request.answer(self._no_turn())

    def _given_up(self, request: _Request) -> None:
        """Note that nobody waits for a request any more."""
        self._stop_sharing(request)
        if request.asking is not None:
            request.asking.cancel()
        else:
            del self._queue[request]
            self._queue_timer.stop(request)
            self._breaker.given_up(request)

    def _stop_sharing(self, request: _Request) -> None:
        # After a request is given up, another one about the same session may be shared.
        if self._shared.get(request.sessid) is request:
            del self._shared[request.sessid]

    def _no_turn(self) -> Unavailable:
        # Log this once until the queue is empty: many logins must not cause as many log messages.
        is_news, self._is_queue_logged = not self._is_queue_logged, True
        return self._unavailable("too many requests were waiting for it (webserver-checks)", is_news)

    def _unavailable(self, what: str, is_news: bool) -> Unavailable:
        """Return the verdict if the site could not be asked, and log that if it is news."""
        if is_news:
            log.warn("the session page at {url} could not be asked: {what}", url=self._site, what=what)
        return Unavailable(what)


class _SharedVerdict(Deferred[Verdict]):
    """The verdict of a request, for one of the logins that wait for it."""

    def __init__(self, request: _Request) -> None:
        super().__init__(request.leave)
        self.request = request


class _Request:
    """A request about one session, and the Deferreds that wait for its verdict.

    :ivar sessid: the SESSID that it is about.
    :ivar is_ticket: whether the SESSID is valid for this request only.
    :ivar is_own: whether it is the relay's own, about a session that nobody has (`Breaker.suspect`).
    :ivar asking: fires with the result; None until the request is sent.
    :ivar is_out_of_time: whether the time for a response has passed.
    """

    __slots__ = ("_given_up", "_leaving", "_waiting", "asking", "is_out_of_time", "is_own", "is_ticket", "sessid")

    def __init__(
        self, sessid: str, is_ticket: bool, given_up: Callable[[_Request], None], is_own: bool = False
    ) -> None:
        self.sessid = sessid
        self.is_ticket = is_ticket
        self.is_own = is_own
        self.asking: Deferred[Any] | None = None
        self.is_out_of_time = False
        self._given_up = given_up
        self._waiting: dict[Deferred[Verdict], None] = {}
        self._leaving: set[Deferred[Verdict]] = set()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the verdict."""
        return bool(self._waiting)

    def join(self) -> Deferred[Verdict]:
        """Wait for the verdict. Cancelling the Deferred ends the wait, and the last one gives the request up."""
        verdict = _SharedVerdict(self)
        self._waiting[verdict] = None
        return verdict

    def give_up(self, one: Deferred[Verdict]) -> bool:
        """Note that nobody needs `one` any more; return whether that is true of all that wait."""
        self._leaving.add(one)
        return self._leaving >= self._waiting.keys()

    def answer(self, verdict: Verdict | Failure) -> None:
        """Fire all waiting Deferreds with the verdict."""
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            if not one.called:  # else the callback of another one has cancelled it
                one.callback(verdict)

    def run_out_of_time(self) -> None:
        """Cancel the request: its response has not come in time."""
        self.is_out_of_time = True
        assert self.asking is not None
        self.asking.cancel()

    def leave(self, one: Deferred[Verdict]) -> None:
        """Remove a Deferred that was cancelled; if no other waits, give the request up."""
        if one in self._waiting:
            del self._waiting[one]
            if not self._waiting:
                self._given_up(self)
