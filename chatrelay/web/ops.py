"""The ops endpoint: HTTP for the operator and the site, to check the relay's health and to end sessions.

It has a separate port, for the machine itself or for the operator's own network. It sends JSON, writes no access log,
and never shows a SESSID. This module must not know how a session is ended.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from chatrelay.auth.session_index import SessionIndex
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.model import MAX_SESSID, MAX_TOKEN, LogUnavailable, is_uid

MAX_BODY = 64 * 1024
"""The most bytes of a request's body. An escaped character takes up to 12 bytes, and the longest SESSID has 4,096."""

REQUEST_SECONDS = 10.0
"""The most seconds from the start of a connection until the client has taken the last byte of the response."""

MAX_CONNECTIONS = 16
"""The most connections at once; `chatrelay.app.descriptors` reserves a descriptor for each."""

SAVE_SECONDS = 5.0
"""The most seconds that a request to end sessions waits until the end of them is saved."""

Readiness = Callable[[], str | None]
"""Returns why the relay accepts no clients now; None if it accepts them."""


class Refusal(Exception):
    """A request that is refused.

    :ivar status: the HTTP status.
    :ivar reason: a word for programs.
    :ivar detail: a sentence for people, with the remedy.
    :ivar headers: further headers of the response.
    """

    def __init__(self, status: HTTPStatus, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = headers or {}


class Revocation(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request to ``/v1/revoke``: the user or the SESSID whose connections to close."""

    uid: str | int | UnsetType = field(name="uID", default=UNSET)
    sessid: Annotated[str, Meta(min_length=1, max_length=MAX_SESSID)] | UnsetType = field(name="SESSID", default=UNSET)

    def __repr__(self) -> str:  # a session id is never logged, anywhere
        return "Revocation(<hidden>)"


@attrs.frozen
class _Route:
    """One path: the methods that it allows, and what makes its response.

    :ivar methods: the methods that it allows.
    :ivar answer: makes the JSON value of a response with status 200, or a Deferred that fires with one.
    """

    methods: tuple[str, ...]
    answer: Callable[[Request], object]


def _no_tokens() -> Deferred[None]:
    """Return a Deferred that has fired: no token has to be revoked."""
    return succeed(None)


class Ops(Resource):
    """All paths of the ops endpoint.

    :param index: ends sessions.
    :param not_ready: returns why the relay accepts no clients, or None.
    :param token: the bearer token that ``/v1/revoke`` needs; None if nobody may use it.
    :param clock: for time.
    :param saved: called after sessions were ended. Its Deferred fires when no resume token of theirs can be used any
        more, even if this process ends now, and fails with `LogUnavailable` if that is not so.
    """

    isLeaf = True

    def __init__(
        self,
        index: SessionIndex,
        not_ready: Readiness,
        token: str | None,
        clock: IReactorTime,
        saved: Callable[[], Deferred[None]] = _no_tokens,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._saved = saved
        self._index = index
        self._not_ready = not_ready
        self._token = token
        self._routes = {
            b"/healthz": _Route(("GET", "HEAD"), self._healthz),
            b"/readyz": _Route(("GET", "HEAD"), self._readyz),
            b"/v1/revoke": _Route(("POST",), self._revoke),
        }

    def render(self, request: Request) -> int:
        """Answer a request, now or later. twisted.web calls this."""
        answering = maybeDeferred(lambda: self._route(request).answer(request))
        answering.addCallbacks(self._answered, self._refused, callbackArgs=(request,), errbackArgs=(request,))
        answering.addErrback(_failed, request)
        if not answering.called:
            request.notifyFinish().addErrback(lambda _: answering.cancel())
        return NOT_DONE_YET

    def _answered(self, value: object, request: Request) -> None:
        self._respond(request, HTTPStatus.OK, value)

    def _refused(self, failure: Failure, request: Request) -> None:
        failure.trap(Refusal)
        refusal = failure.value
        assert isinstance(refusal, Refusal)
        for name, text in refusal.headers.items():
            request.setHeader(name, text)
        self._respond(request, refusal.status, {"reason": refusal.reason, "detail": refusal.detail})

    def _respond(self, request: Request, status: HTTPStatus, value: object) -> None:
        body = msgspec.json.encode(value) + b"\n"
        request.setResponseCode(status, status.phrase.encode("ascii"))
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Content-Length", str(len(body)))
        request.setHeader("Cache-Control", "no-store")
        # When the relay stops, it would have to wait for a connection that is kept open. The header tells the client
        # that it is closed, and `persistent` tells twisted.web, which does not read the header.
        request.setHeader("Connection", "close")
        request.channel.persistent = False
        if request.method != b"HEAD":
            request.write(body)
        request.finish()

    def _route(self, request: Request) -> _Route:
        route = self._routes.get(request.path)
        if route is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND, "not-found", "there are GET /healthz, GET /readyz and POST /v1/revoke here"
            )
        if request.method.decode("latin-1") not in route.methods:
            allowed = ", ".join(route.methods)
            raise Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", f"this path takes {allowed}", {"Allow": allowed}
            )
        return route

    def _healthz(self, request: Request) -> object:
        return {"status": "alive"}

    def _readyz(self, request: Request) -> object:
        why = self._not_ready()
        if why is not None:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not-ready", why)
        return {"status": "ready"}

    def _revoke(self, request: Request) -> object:
        self._check_token(request)
        wanted = _revocation(request)
        if isinstance(wanted.sessid, str):
            ended = self._index.end_session(wanted.sessid)
        else:
            assert not isinstance(wanted.uid, UnsetType)
            ended = self._index.end_user(wanted.uid)
        saved = self._saved().addTimeout(SAVE_SECONDS, self._clock)
        return saved.addCallbacks(lambda _: {"ended": ended}, _not_saved)

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "no-token",
                "the relay was started without a token, so nobody may do this: name a file that holds one with "
                "ops-token-file, and restart it",
            )
        given = request.getHeader(b"authorization") or b""
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token.encode("ascii")):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "send the header Authorization: Bearer with the token that is in the relay's ops-token-file",
                {"WWW-Authenticate": "Bearer"},
            )


def _not_saved(failure: Failure) -> None:
    failure.trap(LogUnavailable, TimeoutError)
    raise Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "not-saved",
        "the connections are closed and this relay accepts no resume token of theirs, but its message log can't be "
        "written now: if it is killed before that succeeds, such a token can be used. Repeat the request until its "
        "status is 200",
    )


def _failed(failure: Failure, request: Request) -> None:
    """Answer a request with 500 because of a defect, unless the client has gone."""
    if not failure.check(CancelledError):
        request.processingFailed(failure)


def _revocation(request: Request) -> Revocation:
    """Decode a request to ``/v1/revoke``.

    :raises Refusal: for an invalid one.
    """
    content_type = (request.getHeader(b"content-type") or b"").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "send JSON, as Content-Type: application/json"
        )
    body = request.content.read()  # type: ignore[union-attr]  # OpsRequest always has one
    if len(body) > MAX_BODY:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"the body is larger than {MAX_BODY} bytes: send less"
        )
    form = 'send {"uID": …} or {"SESSID": …}'
    try:
        wanted = _decode(body.decode("utf-8"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # Errors of msgspec contain types and keys, but no values. An unknown key may be a secret, so it is not quoted.
        # The other two errors would quote the body.
        why = str(error) if isinstance(error, msgspec.MsgspecError) else "not JSON"
        if " unknown field " in why:
            why = "there is a key that is neither uID nor SESSID"
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid-request", f"{why}: {form}") from None
    if isinstance(wanted.uid, UnsetType) == isinstance(wanted.sessid, UnsetType):
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid-request", f"exactly one of uID and SESSID is needed: {form}")
    if not isinstance(wanted.uid, UnsetType) and not is_uid(wanted.uid):
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            "invalid-request",
            f"a uID is a string of 1 to {MAX_TOKEN} printable characters, or an integer within ±2^53: {form}",
        )
    return wanted


_decode = msgspec.json.Decoder(Revocation).decode


class OpsRequest(Request):
    """A request with a limited body. twisted.web would accept a body of any length, and write a long one to disk."""

    def gotLength(self, length: int | None) -> None:
        """Make room for the body: the headers are complete. twisted.web calls this."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a part of the body, up to one byte beyond the limit, which shows that it is too large."""
        assert self.content is not None
        self.content.write(data[: MAX_BODY + 1 - self.content.tell()])


class OpsSite(Site):
    """Serves the ops endpoint."""

    noisy = False

    def __init__(self, ops: Ops, reactor: IReactorTime) -> None:
        # twisted.web's own timeout restarts with each byte. The one of BoundedConnections does not.
        super().__init__(ops, OpsRequest, timeout=None, reactor=reactor, parsePOSTFormSubmission=False)

    def startFactory(self) -> None:
        """Do nothing when a port begins to listen: the base class would start an access log, and a timer."""


class _BoundedConnection(ProtocolWrapper):
    """A connection that is ended after `REQUEST_SECONDS`, whatever it sends."""

    factory: BoundedConnections
    transport: Any  # whichever of Twisted's stream transports the endpoint makes

    def makeConnection(self, transport: Any) -> None:
        """Count a connection that was made. Twisted calls this."""
        super().makeConnection(transport)
        self.factory.opened(self)

    def end(self) -> None:
        """End the connection, even if the response is not read."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop counting a connection that is gone. Twisted calls this."""
        self.factory.ended(self)
        super().connectionLost(reason)


class BoundedConnections(WrappingFactory[_BoundedConnection]):
    """Limits the number and the time of a site's connections, so that its port can't use up the descriptors.

    A connection beyond the limit ends the oldest one. Requests are answered at once, or within `SAVE_SECONDS`. So the
    oldest connection has sent no request, or waits for the message log, and health checks are still served.

    :param site: the site that serves the connections.
    :param clock: for time.
    """

    protocol = _BoundedConnection
    noisy = False

    def __init__(self, site: Site, clock: IReactorTime) -> None:
        super().__init__(site)
        self._open: dict[_BoundedConnection, None] = {}
        self._timer: DeadlineTimer[_BoundedConnection] = DeadlineTimer(clock, REQUEST_SECONDS, _BoundedConnection.end)

    def opened(self, connection: _BoundedConnection) -> None:
        """Count a connection that was made; if it is one too many, end the oldest."""
        self._open[connection] = None
        self._timer.start(connection)
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.end()

    def ended(self, connection: _BoundedConnection) -> None:
        """Stop counting a connection that is gone."""
        self._open.pop(connection, None)
        self._timer.stop(connection)


def on_loopback(description: str) -> str:
    """Return the description of an endpoint that listens on the loopback interface, unless it names another one.

    :param description: a Twisted endpoint string.
    """
    kind = description.removeprefix("haproxy:").partition(":")[0]
    interface = {"tcp": "127.0.0.1", "ssl": "127.0.0.1", "tcp6": r"\:\:1"}.get(kind)
    if interface is None or ":interface=" in description:
        return description
    return f"{description}:interface={interface}"
