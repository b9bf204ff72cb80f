"""A run of the index: for some consecutive messages, what each user sent and received, in one immutable file.

A run is sorted by the hash of the user. It is written once, synced, and only then gets its name, so a run that can be
opened is complete. It is read with `os.pread`, which lets other threads work while the disk is read. This module must
not know where messages are, or which runs an index has.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import attrs

MAGIC = b"CRLYIX1" + (b"<" if sys.byteorder == "little" else b">")
"""The first bytes of a run. A machine of the other byte order does not recognise it."""

BASE_STEP = 2**30
"""The distance of the numbers that codes count from. Runs that count from different numbers are not merged."""

HASHES_PER_PAGE = 512
"""The hashes that are read at once: 4 KiB. One of each page is kept in memory."""

READ_BYTES = 2**20
"""The most bytes of a run that are read at once, to check it or to merge it."""

NOBODY = 2**31 - 1
"""A position that no user has: the sides of an entry have four bytes."""

LARGE_PART = 16_384
"""The entries of a user beyond which the other users are kept in memory: many questions about strangers would search
all entries each time."""

MAX_DISTINCT_SIDES = 65_536
"""The most sides of a part that are kept in memory: 256 KiB."""

MAX_KEPT_SIDES = 4
"""The most parts of a run whose sides are kept."""

UNFINISHED = ".unfinished"
"""The end of the name of an incomplete run."""

_HEADER = struct.Struct("=8s16s64sQQQQQqqQQ6II")
_SECTIONS = ("hashes", "rows", "codes", "sides", "id_hashes", "id_codes")
_WIDTHS = {"hashes": 8, "rows": 12, "codes": 4, "sides": 4, "id_hashes": 4, "id_codes": 4}


Row = tuple[int, int, int, int, int]
"""A user in a run: the first place, and where the user's entries and ids begin and end."""


class DamagedRun(Exception):
    """A file that is not a complete run, or a run of another message log. The text gives the cause."""


class User(NamedTuple):
    """A user's key, and its hash in the index."""

    key: str
    hash: int


class Part(Protocol):
    """One user's entries in a run, oldest first. Each has a code and a side.

    The code is the number of the message, counted from the run's base. The side is ``position * 2 + is_sent``, where
    `position` is that of the other user in the same run. A message to oneself has one entry, which was sent.

    :ivar position: of the user in the run.
    :ivar first_place: the place of the first entry. The others follow without gaps.
    :ivar count: the number of entries.
    """

    @property
    def position(self) -> int: ...
    @property
    def first_place(self) -> int: ...
    @property
    def count(self) -> int: ...

    def lacks(self, side: int) -> bool:
        """Return whether it is known without a search that no entry has a side."""

    def codes(self, start: int, stop: int) -> Sequence[int]:
        """Return the codes of some entries."""

    def sides(self, start: int, stop: int) -> bytes:
        """Return the sides of some entries, each in four bytes."""

    def codes_of_id(self, id_hash: int) -> Sequence[int]:
        """Return the codes of the messages that the user sent with a unique id that has this hash."""


