"""Readers for other processes than the relay: chosen messages, inboxes, and what is added to a log.

Each log is compared with the same messages in a list.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import LogReader, LogReplaced
from chatrelay.messagelog import message_reader
from chatrelay.messagelog.postgres import PostgresStore, search
from chatrelay.messagelog.postgres.address import parse
from chatrelay.messagelog.postgres.gaps import GAP_SECONDS, MAX_GAPS, Gaps
from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.messagelog.sqlite.index import Index
from chatrelay.messagelog.sqlite.opening import reading
from chatrelay.messagelog.sqlite.search import Search
from chatrelay.model import InboxEntry, InboxState, LoggedMessage, LogUnavailable, Mark, MarkKind, Message, Selection
from tests.support.message_logs import message
from tests.support.postgres_server import shared_server

USERS = ["a", "b", "c", "d", "e"]
"""The last one gets few messages."""

START = 1_700_000_000
RUN = 100
"""The messages of a run of the index."""


def some_messages(count: int, seed: int = 1) -> list[Message]:
    """Return messages between a few users, some to themselves. The clock of the relay is set back once."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        sender, recipient = chance.choices(USERS, weights=[20, 20, 10, 10, 1], k=2)
        seconds = START + number - (40 if number > count // 2 else 0)
        unique_id = f"id-{seed}-{number:05}" if number % 3 else None
        made.append(message(f"content {number}", sender, recipient, number, unique_id, received_at=seconds))
    return made


def as_logged(messages: Sequence[Message], undelivered: Sequence[int] = ()) -> list[LoggedMessage]:
    """Return messages as a log has them."""
    places: Counter[str] = Counter()
    logged = []
    for number, each in enumerate(messages, 1):
        sender, recipient = str(each.from_uid), str(each.to_uid)
        for user in {sender, recipient}:
            places[user] += 1
        logged.append(
            LoggedMessage(
                number,
                sender,
                recipient,
                each.time_stamp,
                each.content,
                int(each.received_at * 1_000_000),
                number not in undelivered,
                places[sender],
                places[recipient],
                str(each.client_id) if each.has_unique_id else None,
            )
        )
    return logged


def selections() -> list[Selection]:
    """Return selections of every kind."""
    times = [(None, None), (START + 150, None), (None, START + 90), (START + 200, START + 230), (START + 900, None)]
    found = []
    for since, until in times:
        since_us, until_us = (None if each is None else each * 1_000_000 for each in (since, until))
        for user, peer in ((None, None), ("a", None), ("e", None), ("a", "b"), ("e", "a"), ("b", "b"), ("x", "a")):
            found.append(Selection(user, peer, since_us, until_us))
    return found


class LogReaderContract:
    """The contract of every `LogReader`."""

    assertEqual: Any
    assertRaises: Any
    count: ClassVar[int] = 450

    def append(self, messages: Sequence[Message]) -> None:
        """Commit messages, as a relay does."""
        raise NotImplementedError

    def reader(self) -> LogReader:
        """Return a reader of the log."""
        raise NotImplementedError

    def filled(self) -> list[LoggedMessage]:
        """Fill the log; return what is in it."""
        made = some_messages(self.count)
        for start in range(0, self.count, 30):
            self.append(made[start : start + 30])
        undelivered = range(5, self.count, 11)
        self.mark_undelivered(undelivered)
        return as_logged(made, undelivered)

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        """Note that messages reached nobody."""
        raise NotImplementedError

    def trim(self, before: int) -> None:
        """Delete the messages that were received before a time, in seconds."""
        raise NotImplementedError

    def test_selected_messages_are_those_that_reading_everything_would_find(self) -> None:
        everything = self.filled()
        reader = self.reader()
        for selection in selections():
            wanted = list(filter(selection.has, everything))
            self.assertEqual(list(reader.messages(selection)), wanted, selection)
            newest_first = list(reader.messages(selection, newest_first=True, through=400))
            self.assertEqual(newest_first, [each for each in reversed(wanted) if each.number <= 400], selection)

    def test_entries_of_an_inbox_have_every_place_once(self) -> None:
        everything = self.filled()
        reader = self.reader()
        for user in USERS:
            inbox = []
            for each in everything:
                if user in (each.from_uid, each.to_uid):
                    place = each.from_place if each.from_uid == user else each.to_place
                    inbox.append(InboxEntry(place, each if each.delivered else None))
            for after, through in ((0, len(inbox)), (7, len(inbox) - 1), (len(inbox), len(inbox))):
                self.assertEqual(list(reader.entries(user, after, through)), inbox[after:through], user)
            self.assertEqual(reader.inbox(user), InboxState(1, len(inbox)))
        self.assertEqual(list(reader.entries("nobody", 0, 0)), [])

    def test_readers_show_what_is_kept_of_a_log_that_was_trimmed(self) -> None:
        everything = self.filled()
        self.trim(START + 120)
        kept = everything[120:]
        reader = self.reader()
        for selection in selections():
            self.assertEqual(list(reader.messages(selection)), list(filter(selection.has, kept)), selection)
        for user in USERS:
            inbox: list[InboxEntry] = []
            first = 1
            for each in everything:
                if user in (each.from_uid, each.to_uid):
                    inbox.append(InboxEntry(len(inbox) + 1, each if each.delivered and each in kept else None))
                    first += each not in kept
            self.assertEqual(reader.inbox(user), InboxState(first, len(inbox)))
            for after in (0, first - 2, first - 1, first):
                self.assertEqual(list(reader.entries(user, after, len(inbox))), inbox[max(after, 0) :], (user, after))

    def test_readers_of_a_log_whose_messages_were_all_deleted_find_nothing_and_follow_it(self) -> None:
        self.append(some_messages(60))
        state = self.reader().inbox("a")
        self.trim(START + 1000)
        reader = self.reader()
        self.assertEqual(list(reader.messages()), [])
        self.assertEqual(reader.inbox("a"), InboxState(state.last + 1, state.last))
        self.assertEqual(list(reader.entries("a", 0, 2)), [InboxEntry(1), InboxEntry(2)])
        follower = reader.follower()
        self.append(some_messages(2))
        self.assertEqual([each.number for each in follower.new_messages()], [61, 62])
        self.trim(START + 1000)
        self.assertEqual(list(follower.new_messages()), [])
        follower.close()

    def test_follower_returns_each_new_message_once(self) -> None:
        self.append(some_messages(40))
        follower = self.reader().follower()
        self.assertEqual((follower.through, list(follower.new_messages())), (40, []))
        added = some_messages(1205, seed=2)
        found: list[LoggedMessage] = []
        for start in range(0, len(added), 241):
            self.append(added[start : start + 241])
            while new := follower.new_messages():
                found += new
        self.assertEqual([each.content for each in found], [each.content for each in added])
        self.assertEqual(list(follower.new_messages()), [])
        follower.close()

    def test_follower_of_an_empty_log_begins_with_the_first_message(self) -> None:
        self.append([])
        follower = self.reader().follower()
        self.append(some_messages(1))
        self.assertEqual([each.number for each in follower.new_messages()], [1])
        follower.close()


class SqliteReader(LogReaderContract, SynchronousTestCase):
    """``sqlite:`` without an index."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.store = SqliteStore(self.path)
        self.store.open()
        self.addCleanup(self.store.close)

    def append(self, messages: Sequence[Message]) -> None:
        self.store.append(messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        self.store.mark_undelivered(numbers)

    def trim(self, before: int) -> None:
        while self.store.trim(before * 1_000_000):
            pass

    def reader(self) -> LogReader:
        return message_reader(f"sqlite:{self.path}")

    def test_marks_and_places_of_an_inbox_are_those_that_the_relay_has_written(self) -> None:
        self.filled()
        self.store.add_marks(
            [
                Mark("a", MarkKind.RECEIVED, "", 7),
                Mark("a", MarkKind.LEFT_AT, "", 8),
                Mark("a", MarkKind.LAST_SEEN, "", 1_700_000_000_123),
                Mark("a", MarkKind.STAYS, "", 2),
                Mark("a", MarkKind.READ, "b", 6),
            ]
        )
        self.store.write_marks()
        self.assertEqual(self.reader().inbox("a"), self.store.inbox("a"))
        self.assertEqual(self.reader().epoch(), self.store.epoch)
        before = self.reader().inbox("a")
        self.store.close()
        self.assertEqual(self.reader().inbox("a"), before)
        self.assertEqual(sorted(os.listdir(os.path.dirname(self.path)))[-1].endswith("-shm"), False)

    def test_follower_notices_another_log_in_the_place_of_the_first(self) -> None:
        self.append(some_messages(3))
        follower = self.reader().follower()
        self.store.close()
        os.unlink(self.path)
        self.assertRaises(LogUnavailable, follower.new_messages)
        self.store.open()
        error = self.assertRaises(LogReplaced, follower.new_messages)
        self.assertIn("run this command again", str(error))

    def test_follower_goes_on_after_the_relay_has_restarted(self) -> None:
        self.append(some_messages(3))
        follower = self.reader().follower()
        self.store.close()
        self.assertEqual(list(follower.new_messages()), [])
        self.store.open()
        self.append(some_messages(2))
        self.assertEqual([each.number for each in follower.new_messages()], [4, 5])

    def test_follower_does_not_open_a_log_whose_files_have_not_changed(self) -> None:
        self.append(some_messages(3))
        follower = self.reader().follower()
        for _ in range(9):
            follower.new_messages()
        with patch("chatrelay.messagelog.sqlite.reader.reading") as opened:
            self.assertEqual(list(follower.new_messages()), [])
        opened.assert_not_called()


class IndexedSqliteReader(SqliteReader):
    """``sqlite:`` with an index of all but the last messages."""

    def filled(self) -> list[LoggedMessage]:
        found = super().filled()
        with reading(self.path) as connection:
            index = Index(os.path.realpath(self.path), messages_per_run=RUN)
            index.open(connection, self.store.epoch)
            while not index.catch_up(connection) or index.work():
                while index.work():
                    pass
        return found

    def blocks_read(self, selection: Selection, newest_first: bool = False, limit: int = 10**9) -> tuple[int, int]:
        """Return how many messages were found, and in how many statements that read blocks."""
        statements: list[str] = []
        with reading(self.path) as connection:
            found = Search(connection, os.path.realpath(self.path))
            connection.set_trace_callback(statements.append)
            messages = found.messages(selection, newest_first=newest_first)
            count = sum(1 for _, _ in zip(range(limit), messages, strict=False))
            connection.set_trace_callback(None)
        return count, sum("FROM block" in each for each in statements)

    def test_user_with_few_messages_costs_few_blocks(self) -> None:
        everything = self.filled()
        blocks = 450 // 30
        tail = 2  # statements: the blocks behind the index, ten at once, and the end of them
        rare = Selection("e", "e")
        wanted = len(list(filter(rare.has, everything)))
        found, read = self.blocks_read(rare)
        self.assertEqual(found, wanted)
        self.assertLessEqual(read, wanted + tail)
        self.assertLess(read, blocks // 2)
        found, read = self.blocks_read(Selection("nobody"))
        self.assertEqual((found, read), (0, tail))
        found, read = self.blocks_read(Selection("a"), newest_first=True, limit=1)
        self.assertEqual((found, read), (1, 1))
        old = Selection("a", since=(START + 900) * 1_000_000)
        self.assertEqual(self.blocks_read(old), (0, tail))

    def test_times_without_a_user_skip_what_the_index_shows_to_be_older(self) -> None:
        self.filled()
        since = Selection(since=(START + 405) * 1_000_000)
        found, read = self.blocks_read(since)
        self.assertEqual(found, 5)
        self.assertLess(read, 3)

    def test_last_places_of_an_inbox_cost_few_blocks(self) -> None:
        everything = self.filled()
        last = sum("a" in (each.from_uid, each.to_uid) for each in everything)
        statements: list[str] = []
        with reading(self.path) as connection:
            found = Search(connection, os.path.realpath(self.path))
            connection.set_trace_callback(statements.append)
            self.assertEqual(len(list(found.entries("a", last - 30, last))), 30)
        self.assertLess(sum("FROM block" in each for each in statements), 450 // 30 // 2)

    def test_damaged_missing_or_foreign_index_changes_no_answer(self) -> None:
        everything = self.filled()
        wanted = list(filter(Selection("a").has, everything))
        folder = Path(f"{self.path}-index")
        runs = sorted(folder.iterdir())
        self.assertGreater(len(runs), 2)
        whole = runs[1].read_bytes()
        for damaged in (whole[:-1], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], b""):
            runs[1].write_bytes(damaged)
            self.assertEqual(list(self.reader().messages(Selection("a"))), wanted)
            self.assertEqual(runs[1].read_bytes(), damaged)  # only the relay repairs it
        runs[1].unlink()
        self.assertEqual(list(self.reader().messages(Selection("a"))), wanted)
        runs[1].write_bytes(whole)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE life SET epoch = 'another'")
        self.assertGreater(self.blocks_read(Selection("nobody"))[1], 2)  # it is not used
        self.assertEqual(list(self.reader().messages(Selection("a"))), wanted)
        shutil.rmtree(folder)
        self.assertEqual(list(self.reader().messages(Selection("a"))), wanted)

    def test_file_that_the_relay_deletes_meanwhile_makes_the_reader_list_the_files_again(self) -> None:
        everything = self.filled()
        listed = os.listdir
        merged = ["000000000001-000000009999.run"]

        def names(path: str) -> list[str]:
            return [*listed(path), merged.pop()] if merged else listed(path)

        with patch("chatrelay.messagelog.sqlite.index.os.listdir", names):
            self.assertEqual(self.blocks_read(Selection("nobody")), (0, 2))
            merged.append("000000000001-000000009999.run")
            self.assertEqual(list(self.reader().messages(Selection("a"))), list(filter(Selection("a").has, everything)))


class PostgresReader(LogReaderContract, SynchronousTestCase):
    """``postgresql:``"""

    def setUp(self) -> None:
        self.url = shared_server().url(shared_server().database(self.addCleanup))
        self.store = PostgresStore(parse(self.url))
        self.store.open()
        self.addCleanup(self.store.close)
        self.patch(search, "WINDOW", 60)
        self.patch(search, "MESSAGES_PER_READ", 25)
        self.patch(search, "ENTRIES_PER_READ", 20)

    def append(self, messages: Sequence[Message]) -> None:
        if messages:
            self.store.append(messages)

    def mark_undelivered(self, numbers: Sequence[int]) -> None:
        self.store.mark_undelivered(numbers)

    def trim(self, before: int) -> None:
        while self.store.trim(before * 1_000_000):
            pass

    def reader(self) -> LogReader:
        return message_reader(self.url)

    def test_follower_finds_a_message_that_is_committed_after_a_later_one(self) -> None:
        self.append(some_messages(3))
        follower = self.reader().follower()
        slow = PostgresStore(parse(self.url))
        slow.open()
        self.addCleanup(slow.close)
        connection: Any = slow._connection
        connection.run("BEGIN")
        slow.append([message("slow", "x", "y")])  # not committed yet
        self.append([message("fast", "v", "w")])
        self.assertEqual([each.content for each in follower.new_messages()], ["fast"])
        connection.run("COMMIT")
        self.assertEqual([each.content for each in follower.new_messages()], ["slow"])
        self.assertEqual(list(follower.new_messages()), [])
        follower.close()

    def test_follower_connects_again_after_a_failure(self) -> None:
        self.append(some_messages(3))
        follower = self.reader().follower()
        connection: Any = follower
        connection._connection.abort()
        self.assertRaises(LogUnavailable, follower.new_messages)
        self.append(some_messages(1))
        self.assertEqual([each.number for each in follower.new_messages()], [4])
        follower.close()


class NumbersThatAreMissing(SynchronousTestCase):
    """`Gaps`."""

    def test_missing_numbers_are_looked_for_until_they_are_seen_or_too_old(self) -> None:
        gaps = Gaps(10)
        gaps.seen([11, 14, 16], now=0.0)
        self.assertEqual((gaps.through, gaps.missing(1.0)), (16, [12, 13, 15]))
        gaps.seen([13], now=2.0)
        self.assertEqual((gaps.through, gaps.missing(GAP_SECONDS - 1)), (16, [12, 15]))
        self.assertEqual(gaps.missing(GAP_SECONDS), [])

    def test_number_of_missing_numbers_is_bounded(self) -> None:
        gaps = Gaps(0)
        gaps.seen([10**9], now=0.0)
        self.assertEqual(len(gaps.missing(0.0)), MAX_GAPS)
        gaps.seen([2 * 10**9], now=0.0)
        self.assertEqual(len(gaps.missing(0.0)), MAX_GAPS)
        self.assertEqual(gaps.missing(0.0)[-1], 2 * 10**9 - 1)
