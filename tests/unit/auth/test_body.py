"""The body of a response: its size, and its encoding."""

from __future__ import annotations

import gc
import gzip
import zlib
from typing import Any

from twisted.internet import reactor as untyped_reactor

from chatrelay.auth.client import MAX_OVERHEAD_BYTES
from chatrelay.config.options import Config
from chatrelay.model import LoggedIn
from tests.support.session_page_case import IN, SessionPageTestCase, response, sleep

reactor: Any = untyped_reactor

MAX_ANSWER = Config().webserver_answer_size
MAX_SENT = MAX_ANSWER + MAX_OVERHEAD_BYTES


class BodySize(SessionPageTestCase):
    """How large a body, and a response, may be."""

    async def test_body_over_the_limit_is_unavailable(self) -> None:
        def padded(size: int) -> bytes:
            return b'{"loggedin":true,"uID":7}'.ljust(size)

        self.respond_with(response(padded(MAX_ANSWER)))
        self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(7))
        self.respond_with(response(padded(MAX_ANSWER + 1)))
        self.assertIn("larger than 8192 bytes", await self.failure())

    async def test_body_limit_is_the_configured_one(self) -> None:
        for size in (len(IN), 100_000):
            authenticator = self.authenticator(answer_size=size)
            self.respond_with(response(IN.ljust(size)))
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
            self.respond_with(response(IN.ljust(size + 1)))
            self.assertEqual(await self.failure(authenticator), f"its response is larger than {size} bytes")
            least = response(IN, "200 OK", "X: " + "x" * 10_000, "Y: ")
            self.respond_with(least.replace(b"Y: ", b"Y: " + b"y" * (10 + MAX_OVERHEAD_BYTES - 10_000)))
            if size == len(IN):
                self.assertIn(f"{size + MAX_OVERHEAD_BYTES} bytes, with its headers", await self.failure(authenticator))
            else:
                self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))

    async def test_body_limit_zero_is_no_limit(self) -> None:
        authenticator = self.authenticator(answer_size=0)
        for packed in (
            response(IN.ljust(2**20)),
            response(gzip.compress(IN.ljust(2**20)), "200 OK", "Content-Encoding: gzip"),
        ):
            self.respond_with(packed)
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))

    async def test_response_over_the_limit_is_unavailable(self) -> None:
        def padded(size: int) -> bytes:
            headers = "X: " + "x" * 10000, "Y: "  # a line of 16 KiB would be too long for Twisted
            least = response(IN, "200 OK", *headers)
            return least.replace(b"Y: ", b"Y: " + b"y" * (size - len(least)))

        authenticator = self.authenticator()
        for _ in range(3):
            self.respond_with(padded(MAX_SENT))
            self.assertEqual(await authenticator.authenticate("sid"), LoggedIn(7))
        self.assertEqual(len(self.conversations), 1)
        self.respond_with(padded(MAX_SENT + 1))
        self.assertEqual(await self.failure(), "its response is larger than 24576 bytes, with its headers")

    async def test_endless_headers_cut_the_connection(self) -> None:
        for again in (b"x: y\r\n", b"X: \r\n" + b" folded\r\n", b"\r\nHTTP/1.1 102 Processing\r\n"):
            self.respond_with(b"HTTP/1.1 102 Processing\r\n" + again * 10000)
            self.assertIn("larger than 24576 bytes", await self.failure(), again)


