"""The body of the webserver's answer: read and decoded up to a bound.

`chatrelay.auth.client` brings an answer here, `chatrelay.auth.gunzip` decodes gzip,
and `chatrelay.auth.verdicts` judges what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from treq import collect

from chatrelay.auth import gunzip, verdicts
from chatrelay.auth.diagnosis import MAX_BODY
from chatrelay.auth.verdicts import NoVerdict
from chatrelay.model import Verdict


async def read(response: Any, codings: list[str], most: int) -> bytes:
    """Return the body, decoded where it is gzip.

    :param codings: what it is encoded with, in lower case.
    :param most: bytes that it may have, decoded.
    :raises NoVerdict: where it has more, and where it is not encoded as it says.
    """
    chunks: list[bytes] = []
    size = 0

    def take(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > most:
            # treq closes the connection on what its collector raises.
            raise NoVerdict(f"its answer is larger than {most} bytes")
        chunks.append(chunk)

    decode = _decoding(codings, take)

    def received(chunk: bytes) -> None:
        if size <= most:  # or the rest of a bomb would be decoded, chunk by chunk, for nothing
            decode(chunk)

    await collect(response, received)
    return b"".join(chunks)


class _Enough(Exception):
    """As much of a body has come as is looked at."""


async def start(response: Any, codings: list[str]) -> bytes:
    """Return the start of a body, decoded: `MAX_BODY` bytes, or what there is."""
    found = bytearray()

    def take(chunk: bytes) -> None:
        found.extend(chunk)
        if len(found) >= MAX_BODY:
            raise _Enough  # treq closes the connection

    decode = _decoding(codings, take)

    def received(chunk: bytes) -> None:
        if len(found) < MAX_BODY:
            decode(chunk)

    with suppress(_Enough):
        await collect(response, received)
    return bytes(found[:MAX_BODY])


def _decoding(codings: list[str], take: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return what decodes a body piece by piece and calls `take` with what becomes of it.

    A body with another coding than gzip is taken as it is: many a page says "utf-8" there, and sends JSON.

    :raises NoVerdict: where it is encoded too many times over; what is returned, where it is not encoded as it says.
    """
    if len(codings) > gunzip.MAX_CODINGS:
        raise NoVerdict(f"its answer has more than {gunzip.MAX_CODINGS} Content-Encodings")
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
            raise NoVerdict("its answer is not gzip, as its Content-Encoding says") from None

    return received


def verdict(body: bytes, codings: list[str]) -> Verdict:
    """Judge a body that was decoded.

    :raises NoVerdict: where it means nothing.
    """
    try:
        return verdicts.of_body(body)
    except NoVerdict as error:
        if set(codings) <= set(gunzip.GZIP):
            raise
        named = ascii(", ".join(codings))
        raise NoVerdict("its answer has the Content-Encoding ", named, ", and only gzip was asked for") from error
