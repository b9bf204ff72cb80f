"""The body of an answer that is compressed with gzip, decoded up to a bound.

Pure. It knows the names of the coding (RFC 9110, section 8.4.1) and that a
body may be several members, one after the other (RFC 1952, section 2.2). How
a body comes, and what it says, is not known here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

GZIP = ("gzip", "x-gzip")
"""Names of the coding; the second one is as good as the first (RFC 9110, section 8.4.1.3)."""

MAX_CODINGS = 4
"""Times that a body may be compressed over again."""

_MAGIC = b"\x1f\x8b"
_WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS
SLICE = 512
"""Bytes that are decoded at once; deflate makes at most some thousand times as many of them."""


def codings(headers: Iterable[bytes]) -> list[str]:
    """The codings that a body has, in the order in which they were applied.

    :param headers: the values of ``Content-Encoding``.
    """
    names = ",".join(str(header, "latin-1") for header in headers).split(",")
    return [name for name in (each.strip().lower() for each in names) if name not in ("", "identity")]


class NotGzip(ValueError):
    """A body that is not gzip."""


class Gunzip:
    """Decodes one body, as it comes.

    Bytes behind the last member are left out, as gzip itself does: zeros, or text that a page printed after it.
    """

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_WITH_GZIP_HEADER)
        self._is_over = False
        self._between = b""  # what may become the next member's first bytes

    def decode(self, data: bytes) -> Iterable[bytes]:
        """Decode some more of it, in pieces, each of a slice.

        :raises NotGzip: where it can't be decoded.
        """
        for start in range(0, len(data), SLICE):
            yield from self._slice(data[start : start + SLICE])

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
