"""How a connection is read: when reading pauses, and that a pause loses and closes nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.config.options import Config
from chatrelay.limits.inflow import (
    BURST_SECONDS,
    MIN_PAUSE,
    MIN_READ,
)
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.testing import KnownSessions
from chatrelay.wire import codes
from tests.support.frames import CLOSE, HANDSHAKE, PING, PONG, fragments, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import FAST_PATH, chat_factory

LOG_IN = b'{"type":"auth-request","SESSID":"alice"}'
UNLIMITED: dict[str, Any] = {
    "messages_per_second": 0.0,
    "user_messages_per_second": 0.0,
    "new_recipients_per_minute": 0,
    "control_frames_per_second": 0.0,
}


def request(id: int, content: str = "hej") -> bytes:
    """Encode a message of Alice's to herself."""
    return b'{"type":"message-send-request","id":%d,"message":{"timeStamp":1,"touID":1,"content":"%b"}}' % (
        id,
        content.encode(),
    )


class Pauses(SynchronousTestCase):
    """A client that sends too much is not read for a while. Everything that it sent is still answered."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.log = MemoryMessageLog()

    def client(self, **options: Any) -> MemoryClient:
        """Connect to a new relay with these options."""
        config = Config(**{"fast_path": FAST_PATH, **UNLIMITED, **options})
        self.factory = chat_factory(config, self.clock, KnownSessions({"alice": 1}), self.log)
        return MemoryClient(self.factory).open()

    def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps, with a sweep after each."""
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)
            self.factory.parts.sweep.run()

    def member(self, **options: Any) -> MemoryClient:
        """Connect, and log in."""
        return self.client(**options).log_in()

    def is_paused(self, client: MemoryClient) -> bool:
        """Whether the relay has stopped reading from it."""
        return client.transport.producerState == "paused"

    def pongs(self, client: MemoryClient) -> int:
        """Count the pongs that have come since the last call."""
        return sum(what == PONG for what, _ in client.hear())

    def test_frames_of_one_read_beyond_the_limit_wait(self) -> None:
        client = self.member(frames_per_second=10)
        client.write(frame(b"p", PING) * 100)
        self.assertEqual(self.pongs(client), 20)
        self.assertTrue(self.is_paused(client))
        self.clock.advance(MIN_PAUSE)
        self.assertEqual(self.pongs(client), 1)
        self.assertTrue(self.is_paused(client))
        self.pass_time(1)
        answered = 21 + (more := self.pongs(client))
        self.assertIn(more, range(8, 12))
        self.pass_time(10)
        self.assertEqual(self.pongs(client) + answered, 100)
        self.assertFalse(self.is_paused(client))

    def test_whole_text_messages_are_not_counted(self) -> None:
        if not FAST_PATH:
            return
        client = self.client(frames_per_second=10).log_in()
        client.write(b"".join(frame(request(number)) for number in range(500)))
        self.clock.advance(0)
        self.assertEqual(len(self.log.rows), 500)
        self.assertFalse(self.is_paused(client))

    def test_empty_fragments_are_counted(self) -> None:
        client = self.client(frames_per_second=100).log_in()
        client.write(b"".join(fragments(request(number), 64) for number in range(10)))
        self.clock.advance(0)
        self.assertLessEqual(len(self.log.rows), 200 // 64)
        self.assertTrue(self.is_paused(client))
        self.pass_time(5)
        self.assertEqual([row.message.client_id for row in self.log.rows], list(range(10)))
        self.assertFalse(self.is_paused(client))

    def test_pieces_of_a_frame_are_counted(self) -> None:
        client = self.client(frames_per_second=10).log_in()
        data = frame(request(1))
        for byte in data:
            client.write(bytes([byte]))
        self.clock.advance(0)
        self.assertEqual(len(self.log.rows), 0)
        self.assertTrue(self.is_paused(client))
        self.pass_time(0.5)
        self.assertEqual(len(self.log.rows), 1)  # everything that came meanwhile is one read
        self.assertFalse(self.is_paused(client))

    def test_pieces_of_a_handshake_are_counted(self) -> None:
        self.client(frames_per_second=10)
        client = MemoryClient(self.factory)
        for byte in HANDSHAKE:
            client.write(bytes([byte]))
        self.assertTrue(self.is_paused(client))
        self.pass_time(0.5)
        self.assertTrue(client.read().startswith(b"HTTP/1.1 101 "))

    def test_message_read_before_a_pause_is_answered_during_it(self) -> None:
        client = self.client(bytes_per_second=10_000).log_in()
        for number in range(10):
            client.write(frame(request(number, "x" * 5000)))
        self.assertTrue(self.is_paused(client))
        self.clock.advance(0)
        self.assertEqual(len(self.log.rows), 10)
        size = 10 * (len(frame(request(0, "x" * 5000))) + MIN_READ)
        self.pass_time((size - BURST_SECONDS * 10_000) / 10_000 - 0.5)
        self.assertTrue(self.is_paused(client))
        self.pass_time(1)
        self.assertFalse(self.is_paused(client))

    def test_nested_arrays_pause_reading(self) -> None:
        client = self.member(bytes_per_second=1024 * 1024)
        nested = b'{"type":"message-send-request","id":1,"x":[%b]}' % (b"[]," * 20_000 + b"1")
        for number in range(5):
            self.assertFalse(self.is_paused(client), number)
            client.write(frame(nested))
            if self.is_paused(client):
                break
        self.assertTrue(self.is_paused(client))

    def test_each_read_counts_as_min_read_more(self) -> None:
        client = self.member(bytes_per_second=10 * MIN_READ, frames_per_second=0)
        data = frame(request(1))
        for byte in data[: 2 * 10]:
            client.write(bytes([byte]))
        self.assertTrue(self.is_paused(client))

    def test_client_at_its_default_limits_is_never_paused(self) -> None:
        defaults = {name: getattr(Config(), name) for name in UNLIMITED}
        client = self.client(**{**defaults, "user_messages_per_second": 0.0}).log_in()
        data = frame(request(1, "x" * 16_000)[:-1] + b',"x":"%b"}' % (b"x" * 49_000))
        self.assertGreater(len(data), 65_000)
        burst = data * 30
        for start in range(0, len(burst), 65_536):  # as Twisted reads
            client.write(burst[start : start + 65_536])
            self.assertFalse(self.is_paused(client))
        for number in range(300):
            self.clock.advance(0.125)  # exact in binary
            client.write(data)
            client.read()
            self.assertFalse(self.is_paused(client), number)
        self.clock.advance(0)
        self.assertEqual(len(self.log.rows), 330)

    def test_one_frame_per_second_allows_a_handshake(self) -> None:
        client = self.client(frames_per_second=1)
        self.pass_time(5)
        client.write(frame(b"p", PING))
        self.assertEqual(self.pongs(client), 1)

    def test_visitor_has_a_share_of_the_rates_of_a_user(self) -> None:
        client = self.client(frames_per_second=20)
        client.write(frame(b"p", PING) * 100)
        self.assertEqual(self.pongs(client), 19)  # the handshake was one
        client = self.client(bytes_per_second=16 * 10_000)
        self.assertFalse(self.is_paused(client))
        client.write(frame(b" " * 20_000))
        self.assertTrue(self.is_paused(client))

    def test_login_resets_the_visitors_used_share(self) -> None:
        client = self.client(frames_per_second=20, bytes_per_second=16 * 1000)
        client.write(frame(LOG_IN) + frame(request(1, "x" * 10_000)))
        self.assertTrue(self.is_paused(client))
        self.clock.advance(0)
        self.assertFalse(self.is_paused(client))
        self.assertEqual([row.message.client_id for row in self.log.rows], [1])

    def test_second_login_resets_nothing(self) -> None:
        client = self.member(frames_per_second=10)
        for _ in range(15):
            client.write(frame(LOG_IN, fin=False) + frame(b"", 0))
        self.assertTrue(self.is_paused(client))

    # The relay's own pauses do not count against a client

    def test_message_timeout_does_not_count_a_pause(self) -> None:
        client = self.client(frames_per_second=4, message_timeout=2.0).log_in()
        self.pass_time(5)
        client.write(fragments(request(1), 20))
        self.pass_time(15)
        self.assertEqual(self.factory.registry.message_deadlines.seconds, 2)
        self.pass_time(10)
        self.assertEqual([row.message.client_id for row in self.log.rows], [1])

    def test_unfinished_message_is_closed_after_message_timeout(self) -> None:
        client = self.client(frames_per_second=4, message_timeout=2.0).log_in()
        client.write(fragments(request(1), 20)[:-30])
        self.pass_time(60)
        self.assertEqual(client.hear()[-1], (1002, "a message took too long"))

    def test_ping_timeout_does_not_count_a_pause(self) -> None:
        client = self.client(frames_per_second=4, ping_interval=20.0, ping_timeout=5.0, message_frames=0).log_in()
        client.write(fragments(request(1), 300) + frame(b"", PONG))
        heard: list[Any] = []
        while PING not in [what for what, _ in heard if not isinstance(what, str)]:
            self.pass_time(0.25)
            heard = client.hear()
        self.pass_time(15)
        self.assertTrue(self.is_paused(client))
        self.assertEqual(client.hear(), [])
        while not self.log.rows:
            self.pass_time(1)
            self.assertNotIn(4004, [what for what, *_ in client.hear()])

    def test_silent_client_is_closed_with_4004_after_its_pause(self) -> None:
        client = self.client(frames_per_second=10, ping_interval=20.0, ping_timeout=5.0).log_in()
        client.write(frame(b"", PONG) * 50)
        self.pass_time(40)
        self.assertEqual(client.hear()[-1], (4004, "no answer to pings"))

    def test_close_frame_during_a_pause_is_read_after_it(self) -> None:
        client = self.client(frames_per_second=10).log_in()
        client.write(frame(b"p", PING) * 30 + frame((1000).to_bytes(2, "big"), CLOSE))
        self.pass_time(0.5)
        self.assertNotIn(1000, [what for what, _ in client.hear()])
        self.pass_time(2)
        self.assertEqual(client.hear()[-1][0], 1000)

    def test_pause_counts_as_activity(self) -> None:
        client = self.client(frames_per_second=10).log_in()
        before = client.protocol.activity()
        client.write(fragments(request(1), 64))
        self.assertTrue(self.is_paused(client))
        self.assertEqual(self.log.rows, [])
        self.assertNotEqual(client.protocol.activity(), before)

    def test_discarding_connection_is_not_resumed(self) -> None:
        client = self.client(frames_per_second=10).log_in()
        client.write(frame(b"p", PING) * 30)
        client.protocol.close(codes.ENDED)
        client.protocol.stop_reading()
        self.pass_time(1)
        self.assertTrue(self.is_paused(client))

    def test_connection_lost_in_a_pause_leaves_no_timer(self) -> None:
        client = self.client(frames_per_second=10).log_in()
        client.write(frame(b"p", PING) * 30)
        client.lost()
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_message_held_in_a_pause_is_not_accepted_after_a_close(self) -> None:
        client = self.client(frames_per_second=10).log_in()
        client.write(frame(b"p", PING) * 20 + fragments(request(1), 2))
        client.protocol.close(codes.ENDED)
        self.pass_time(1)
        self.assertEqual(self.log.rows, [])

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.builds(fragments, st.builds(request, st.integers(0, 9)), st.integers(1, 5)),
                st.just(frame(b"p", PING)),
                st.just(frame(b"{}")),
            ),
            max_size=12,
        ),
        st.lists(st.integers(1, 200), min_size=1, max_size=10),
    )
    def test_paused_connection_gets_the_same_answers_later(self, parts: list[bytes], steps: list[int]) -> None:
        stream = frame(LOG_IN) + b"".join(parts)
        found = []
        for limits in (
            {"frames_per_second": 0, "bytes_per_second": 0},
            {"frames_per_second": 4, "bytes_per_second": 4800},
        ):
            self.log = MemoryMessageLog()
            client = self.client(
                message_timeout=0.0, login_timeout=0.0, ping_interval=0.0, closing_timeout=900.0, **limits
            )
            heard, at, number = [], 0, 0
            while at < len(stream) and not client.transport.disconnecting:
                if not self.is_paused(client):
                    size = steps[number % len(steps)]
                    client.write(stream[at : at + size])
                    at, number = at + size, number + 1
                self.clock.advance(1)
                heard += client.hear()
            for _ in range(200):
                self.clock.advance(1)
                heard += client.hear()
            # A message is answered a turn later than what came after it and needs no log.
            heard.sort(key=lambda what: what[0] if isinstance(what, tuple) else len(what["type"]))
            found.append((heard, [row.message.client_id for row in self.log.rows], client.protocol.state))
        self.assertEqual(found[0], found[1])
