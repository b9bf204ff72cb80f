"""The close of a connection: who closed it, with which close code and why, and what of that is logged.

Pure, apart from log messages. This module must not know how a connection is closed. A reason is in the relay's words or
in OpenSSL's, never in a client's.

People overlook other messages among thousands of lines. So a log in text has a limited number of closes between two
sweeps, and closes that anybody can cause without a login are logged at debug. Programs count closes. So a log in JSON
has every close, at info.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import attrs
from OpenSSL.SSL import Error as TLSError
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import Logger, LogLevel

from chatrelay.limits.admission import LimitReached
from chatrelay.wire.codes import CloseCode

log = Logger("chatrelay.websocket")

NO_CODE, NO_CLOSE_FRAME = 1005, 1006
"""The close codes for a close frame without one, and for no close frame. They are never sent (RFC 6455, 7.4.1)."""

MAX_LOGGED_PER_SWEEP = 25
"""The most log messages of one kind between two sweeps."""

CONNECTION, HANDSHAKE, VISITOR, USER = "connection", "handshake", "visitor", "user"
"""The phase in which a connection closed: refused when it was accepted; in its handshake; before a login; after one."""


@attrs.frozen
class CloseCause:
    """The first event that closed a connection. Its consequences are not causes.

    :ivar by: which side closed it: ``relay``, ``client``, or ``network`` if the connection broke.
    :ivar code: the close code; `NO_CODE` or `NO_CLOSE_FRAME` if there is none; the HTTP status of a refused handshake.
    :ivar reason: the reason, without any text from a client.
    """

    by: str
    code: int
    reason: str


DEFECT = CloseCause("relay", NO_CLOSE_FRAME, "a defect, logged before this")
DID_NOT_CLOSE = CloseCause("relay", NO_CLOSE_FRAME, "it did not close in time")
NO_HANDSHAKE_IN_TIME = CloseCause("relay", NO_CLOSE_FRAME, "no handshake in time")
NO_PROXY_HEADER = CloseCause("relay", NO_CLOSE_FRAME, "no header of the PROXY protocol came first")
PROXY_CLOSED = CloseCause("client", 1001, "a proxy in between closed it")
STOPPING = CloseCause("relay", NO_CLOSE_FRAME, "the relay is stopping")
TLS_CLOSED = CloseCause("client", NO_CLOSE_FRAME, "TLS: closed without a close frame, and what waits is not read")


def printable(text: str) -> str:
    """Return a client's text in a form that is safe to show in a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def status_when_full(full: LimitReached) -> int:
    """Return the HTTP status of the response to a handshake that is refused because a limit is reached."""
    return (HTTPStatus.TOO_MANY_REQUESTS if full.is_per_address else HTTPStatus.SERVICE_UNAVAILABLE).value


def of_frame(code: int | None, reason: bytes | None, is_reply: bool) -> CloseCause:
    """Return the cause of a closing handshake.

    :param code: the code in the first close frame, if it has one.
    :param reason: the reason in the relay's frame, UTF-8. A client's reason is not logged.
    :param is_reply: whether the client has begun the closing handshake.
    """
    if is_reply:
        return CloseCause("client", code or NO_CODE, "it closed")
    return CloseCause("relay", code or NO_CODE, printable((reason or b"").decode("utf-8", "replace")))


def is_broken_stream(cause: CloseCause | None) -> bool:
    """Return whether the relay closed because of invalid frames, or text that is not UTF-8 (1002, 1007)."""
    return (
        cause is not None
        and cause.by == "relay"
        and cause.code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_PAYLOAD)
    )


def of_loss(error: BaseException, over_tls: bool = False, unacknowledged: float = 0.0) -> CloseCause:
    """Return the cause of a connection that was lost before anything closed it.

    :param error: Twisted's reason.
    :param over_tls: whether the connection used TLS. If TLS ends without its closing alert, Twisted's reason is the
        same as for a TCP connection that is reset.
    :param unacknowledged: if the system gave the connection up, the seconds without an acknowledgement until then; else
        0.
    """
    if isinstance(error, ConnectionDone):
        return CloseCause("client", NO_CLOSE_FRAME, "closed without a close frame")
    if isinstance(error, ConnectionAborted):
        return CloseCause("relay", NO_CLOSE_FRAME, "cut")
    if isinstance(error, TLSError):
        return CloseCause("network", NO_CLOSE_FRAME, f"TLS: {_of_tls(error)}")
    if not isinstance(error, ConnectionLost):
        return DEFECT
    if unacknowledged:
        return CloseCause("network", NO_CLOSE_FRAME, f"timed out: nothing acknowledged for {unacknowledged:.0f} s")
    return CloseCause("network", NO_CLOSE_FRAME, "TLS: cut off without a goodbye" if over_tls else "reset by peer")


def _of_tls(error: TLSError) -> str:
    """Return OpenSSL's text for an error. A client's alert can select one of OpenSSL's texts, but not write one."""
    queue = error.args[0] if error.args else None
    return str(queue[-1][-1])[:100] if isinstance(queue, list) and queue else "failed"


