"""A question on its way to the webserver and back, within bounds.

`Webserver` posts a SESSID and reads what comes back: so many bytes of it,
without redirects, cookies or a second try that could do harm. A SESSID appears
in the body of the request and nowhere else. `chatrelay.auth.body` decodes the
body of an answer, `chatrelay.auth.verdicts` judges it, and `chatrelay.auth.authenticator` decides
whose turn it is and who waits for how long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http.cookiejar import CookieJar
from typing import Any, cast
from urllib.parse import quote_plus
from weakref import WeakSet

import attrs
import msgspec
from hyperlink import EncodedURL
from service_identity import VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
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

from chatrelay.auth import body as answer_body
from chatrelay.auth import gunzip, verdicts
from chatrelay.auth.headers import host_name, read_headers
from chatrelay.auth.verdicts import NotReached, NoVerdict
from chatrelay.model import Verdict

TWISTED_NAMES = (
    "HTTP11ClientProtocol.abort",
    "HTTP11ClientProtocol.dataReceived",
    "HTTP11ClientProtocol.request",
    "HTTP11ClientProtocol.state",
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


def _form(sessid: str) -> bytes:
    return b"SESSID=" + quote_plus(sessid, errors="surrogateescape").encode("ascii")


def _json(sessid: str) -> bytes:
    return msgspec.json.encode({"SESSID": sessid})


FORMATS = {
    "form": (_form, b"application/x-www-form-urlencoded"),
    "json": (_json, b"application/json; charset=UTF-8"),
}
"""How a SESSID is posted: its body, and the content type."""


class Webserver:
    """Where all questions go.

    :param reactor: for connections.
    :param url: where to post, http or https.
    :param format: ``form`` posts ``SESSID=…`` as a form, ``json`` an object.
    :param secret: sent as a bearer token; None sends none.
    :param connections: how many are kept open between questions at the most.
    :param answer_size: bytes that the body of an answer may have, decoded.
    :param tls_policy: how its certificate is verified; by default against the system's authorities.
    :param host: what is sent as ``Host``, and over https the name that its certificate has to be for; by default the
        host of `url`.
    :param headers: further headers, such as ``X-Forwarded-Proto: https``.
    :ivar endpoint: how to connect.
    :ivar path: the request's target (RFC 9112, section 3.2.1).
    :ivar answer_sent: bytes that an answer may have as it is sent.
    :ivar too_much_sent: what is said of one that has more.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        format: str,
        secret: str | None,
        connections: int,
        answer_size: int,
        tls_policy: IPolicyForHTTPS | None,
        host: str | None = None,
        headers: Iterable[str] = (),
    ) -> None:
        uri = URI.fromBytes(url.encode("ascii"))
        # Without a time limit of its own: the caller has one for question and answer, which leaves out hold-ups.
        self.endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, uri.host, uri.port, timeout=cast(float, None))
        self._other_name = ""
        if uri.scheme == b"https":
            policy = tls_policy or BrowserLikePolicyForHTTPS()
            # An address has no name, and a server with several sites shows each one's certificate to who names it.
            name = uri.host if host is None else host_name(host).encode("ascii")
            self.endpoint = wrapClientTLS(policy.creatorForNetloc(name, uri.port), self.endpoint)
            self._other_name = f"its certificate is not for {name.decode('ascii')}" + (
                ": if it is for the name that visitors use, give that with --auth-host"
                if host is None
                else " (auth-host)"
            )
        self.path: bytes = uri.originForm
        self.answer_size = answer_size
        self.answer_sent = answer_size + MAX_AROUND
        self.too_much_sent = f"its answer is larger than {self.answer_sent} bytes, headers and all"
        self._body, content_type = FORMATS[format]
        self._headers = Headers({b"accept": [b"application/json"], b"content-type": [content_type]})
        default_port = b":443" if uri.scheme == b"https" else b":80"
        self._headers.addRawHeader(b"host", uri.netloc.removesuffix(default_port) if host is None else host.encode())
        if secret is not None:
            self._headers.addRawHeader(b"authorization", b"Bearer " + secret.encode("ascii"))
        for header, value in read_headers(headers):
            self._headers.addRawHeader(header, value)
        self._reactor = reactor
        self._pool = _QuietPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = connections
        # Twisted's own retries are for requests that may be repeated; ours is `_post`.
        self._pool.retryAutomatically = False
        self._kept: WeakSet[object] = WeakSet()

    def ask(self, sessid: str, is_ticket: bool) -> Deferred[Verdict]:
        """Post a SESSID, and make a verdict of the answer. Cancelling cuts the connection.

        It takes as long as the webserver does: who asks cancels it in time.

        :param is_ticket: whether it is good for one question only, which then is never repeated.
        :raises NoVerdict: in the Deferred, where there is no answer, or one that means nothing.
        """
        return Deferred.fromCoroutine(self._verdict_on(sessid, is_ticket)).addErrback(_without_frames)

    def look(self, sessid: str) -> Deferred[Verdict]:
        """Ask as `ask` does about a SESSID that nobody has; what comes of it also tells the words of the answer.

        Like a ticket's, its connection is its own and is not kept.

        :raises Suspect: in the Deferred, where the answer denies by its status alone.
        :raises NoVerdict: in the Deferred, as `ask` does.
        """
        return Deferred.fromCoroutine(self._verdict_on(sessid, True, is_look=True)).addErrback(_without_frames)

    def close(self) -> Deferred[None]:
        """Close the connections that are kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def _verdict_on(self, sessid: str, is_ticket: bool, is_look: bool = False) -> Verdict:
        # A ticket must not go out on a connection that may have died, where it would have to be asked about again.
        pool = _QuietPool(self._reactor, persistent=False) if is_ticket else self._pool
        lease = _Lease(self, pool, self._kept)
        try:
            response = await self._post(lease, sessid)
            locations = response.headers.getRawHeaders(b"location", [])
            if is_look and response.code != 200:
                start = await answer_body.start(response, lease.codings)
                lease.abandon()
                return verdicts.of_first_look(response.code, locations, start)
            verdict = verdicts.of_status(response.code, locations)
            if verdict is not None:
                lease.abandon()  # whatever the body says
                return verdict
            body = await answer_body.read(response, lease.codings, self.answer_size)
            if lease.is_over_limit:  # which ends a body of no stated length like any other end
                raise NoVerdict(self.too_much_sent)
            return answer_body.verdict(body, lease.codings)
        except _REQUEST_FAILURES as error:
            lease.abandon()
            if _was_cancelled(error):
                raise CancelledError from error
            if isinstance(error, ConnectError | DNSLookupError):
                raise NotReached(_describe(error)) from error
            if any(isinstance(cause, VerificationError) for cause in _causes(error)):
                raise NoVerdict(self._other_name) from error
            raise (NoVerdict(self.too_much_sent) if lease.is_over_limit else _failure(error)) from error
        except (CancelledError, NoVerdict):
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


# What went wrong -------------------------------------------------------------


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that Twisted has wrapped in it."""
    yield error
    for reason in getattr(error, "reasons", ()):
        if reason.value is not None:
            yield from _causes(reason.value)


