"""How a connection ended: who ended it, with which close code and why, and what of that the operator is told.

Pure. Every connection that is accepted ends once, and in one of four phases:
it was turned away as it came, or in its handshake, or as a visitor's, or as a
user's. Why is said in words of ours or of OpenSSL's, never in a stranger's.

People overlook what else is said among thousands of lines, so that in text
only so many are told at once, and what anybody can cause without a login is
told at the level debug. Programs count: in JSON each end is told, at info.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from OpenSSL.SSL import Error as TLSError
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.logger import Logger, LogLevel

from chatrelay.limits.admission import Full
from chatrelay.wire.codes import CloseCode

log = Logger("chatrelay.websocket")

NO_CODE, NO_CLOSE_FRAME = 1005, 1006
"""What stands for the close code where there is none; never on the wire (RFC 6455, section 7.4.1)."""

CONNECTION, HANDSHAKE, VISITOR, USER = "connection", "handshake", "visitor", "user"
"""How far a connection got: turned away as it came; its handshake, and that of TLS before it; no login; a login."""


@attrs.frozen
class End:
    """The first thing that ended a connection; what follows from it is no further end.

    :ivar by: ``relay``, ``client``, or ``network`` where it broke.
    :ivar code: the close code; `NO_CODE` or `NO_CLOSE_FRAME` where there is none; of what was refused, the HTTP status.
    :ivar reason: why, in words that no client chose.
    """

    by: str
    code: int
    reason: str


DEFECT = End("relay", NO_CLOSE_FRAME, "a defect, told before this")
DID_NOT_LEAVE = End("relay", NO_CLOSE_FRAME, "it did not leave in time")
NO_HANDSHAKE_IN_TIME = End("relay", NO_CLOSE_FRAME, "no handshake in time")
NO_PROXY_HEADER = End("relay", NO_CLOSE_FRAME, "no header of the PROXY protocol came first")
PROXY_CLOSED = End("client", 1001, "a proxy in between closed it")
STOPPING = End("relay", NO_CLOSE_FRAME, "the relay is stopping")
TLS_CLOSED = End("client", NO_CLOSE_FRAME, "TLS: closed without a close frame, and what waits is not read")


def is_broken_stream(end: End | None) -> bool:
    """Whether the relay ended a connection as its bytes are no frames, or text that is not UTF-8 (1002, 1007)."""
    return end is not None and end.by == "relay" and end.code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_PAYLOAD)


def of_lost(error: BaseException, over_tls: bool = False, unacknowledged: float = 0.0) -> End:
    """What ended a connection that was lost without a word before.

    :param error: Twisted's reason.
    :param over_tls: whether TLS was spoken on it, whose end without a goodbye is one error with all others of TCP.
    :param unacknowledged: for how many seconds nothing that was sent had been acknowledged when the system gave it up;
        0 where it did not.
    """
    if isinstance(error, ConnectionDone):
        return End("client", NO_CLOSE_FRAME, "closed without a close frame")
    if isinstance(error, ConnectionAborted):
        return End("relay", NO_CLOSE_FRAME, "cut")
    if isinstance(error, TLSError):
        return End("network", NO_CLOSE_FRAME, f"TLS: {_of_tls(error)}")
    if not isinstance(error, ConnectionLost):
        return DEFECT
    if unacknowledged:
        return End("network", NO_CLOSE_FRAME, f"timed out: nothing acknowledged for {unacknowledged:.0f} s")
    return End("network", NO_CLOSE_FRAME, "TLS: cut off without a goodbye" if over_tls else "reset by peer")


def _of_tls(error: TLSError) -> str:
    """The reason in OpenSSL's words: of those that it has, an alert of the client's chooses one."""
    queue = error.args[0] if error.args else None
    return str(queue[-1][-1])[:100] if isinstance(queue, list) and queue else "failed"


class EndLines:
    """What the operator is told: of each connection that was accepted, one event with its `phase`, and no other.

    :param of_each: whether a program reads them, and is told of each.
    :param may_tell: whether there may be one more of these now; else it counts it. Not asked where each is told.
    """

    def __init__(self, of_each: bool, may_tell: Callable[[str], bool]) -> None:
        self._level = LogLevel.info if of_each else LogLevel.debug
        self._may_tell: Callable[[str], bool] = (lambda what: True) if of_each else may_tell

    def connection_refused(self, peer: str, full: Full) -> None:
        """There are as many as there may be."""
        if self._may_tell("connections refused"):
            log.info(
                "connection from {peer} refused: {reason} ({option} {most})",
                option=full.option,
                most=full.most,
                **_fields(CONNECTION, peer, 0.0, End("relay", full.status, full.why)),
            )

    def connection_cut(self, peer: str) -> None:
        """Somebody came when the relay had stopped."""
        log.emit(self._level, "connection from {peer} cut: {reason}", **_fields(CONNECTION, peer, 0.0, STOPPING))

    def handshake_refused(self, peer: str, seconds: float, status: int, reason: str) -> None:
        """A handshake was answered with an HTTP error."""
        if self._may_tell("handshakes refused"):
            log.info(
                "handshake from {peer} refused with {code}: {reason}",
                **_fields(HANDSHAKE, peer, seconds, End("relay", status, reason)),
            )

    def no_handshake(self, peer: str, seconds: float, status: int, reason: str) -> None:
        """So was what is none at all, mostly a health check or a scanner."""
        log.emit(
            self._level,
            "no handshake from {peer}, refused with {code}: {reason}",
            **_fields(HANDSHAKE, peer, seconds, End("relay", status, reason)),
        )

    def ended(self, phase: str, uid: str | int | None, peer: str, seconds: float, end: End) -> None:
        """A connection is gone.

        :param phase: `HANDSHAKE`, `VISITOR` or `USER`.
        :param uid: whose it was; None unless it is a user's.
        :param seconds: since the last phase but the login began: the handshake's seconds, or those since.
        """
        fields = _fields(phase, peer, seconds, end)
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
        elif self._may_tell("connections ended"):
            log.info(
                "connection of {uid} from {peer} ended by the {by} with {code} after {seconds} s: {reason}",
                uid=uid,
                **fields,
            )


def _fields(phase: str, peer: str, seconds: float, end: End) -> dict[str, Any]:
    """What each of these events has."""
    return {
        "phase": phase,
        "peer": peer,
        "by": end.by,
        "code": end.code,
        "reason": end.reason,
        "seconds": round(seconds, 3),
    }