class LogLimiter:
    """Allows `MAX_LOGGED_PER_SWEEP` messages of one kind between two calls of `report`, and counts the others.

    It is for log messages that anybody can cause, such as one for each refused handshake.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def allow(self, kind: str) -> bool:
        """Count one more log message, and return whether to log it.

        :param kind: what it is about, for the operator, such as ``handshakes refused``.
        """
        self._counts[kind] += 1
        return self._counts[kind] <= MAX_LOGGED_PER_SWEEP

    def report(self) -> None:
        """Log how many messages were not allowed, and restart the count."""
        counts, self._counts = self._counts, Counter()
        for kind, count in counts.items():
            if count > MAX_LOGGED_PER_SWEEP:
                log.info(
                    "too many log messages at once: {count} more {what}",
                    count=count - MAX_LOGGED_PER_SWEEP,
                    what=kind,
                )


class _Outgoing(Protocol):
    @property
    def unacknowledged(self) -> float: ...


class _Remote(Protocol):
    @property
    def has_proxy_protocol(self) -> bool: ...

    @property
    def name(self) -> str: ...


class _Session(Protocol):
    @property
    def uid(self) -> str | int | None: ...


class LostConnection(Protocol):
    """A connection that is lost.

    :ivar close_cause: the event that closed it before it was lost; None if there was none.
    """

    @property
    def close_cause(self) -> CloseCause | None: ...

    @property
    def outgoing(self) -> _Outgoing: ...

    @property
    def remote(self) -> _Remote: ...

    @property
    def session(self) -> _Session | None: ...

    @property
    def transport(self) -> Any: ...


class ConnectionLog:
    """Logs the close of every connection that was accepted: one event with its `phase`, and no other.

    :param logs_each: whether to log every close at info, for a program that reads the log.
    :param allow: called with a kind of message; counts one, and returns whether to log it. Not called if `logs_each`.
    """

    def __init__(self, logs_each: bool, allow: Callable[[str], bool]) -> None:
        self._level = LogLevel.info if logs_each else LogLevel.debug
        self._allow: Callable[[str], bool] = (lambda what: True) if logs_each else allow

    def connection_refused(self, peer: str, full: LimitReached) -> None:
        """Log that a connection was refused, because a limit on connections is reached."""
        if self._allow("connections refused"):
            log.info(
                "connection from {peer} refused: {reason} ({option} {most})",
                option=full.option,
                most=full.limit,
                **_fields(CONNECTION, peer, 0.0, CloseCause("relay", status_when_full(full), full.why)),
            )

    def connection_cut(self, peer: str) -> None:
        """Log that a client connected after the relay had stopped."""
        log.emit(self._level, "connection from {peer} cut: {reason}", **_fields(CONNECTION, peer, 0.0, STOPPING))

    def handshake_refused(self, peer: str, seconds: float, status: int, reason: str) -> None:
        """Log that a handshake was answered with an HTTP error."""
        if self._allow("handshakes refused"):
            log.info(
                "handshake from {peer} refused with {code}: {reason}",
                **_fields(HANDSHAKE, peer, seconds, CloseCause("relay", status, reason)),
            )

    def no_handshake(self, peer: str, seconds: float, status: int, reason: str) -> None:
        """Log that a request that is not a handshake was answered with an HTTP error: a health check or a scanner."""
        log.emit(
            self._level,
            "no handshake from {peer}, refused with {code}: {reason}",
            **_fields(HANDSHAKE, peer, seconds, CloseCause("relay", status, reason)),
        )

    def lost(self, connection: LostConnection, seconds: float, error: BaseException) -> None:
        """Log that a connection is gone.

        :param seconds: how long its last phase took: the handshake, or the time since the handshake was complete.
        :param error: Twisted's reason.
        """
        session, transport, peer = connection.session, connection.transport, connection.remote
        cause = connection.close_cause
        if cause is None and session is None and peer.has_proxy_protocol and transport.disconnecting:
            cause = NO_PROXY_HEADER
        elif cause is None:
            over_tls = ISSLTransport.providedBy(transport)
            cause = of_loss(error, over_tls, connection.outgoing.unacknowledged)
        uid = None if session is None else session.uid
        phase = HANDSHAKE if session is None else VISITOR if uid is None else USER
        self.closed(phase, uid, peer.name, seconds, cause)

    def closed(self, phase: str, uid: str | int | None, peer: str, seconds: float, cause: CloseCause) -> None:
        """Log that a connection has closed.

        :param phase: `HANDSHAKE`, `VISITOR` or `USER`.
        :param uid: the uID of its user; None if it was not logged in.
        :param seconds: how long its last phase took: the handshake, or the time since the handshake was complete.
        """
        fields = _fields(phase, peer, seconds, cause)
        if phase == HANDSHAKE:
            log.emit(
                self._level,
                "connection from {peer} ended by the {by} in its handshake, after {seconds} s: {reason}",
                **fields,
            )
        elif phase == VISITOR:
            log.emit(
                self._level,
                "connection of a visitor from {peer} ended by the {by} with {code} after {seconds} s: {reason}",
                **fields,
            )
        elif self._allow("connections ended"):
            log.info(
                "connection of {uid} from {peer} ended by the {by} with {code} after {seconds} s: {reason}",
                uid=uid,
                **fields,
            )


def _fields(phase: str, peer: str, seconds: float, cause: CloseCause) -> dict[str, Any]:
    """Return the fields that all these events have."""
    return {
        "phase": phase,
        "peer": peer,
        "by": cause.by,
        "code": cause.code,
        "reason": cause.reason,
        "seconds": round(seconds, 3),
    }
