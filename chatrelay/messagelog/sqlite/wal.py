"""Read a write-ahead log of SQLite without SQLite, because SQLite would change it together with the database.

https://www.sqlite.org/fileformat2.html#the_write_ahead_log describes the format. This module must not know any table.
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
"""The offset of the schema cookie in page 1."""

_MAX_VERIFIED_FRAMES = 64
"""How many frames, from the first, have their checksums verified. Each takes 0.1 ms."""

_MAX_SCHEMA_CHANGES = 100
"""The most by which one transaction may raise the schema cookie: one for each table, view or index that it makes."""

_PIECE_BYTES = 1024 * 1024
"""The bytes that are read and written in one step."""


def belongs(path: str, page_size: int, cookie: int) -> bool:
    """Return whether a write-ahead log belongs to the database with this page size and schema cookie.

    If it does, page 1 of the database is the page 1 with which the write-ahead log began, or one that is in the log.
    The schema cookie distinguishes them from page 1 of a copy: `Checkpoints` changes the cookie with every opening and
    every checkpoint, and SQLite gives a different cookie to the copies that it makes.

    :param path: the write-ahead log.
    :param cookie: as ``PRAGMA schema_version`` returns it.
    :returns: False only if it is certain that it does not belong to it.
    :raises OSError: if it can't be read.
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
            # The first transaction in a write-ahead log may have made tables, which raises the cookie.
            if (found - cookie) % 2**32 <= _MAX_SCHEMA_CHANGES:
                return True
            is_certain = is_certain or is_verified
        return not is_certain
    finally:
        os.close(descriptor)


def generation(path: str) -> bytes:
    """Return the two salts of a write-ahead log, which change when SQLite restarts it; empty if it can't be read."""
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


def rewrite(path: str) -> None:
    """Write the contents of a write-ahead log again, and sync it.

    After a failed sync, Linux still returns the data to every reader, but counts it as written and never writes it
    again. SQLite would append to it, and a power cut would lose all of that although SQLite's own syncs succeeded.

    Call it while no other program can write to the file.

    :raises OSError: if it can't be read, written or synced.
    """
    with suppress(FileNotFoundError), open(path, "r+b", buffering=0) as wal:
        offset = 0
        while piece := os.pread(wal.fileno(), _PIECE_BYTES, offset):
            written = 0
            while written < len(piece):
                written += os.pwrite(wal.fileno(), piece[written:], offset + written)
            offset += len(piece)
        if offset:
            os.fdatasync(wal.fileno())


def _header(descriptor: int) -> tuple[int, ...] | None:
    """Return the fields of the header; None if the header is incomplete or not valid."""
    raw = os.pread(descriptor, _HEADER.size, 0)
    if len(raw) < _HEADER.size:
        return None
    fields = _HEADER.unpack(raw)
    if fields[0] not in (_MAGIC_LITTLE, _MAGIC_BIG) or not 512 <= fields[2] <= 65536:
        return None
    return fields if _checksum(fields[0], raw[:24], (0, 0)) == fields[6:] else None


def _cookies(descriptor: int, header: tuple[int, ...]) -> Iterator[tuple[int, bool]]:
    """Yield the schema cookie of each page 1, and whether the checksums up to it are correct."""
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
            return  # a frame from before the write-ahead log was restarted
        count += 1
        if is_verified:
            page = os.pread(descriptor, page_size, offset + _FRAME.size)
            is_verified = count <= _MAX_VERIFIED_FRAMES and len(page) == page_size
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
