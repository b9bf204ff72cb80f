"""The HTTP client: send a request to the session page, and return the verdict of its response.

It reads a response up to a limit, follows no redirects, keeps no cookies, and repeats a request only if that does no
harm. A SESSID appears in the body of the request and nowhere else. This module must not know how many requests may be
pending, nor for how long (`chatrelay.auth.authenticator`). `chatrelay.auth.body` decodes a body, and
`chatrelay.auth.verdicts` finds the verdict.
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

from chatrelay.auth import body as response_body
from chatrelay.auth import gunzip
from chatrelay.auth.headers import host_name, read_headers
from chatrelay.auth.verdicts import ConnectFailed, InvalidAnswer, judge_startup_check, judge_status
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
"""The private names of `twisted.web.client` that this module relies on; a test fails when one of them is removed.

The names that are imported from `twisted.web._newclient` are private, too, and so is the `_quiescentCallback` of each
factory.
"""

MAX_OVERHEAD_BYTES = 16 * 1024
"""The most bytes of a response besides its body: its head, the sizes of its chunks, and interim responses before it."""


def _form(sessid: str) -> bytes:
    return b"SESSID=" + quote_plus(sessid, errors="surrogateescape").encode("ascii")


def _json(sessid: str) -> bytes:
    return msgspec.json.encode({"SESSID": sessid})


FORMATS = {
    "form": (_form, b"application/x-www-form-urlencoded"),
    "json": (_json, b"application/json; charset=UTF-8"),
}
"""The formats in which a SESSID is posted: the function that makes the body, and the content type."""


class SessionPage:
    """The site's session page.

    :param reactor: for connections.
    :param url: the http or https URL to which to post.
    :param format: ``form`` posts ``SESSID=…`` as a form, ``json`` an object.
    :param secret: sent as a bearer token; None sends none.
    :param connections: the most connections that are kept open between requests.
    :param body_limit: the most bytes that the body of a response may have after decoding.
    :param tls_policy: how the site's certificate is verified; by default against the system's authorities.
    :param host: sent as ``Host``, and over https the name that the certificate must be for; by default the host of
        `url`.
    :param headers: further headers, such as ``X-Forwarded-Proto: https``.
    :ivar endpoint: connects to the site.
    :ivar path: the request's target (RFC 9112, section 3.2.1).
    :ivar response_limit: the most bytes that a response may have before decoding, with its headers.
    :ivar too_large: the reason if a response is larger.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        format: str,
        secret: str | None,
        connections: int,
        body_limit: int,
        tls_policy: IPolicyForHTTPS | None,
        host: str | None = None,
        headers: Iterable[str] = (),
    ) -> None:
        uri = URI.fromBytes(url.encode("ascii"))
        # The endpoint needs no time limit. The caller has one, which does not count the time of a hold-up.
        self.endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, uri.host, uri.port, timeout=cast(float, None))
        self._wrong_certificate = ""
        if uri.scheme == b"https":
            policy = tls_policy or BrowserLikePolicyForHTTPS()
            # A server with several sites chooses its certificate by this name. An IP address selects none of them.
            name = uri.host if host is None else host_name(host).encode("ascii")
            self.endpoint = wrapClientTLS(policy.creatorForNetloc(name, uri.port), self.endpoint)
            self._wrong_certificate = f"its certificate is not for {name.decode('ascii')}" + (
                ": if it is for the name that visitors use, set --auth-host to that name"
                if host is None
                else " (auth-host)"
            )
        self.path: bytes = uri.originForm
        self.body_limit = body_limit
        self.response_limit = body_limit + MAX_OVERHEAD_BYTES
        self.too_large = f"its response is larger than {self.response_limit} bytes, with its headers"
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
        # Twisted retries only requests that may be repeated, such as GET. `_post` retries ours if that does no harm.
        self._pool.retryAutomatically = False
        self._used: WeakSet[object] = WeakSet()  # connections that have served a request

    def ask(self, sessid: str, is_ticket: bool) -> Deferred[Verdict]:
        """Post a SESSID, and return the verdict. Cancelling aborts the connection.

        There is no time limit: the caller must cancel a request that takes too long.

        :param is_ticket: whether the SESSID is valid for one request only. Then the request is never repeated.
        :raises InvalidAnswer: in the Deferred, if there is no response, or one that gives no verdict.
        """
        return Deferred.fromCoroutine(self._verdict_on(sessid, is_ticket)).addErrback(_without_frames)

    def startup_check(self, sessid: str) -> Deferred[Verdict]:
        """Ask as `ask` does, about a SESSID that nobody has; errors quote the words of the response.

        As for a ticket, the connection is a new one and is not kept.

        :raises SuspectDenial: in the Deferred, if the response denies by its status alone.
        :raises InvalidAnswer: in the Deferred, as `ask` does.
        """
        return Deferred.fromCoroutine(self._verdict_on(sessid, True, is_startup_check=True)).addErrback(_without_frames)

    def close(self) -> Deferred[None]:
        """Close the kept connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def _verdict_on(self, sessid: str, is_ticket: bool, is_startup_check: bool = False) -> Verdict:
        # A request on a kept connection is repeated if that connection was lost. A request with a ticket must not be
        # repeated, so it gets a new connection.
        pool = _QuietPool(self._reactor, persistent=False) if is_ticket else self._pool
        agent = SingleRequestAgent(self, pool, self._used)
        try:
            response = await self._post(agent, sessid)
            locations = response.headers.getRawHeaders(b"location", [])
            if is_startup_check and response.code != 200:
                start = await response_body.read_start(response, agent.codings)
                agent.abandon()
                return judge_startup_check(response.code, locations, start)
            verdict = judge_status(response.code, locations)
            if verdict is not None:
                agent.abandon()  # the body is not needed
                return verdict
            body = await response_body.read(response, agent.codings, self.body_limit)
            if agent.is_over_limit:  # if the body has no stated length, aborting looks like its normal end
                raise InvalidAnswer(self.too_large)
            return response_body.judge(body, agent.codings)
        except _REQUEST_FAILURES as error:
            agent.abandon()
            if _was_cancelled(error):
                raise CancelledError from error
            if isinstance(error, ConnectError | DNSLookupError):
                raise ConnectFailed(_describe(error)) from error
            if any(isinstance(cause, VerificationError) for cause in _causes(error)):
                raise InvalidAnswer(self._wrong_certificate) from error
            raise (InvalidAnswer(self.too_large) if agent.is_over_limit else _invalid_answer(error)) from error
        except (CancelledError, InvalidAnswer):
            agent.abandon()
            raise

    async def _post(self, agent: SingleRequestAgent, sessid: str) -> Any:
        """Post a SESSID; retry once on a new connection if a kept one was lost before the first byte of the response.

        A site may close a kept connection at any time, even while a request is on its way. A new connection is not lost
        for that reason, so its request is not repeated.
        """
        try:
            return await self._request(agent, sessid)
        except _NO_RESPONSE as error:
            if not agent.was_used or _was_cancelled(error):
                raise
        agent.pool = _QuietPool(self._reactor, persistent=False)
        return await self._request(agent, sessid)

    def _request(self, agent: SingleRequestAgent, sessid: str) -> Deferred[Any]:
        client = HTTPClient(agent, NO_COOKIES, _Body)
        requested: Deferred[Any] = client.post(
            PLACEHOLDER,
            data=self._body(sessid),
            headers=self._headers,
            cookies=NO_COOKIES,
            allow_redirects=False,
            unbuffered=True,
        )
        return requested


# Errors ----------------------------------------------------------------------


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all errors that Twisted has wrapped in it."""
    yield error
    for reason in getattr(error, "reasons", ()):
        if reason.value is not None:
            yield from _causes(reason.value)