class Run(Protocol):
    """Some consecutive messages, by user.

    :ivar base: the number that codes count from.
    :ivar first: the number of the first message.
    :ivar last: the number of the last message.
    :ivar latest: the latest time at which one of them was received, in microseconds since 1970 UTC.
    """

    @property
    def base(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def latest(self) -> int: ...

    def part(self, user: User) -> Part | None:
        """Return the part of a user; None if the user neither sent nor received any of the messages."""

    def position(self, user: User) -> int | None:
        """Return the position of a user; None if the user neither sent nor received any of the messages.

        That costs the same for both.
        """

    def hash_at(self, position: int) -> int:
        """Return the hash of the user at a position."""


class LastMessage(NamedTuple):
    """What identifies the last message of a run: another message log has another one with this number."""

    received_at: int = 0
    from_place: int = 0
    to_place: int = 0


@attrs.frozen
class Header:
    """The header of a run.

    :ivar hash_key: the key of all hashes in the index.
    :ivar epoch: of the message log.
    :ivar first: the number of its first message.
    :ivar last: the number of its last message.
    :ivar users: the number of its users.
    :ivar entries: the number of its entries.
    :ivar ids: the number of messages with a unique id.
    :ivar latest: the latest time at which a message was received.
    :ivar last_message: identifies the message with the number `last`.
    """

    hash_key: bytes
    epoch: str
    first: int
    last: int
    users: int
    entries: int
    ids: int
    latest: int
    last_message: LastMessage

    @property
    def base(self) -> int:
        """The number that codes count from."""
        return self.first // BASE_STEP * BASE_STEP

    def offsets(self) -> dict[str, int]:
        """Return where each section begins; the last one is the end of the file."""
        counts = (self.users, self.users, self.entries, self.entries, self.ids, self.ids)
        found, offset = {}, _HEADER.size
        for section, count in zip(_SECTIONS, counts, strict=True):
            found[section] = offset
            offset += count * _WIDTHS[section]
        found["end"] = offset
        return found

    def pack(self, checksums: Sequence[int]) -> bytes:
        """Return the header as it is in the file."""
        fields = (self.first, self.last, self.users, self.entries, self.ids, self.latest, *self.last_message)
        raw = _HEADER.pack(MAGIC, self.hash_key, self.epoch.encode(), *fields, *checksums, 0)
        return raw[:-4] + struct.pack("=I", zlib.crc32(raw[:-4]))


class RunWriter:
    """Writes a run. Each section is written from its beginning to its end, and the sections in any order.

    :param path: of the run.
    """

    def __init__(self, path: str, header: Header) -> None:
        self._path = path
        self._header = header
        self._next = header.offsets()
        self._ends = [*list(self._next.values())[1:]]
        self._checksums = dict.fromkeys(_SECTIONS, 0)
        self._unsynced = 0
        with suppress(FileNotFoundError):
            os.unlink(path + UNFINISHED)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path + UNFINISHED, flags, 0o600)

    def write(self, section: str, data: bytes | memoryview) -> None:
        """Append to a section."""
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, self._next[section])
            self._checksums[section] = zlib.crc32(view[:written], self._checksums[section])
            self._next[section] += written
            self._unsynced += written
            view = view[written:]
        if self._unsynced >= 8 * READ_BYTES:  # the message log's own syncs would have to wait for one large sync
            self._unsynced = 0
            os.fdatasync(self._descriptor)

    def finish(self) -> None:
        """Write the header, sync the file, and give it its name."""
        assert [self._next[section] for section in _SECTIONS] == self._ends
        os.pwrite(self._descriptor, self._header.pack([self._checksums[section] for section in _SECTIONS]), 0)
        os.fsync(self._descriptor)
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)
        os.rename(self._path + UNFINISHED, self._path)
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Delete the file if it is not complete."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(self._path + UNFINISHED)):
                    os.unlink(self._path + UNFINISHED)
            os.close(descriptor)


