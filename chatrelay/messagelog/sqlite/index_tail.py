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
from itertools import accumulate, chain, compress, islice
from operator import eq

from chatrelay.messagelog.sqlite.index_columns import Columns
from chatrelay.messagelog.sqlite.index_run import BASE_STEP, Header, LastMessage, RunWriter, User, positions

USERS_PER_SLICE = 500
"""The users that are hashed at once, so that no other thread waits long for the GIL."""

ENTRIES_PER_SLICE = 2_500
"""The entries that are sorted at once."""

MIN_KEPT = 64
"""The entries from which on a user's part is kept, so that the next read only adds what came since. A run has few users
with so many."""


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


class _Positions(dict[str, int]):
    """The position of each user in a run. A user who is looked up, and has none yet, gets the next one."""

    def __missing__(self, key: str) -> int:
        position = self[key] = len(self)
        return position


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

    def lacks(self, side: int) -> bool:
        """Return False: the newest messages are so few that they are searched."""
        return False

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
        self._positions = _Positions()
        self._users: list[str] = []
        self._first_places = array("I")
        self._senders = array("I")  # of each message, by position
        self._recipients = array("I")
        self._have_ids = bytearray()  # for each message, whether it has a unique id
        self._id_hashes = array("I")  # of each message; any number for one without a unique id
        self._last_message = LastMessage()
        self._kept: dict[int, _Entries] = {}  # of users with many entries, by position
        self._lock = threading.Lock()  # of the value before, and of what is in it

    @property
    def count(self) -> int:
        """The number of messages."""
        return self.last - self.first + 1

    def add(self, columns: Columns) -> None:
        """Add the messages that follow."""
        self.last = columns.last  # first: a reader relies on it that no entry has a later number
        position_of, known = self._positions.__getitem__, len(self._users)
        senders = array("I", map(position_of, columns.senders))
        recipients = array("I", map(position_of, columns.recipients))
        if len(self._positions) > known:
            # The last pair of those with one key counts, and places ascend. So this finds the first places.
            sent = dict(zip(reversed(senders), reversed(columns.from_places), strict=True))
            received = dict(zip(reversed(recipients), reversed(columns.to_places), strict=True))
            self._users += islice(self._positions, known, None)
            for position in range(known, len(self._users)):
                self._first_places.append(min(each[position] for each in (sent, received) if position in each))
        self._have_ids += columns.have_ids
        self._id_hashes += columns.id_hashes
        self._recipients += recipients
        self._senders += senders  # last: readers look at messages whose sender is here
        self.latest = max(self.latest, columns.latest)
        self._last_message = columns.last_message

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
        sender = array("I", [position])
        return [
            offset + index
            for index in positions(self._id_hashes.tobytes(), id_hash)
            if self._have_ids[index] and self._senders[index : index + 1] == sender
        ]

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
        count, users = len(self._senders), len(order)
        new_position = [0] * users
        for position, old in enumerate(order):
            new_position[old] = position
        yield
        senders = list(map(new_position.__getitem__, self._senders))
        recipients = list(map(new_position.__getitem__, self._recipients))
        # The entries of each message: that of the sender, then that of the recipient.
        owners, codes, sides = [0] * (2 * count), [0] * (2 * count), [0] * (2 * count)
        owners[::2] = senders
        owners[1::2] = recipients
        if any(map(eq, senders, recipients)):  # a message to oneself has one entry: the other one belongs to nobody
            owners[1::2] = [users if each == other else each for each, other in zip(recipients, senders, strict=True)]
        codes[::2] = codes[1::2] = range(self.first - self.base, self.first - self.base + count)
        sides[::2] = [position * 2 + 1 for position in recipients]
        sides[1::2] = [position * 2 for position in senders]
        yield
        of_users: list[list[int]] = [[] for _ in range(users + 1)]
        append_to = [entries.append for entries in of_users]
        for start in range(0, len(owners), ENTRIES_PER_SLICE):
            for entry, owner in enumerate(owners[start : start + ENTRIES_PER_SLICE], start):
                append_to[owner](entry)
            yield
        of_users.pop()  # what belongs to nobody
        entries = list(chain.from_iterable(of_users))
        sent = [entry // 2 for entry in entries if not entry & 1]  # the messages, by sender
        with_id = list(compress(sent, map(self._have_ids.__getitem__, sent)))
        id_counts = Counter(map(senders.__getitem__, with_id))
        header = Header(
            self._hashes.key,
            epoch,
            self.first,
            self.last,
            users=users,
            entries=len(entries),
            ids=len(with_id),
            latest=self.latest,
            last_message=self._last_message,
        )
        rows = array("I", [0]) * (3 * users)
        rows[::3] = array("I", map(self._first_places.__getitem__, order))
        rows[1::3] = array("I", accumulate(map(len, of_users)))
        rows[2::3] = array("I", accumulate(map(id_counts.__getitem__, range(users))))
        yield
        with closing(RunWriter(path, header)) as writer:
            writer.write("hashes", array("Q", map(hashes.__getitem__, order)).tobytes())
            writer.write("rows", rows.tobytes())
            yield
            writer.write("codes", array("I", map(codes.__getitem__, entries)).tobytes())
            yield
            writer.write("sides", array("I", map(sides.__getitem__, entries)).tobytes())
            writer.write("id_hashes", array("I", map(self._id_hashes.__getitem__, with_id)).tobytes())
            writer.write("id_codes", array("I", map(codes[::2].__getitem__, with_id)).tobytes())
            yield
            writer.finish()
