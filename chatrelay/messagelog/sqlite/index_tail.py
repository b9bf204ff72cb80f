"""A run of the index in memory: the newest messages, which no file has yet, and how they are written as a file.

One thread at a time adds messages; the others may read meanwhile. This module must not know where messages are read.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from zlib import crc32

import msgspec
from msgspec import Raw, Struct

from chatrelay.messagelog.sqlite.index_run import BASE_STEP, Header, LastMessage, RunWriter, User, positions

USERS_PER_SLICE = 500
"""The users that are hashed at once, so that no other thread waits long for the GIL."""

ENTRIES_PER_SLICE = 2_500
"""The entries that are sorted at once."""

MIN_KEPT = 64
"""The entries from which on a user's part is kept, so that the next read only adds what came since. A run has few users
with so many."""


class Row(Struct, array_like=True, gc=False):
    """The values of a message in a block that the index needs. The others are skipped."""

    from_uid: str
    from_place: int
    to_uid: str
    to_place: int
    client_id: Raw
    time_stamp: Raw
    content: Raw
    received_at: int
    is_unique: int = 0


class Hashes:
    """The hashes of the users in an index. They depend on a key, so that nobody can find names that collide.

    :param key: 16 random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._empty = hashlib.blake2b(salt=key, digest_size=8)

    def user(self, key: str) -> User:
        """Return a user, by key."""
        hashed = self._empty.copy()
        hashed.update(key.encode())
        return User(key, int.from_bytes(hashed.digest(), "little"))


def id_hash(unique_id: str) -> int:
    """Return the hash of a unique id.

    It is cheap, and ids that collide are easy to find. They would only disturb the user who has chosen them.
    """
    return crc32(msgspec.json.encode(unique_id))


class _Entries:
    """The entries of one user, oldest first. More are added at the end, and none is changed.

    :ivar codes: the code of each.
    :ivar sides: the side of each.
    :ivar searched: how many messages of the run were searched for them.
    """

    __slots__ = ("codes", "searched", "sides")

    def __init__(self) -> None:
        self.codes = array("I")
        self.sides = array("I")
        self.searched = 0


class MemoryPart:
    """What the newest messages have of one user: `chatrelay.messagelog.sqlite.index_run.Part`."""

    __slots__ = ("_entries", "_run", "count", "first_place", "position")

    def __init__(self, position: int, first_place: int, entries: _Entries, run: MemoryRun) -> None:
        self.position = position
        self.first_place = first_place
        self.count = len(entries.codes)  # entries that are added later do not belong to this part
        self._entries = entries
        self._run = run

    def codes(self, start: int, stop: int) -> Sequence[int]:
        """Return the codes of some entries."""
        return self._entries.codes[start:stop]

    def sides(self, start: int, stop: int) -> bytes:
        """Return the sides of some entries, each in four bytes."""
        return self._entries.sides[start:stop].tobytes()

    def codes_of_id(self, id_hash: int) -> Sequence[int]:
        """Return the codes of the messages that the user sent with a unique id that has this hash."""
        return self._run.codes_of_id(self.position, id_hash)


