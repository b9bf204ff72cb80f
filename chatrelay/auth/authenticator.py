"""Asking the webserver whose session it is: whose turn it is, and who waits.

`WebserverAuthenticator` has so many questions out at once, asks about a
session once however many want to know, gives up what takes too long, and
leaves a webserver alone that keeps failing (`chatrelay.auth.breaker`). How a
question gets there and back it leaves to `chatrelay.auth.client`; what a verdict
means to a connection is not known here (`chatrelay.relay.session` knows).
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

from chatrelay.auth.breaker import Breaker, State
from chatrelay.auth.client import Webserver
from chatrelay.auth.diagnosis import DeniedSoFar, likely_cause, remedy
from chatrelay.auth.verdicts import EMPTY, NotReached, NoVerdict, Suspect, told
from chatrelay.config.options import Config
from chatrelay.limits.alarms import Alarm
from chatrelay.model import Denied, LoggedIn, Unavailable, Verdict

log = Logger("chatrelay.auth")

MAX_QUEUE = 5000
"""Questions that may wait for their turn. A site that answers 32 at once in 50 ms is through with them in 8 s."""

MOST_KEPT = 100
"""Connections to the webserver that are kept where there is no limit to the questions."""

DEFAULTS = Config()

STOPPING = "the relay is stopping"

AT_START = "chatrelay-at-start-"
"""What the session id begins with that a first look asks about; random characters follow, so that nobody has it."""


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
    :param breaker_failures: how many failures in a row stop the questions (`chatrelay.auth.breaker`); 0 for no breaker.
    :param breaker_wait: seconds until one of them may go out as a probe; 0 for none.
    :param breaker_longest_wait: seconds up to which that doubles with each probe that fails; 0 for no limit.
    :param tls_policy: how the site's certificate is verified; by default against the system's authorities.
    :param host: by which name it is asked, ``Host``, and over https the name that its certificate has to be for; by
        default the host of `url`.
    :param headers: further headers of each question, such as ``X-Forwarded-Proto: https``.
    """

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
        host: str | None = None,
        headers: Iterable[str] = (),
    ) -> None:
        self._site = urlsplit(url)._replace(query="", fragment="").geturl()
        self._webserver = Webserver(
            reactor, url, format, secret, checks or MOST_KEPT, answer_size or sys.maxsize, tls_policy, host, headers
        )
        self._url = url
        self._format = format
        self._denied_so_far = DeniedSoFar(secrets.token_bytes())
        self._checks = checks
        self._queue_size = queue
        self._breaker: Breaker[_Question] = Breaker(breaker_failures, breaker_wait, breaker_longest_wait)
        self._breaker_failures = breaker_failures
        self._reactor = reactor
        # Every question that waits or is out and may be shared, by its SESSID.
        self._questions: dict[str, _Question] = {}
        self._queue: OrderedDict[_Question, None] = OrderedDict()
        self._out: set[_Question] = set()
        self._turn_alarm = Alarm(reactor, queue_timeout, self._waited_too_long)
        self._answer_alarm = Alarm(reactor, timeout, _Question.run_out_of_time)
        self._look_alarm: Alarm[Deferred[Verdict]] = Alarm(reactor, timeout, self._look_takes_too_long)
        self._told_of_queue = False
        self._look: Deferred[None] | None = None
        self._look_timed_out = False
        self._is_look_ended = False
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
            return succeed(self._no_turn())
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

    def startup_check(self) -> None:
        """Ask once about a session that there can't be, and log a warning where what comes is no denial.

        So a mistake in the URL, or in the page, is told at the start and not
        by the first visitor who can't log in. It is no login: it waits for
        no turn, and neither its success nor its failure is the breaker's.
        """
        self._is_closed = self._is_look_ended = False
        self._look = Deferred.fromCoroutine(self._look_once())

    async def _look_once(self) -> None:
        made_up = AT_START + secrets.token_hex(8)
        asking = self._webserver.look(made_up)
        self._look_alarm.set(asking)
        self._look_timed_out = False
        try:
            found = await asking
        except (CancelledError, NoVerdict) as error:
            if self._look_timed_out:
                self._tell_of_look(NoVerdict(f"no complete answer within {self._look_alarm.seconds:g} s"), made_up)
            elif isinstance(error, Suspect) and not self._is_look_ended:
                self._tell_of_suspicion(error, made_up)
            elif isinstance(error, NoVerdict) and not self._is_look_ended:
                self._tell_of_look(error, made_up)
        else:
            if isinstance(found, LoggedIn):
                log.warn(
                    "the webserver at {url} says of a session id that the relay made up that somebody is logged in by "
                    "it: so anybody can log in here. See that auth-url names the right page, and what that answers",
                    url=self._site,
                )
            else:
                log.info(
                    "the webserver at {url} was asked about a session id that the relay made up, and denied it, as it "
                    "should",
                    url=self._site,
                )
        finally:
            self._look_alarm.lift(asking)

    def _look_takes_too_long(self, asking: Deferred[Verdict]) -> None:
        self._look_timed_out = True
        asking.cancel()

    def _tell_of_look(self, error: NoVerdict, made_up: str) -> None:
        log.warn(
            "a first look at the webserver at {url} found that nobody can log in as it is: {what}. {remedy}. The relay "
            "goes on, and asks it at each login",
            url=self._site,
            what=told(error, made_up),
            remedy=remedy(self._url, self._format, error.status, error.location, error.said),
        )

    def _tell_of_suspicion(self, error: Suspect, made_up: str) -> None:
        assert error.status is not None
        words = told(error, made_up)
        log.warn(
            "a first look at the webserver at {url} got status {status} {words} for a session id that the relay made "
            "up. That is a denial, but if the page answers so to everybody, nobody can log in. {cause}. {silence}",
            url=self._site,
            status=error.status,
            words="without a word" if words == EMPTY else f"({words})",
            cause=likely_cause(error.status, error.said),
            silence='A page that denies with {"loggedin": false} is not suspected',
        )

    def stop_startup_check(self) -> None:
        """Give up `startup_check`, and log nothing of it: a site may well be stopped together with the relay."""
        self._is_look_ended = True
        if self._look is not None:
            self._look.cancel()

    def close(self) -> Deferred[None]:
        """Give up all that waits or is out; close the connections that are kept to the webserver."""
        self._is_closed = True
        self.stop_startup_check()
        while self._queue:
            waiting = self._next()
            self._forget(waiting)
            waiting.answer(Unavailable(STOPPING))
        for question in tuple(self._out):
            assert question.asking is not None
            question.asking.cancel()
        return self._webserver.close()

    # Whose turn it is ----------------------------------------------------------

    def _ask(self, question: _Question) -> None:
        """It is this question's turn."""
        self._out.add(question)
        self._answer_alarm.set(question)
        question.asking = self._webserver.ask(question.sessid, question.is_ticket)
        question.asking.addBoth(lambda verdict: self._answered(question, verdict))

    def _answered(self, question: _Question, verdict: Verdict | Failure) -> None:
        """A question that was out has its verdict, or has been given up."""
        self._answer_alarm.lift(question)
        self._out.remove(question)
        self._forget(question)
        # Twisted calls it a failed DNS lookup where one was cancelled: what came of a question
        # that was given up, or whose time has passed, is no trouble that anybody should be told.
        if question.out_of_time:
            late = NoVerdict(f"no complete answer within {self._answer_alarm.seconds:g} s")
            verdict = self._failed(question, late)
        elif not isinstance(verdict, Failure):
            if self._breaker.answered():
                log.warn("the webserver at {url} answers again", url=self._site)
            self._count(question, verdict)
        elif isinstance(verdict.value, NoVerdict) and question.is_awaited and not self._is_closed:
            is_nonsense = not isinstance(verdict.value, NotReached)
            verdict = self._failed(question, verdict.value, is_nonsense)
        else:
            self._breaker.given_up(question)
            if verdict.check(NoVerdict):
                verdict = Unavailable(STOPPING)  # or nobody waits for it any more
        if self._queue and len(self._out) < self._checks:
            self._ask(self._next())
        elif not self._queue:
            self._told_of_queue = False
        question.answer(verdict)

    def _count(self, question: _Question, verdict: Verdict) -> None:
        """Tell the operator where the site denies everybody."""
        if isinstance(verdict, LoggedIn):
            self._denied_so_far.let_in()
        elif isinstance(verdict, Denied) and not question.is_own:
            so_far = self._denied_so_far
            if so_far.denied(question.sessid, verdict.status):
                log.warn(
                    "the first {logins} logins that the webserver at {url} was asked about (of {sessions}) were all "
                    "denied, {how}; nobody has been let in since the relay started. {cause}",
                    logins=so_far.logins,
                    sessions="1 session" if so_far.sessions == 1 else f"{so_far.sessions} sessions",
                    url=self._site,
                    how=so_far.how(),
                    cause=so_far.likely_cause(self._format),
                )

    def _next(self) -> _Question:
        """Take the question out of the queue that has waited longest."""
        question, _ = self._queue.popitem(last=False)
        self._turn_alarm.lift(question)
        return question

    def _failed(self, question: _Question, error: NoVerdict, is_nonsense: bool = False) -> Unavailable:
        """The webserver did not answer this question, or not as it should."""
        # While the breaker is open the operator knows; each probe that fails would be a line.
        what = told(error, question.sessid)
        trouble = self._trouble(what, tell=self._breaker.state is State.CLOSED)
        if is_nonsense and not question.is_own:
            own = _Question(secrets.token_hex(16), True, self._given_up, is_own=True)
            if self._breaker.doubted(question, own):
                own.join().addErrback(Failure.trap, CancelledError)  # when the relay stops
                self._ask(own)
            return trouble
        if self._breaker.failed(question, self._reactor.seconds()):
            log.warn(
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
            question.answer(self._no_turn())

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

    def _no_turn(self) -> Unavailable:
        # Told once, until nobody waits any more: a storm of logins must not become one of lines.
        already, self._told_of_queue = self._told_of_queue, True
        return self._trouble("too many questions were waiting for it (webserver-checks)", tell=not already)

    def _trouble(self, what: str, tell: bool) -> Unavailable:
        if tell:
            log.warn("the webserver at {url} could not be asked: {what}", url=self._site, what=what)
        return Unavailable(what)


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
