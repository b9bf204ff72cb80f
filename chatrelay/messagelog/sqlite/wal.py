"""What is in a write-ahead log of SQLite's, read without SQLite: opening it with a database changes both.

It knows no table. The format is that of https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress

_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683
_HEADER = struct.Struct(">8I")  # magic, format, page size, sequence, salt 1, salt 2, checksum 1, checksum 2
_FRAME = struct.Struct(">6I")  # page number, pages after a commit, salt 1, salt 2, checksum 1, checksum 2
_COOKIE_AT = 40
"""Where page 1 has the schema cookie."""

_VERIFIED_FRAMES = 64
"""So many frames from the beginning on have their checksums looked at: a frame takes 0.1 ms."""

_SCHEMA_CHANGES = 100
"""By how much one transaction may raise the schema cookie: by one for each table, view or index that it makes."""

_PIECE = 1024 * 1024
"""Bytes that are read and written at once."""


def belongs(path: str, page_size: int, cookie: int) -> bool:
    """Whether a write-ahead log is of the database with this page size and schema cookie.

    The database's page 1 is the one that the write-ahead log began with, or one that it holds. The schema cookie tells
    them from page 1 of a copy: `Checkpoints` changes it with every opening and every checkpoint, and SQLite gives the
    copies that it makes another one.

    :param path: the write-ahead log.
    :param cookie: as ``PRAGMA schema_version`` gives it.
    :returns: False only where it is certain that it is not.
    :raises OSError: where it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = _header(descriptor)
        if header is None:
            return True
        if header[2] != page_size:
            return False
        is_certain = False
        for found, is_verified in _cookies(descriptor, header):
            # The first transaction of a write-ahead log may have made tables, which raises the cookie.
            if (found - cookie) % 2**32 <= _SCHEMA_CHANGES:
                return True
            is_certain = is_certain or is_verified
        return not is_certain
    finally:
        os.close(descriptor)


def generation(path: str) -> bytes:
    """What tells a write-ahead log from what it was before SQLite last began it again: two salts."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, 8, 16)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def write_again(path: str) -> None:
    """Write what a write-ahead log holds once more, and sync it.

    What a failed sync was to write reads as if it were there, in this process and in the next; but Linux takes it for
    written and never tries again. SQLite would go on behind it, and after a power cut all of that would be lost, though
    its own syncs have succeeded.

    Call it while nobody else can write there.

    :raises OSError: where it can't be read, written or synced.
    """
    with suppress(FileNotFoundError), open(path, "r+b", buffering=0) as wal:
        offset = 0
        while piece := os.pread(wal.fileno(), _PIECE, offset):
            written = 0
            while written < len(piece):
                written += os.pwrite(wal.fileno(), piece[written:], offset + written)
            offset += len(piece)
        if offset:
            os.fdatasync(wal.fileno())


def _header(descriptor: int) -> tuple[int, ...] | None:
    """The header's fields; None where there is no whole one."""
    raw = os.pread(descriptor, _HEADER.size, 0)
    if len(raw) < _HEADER.size:
        return None
    fields = _HEADER.unpack(raw)
    if fields[0] not in (_MAGIC_LITTLE, _MAGIC_BIG) or not 512 <= fields[2] <= 65536:
        return None
    return fields if _checksum(fields[0], raw[:24], (0, 0)) == fields[6:] else None


def _cookies(descriptor: int, header: tuple[int, ...]) -> Iterator[tuple[int, bool]]:
    """The schema cookies of the page 1s in it, and whether the checksums up to there are right."""
    magic, _, page_size, _, *salts = header[:6]
    checksum = header[6:]
    offset = _HEADER.size
    count = 0
    is_verified = True
    while True:
        head = os.pread(descriptor, _FRAME.size, offset)
        if len(head) < _FRAME.size:
            return
        number, _, *frame_salts, first, second = _FRAME.unpack(head)
        if frame_salts != salts:
            return  # a frame of before the write-ahead log was last begun again
        count += 1
        if is_verified:
            page = os.pread(descriptor, page_size, offset + _FRAME.size)
            is_verified = count <= _VERIFIED_FRAMES and len(page) == page_size
            if is_verified:
                checksum = _checksum(magic, page, _checksum(magic, head[:8], checksum))
                is_verified = checksum == (first, second)
        if number == 1:
            raw = os.pread(descriptor, 4, offset + _FRAME.size + _COOKIE_AT)
            if len(raw) == 4:
                yield int.from_bytes(raw, "big"), is_verified
        offset += _FRAME.size + page_size


def _checksum(magic: int, data: bytes, start: tuple[int, ...]) -> tuple[int, int]:
    words = struct.unpack(f"{'>' if magic == _MAGIC_BIG else '<'}{len(data) // 4}I", data)
    first, second = start
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