def _was_cancelled(error: BaseException) -> bool:
    """Return whether a request failed because we cancelled it."""
    return any(isinstance(cause, CancelledError | ConnectingCancelledError) for cause in _causes(error))


_NO_RESPONSE = (ResponseNeverReceived, RequestTransmissionFailed)
"""Failures before the first byte of the response."""

_NO_HTTP = (ParseError, ValueError, LookupError)
"""The errors of Twisted's parser for a response that it can't read: its own, and others that it does not catch."""

_REQUEST_FAILURES = (
    *_NO_RESPONSE,
    RequestGenerationFailed,
    ResponseFailed,
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
)


def _describe(error: BaseException) -> str:
    """Describe a failed request in one line, with the errors in Twisted's list of reasons."""
    reasons: Iterable[Failure] = getattr(error, "reasons", None) or ()
    inner = [_describe(reason.value) for reason in reasons if reason.value is not None]
    if inner:
        return "; ".join(dict.fromkeys(inner))
    # Twisted's sentence ends with the system's, so it may have two full stops at its end. The caller adds one.
    text = " ".join(str(error).split()).rstrip(".")
    if "wrong version number" in text:
        return "it does not speak TLS on that port (perhaps the URL needs http:// instead of https://)"
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"its response is not valid HTTP ({text})" if isinstance(error, _NO_HTTP) else text


def _invalid_answer(error: BaseException) -> InvalidAnswer:
    """Return the error for a failed request. The parser's errors quote the response, perhaps with a session id."""
    text = _describe(error)
    quotes = any(isinstance(cause, _NO_HTTP) for cause in _causes(error))
    return InvalidAnswer("", text) if quotes else InvalidAnswer(text)


def _without_frames(failure: Failure) -> Failure:
    """Remove the tracebacks from a failure and its causes, unless the error is a defect.

    The frames of a traceback refer to their variables: the pieces of a response, even decoded, and the error itself. So
    all of these would stay in memory until garbage is collected.
    """
    error = failure.value if failure.check(InvalidAnswer, CancelledError) else None
    while error is not None:
        error.__traceback__ = None
        for reason in getattr(error, "reasons", ()):
            reason.cleanFailure()
        error = error.__cause__ or error.__context__
    return failure


