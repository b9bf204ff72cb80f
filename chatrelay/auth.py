"""Asking the webserver whose session it is.

`WebserverAuthenticator` posts a SESSID to the site and makes a verdict of
what comes back. Bytes and time come in here; what a verdict means to a
connection does not (`chatrelay.session` knows). A SESSID appears in the body
of the request and nowhere else.
"""

from __future__ import annotations

import html
import json
import re
import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from http.cookiejar import CookieJar
from typing import Any, Generic
from urllib.parse import quote, quote_plus, urlsplit
from weakref import WeakSet

import attrs
import msgspec
from hyperlink import EncodedURL
from treq import collect
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, ParseError, Request
from twisted.web.client import (
    URI,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from chatrelay import wire
from chatrelay.breaker import Breaker, State
from chatrelay.config import Config
from chatrelay.interfaces import Denied, LoggedIn, Unavailable, Verdict, is_expiry
from chatrelay.limits import Deadlines, Key

TWISTED_NAMES = (
    "HTTP11ClientProtocol.dataReceived",
    "HTTP11ClientProtocol.request",
    "HTTPConnectionPool._factory",
    "HTTPConnectionPool._factory.buildProtocol",
    "HTTPConnectionPool.getConnection",
    "HTTPConnectionPool.persistent",
)
"""What we use of `twisted.web.client` that its documentation does not promise; a test looks them up.

So are the names of `twisted.web._newclient`, which are imported, and `_quiescentCallback`, which each factory has.
"""

MAX_AROUND = 16 * 1024
"""Bytes around the body of the webserver's answer: its head, the sizes of its chunks, and what goes before it."""

MAX_TOLD = 200
"""Characters of an answer that the operator is told, at most."""

HIDDEN = "<SESSID>"
"""What stands for a session id in what the operator is told."""

PIECE = 8
"""Characters of a session id that are told nowhere; fewer are of no use to anybody, and are in many a word."""

SLICE = 512
"""Bytes of an encoded answer that are decoded at once; deflate makes at most some thousand times as many of them."""

MAX_QUEUE = 5000
"""Questions that may wait for their turn. A site that answers 32 at once in 50 ms is through with them in 8 s."""

DEFAULTS = Config()

AT_START = "chatrelay-at-start-"
"""What the session id begins with that a first look asks about; random characters follow, so that nobody has it."""

DENIALS = (401, 403)
"""Statuses that mean: this session is not logged in."""


class WebserverAuthenticator:
    """A `chatrelay.interfaces.Authenticator` that asks the site by HTTP.

    :param reactor: for connections and time.
    :param url: where to post, http or https.
    :param format: ``form`` posts ``SESSID=…`` as a form, ``json`` an object.
    :param secret: sent as a bearer token, so that the site knows the asker; None sends none.
    :param timeout: seconds from the POST to the last byte of the answer; 0 for no limit.
    :param checks: how many questions may be out at once; 0 for no limit.
    :param queue_timeout: seconds a question may wait for its turn; 0 for no limit.
    :param queue: how many questions may wait for their turn.
    :param answer_size: bytes that the body of an answer may have, decoded; 0 for no limit.
    :param breaker_failures: how many failures in a row stop the questions (`chatrelay.breaker`); 0 for no breaker.
    :param breaker_wait: seconds until one of them may go out as a probe; 0 for none.
    :param breaker_longest_wait: seconds up to which that doubles with each probe that fails; 0 for no limit.
    :param tls_policy: how the site's certificate is verified; by default against the system's authorities.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        format: str = "form",
        secret: str | None = None,
        timeout: float = DEFAULTS.webserver_timeout,
        checks: int = DEFAULTS.webserver_checks,
        queue_timeout: float = DEFAULTS.login_timeout,
        queue: int = MAX_QUEUE,
        answer_size: int = DEFAULTS.webserver_answer_size,
        breaker_failures: int = DEFAULTS.breaker_failures,
        breaker_wait: float = DEFAULTS.breaker_wait,
        breaker_longest_wait: float = DEFAULTS.breaker_longest_wait,
        tls_policy: IPolicyForHTTPS | None = None,
    ) -> None:
        self._site = urlsplit(url)._replace(query="", fragment="").geturl()
        self._body, content_type = FORMATS[format]
        self._webserver = _Webserver(
            reactor, url, timeout, answer_size or sys.maxsize, tls_policy or BrowserLikePolicyForHTTPS()
        )
        self._headers = Headers({b"accept": [b"application/json"], b"content-type": [content_type]})
        self._headers.addRawHeader(b"host", self._webserver.host)
        if secret is not None:
            self._headers.addRawHeader(b"authorization", b"Bearer " + secret.encode("ascii"))
        self._checks = checks
        self._queue_size = queue
        self._breaker: Breaker[_Question] = Breaker(breaker_failures, breaker_wait, breaker_longest_wait)
        self._breaker_failures = breaker_failures
        self._reactor = reactor
        self._pool = _QuietPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = checks or 100
        # Twisted's own retries are for requests that may be repeated; ours is `_post`.
        self._pool.retryAutomatically = False
        self._kept: WeakSet[object] = WeakSet()
        # Every question that waits or is out and may be shared, by its SESSID.
        self._questions: dict[str, _Question] = {}
        self._queue: OrderedDict[_Question, None] = OrderedDict()
        self._out: set[_Question] = set()
        self._turn_alarm = _Alarm(reactor, queue_timeout, self._waited_too_long)
        self._answer_alarm = _Alarm(reactor, timeout, _Question.run_out_of_time)
        self._told_of_queue = False
        self._look: Deferred[None] | None = None
        self._is_closed = False

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Ask the webserver about `sessid`; trouble comes as `Unavailable`.

        Who asks about a session that is being asked about already waits for
        that verdict with the others: the webserver sees one POST. No verdict
        is remembered. While the breaker is open, nobody waits for anything:
        the one whose question is the probe is asked about, all others are
        answered at once.
        """
        return self._authenticate(sessid, is_ticket=False)

    def authenticate_ticket(self, sessid: str) -> Deferred[Verdict]:
        """Ask as `authenticate` does, about what is good for one question: it is not shared, and not repeated."""
        return self._authenticate(sessid, is_ticket=True)

    def _authenticate(self, sessid: str, is_ticket: bool) -> Deferred[Verdict]:
        question = None if is_ticket else self._questions.get(sessid)
        if question is not None and self._breaker.state is State.CLOSED:
            return question.join()
        must_wait = 0 < self._checks <= len(self._out)
        if must_wait and len(self._queue) >= self._queue_size:
            return succeed(self._no_turn(sessid))
        question = _Question(sessid, is_ticket, self._given_up)
        if not self._breaker.admits(question, self._reactor.seconds()):
            return succeed(self._refused())
        if not is_ticket:
            self._questions[sessid] = question
        verdict = question.join()
        if must_wait:
            self._queue[question] = None
            self._turn_alarm.set(question)
        else:
            self._ask(question)
        return verdict

    def give_up(self, verdict: Deferred[Any]) -> None:
        """Wait for a verdict no more.

        A webserver that works on a question hardly notices when it is taken
        back. So one that is out keeps its turn until it is answered or out
        of time, and the verdict comes then; who asks about the same session
        meanwhile is asked about anew, as that verdict may be an old one. A
        question that waits for its turn is given up at once. (To cancel the
        verdict gives up either.)

        :param verdict: what `authenticate` or `authenticate_ticket` returned.
        """
        if not isinstance(verdict, _Awaited) or verdict.question.asking is None:
            verdict.cancel()
        elif verdict.question.is_given_up_by_all_but(verdict):
            self._forget(verdict.question)

    def look(self) -> None:
        """Ask once about a session that there can't be, and log a warning where what comes is no denial.

        So a mistake in the URL, or in the page, is told at the start and not
        by the first visitor who can't log in. It is no login: it waits for
        no turn, and neither its success nor its failure is the breaker's.
        """
        self._is_closed = False
        self._look = Deferred.fromCoroutine(self._look_once())

    async def _look_once(self) -> None:
        made_up = AT_START + secrets.token_hex(8)
        # Like a ticket's, its connection is its own and is not kept: that would be one more for the webserver.
        asking = Deferred.fromCoroutine(self._verdict_on(made_up, is_ticket=True))
        seconds = self._answer_alarm.seconds
        timer = self._reactor.callLater(seconds, asking.cancel) if seconds else None
        try:
            found = await asking
        except (CancelledError, _NoVerdict) as error:
            if timer is not None and not timer.active():
                self._tell_of_look(f"no complete answer within {seconds:g} s", made_up)
            elif isinstance(error, _NoVerdict) and not self._is_closed:
                self._tell_of_look(str(error), made_up)
        else:
            if isinstance(found, LoggedIn):
                self.log.warn(
                    "the webserver at {url} says of a session id that the relay made up that somebody is logged in by "
                    "it: so anybody can log in here. See that auth-url names the right page, and what that answers",
                    url=self._site,
                )
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    def _tell_of_look(self, what: str, made_up: str) -> None:
        self.log.warn(
            "a first look at the webserver at {url} found that nobody can log in as it is: {what}. See that auth-url "
            "is right and the site is up; the relay goes on, and asks it at each login",
            url=self._site,
            what=self._tellable(what, made_up),
        )

    def close(self) -> Deferred[None]:
        """Give up all that waits or is out; close the connections that are kept to the webserver."""
        self._is_closed = True
        if self._look is not None:
            self._look.cancel()
        while self._queue:
            waiting = self._next()
            self._forget(waiting)
            waiting.answer(Unavailable("the relay is stopping"))
        for question in tuple(self._out):
            assert question.asking is not None
            question.asking.cancel()
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    # Whose turn it is ----------------------------------------------------------

    def _ask(self, question: _Question) -> None:
        """It is this question's turn."""
        self._out.add(question)
        self._answer_alarm.set(question)
        question.asking = Deferred.fromCoroutine(self._verdict_on(question.sessid, question.is_ticket))
        question.asking.addBoth(lambda verdict: self._answered(question, verdict))

    def _answered(self, question: _Question, verdict: Verdict | Failure) -> None:
        """A question that was out has its verdict, or has been given up."""
        self._answer_alarm.lift(question)
        self._out.remove(question)
        self._forget(question)
        if isinstance(verdict, Failure) and verdict.check(_NoVerdict, CancelledError):
            _drop_frames(verdict.value)
        # Twisted calls it a failed DNS lookup where one was cancelled: what came of a question
        # that was given up, or whose time has passed, is no trouble that anybody should be told.
        if question.out_of_time:
            verdict = self._failed(question, f"no complete answer within {self._answer_alarm.seconds:g} s")
        elif not isinstance(verdict, Failure):
            if self._breaker.answered():
                self.log.warn("the webserver at {url} answers again", url=self._site)
        elif verdict.check(_NoVerdict) and question.is_awaited:
            verdict = self._failed(question, str(verdict.value), is_nonsense=not verdict.check(_NotReached))
        else:
            self._breaker.given_up(question)
        if self._queue and len(self._out) < self._checks:
            self._ask(self._next())
        elif not self._queue:
            self._told_of_queue = False
        question.answer(verdict)

    def _next(self) -> _Question:
        """Take the question out of the queue that has waited longest."""
        question, _ = self._queue.popitem(last=False)
        self._turn_alarm.lift(question)
        return question

    def _failed(self, question: _Question, what: str, is_nonsense: bool = False) -> Unavailable:
        """The webserver did not answer this question, or not as it should."""
        # While the breaker is open the operator knows; each probe that fails would be a line.
        trouble = self._trouble(what, question.sessid, tell=self._breaker.state is State.CLOSED)
        if is_nonsense and not question.is_own:
            own = _Question(secrets.token_hex(16), True, self._given_up, is_own=True)
            if self._breaker.doubted(question, own):
                own.join().addErrback(Failure.trap, CancelledError)  # when the relay stops
                self._ask(own)
            return trouble
        if self._breaker.failed(question, self._reactor.seconds()):
            self.log.warn(
                "the webserver at {url} has failed {failures} times in a row: until it answers again, it is asked "
                "about one login at a time, and the others are refused at once",
                url=self._site,
                failures=self._breaker_failures,
            )
            while self._queue:
                waiting = self._next()
                self._forget(waiting)
                waiting.answer(self._refused())
        return trouble

    def _refused(self) -> Unavailable:
        return Unavailable(f"it has failed {self._breaker_failures} times in a row (breaker-failures)")

    def _waited_too_long(self, question: _Question) -> None:
        if question in self._queue:  # one who was just told may have made others leave
            del self._queue[question]
            self._forget(question)
            self._breaker.given_up(question)
            question.answer(self._no_turn(question.sessid))

    def _given_up(self, question: _Question) -> None:
        """Nobody waits for this verdict any more."""
        self._forget(question)
        if question.asking is not None:
            question.asking.cancel()
        else:
            del self._queue[question]
            self._turn_alarm.lift(question)
            self._breaker.given_up(question)

    def _forget(self, question: _Question) -> None:
        # A question that was given up may have been followed by another about the same session.
        if self._questions.get(question.sessid) is question:
            del self._questions[question.sessid]

    def _no_turn(self, sessid: str) -> Unavailable:
        # Told once, until nobody waits any more: a storm of logins must not become one of lines.
        told, self._told_of_queue = self._told_of_queue, True
        return self._trouble("too many questions were waiting for it (webserver-checks)", sessid, tell=not told)

    def _trouble(self, what: str, sessid: str, tell: bool = True) -> Unavailable:
        what = self._tellable(what, sessid)
        if tell:
            self.log.warn("the webserver at {url} could not be asked: {what}", url=self._site, what=what)
        return Unavailable(what)

    def _tellable(self, what: str, sessid: str) -> str:
        # A site may say the session id back: in an error page, in a redirect.
        what = without(sessid, what[: 10 * MAX_TOLD])  # looked through in a moment, however large the answer
        return what if len(what) <= MAX_TOLD else what[:MAX_TOLD] + "…"

    # Asking --------------------------------------------------------------------

    async def _verdict_on(self, sessid: str, is_ticket: bool) -> Verdict:
        # A ticket must not go out on a connection that may have died, where it would have to be asked about again.
        pool = _QuietPool(self._reactor, persistent=False) if is_ticket else self._pool
        lease = _Lease(self._webserver, pool, self._kept)
        try:
            response = await self._post(lease, sessid)
            status = response.code
            if status in DENIALS:
                lease.abandon()  # the status says it all
                return Denied()
            if 300 <= status < 400:
                locations = response.headers.getRawHeaders(b"location", [])
                where = ", ".join(location.partition(b"?")[0].decode("latin-1") for location in locations)
                raise _NoVerdict(f"it answered {status}, a redirect to {where!a}, which is not followed")
            if status != 200:
                raise _NoVerdict(f"it answered with status {status}")
            body = await _read(response, self._webserver.answer_size)
            if lease.is_over_limit:  # which ends a body of no stated length like any other end
                raise _NoVerdict(self._webserver.too_much_sent)
            return verdict(body)
        except _REQUEST_FAILURES as error:
            lease.abandon()
            if _was_cancelled(error):
                raise CancelledError from error
            if isinstance(error, ConnectError | DNSLookupError):
                raise _NotReached(describe(error)) from error
            raise _NoVerdict(self._webserver.too_much_sent if lease.is_over_limit else describe(error)) from error
        except (CancelledError, _NoVerdict):
            lease.abandon()
            raise

    async def _post(self, lease: _Lease, sessid: str) -> Any:
        """Post once; and once more where a kept connection died before a byte of the answer.

        A site closes a connection that was kept when it likes to, and may do
        so just as the question is under way. On a fresh connection that is
        no accident, and the question is not repeated.
        """
        try:
            return await self._request(lease, sessid)
        except _UNHEARD as error:
            if not lease.kept or _was_cancelled(error):
                raise
        lease.pool = _QuietPool(self._reactor, persistent=False)
        return await self._request(lease, sessid)

    def _request(self, lease: _Lease, sessid: str) -> Deferred[Any]:
        client = HTTPClient(lease, NO_COOKIES, _Body)
        requested: Deferred[Any] = client.post(
            PLACEHOLDER,
            data=self._body(sessid),
            headers=self._headers,
            cookies=NO_COOKIES,
            allow_redirects=False,
            unbuffered=True,
        )
        return requested


class _Alarm(Generic[Key]):
    """`Deadlines` that are looked at when the first of them comes, with one timer for all.

    :param clock: for time and the timer.
    :param seconds: how far ahead a deadline lies; 0 means never.
    :param ring: called with each key whose deadline has come.
    """

    def __init__(self, clock: Any, seconds: float, ring: Callable[[Key], None]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._deadlines: Deadlines[Key] = Deadlines(seconds)
        self._ring = ring
        self._timer: Any = None

    def set(self, key: Key) -> None:
        """Set the deadline of `key`."""
        self._deadlines.start(key, self._clock.seconds())
        if self._timer is None and self.seconds:
            self._timer = self._clock.callLater(self.seconds, self._look)

    def lift(self, key: Key) -> None:
        """Lift the deadline of `key`, if it has one."""
        self._deadlines.stop(key)
        if not self._deadlines and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for key in self._deadlines.expired(now):
            self._ring(key)
        if self._deadlines and self._timer is None:
            self._timer = self._clock.callLater(self._deadlines.earliest() - now, self._look)


class _Awaited(Deferred[Verdict]):
    """The verdict on a question, for one of those who wait for it."""

    def __init__(self, question: _Question) -> None:
        super().__init__(question.leave)
        self.question = question


class _Question:
    """One session that is asked about, and those who wait for the verdict.

    :ivar sessid: whose session is it?
    :ivar is_ticket: whether that is good for this question only.
    :ivar is_own: whether the relay itself wants to know, of a session that nobody has (`Breaker.doubted`).
    :ivar asking: the POST and its answer; None until it is this question's turn.
    :ivar out_of_time: whether the time for an answer has passed.
    """

    __slots__ = ("_given_up", "_leaving", "_waiting", "asking", "is_own", "is_ticket", "out_of_time", "sessid")

    def __init__(
        self, sessid: str, is_ticket: bool, given_up: Callable[[_Question], None], is_own: bool = False
    ) -> None:
        self.sessid = sessid
        self.is_ticket = is_ticket
        self.is_own = is_own
        self.asking: Deferred[Any] | None = None
        self.out_of_time = False
        self._given_up = given_up
        self._waiting: dict[Deferred[Verdict], None] = {}
        self._leaving: set[Deferred[Verdict]] = set()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the verdict."""
        return bool(self._waiting)

    def join(self) -> Deferred[Verdict]:
        """Wait for the verdict, too. Cancelling is leaving; when all have left, the question is given up."""
        verdict = _Awaited(self)
        self._waiting[verdict] = None
        return verdict

    def is_given_up_by_all_but(self, one: Deferred[Verdict]) -> bool:
        """One who waits does so only for the webserver's sake now; whether all do."""
        self._leaving.add(one)
        return self._leaving >= self._waiting.keys()

    def answer(self, verdict: Verdict | Failure) -> None:
        """Tell everybody who waits."""
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            if not one.called:  # what one of them is told may have made this one leave
                one.callback(verdict)

    def run_out_of_time(self) -> None:
        """The answer has not come in time."""
        self.out_of_time = True
        assert self.asking is not None
        self.asking.cancel()

    def leave(self, one: Deferred[Verdict]) -> None:
        """One waits no more."""
        if one in self._waiting:
            del self._waiting[one]
            if not self._waiting:
                self._given_up(self)


def _form(sessid: str) -> bytes:
    return b"SESSID=" + quote_plus(sessid).encode("ascii")


def _json(sessid: str) -> bytes:
    return msgspec.json.encode({"SESSID": sessid})


FORMATS = {
    "form": (_form, b"application/x-www-form-urlencoded"),
    "json": (_json, b"application/json; charset=UTF-8"),
}
"""How a SESSID is posted: its body, and the content type."""


def verdict(body: bytes) -> Verdict:
    """What the webserver's answer, status 200, means.

    :raises ValueError: where it means nothing; the text says what came.
    """
    try:
        answer = msgspec.json.decode(body.decode("utf-8"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _NoVerdict(f"its answer is not JSON: {_start(body)}") from None
    loggedin = answer.get("loggedin") if isinstance(answer, dict) else None
    if loggedin is False:
        return Denied()
    if loggedin is not True:
        raise _NoVerdict(f'its answer has no "loggedin" that is true or false: {_start(body)}')
    uid = answer.get("uID")
    if not wire.is_uid(uid):
        raise _NoVerdict(
            f'its answer has no "uID" that is a string of 1 to {wire.MAX_TOKEN} printable characters '
            f"or an integer within ±2^53: {_start(body)}"
        )
    expires_in = answer.get("expires_in")
    if expires_in is not None and not is_expiry(expires_in):
        raise _NoVerdict(f'its answer has an "expires_in" that is no number of seconds above 0: {_start(body)}')
    session = answer.get("session")
    if session is not None and not wire.is_sessid(session):
        raise _NoVerdict(f'its answer has a "session" that is no string of 1 to {wire.MAX_SESSID} characters')
    return LoggedIn(uid, expires_in, session)


def describe(error: BaseException) -> str:
    """One line on a failed request, with what is behind Twisted's list of reasons."""
    reasons: Iterable[Failure] = getattr(error, "reasons", None) or ()
    inner = [describe(reason.value) for reason in reasons if reason.value is not None]
    if inner:
        return "; ".join(dict.fromkeys(inner))
    text = " ".join(str(error).split())
    if "wrong version number" in text:
        return "it does not speak TLS on that port (http:// instead of https://, perhaps)"
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"its answer is not HTTP as it should be ({text})" if isinstance(error, _NO_HTTP) else text


def _drop_frames(error: BaseException | None) -> None:
    """Forget where an error came from, and those that led to it.

    The frames of a traceback hold all that was in them: pieces of an answer,
    unpacked ones too, and the error itself, by which they would stay until
    garbage is collected.
    """
    while error is not None:
        error.__traceback__ = None
        for reason in getattr(error, "reasons", ()):
            reason.cleanFailure()
        error = error.__cause__ or error.__context__


class _NoVerdict(ValueError):
    """The webserver's answer, or the lack of one, decides nothing."""


class _NotReached(_NoVerdict):
    """There was not even a connection to the webserver, which can't be the fault of what was asked."""


_SESSION = re.compile(r'("session"\s*:\s*")(?:[^"\\]|\\.)*')
"""The start of an answer's "session", and what is as secret as a SESSID."""


def _start(body: bytes) -> str:
    """An answer in a form that is safe to print; who prints it shortens it."""
    # Without what UTF-16 has between letters, so that they can be read, and a session id among them be found.
    return ascii(_SESSION.sub(r"\1<hidden>", body.replace(b"\0", b"").decode("utf-8", "replace")))


def without(sessid: str, text: str) -> str:
    """A text with the session id taken out, in every form it may have come back in, and every longer piece of it."""
    raw = sessid.encode("utf-8")
    mangled = raw.decode("latin-1")  # as headers are read
    forms = {sessid, quote(sessid), quote(sessid, safe=""), quote_plus(sessid), mangled, repr(raw)[2:-1]}
    forms |= {json.dumps(sessid)[1:-1], html.escape(sessid)}
    forms |= {ascii(form)[1:-1] for form in forms}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    # It may have been cut off, or encoded in a way that leaves most of it as it was.
    pieces = {form[start : start + PIECE] for form in forms for start in range(len(form) - PIECE + 1)}
    kept, since, end = [], 0, 0  # what is hidden ends at `end`, and what is not hidden begins at `since`
    for start in range(len(text) - PIECE + 1):
        if text[start : start + PIECE] in pieces:
            if start >= end:
                kept += [text[since:start], HIDDEN]
            since = end = start + PIECE
    return "".join([*kept, text[since:]])


def _was_cancelled(error: BaseException) -> bool:
    """Whether a request failed because we gave it up; Twisted wraps that in other failures."""
    if isinstance(error, CancelledError | ConnectingCancelledError):
        return True
    return any(_was_cancelled(reason.value) for reason in getattr(error, "reasons", ()) if reason.value is not None)


_UNHEARD = (ResponseNeverReceived, RequestTransmissionFailed)
"""Failures before a byte of the answer."""

_NO_HTTP = (ParseError, ValueError, LookupError)
"""What Twisted's parser makes of an answer that it can't read: its own error, and whatever happens to happen inside."""

_REQUEST_FAILURES = (
    *_UNHEARD,
    RequestGenerationFailed,
    ResponseFailed,
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
)


async def _read(response: Any, most: int) -> bytes:
    """The body, decoded, up to so many bytes.

    :raises _NoVerdict: past it.
    """
    chunks: list[bytes] = []
    size = 0

    def take(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > most:
            # treq closes the connection on what its collector raises.
            raise _NoVerdict(f"its answer is larger than {most} bytes")
        chunks.append(chunk)

    await collect(response, take)
    return b"".join(chunks)


# Between treq and Twisted's connections --------------------------------------


class _NoCookies(CookieJar):
    """Keeps no cookies and sends none: one user's must not go out with another's question."""

    def add_cookie_header(self, request: Any) -> None:
        """Before a request: nothing to add."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """After an answer: nothing is kept."""


NO_COOKIES: Any = _NoCookies()  # newer treq asks for its own kind of jar by type, and uses it as this one


@implementer(IBodyProducer)
class _Body:
    """What is posted, written at once. treq's own would write it in another turn of the reactor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write it all."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """There is nothing left to pause."""

    def resumeProducing(self) -> None:
        """Nor to resume."""

    def stopProducing(self) -> None:
        """Nor to stop."""


class _Placeholder(EncodedURL):
    """What treq is told to post to, and would spell out anew for each question; `_Lease` knows where to go.

    treq knows no IPv6 address in a URL; Twisted, which gets the real one, does.
    """

    def to_uri(self) -> EncodedURL:
        """Itself: it has nothing to encode."""
        return self


PLACEHOLDER = _Placeholder(scheme="http", host="")


class _Webserver:
    """Where all questions go, worked out once: the name, the TLS context.

    :ivar endpoint: how to connect.
    :ivar host: the Host header.
    :ivar path: the request's target (RFC 9112, section 3.2.1).
    :ivar answer_size: bytes that the body of an answer may have, decoded.
    :ivar answer_sent: bytes that an answer may have as it is sent.
    :ivar too_much_sent: what is said of one that has more.
    """

    def __init__(
        self, reactor: Any, url: str, connect_timeout: float, answer_size: int, tls_policy: IPolicyForHTTPS
    ) -> None:
        uri = URI.fromBytes(url.encode("ascii"))
        limit: dict[str, Any] = {"timeout": connect_timeout} if connect_timeout else {}
        self.endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, uri.host, uri.port, **limit)
        if uri.scheme == b"https":
            self.endpoint = wrapClientTLS(tls_policy.creatorForNetloc(uri.host, uri.port), self.endpoint)
        self.host: bytes = uri.netloc.removesuffix(b":443" if uri.scheme == b"https" else b":80")
        self.path: bytes = uri.originForm
        self.answer_size = answer_size
        self.answer_sent = answer_size + MAX_AROUND
        self.too_much_sent = f"its answer is larger than {self.answer_sent} bytes, headers and all"


class _Connection(HTTP11ClientProtocol):
    """A connection to the webserver that takes so much of an answer, and is cut beyond it.

    Twisted's own would keep any number of headers, and read any number of
    answers that come before the real one (RFC 9110, section 15.2).

    :ivar is_over_limit: whether the last answer was too large.
    """

    transport: Any  # TCP's or TLS's
    is_over_limit = False
    _room = 0

    def make_room(self, size: int) -> None:
        """Take so many bytes of the next answer."""
        self._room = size

    def dataReceived(self, data: bytes) -> None:
        """Twisted: part of an answer came."""
        room = self._room
        self._room = max(0, room - len(data))
        self.is_over_limit = len(data) > room
        data = data[:room]  # and no more is kept, where this frame is: in a traceback
        super().dataReceived(data)
        if self.is_over_limit:
            self.transport.abortConnection()


class _QuietFactory(HTTPConnectionPool._factory):  # type: ignore[misc,valid-type]
    """Makes connections to the webserver without a log line for each."""

    noisy = False

    def buildProtocol(self, address: object) -> _Connection:
        """Twisted: make a connection."""
        return _Connection(self._quiescentCallback)


class _QuietPool(HTTPConnectionPool):
    _factory = _QuietFactory


@implementer(IAgent)
@attrs.define
class _Lease:
    """One question's use of a connection; treq's agent.

    Twisted's own `Agent` would parse the URL, find the endpoint and copy the
    headers each time, and not tell which connection it took.

    :ivar pool: where the connection comes from.
    :ivar kept: whether the connection had served a request before.
    :ivar abandoned: whether the rest of the answer is not wanted.
    """

    _webserver: _Webserver
    pool: HTTPConnectionPool
    _seen: WeakSet[object]
    kept: bool = False
    abandoned: bool = False
    _connection: Any = None

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """What treq asks of an agent."""

        def connected(connection: Any) -> Any:
            self.kept = connection in self._seen
            self._seen.add(connection)
            self._connection = connection
            connection.make_room(self._webserver.answer_sent)
            return connection.request(
                Request(method, self._webserver.path, headers, bodyProducer, self.pool.persistent)
            )

        connecting: Deferred[Any] = self.pool.getConnection(self._webserver, self._webserver.endpoint)
        return connecting.addCallback(connected).addCallback(self._sliced)

    @property
    def is_over_limit(self) -> bool:
        """Whether the answer was too large."""
        return self._connection is not None and self._connection.is_over_limit

    def abandon(self) -> None:
        """Cut the connection: what is left of the answer is not wanted."""
        self.abandoned = True
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abortConnection()

    def _sliced(self, response: IResponse) -> IResponse:
        """An answer; its body in slices where treq might decode it, so that it can't grow past its limit unseen."""
        encoded = response.headers.hasHeader(b"content-encoding")
        return _SlicedResponse(response, self) if encoded else response


class _SlicedResponse(proxyForInterface(IResponse)):  # type: ignore[misc]  # a class made at run time
    def __init__(self, response: IResponse, lease: _Lease) -> None:
        super().__init__(response)
        self._lease = lease

    def deliverBody(self, protocol: Protocol) -> None:
        self.original.deliverBody(_Slicer(protocol, self._lease))


class _Slicer(Protocol):
    def __init__(self, receiver: Protocol, lease: _Lease) -> None:
        self._receiver = receiver
        self._lease = lease

    def connectionMade(self) -> None:
        self._receiver.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE):
            if self._lease.abandoned:
                break  # or the rest of a bomb would be decoded, slice by slice, for nothing
            self._receiver.dataReceived(data[start : start + SLICE])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._receiver.connectionLost(reason)