def _was_cancelled(error: BaseException) -> bool:
    """Whether a request failed because we gave it up."""
    return any(isinstance(cause, CancelledError | ConnectingCancelledError) for cause in _causes(error))


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


def _describe(error: BaseException) -> str:
    """One line on a failed request, with what is behind Twisted's list of reasons."""
    reasons: Iterable[Failure] = getattr(error, "reasons", None) or ()
    inner = [_describe(reason.value) for reason in reasons if reason.value is not None]
    if inner:
        return "; ".join(dict.fromkeys(inner))
    # Twisted's sentence has the system's in it, and so two full stops; whoever tells it sets their own.
    text = " ".join(str(error).split()).rstrip(".")
    if "wrong version number" in text:
        return "it does not speak TLS on that port (http:// instead of https://, perhaps)"
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"its answer is not HTTP as it should be ({text})" if isinstance(error, _NO_HTTP) else text


def _failure(error: BaseException) -> NoVerdict:
    """What a failed request comes to; what the parser makes of an answer quotes it."""
    text = _describe(error)
    return NoVerdict("", text) if any(isinstance(cause, _NO_HTTP) for cause in _causes(error)) else NoVerdict(text)


def _without_frames(failure: Failure) -> Failure:
    """The failure of a question, and what led to it, without where they came from.

    The frames of a traceback hold all that was in them: pieces of an answer,
    unpacked ones too, and the error itself, by which they would stay until
    garbage is collected. Of an error that nobody expected they are kept.
    """
    error = failure.value if failure.check(NoVerdict, CancelledError) else None
    while error is not None:
        error.__traceback__ = None
        for reason in getattr(error, "reasons", ()):
            reason.cleanFailure()
        error = error.__cause__ or error.__context__
    return failure


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


AT_REST = ("QUIESCENT", "CONNECTION_LOST")
"""States of Twisted's connections in which there is nothing to cut; TLS that has gone can't be."""


class _Placeholder(EncodedURL):
    """What treq is told to post to, and would spell out anew for each question; `_Lease` knows where to go.

    treq knows no IPv6 address in a URL; Twisted, which gets the real one, does.
    """

    def to_uri(self) -> EncodedURL:
        """Itself: it has nothing to encode."""
        return self


PLACEHOLDER = _Placeholder(scheme="http", host="")


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

    def abort(self) -> Deferred[None]:
        """Twisted: end it at once. Its own way waits over TLS for a webserver that may have fallen silent."""
        aborted: Deferred[None] = super().abort()
        if not aborted.called:
            self.transport.abortConnection()
        return aborted


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
    :ivar codings: what the body of the answer is encoded with, in lower case.
    """

    _webserver: Webserver
    pool: HTTPConnectionPool
    _seen: WeakSet[object]
    kept: bool = False
    codings: list[str] = attrs.field(factory=list)
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
        return connecting.addCallback(connected).addCallback(self._undecoded)

    @property
    def is_over_limit(self) -> bool:
        """Whether the answer was too large."""
        return self._connection is not None and self._connection.is_over_limit

    def abandon(self) -> None:
        """Cut the connection: what is left of the answer is not wanted. Where nothing is left, it is kept."""
        connection = self._connection
        if connection is not None and connection.transport is not None and connection.state not in AT_REST:
            connection.transport.abortConnection()

    def _undecoded(self, response: IResponse) -> IResponse:
        """Hide from treq how the body is encoded: `chatrelay.auth.body` decodes it, and more of it than treq."""
        self.codings = gunzip.codings(response.headers.getRawHeaders(b"content-encoding", []))
        response.headers.removeHeader(b"content-encoding")
        return response
