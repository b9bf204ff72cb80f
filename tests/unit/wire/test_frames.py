"""The frame fast path: which bytes it takes, and that its effect is the same as without it."""

from __future__ import annotations

import json
from typing import Any

from autobahn.websocket.utf8validator import Utf8Validator
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.config.options import Config
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.testing import KnownSessions
from chatrelay.websocket.factory import ChatFactory
from chatrelay.wire.frames import TextValidator, ends_by_going_away, take_messages, text_frame
from tests.support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import chat_factory

MESSAGE = b'{"type":"auth-request","SESSID":"alice"}'


class Taking(SynchronousTestCase):
    """What is taken, and what is left to Autobahn."""

    def taken(self, data: bytes, longest: int = 65536, stop_after: int = 10**9) -> tuple[int, list[bytes]]:
        """Return how many bytes were taken, and the messages."""
        messages: list[bytes] = []

        def receive(payload: bytes) -> bool:
            messages.append(payload)
            return len(messages) < stop_after

        return take_messages(data, longest, receive), messages

    def test_whole_text_frames_are_taken(self) -> None:
        for size in (0, 1, 4, 125, 126, 127, 1000, 1020, 1021, 1024, 65535):
            payload = b"x" * size
            data = frame(payload)
            self.assertEqual(self.taken(data), (len(data), [payload]), size)
        data = frame(b"a") + frame(b"b" * 200) + frame("å😀".encode())
        self.assertEqual(self.taken(data), (len(data), [b"a", b"b" * 200, "å😀".encode()]))

    def test_other_frames_are_left_to_autobahn(self) -> None:
        first = frame(b"first")
        for rest in (
            frame(b"x", BINARY),
            frame(b"x", CONTINUATION),
            frame(b"x", PING),
            frame(b"x", PONG),
            frame(b"\x03\xe8", CLOSE),
            frame(b"x", fin=False),
            frame(b"x", rsv=4),
            frame(b"x", masked=False),
            frame(b"x" * 65536),
            frame(b"\xff"),
            frame(b"\xed\xa0\x80"),
            b"\x81\xfe\x00\x05\x00\x00\x00\x00hello",  # a length of 5 in two bytes
            b"",
        ):
            self.assertEqual(
                self.taken(first + rest + first), (len(first), [b"first"]) if rest else (2 * len(first), [b"first"] * 2)
            )

    def test_incomplete_frame_is_left_to_autobahn(self) -> None:
        for payload in (b"", b"hello", b"x" * 300):
            whole = frame(payload)
            for cut in range(len(whole)):
                self.assertEqual(self.taken(whole[:cut]), (0, []))

    def test_frame_beyond_the_size_limit_is_left_to_autobahn(self) -> None:
        self.assertEqual(self.taken(frame(b"x" * 10), longest=10)[1], [b"x" * 10])
        self.assertEqual(self.taken(frame(b"x" * 11), longest=10), (0, []))
        self.assertEqual(self.taken(frame(b"x" * 60000), longest=0)[1], [b"x" * 60000])

    def test_taking_stops_when_the_receiver_says_so(self) -> None:
        data = frame(b"a") * 5
        self.assertEqual(self.taken(data, stop_after=2), (2 * len(frame(b"a")), [b"a"] * 2))

    @given(st.binary(min_size=4, max_size=4), st.text(max_size=300))
    def test_any_mask_is_removed(self, mask: bytes, text: str) -> None:
        payload = text.encode()
        head = frame(payload, masked=False)[: -len(payload) or None]
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        data = bytes((head[0], head[1] | 0x80)) + head[2:] + mask + masked
        self.assertEqual(self.taken(data), (len(data), [payload]))

    @example([b"\xed", b"\xa0"])
    @example([b"a\xed\xbf"])
    @given(
        st.lists(
            st.binary(max_size=6)
            | st.text(max_size=6).map(str.encode)
            | st.sampled_from([b"\xed", b"\xa0", b"\xf4\x90", b"\xc0", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80"])
        )
    )
    def test_text_in_pieces_is_valid_exactly_where_autobahn_finds_it_so(self, pieces: list[bytes]) -> None:
        ours, theirs = TextValidator(), Utf8Validator()
        for _ in range(2):
            ours.reset()
            theirs.reset()
            for piece in pieces:
                found, expected = ours.validate(piece), theirs.validate(piece)
                self.assertEqual(found[0], expected[0])
                if not found[0]:
                    break
                self.assertEqual(found[1], expected[1])

    def test_text_frame_is_encoded_as_rfc_6455_says(self) -> None:
        for size, head in (
            (0, b"\x81\x00"),
            (125, b"\x81\x7d"),
            (126, b"\x81\x7e\x00\x7e"),
            (65535, b"\x81\x7e\xff\xff"),
            (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        ):
            self.assertEqual(text_frame(b"x" * size), head + b"x" * size)


REQUESTS = st.sampled_from(
    [
        MESSAGE,
        b'{"type":"auth-request","SESSID":"bad"}',
        b'{"type":"message-send-request","id":1,"message":{"timeStamp":1,"touID":1,"content":"hej"}}',
        b'{"type":"message-send-request","id":"x","message":{"timeStamp":1,"touID":"nobody","content":""}}',
        b'{"type":"message-send-request","id":2,"message":{}}',
        json.dumps(
            {"type": "message-send-request", "id": 3, "message": {"timeStamp": 1, "touID": 1, "content": "å" * 5000}}
        ).encode(),
        "{å".encode(),
        b"\xff",
        b"",
        b"x" * 65536,
        b"x" * 65537,
    ]
)
FRAMES = st.one_of(
    REQUESTS.map(frame),
    st.builds(
        frame,
        REQUESTS | st.binary(max_size=130),
        st.sampled_from([TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG, 3, 11]),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 4]),
        masked=st.sampled_from([True, True, True, False]),
    ),
    st.binary(max_size=8),
)


class Both:
    """The same client on two relays: one with the fast path, one without."""

    def __init__(self) -> None:
        self.sides: list[tuple[MemoryClient, Clock, MemoryMessageLog, ChatFactory]] = []
        for fast_path in (True, False):
            clock, log = Clock(), MemoryMessageLog()
            factory = chat_factory(Config(fast_path=fast_path), clock, KnownSessions({"alice": 1}), log)
            client = MemoryClient(factory).open()
            self.sides.append((client, clock, log, factory))

    def write(self, data: bytes) -> list[tuple[Any, ...]]:
        """Give both relays the same bytes; return the visible effects on each."""
        seen = []
        for client, clock, log, factory in self.sides:
            client.write(data)
            clock.advance(0)
            clock.advance(0)
            transport = client.transport
            deadlines = [
                len(factory.registry.login_deadlines),
                len(factory.registry.message_deadlines),
                len(factory.registry.closing_deadlines),
            ]
            seen.append(
                (
                    client.read(),
                    transport.disconnecting,
                    transport.aborted,
                    [row.message.content for row in log.rows],
                    len(factory.directory),
                    client.protocol.state,
                    deadlines,
                )
            )
        return seen


class NobodyCanTell(SynchronousTestCase):
    """The same bytes in the same pieces have the same answers, deliveries, closes and deadlines."""

    @settings(max_examples=300, deadline=None)
    @given(st.lists(FRAMES, max_size=8), st.data())
    def test_same_bytes_have_the_same_effect_with_and_without_the_fast_path(
        self, pieces: list[bytes], data: st.DataObject
    ) -> None:
        stream = frame(MESSAGE) + b"".join(pieces)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        both = Both()
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if start == end:
                continue
            fast, slow = both.write(stream[start:end])
            self.assertEqual(fast, slow)


class GoingAway(SynchronousTestCase):
    """The close frame with 1001 at the end of some bytes."""

    def test_close_frame_with_1001_is_found_at_the_end_masked_or_not(self) -> None:
        masked = frame(b"\x03\xe9", CLOSE)
        for data, found in (
            *((b"\x88\x02\x03\xe9", True), (b"more\x88\x02\x03\xe9", True), (masked, True), (b"more" + masked, True)),
            *((b"", False), (b"\x88\x82", False), (masked[:-1], False), (b"x" * 8, False)),
            *((frame(b"\x03\xe8", CLOSE), False), (masked + b"x", False), (frame(b"\x03\xe9", BINARY), False)),
        ):
            self.assertEqual(ends_by_going_away(data), found, data)
