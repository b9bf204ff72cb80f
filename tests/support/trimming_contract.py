"""The contract of every `chatrelay.interfaces.TrimmableLog`: what is deleted, and what the others see of it.

A test case for each implementation inherits from `TrimmingContract`. This module must not know any implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatrelay.interfaces import InboxLog, TrimmableLog
from chatrelay.model import Conversation, InboxState, Mark, MarkKind, Message
from tests.support.inbox_log_contract import EVERYTHING, InboxLogContract, contents
from tests.support.message_logs import message

OLD = 1_700_000_000.0
"""When old messages were received, in seconds since 1970 UTC."""

NEW = OLD + 1_000
"""When the others were."""

BETWEEN = 1_700_000_500_000_000
"""A time in between, in microseconds."""


def old(content: str, from_uid: str | int, to_uid: str | int, unique_id: str | None = None) -> Message:
    """Build an old message."""
    return message(content, from_uid, to_uid, unique_id=unique_id, received_at=OLD)


def new(content: str, from_uid: str | int, to_uid: str | int, unique_id: str | None = None) -> Message:
    """Build a new message."""
    return message(content, from_uid, to_uid, unique_id=unique_id, received_at=NEW)


class TrimmingContract(InboxLogContract):
    """The contract of every message log whose oldest messages can be deleted."""

    async def trim(self, log: InboxLog, before: int = BETWEEN) -> int:
        """Delete all messages that were received before a time; return how many that were."""
        assert isinstance(log, TrimmableLog)
        total = 0
        while count := await log.trim(before):
            total += count
        return total

    async def trimmed(self, *batches: Sequence[Message], undelivered: Sequence[int] = ()) -> InboxLog:
        """Return a started log with some batches, whose old messages were deleted.

        :param undelivered: the numbers of messages that reached nobody.
        """
        log = self.started()
        for batch in batches:
            await log.append(batch)
        if undelivered:
            await log.mark_undelivered(undelivered)
        await self.trim(log)
        return log

    async def test_message_is_deleted_if_it_was_received_before_the_time_and_not_at_it(self) -> None:
        log = self.started()
        await log.append([old("a", 1, 2)])
        at = int(OLD * 1_000_000)
        for before, deleted, entries, first in (
            (at - 1, 0, [(1, "a")], 1),
            (at, 0, [(1, "a")], 1),
            (at + 1, 1, [(1, "(void)")], 2),
        ):
            self.assertEqual(await self.trim(log, before), deleted)
            self.assertEqual(await self.entries(log, "2", through=1), entries)
            self.assertEqual(await log.inbox("2"), InboxState(first, last=1))

    async def test_trimming_an_empty_log_deletes_nothing(self) -> None:
        self.assertEqual(await self.trim(self.started()), 0)

    async def test_first_place_of_each_inbox_is_the_one_after_its_deleted_messages(self) -> None:
        log = await self.trimmed(
            [old("a", 1, 2), old("b", 3, 3), old("c", 2, 1)], [new("d", 1, 2), new("e", 1, 4), new("f", 4, 2)]
        )
        self.assertEqual(
            [await log.inbox(user) for user in ("1", "2", "3", "4", "unknown")],
            [InboxState(3, 4), InboxState(3, 4), InboxState(2, 1), InboxState(1, 2), InboxState(1, 0)],
        )

    async def test_numbers_and_places_go_on_after_every_message_was_deleted(self) -> None:
        log = await self.trimmed([old("a", 1, 2), old("b", 2, 2)], [old("c", 1, 2)])
        later = [new("d", 1, 2), new("e", 3, 3)]
        self.assertEqual(await log.append(later), [4, 5])
        self.assertEqual([(each.from_place, each.to_place) for each in later], [(3, 4), (1, 1)])
        self.assertEqual(await log.inbox("2"), InboxState(4, 4))

    async def test_message_that_is_older_than_one_before_it_stays_with_that_one(self) -> None:
        log = await self.trimmed([old("a", 1, 2)], [new("b", 1, 2)], [old("c", 1, 2)])
        self.assertEqual(await self.entries(log, "2", through=3), [(1, "(void)"), (2, "b"), (3, "c")])

    async def test_few_messages_are_deleted_at_once(self) -> None:
        log = self.started()
        for batch in range(30):
            await log.append([old(f"{batch} {number}", number % 7, number % 5) for number in range(100)])
        assert isinstance(log, TrimmableLog)
        count = await log.trim(BETWEEN)
        self.assertEqual(100 <= count <= 1000, True, count)
        self.assertEqual(count + await self.trim(log), 3000)

    async def test_deleted_places_are_void_in_pages_of_any_size(self) -> None:
        log = await self.trimmed(
            [old(str(number), 1, 2) for number in range(1, 8)],
            [new("8", 1, 2), new("9", 1, 3), new("10", 2, 1)],
        )
        inbox = [*((place, "(void)") for place in range(1, 8)), (8, "8"), (9, "9"), (10, "10")]
        for limit in (1, 2, 3, 7, 8, 9, 10, 11):
            for after in range(10):
                page = await log.reader.entries("1", after, 10, limit, EVERYTHING)
                expected = inbox[after : after + limit]
                self.assertEqual((contents(page), page.more), (expected, after + limit < 10), f"{after}, {limit}")
        self.assertEqual(await self.entries(log, "1", after=2, through=5), inbox[2:5])
        self.assertEqual(
            await self.entries(log, "2", after=5, through=9), [(6, "(void)"), (7, "(void)"), (8, "8"), (9, "10")]
        )

    async def test_inbox_without_any_kept_message_has_void_places_up_to_its_last(self) -> None:
        log = await self.trimmed([old("a", 1, 2), old("b", 1, 2)], [new("c", 3, 4)])
        self.assertEqual(await self.entries(log, "2"), [(1, "(void)"), (2, "(void)")])
        self.assertEqual(await self.entries(log, "2", after=1), [(2, "(void)")])
        self.assertEqual(await self.entries(log, "2", after=2), [])
        self.assertEqual(await self.entries(log, "unknown"), [])

    async def test_history_and_conversations_end_at_what_is_kept(self) -> None:
        log = await self.trimmed(
            [old("a", 1, 2), old("b", 3, 1), old("c", 2, 1)], [new("d", 1, 2), new("e", 2, 1), new("f", 1, 1)]
        )
        self.assertEqual(await self.history(log, "1", "2"), [(5, "e"), (4, "d")])
        self.assertEqual(await self.history(log, "1", "2", after=0), [(4, "d"), (5, "e")])
        self.assertEqual(await self.history(log, "1", "2", before=4), [])
        self.assertEqual(await self.history(log, "1", "3"), [])
        self.assertEqual(await self.conversations(log, "1"), [(6, "f"), (5, "e")])
        self.assertEqual(await self.conversations(log, "3"), [])
        page = await log.reader.history("1", "2", before=None, after=None, through=EVERYTHING, limit=2, size=EVERYTHING)
        self.assertEqual((contents(page), page.more), ([(5, "e"), (4, "d")], False))

    async def test_deleted_message_is_not_unread_not_found_and_makes_nobody_known(self) -> None:
        log = await self.trimmed(
            [old("a", 1, 2, "id-id-id-1"), old("b", 3, 2, "id-id-id-1"), old("c", 1, 2)],
            [new("d", 1, 2, "id-id-id-2"), new("e", 1, 2)],
            undelivered=[3, 5],
        )
        read = log.reader
        self.assertEqual(
            await self.progress(log, "2", Conversation("1"), Conversation("3")), [(0, 0, 0, 1), (0, 0, 0, 0)]
        )
        self.assertEqual([await read.has_written(user, "2") for user in ("1", "3")], [True, False])
        self.assertEqual([await read.find(user, "id-id-id-1", 0) for user in ("1", "3")], [None, None])
        self.assertEqual((await read.find("1", "id-id-id-2", 0)) is not None, True)

    async def test_place_at_a_deleted_message_is_translated_into_none(self) -> None:
        log = await self.trimmed([old("a", 1, 2), old("b", 1, 2)], [new("c", 1, 2)])
        self.assertEqual([await log.reader.place_of_sender("1", "2", place) for place in range(5)], [0, 0, 0, 3, 3])

    async def test_marking_a_deleted_message_changes_nothing(self) -> None:
        log = await self.trimmed([old("a", 1, 2)], [new("b", 1, 2)])
        await log.mark_undelivered([1])
        self.assertEqual(await self.entries(log, "2", through=2), [(1, "(void)"), (2, "b")])

    async def test_read_marks_before_the_first_place_are_deleted_and_no_others(self) -> None:
        log = self.started()
        await log.append([old("a", 1, 2), old("b", 3, 2), old("c", 1, 4)])
        await log.append([new("d", 1, 2)])
        kept = [
            Mark("2", MarkKind.READ, "3", 3),
            Mark("1", MarkKind.READ, "4", 3),
            Mark("2", MarkKind.RECEIVED, "", 1),
            Mark("2", MarkKind.LEFT_AT, "", 2),
            Mark("2", MarkKind.LAST_SEEN, "", 1),
            Mark("5", MarkKind.READ, "2", 0),
        ]
        gone = [Mark("2", MarkKind.READ, "1", 2), Mark("4", MarkKind.READ, "1", 1)]
        await log.save_marks([*kept, *gone])
        await self.trim(log)
        keys = [mark[:3] for mark in (*kept, *gone)]
        found: Any = await log.reader.marks(keys)
        self.assertEqual(found, {mark[:3]: mark.value for mark in kept})

    async def test_messages_can_be_appended_between_two_calls(self) -> None:
        log = self.started()
        assert isinstance(log, TrimmableLog)
        await log.append([old("a", 1, 2) for _ in range(3000)])
        deleted = 0
        for turn in range(1, 9):
            later = new(f"later {turn}", 1, 2)
            trimming = log.trim(BETWEEN)
            await log.append([later])
            deleted += await trimming
            self.assertEqual(later.to_place, 3000 + turn)
        self.assertEqual(deleted, 3000)
        self.assertEqual(await self.entries(log, "2", after=3000), [(3000 + t, f"later {t}") for t in range(1, 9)])
