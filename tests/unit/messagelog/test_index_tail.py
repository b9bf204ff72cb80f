"""The run of the index in memory: reading a user with many messages costs what is new, and a part never changes."""

from __future__ import annotations

from unittest.mock import patch

from chatrelay.messagelog.sqlite import index_tail
from chatrelay.messagelog.sqlite.index_columns import Columns, columns_of_rows
from chatrelay.messagelog.sqlite.index_run import positions
from chatrelay.messagelog.sqlite.index_tail import MIN_KEPT, Hashes, MemoryPart, MemoryRun

HASHES = Hashes(b"0123456789abcdef")
BUSY = HASHES.user("busy")


def messages(first_place: int, count: int) -> Columns:
    """Build messages that the busy user sends and receives in turn."""
    built = []
    for place in range(first_place, first_place + count):
        peer = (f"peer-{place % 10}", place)
        sender, recipient = (("busy", place), peer) if place % 2 else (peer, ("busy", place))
        built.append((*sender, *recipient, "id", 1, "hej", place))
    return columns_of_rows(first_place, built)


def entries(part: MemoryPart | None) -> tuple[list[int], bytes]:
    """Return the codes and sides of all entries."""
    assert part is not None
    return list(part.codes(0, part.count)), part.sides(0, part.count)


def test_second_read_of_a_busy_user_searches_only_what_is_new() -> None:
    run = MemoryRun(1, HASHES)
    run.add(messages(1, 1000))
    run.part(BUSY)
    run.add(messages(1001, 3))
    searched = []

    def count(data: bytes, value: int) -> list[int]:
        searched.append(len(data) // 4)
        return positions(data, value)

    with patch.object(index_tail, "positions", count):
        run.part(BUSY)
    assert searched == [3, 3]  # the senders and the recipients


def test_part_is_the_same_whether_it_was_read_before_or_not() -> None:
    read_often, read_once = MemoryRun(1, HASHES), MemoryRun(1, HASHES)
    for first in range(1, 400, 7):
        for run in (read_often, read_once):
            run.add(messages(first, 7))
        read_often.part(BUSY)
    assert entries(read_often.part(BUSY)) == entries(read_once.part(BUSY))


def test_part_does_not_change_when_messages_are_added() -> None:
    run = MemoryRun(1, HASHES)
    run.add(messages(1, 2 * MIN_KEPT))
    part = run.part(BUSY)
    before = entries(part)
    run.add(messages(2 * MIN_KEPT + 1, 10))
    assert entries(run.part(BUSY)) != before
    assert entries(part) == before
