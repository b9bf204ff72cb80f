"""Decode a body that is compressed with gzip, piece by piece.

Pure. A body may have several members, one after the other (RFC 1952, section 2.2). This module must not know how a body
arrives, how large it may be, or what it means.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

GZIP = ("gzip", "x-gzip")
"""The names of the coding, which are equivalent (RFC 9110, section 8.4.1.3)."""

MAX_CODINGS = 4
"""The most codings of a body, one inside the other."""

_MAGIC = b"\x1f\x8b"
_WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS
SLICE_BYTES = 512
"""How many bytes are decoded at once. They become at most about a thousand times as many bytes."""


def codings(headers: Iterable[bytes]) -> list[str]:
    """Return the codings of a body, in lower case, in the order in which they were applied.

    :param headers: the values of ``Content-Encoding``.
    """
    names = ",".join(str(header, "latin-1") for header in headers).split(",")
    return [name for name in (each.strip().lower() for each in names) if name not in ("", "identity")]


class NotGzip(ValueError):
    """The body is not gzip."""


class Gunzip:
    """Decodes one body, as it arrives.

    Bytes after the last member, such as zeros or text that a page has printed, are ignored, as gzip itself does.
    """

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_WITH_GZIP_HEADER)
        self._is_over = False
        self._between = b""  # the bytes after a member, which may be the beginning of the next one

    def decode(self, data: bytes) -> Iterable[bytes]:
        """Decode the next bytes; yield what they decode to, slice by slice.

        :raises NotGzip: if they can't be decoded.
        """
        for start in range(0, len(data), SLICE_BYTES):
            yield from self._slice(data[start : start + SLICE_BYTES])

    def _slice(self, data: bytes) -> Iterable[bytes]:
        while data and not self._is_over:
            if self._inflater.eof:
                self._between += data
                if len(self._between) < len(_MAGIC):
                    return
                data, self._between = self._between, b""
                if not data.startswith(_MAGIC):
                    self._is_over = True
                    return
                self._inflater = zlib.decompressobj(_WITH_GZIP_HEADER)
            try:
                decoded = self._inflater.decompress(data)
            except zlib.error:
                raise NotGzip("not gzip") from None
            data = self._inflater.unused_data
            if decoded:
                yield decoded
