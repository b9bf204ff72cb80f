"""Find the numbers of messages in the runs of an index, by user, place and peer.

Runs are given from the newest to the oldest. This module must not know messages: whether one stands is for the caller.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from chatrelay.messagelog.sqlite.index_run import NOBODY, Part, Run, User, positions

FIRST_WINDOW = 64
"""The entries that are searched first. The next windows are larger."""

MAX_UNCOMPARED = 64
"""The most entries that are searched without a look whether the other user has fewer: that look costs more."""

MAX_WINDOW = 16_384
"""The most entries that are searched at once: 128 KiB."""


class RememberedRun:
    """A run in which the users whom a read asks for are searched once, however often it asks: a `Run`.

    It is for one read. Messages that are added to the run meanwhile may be missing.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.base = run.base
        self.first = run.first
        self.last = run.last
        self.latest = run.latest
        self.hash_at = run.hash_at
        self._parts: dict[User, Part | None] = {}
        self._positions: dict[User, int | None] = {}

    def part(self, user: User) -> Part | None:
        """Return the part of a user."""
        if user not in self._parts:
            self._parts[user] = self._run.part(user)
        return self._parts[user]

    def position(self, user: User) -> int | None:
        """Return the position of a user."""
        if user not in self._positions:
            self._positions[user] = self._run.position(user)
        return self._positions[user]


def numbers_at(runs: Sequence[Run], user: User, first: int, last: int) -> tuple[int, list[int]]:
    """Return the numbers of the messages at some places of a user's inbox, oldest first.

    :param first: the first place.
    :param last: the last place. Places that the inbox or the runs do not have are left out.
    :returns: the place of the first number, which is later than `first` if the runs do not go back so far, and the
        numbers.
    """
    found: list[list[int]] = []
    place = first
    for run in runs:
        part = run.part(user)
        if part is None:
            continue
        start = max(first - part.first_place, 0)
        stop = min(last - part.first_place + 1, part.count)
        if start < stop:
            found.append([run.base + code for code in part.codes(start, stop)])
            place = part.first_place + start
        if part.first_place <= first:
            break
    return place, [number for numbers in reversed(found) for number in numbers]


def number_through(runs: Sequence[Run], user: User, place: int) -> int:
    """Return the number of the last message at or before a place of a user's inbox; 0 if there is none."""
    if place > 0:
        for run in runs:
            part = run.part(user)
            if part is not None and part.first_place <= place and part.count:
                index = min(place - part.first_place, part.count - 1)
                return run.base + part.codes(index, index + 1)[0]
    return 0


def between(
    runs: Sequence[Run],
    user: User,
    peer: User,
    above: int,
    through: int,
    *,
    newest_first: bool = True,
    sent: bool = True,
    received: bool = True,
    in_smaller: bool = False,
) -> Iterator[int]:
    """Yield the numbers of the messages between two users.

    Only the inbox of `user` is searched, and that costs the same whoever `peer` is. So nobody learns from the time that
    a read takes how much a stranger writes, or whether there is one of that name.

    :param above: only numbers above this one.
    :param through: only numbers up to this one.
    :param sent: whether those that `user` sent to `peer` are wanted.
    :param received: whether those that `peer` sent to `user` are wanted. A message to oneself is both.
    :param in_smaller: whether each run is searched in the inbox of the user who has fewer entries there. This is for
        users who know each other.
    """
    for run in runs if newest_first else reversed(runs):
        if run.last <= above or run.first > through:
            continue
        part = run.part(user)
        if part is None:
            continue
        position = run.position(peer)
        if position is None:
            position = NOBODY  # it is searched for all the same
        is_same = part.position == position
        searched = part
        is_sent, is_received = sent, received
        if (
            in_smaller
            and part.count > MAX_UNCOMPARED
            and (other := run.part(peer)) is not None
            and other.count < part.count
        ):
            searched, position = other, part.position
            is_sent, is_received = received, sent
        side = position * 2
        sides = [side + 1] if is_same else [side + 1] * is_sent + [side] * is_received
        if all(map(searched.lacks, sides)):
            continue
        for start, codes, data in _windows(run, searched, above, through, newest_first):
            found: list[int] = []
            for side in sides:
                found += positions(data, side)
            if found:
                found.sort(reverse=newest_first)
                low, high = min(found), max(found) + 1
                read = codes(start + low, start + high)
                yield from [run.base + read[index - low] for index in found]


def peers_newest_first(
    runs: Sequence[Run], user: User, above: int, through: int, is_done: Callable[[int], bool]
) -> Iterator[tuple[int, int]]:
    """Yield the number and the hash of the peer of each message of a user, newest first, until the peer is done.

    :param above: only numbers above this one.
    :param through: only numbers up to this one.
    :param is_done: whether the peer with a hash is done.
    """
    for run in runs:
        part = run.part(user) if run.first <= through and run.last > above else None
        if part is None:
            continue
        done: set[int] = set()  # sides of this run
        hashes: dict[int, int] = {}  # of positions of this run
        for start, codes, data in _windows(run, part, above, through, newest_first=True):
            found = []
            for side in set(memoryview(data).cast("I")) - done:
                if side // 2 not in hashes:
                    hashes[side // 2] = run.hash_at(side // 2)
                if is_done(hashes[side // 2]):
                    done.add(side)
                else:
                    found += [(index, side // 2) for index in positions(data, side)]
            if found:
                found.sort(reverse=True)
                read = codes(start, start + len(data) // 4)
                for index, position in found:
                    if not is_done(hashes[position]):
                        yield run.base + read[index], hashes[position]


def _windows(
    run: Run, part: Part, above: int, through: int, newest_first: bool
) -> Iterator[tuple[int, Callable[[int, int], Sequence[int]], bytes]]:
    """Yield ranges of entries: the first index, what reads codes, and the sides."""
    codes = _Codes(part)
    stop = part.count  # before `run.last` is read: entries that are added meanwhile have later numbers
    if through < run.last:
        stop = bisect_right(codes, through - run.base)
    start = 0 if above < run.first else bisect_right(codes, above - run.base)
    size = FIRST_WINDOW
    while start < stop:
        if newest_first:
            begin, end = max(stop - size, start), stop
            stop = begin
        else:
            begin, end = start, min(start + size, stop)
            start = end
        yield begin, part.codes, part.sides(begin, end)
        size = min(size * 4, MAX_WINDOW)


class _Codes(Sequence[int]):
    """The codes of a part, read one by one."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __len__(self) -> int:
        return self._part.count

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        return self._part.codes(index, index + 1)[0]
