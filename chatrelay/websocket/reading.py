"""Read one connection, within the limits on its speed, and on the size and the duration of a message.

`chatrelay.limits.inflow` decides how much a client may send. This module pauses reading, and closes the connection of a
client whose frames exceed a limit. It must not know what a message means.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall

from chatrelay.config.options import Config
from chatrelay.limits.buckets import TokenBucket
from chatrelay.limits.inflow import MIN_READ, Inflow, InflowRates
from chatrelay.relay.session import Session
from chatrelay.relay.session_v2 import SessionV2
from chatrelay.websocket.autobahn import AutobahnProtocol
from chatrelay.websocket.compression import MAX_ADDED
from chatrelay.websocket.opening import answer_refused, take_handshake
from chatrelay.websocket.states import ConnectionState, Event
from chatrelay.wire import codes

MAX_HEADER = 10
"""The most bytes before the payload of a server's frame (RFC 6455, section 5.2)."""


class Reading(Inflow):
    """The reading of one connection.

    The connection is an argument of the methods and not an attribute, so that a lost connection does not stay in
    memory.

    :param rates: how much is read in a second, once the client is logged in.
    :param now: the time.
    :ivar frames_of_message: the number of frames so far of the current message.
    :ivar compressed_bytes: its bytes so far, as they came, perhaps compressed.
    """

    # `Inflow` is a base class and not an attribute, because each connection has one of these objects.
    __slots__ = ("_control_frames", "_pause", "compressed_bytes", "frames_of_message")

    def __init__(self, rates: InflowRates, now: float) -> None:
        super().__init__(rates, now)
        self._pause: IDelayedCall | None = None
        self._control_frames: TokenBucket | None = None  # made when needed, because most clients send none
        self.frames_of_message = self.compressed_bytes = 0

    @property
    def is_paused(self) -> bool:
        """Whether reading pauses."""
        return self._pause is not None

    @property
    def control_frames_level(self) -> float:
        """A number that changes with each received ping or pong within the limits."""
        return 0.0 if self._control_frames is None else self._control_frames.level

    def begin_message(self) -> None:
        """Restart the counts of frames and bytes, because a message begins."""
        self.frames_of_message = self.compressed_bytes = 0

    def take_frame_of(self, connection: BoundedProtocol) -> bool:
        """Count a frame, or a piece of one. If it is one too many, pause reading and return False."""
        if self.take_frame(connection.factory.parts.seconds()):
            return True
        self.pause_if_due(connection)
        return False

    def take_control_frame(self, config: Config, now: float) -> bool:
        """Count a ping or a pong. Return whether it is within the limits."""
        if self._control_frames is None:
            self._control_frames = TokenBucket(config.control_frames_per_second, config.control_frame_burst)
        return self._control_frames.take(now)

    def pause_if_due(self, connection: BoundedProtocol) -> None:
        """Pause reading if the client has sent more than it may, until it may send again."""
        if self._pause is None and connection.connection_state.reads:
            parts = connection.factory.parts
            seconds = self.pause(parts.seconds())
            if seconds:
                self.pauses += 1
                connection.transport.pauseProducing()
                # A timer and not a deadline of the sweep, because all connections of one sweep would be read at once.
                self._pause = parts.reactor.callLater(seconds, self._resume, connection)

    def _resume(self, connection: BoundedProtocol) -> None:
        """End the pause: take the bytes that wait, and read again, unless these are too many already."""
        self._pause = None
        self.pause_if_due(connection)
        if not self.is_paused and self.held is not None:
            connection.take(self.release())
            self.pause_if_due(connection)
        if not self.is_paused and connection.connection_state is not ConnectionState.DISCARDING:
            connection.transport.resumeProducing()

    def resume_soon(self) -> None:
        """End the pause, if there is one, in the next turn of the reactor."""
        if self._pause is not None:
            self._pause.reset(0)

    def forget(self) -> None:
        """End the pause without reading again, and forget the bytes that wait for its end."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self.release()


class BoundedProtocol(AutobahnProtocol):
    """Autobahn's protocol, which reads no more from a client than the limits allow.

    :ivar session: the client's login and its messages; None until the handshake is complete.
    """

    session: Session | SessionV2 | None = None

    # These are slots, because they are looked up for every read of the socket, and Autobahn's protocol has many
    # attributes.
    __slots__ = ("_between_messages", "reading")

    def begin(self) -> None:
        """Begin to read a connection that was just accepted."""
        parts = self.factory.parts
        self.connection_state = ConnectionState.HANDSHAKE
        self.reading = Reading(parts.inflow_rates, parts.seconds())
        self._between_messages = False

    def take(self, data: bytes) -> None:
        """Take bytes that the fast path has left, or that waited for the end of a pause."""
        state, reading = self.connection_state, self.reading
        if state is ConnectionState.REFUSING:
            answer_refused(self)
        elif not state.reads:
            pass  # Autobahn would buffer these bytes without limit
        elif reading.held is not None or not self._take_piece():
            reading.hold(data)
        elif state is ConnectionState.HANDSHAKE:
            take_handshake(self, data)
        elif state is ConnectionState.CLOSING:
            self.feed(data)
        else:
            self._take_open(data)

    def _take_piece(self) -> bool:
        """Count a piece of a handshake or of a frame. A new frame is counted when Autobahn parses it."""
        is_piece = self.connection_state is ConnectionState.HANDSHAKE or self.is_inside_frame
        return not is_piece or self.reading.take_frame_of(self)

    def _take_open(self, data: bytes) -> None:
        """Take bytes of an open connection that the fast path has left."""
        if self._fast_path and self.is_inside_frame:
            # The frame came in pieces. Autobahn gets the rest of it, and the fast path what follows.
            rest = self.rest_of_frame()
            if rest < len(data):
                self.feed(data[:rest])
                self.reading.bytes.remaining += len(data) - rest + MIN_READ  # counted already
                self.dataReceived(data[rest:])
                return
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Have Autobahn parse received bytes, and note whether the fast path may take the next ones."""
        super().feed(data)
        self._between_messages = self._fast_path and self.connection_state.is_open and self.is_between_messages

    def expect_compressed_messages(self) -> None:
        """Limit messages by their size after decompression, because this client may compress them.

        Autobahn decompresses up to its own limit. Beyond it, Autobahn silently loses the bytes that zlib still holds,
        up to 2 KiB of the message. It also counts the compressed bytes of a frame. So Autobahn gets a higher limit, and
        ours is checked when a frame begins and when it ends.
        """
        self.outgoing.leave_frames_to_the_protocol()
        self.maxMessagePayloadSize = self.maxFramePayloadSize = self._message_size + MAX_ADDED

    def stop_reading(self) -> None:
        """Stop reading until closing-timeout has passed: the client exceeded its limits after the close frame.

        Autobahn would parse frames until the client answers the close frame, and a client that floods may never do so.
        """
        self.advance(Event.FLOODED)
        self.data = b""
        self.reading.forget()
        self.transport.pauseProducing()

    def processData(self) -> bool:
        """Parse the received bytes of a frame; return whether there may be more to parse. Autobahn calls this."""
        if not self.is_inside_frame and self.data and not self.reading.take_frame_of(self):
            self.reading.hold(b"")
            return False
        more: bool = super().processData()
        return more

    def onMessageBegin(self, isBinary: bool) -> None:
        """Begin the time limit of a message: its first frame begins. Autobahn calls this."""
        registry, session = self.factory.registry, self.session
        self.reading.begin_message()
        if session is not None and not self.connection_state.is_open and not session.received_while_closing():
            self.stop_reading()
        registry.message_deadlines.start(self, registry.active.now())
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        """Limit the frames of a message: Autobahn, which calls this, would keep any number of empty ones."""
        super().onMessageFrameBegin(length)
        reading, limit = self.reading, self.factory.parts.config.message_frames
        reading.frames_of_message += 1
        if 0 < limit < reading.frames_of_message:
            self.fail(codes.too_many_frames(limit))
        if self.is_compressed:
            # Compressed bytes have a separate limit, because they may decompress to nothing: zlib keeps bytes after
            # the end of its stream.
            reading.compressed_bytes += length
            self._bound_message(reading.compressed_bytes, self._message_size + MAX_ADDED)

    def onMessageFrameEnd(self) -> None:
        """Limit the size of a message whose next frame was decompressed. Autobahn calls this."""
        super().onMessageFrameEnd()
        if self.is_compressed:
            self._bound_message(self.message_data_total_length, self._message_size)

    def _bound_message(self, size: int, limit: int) -> None:
        if size > limit and not self.failedByMe:
            self.fail(codes.message_too_big(self._message_size))

    def onMessageEnd(self) -> None:
        """End the time limit of a message: its last frame is complete. Autobahn calls this."""
        self.factory.registry.message_deadlines.stop(self)
        super().onMessageEnd()

    def message_timed_out(self) -> None:
        """Close the connection of a client whose message takes too long, unless the relay itself pauses reading."""
        registry = self.factory.registry
        if self.reading.is_paused:
            registry.message_deadlines.start(self, registry.active.now())  # the rest may be there, unread
        else:
            self.fail(codes.MESSAGE_TOO_SLOW)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping. The pong counts towards the budget, so a client can't ping for ever and never read."""
        if self._take_control_frame() and self.outgoing.charge(len(payload) + MAX_HEADER):
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """Count a pong, perhaps an unsolicited one (RFC 6455, section 5.5.3). Autobahn calls this."""
        if self._take_control_frame():
            super().onPong(payload)

    def _take_control_frame(self) -> bool:
        """Count a ping or a pong, and return whether it is within the limits. If not, close the connection."""
        parts = self.factory.parts
        if self.reading.take_control_frame(parts.config, parts.seconds()):
            return True
        if self.connection_state.is_open:
            self.fail(codes.too_many_control_frames(parts.config.control_frames_per_second))
        else:
            self.stop_reading()
        return False
