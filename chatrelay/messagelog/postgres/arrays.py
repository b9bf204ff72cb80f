"""Arrays in PostgreSQL's binary format, packed and unpacked.

One call takes a whole batch as a few arrays. psycopg would adapt each element by itself, at several times the cost. The
format is that of ``array_recv`` and ``array_send`` in PostgreSQL's ``src/backend/utils/adt/arrayfuncs.c``. This module
must not know what the arrays mean.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_TEXT = 25
_BIGINT = 20
_SMALLINT = 21
"""The object identifiers of the types, which never change."""

_HEADER = struct.Struct(">iiiii")
"""The dimensions, whether there are nulls, the type, the length, and the first index."""

_LENGTH = struct.Struct(">i")


class Binary(bytes):
    """A parameter in PostgreSQL's binary format."""


def _header(kind: int, length: int) -> bytes:
    return _HEADER.pack(1, 0, kind, length, 1)


def texts(values: Sequence[str]) -> Binary:
    """Pack a ``text[]``.

    :raises UnicodeEncodeError: if a value has a lone surrogate.
    """
    pack = _LENGTH.pack
    parts = [_header(_TEXT, len(values))]
    for value in values:
        encoded = value.encode()
        parts.append(pack(len(encoded)))
        parts.append(encoded)
    return Binary(b"".join(parts))


def integers(values: Sequence[int]) -> Binary:
    """Pack a ``bigint[]``.

    :raises struct.error: if a value has more than 64 bits.
    """
    sizes = [8] * (2 * len(values))
    sizes[1::2] = values
    return Binary(_header(_BIGINT, len(values)) + struct.pack(">" + "iq" * len(values), *sizes))


def small_integers(values: Sequence[int]) -> Binary:
    """Pack a ``smallint[]``.

    :raises struct.error: if a value has more than 16 bits.
    """
    sizes = [2] * (2 * len(values))
    sizes[1::2] = values
    return Binary(_header(_SMALLINT, len(values)) + struct.pack(">" + "ih" * len(values), *sizes))


def unpack_integers(value: bytes) -> tuple[int, ...]:
    """Unpack a ``bigint[]`` that has no nulls."""
    if len(value) < _HEADER.size:  # an empty array has no dimensions
        return ()
    _, _, _, length, _ = _HEADER.unpack_from(value)
    return struct.unpack_from(">" + "iq" * length, value, _HEADER.size)[1::2]