class Compression(SessionPageTestCase):
    """Bodies that are compressed."""

    async def test_body_without_a_length_that_decodes_to_little_cuts_the_connection(self) -> None:
        packed = b"".join(gzip.compress(IN if number == 0 else b"") for number in range(3000))
        self.respond_with(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + packed)
        self.assertIn("larger than 24576 bytes", await self.failure())

    async def test_compressed_body_is_limited_by_its_decoded_size(self) -> None:
        self.respond_with(response(gzip.compress(IN.ljust(MAX_ANSWER)), "200 OK", "Content-Encoding: gzip"))
        self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(7))
        self.respond_with(response(gzip.compress(IN.ljust(MAX_ANSWER + 1)), "200 OK", "Content-Encoding: gzip"))
        self.assertIn("larger than 8192 bytes", await self.failure())

    async def test_zip_bomb_is_decoded_in_part_and_that_part_is_freed_at_once(self) -> None:
        decoded: list[int] = []
        freed: list[int] = []
        real = zlib.decompressobj

        class Piece(bytes):
            def __del__(self) -> None:
                freed.append(len(self))

        class Watched:
            def __init__(self, *arguments: Any) -> None:
                self.real = real(*arguments)

            def decompress(self, data: bytes) -> bytes:
                out = Piece(self.real.decompress(data))
                decoded.append(len(out))
                return out

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

        self.patch(zlib, "decompressobj", Watched)
        self.respond_with(response(gzip.compress(b" " * 50_000_000), "200 OK", "Content-Encoding: gzip"))
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(3):
            self.assertIn("larger than 8192 bytes", await self.failure())
        await sleep(0.05)  # the rest of the response is still being discarded
        self.assertGreater(sum(decoded), 3 * 100_000)
        self.assertLess(sum(decoded), 3 * 1_000_000)
        self.assertEqual(sum(decoded), sum(freed))

    async def test_body_that_is_not_gzip_is_unavailable(self) -> None:
        for body in (b"not gzip at all", IN, gzip.compress(IN)[:-8] + b"12345678"):
            self.respond_with(response(body, "200 OK", "Content-Encoding: gzip"))
            self.assertEqual(await self.failure(), "its response is not gzip, although its Content-Encoding says so")
        await sleep(0.05)  # the rest of the response is still to come
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_all_names_and_forms_of_gzip_are_decoded(self) -> None:
        half = len(IN) // 2
        members = gzip.compress(IN[:half]) + gzip.compress(b"") + gzip.compress(IN[half:])
        packed = gzip.compress(IN)
        for coding, body in (
            *((coding, packed) for coding in ("gzip", "GZIP", "GZip", "x-gzip", "X-GZIP", " gzip ", "gzip, identity")),
            ("", IN),
            ("identity", IN),
            ("UTF-8", IN),  # some pages say so
            ("none", IN),
            ("gzip, x-gzip", gzip.compress(packed)),
            ("gzip", members),
            ("gzip", members + b"\0" * 512),
            ("gzip", packed + b"\x1f"),
            ("gzip", packed + b"<!-- 3 ms -->"),
        ):
            for body_of in (response, chunked):
                self.respond_with(body_of(body, "200 OK", f"Content-Encoding: {coding}"))
                self.assertEqual(await self.authenticator().authenticate("sid"), LoggedIn(7), (coding, body))

    async def test_members_and_layers_of_gzip_count_together(self) -> None:
        over = gzip.compress(IN) + gzip.compress(b" " * (MAX_ANSWER - len(IN) + 1))
        for coding, body in (("gzip", over), ("gzip,gzip", gzip.compress(over))):
            self.respond_with(response(body, "200 OK", f"Content-Encoding: {coding}"))
            self.assertIn("larger than 8192 bytes", await self.failure())
        self.respond_with(response(IN, "200 OK", "Content-Encoding: gzip, gzip, gzip, gzip, gzip"))
        self.assertIn("more than 4 Content-Encodings", await self.failure())
        await sleep(0.05)  # the rest of the response is still to come

    async def test_unknown_content_encoding_is_named(self) -> None:
        self.respond_with(response(b"\x0b\x02", "200 OK", "Content-Encoding: BR"))
        self.assertEqual(
            await self.failure(), "its response has the Content-Encoding 'br', and the relay asked for gzip only"
        )


def chunked(body: bytes, status: str, *headers: str) -> bytes:
    """Return a response in chunks of one byte."""
    lines = [f"HTTP/1.1 {status}", "Transfer-Encoding: chunked", *headers]
    pieces = b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body)))
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + pieces + b"0\r\n\r\n"