class MemoryRun:
    """The newest messages, by user: `chatrelay.messagelog.sqlite.index_run.Run`.

    Adding a message must cost little, so a user's part is searched for when somebody reads.

    :param first: the number of the first message.
    :ivar last: the number of the last message; `first` - 1 if there is none yet.
    """

    def __init__(self, first: int, hashes: Hashes) -> None:
        self.base = first // BASE_STEP * BASE_STEP
        self.first = first
        self.last = first - 1
        self.latest = 0
        self._hashes = hashes
        self._positions: dict[str, int] = {}
        self._users: list[str] = []
        self._first_places = array("I")
        self._senders = array("I")  # of each message, by position
        self._recipients = array("I")
        self._id_hashes = array("I")  # of each message with a unique id
        self._id_codes = array("I")
        self._last_message = LastMessage()
        self._kept: dict[int, _Entries] = {}  # of users with many entries, by position
        self._lock = threading.Lock()  # of the value before, and of what is in it

    @property
    def count(self) -> int:
        """The number of messages."""
        return self.last - self.first + 1

    def add(self, rows: Sequence[Row]) -> None:
        """Add the messages that follow."""
        if not rows:
            return
        code = self.last + 1 - self.base
        self.last += len(rows)  # first: a reader relies on it that no entry has a later number
        position_of = self._positions.get
        for row in rows:
            sender = position_of(row.from_uid)
            if sender is None:
                sender = self._add_user(row.from_uid, row.from_place)
            recipient = position_of(row.to_uid)
            if recipient is None:
                recipient = self._add_user(row.to_uid, row.to_place)
            if row.is_unique:
                self._id_codes.append(code)
                self._id_hashes.append(crc32(row.client_id))
            self._recipients.append(recipient)
            self._senders.append(sender)
            code += 1
        self.latest = max(self.latest, *[row.received_at for row in rows])
        self._last_message = LastMessage(row.received_at, row.from_place, row.to_place)

    def _add_user(self, key: str, first_place: int) -> int:
        position = len(self._users)
        self._users.append(key)
        self._first_places.append(first_place)
        self._positions[key] = position
        return position

    def part(self, user: User) -> MemoryPart | None:
        """Return the part of a user."""
        position = self.position(user)
        if position is None:
            return None
        with self._lock:
            entries = self._kept.get(position) or _Entries()
            self._search(position, entries)
            if len(entries.codes) >= MIN_KEPT:
                self._kept[position] = entries
            if not entries.codes:  # the user's first message is just being added
                return None
            return MemoryPart(position, self._first_places[position], entries, self)

    def position(self, user: User) -> int | None:
        """Return the position of a user."""
        return self._positions.get(user.key)

    def _search(self, position: int, entries: _Entries) -> None:
        """Add the user's entries of the messages that were not searched yet."""
        start = entries.searched
        senders = self._senders[start:].tobytes()
        entries.searched += len(senders) // 4
        recipients = self._recipients[start : entries.searched].tobytes()
        found = {*positions(senders, position), *positions(recipients, position)}
        offset = self.first - self.base
        for index in sorted(found):
            message = start + index
            is_sent = self._senders[message] == position
            peer = self._recipients[message] if is_sent else self._senders[message]
            entries.codes.append(offset + message)
            entries.sides.append(peer * 2 + is_sent)

    def codes_of_id(self, position: int, id_hash: int) -> list[int]:
        """Return the codes of the messages that a user sent with a unique id that has this hash."""
        offset = self.first - self.base
        codes = [self._id_codes[index] for index in positions(self._id_hashes.tobytes(), id_hash)]
        return [code for code in codes if self._senders[code - offset : code - offset + 1] == array("I", [position])]

    def hash_at(self, position: int) -> int:
        """Return the hash of the user at a position."""
        return self._hashes.user(self._users[position]).hash

    def write(self, path: str, epoch: str) -> Iterator[None]:
        """Write the messages to a file, with pauses where other threads may work. No more may be added.

        :raises OSError: where the file can't be written.
        """
        hashes: list[int] = []
        for start in range(0, len(self._users), USERS_PER_SLICE):
            hashes += [self._hashes.user(key).hash for key in self._users[start : start + USERS_PER_SLICE]]
            yield
        order: list[int] = []  # the users of the file
        for start in range(0, len(hashes), ENTRIES_PER_SLICE):
            order += sorted(range(start, min(start + ENTRIES_PER_SLICE, len(hashes))), key=hashes.__getitem__)
            yield
        order.sort(key=hashes.__getitem__)  # it merges what is sorted
        new_position = array("I", [0]) * len(order)
        for position, old in enumerate(order):
            new_position[old] = position
        yield
        senders = array("I", map(new_position.__getitem__, self._senders))
        recipients = array("I", map(new_position.__getitem__, self._recipients))
        # The entries of each message: that of the sender, then that of the recipient.
        owners = array("I", [0]) * (2 * len(senders))
        owners[::2], owners[1::2] = senders, recipients
        sides = array("I", [0]) * len(owners)
        sides[::2] = array("I", [position * 2 + 1 for position in recipients])
        sides[1::2] = array("I", [position * 2 for position in senders])
        yield
        entries: list[int] = []
        for start in range(0, len(owners), ENTRIES_PER_SLICE):
            chosen = range(start, min(start + ENTRIES_PER_SLICE, len(owners)))
            entries += sorted(chosen, key=owners.__getitem__)
            yield
        entries.sort(key=owners.__getitem__)  # it merges what is sorted
        entries = [each for each in entries if not each & 1 or owners[each] != owners[each - 1]]  # one for oneself
        yield
        offset = self.first - self.base
        counts = Counter(map(owners.__getitem__, entries))
        id_owners = array("I", [senders[code - offset] for code in self._id_codes])
        id_order = sorted(range(len(id_owners)), key=id_owners.__getitem__)
        id_counts = Counter(id_owners)
        header = Header(
            self._hashes.key,
            epoch,
            self.first,
            self.last,
            users=len(order),
            entries=len(entries),
            ids=len(id_order),
            latest=self.latest,
            last_message=self._last_message,
        )
        rows = array("I", [0]) * (3 * len(order))
        rows[::3] = array("I", map(self._first_places.__getitem__, order))
        rows[1::3] = array("I", accumulate(map(counts.__getitem__, range(len(order)))))
        rows[2::3] = array("I", accumulate(map(id_counts.__getitem__, range(len(order)))))
        yield
        with closing(RunWriter(path, header)) as writer:
            writer.write("hashes", array("Q", map(hashes.__getitem__, order)).tobytes())
            writer.write("rows", rows.tobytes())
            yield
            writer.write("codes", array("I", [offset + each // 2 for each in entries]).tobytes())
            yield
            writer.write("sides", array("I", map(sides.__getitem__, entries)).tobytes())
            writer.write("id_hashes", array("I", map(self._id_hashes.__getitem__, id_order)).tobytes())
            writer.write("id_codes", array("I", map(self._id_codes.__getitem__, id_order)).tobytes())
            yield
            writer.finish()
