"""The opening of a connection: collect the pieces of its handshake for Autobahn, or refuse the connection.

This module must not know origins, cookies or addresses (`chatrelay.websocket.handshake`, `chatrelay.websocket.peer`).
`chatrelay.websocket.protocol` chooses the dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import ISSLTransport
from twisted.python.failure import Failure

from chatrelay.limits.admission import LimitReached
from chatrelay.websocket.autobahn import AutobahnProtocol
from chatrelay.websocket.closing import status_when_full
from chatrelay.websocket.handshake import DEFECT, http_error, log_defect
from chatrelay.websocket.states import Event
from chatrelay.wire.extensions import BrokenOffers, acceptable
from chatrelay.wire.request_head import END_OF_HEADERS, EXTENSIONS, BrokenHead, RequestHead

MAX_REFUSED = 16
"""The most connections beyond a limit whose response waits until they send something. More are answered at once."""


def refuse(connection: AutobahnProtocol, full: LimitReached) -> None:
    """Refuse a connection that was just accepted. No handshake is read, and its descriptor is free soon.

    :param full: the limit that is reached.
    """
    parts, registry = connection.factory.parts, connection.factory.registry
    connection.advance(Event.REFUSED)
    parts.connection_log.connection_refused(connection.remote.name, full)
    if ISSLTransport.providedBy(connection.transport):
        registry.refused[connection] = b""  # a response would need a TLS handshake first
        connection.advance(Event.ABORTED)
        connection.transport.abortConnection()
        return
    registry.refused[connection] = http_error(status_when_full(full), full.why)
    # Many clients fail at a response that comes before their request, or lose it. So the response usually waits.
    if len(registry.refused) > MAX_REFUSED:
        answer_refused(connection)


def answer_refused(connection: AutobahnProtocol) -> None:
    """Send the response to a refused connection, and close it."""
    refused = connection.factory.registry.refused
    response, refused[connection] = refused[connection], b""
    connection.advance(Event.ABORTED)
    connection.transport.write(response)
    connection.transport.loseConnection()


def take_handshake(connection: AutobahnProtocol, data: bytes) -> None:
    """Take a part of an opening handshake, which Autobahn would buffer without limit. Read it once it is complete."""
    limit, before = connection.factory.parts.config.handshake_size, connection.data
    # Of the bytes that came before, only the last three are searched again, however small the pieces are.
    tail = before[1 - len(END_OF_HEADERS) :]
    end = (tail + data).find(END_OF_HEADERS)
    size = len(before) + len(data) if end < 0 else len(before) - len(tail) + end + len(END_OF_HEADERS)
    if limit and size > limit:
        _refuse_excess(connection, f"the opening handshake is larger than {limit} bytes")
    elif end < 0:
        connection.data = before + data
    else:
        whole = before + data
        connection.data = b""
        _read(connection, whole[:size], whole[size:])


def _read(connection: AutobahnProtocol, raw: bytes, rest: bytes) -> None:
    """Have Autobahn read a handshake.

    :param raw: the handshake.
    :param rest: the bytes that came after it.
    """
    try:
        head = RequestHead.of(raw)
        too_much = head.excess()
        if too_much is not None:
            _refuse_excess(connection, too_much)
            return
        offers = acceptable(str(value, "latin-1") for value in head.values(EXTENSIONS))
    except (BrokenHead, BrokenOffers) as broken:
        why = str(broken)
    else:
        # Autobahn calls this wrapper of `onConnect`, which may be a subclass's own method.
        vars(connection)["onConnect"] = partial(_connect, connection, connection.onConnect, head)
        try:
            compression = connection.factory.parts.config.compression
            connection.feed(head.for_autobahn(offers if compression else None) + rest)
        finally:
            vars(connection).pop("onConnect", None)
        return
    connection.failHandshake(why)


def _refuse_excess(connection: AutobahnProtocol, why: str) -> None:
    connection.failHandshake(why, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def _connect(
    connection: AutobahnProtocol,
    connect: Callable[[ConnectionRequest], Any],
    head: RequestHead,
    request: ConnectionRequest,
) -> Deferred[Any]:
    """Call `onConnect`, and refuse the handshake if that fails. Autobahn would send the exception's text to the client.

    :param head: the handshake as it came, for a subclass to read.
    """

    def deny(failure: Failure) -> Failure:
        if failure.check(ConnectionDeny):
            return failure
        log_defect(connection.factory.parts.log_limiter, failure)
        return Failure(ConnectionDeny(ConnectionDeny.INTERNAL_SERVER_ERROR, DEFECT))

    connection.http_request_data = head.raw
    request.headers.update(head.altered())
    connecting: Deferred[Any] = maybeDeferred(connect, request)
    return connecting.addErrback(deny)
