"""Read the body of the session page's response, and decode it, up to a limit.

This module must not know requests (`chatrelay.auth.client`), nor what a body means (`chatrelay.auth.verdicts`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from treq import collect

from chatrelay.auth import gunzip
from chatrelay.auth.diagnosis import MAX_BODY_BYTES
from chatrelay.auth.verdicts import InvalidAnswer, judge_body
from chatrelay.model import Verdict


async def read(response: Any, codings: list[str], limit: int) -> bytes:
    """Return the whole body, decoded if it is gzip.

    :param codings: its Content-Encodings, in lower case.
    :param limit: the most bytes that it may have after decoding.
    :raises InvalidAnswer: if it has more, or can't be decoded as its headers say.
    """
    chunks: list[bytes] = []
    size = 0

    def take(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > limit:
            # treq closes the connection when its collector raises.
            raise InvalidAnswer(f"its response is larger than {limit} bytes")
        chunks.append(chunk)

    decode = _decoder(codings, take)

    def received(chunk: bytes) -> None:
        if size <= limit:  # so that the rest of a zip bomb is not decoded
            decode(chunk)

    await collect(response, received)
    return b"".join(chunks)


class _Enough(Exception):
    """Enough of a body has arrived."""


async def read_start(response: Any, codings: list[str]) -> bytes:
    """Return the first `MAX_BODY_BYTES` of a body, decoded, or all of a shorter one."""
    found = bytearray()

    def take(chunk: bytes) -> None:
        found.extend(chunk)
        if len(found) >= MAX_BODY_BYTES:
            raise _Enough  # treq closes the connection

    decode = _decoder(codings, take)

    def received(chunk: bytes) -> None:
        if len(found) < MAX_BODY_BYTES:
            decode(chunk)

    with suppress(_Enough):
        await collect(response, received)
    return bytes(found[:MAX_BODY_BYTES])


def _decoder(codings: list[str], take: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return a function that decodes a body piece by piece, and calls `take` with each decoded piece.

    A body with a coding other than gzip is taken as it is: many pages send plain JSON with Content-Encoding "utf-8".

    :raises InvalidAnswer: if the body has too many codings; the returned function raises it if the body can't be
        decoded as its headers say.
    """
    if len(codings) > gunzip.MAX_CODINGS:
        raise InvalidAnswer(f"its response has more than {gunzip.MAX_CODINGS} Content-Encodings")
    decoders = [gunzip.Gunzip() for _ in codings] if set(codings) <= set(gunzip.GZIP) else []

    def decode(chunk: bytes, layers: int) -> None:
        if layers:
            for decoded in decoders[layers - 1].decode(chunk):
                decode(decoded, layers - 1)
        else:
            take(chunk)

    def received(chunk: bytes) -> None:
        try:
            decode(chunk, len(decoders))
        except gunzip.NotGzip:
            raise InvalidAnswer("its response is not gzip, although its Content-Encoding says so") from None

    return received


def judge(body: bytes, codings: list[str]) -> Verdict:
    """Return the verdict of a decoded body.

    :param codings: its Content-Encodings.
    :raises InvalidAnswer: if it gives none.
    """
    try:
        return judge_body(body)
    except InvalidAnswer as error:
        if set(codings) <= set(gunzip.GZIP):
            raise
        named = ascii(", ".join(codings))
        raise InvalidAnswer(
            "its response has the Content-Encoding ", named, ", and the relay asked for gzip only"
        ) from error
