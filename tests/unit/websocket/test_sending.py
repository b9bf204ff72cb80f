"""Clients that send too fast: messages, pings and pongs."""

from __future__ import annotations

from typing import Any

from tests.support import v1
from tests.support.frames import BINARY, PING, PONG, close_frame, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase


class SendingTooFast(WebSocketTestCase):
    """Limits on messages and control frames, and the close of clients that continue."""

    def outcomes(self, client: MemoryClient) -> list[Any]:
        """Return the outcomes: "sent", the reason of a refusal, or the close code."""
        self.clock.advance(0)
        told: list[Any] = []
        for heard in client.hear():
            if isinstance(heard, tuple):
                told.append(heard[0])
            elif heard["type"] == "send-request-response":
                told.append(heard["response"].get("reason", "sent"))
        return told

    def request(self, to: object = 1) -> bytes:
        """Encode a message-send-request as a frame."""
        return frame(v1.encoded(v1.message(to)))

    def test_limits_follow_their_options(self) -> None:
        self.factory = self.make_factory(messages_per_second=2, message_burst=3, new_recipients_per_minute=2)
        client = self.client().open().log_in()
        for number in range(4):
            client.write(self.request(f"nobody-{number}"))
        self.assertEqual(self.outcomes(client), ["receiving-user-not-connected"] * 2 + ["rate-limited"] * 2)
        self.pass_time(1)
        client.write(self.request() * 3)
        self.assertEqual(self.outcomes(client), ["rate-limited"] * 3)
        self.pass_time(60)
        client.write(self.request() * 4)
        self.assertEqual(sorted(self.outcomes(client)), ["rate-limited"] + ["sent"] * 3)

    def test_client_that_continues_above_the_limit_closes_with_4503(self) -> None:
        client = self.client().open().log_in()
        client.write(self.request() * 1000)
        told = self.outcomes(client)
        self.assertEqual(told[-1], 4503)
        self.assertEqual(told.count("rate-limited"), 61)
        # The 30 are logged; their sender had disconnected, and could not receive them.
        self.assertEqual(len(self.log.rows), 30)

    def test_answered_close_with_4503_ends_the_connection_at_once(self) -> None:
        client = self.client().open().log_in()
        client.write(self.request() * 91)
        self.assertEqual(self.outcomes(client)[-1], 4503)
        client.write(close_frame(4503))
        self.assertTrue(client.transport.aborted or client.transport.disconnecting)

    def test_client_that_keeps_sending_after_a_close_is_aborted(self) -> None:
        for piece in (self.request(), frame(b"p", PING), frame(b"", PONG), frame(b"")):
            client = self.client().open().log_in()
            client.write(frame(b"x", BINARY))
            self.assertEqual(client.hear()[0][0], 1003)
            client.write(piece * 20)
            self.assertEqual(client.transport.producerState, "producing")
            client.write(piece * 1000)
            self.assertEqual(client.transport.producerState, "paused")
            self.assertEqual(client.protocol.data, b"")
            client.write(piece)
            self.assertEqual((client.protocol.data, client.hear()), (b"", []))
            self.assertFalse(client.transport.aborted)
            self.pass_time(2.5)
            self.assertTrue(client.transport.aborted)

    def test_control_frame_above_20_at_once_and_ten_a_second_closes_with_1002(self) -> None:
        client = self.client().open().log_in()
        client.write((frame(b"p", PING) + frame(b"", PONG)) * 10)
        self.assertEqual(client.hear(), [(PONG, b"p")] * 10)
        self.pass_time(1)
        client.write(frame(b"p", PING) * 10)
        self.assertEqual(client.hear(), [(PONG, b"p")] * 10)
        client.write(frame(b"", PONG))
        self.assertEqual(client.hear(), [(1002, "more than 10 pings and pongs a second")])
        self.assertEqual(len(self.directory), 0)

    def test_close_frame_is_never_above_the_limit(self) -> None:
        client = self.client().open().log_in()
        client.write(frame(b"", PONG) * 20 + close_frame())
        self.assertEqual(client.hear()[0][0], 1000)

    def test_burst_of_pings_follows_its_option(self) -> None:
        for burst in (3, 50):
            self.factory = self.make_factory(control_frame_burst=burst)
            client = self.client().open().log_in()
            client.write(frame(b"p", PING) * burst)
            self.assertEqual(client.hear(), [(PONG, b"p")] * burst)
            self.pass_time(0.25)
            client.write(frame(b"p", PING) * 3)
            self.assertEqual([what for what, _ in client.hear()], [PONG, PONG, 1002])

    def test_any_number_of_pings_passes_without_a_limit(self) -> None:
        for option in ("control_frames_per_second", "control_frame_burst"):
            self.factory = self.make_factory(frames_per_second=0, **{option: 0})
            client = self.client().open().log_in()
            client.write(frame(b"", PING) * 500)
            self.assertEqual(client.hear(), [(PONG, b"")] * 500)
