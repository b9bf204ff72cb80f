"""Messages and their frames: sizes, fragments, times, and messages that close the connection."""

from __future__ import annotations

from chatrelay.websocket.protocol import ChatProtocol
from tests.support.frames import BINARY, CONTINUATION, PING, PONG, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import WebSocketTestCase
from tests.support.v1 import ADMITTED


class Messages(WebSocketTestCase):
    """Whole messages out of frames, and the limits on them."""

    def member(self, sessid: str = "alice") -> MemoryClient:
        """Return a client that is logged in."""
        return self.client().open().log_in(sessid)

    def test_message_reaches_the_recipient_and_is_acknowledged(self) -> None:
        alice, bo = self.member(), self.member("bo")
        alice.send(2, "hej", id="x")
        self.clock.advance(0)
        delivered = {"type": "message", "message": {"timeStamp": 1, "fromuID": 1, "touID": 2, "content": "hej"}}
        self.assertEqual(bo.hear(), [delivered])
        self.assertEqual(alice.hear(), [{"type": "send-request-response", "response": {"id": "x", "value": True}}])

    def test_delivery_may_be_longer_than_the_request(self) -> None:
        # The bound on what is received is none on what is sent: fromuID is
        # added, and control characters are escaped in six bytes each.
        alice, bo = self.member(), self.member("bo")
        content = "\x01" * 10_900
        alice.send(2, content)
        self.clock.advance(0)
        self.assertEqual(bo.hear()[0]["message"]["content"], content)
        self.assertEqual(alice.hear()[0]["response"]["value"], True)

    def test_message_sent_byte_by_byte_arrives(self) -> None:
        client = self.client().open()
        for byte in frame(b'{"type":"auth-request","SESSID":"alice"}'):
            client.write(bytes([byte]))
        self.assertEqual(client.hear(), [ADMITTED])

    def test_message_sent_in_fragments_arrives(self) -> None:
        client = self.client().open()
        client.write(frame(b'{"type":"auth-', fin=False) + frame(b"p", PING))
        client.write(frame(b'request","SESSID":', CONTINUATION, fin=False) + frame(b'"alice"}', CONTINUATION))
        self.assertEqual(client.hear(), [(PONG, b"p"), ADMITTED])

    def test_message_above_message_size_closes_with_1009(self) -> None:
        client = self.client().open()
        client.write(frame(b" " * 65536))
        (error,) = client.hear()
        self.assertEqual(error["reason"], "invalid-json")
        client.write(frame(b" " * 65537)[:20])
        self.assertEqual(client.hear()[0][0], 1009)

    def test_fragments_above_message_size_together_close_with_1009(self) -> None:
        client = self.client().open()
        client.write(frame(b" " * 40000, fin=False))
        self.assertEqual(client.hear(), [])
        client.write(frame(b" " * 25537, CONTINUATION))
        self.assertEqual(client.hear()[0][0], 1009)

    def test_message_of_too_many_frames_closes_with_1002(self) -> None:
        client = self.client().open()
        parts = [frame(b"", CONTINUATION, fin=False) for _ in range(62)]
        client.write(frame(b"{", fin=False) + b"".join(parts) + frame(b"}", CONTINUATION))
        self.assertEqual([message["reason"] for message in client.hear()], ["unknown-type"])
        client = self.client().open()
        client.write(frame(b"{", fin=False) + b"".join(parts) + frame(b"", CONTINUATION, fin=False))
        self.assertEqual(client.hear(), [])
        client.write(frame(b"}", CONTINUATION))
        self.assertEqual(client.hear(), [(1002, "a message in more than 64 frames")])

    def test_unfinished_message_closes_with_1002_after_message_timeout(self) -> None:
        client = self.member()
        client.write(frame(b"{", fin=False))
        self.pass_time(9.5)
        self.assertEqual(client.hear(), [])
        self.pass_time(1)
        self.assertEqual(client.hear(), [(1002, "a message took too long")])

    def test_finished_message_has_no_deadline(self) -> None:
        client = self.member()
        client.write(frame(b"{", fin=False) + frame(b"}", CONTINUATION))
        client.hear()
        self.pass_time(30)
        self.assertEqual(client.hear(), [])

    def test_binary_message_closes_with_1003(self) -> None:
        client = self.member()
        client.write(frame(b"{}", BINARY))
        self.assertEqual(client.hear()[0][0], 1003)

    def test_protocol_error_closes_with_1002(self) -> None:
        for bad in (
            frame(b"{}", masked=False),
            frame(b"{}", rsv=1),
            frame(b"{}", opcode=3),
            frame(b"{}", CONTINUATION),
            frame(b"", PING, fin=False),
        ):
            client = self.member()
            client.write(bad)
            self.assertEqual(client.hear()[0][0], 1002, bad)

    def test_text_that_is_not_utf8_closes_with_1007(self) -> None:
        skipped = b'{"type":"auth-request","x":"\xf5\x80\x80\x80"}'  # where the JSON decoder does not look
        for bad in (b"\xff", b'{"type":"auth-request","SESSID":"\xed\xa0\x80"}', b"\xc3", skipped):
            client = self.member()
            client.write(frame(bad))
            self.assertEqual(client.hear()[0][0], 1007, bad)

    def test_message_after_the_close_is_ignored(self) -> None:
        client, bo = self.member(), self.member("bo")
        client.write(frame(b"x", BINARY))
        client.hear()
        client.send(2)
        self.clock.advance(0)
        self.assertEqual((client.hear(), bo.hear(), self.log.rows), ([], [], []))

    def test_subclass_with_its_own_on_message_gets_every_message(self) -> None:
        taken: list[bytes] = []

        class Own(ChatProtocol):
            def onMessage(self, payload: bytes, isBinary: bool) -> None:
                taken.append(payload)
                super().onMessage(payload, isBinary)

        self.factory.protocol = Own
        client = self.client().open()
        client.write(frame(b'{"type":"auth-request","SESSID":"alice"}'))
        client.write(frame(b"{", fin=False) + frame(b"}", CONTINUATION))
        self.assertEqual(taken, [b'{"type":"auth-request","SESSID":"alice"}', b"{}"])
        self.assertEqual(client.hear()[0], ADMITTED)
