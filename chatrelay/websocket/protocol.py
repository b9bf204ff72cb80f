"""WebSocket: one `ChatProtocol` a connection; `chatrelay.websocket.factory` holds what all of them share.

Here bytes come in: Autobahn is told what to do with a handshake, whole text
messages are taken out of frames, and every end of a connection goes its way.
What a message means is `chatrelay.relay.session`'s to know, how bytes are sent
`chatrelay.websocket.outbox`'s, who may shake hands `chatrelay.websocket.handshake`'s, and when
the time of something is over `chatrelay.websocket.registry`'s.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from OpenSSL.SSL import Error as TLSError
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IDelayedCall, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.limits.admission import Full
from chatrelay.limits.buckets import TokenBucket
from chatrelay.limits.inflow import MIN_READ, Inflow
from chatrelay.relay.session import Session
from chatrelay.websocket import closing
from chatrelay.websocket.autobahn import AutobahnProtocol
from chatrelay.websocket.closing import NO_CODE, End
from chatrelay.websocket.compression import MAX_ADDED
from chatrelay.websocket.handshake import NO_HANDSHAKE, http_error, printable
from chatrelay.websocket.outbox import Outbox
from chatrelay.websocket.peer import Peer
from chatrelay.wire import codes
from chatrelay.wire import v1 as wire
from chatrelay.wire.codes import Close
from chatrelay.wire.extensions import BrokenOffers, acceptable
from chatrelay.wire.frames import ends_by_going_away, take_messages
from chatrelay.wire.request_head import END_OF_HEADERS, EXTENSIONS, BrokenHead, RequestHead, header_values

log = Logger("chatrelay.websocket")

MAX_HEADER = 10
"""Bytes of a server's frame before its payload, at most (RFC 6455, section 5.2)."""

MAX_REFUSED = 16
"""Connections beyond a limit that are waited for until they have sent something; more are answered before."""

MAX_REASON = 300
"""Characters that are said of why a handshake was refused; some of it may be the client's own."""

DEFECT = "the relay met an error of its own"
"""Said of a handshake that a defect keeps from being answered."""

UNREADABLE = "the opening handshake, or an extension that it offers, can't be read"
"""Said of a handshake of which Autobahn says nothing but an exception's text."""

PING = b"\x89\x00"
"""A whole frame, without a payload (RFC 6455, section 5.5.2)."""


def _take_nothing(payload: bytes) -> bool:
    """What takes the messages of a connection that is gone: none comes."""
    return False


