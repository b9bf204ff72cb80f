"""The cursor rule: replay, live delivery, answers, own devices and gaps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import InboxEntry, LogBusy, LoggedMessage, LogNotIndexed, LogUnavailable, Message, Page
from chatrelay.relay import inbox as inbox_module
from chatrelay.relay.inbox import Cursor, Inboxes, State, can_replay
from chatrelay.wire import codes
from tests.support.inboxes import InboxClient, PlainDialect

KB = 1024


def message(content: str) -> Message:
    """Return a message from Alice to Bo."""
    return Message("alice", "bo", "12345678", 1, content, 0.0, True)


class Reader:
    """Reads Bo's inbox: what the test has put in it.

    :ivar entries_by_place: from place 1.
    :ivar holds: whether a read waits until the test answers it.
    :ivar waiting: the reads that wait: (after, through, the Deferred).
    :ivar reads: how many reads there were.
    :ivar error: what a read fails with.
    """

    def __init__(self) -> None:
        self.log: list[InboxEntry] = []
        self.holds = False
        self.waiting: list[tuple[int, int, Deferred[Page]]] = []
        self.reads: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def add(self, content: str | None, erased: tuple[tuple[int, int], ...] = ()) -> int:
        """Put a message at the next place; None makes a void place."""
        place = len(self.log) + 1
        if content is None:
            self.log.append(InboxEntry(place, erased=erased))
        else:
            logged = LoggedMessage(place, "alice", "bo", 1, content, 0, True, place, place)
            self.log.append(InboxEntry(place, logged))
        return place

    def entries(self, user: str, after: int, through: int, limit: int, size: int) -> Deferred[Page]:
        """Read entries."""
        assert user == "bo"
        self.reads.append((after, through))
        if self.error is not None:
            return fail(self.error)
        if self.holds:
            self.waiting.append((after, through, Deferred()))
            return self.waiting[-1][2]
        return succeed(self.page(after, through, limit, size))

    def page(self, after: int, through: int, limit: int = 100, size: int = 64 * KB) -> Page:
        """Return the entries that a read finds."""
        found: list[InboxEntry] = []
        for entry in self.log[after:through]:
            size -= len(entry.message.content) if entry.message else 0
            if len(found) == limit or (found and size < 0):
                break
            found.append(entry)
        return Page(found, bool(found) and found[-1].place < through)

    def answer(self) -> None:
        """Answer the oldest read that waits, with what is there now."""
        after, through, read = self.waiting.pop(0)
        read.callback(self.page(after, through))


class CursorTests(SynchronousTestCase):
    """Bo's connections, and the places of Bo's inbox."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.reader = Reader()
        self.log = SimpleNamespace(reader=self.reader, epoch="first")
        self.inboxes = Inboxes(PlainDialect(), self.log, self.clock)  # type: ignore[arg-type]

    def enter(self, after: int | None = None, is_slow: bool = False) -> tuple[InboxClient, Cursor]:
        """Log in."""
        client = InboxClient(is_slow)
        cursor = self.inboxes.enter("bo", client, len(self.reader.log), after)
        cursor.start()
        return client, cursor

    def add(self, *contents: str | None) -> None:
        """Put messages into the log that nobody is offered: they were there before."""
        for content in contents:
            self.reader.add(content)

    def deliver(self, content: str, besides: InboxClient | None = None) -> bool:
        """Commit a message and offer it."""
        place = self.reader.add(content)
        inbox = self.inboxes.get("bo")
        return inbox is not None and inbox.deliver(message(content), place, besides)

    def hold(self) -> int:
        """Commit a message that reached nobody, and whose mark is not committed."""
        place = self.reader.add(None)
        self.inboxes.hold("bo", place)
        return place

    # Live

    def test_login_without_after_gets_only_what_follows(self) -> None:
        self.add("a", "b")
        client, cursor = self.enter()
        self.assertEqual((cursor.place, cursor.state), (2, State.LIVE))
        self.assertTrue(self.deliver("c"))
        self.assertEqual(client.take(), ["3 message c"])
        self.assertEqual(self.reader.reads, [])

    def test_each_device_gets_each_place(self) -> None:
        clients = [self.enter()[0] for _ in range(3)]
        self.deliver("a")
        for client in clients:
            self.assertEqual(client.take(), ["1 message a"])

    def test_place_at_the_cursor_is_dropped_and_counts_as_taken(self) -> None:
        self.add("a")
        client, cursor = self.enter()
        self.assertTrue(cursor.offer(1, b"again"))
        self.assertEqual(client.take(), [])

    def test_place_beyond_the_next_one_makes_the_cursor_read_what_is_missing(self) -> None:
        client, cursor = self.enter()
        self.add("a", "b")
        self.assertTrue(self.deliver("c"))
        self.assertEqual(client.take(), ["1 message a", "2 message b", "3 message c"])
        self.assertEqual((cursor.place, cursor.state), (3, State.LIVE))

    def test_closed_connection_takes_nothing(self) -> None:
        client, cursor = self.enter()
        client.is_open = False
        self.assertFalse(self.deliver("a"))
        self.assertEqual(cursor.state, State.CLOSED)
        client.is_open = True
        self.assertFalse(self.deliver("b"))
        self.assertEqual(client.take(), [])

    def test_connection_that_left_is_offered_nothing(self) -> None:
        client, cursor = self.enter()
        self.inboxes.leave("bo", cursor)
        self.inboxes.leave("bo", cursor)
        self.assertEqual(len(self.inboxes), 0)
        self.assertFalse(self.deliver("a"))
        self.assertEqual(client.take(), [])

    def test_connection_that_leaves_during_a_delivery_does_not_disturb_the_others(self) -> None:
        first, cursor = self.enter()
        second, _ = self.enter()

        def send(payload: bytes) -> bool:
            self.inboxes.leave("bo", cursor)
            return False

        self.patch(first, "send", send)
        self.assertTrue(self.deliver("a"))
        self.assertEqual(second.take(), ["1 message a"])

    # Replay

    def test_replay_sends_what_was_missed_and_then_what_comes(self) -> None:
        self.add("a", "b", "c")
        client, _ = self.enter(after=1)
        self.deliver("d")
        self.assertEqual(client.take(), ["2 message b", "3 message c", "4 message d"])

    def test_nothing_is_sent_before_start(self) -> None:
        self.add("a")
        client = InboxClient()
        cursor = self.inboxes.enter("bo", client, 1, 0)
        self.assertTrue(self.deliver("b"))
        self.assertEqual((client.take(), self.reader.reads), ([], []))
        cursor.start()
        cursor.start()
        self.assertEqual(client.take(), ["1 message a", "2 message b"])

    def test_place_that_comes_while_a_page_is_read_follows_it(self) -> None:
        self.add("a")
        self.reader.holds = True
        client, cursor = self.enter(after=0)
        self.assertTrue(self.deliver("b"))
        self.assertEqual((client.take(), cursor.state), ([], State.READING))
        self.reader.answer()
        self.reader.answer()
        self.assertEqual(client.take(), ["1 message a", "2 message b"])
        self.assertEqual(self.reader.reads, [(0, 1), (1, 2)])
        self.assertEqual(cursor.state, State.LIVE)

    def test_one_read_is_under_way_at_a_time(self) -> None:
        self.add("a")
        self.reader.holds = True
        self.enter(after=0)
        for content in "bcd":
            self.deliver(content)
        self.assertEqual(len(self.reader.waiting), 1)

    def test_page_has_at_most_100_entries(self) -> None:
        self.add(*(str(number) for number in range(1, 252)))
        client, _ = self.enter(after=0)
        self.assertEqual(client.take(), [f"{place} message {place}" for place in range(1, 252)])
        self.assertEqual(self.reader.reads, [(0, 251), (100, 251), (200, 251)])

    def test_ten_thousand_pages_at_once_need_no_recursion(self) -> None:
        self.patch(inbox_module, "MAX_PAGE", 1)
        self.add(*("x" for _ in range(10_000)))
        client, _ = self.enter(after=0)
        self.assertEqual(len(client.take()), 10_000)

    def test_void_places_are_sent_as_one_frame(self) -> None:
        self.add("a", None, None, "b", None)
        client, cursor = self.enter(after=0)
        self.assertEqual(client.take(), ["1 message a", "2-3 void", "4 message b", "5-5 void"])
        self.assertEqual(cursor.place, 5)

    def test_erasure_is_sent(self) -> None:
        self.add("a")
        self.reader.add(None, erased=((1, 1),))
        client, _ = self.enter(after=1)
        self.assertEqual(client.take(), ["2 erased 1-1"])

    def test_entries_that_are_no_messages_are_read(self) -> None:
        client, _ = self.enter()
        place = self.reader.add(None, erased=((3, 17), (40, 40)))
        self.inboxes.grew("bo", place)
        self.inboxes.grew("bo", place)
        self.inboxes.grew("nobody", place)
        self.assertEqual(client.take(), ["1 erased 3-17 40-40"])
        self.assertEqual(self.reader.reads, [(0, 1)])

    # Slow readers

    def test_next_page_is_read_when_the_client_has_read(self) -> None:
        self.add(*(["x" * 40 * KB] * 4))
        client, cursor = self.enter(after=0, is_slow=True)
        self.assertEqual((len(client.take()), cursor.state), (2, State.FULL))
        client.drain()
        self.assertEqual((len(client.take()), cursor.state), (2, State.LIVE))

    def test_64_kib_may_be_unsent(self) -> None:
        client, cursor = self.enter()
        client.unsent = 64 * KB
        self.deliver("a")
        self.assertEqual((client.take(), cursor.state), (["1 message a"], State.LIVE))

    def test_connection_with_more_unsent_is_under_replay_again(self) -> None:
        client, cursor = self.enter()
        client.unsent = 64 * KB + 1
        self.assertTrue(self.deliver("a"))
        self.assertTrue(self.deliver("b"))
        self.assertEqual((client.take(), cursor.state), ([], State.FULL))
        client.drain()
        self.assertEqual((client.take(), cursor.state), (["1 message a", "2 message b"], State.LIVE))

    def test_client_that_closes_while_too_much_is_unsent_gets_nothing(self) -> None:
        client, cursor = self.enter()
        client.unsent = 64 * KB + 1
        self.deliver("a")
        self.inboxes.leave("bo", cursor)
        client.drain()
        self.assertEqual(client.take(), [])

    # Answers

    def test_answer_takes_the_next_place(self) -> None:
        client, cursor = self.enter()
        self.deliver("a", besides=client)
        self.assertTrue(cursor.answer(1, b"answer"))
        self.deliver("b")
        self.assertEqual(client.take(), ["answer", "2 message b"])

    def test_message_goes_to_all_devices_besides_the_one_that_is_answered(self) -> None:
        client, _ = self.enter()
        other, _ = self.enter()
        self.assertTrue(self.deliver("a", besides=client))
        self.assertEqual((client.take(), other.take()), ([], ["1 message a"]))
        self.assertFalse(self.deliver("b", besides=other) and other.take())

    def test_answer_to_a_later_place_is_sent_at_once_and_its_place_comes_in_its_turn(self) -> None:
        self.add("a")
        self.reader.holds = True
        client, cursor = self.enter(after=0)
        self.deliver("b", besides=client)
        self.assertTrue(cursor.answer(2, b"answer"))
        self.assertEqual(client.take(), ["answer"])
        self.reader.answer()
        self.reader.answer()
        self.assertEqual(client.take(), ["1 message a", "2 message b"])

    def test_late_answer_to_a_place_at_the_cursor_is_sent_and_does_not_move_it(self) -> None:
        client, cursor = self.enter()
        self.deliver("a", besides=client)
        self.deliver("b")
        self.assertTrue(cursor.answer(1, b"answer"))
        self.assertEqual(client.take(), ["1 message a", "2 message b", "answer"])
        self.assertEqual(cursor.place, 2)

    def test_late_answer_beyond_the_next_place_makes_the_cursor_read(self) -> None:
        client, cursor = self.enter()
        self.deliver("a", besides=client)
        self.deliver("b", besides=client)
        self.assertTrue(cursor.answer(2, b"answer 2"))
        self.assertTrue(cursor.answer(1, b"answer 1"))
        self.assertEqual(client.take(), ["answer 2", "1 message a", "2 message b", "answer 1"])

    def test_entry_that_an_answer_has_taken_during_the_read_is_skipped(self) -> None:
        self.reader.holds = True
        client, cursor = self.enter()
        self.deliver("a", besides=client)
        self.deliver("b")
        self.assertEqual(cursor.state, State.READING)
        cursor.answer(1, b"answer")
        self.reader.answer()
        self.assertEqual(client.take(), ["answer", "2 message b"])

    def test_page_of_which_answers_have_taken_everything_is_no_failure(self) -> None:
        self.reader.holds = True
        client, cursor = self.enter()
        self.deliver("a", besides=client)
        self.deliver("b", besides=client)
        cursor.answer(2, b"answer 2")
        cursor.answer(1, b"answer 1")
        cursor.answer(2, b"answer 2 again")
        self.reader.answer()
        self.assertEqual((client.take(), cursor.state), (["answer 2", "answer 1", "answer 2 again"], State.LIVE))

    def test_answer_on_a_closed_connection_is_not_sent(self) -> None:
        client, cursor = self.enter()
        client.is_open = False
        self.assertFalse(cursor.answer(1, b"answer"))
        client.is_open = True
        self.assertFalse(cursor.answer(1, b"answer"))
        self.assertEqual((client.take(), cursor.place), ([], 0))

    def test_answers_may_exceed_what_is_unsent(self) -> None:
        client, cursor = self.enter()
        client.unsent = 64 * KB + 1
        self.assertTrue(cursor.answer(1, b"answer"))
        self.assertEqual((client.take(), cursor.place), (["answer"], 1))

    # Unsettled places

    def test_nothing_is_sent_at_or_beyond_an_unsettled_place(self) -> None:
        client, cursor = self.enter()
        self.deliver("a")
        place = self.hold()
        self.assertTrue(self.deliver("c"))
        self.assertEqual((client.take(), cursor.state), (["1 message a"], State.UNSETTLED))
        self.inboxes.release_void("bo", place)
        self.assertEqual((client.take(), cursor.state), (["2-2 void", "3 message c"], State.LIVE))

    def test_place_that_becomes_void_is_sent_live(self) -> None:
        client, cursor = self.enter()
        self.inboxes.release_void("bo", self.hold())
        self.assertEqual((client.take(), cursor.state, self.reader.reads), (["1-1 void"], State.LIVE, []))

    def test_places_settle_in_any_order(self) -> None:
        client, _ = self.enter()
        first, second = self.hold(), self.hold()
        self.deliver("c")
        self.inboxes.release_void("bo", second)
        self.assertEqual(client.take(), [])
        self.inboxes.release_void("bo", first)
        self.assertEqual(client.take(), ["1-2 void", "3 message c"])

    def test_replay_stops_before_an_unsettled_place(self) -> None:
        self.add("a")
        place = self.hold()
        self.add("c")
        client, cursor = self.enter(after=0)
        self.assertEqual((client.take(), cursor.state), (["1 message a"], State.UNSETTLED))
        self.inboxes.release_void("bo", place)
        self.assertEqual(client.take(), ["2-2 void", "3 message c"])

    def test_login_without_after_begins_before_an_unsettled_place(self) -> None:
        self.add("a")
        place = self.hold()
        client, cursor = self.enter()
        inbox = self.inboxes.get("bo")
        assert inbox is not None
        self.assertEqual((cursor.place, inbox.settled, self.inboxes.settled("bo", 2)), (1, 1, 1))
        self.inboxes.release_void("bo", place)
        self.assertEqual((client.take(), inbox.settled), (["2-2 void"], 2))

    def test_users_without_a_cursor_may_have_unsettled_places(self) -> None:
        place = self.hold()
        self.assertEqual(self.inboxes.settled("bo", 5), place - 1)
        self.inboxes.release_void("bo", place)
        self.inboxes.release_void("bo", place)
        self.assertEqual(self.inboxes.settled("bo", 5), 5)

    def test_entries_that_are_no_messages_wait_behind_an_unsettled_place(self) -> None:
        client, cursor = self.enter()
        place = self.hold()
        self.inboxes.grew("bo", self.reader.add(None, erased=((9, 9),)))
        self.assertEqual((client.take(), cursor.state), ([], State.UNSETTLED))
        self.inboxes.release_void("bo", place)
        self.assertEqual(client.take(), ["1-1 void", "2 erased 9-9"])

    # Failures

    def test_failed_read_is_retried_after_a_second(self) -> None:
        self.add("a")
        for error in (LogUnavailable("gone"), LogBusy("later")):
            self.reader.error = error
            client, cursor = self.enter(after=0)
            self.assertEqual(cursor.state, State.RETRYING)
            self.reader.error = None
            self.clock.pump([0.25] * 3)
            self.assertEqual(client.take(), [])
            self.clock.pump([0.25] * 2)
            self.assertEqual((client.take(), cursor.state), (["1 message a"], State.LIVE))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connection_stays_while_the_log_is_indexed_and_its_time_begins_afterwards(self) -> None:
        self.add("a")
        self.reader.error = LogNotIndexed("being indexed")
        client, cursor = self.enter(after=0)
        self.clock.pump([0.25] * 240)
        self.assertEqual((client.closed, cursor.state), (None, State.RETRYING))
        self.reader.error = LogUnavailable("gone")
        self.clock.pump([0.25] * 38)
        self.assertIsNone(client.closed)
        self.reader.error = None
        self.clock.pump([0.25] * 5)
        self.assertEqual((client.take(), cursor.state), (["1 message a"], State.LIVE))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connection_is_closed_after_ten_seconds_of_failed_reads(self) -> None:
        self.add("a")
        self.reader.error = LogUnavailable("gone")
        client, cursor = self.enter(after=0)
        self.clock.pump([0.25] * 38)
        self.assertIsNone(client.closed)
        self.clock.pump([0.25] * 4)
        self.assertEqual(client.closed, codes.LOG_LOST)
        self.assertEqual(cursor.state, State.CLOSED)
        self.clock.pump([0.25] * 40)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_connection_is_closed_after_ten_seconds_of_a_read_without_an_answer(self) -> None:
        self.add("a")
        self.reader.holds = True
        client, _ = self.enter(after=0)
        self.clock.pump([0.25] * 42)
        self.assertEqual(client.closed, codes.LOG_LOST)
        self.reader.answer()
        self.assertEqual(client.take(), [])

    def test_time_of_a_read_does_not_run_while_the_client_reads(self) -> None:
        self.add(*(["x" * 70 * KB] * 2))
        client, _ = self.enter(after=0, is_slow=True)
        self.clock.pump([0.25] * 50)
        self.assertIsNone(client.closed)
        client.drain()
        self.assertEqual(len(client.take()), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_time_begins_anew_with_each_page(self) -> None:
        self.add(*("x" for _ in range(300)))
        self.reader.holds = True
        client, _ = self.enter(after=0)
        for _ in range(3):
            self.clock.pump([0.25] * 28)
            self.reader.answer()
        self.assertEqual((len(client.take()), client.closed), (300, None))

    def test_log_without_an_entry_that_must_be_there_counts_as_unreadable(self) -> None:
        self.add("a", "b")
        holey: Any = Page([InboxEntry(2)], False)
        for page in (Page([], False), holey):
            self.patch(self.reader, "page", lambda *_, page=page: page)
            client, cursor = self.enter(after=0)
            self.assertEqual((client.take(), cursor.state), ([], State.RETRYING))

    def test_entries_before_a_missing_one_are_sent(self) -> None:
        self.add("a", "b", "c")
        self.patch(self.reader, "page", lambda *_: Page([self.reader.log[0], self.reader.log[2]], False))
        client, cursor = self.enter(after=0)
        self.assertEqual((client.take(), cursor.state), (["1 message a"], State.RETRYING))

    def test_defect_of_the_reader_is_logged_and_the_read_is_retried(self) -> None:
        self.add("a")
        self.reader.error = ZeroDivisionError()
        client, cursor = self.enter(after=0)
        self.assertEqual(cursor.state, State.RETRYING)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.reader.error = None
        self.clock.pump([0.25] * 5)
        self.assertEqual(client.take(), ["1 message a"])

    def test_failed_read_of_a_connection_that_left_is_not_retried(self) -> None:
        self.add("a")
        self.reader.holds = True
        _, cursor = self.enter(after=0)
        self.inboxes.leave("bo", cursor)
        self.reader.waiting.pop()[2].errback(LogUnavailable("gone"))
        self.assertEqual((cursor.state, self.clock.getDelayedCalls()), (State.CLOSED, []))

    def test_connection_that_closes_during_a_page_gets_no_more_of_it(self) -> None:
        self.add("a", None, "b", "c")
        for sent in range(4):
            client = InboxClient()
            self.patch(
                client,
                "send",
                lambda payload, client=client, most=sent: (
                    len(client.frames) < most and InboxClient.send(client, payload)
                ),
            )
            cursor = self.inboxes.enter("bo", client, 4, 0)
            cursor.start()
            self.assertEqual((len(client.take()), cursor.state), (sent, State.CLOSED))
            self.assertEqual(cursor.place, sent)

    def test_another_epoch_closes_all_connections(self) -> None:
        clients = [self.enter()[0] for _ in range(2)]
        self.assertTrue(self.inboxes.check_epoch())
        self.log.epoch = "second"
        self.assertFalse(self.inboxes.check_epoch())
        self.assertTrue(self.inboxes.check_epoch())
        self.assertEqual([client.closed for client in clients], [codes.LOG_LOST] * 2)
        self.assertFalse(self.deliver("a"))

    def test_login_in_another_epoch_closes_the_connections_of_the_one_before(self) -> None:
        old, cursor = self.enter()
        self.log.epoch = "second"
        new, _ = self.enter()
        self.inboxes.leave("bo", cursor)
        self.deliver("a")
        self.assertEqual((old.closed, new.closed), (codes.LOG_LOST, None))
        self.assertEqual((old.take(), new.take()), ([], ["1 message a"]))

    def test_page_of_another_epoch_is_not_sent(self) -> None:
        self.add("a")
        self.reader.holds = True
        client, _ = self.enter(after=0)
        self.log.epoch = "second"
        self.reader.answer()
        self.assertEqual((client.take(), client.closed), ([], codes.LOG_LOST))

    def test_epoch_may_change_while_nobody_is_here(self) -> None:
        _, cursor = self.enter()
        self.inboxes.leave("bo", cursor)
        self.log.epoch = "second"
        client, _ = self.enter()
        self.deliver("a")
        self.assertEqual((client.take(), client.closed), (["1 message a"], None))

    def test_inbox_knows_its_connections(self) -> None:
        client, _ = self.enter()
        inbox = self.inboxes.get("bo")
        assert inbox is not None
        self.assertEqual(inbox.connections, {client})
        self.assertEqual((len(self.inboxes), self.inboxes.get("alice")), (1, None))


@pytest.mark.parametrize(
    ("after", "first", "settled", "limit", "expected"),
    [
        (0, 1, 0, 10, True),  # an empty inbox
        (0, 1, 5, 10, True),
        (5, 1, 5, 10, True),
        (6, 1, 5, 10, False),  # beyond the last place: of another life of the log
        (2, 3, 5, 10, True),  # everything after it is kept
        (1, 3, 5, 10, False),
        (5, 15, 14, 10, False),  # nothing is kept
        (14, 15, 14, 10, True),
        (0, 1, 10, 10, True),
        (0, 1, 11, 10, False),
        (0, 1, 10**9, 0, True),  # no limit
    ],
)
def test_replay_is_possible(after: int, first: int, settled: int, limit: int, expected: bool) -> None:
    assert can_replay(after, first, settled, limit) is expected