class FileRun:
    """A run in a file: `Run`. It is open until nothing refers to it, so a reader may use it after it was replaced.

    :param path: of the file.
    :raises DamagedRun: where it is not a complete run.
    :raises OSError: where it can't be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        raw = os.pread(self._descriptor, _HEADER.size, 0)
        if len(raw) < _HEADER.size or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], sys.byteorder):
            raise DamagedRun(f"{path} is not a complete run of an index")
        magic, hash_key, epoch, first, last, users, entries, ids, latest, *fields = _HEADER.unpack(raw)
        if magic != MAGIC:
            raise DamagedRun(f"{path} is not a run of an index, or one of another version")
        epoch = epoch.rstrip(b"\0").decode("ascii", "replace")
        last_message = LastMessage(*fields[:3])
        self.header = Header(hash_key, epoch, first, last, users, entries, ids, latest, last_message)
        self._checksums = dict(zip(_SECTIONS, fields[3:9], strict=True))
        self._offsets = self.header.offsets()
        if os.fstat(self._descriptor).st_size != self._offsets["end"]:
            raise DamagedRun(f"{path} has another size than its header says")
        self.base, self.first, self.last = self.header.base, self.header.first, self.header.last
        self.latest = self.header.latest
        self._fences: array[int] = array("Q")
        self._sides: dict[int, array[int] | None] = {}  # of large parts, by position: each side once, sorted

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # opening it failed
            os.close(self._descriptor)

    @property
    def count(self) -> int:
        """The number of messages."""
        return self.last - self.first + 1

    def check(self, sections: Sequence[str] = _SECTIONS, check_open: Callable[[], None] = lambda: None) -> None:
        """Compare the file with its checksums. It can be used from now on.

        :param sections: those that are compared. The first one is needed in any case.
        :param check_open: called after each `READ_BYTES`. What it raises ends the check.
        :raises DamagedRun: where they differ.
        """
        fences: array[int] = array("Q")
        ends = dict(zip(_SECTIONS, [*self._offsets.values()][1:], strict=True))
        for section in sections:
            checksum, end = 0, ends[section]
            for offset in range(self._offsets[section], end, READ_BYTES):
                data = os.pread(self._descriptor, min(READ_BYTES, end - offset), offset)
                checksum = zlib.crc32(data, checksum)
                check_open()
                if section == "hashes" and len(data) % 8 == 0:
                    fences.extend(memoryview(data).cast("Q")[::HASHES_PER_PAGE])
            if checksum != self._checksums[section]:
                raise DamagedRun(f"{self.path} is damaged")
        self._fences = fences

    def part(self, user: User) -> FilePart | None:
        """Return the part of a user."""
        position = self.position(user)
        return None if position is None else FilePart(self, position, *next(self.rows(position, position + 1)))

    def position(self, user: User) -> int | None:
        """Return the position of a user. One who is not here costs as much as one who is."""
        page = max(bisect_right(self._fences, user.hash) - 1, 0)
        hashes = self.hashes(page * HASHES_PER_PAGE, (page + 1) * HASHES_PER_PAGE)
        index = bisect_left(hashes, user.hash)
        is_here = index < len(hashes) and hashes[index] == user.hash
        return page * HASHES_PER_PAGE + index if is_here else None

    def distinct_sides(self, part: FilePart) -> array[int] | None:
        """Return each side of a part once, sorted; None if there are too many. They are kept for a few parts."""
        if part.position not in self._sides:
            if len(self._sides) >= MAX_KEPT_SIDES:
                self._sides = {}
            found: set[int] = set()
            for start in range(0, part.count, LARGE_PART):
                found.update(memoryview(part.sides(start, min(start + LARGE_PART, part.count))).cast("I"))
                if len(found) > MAX_DISTINCT_SIDES:
                    break
            self._sides[part.position] = None if len(found) > MAX_DISTINCT_SIDES else array("I", sorted(found))
        return self._sides.get(part.position)

    def hash_at(self, position: int) -> int:
        """Return the hash of the user at a position."""
        return self.hashes(position, position + 1)[0]

    def hashes(self, start: int, stop: int) -> Sequence[int]:
        """Return the hashes of some positions."""
        return memoryview(self.read("hashes", start, min(stop, self.header.users))).cast("Q")

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Return for some positions: the first place, and where the entries and the ids begin and end."""
        begin = max(start - 1, 0)  # a row in the file has only the ends
        values = memoryview(self.read("rows", begin, stop)).cast("I").tolist()
        if not start:
            values = [0, 0, 0, *values]
        ends, id_ends = values[1::3], values[2::3]
        return zip(values[3::3], ends, ends[1:], id_ends, id_ends[1:], strict=False)

    def read(self, section: str, start: int, stop: int) -> bytes:
        """Read some values of a section.

        :raises DamagedRun: where the file is shorter than it was.
        """
        width = _WIDTHS[section]
        size = (stop - start) * width
        data = os.pread(self._descriptor, size, self._offsets[section] + start * width)
        if len(data) != size:
            raise DamagedRun(f"{self.path} was cut")
        return data


class FilePart:
    """What a file has of one user: `Part`."""

    __slots__ = ("_ids_start", "_ids_stop", "_run", "_start", "count", "first_place", "position")

    def __init__(
        self, run: FileRun, position: int, first_place: int, start: int, stop: int, ids_start: int, ids_stop: int
    ) -> None:
        self.position = position
        self.first_place = first_place
        self.count = stop - start
        self._run = run
        self._start = start
        self._ids_start = ids_start
        self._ids_stop = ids_stop

    def lacks(self, side: int) -> bool:
        """Return whether it is known without a search that no entry has a side. It is if the part is large."""
        sides = self._run.distinct_sides(self) if self.count > LARGE_PART else None
        if sides is None:
            return False
        index = bisect_left(sides, side)
        return index == len(sides) or sides[index] != side

    def codes(self, start: int, stop: int) -> Sequence[int]:
        """Return the codes of some entries."""
        return memoryview(self._run.read("codes", self._start + start, self._start + stop)).cast("I")

    def sides(self, start: int, stop: int) -> bytes:
        """Return the sides of some entries, each in four bytes."""
        return self._run.read("sides", self._start + start, self._start + stop)

    def codes_of_id(self, id_hash: int) -> Sequence[int]:
        """Return the codes of the messages that the user sent with a unique id that has this hash."""
        if self._ids_start == self._ids_stop:
            return ()
        data = self._run.read("id_hashes", self._ids_start, self._ids_stop)
        found = []
        for index in positions(data, id_hash):
            at = self._ids_start + index
            found.append(memoryview(self._run.read("id_codes", at, at + 1)).cast("I")[0])
        return found


def positions(data: bytes, value: int) -> list[int]:
    """Return the indexes of a value among values of four bytes, from the last to the first."""
    wanted = value.to_bytes(4, sys.byteorder)
    found = []
    end = len(data)
    # Searching bytes is ten times as fast as comparing integers.
    while (at := data.rfind(wanted, 0, end)) >= 0:
        if at % 4:
            end = at + 3
        else:
            found.append(at // 4)
            end = at
    return found