class ChatProtocol(AutobahnProtocol):
    """One connection: Autobahn's frames on one side, a `Session` on the other."""

    session: Session | None = None
    _frames = 0
    _packed = 0  # bytes of a message as they come, which may be compressed
    _began = 0.0  # when it was accepted, or its handshake was complete
    _end: End | None = None  # until something has ended it, short of its loss
    _is_told = False  # whether the operator has been told of its end
    _deaf = False
    _takes_messages = True
    remote: Peer
    _refusal: bytes | None = None  # what that one is answered
    _control_frames: TokenBucket | None = None  # made when the first one comes, as most clients send none
    _pausing: IDelayedCall | None = None  # while reading pauses: what ends that

    # Looked up for every read of the socket, and so kept apart from Autobahn's many attributes.
    __slots__ = ("_between_messages", "_inflow", "_receive", "remote")

    # Opening ---------------------------------------------------------------

    def connectionMade(self) -> None:
        """Twisted: a TCP connection was accepted."""
        config = self.factory.config
        self._between_messages = False
        self.remote = Peer(self.transport)
        self._inflow = Inflow(self.factory.inflow_rates, self.factory.seconds())
        if self.factory.registry.has_stopped:
            self.state = self.STATE_CLOSED
            self.factory.end_lines.connection_cut(self.remote.name)
            self.transport.abortConnection()
            return
        full = self.factory.peers.admit(self.remote)
        if full is not None:
            self._turn_away(full)
            return
        self._began = self.factory.seconds()
        super().connectionMade()
        self.outgoing = Outbox(
            self,
            self.transport,
            self.factory.flushes,
            self.factory.registry.slow_readers,
            config.unread_size,
            config.fast_path,
        )
        if config.ping_interval and config.ping_timeout:
            self.outgoing.give_up_after(config.ping_interval + config.ping_timeout)
        self.factory.registry.accepted(self)
        if self.remote.has_proxy_protocol:
            self.factory.registry.awaiting_address[self] = None

    def _turn_away(self, full: Full) -> None:
        """Refuse a connection that was just accepted: no handshake is read, and its descriptor is free in a moment."""
        factory = self.factory
        self.state = self.STATE_CLOSED
        factory.end_lines.connection_refused(self.remote.name, full)
        factory.registry.closing_deadlines.start(self, factory.registry.active.now())
        factory.registry.refused.add(self)
        if ISSLTransport.providedBy(self.transport):
            self.transport.abortConnection()  # to say anything would take a TLS handshake first
            return
        self._refusal = http_error(full.status, full.why)
        # Many clients are confused by an answer that comes before they have asked, or lose it.
        if len(factory.registry.refused) > MAX_REFUSED:
            self._answer_refused()

    def _answer_refused(self) -> None:
        answer, self._refusal = self._refusal, None
        if answer is not None:
            self.transport.write(answer)
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Twisted: bytes came. What the fast path (`chatrelay.wire.frames`) does not take is Autobahn's."""
        allowance = self._inflow.bytes
        left = allowance.left = allowance.left - len(data) - MIN_READ
        if left < 0:
            self._pause_reading()
        if self._between_messages:
            taken = take_messages(data, self._message_size, self._receive)
            if taken == len(data):
                return
            if taken:
                data = data[taken:]
        self._received(data)

    def _received(self, data: bytes) -> None:
        """Bytes that the fast path did not take."""
        state = self.state
        if state == self.STATE_CLOSED or self._deaf:
            # Autobahn would go on buffering for a client that was refused.
            if self.remote.slot is None:
                self._answer_refused()
        elif self._inflow.held is not None or not self._take_piece():
            self._inflow.hold(data)
        elif state == self.STATE_OPEN:
            self._open_received(data)
        elif state == self.STATE_CONNECTING:
            self._handshake_received(data)
        else:
            super().dataReceived(data)

    def _handshake_received(self, data: bytes) -> None:
        """Part of an opening handshake, which Autobahn buffers without bound; this bounds it."""
        limit, before = self.factory.config.handshake_size, self.data
        # Only the end of what came before is looked at again, however small the pieces are.
        tail = before[1 - len(END_OF_HEADERS) :]
        end = (tail + data).find(END_OF_HEADERS)
        size = len(before) + len(data) if end < 0 else len(before) - len(tail) + end + len(END_OF_HEADERS)
        if limit and size > limit:
            self._refuse_excess(f"the opening handshake is larger than {limit} bytes")
        elif end < 0:
            self.data = before + data
        else:
            whole = before + data
            self.data = b""
            self._handshake_complete(whole[:size], whole[size:])

    def _handshake_complete(self, raw: bytes, rest: bytes) -> None:
        """Have Autobahn read a handshake.

        :param raw: the handshake.
        :param rest: what came behind it.
        """
        try:
            head = RequestHead.of(raw)
            too_much = head.excess()
            if too_much is not None:
                self._refuse_excess(too_much)
                return
            offers = acceptable(str(value, "latin-1") for value in head.values(EXTENSIONS))
        except (BrokenHead, BrokenOffers) as broken:
            why = str(broken)
        else:
            # Autobahn calls what it finds here: a subclass's own method where there is one.
            vars(self)["onConnect"] = partial(self._try_to_connect, self.onConnect, head)
            try:
                self._for_autobahn(head.for_autobahn(offers if self.factory.config.compression else None) + rest)
            finally:
                vars(self).pop("onConnect", None)
            return
        self.failHandshake(why)

    def _refuse_excess(self, why: str) -> None:
        self.failHandshake(why, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _onOpen(self) -> None:
        """Autobahn: the handshake is done; calls `onOpen`, which may read what Autobahn has of the handshake."""
        try:
            super()._onOpen()
        except Exception:  # of any kind: Autobahn would keep the connection, and Twisted would log the text
            self._tell_of_defect(Failure())
            self._end = closing.DEFECT
            self.dropConnection(abort=True)
        self.release_handshake()

    def _try_to_connect(
        self, connect: Callable[[ConnectionRequest], Any], head: RequestHead, request: ConnectionRequest
    ) -> Deferred[Any]:
        """Call `onConnect`; refuse the handshake where it fails, as Autobahn would send the client the text of it.

        :param head: the handshake as it came, which is what a subclass is to read.
        """
        self.http_request_data = head.raw
        request.headers.update(head.altered())
        connecting: Deferred[Any] = maybeDeferred(connect, request)
        return connecting.addErrback(self._refuse_for_defect)

    def _refuse_for_defect(self, failure: Failure) -> Failure:
        if failure.check(ConnectionDeny):
            return failure
        self._tell_of_defect(failure)
        return Failure(ConnectionDeny(ConnectionDeny.INTERNAL_SERVER_ERROR, DEFECT))

    def _tell_of_defect(self, failure: Failure) -> None:
        if self.factory.log_limiter.allow("handshakes that met a defect"):
            # Without the exception's own text: the session cookie may be in it.
            log.critical(
                "a handshake met a defect, {kind}; please report it. It was met in:\n{frames}",
                kind=failure.value.__class__.__name__,
                frames="".join(traceback.format_tb(failure.getTracebackObject())),
            )

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Autobahn: an opening handshake is complete. Choose the dialect, or refuse."""
        self.factory.registry.awaiting_address.pop(self, None)
        self.factory.peers.locate(self.remote, self.http_request_data)
        self.factory.handshakes.check_origin(self.http_request_data)
        if not any(request.protocols):
            return None
        if wire.SUBPROTOCOL in request.protocols:
            return wire.SUBPROTOCOL
        raise ConnectionDeny(
            ConnectionDeny.BAD_REQUEST, f"no offered subprotocol is spoken here: offer {wire.SUBPROTOCOL}, or none"
        )

    def onOpen(self) -> None:
        """Autobahn: the handshake is done."""
        factory = self.factory
        cookie, because = factory.handshakes.session_cookie_of(self.http_request_data)
        if cookie is None and because is None:
            factory.handshakes.came_without_cookie(self.http_request_data)
        self.session = Session(
            self.outgoing,
            factory.relay,
            factory.directory,
            factory.send_limits,
            factory.seconds,
            partial(factory.logins.begin, self, self.remote.address),
            cookie,
            because,
            self._inflow.charge,
            factory.login_without_cookie,
        )
        self._began = factory.seconds()
        if self.is_compressed:
            self.outgoing.leave_frames_to_the_protocol()
            # Autobahn unpacks up to its bound, and what zlib holds back then is lost without a word: up to 2 KiB of
            # a message that is too large. It also counts what is still packed of a frame, though little may be left
            # in that. So its bound is put higher, and ours kept where a frame begins and closing.
            self.maxMessagePayloadSize = self.maxFramePayloadSize = self._message_size + MAX_ADDED
        # A subclass that overrides onMessage gets what the fast path takes, too.
        as_usual = type(self).onMessage is ChatProtocol.onMessage
        self._receive = self.session.received if as_usual else self._message_taken
        self.outgoing.open()
        factory.registry.opened(self)

    def locate(self) -> None:
        """Count the connection at the address in its PROXY header, if the header has come by now."""
        if self.state != self.STATE_CONNECTING:
            self.factory.registry.awaiting_address.pop(self, None)
        elif self.remote.is_announced:
            self.factory.registry.awaiting_address.pop(self, None)
            try:
                self.factory.peers.locate_announced(self.remote)
            except ConnectionDeny as denied:
                self.failHandshake(denied.reason or "", denied.code)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Autobahn: refuse this handshake. Tells the operator too."""
        of_origin = reason.startswith("HTTP Origin header")  # Autobahn has refused an empty one, or several
        # What is no WebSocket handshake at all is mostly a health check or a
        # scanner. Autobahn quotes the request, which may hold a cookie.
        no_handshake = reason.startswith(NO_HANDSHAKE) and not of_origin
        error = sys.exception()
        if error is not None:  # Autobahn could not read something, and quotes what it caught
            reason = reason.removesuffix(str(error)) or UNREADABLE
        reason = reason.partition('"')[0].rstrip(" :")[:MAX_REASON]
        if not self._is_told:  # a client may leave before it is decided
            self._is_told = True
            lines = self.factory.end_lines
            (lines.no_handshake if no_handshake else lines.handshake_refused)(
                self.remote.name, self._seconds, int(code), printable(reason)
            )
        if of_origin:
            self.factory.handshakes.tell_of_origin(", ".join(header_values(self.http_request_data, "origin")))
        super().failHandshake(reason, code, responseHeaders)
        self.data = b""
        self.release_handshake()

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        """Autobahn: answer with an HTTP error."""
        self.sendData(http_error(code, reason, responseHeaders or ()))

    # Receiving -------------------------------------------------------------

    def _open_received(self, data: bytes) -> None:
        """Bytes that the fast path did not take, on an open connection."""
        if self._fast_path and self.is_inside_frame:
            # A frame that came in pieces: Autobahn gets the rest of it, and no more.
            rest = self.rest_of_frame()
            if rest < len(data):
                self._for_autobahn(data[:rest])
                self._inflow.bytes.left += len(data) - rest + MIN_READ  # counted already
                self.dataReceived(data[rest:])
                return
        self._for_autobahn(data)

    def processData(self) -> bool:
        """Autobahn: take a frame apart, or what has come of it; return whether there may be more to do."""
        if not self.is_inside_frame and self.data and not self._take_frame():
            self._inflow.hold(b"")
            return False
        more: bool = super().processData()
        return more

    def _take_piece(self) -> bool:
        """Count a piece of a handshake or a frame; a frame that begins is counted when Autobahn takes it apart."""
        return not (self.state == self.STATE_CONNECTING or self.is_inside_frame) or self._take_frame()

    def _take_frame(self) -> bool:
        """Count a frame, or a piece of one. Where that is too many, reading pauses, and it has to wait."""
        if self._inflow.take_frame(self.factory.seconds()):
            return True
        self._pause_reading()
        return False

    def _pause_reading(self) -> None:
        """Read no more of a client that has sent more than it may, until it may again; see `limits.inflow`."""
        factory, inflow = self.factory, self._inflow
        if not (self._is_pausing or self._deaf) and self.state != self.STATE_CLOSED:
            seconds = inflow.pause(factory.seconds())
            if seconds:
                inflow.pauses += 1
                self.transport.pauseProducing()
                # Deadlines are swept, but this is no deadline: those who were swept together would be read together.
                self._pausing = factory.reactor.callLater(seconds, self._read_on)

    def _read_on(self) -> None:
        """The pause is over: take what waits, and read again, unless that was too much."""
        self._pausing = None
        inflow = self._inflow
        self._pause_reading()
        if not self._is_pausing and inflow.held is not None:
            self._received(inflow.release())
            self._pause_reading()
        if not (self._is_pausing or self._deaf):
            self.transport.resumeProducing()

    def logged_in(self) -> None:
        """Apply a user's limits from here on; see `chatrelay.auth.login.LoginClient`."""
        factory = self.factory
        self._inflow.logged_in(factory.inflow_rates, factory.seconds())
        if self._pausing is not None:
            self._pausing.reset(0)
        factory.registry.login_deadlines.stop(self)
        assert self.remote.slot is not None
        factory.admission.logged_in(self.remote.slot)

    @property
    def _is_pausing(self) -> bool:
        return self._pausing is not None

    def _for_autobahn(self, data: bytes) -> None:
        ended_before = self._end
        self.feed(data)
        ended = self._end
        if ended is not ended_before and closing.is_broken_stream(ended) and ends_by_going_away(data):
            # Caddy ends a WebSocket so, in its own name and wherever it is in a client's frame; the client's answer to
            # that comes behind it. Autobahn takes either for the client's error.
            self._end = closing.PROXY_CLOSED
        self._between_messages = self._fast_path and self.state == self.STATE_OPEN and self.is_between_messages

    def _message_taken(self, payload: bytes) -> bool:
        self.onMessage(payload, False)
        return bool(self.state == self.STATE_OPEN)

    def onMessageBegin(self, isBinary: bool) -> None:
        """Autobahn: the first frame of a message began."""
        self._frames = self._packed = 0
        if self.state != self.STATE_OPEN and self.session is not None and not self.session.received_too_late():
            self._hear_no_more()
        self.factory.registry.message_deadlines.start(self, self.factory.registry.active.now())
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """Autobahn: a frame of a message began. Autobahn holds any number of empty ones; this bounds them."""
        super().onMessageFrameBegin(length)
        self._frames += 1
        limit = self.factory.config.message_frames
        if limit and self._frames > limit:
            self.fail(codes.too_many_frames(limit))
        if self.is_compressed:
            # What is packed is bound by itself, as it need not become anything: zlib keeps what follows its end.
            self._packed += length
            self._bound_message(self._packed, self._message_size + MAX_ADDED)

    def onMessageFrameEnd(self) -> None:
        """Autobahn: a frame of a message ended, and is unpacked."""
        super().onMessageFrameEnd()
        if self.is_compressed:
            self._bound_message(self.message_data_total_length, self._message_size)

    def _bound_message(self, size: int, most: int) -> None:
        if size > most and not self.failedByMe:
            self.fail(codes.message_too_big(self._message_size))

    def onMessageEnd(self) -> None:
        """Autobahn: the last frame of a message ended."""
        self.factory.registry.message_deadlines.stop(self)
        super().onMessageEnd()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn: a whole message came; text is valid UTF-8."""
        if self.session is None or not self._takes_messages:
            return
        # After our own close frame, messages under way still arrive here; the session has ended then.
        if isBinary:
            self.close(codes.BINARY_MESSAGE)
        else:
            self.session.received(payload)

    def stop_taking(self) -> None:
        """The relay is stopping: from here on `onMessage` is asked about every message, and takes none."""
        self._takes_messages = False
        self._receive = self._message_taken

    def onPing(self, payload: bytes) -> None:
        """Autobahn: a ping came. Pongs count towards the budget: who pings and does not read is cut, too."""
        if self._within_control_frame_limit() and self.outgoing.charge(len(payload) + MAX_HEADER):
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """Autobahn: a pong came. Nobody asked for it, but a client may send some (RFC 6455, section 5.5.3)."""
        if self._within_control_frame_limit():
            super().onPong(payload)

    def _within_control_frame_limit(self) -> bool:
        """Count a ping or a pong; close the connection of who sends too many. A close frame is never one too many."""
        if self._control_frames is None:
            self._control_frames = self.factory.control_frames()
        if self._control_frames.take(self.factory.seconds()):
            return True
        if self.state == self.STATE_OPEN:
            limit = self.factory.config.control_frames_per_second
            self.fail(codes.too_many_control_frames(limit))
        else:
            self._hear_no_more()
        return False

    # Closing ---------------------------------------------------------------

    def close(self, close: Close) -> None:
        """Begin the closing handshake; see `chatrelay.interfaces.Connection.close`."""
        if self.state == self.STATE_OPEN:
            # Autobahn's sendClose takes no code below 3000 but 1000.
            self.sendCloseFrame(code=int(close.code), reasonUtf8=close.reason.encode("utf-8"))

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Autobahn: every closing handshake, whoever began it, comes through here."""
        if self.state == self.STATE_OPEN:
            if isReply:
                self._end = End("client", self.remoteCloseCode or NO_CODE, "it closed")
            else:
                self._end = End("relay", code or NO_CODE, printable((reasonUtf8 or b"").decode("utf-8", "replace")))
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self._leave()

    def dropConnection(self, abort: bool = False) -> None:
        """Autobahn: end the TCP connection."""
        self.outgoing.flush()
        super().dropConnection(abort)
        self._leave()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted: the TCP connection is gone."""
        error: Any = reason.value
        if isinstance(error, TLSError):
            # Autobahn would log an error, and anybody can cause as many as they like.
            reason = Failure(ConnectionLost("TLS failed"))
        if self.remote.slot is None:
            self.factory.registry.closing_deadlines.stop(self)
            self.factory.registry.refused.discard(self)
            return
        super().connectionLost(reason)
        # What it sent and nobody read would otherwise stay until the garbage is collected.
        self.data = b""
        self._leave()
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None
        self.factory.admission.left(self.remote.slot)
        self.factory.registry.disconnected(self)
        if not self._is_told:
            self._is_told = True
            self._tell_of_end(self._end or self._end_by_loss(error))
        # What refers to this and is referred to by it would stay, with all there is of a connection, until garbage
        # is collected, which may be after thousands of others: 10 KiB each.
        self.outgoing.disconnected()
        self.is_closed = succeed(None)  # Autobahn's own has this as its result
        self._receive = _take_nothing

    def _end_by_loss(self, error: BaseException) -> End:
        transport, over_tls = self.transport, ISSLTransport.providedBy(self.transport)
        if self.remote.has_proxy_protocol and transport.disconnecting and self.session is None:
            return closing.NO_PROXY_HEADER
        return closing.of_lost(error, over_tls, self.outgoing.unacknowledged)

    def _tell_of_end(self, end: End) -> None:
        session = self.session
        uid = None if session is None else session.uid
        phase = closing.HANDSHAKE if session is None else closing.VISITOR if uid is None else closing.USER
        self.factory.end_lines.ended(phase, uid, self.remote.name, self._seconds, end)

    @property
    def _seconds(self) -> float:
        seconds: float = self.factory.seconds() - self._began
        return seconds

    def _hear_no_more(self) -> None:
        """A client goes on past its limits after the close frame: it is read no more, and cut when its time is over.

        Autobahn would go on taking frames apart until the client has answered
        the close frame, which such a one does not.
        """
        self._deaf = True
        self.data = b""
        self.transport.pauseProducing()

    def _leave(self) -> None:
        """From here on, nothing is delivered to this client and nothing taken from it."""
        self._between_messages = False
        self.outgoing.closing()
        if self.session is not None:
            self.session.ended()
        self.factory.logins.left(self.outgoing)
        self.factory.registry.closing(self)

    # Deadlines ---------------------------------------------------------------

    def login_timed_out(self) -> None:
        """The login-timeout has passed."""
        if self.session is not None:
            self.session.login_timed_out()

    def message_timed_out(self) -> None:
        """The message-timeout has passed."""
        if self._pausing is not None:
            self.factory.registry.message_deadlines.start(
                self, self.factory.registry.active.now()
            )  # the rest may be there, unread
        else:
            self.fail(codes.MESSAGE_TOO_SLOW)

    def ping(self) -> None:
        """Ping the client.

        A client that is behind is not pinged: the ping would wait behind everything else, and the unread-time finds
        whether it is gone.
        """
        if self.state != self.STATE_OPEN:
            return  # the same sweep has closed it
        self.outgoing.about_to_ping()
        if not self.outgoing.is_slow_reader and self.outgoing.charge(MAX_HEADER):
            self.sendData(PING)  # through all of Autobahn it would take longer than the rest of a ping
            self.factory.registry.pings.sent(self, self.factory.registry.active.now())

    def ping_unanswered(self) -> None:
        """The ping-timeout has passed."""
        outgoing = self.outgoing
        if (
            self._is_pausing
            or outgoing.is_slow_reader
            or outgoing.may_not_have_read_the_ping(self.factory.config.ping_timeout)
        ):
            self.factory.registry.pings.sent(
                self, self.factory.registry.active.now()
            )  # the ping is still out when that time is over
        else:
            self.close(codes.NO_PONG)

    def activity(self) -> object:
        """Return a value that compares unequal after each message, ping or pong that came; see `websocket.keepalive`.

        It does so after each pause, too: what the client sends comes after what was too much, and may be a pong.
        """
        session, control_frames = self.session, self._control_frames
        return (
            0.0 if session is None else session.messages_mark,
            0.0 if control_frames is None else control_frames.mark,
            self._inflow.pauses,
        )

    def abort(self, end: End = closing.DID_NOT_LEAVE) -> None:
        """Cut the connection without waiting for the client.

        :param end: what the operator is told, where nothing has ended it before.
        """
        self._end = self._end or end
        if self.state != self.STATE_CLOSED:
            self.dropConnection(abort=True)
        else:
            self.transport.abortConnection()
