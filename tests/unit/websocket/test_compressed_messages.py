"""Compressed messages (RFC 7692): what is negotiated, and how large they may become when decompressed."""

from __future__ import annotations

import itertools
import json
import string
import tracemalloc
import zlib
from random import Random

from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.websocket.compression import MAX_ADDED
from tests.support.frames import CONTINUATION, PING, PONG, TEXT, frame, frames
from tests.support.relay_case import WebSocketTestCase
from tests.support.v1 import ADMITTED


class Compression(WebSocketTestCase):
    """Compression that is switched on, and its limits."""

    OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"

    def setUp(self) -> None:
        super().setUp()
        # These tests are about a message's size, not about how fast it is read.
        self.factory = self.make_factory(compression=True, frames_per_second=0, bytes_per_second=0)

    def deflated(self, *pieces: bytes, bits: int = 12) -> list[bytes]:
        """Compress a message in this many pieces."""
        compressor = zlib.compressobj(wbits=-bits)
        parts = [compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
        return [*parts[:-1], parts[-1].removesuffix(b"\x00\x00\xff\xff")]

    def test_offers_of_compression_are_answered_with_their_parameters(self) -> None:
        for offer, answer in (
            ("permessage-deflate", "permessage-deflate; client_no_context_takeover"),
            (
                "permessage-deflate; client_max_window_bits",
                "permessage-deflate; client_no_context_takeover; client_max_window_bits=12",
            ),
            (
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10",
                "permessage-deflate; server_no_context_takeover; server_max_window_bits=10; client_no_context_takeover",
            ),
            ("permessage-bzip2", None),
        ):
            head = self.client().shake(f"Sec-WebSocket-Extensions: {offer}").decode()
            found = [line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-extensions:")]
            self.assertEqual(found, [] if answer is None else [f"Sec-WebSocket-Extensions: {answer}"])

    def test_compressed_and_plain_messages_mix(self) -> None:
        request = json.dumps({"type": "auth-request", "SESSID": "alice"}).encode()
        (whole,) = self.deflated(request)
        first, second = self.deflated(request[:10], request[10:])
        stream = (
            frame(whole, rsv=4)
            + frame(request)
            + frame(first, fin=False, rsv=4)
            + frame(b"p", PING)
            + frame(second, CONTINUATION)
            + frame(request)
        )
        for size in (1, 7, len(stream)):
            client = self.client().open(self.OFFER)
            for start in range(0, len(stream), size):
                client.write(stream[start : start + size])
            self.assertEqual(client.hear(), [ADMITTED, ADMITTED, (PONG, b"p"), ADMITTED, ADMITTED])

    def test_delivery_is_compressed_where_it_becomes_shorter(self) -> None:
        client = self.client().open(self.OFFER).log_in()
        for size, is_compressed in ((255, False), (256, True), (65536, True), (65537, False)):
            client.protocol.outgoing.send(b"x" * size)
            data = client.read()
            self.assertEqual(bool(data[0] & 0x40), is_compressed, size)
            ((_, payload),) = frames(data)
            if is_compressed:
                self.assertLess(len(payload), size // 4)
                payload = zlib.decompressobj(-12).decompress(payload + b"\x00\x00\xff\xff")
            self.assertEqual(payload, b"x" * size)

    def test_client_without_an_offer_gets_plain_messages(self) -> None:
        client = self.client().open().log_in()
        client.protocol.outgoing.send(b"x" * 1000)
        self.assertEqual(client.read()[0], 0x81)
        client.write(frame(b"x", rsv=4))
        self.assertEqual(client.hear()[0][0], 1002)

    def packed(self, size: int, level: int, kind: str) -> bytes:
        """Compress a login of this many bytes, which can be parsed even if bytes at its end are missing."""
        compressor = zlib.compressobj(level, wbits=-12)
        begin = b'{"type":"auth-request","SESSID":"alice"'
        if kind == "letters":
            letters = "".join(Random(size).choices(string.ascii_letters, k=size // 2)).encode()
            data = compressor.compress((begin + b',"x":"' + letters + b'"}').ljust(size))
        else:
            data = compressor.compress(begin + b"}")
            if kind == "flushed spaces":  # which then are so well compressed that the last bits are many of them
                data += compressor.flush(zlib.Z_FULL_FLUSH)
            data += compressor.compress(b" " * (size - len(begin) - 1))
        return (data + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")

    def answer_to(self, pieces: list[bytes], segment: int = 1_000_000, rsv: int = 4) -> list[object]:
        """Return the answer to a message in these frames, each of which arrives in segments of this many bytes."""
        client = self.client().open(self.OFFER)
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            data = frame(piece, CONTINUATION if number else TEXT, fin=is_last, rsv=0 if number else rsv)
            for start in range(0, len(data), segment):
                client.write(data[start : start + segment])
        return [heard[0] if isinstance(heard, tuple) else heard for heard in client.hear()]

    def test_message_that_unpacks_above_message_size_closes_with_1009(self) -> None:
        beyond = {0: ADMITTED, 1: 1009, 6: 1009, 39: 1009, 296: 1009, 1023: 1009, 1024: 1009, 1025: 1009, 99999: 1009}
        kinds = ((0, "spaces"), (1, "spaces"), (9, "flushed spaces"), (9, "letters"))
        for (level, kind), (more, answer) in itertools.product(kinds, beyond.items()):
            data = self.packed(65536 + more, level, kind)
            for parts, segment in ((1, 1_000_000), (1, 1000), (2, 1_000_000), (60, 700)):
                step = -(-len(data) // parts)
                pieces = [data[start : start + step] for start in range(0, len(data), step)]
                heard = self.answer_to(pieces, segment)
                self.assertEqual(heard, [answer], f"{more=} {level=} {kind=} {parts=} {segment=}")

    def test_message_of_many_flushes_above_message_size_closes_with_1009(self) -> None:
        for size, answer in ((65536, ADMITTED), (65537, 1009), (66000, 1009)):
            request = json.dumps({"type": "auth-request", "SESSID": "alice"}).encode().ljust(size)
            pieces = self.deflated(*(request[start : start + 1100] for start in range(0, size, 1100)))
            self.assertEqual(self.answer_to(pieces), [answer], size)

    def test_too_large_message_closes_with_1009_whatever_else_is_wrong(self) -> None:
        # Its last block is not at its end; and what of it is unpacked ends within a character.
        cut = self.packed(65536 + 5000, 9, "flushed spaces")[:-2]
        compressor = zlib.compressobj(9, wbits=-12)
        characters = compressor.compress("\N{EURO SIGN}".encode() * 25_000) + compressor.flush(zlib.Z_SYNC_FLUSH)
        for data in (cut, characters):
            self.assertEqual(self.answer_to([data]), [1009])

    def test_compressed_bytes_are_bounded_too(self) -> None:
        # After its end, deflate ignores what follows, and zlib keeps it.
        compressor = zlib.compressobj(wbits=-12)
        whole = compressor.compress(b'{"type":"auth-request","SESSID":"alice"}') + compressor.flush(zlib.Z_FINISH)
        most = 65536 + MAX_ADDED - len(whole)
        for more, answer in ((most, ADMITTED), (most + 1, 1009)):
            self.assertEqual(self.answer_to([whole, bytes(30_000), bytes(more - 30_000)]), [answer], more)

    def test_plain_messages_are_bounded_as_without_compression(self) -> None:
        request = b'{"type":"auth-request","SESSID":"alice"}'
        for size, answer in ((65536, ADMITTED), (65537, 1009)):
            for parts in (1, 3):
                text = request.ljust(size)
                step = -(-size // parts)
                pieces = [text[start : start + step] for start in range(0, size, step)]
                self.assertEqual(self.answer_to(pieces, rsv=0), [answer], size)

    def test_bomb_is_not_unpacked(self) -> None:
        size = 50_000_000
        compressor = zlib.compressobj(9, wbits=-12)
        bomb = b"".join(compressor.compress(bytes(1_000_000)) for _ in range(size // 1_000_000))
        bomb += compressor.flush(zlib.Z_SYNC_FLUSH)
        half = len(bomb) // 2
        for pieces in (
            [bomb[:60_000]],
            [bomb[:100], bomb[100:30_000], bomb[30_000:60_000]],
            [bomb[:half], bomb[half:]],
        ):
            client = self.client().open(self.OFFER)
            tracemalloc.start()
            for number, piece in enumerate(pieces):
                client.write(frame(piece, TEXT if number == 0 else CONTINUATION, fin=False, rsv=0 if number else 4))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertEqual(client.hear()[0][0], 1009)
            self.assertLess(peak, 1_000_000)  # the frames themselves, some times over, and one message

    def test_bomb_leaves_no_memory_when_its_sender_has_left(self) -> None:
        client = self.client().open(self.OFFER)
        client.write(frame(self.packed(1_000_000, 9, "spaces"), rsv=4) * 2)
        self.assertEqual(client.hear()[0][0], 1009)
        self.assertGreater(len(client.protocol.data), 1000)
        client.lost()
        self.assertEqual(client.protocol.data, b"")

    def test_bytes_that_are_not_deflate_close_with_1007(self) -> None:
        client = self.client().open(self.OFFER)
        client.write(frame(b"\xff\xff\xff\xff", rsv=4))
        self.assertEqual(client.hear()[0][0], 1007)

    def test_compression_without_message_size_is_refused(self) -> None:
        error = self.assertRaises(ConfigError, Config, compression=True, message_size=0)
        self.assertIn("compression: needs a message-size", str(error))
