"""Asking the webserver whose session it is.

`WebserverAuthenticator` posts a SESSID to the site and makes a verdict of
what comes back. Bytes and time come in here; what a verdict means to a
connection does not (`chatrelay.session` knows). A SESSID appears in the body
of the request and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit
from weakref import WeakSet

import attrs
import msgspec
from treq import collect
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from chatrelay import wire
from chatrelay.interfaces import Denied, LoggedIn, Unavailable, Verdict

TWISTED_NAMES = ("HTTPConnectionPool._factory", "HTTPConnectionPool.getConnection", "HTTPConnectionPool.persistent")
"""What we use of `twisted.web.client` that its documentation does not promise; a test looks them up."""

MAX_ANSWER = 8 * 1024
"""Bytes of the webserver's answer, decoded."""

MAX_TOLD = 200
"""Characters of an answer that the operator is told, at most."""

SLICE = 512
"""Bytes of an encoded answer that are decoded at once; deflate makes at most some thousand times as many of them."""

PLACEHOLDER = "http://webserver.invalid/"
"""What treq is told to post to. It knows no IPv6 address in a URL; Twisted's agent, which gets the real one, does."""

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
    :param tls_policy: how the site's certificate is verified; by default against the system's authorities.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        format: str = "form",
        secret: str | None = None,
        timeout: float = 5.0,
        checks: int = 32,
        queue_timeout: float = 10.0,
        tls_policy: IPolicyForHTTPS | None = None,
    ) -> None:
        self._reactor = reactor
        self._url = url
        self._site = urlsplit(url)._replace(query="", fragment="").geturl()
        self._format = format
        self._headers = Headers({b"accept": [b"application/json"]})
        if secret is not None:
            self._headers.addRawHeader(b"authorization", b"Bearer " + secret.encode("ascii"))
        self._timeout = timeout
        self._queue_timeout = queue_timeout
        self._turns = DeferredSemaphore(checks) if checks else None
        self._tls_policy = {} if tls_policy is None else {"contextFactory": tls_policy}
        self._connect_timeout = timeout or None
        self._pool = _QuietPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = checks or 100
        # Twisted's own retries are for requests that may be repeated; ours is `_post`.
        self._pool.retryAutomatically = False
        self._kept: WeakSet[object] = WeakSet()

    def authenticate(self, sessid: str) -> Deferred[Verdict]:
        """Ask the webserver about `sessid`; trouble comes as `Unavailable`."""
        return Deferred.fromCoroutine(self._authenticate(sessid))

    def close(self) -> Deferred[None]:
        """Close the connections that are kept to the webserver."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def _authenticate(self, sessid: str) -> Verdict:
        try:
            await self._turn()
        except TimeoutError:
            return self._trouble("too many questions were waiting for it (webserver-checks)", sessid)
        try:
            asking = Deferred.fromCoroutine(self._ask(sessid))
            if self._timeout:
                asking.addTimeout(self._timeout, self._reactor)
            return await asking
        except TimeoutError:
            return self._trouble(f"no complete answer within {self._timeout:g} s", sessid)
        except _NoVerdict as trouble:
            return self._trouble(str(trouble), sessid)
        finally:
            if self._turns is not None:
                self._turns.release()

    def _turn(self) -> Deferred[Any]:
        """Wait until this question may go out."""
        if self._turns is None:
            turn: Deferred[Any] = Deferred()
            turn.callback(None)
            return turn
        turn = self._turns.acquire()
        if self._queue_timeout and not turn.called:
            turn.addTimeout(self._queue_timeout, self._reactor)
        return turn

    def _trouble(self, what: str, sessid: str) -> Unavailable:
        # A site may say the session id back: in an error page, in a redirect.
        what = without(sessid, what)
        what = what if len(what) <= MAX_TOLD else what[:MAX_TOLD] + "…"
        self.log.warn("the webserver at {url} could not be asked: {what}", url=self._site, what=what)
        return Unavailable(what)

    async def _ask(self, sessid: str) -> Verdict:
        lease = _Lease(self._pool, self._kept)
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
            return verdict(await _read(response))
        except _REQUEST_FAILURES as error:
            lease.abandon()
            if _was_cancelled(error):
                raise CancelledError from error
            raise _NoVerdict(describe(error)) from error
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
        agent = Agent(self._reactor, connectTimeout=self._connect_timeout, pool=lease, **self._tls_policy)
        # A client of its own for each question: treq keeps cookies in the
        # client, and one user's must not go out with another's question.
        client = HTTPClient(_SlicingAgent(agent, self._url.encode("ascii")))
        body: dict[str, Any] = {"json" if self._format == "json" else "data": {"SESSID": sessid}}
        requested: Deferred[Any] = client.post(
            PLACEHOLDER, headers=self._headers.copy(), allow_redirects=False, unbuffered=True, **body
        )
        return requested


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
    if wire.is_uid(uid):
        return LoggedIn(uid)
    raise _NoVerdict(
        f'its answer has no "uID" that is a string of 1 to {wire.MAX_TOKEN} printable characters '
        f"or an integer within ±2^53: {_start(body)}"
    )


def describe(error: BaseException) -> str:
    """One line on a failed request, with what is behind Twisted's list of reasons."""
    reasons: Iterable[Failure] = getattr(error, "reasons", None) or ()
    inner = [describe(reason.value) for reason in reasons if reason.value is not None]
    if inner:
        return "; ".join(dict.fromkeys(inner))
    text = " ".join(str(error).split())
    if "wrong version number" in text:
        return "it does not speak TLS on that port (http:// instead of https://, perhaps)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _NoVerdict(ValueError):
    """The webserver's answer, or the lack of one, decides nothing."""


