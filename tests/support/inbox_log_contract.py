"""The contract of every `chatrelay.interfaces.InboxLog`: places, inboxes, marks, and reads by user.

A test case for each implementation inherits from `InboxLogContract` and says how to make a log. This module must not
know any implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from chatrelay.interfaces import InboxLog
from chatrelay.model import Conversation, InboxState, LogBusy, LoggedMessage, Mark, MarkKind, Message, Page
from tests.support.message_logs import message

RECEIVED_AT = 1_700_000_000_123_456
"""When the messages of `message` were received, in microseconds since 1970 UTC."""

EVERYTHING = 1_000_000
"""A place, a limit and a size beyond everything in these tests."""


def sent(content: str, from_uid: str | int, to_uid: str | int, unique_id: str | None = None) -> Message:
    """Build a message."""
    return message(content, from_uid, to_uid, unique_id=unique_id)


def contents(page: Page) -> list[tuple[int, str]]:
    """Return the place and the content of each entry; an entry without a message is void."""
    return [(entry.place, entry.message.content if entry.message else "(void)") for entry in page.entries]


class InboxLogContract:
    """The contract of every message log that numbers the messages of each user and can be read by user."""

    assertEqual: Any
    assertIsInstance: Any
    assertLess: Any
    assertRegex: Any
    addCleanup: Any

    def make(self) -> InboxLog:
        """Return a log that was not started."""
        raise NotImplementedError

    def started(self) -> InboxLog:
        """Return a log that is stopped at the end of the test."""
        log = self.make()
        log.start()
        self.addCleanup(log.stop)
        return log

    async def filled(self, *messages: Message, undelivered: Sequence[int] = ()) -> InboxLog:
        """Return a started log with one batch of messages.

        :param undelivered: the numbers of those that reached nobody.
        """
        log = self.started()
        await log.append(messages)
        if undelivered:
            await log.mark_undelivered(undelivered)
        return log

    async def entries(
        self, log: InboxLog, user: str, after: int = 0, through: int = EVERYTHING, limit: int = 100
    ) -> list[tuple[int, str]]:
        """Return the entries of a user's inbox."""
        return contents(await log.reader.entries(user, after, through, limit, EVERYTHING))

    async def history(
        self,
        log: InboxLog,
        user: str,
        peer: str,
        before: int | None = None,
        after: int | None = None,
        through: int = EVERYTHING,
    ) -> list[tuple[int, str]]:
        """Return the messages of a conversation."""
        return contents(
            await log.reader.history(
                user, peer, before=before, after=after, through=through, limit=100, size=EVERYTHING
            )
        )

    async def conversations(
        self, log: InboxLog, user: str, before: int | None = None, through: int = EVERYTHING
    ) -> list[tuple[int, str]]:
        """Return the last messages of a user's conversations."""
        return contents(
            await log.reader.conversations(user, before=before, through=through, limit=100, size=EVERYTHING)
        )

    async def read_by_1(self, log: InboxLog, *peers: str) -> dict[str, int]:
        """Return the marks that say how far user 1 has read, by the other user."""
        marks = await log.reader.marks([("1", MarkKind.READ, peer) for peer in peers])
        return {peer: value for (_, _, peer), value in marks.items()}

    async def progress(
        self, log: InboxLog, user: str, *conversations: Conversation, through: int = 99, limit: int = 100
    ) -> list[tuple[int, int, int, int]]:
        """Return how far conversations were read by the user, received, read, and what is unread."""
        found = await log.reader.progress(user, conversations, through=through, limit=limit)
        return [(each.read_by_me, each.received, each.read, each.unread) for each in found]

    # The log --------------------------------------------------------------------------

    async def test_log_is_an_inbox_log(self) -> None:
        self.assertIsInstance(self.started(), InboxLog)

    async def test_epoch_of_a_started_log_is_a_short_printable_name(self) -> None:
        self.assertRegex(self.started().epoch, r"\A[!-~]{1,64}\Z")

    async def test_epochs_of_two_logs_differ(self) -> None:
        epoch = self.started().epoch
        self.assertEqual(epoch == self.started().epoch, False)

    # Places ---------------------------------------------------------------------------

    async def test_places_in_each_inbox_count_from_one_without_gaps(self) -> None:
        messages = [sent("a", 1, 2), sent("b", "2", 1), sent("c", 1, 1), sent("d", 1, 3)]
        log = self.started()
        await log.append(messages[:2])
        await log.append(messages[2:])
        self.assertEqual([(each.from_place, each.to_place) for each in messages], [(1, 1), (2, 2), (3, 3), (4, 1)])

    async def test_places_are_set_before_the_deferred_of_a_batch_fires(self) -> None:
        log = self.started()
        one = sent("a", 1, 2)
        seen: list[tuple[int, int]] = []
        await log.append([one]).addCallback(lambda _: seen.append((one.from_place, one.to_place)))
        self.assertEqual(seen, [(1, 1)])

    async def test_message_to_oneself_takes_one_place(self) -> None:
        log = await self.filled(sent("a", 7, "7"), sent("b", "7", 7))
        self.assertEqual(await self.entries(log, "7"), [(1, "a"), (2, "b")])

    async def test_integer_and_text_of_one_uid_share_an_inbox(self) -> None:
        log = await self.filled(sent("a", 7, "x"), sent("b", "7", "x"), sent("c", "x", 7), sent("d", "x", "7"))
        self.assertEqual(await self.entries(log, "7"), [(1, "a"), (2, "b"), (3, "c"), (4, "d")])
        self.assertEqual(await self.history(log, "x", "7", after=2), [(3, "c"), (4, "d")])

    async def test_users_whose_uids_differ_in_case_space_or_zeros_have_inboxes_of_their_own(self) -> None:
        uids = ["a", "A", " a", "a ", "ä", "a\u0308", "1", "01", "1.0", "１", "%", "_", "a_", "'"]
        log = await self.filled(*(sent(uid, uid, uid) for uid in uids))
        self.assertEqual([await self.entries(log, uid) for uid in uids], [[(1, uid)] for uid in uids])

    # inbox ----------------------------------------------------------------------------

    async def test_inbox_of_an_unknown_user_is_empty(self) -> None:
        log = await self.filled(sent("a", 1, 2))
        self.assertEqual(await log.inbox("3"), InboxState(first=1, last=0))

    async def test_inbox_has_the_last_place_of_its_user(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 3), sent("c", 3, 3))
        self.assertEqual([(await log.inbox(user)).last for user in ("1", "2", "3")], [2, 1, 2])

    async def test_inbox_counts_undelivered_messages(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2), undelivered=[1, 2])
        self.assertEqual(await log.inbox("2"), InboxState(first=1, last=2))

    async def test_inbox_fires_between_the_batches_around_it(self) -> None:
        log = self.started()
        events: list[object] = []

        def note(event: object) -> object:
            events.append(event)
            return event

        waiting: list[Deferred[Any]] = []
        for turn in range(1, 6):
            waiting.append(log.append([sent("a", 1, 2)]).addCallback(lambda _, turn=turn: note(f"batch {turn}")))
            waiting.append(log.inbox("2").addCallback(lambda state: note(state.last)))
        await gatherResults(waiting)
        self.assertEqual(events, [event for turn in range(1, 6) for event in (f"batch {turn}", turn)])

    # Marks ----------------------------------------------------------------------------

    async def test_inbox_has_the_marks_of_its_user(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2))
        await log.save_marks(
            [
                Mark("2", MarkKind.RECEIVED, "", 2),
                Mark("2", MarkKind.LEFT_AT, "", 1),
                Mark("2", MarkKind.LAST_SEEN, "", 1_764_271_000_123),
                Mark("1", MarkKind.RECEIVED, "", 1),
            ]
        )
        self.assertEqual(await log.inbox("2"), InboxState(1, 2, received=2, left_at=1, last_seen=1_764_271_000_123))
        self.assertEqual(await log.inbox("1"), InboxState(1, 2, received=1))

    async def test_departure_is_not_known_of_a_user_who_came_and_has_not_left(self) -> None:
        log = await self.filled(sent("a", 1, 2))
        left = [Mark("2", MarkKind.LEFT_AT, "", 1), Mark("2", MarkKind.LAST_SEEN, "", 5)]
        for value, left_at, last_seen in ((3, None, None), (4, 1, 5), (3, 1, 5), (7, None, None)):
            await log.save_marks([Mark("2", MarkKind.STAYS, "", value), *left])
            self.assertEqual(await log.inbox("2"), InboxState(1, 1, left_at=left_at, last_seen=last_seen))
        self.assertEqual(await log.reader.marks([("2", MarkKind.STAYS, "")]), {("2", MarkKind.STAYS, ""): 7})

    async def test_marks_only_grow(self) -> None:
        log = self.started()
        for value in (5, 4, 6, 5):
            await log.save_marks([Mark("1", kind, "", value) for kind in (MarkKind.RECEIVED, MarkKind.LEFT_AT)])
            await log.save_marks([Mark("1", MarkKind.READ, "2", value)])
        state = await log.inbox("1")
        self.assertEqual((state.received, state.left_at), (6, 6))
        self.assertEqual(await self.read_by_1(log, "2"), {"2": 6})

    async def test_marks_of_one_call_only_grow(self) -> None:
        log = self.started()
        await log.save_marks([Mark("1", MarkKind.READ, "2", value) for value in (5, 7, 6)])
        self.assertEqual(await self.read_by_1(log, "2"), {"2": 7})

    async def test_mark_of_zero_is_kept(self) -> None:
        log = self.started()
        await log.save_marks([Mark("1", MarkKind.LEFT_AT, "", 0), Mark("1", MarkKind.READ, "2", 0)])
        self.assertEqual((await log.inbox("1")).left_at, 0)
        self.assertEqual(await self.read_by_1(log, "2"), {"2": 0})

    async def test_saving_no_marks_succeeds(self) -> None:
        self.assertEqual(await self.started().save_marks([]), None)

    async def test_read_marks_are_those_of_the_user_and_the_peers_asked_for(self) -> None:
        log = self.started()
        await log.save_marks(
            [
                Mark("1", MarkKind.READ, "2", 3),
                Mark("1", MarkKind.READ, "1", 4),
                Mark("1", MarkKind.READ, "3", 5),
                Mark("2", MarkKind.READ, "1", 6),
                Mark("1", MarkKind.RECEIVED, "", 7),
            ]
        )
        self.assertEqual(await self.read_by_1(log, "2", "1", "4"), {"2": 3, "1": 4})
        self.assertEqual(await log.reader.marks([]), {})

    async def test_marks_of_several_users_and_kinds_are_read_at_once(self) -> None:
        log = self.started()
        kept = [
            Mark("1", MarkKind.READ, "2", 3),
            Mark("2", MarkKind.READ, "1", 4),
            Mark("2", MarkKind.RECEIVED, "", 5),
            Mark("3", MarkKind.LAST_SEEN, "", 1_764_271_000_123),
            Mark("3", MarkKind.LEFT_AT, "", 0),
        ]
        await log.save_marks(kept)
        keys = [(mark.user, mark.kind, mark.peer) for mark in kept]
        unknown = [
            ("1", MarkKind.RECEIVED, ""),
            ("1", MarkKind.READ, "3"),
            ("2", MarkKind.READ, ""),
            ("4", MarkKind.READ, "2"),
        ]
        self.assertEqual(
            await log.reader.marks([*keys, *unknown, keys[0]]),
            {key: mark.value for key, mark in zip(keys, kept, strict=True)},
        )
        self.assertEqual(await log.reader.marks([]), {})
        many = [Mark(str(user), MarkKind.READ, str(peer), user + peer) for user in range(30) for peer in range(10)]
        await log.save_marks(many)
        self.assertEqual(len(await log.reader.marks([(mark.user, mark.kind, mark.peer) for mark in many])), 300)

    async def test_revocations_are_kept_and_read(self) -> None:
        log = self.started()
        until = 4_000_000_000
        await log.save_marks([Mark("", MarkKind.REVOKED, f"{number:032x}", until) for number in range(3)])
        keys = [("", MarkKind.REVOKED, f"{number:032x}") for number in range(2, 5)]
        self.assertEqual(await log.reader.marks(keys), {keys[0]: until})

    async def test_revocation_of_all_drops_those_that_are_not_later(self) -> None:
        log = self.started()
        until = 4_000_000_000
        await log.save_marks([Mark("", MarkKind.REVOKED, f"{number:032x}", until + number) for number in range(4)])
        await log.save_marks([Mark("", MarkKind.READ, "2", 1), Mark("1", MarkKind.REVOKED, "", 2)])
        await log.save_marks([Mark("", MarkKind.REVOKED, "", until + 1), Mark("", MarkKind.REVOKED, "9", until)])
        keys = [("", MarkKind.REVOKED, f"{number:032x}") for number in range(4)]
        others = [("", MarkKind.REVOKED, ""), ("", MarkKind.READ, "2"), ("1", MarkKind.REVOKED, "")]
        kept = {keys[2]: until + 2, keys[3]: until + 3, others[0]: until + 1, others[1]: 1, others[2]: 2}
        self.assertEqual(await log.reader.marks([*keys, *others, ("", MarkKind.REVOKED, "9")]), kept)

    async def test_marks_that_wait_at_a_stop_are_kept(self) -> None:
        log = self.make()
        log.start()
        saved = log.save_marks([Mark("1", MarkKind.RECEIVED, "", 3)])
        await log.stop()
        self.assertEqual(await saved, None)

    # entries --------------------------------------------------------------------------

    async def test_entry_has_the_whole_message(self) -> None:
        log = await self.filled(
            message("å\n\U0001f600", from_uid=7, to_uid="x", time_stamp=5), sent("b", "y", 7, unique_id="0b9d-0b9d")
        )
        page = await log.reader.entries("7", 0, 2, 100, EVERYTHING)
        self.assertEqual(
            [entry.message for entry in page.entries],
            [
                LoggedMessage(1, "7", "x", 5, "å\n\U0001f600", RECEIVED_AT, True, 1, 1, None),
                LoggedMessage(2, "y", "7", "23", "b", RECEIVED_AT, True, 1, 2, "0b9d-0b9d"),
            ],
        )
        self.assertEqual([entry.erased for entry in page.entries], [(), ()])

    async def test_entries_are_those_after_a_place_through_another(self) -> None:
        log = await self.filled(*(sent(str(place), 1, 2) for place in range(1, 8)))
        self.assertEqual(await self.entries(log, "2", after=2, through=4), [(3, "3"), (4, "4")])
        self.assertEqual(await self.entries(log, "2", after=6), [(7, "7")])
        self.assertEqual(await self.entries(log, "2", after=7), [])
        self.assertEqual(await self.entries(log, "2", after=9, through=20), [])
        self.assertEqual(await self.entries(log, "2", after=4, through=4), [])
        self.assertEqual(await self.entries(log, "unknown"), [])

    async def test_undelivered_message_is_a_void_entry(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2), sent("c", 2, 1), undelivered=[2])
        for user in ("1", "2"):
            self.assertEqual(await self.entries(log, user), [(1, "a"), (2, "(void)"), (3, "c")])

    async def test_limit_of_entries_leaves_more(self) -> None:
        log = await self.filled(*(sent(str(place), 1, 2) for place in range(1, 6)), undelivered=[2])
        for after, through, limit, places, more in (
            (0, 9, 2, [1, 2], True),
            (2, 9, 2, [3, 4], True),
            (2, 4, 2, [3, 4], False),
            (3, 9, 2, [4, 5], False),
            (4, 9, 2, [5], False),
            (0, 9, 5, [1, 2, 3, 4, 5], False),
            (5, 9, 2, [], False),
        ):
            page = await log.reader.entries("2", after, through, limit, EVERYTHING)
            self.assertEqual(([entry.place for entry in page.entries], page.more), (places, more))

    async def test_size_of_entries_leaves_more(self) -> None:
        log = await self.filled(sent("åå", 1, 2), sent("bbbb", 1, 2), sent("c", 1, 2), sent("d" * 9, 1, 2))
        for after, size, places, more in (
            (0, 8, [1, 2], True),
            (0, 7, [1], True),
            (0, 9, [1, 2, 3], True),
            (0, 1, [1], True),
            (3, 1, [4], False),
            (0, 18, [1, 2, 3, 4], False),
            (0, 17, [1, 2, 3], True),
        ):
            page = await log.reader.entries("2", after, 9, 100, size)
            self.assertEqual(([entry.place for entry in page.entries], page.more), (places, more))

    async def test_void_entry_has_no_size(self) -> None:
        log = await self.filled(sent("aaaa", 1, 2), sent("b" * 99, 1, 2), sent("cccc", 1, 2), undelivered=[2])
        page = await log.reader.entries("2", 0, 9, 100, 8)
        self.assertEqual((contents(page), page.more), ([(1, "aaaa"), (2, "(void)"), (3, "cccc")], False))

    async def test_pages_of_entries_are_the_whole_inbox(self) -> None:
        log = self.started()
        for batch in range(7):
            await log.append([sent(f"{batch} {number}", number % 3, (number + batch) % 3) for number in range(60)])
        await log.mark_undelivered([5, 7, 8, 150, 151, 420])
        for user in ("0", "1", "2"):
            last = (await log.inbox(user)).last
            whole = await self.entries(log, user, limit=EVERYTHING)
            self.assertEqual([place for place, _ in whole], list(range(1, last + 1)))
            paged: list[tuple[int, str]] = []
            more = True
            while more:
                page = await log.reader.entries(user, len(paged), last, 13, 40)
                paged.extend(contents(page))
                more = page.more
            self.assertEqual(paged, whole)

    # history --------------------------------------------------------------------------

    async def test_history_is_the_messages_of_both_users_newest_first(self) -> None:
        log = await self.filled(
            sent("a", 1, 2), sent("b", 2, 1), sent("c", 1, 3), sent("d", 3, 2), sent("e", 1, 2), sent("f", 1, 1)
        )
        self.assertEqual(await self.history(log, "1", "2"), [(4, "e"), (2, "b"), (1, "a")])
        self.assertEqual(await self.history(log, "2", "1"), [(4, "e"), (2, "b"), (1, "a")])
        self.assertEqual(await self.history(log, "3", "1"), [(1, "c")])
        self.assertEqual(await self.history(log, "1", "4"), [])
        self.assertEqual(await self.history(log, "4", "1"), [])

    async def test_history_with_oneself_is_the_messages_to_oneself(self) -> None:
        log = await self.filled(sent("a", 1, 1), sent("b", 1, 2), sent("c", 2, 1), sent("d", 1, 1))
        self.assertEqual(await self.history(log, "1", "1"), [(4, "d"), (1, "a")])

    async def test_history_before_a_place_leaves_it_out(self) -> None:
        log = await self.filled(*(sent(str(place), 1, 2 + place % 2) for place in range(1, 8)))
        self.assertEqual(await self.history(log, "1", "2", before=6), [(4, "4"), (2, "2")])
        self.assertEqual(await self.history(log, "1", "2", before=5), [(4, "4"), (2, "2")])
        self.assertEqual(await self.history(log, "1", "2", before=2), [])
        self.assertEqual(await self.history(log, "1", "2", before=99), [(6, "6"), (4, "4"), (2, "2")])

    async def test_history_after_a_place_is_oldest_first(self) -> None:
        log = await self.filled(*(sent(str(place), 1, 2 + place % 2) for place in range(1, 8)))
        self.assertEqual(await self.history(log, "1", "2", after=2), [(4, "4"), (6, "6")])
        self.assertEqual(await self.history(log, "1", "2", after=3), [(4, "4"), (6, "6")])
        self.assertEqual(await self.history(log, "1", "2", after=0), [(2, "2"), (4, "4"), (6, "6")])
        self.assertEqual(await self.history(log, "1", "2", after=6), [])
        self.assertEqual(await self.history(log, "1", "2", after=99), [])

    async def test_history_ends_at_the_last_place_that_may_be_read(self) -> None:
        log = await self.filled(*(sent(str(place), 1, 2) for place in range(1, 6)))
        self.assertEqual(await self.history(log, "2", "1", through=3), [(3, "3"), (2, "2"), (1, "1")])
        self.assertEqual(await self.history(log, "2", "1", after=1, through=3), [(2, "2"), (3, "3")])
        self.assertEqual(await self.history(log, "2", "1", before=5, through=3), [(3, "3"), (2, "2"), (1, "1")])
        self.assertEqual(await self.history(log, "2", "1", before=2, through=3), [(1, "1")])
        self.assertEqual(await self.history(log, "2", "1", through=0), [])

    async def test_history_leaves_undelivered_messages_out(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2), sent("c", 1, 2), undelivered=[1, 3])
        self.assertEqual(await self.history(log, "1", "2"), [(2, "b")])
        self.assertEqual(await self.history(log, "2", "1", after=0), [(2, "b")])

    async def test_limit_and_size_of_history_leave_more(self) -> None:
        log = await self.filled(
            *(sent(f"{place}bcd", 1, 2 + place % 2) for place in range(1, 10)), undelivered=[2]
        )  # places 4, 6 and 8 of user 1 stand with user 2
        for before, after, through, limit, size, places, more in (
            (None, None, 9, 2, 99, [8, 6], True),
            (None, None, 9, 3, 99, [8, 6, 4], False),
            (6, None, 9, 3, 99, [4], False),
            (None, None, 9, 9, 8, [8, 6], True),
            (None, None, 9, 9, 7, [8], True),
            (None, None, 9, 9, 0, [8], True),
            (None, None, 7, 1, 99, [6], True),
            (None, None, 5, 1, 99, [4], False),
            (None, 0, 9, 2, 99, [4, 6], True),
            (None, 4, 9, 2, 99, [6, 8], False),
            (None, 4, 9, 1, 99, [6], True),
            (None, 4, 7, 1, 99, [6], False),
            (None, 0, 9, 9, 11, [4, 6], True),
            (None, 0, 9, 9, 12, [4, 6, 8], False),
        ):
            page = await log.reader.history(
                "1", "2", before=before, after=after, through=through, limit=limit, size=size
            )
            self.assertEqual(([entry.place for entry in page.entries], page.more), (places, more))

    # conversations --------------------------------------------------------------------

    async def test_conversations_are_the_last_messages_newest_first(self) -> None:
        log = await self.filled(
            sent("a", 1, 2), sent("b", 3, 1), sent("c", 1, 1), sent("d", 2, 1), sent("e", 2, 3), sent("f", 4, 1)
        )
        self.assertEqual(await self.conversations(log, "1"), [(5, "f"), (4, "d"), (3, "c"), (2, "b")])
        self.assertEqual(await self.conversations(log, "3"), [(2, "e"), (1, "b")])
        self.assertEqual(await self.conversations(log, "unknown"), [])

    async def test_conversation_without_a_message_that_stands_is_left_out(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 3), sent("c", 1, 2), sent("d", 1, 4), undelivered=[2, 3])
        self.assertEqual(await self.conversations(log, "1"), [(4, "d"), (1, "a")])
        self.assertEqual(await self.conversations(log, "3"), [])

    async def test_conversations_are_as_they_were_at_the_last_place_that_may_be_read(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 3), sent("c", 2, 1), sent("d", 1, 4))
        self.assertEqual(await self.conversations(log, "1", through=2), [(2, "b"), (1, "a")])
        self.assertEqual(await self.conversations(log, "1", through=3), [(3, "c"), (2, "b")])
        self.assertEqual(await self.conversations(log, "1", through=0), [])

    async def test_conversations_before_a_place_are_those_whose_last_message_is_before_it(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 3), sent("c", 2, 1), sent("d", 1, 4))
        self.assertEqual(await self.conversations(log, "1", before=4), [(3, "c"), (2, "b")])
        self.assertEqual(await self.conversations(log, "1", before=3), [(2, "b")])
        self.assertEqual(await self.conversations(log, "1", before=2), [])
        self.assertEqual(await self.conversations(log, "1", before=2, through=2), [(1, "a")])

    async def test_limit_and_size_of_conversations_leave_more(self) -> None:
        log = await self.filled(*(sent(f"{place}bcd", place + 1, 1) for place in range(1, 6)))
        for before, limit, size, places, more in (
            (None, 2, 99, [5, 4], True),
            (4, 2, 99, [3, 2], True),
            (3, 2, 99, [2, 1], False),
            (None, 5, 99, [5, 4, 3, 2, 1], False),
            (None, 9, 8, [5, 4], True),
            (None, 9, 3, [5], True),
            (2, 9, 3, [1], False),
        ):
            page = await log.reader.conversations("1", before=before, through=9, limit=limit, size=size)
            self.assertEqual(([entry.place for entry in page.entries], page.more), (places, more))

    # progress -------------------------------------------------------------------------

    async def test_progress_counts_the_unread_messages_of_the_other(self) -> None:
        log = await self.filled(
            sent("a", 1, 2), sent("b", 2, 1), sent("c", 1, 2), sent("d", 3, 2), sent("e", 1, 2), sent("f", 1, 2),
            undelivered=[5],
        )  # fmt: skip
        for after, through, limit, count in (
            (0, 99, 100, 3),
            (1, 99, 100, 2),
            (1, 5, 100, 1),
            (2, 3, 100, 1),
            (6, 99, 100, 0),
            (0, 99, 2, 2),
            (0, 99, 0, 0),
            (0, 0, 100, 0),
        ):
            found = await self.progress(log, "2", Conversation("1", read_by_me=after), through=through, limit=limit)
            self.assertEqual(found, [(after, 0, 0, count)])
        self.assertEqual(await self.progress(log, "2", Conversation("4")), [(0, 0, 0, 0)])
        self.assertEqual(await self.progress(log, "4", Conversation("2")), [(0, 0, 0, 0)])

    async def test_message_to_oneself_is_not_unread(self) -> None:
        log = await self.filled(sent("a", 1, 1), sent("b", 1, 2), sent("c", 2, 1), sent("d", 1, 1))
        conversations = (Conversation("1"), Conversation("2"))
        self.assertEqual(await self.progress(log, "1", *conversations), [(0, 0, 0, 0), (0, 0, 0, 1)])

    async def test_progress_has_the_marks_of_both_users_as_places_of_the_user(self) -> None:
        log = await self.filled(
            sent("a", 3, 2), sent("b", 1, 2), sent("c", 1, 2), sent("d", 2, 1), sent("e", 1, 2), sent("f", 1, 2),
            undelivered=[6],
        )  # fmt: skip
        # User 1 has b, c, d, e, f at 1 to 5; user 2 has a, b, c, d, e, f at 1 to 6.
        await log.save_marks([Mark("1", MarkKind.READ, "2", 3), Mark("1", MarkKind.READ, "3", 4)])
        for received, read, places in (
            (0, 0, (0, 0)),
            (1, 0, (0, 0)),
            (3, 2, (2, 1)),
            (4, 4, (2, 2)),
            (0, 5, (4, 4)),  # what was read was received
            (99, 6, (4, 4)),
        ):
            marks = Conversation("2", received=received, read=read)
            self.assertEqual(await self.progress(log, "1", marks), [(3, *places, 0)])
        await log.save_marks([Mark("2", MarkKind.RECEIVED, "", 5), Mark("2", MarkKind.READ, "1", 2)])
        await log.save_marks([Mark("2", MarkKind.READ, "3", 1), Mark("3", MarkKind.RECEIVED, "", 9)])
        self.assertEqual(await self.progress(log, "1", Conversation("2")), [(3, 4, 1, 0)])
        self.assertEqual(
            await self.progress(log, "1", Conversation("2", read_by_me=2, received=2, read=3)), [(3, 4, 2, 0)]
        )
        self.assertEqual(await self.progress(log, "1", Conversation("2", None, False, 0, 6, 6)), [(3, 0, 0, 0)])

    async def test_progress_with_the_last_message_is_the_same(self) -> None:
        log = await self.filled(sent("a", 3, 2), sent("b", 2, 1), sent("c", 1, 2), sent("d", 1, 2), sent("e", 2, 3))
        page = await log.reader.conversations("2", before=None, through=99, limit=9, size=EVERYTHING)
        last = [entry.message for entry in page.entries]
        for mine in range(6):
            for received in range(4):
                marks = {"read_by_me": mine, "received": received, "read": max(0, received - 1)}
                without, with_last = (
                    [
                        Conversation("3", last[0] if has else None, **marks),
                        Conversation("1", last[1] if has else None, **marks),
                    ]
                    for has in (False, True)
                )
                self.assertEqual(await self.progress(log, "2", *with_last), await self.progress(log, "2", *without))

    async def test_progress_of_many_conversations_is_read_at_once_in_the_order_given(self) -> None:
        log = await self.filled(*(sent("x", peer, 1) for peer in range(2, 102) for _ in range(peer % 3)))
        peers = [str(peer) for peer in range(101, 1, -1)]
        found = await self.progress(log, "1", *(Conversation(peer) for peer in peers), through=EVERYTHING)
        self.assertEqual(found, [(0, 0, 0, int(peer) % 3) for peer in peers])
        self.assertEqual(await self.progress(log, "1"), [])

    # find -----------------------------------------------------------------------------

    async def test_message_is_found_by_its_sender_and_unique_id(self) -> None:
        log = await self.filled(
            sent("a", 1, 2, "id-id-id-1"), sent("b", 2, 1, "id-id-id-1"), sent("c", 1, 2, "id-id-id-2")
        )
        found = await log.reader.find("2", "id-id-id-1", 0)
        self.assertEqual(found, LoggedMessage(2, "2", "1", "23", "b", RECEIVED_AT, True, 2, 2, "id-id-id-1"))
        self.assertEqual((await log.reader.find("1", "id-id-id-2", 0)).content, "c")  # type: ignore[union-attr]
        for sender, unique_id in (("2", "id-id-id-2"), ("3", "id-id-id-1"), ("1", "ID-ID-ID-1"), ("1", "")):
            self.assertEqual(await log.reader.find(sender, unique_id, 0), None)

    async def test_message_of_a_v1_sender_is_not_found_by_its_id(self) -> None:
        log = await self.filled(message("a"), sent("b", 1, 2, "id-id-id-1"))
        self.assertEqual(await log.reader.find("1", "id", 0), None)

    async def test_message_that_was_received_before_a_time_is_not_found(self) -> None:
        log = await self.filled(sent("a", 1, 2, "id-id-id-1"))
        for since, is_found in ((RECEIVED_AT - 1, True), (RECEIVED_AT, True), (RECEIVED_AT + 1, False)):
            self.assertEqual(await log.reader.find("1", "id-id-id-1", since) is not None, is_found)

    async def test_id_that_was_used_again_after_a_time_is_found_there(self) -> None:
        later = message("b", 1, 2, unique_id="id-id-id-1", received_at=1_700_000_100)
        log = await self.filled(sent("a", 1, 2, "id-id-id-1"), later)
        found = await log.reader.find("1", "id-id-id-1", RECEIVED_AT + 1)
        self.assertEqual(found and found.content, "b")

    async def test_message_to_oneself_is_found(self) -> None:
        log = await self.filled(sent("a", 7, "7", "id-id-id-1"))
        found = await log.reader.find("7", "id-id-id-1", 0)
        self.assertEqual(found and (found.from_place, found.to_place), (1, 1))

    async def test_undelivered_message_is_not_found(self) -> None:
        log = await self.filled(sent("a", 1, 2, "id-id-id-1"), undelivered=[1])
        self.assertEqual(await log.reader.find("1", "id-id-id-1", 0), None)

    # has_written, writers and place_of_sender -----------------------------------------

    async def test_user_has_written_if_a_message_to_the_other_stands(self) -> None:
        log = await self.filled(
            sent("a", 1, 2), sent("b", 3, 2), sent("c", 4, 4), sent("d", 5, 6), sent("e", 5, 6), undelivered=[2, 4]
        )
        for sender, recipient, has_written in (
            ("1", "2", True),
            ("2", "1", False),
            ("3", "2", False),
            ("4", "4", True),
            ("1", "1", False),
            ("5", "6", True),
            ("unknown", "2", False),
        ):
            self.assertEqual(await log.reader.has_written(sender, recipient), has_written)
            self.assertEqual(set(await log.reader.writers(recipient, [sender])), {sender} if has_written else set())

    async def test_writers_are_those_of_some_users_who_have_written(self) -> None:
        log = await self.filled(
            sent("a", 1, 2), sent("b", 3, 2), sent("c", 4, 2), sent("d", 2, 5), sent("e", 2, 2), undelivered=[2]
        )
        self.assertEqual(set(await log.reader.writers("2", ["1", "2", "3", "5", "unknown"])), {"1", "2"})
        self.assertEqual(set(await log.reader.writers("2", [])), set())

    async def test_place_of_the_recipient_is_translated_into_one_of_the_sender(self) -> None:
        log = await self.filled(
            sent("a", 1, 3), sent("b", 1, 2), sent("c", 2, 1), sent("d", 3, 2), sent("e", 1, 2), sent("f", 1, 2),
            undelivered=[6],
        )  # fmt: skip
        # User 2 has b, c, d, e, f at 1 to 5; user 1 has a, b, c, e, f at 1 to 5.
        for through, place in ((0, 0), (1, 2), (2, 2), (3, 2), (4, 4), (5, 4), (99, 4)):
            self.assertEqual(await log.reader.place_of_sender("1", "2", through), place)
        self.assertEqual(await log.reader.place_of_sender("2", "3", 99), 0)
        self.assertEqual(await log.reader.place_of_sender("unknown", "2", 99), 0)

    async def test_place_of_a_message_to_oneself_is_translated_into_itself(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 1), sent("c", 2, 1))
        self.assertEqual(await log.reader.place_of_sender("1", "1", 3), 2)

    # Reads while the log is written ---------------------------------------------------

    async def test_reads_see_what_was_committed_before(self) -> None:
        log = self.started()
        for turn in range(1, 30):
            unique_id = f"id-id-id-{turn}"
            (number,) = await log.append([sent(str(turn), 1, 2, unique_id)])
            reads = gatherResults(
                [
                    log.reader.entries("2", turn - 1, turn, 100, EVERYTHING),
                    log.reader.history("1", "2", before=None, after=None, through=turn, limit=1, size=99),
                    log.reader.find("1", unique_id, 0),
                    log.reader.place_of_sender("1", "2", turn),
                ]
            )
            entries, history, found, place = await reads
            self.assertEqual((contents(entries), contents(history)), ([(turn, str(turn))], [(turn, str(turn))]))
            self.assertEqual((found.number, place), (number, turn))

    async def test_mark_of_undelivered_is_seen_once_it_is_committed(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2))
        self.assertEqual(await self.history(log, "2", "1"), [(2, "b"), (1, "a")])
        await log.mark_undelivered([2])
        self.assertEqual(await self.history(log, "2", "1"), [(1, "a")])
        self.assertEqual(await self.entries(log, "2"), [(1, "a"), (2, "(void)")])

    async def test_hundred_reads_at_once_are_answered_or_refused_as_busy(self) -> None:
        log = await self.filled(*(sent(str(place), 1, 2) for place in range(1, 6)))
        reads = [log.reader.entries("2", after % 5, 9, 1, EVERYTHING) for after in range(100)]
        for after, read in enumerate(reads):
            try:
                page = await read
            except LogBusy:
                continue
            self.assertEqual([entry.place for entry in page.entries], [after % 5 + 1])