# From treq to Twisted's connections --------------------------------------


class _NoCookies(CookieJar):
    """Keeps no cookies and sends none: one user's cookies must not be sent with another user's request."""

    def add_cookie_header(self, request: Any) -> None:
        """Add nothing to a request."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Keep nothing of a response."""


NO_COOKIES: Any = _NoCookies()  # newer versions of treq declare another type of jar, but work with this one


@implementer(IBodyProducer)
class _Body:
    """The body of a request, written at once. treq's own producer would write it in a later turn of the reactor."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write all of it."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: all is written."""

    def resumeProducing(self) -> None:
        """Do nothing: all is written."""

    def stopProducing(self) -> None:
        """Do nothing: all is written."""


IDLE_STATES = ("QUIESCENT", "CONNECTION_LOST")
"""States of Twisted's connections in which there is nothing to abort. A lost TLS connection can't be aborted."""


class _Placeholder(EncodedURL):
    """The URL that treq gets in place of the real one, which `SingleRequestAgent` knows.

    treq would encode the real URL again for each request, and does not support IPv6 addresses in URLs.
    """

    def to_uri(self) -> EncodedURL:
        """Return itself, because there is nothing to encode."""
        return self


PLACEHOLDER = _Placeholder(scheme="http", host="")


class _LimitedConnection(HTTP11ClientProtocol):
    """A connection to the site that is aborted when a response is too large.

    Twisted's own connection keeps any number of headers, and reads any number of interim responses (RFC 9110, section
    15.2).

    :ivar is_over_limit: whether the last response was too large.
    """

    transport: Any  # TCP's or TLS's
    is_over_limit = False
    _allowed = 0

    def allow(self, size: int) -> None:
        """Accept `size` bytes of the next response."""
        self._allowed = size

    def dataReceived(self, data: bytes) -> None:
        """Receive part of a response. Twisted calls this."""
        allowed = self._allowed
        self._allowed = max(0, allowed - len(data))
        self.is_over_limit = len(data) > allowed
        data = data[:allowed]  # a traceback with this frame would keep the rest in memory
        super().dataReceived(data)
        if self.is_over_limit:
            self.transport.abortConnection()

    def abort(self) -> Deferred[None]:
        """Abort the connection. Over TLS, Twisted's own method would wait for the site to respond."""
        aborted: Deferred[None] = super().abort()
        if not aborted.called:
            self.transport.abortConnection()
        return aborted


class _QuietFactory(HTTPConnectionPool._factory):  # type: ignore[misc,valid-type]
    """Makes connections to the site without a log message for each."""

    noisy = False

    def buildProtocol(self, address: object) -> _LimitedConnection:
        """Make the protocol of a connection. Twisted calls this."""
        return _LimitedConnection(self._quiescentCallback)


class _QuietPool(HTTPConnectionPool):
    """A pool whose connections are limited and not logged."""

    _factory = _QuietFactory


@implementer(IAgent)
@attrs.define
class SingleRequestAgent:
    """The agent by which treq sends one request.

    Twisted's own `Agent` parses the URL, makes the endpoint and copies the headers for each request, and does not tell
    which connection it used.

    :ivar pool: provides the connection.
    :ivar was_used: whether the connection had served a request before.
    :ivar codings: the Content-Encodings of the response, in lower case.
    """

    _page: SessionPage
    pool: HTTPConnectionPool
    _used: WeakSet[object]
    was_used: bool = False
    codings: list[str] = attrs.field(factory=list)
    _connection: Any = None

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """Send the request; see `twisted.web.iweb.IAgent`."""

        def connected(connection: Any) -> Any:
            self.was_used = connection in self._used
            self._used.add(connection)
            self._connection = connection
            connection.allow(self._page.response_limit)
            return connection.request(Request(method, self._page.path, headers, bodyProducer, self.pool.persistent))

        connecting: Deferred[Any] = self.pool.getConnection(self._page, self._page.endpoint)
        return connecting.addCallback(connected).addCallback(self._undecoded)

    @property
    def is_over_limit(self) -> bool:
        """Whether the response was too large."""
        return self._connection is not None and self._connection.is_over_limit

    def abandon(self) -> None:
        """Abort the connection if part of the response is still to come; else keep it."""
        connection = self._connection
        if connection is not None and connection.transport is not None and connection.state not in IDLE_STATES:
            connection.transport.abortConnection()

    def _undecoded(self, response: IResponse) -> IResponse:
        """Hide the Content-Encoding from treq, because `chatrelay.auth.body` decodes more encodings than treq."""
        self.codings = gunzip.codings(response.headers.getRawHeaders(b"content-encoding", []))
        response.headers.removeHeader(b"content-encoding")
        return response