def _start(body: bytes) -> str:
    """An answer in a form that is safe to print; who prints it shortens it."""
    return ascii(body.decode("utf-8", "replace"))


def without(sessid: str, text: str) -> str:
    """A text with the session id taken out, in every form it may have come back in."""
    raw = sessid.encode("utf-8")
    mangled = raw.decode("latin-1")  # as headers are read
    forms = {sessid, quote(sessid), quote(sessid, safe=""), quote_plus(sessid), mangled}
    forms |= {ascii(sessid)[1:-1], ascii(mangled)[1:-1], repr(raw)[2:-1]}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "<SESSID>")
    return text


def _was_cancelled(error: BaseException) -> bool:
    """Whether a request failed because we gave it up; Twisted wraps that in other failures."""
    if isinstance(error, CancelledError | ConnectingCancelledError):
        return True
    return any(_was_cancelled(reason.value) for reason in getattr(error, "reasons", ()) if reason.value is not None)


_UNHEARD = (ResponseNeverReceived, RequestTransmissionFailed)
"""Failures before a byte of the answer."""

_REQUEST_FAILURES = (
    *_UNHEARD,
    RequestGenerationFailed,
    ResponseFailed,
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
)


async def _read(response: Any) -> bytes:
    """The body, decoded, up to its limit.

    :raises _NoVerdict: past it.
    """
    chunks: list[bytes] = []
    size = 0

    def take(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > MAX_ANSWER:
            # treq closes the connection on what its collector raises.
            raise _NoVerdict(f"its answer is larger than {MAX_ANSWER} bytes")
        chunks.append(chunk)

    await collect(response, take)
    return b"".join(chunks)


# Between treq and Twisted's connections --------------------------------------


class _QuietFactory(HTTPConnectionPool._factory):  # type: ignore[misc,valid-type]
    """Makes connections to the webserver without a log line for each."""

    noisy = False


class _QuietPool(HTTPConnectionPool):
    _factory = _QuietFactory


@attrs.define
class _Lease:
    """One request's view of the connection pool: which connection it got.

    :ivar pool: where the connection comes from.
    :ivar kept: whether the connection had served a request before.
    """

    pool: HTTPConnectionPool
    _seen: WeakSet[object]
    kept: bool = False
    _connection: Any = None

    @property
    def persistent(self) -> bool:
        """Whether `Agent` may leave the connection open; it asks this of a pool."""
        return bool(self.pool.persistent)

    def getConnection(self, key: Any, endpoint: Any) -> Deferred[Any]:
        """What `Agent` asks of a pool."""

        def note(connection: Any) -> Any:
            self.kept = connection in self._seen
            self._seen.add(connection)
            self._connection = connection
            return connection

        return self.pool.getConnection(key, endpoint).addCallback(note)

    def abandon(self) -> None:
        """Cut the connection: what is left of the answer is not wanted."""
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.abortConnection()


@implementer(IAgent)
@attrs.frozen
class _SlicingAgent:
    """Asks the URL that is meant, and hands bodies on in small slices.

    The slices are there so that a compressed answer can't grow past its limit
    unseen.
    """

    _agent: Agent
    _uri: bytes

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[IResponse]:
        """What treq asks of an agent."""
        return self._agent.request(method, self._uri, headers, bodyProducer).addCallback(_SlicedResponse)


class _SlicedResponse(proxyForInterface(IResponse)):  # type: ignore[misc]  # a class made at run time
    def deliverBody(self, protocol: Protocol) -> None:
        self.original.deliverBody(_Slicer(protocol))


class _Slicer(Protocol):
    def __init__(self, receiver: Protocol) -> None:
        self._receiver = receiver

    def connectionMade(self) -> None:
        self._receiver.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE):
            self._receiver.dataReceived(data[start : start + SLICE])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._receiver.connectionLost(reason)
