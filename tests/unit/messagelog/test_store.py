"""The store of a message log in SQLite: what is in the file, its migrations, and what it notices and refuses."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.messagelog.sqlite import APPLICATION_ID, MAX_BLOCK_MESSAGES, MIGRATIONS, SqliteMessageReader, SqliteStore
from chatrelay.messagelog.sqlite.schema import MAX_BLOCK_SIZE
from chatrelay.model import LogUnavailable, Mark, MarkKind, Message
from tests.support.message_logs import message
from tests.support.sqlite_logs import fail_commits


class Store(SynchronousTestCase):
    """The store and its file."""

    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.store = self.opened(self.path)

    def opened(self, path: str, *arguments: Any) -> SqliteStore:
        """Return an open store, which is closed at the end of the test."""
        store = SqliteStore(path, *arguments)
        store.open()
        self.addCleanup(store.close)
        return store

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Return what another program reads."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchall()

    def test_mark_of_undelivered_is_dropped_if_another_log_was_copied_into_the_file(self) -> None:
        other = self.opened(f"{self.path}.other")
        other.append([message("of the other file")])
        other.close()
        self.store.append([message("a")])
        self.store.close()
        with self.assertRaises(LogUnavailable):
            self.store.mark_undelivered([1])
        shutil.copyfile(other.path, self.path)  # the same inode, unlike a file that is renamed to that path
        self.store.open()
        self.assertEqual(self.rows("SELECT content, delivered FROM message"), [("of the other file", 1)])

    def test_first_place_of_an_inbox_is_the_first_that_is_kept(self) -> None:
        self.store.append([message("a", 1, 2), message("b", 1, 2), message("c", 1, 3)])
        self.store.close()
        self.store.open()  # which saves the last places
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("UPDATE saved_inbox SET first_place = 2 WHERE uid = '1'")
            connection.commit()
        self.store.append([message("d", 1, 2)])
        reader = SqliteMessageReader(self.path)
        for user, first, last in (("1", 2, 4), ("2", 1, 3), ("3", 1, 1), ("unknown", 1, 0)):
            for state in (self.store.inbox(user), reader.inbox(user)):
                self.assertEqual((state.first, state.last), (first, last))
        self.assertEqual(self.rows("SELECT * FROM inbox"), [("1", 4, 2), ("2", 3, 1), ("3", 1, 1)])

    def test_row_has_every_field_of_the_message(self) -> None:
        self.store.append([Message(7, "chen", 21, "0012", "hej", 1_700_000_000.123456)])
        self.assertEqual(
            self.rows(
                "SELECT number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at, delivered FROM message"
            ),
            [(1, "7", 1, "chen", 1, 21, "0012", "hej", 1_700_000_000_123_456, 1)],
        )

    def test_message_of_a_v1_sender_takes_no_byte_more_than_its_eight_values(self) -> None:
        self.store.append([message("a"), message("b", unique_id="id-id-id-1")])
        self.assertEqual(
            self.rows("SELECT messages FROM block"),
            [
                (
                    '[["1",1,"2",1,"id","23","a",1700000000123456],'
                    '["1",2,"2",2,"id-id-id-1","23","b",1700000000123456,1]]',
                )
            ],
        )
        self.assertEqual(self.rows("SELECT content, unique_id FROM message"), [("a", None), ("b", "id-id-id-1")])
        self.assertEqual([row.unique_id for row in SqliteMessageReader(self.path).messages()], [None, "id-id-id-1"])

    def test_files_are_readable_by_their_owner_only(self) -> None:
        self.store.append([message()])
        for suffix in ("", "-wal", "-shm", ".lock"):
            self.assertEqual(os.stat(self.path + suffix).st_mode & 0o777, 0o600, suffix)

    def test_type_of_client_id_and_time_stamp_is_kept(self) -> None:
        values: list[str | int] = ["007", 7, "7", "1e3", -(2**53), 2**53, "", "9007199254740992"]
        self.store.append([Message(1, 2, value, value, "", 0) for value in values])
        self.assertEqual(
            self.rows("SELECT client_id, time_stamp FROM message ORDER BY number"), [(v, v) for v in values]
        )

    def test_places_have_no_gaps_over_batches_and_reopening(self) -> None:
        self.store.append([message(), message(from_uid=2, to_uid="1"), message(to_uid=1)])
        self.store.close()
        self.store.open()
        self.store.append([message(to_uid=3), message(from_uid=3, to_uid=3)])
        self.assertEqual(
            self.rows("SELECT number, from_place, to_place FROM message ORDER BY number"),
            [(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 1), (5, 2, 2)],
        )
        self.assertEqual(self.rows("SELECT uid, last_place FROM inbox ORDER BY uid"), [("1", 4), ("2", 2), ("3", 2)])

    def test_failed_batch_leaves_no_message(self) -> None:
        self.store.append([message("before")])
        self.refuse_writing("saved_inbox")  # comes last in a batch: the blocks have been written then
        with patch("chatrelay.messagelog.sqlite.store.MESSAGES_PER_SAVE", 3):
            error = self.assertRaises(LogUnavailable, self.store.append, [message("a"), message("b", to_uid=3)])
        self.assertIn("refused", str(error))
        self.assertFalse(self.store.is_open)
        self.allow_writing()
        self.store.open()
        self.assertEqual([row.content for row in SqliteMessageReader(self.path).messages()], ["before"])
        self.store.append([message("after", to_uid=3), message("later")])
        self.assertEqual(
            self.rows("SELECT number, from_place, to_place FROM message"), [(1, 1, 1), (2, 2, 1), (3, 3, 2)]
        )

    def refuse_writing(self, table: str) -> None:
        """Let each statement fail that inserts into `table`."""
        with closing(sqlite3.connect(self.path)) as other:
            other.execute(f"CREATE TRIGGER refusal BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'refused'); END")

    def allow_writing(self) -> None:
        """Undo `refuse_writing`."""
        with closing(sqlite3.connect(self.path)) as other:
            other.execute("DROP TRIGGER refusal")

    def test_message_that_cannot_be_encoded_changes_nothing(self) -> None:
        self.store.append([message("before")])
        self.assertRaises(UnicodeEncodeError, self.store.append, [message("a"), message("\ud800")])
        self.assertTrue(self.store.is_open)
        self.assertEqual(self.store.append([message("after")]), [2])
        self.assertEqual(self.rows("SELECT content, to_place FROM message"), [("before", 1), ("after", 2)])

    def test_every_character_of_content_is_kept(self) -> None:
        characters = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
        contents = [characters[start : start + 4096] for start in range(0, len(characters), 4096)]
        self.store.append([message(content) for content in contents])
        self.assertEqual([row.content for row in SqliteMessageReader(self.path).messages()], contents)

    def test_every_character_of_a_uid_is_kept(self) -> None:
        characters = [chr(code) for code in (*range(1, 0x3000), *range(0xFF00, 0x10010), 0x1F600, 0x10FFFF)]
        names = [f"{character}1" for character in characters]
        for batch in range(2):
            self.store.append([message(from_uid=name, to_uid=name) for name in names])
            self.assertEqual(self.rows("SELECT uid, last_place FROM inbox"), [(n, batch + 1) for n in sorted(names)])
            self.store.close()
            self.store.open()
        self.assertEqual(self.rows("SELECT from_uid FROM message LIMIT 20000"), [(n,) for n in names * 2][:20000])

    def test_large_batch_is_split_into_blocks(self) -> None:
        self.store.append([message("alone")])
        numbers = self.store.append([message(str(number)) for number in range(2 * MAX_BLOCK_MESSAGES + 1)])
        self.assertEqual(numbers, list(range(2, 2 * MAX_BLOCK_MESSAGES + 3)))
        self.assertEqual(
            self.rows("SELECT first_number, json_array_length(messages) FROM block"),
            [
                (1, 1),
                (2, MAX_BLOCK_MESSAGES),
                (MAX_BLOCK_MESSAGES + 2, MAX_BLOCK_MESSAGES),
                (2 * MAX_BLOCK_MESSAGES + 2, 1),
            ],
        )
        self.assertEqual(self.rows("SELECT number FROM message"), [(number,) for number in [1, *numbers]])

    def test_large_messages_are_in_small_blocks(self) -> None:
        large = "x" * 16_384
        self.store.append([message("small"), *[message(large)] * 30, message("last")])
        blocks = self.rows("SELECT first_number, length(messages), json_array_length(messages) FROM block")
        self.assertEqual(
            [first for first, _, _ in blocks], [1 + sum(n for *_, n in blocks[:i]) for i in range(len(blocks))]
        )
        self.assertLessEqual(max(size for _, size, _ in blocks), MAX_BLOCK_SIZE)
        self.assertGreaterEqual(len(blocks), 9)
        self.store.append([message("y" * 3 * MAX_BLOCK_SIZE)])  # more than the relay takes
        expected = ["small", *[large] * 30, "last", "y" * 3 * MAX_BLOCK_SIZE]
        self.assertEqual(self.rows("SELECT content FROM message"), [(content,) for content in expected])

    def test_places_are_read_again_after_reopening(self) -> None:
        self.store.append([message()])
        self.store.close()
        other = self.opened(self.path)
        other.append([message(), message()])
        other.close()
        self.store.open()
        self.assertEqual(self.store.append([message()]), [4])
        self.assertEqual(self.rows("SELECT to_place FROM message"), [(1,), (2,), (3,), (4,)])

    def test_places_are_correct_before_and_after_they_are_saved(self) -> None:
        with patch("chatrelay.messagelog.sqlite.store.MESSAGES_PER_SAVE", 3):
            for to_uid in (2, 3, 4, 5, 2, 3, 4, 5):
                self.store.append([message(to_uid=to_uid)])
        self.assertEqual(self.rows("SELECT from_place FROM message"), [(place,) for place in range(1, 9)])
        self.assertEqual(self.rows("SELECT to_place FROM message"), [(1,)] * 4 + [(2,)] * 4)
        self.assertEqual(self.rows("SELECT number FROM saved_through"), [(6,)])
        self.assertEqual(self.rows("SELECT * FROM unsaved_inbox"), [("1", 8), ("4", 2), ("5", 2)])
        self.assertEqual(
            self.rows("SELECT uid, last_place FROM inbox"), [("1", 8), ("2", 2), ("3", 2), ("4", 2), ("5", 2)]
        )

    def test_open_saves_places_that_a_crash_left_unsaved(self) -> None:
        self.store.append([message(), message(from_uid=3, to_uid=1)])
        self.assertEqual(self.rows("SELECT uid, last_place FROM saved_inbox"), [])
        self.store.close()  # as after a crash: closing writes nothing
        self.store.open()
        self.assertEqual(self.rows("SELECT uid, last_place FROM saved_inbox"), [("1", 2), ("2", 1), ("3", 1)])
        self.assertEqual(self.rows("SELECT * FROM unsaved_inbox"), [])
        self.store.append([message()])
        self.assertEqual(self.rows("SELECT uid, last_place FROM inbox"), [("1", 3), ("2", 2), ("3", 1)])

    def test_mark_beyond_the_last_message_marks_no_later_message(self) -> None:
        self.store.append([message("a")])
        self.store.mark_undelivered([1, 2])
        self.store.append([message("b")])
        self.assertEqual([row.delivered for row in SqliteMessageReader(self.path).messages()], [False, True])

    def test_batch_of_an_unknown_commit_that_is_found_stands_where_its_ids_are_unique(self) -> None:
        self.store.append([message("kept")])
        batch = [message(str(number)) for number in range(MAX_BLOCK_MESSAGES)] + [message("v2", unique_id="id-id-id")]
        fail_commits(self.store, commits=True)
        self.assertRaises(LogUnavailable, self.store.append, batch)
        self.assertEqual((self.store.is_in_doubt, batch[-1].from_place), (True, 0))
        self.assertEqual(self.store.open(), True)
        self.assertEqual((self.store.is_in_doubt, batch[-1].from_place), (False, MAX_BLOCK_MESSAGES + 2))
        self.assertEqual(
            [row.delivered for row in SqliteMessageReader(self.path).messages()],
            [True, *[False] * MAX_BLOCK_MESSAGES, True],
        )
        self.assertEqual(self.store.append([message()]), [MAX_BLOCK_MESSAGES + 3])

    def test_batch_of_an_unknown_commit_that_is_not_found_has_no_places(self) -> None:
        batch = [message("v1"), message("v2", unique_id="id-id-id")]
        fail_commits(self.store, commits=False)
        self.assertRaises(LogUnavailable, self.store.append, batch)
        self.assertEqual((self.store.is_in_doubt, self.store.open()), (True, False))
        self.assertEqual([(each.from_place, each.to_place) for each in batch], [(0, 0), (0, 0)])
        self.assertEqual(self.store.append([message()]), [1])

    def test_batch_of_another_relay_is_not_taken_for_the_one_in_doubt(self) -> None:
        fail_commits(self.store, commits=False)
        self.assertRaises(LogUnavailable, self.store.append, [message("lost")])
        other = self.opened(self.path)
        other.append([message("of another relay")])
        other.close()
        self.assertEqual(self.store.open(), False)
        (row,) = SqliteMessageReader(self.path).messages()
        self.assertEqual((row.content, row.delivered), ("of another relay", True))

    def test_batch_that_fails_before_its_commit_is_not_in_doubt(self) -> None:
        self.refuse_writing("block")
        self.assertRaises(LogUnavailable, self.store.append, [message()])
        self.assertEqual(self.store.is_in_doubt, False)
        self.allow_writing()
        self.assertEqual(self.store.open(), None)

    def test_log_of_the_first_schema_is_migrated(self) -> None:
        path = self.mktemp()
        rows = [
            (1, "a", 1, "7", 1, "id", "007", 'h"e\\j\n\x01é😀', 123, 1),
            (2, "a", 2, "b", 1, 2**53, -7, "", 124, 0),
        ]
        with closing(sqlite3.connect(path)) as old:
            old.executescript(f"{MIGRATIONS[0]}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1")
            old.executemany(f"INSERT INTO message VALUES ({'?, ' * 9}?)", rows)
            old.executemany("INSERT INTO inbox VALUES (?, ?)", [("a", 2), ("b", 1), ("7", 1)])
            old.commit()
        self.assertIn(
            "older chatrelay", str(self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages()))
        )
        store = self.opened(path)
        self.assertEqual(store.append([Message("a", "b", 3, 3, "new", 0.000125)]), [3])
        with closing(sqlite3.connect(path)) as connection:
            columns = (
                "number, from_uid, from_place, to_uid, to_place, client_id, time_stamp, content, received_at, delivered"
            )
            self.assertEqual(
                connection.execute(f"SELECT {columns} FROM message").fetchall(),
                [*rows, (3, "a", 3, "b", 2, 3, 3, "new", 125, 1)],
            )

    def test_failed_marks_are_written_by_the_next_open(self) -> None:
        self.store.append([message("a"), message("b")])
        self.store.close()
        self.assertRaises(LogUnavailable, self.store.mark_undelivered, [2])
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with patch("chatrelay.messagelog.sqlite.store.LOCK_WAIT_SECONDS", 0):
                self.assertIn("locked", str(self.assertRaises(LogUnavailable, self.store.open)))
        self.store.open()
        self.assertEqual([row.delivered for row in SqliteMessageReader(self.path).messages()], [True, False])

    def test_open_forgets_revocations_that_are_over_and_nothing_else(self) -> None:
        marks = [Mark("", MarkKind.REVOKED, name, value) for name, value in (("aa", 999), ("bb", 1000), ("cc", 2000))]
        others = [Mark("1", MarkKind.READ, "2", 5), Mark("", MarkKind.READ, "2", 5)]
        self.store.add_marks([*marks, *others])
        self.store.write_marks()
        self.store.close()
        store = self.opened(self.path, MIGRATIONS, lambda: 1000.5)
        store.close()
        kept = self.rows("SELECT user, kind, peer, value FROM mark")
        self.assertEqual(kept, [("", 2, "2", 5), ("", 5, "bb", 1000), ("", 5, "cc", 2000), ("1", 2, "2", 5)])

    def test_open_rewrites_and_syncs_the_write_ahead_log(self) -> None:
        # Some of it may be what a failed sync was to write, and be on no disk.
        self.store.append([message("acknowledged")])
        copy = SqliteStore(f"{self.path}-after-a-crash")
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{copy.path}{suffix}")
        before = Path(f"{copy.path}-wal").read_bytes()
        self.assertGreater(len(before), 0)
        calls: list[object] = []
        with (
            patch("os.pwrite", side_effect=lambda fd, data, offset: calls.append((data, offset)) or len(data)),
            patch("os.fdatasync", side_effect=lambda fd: calls.append("synced")),
        ):
            copy.open()
        copy.close()
        self.assertTrue(calls[:2] == [(before, 0), "synced"])  # not assertEqual, which would print them

    def test_write_ahead_log_that_cannot_be_synced_is_not_appended_to(self) -> None:
        self.store.append([message("acknowledged")])
        copy = SqliteStore(f"{self.path}-after-a-crash")
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{copy.path}{suffix}")
        with patch("os.fdatasync", side_effect=OSError(5, "Input/output error")), self.assertRaises(LogUnavailable):
            copy.open()
        self.assertFalse(copy.is_open)
        copy.open()
        copy.close()
        self.assertEqual([row.content for row in SqliteMessageReader(copy.path).messages()], ["acknowledged"])

    def test_second_relay_is_refused(self) -> None:
        error = self.assertRaises(LogUnavailable, SqliteStore(self.path).open)
        self.assertIn("in use by another chatrelay", str(error))
        self.store.close()
        self.opened(self.path)

    def test_append_to_a_moved_file_is_refused(self) -> None:
        self.store.append([message("a")])
        os.rename(self.path, self.path + ".moved")
        error = self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])
        self.assertIn("was removed, replaced or cut", str(error))
        self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])
        self.store.open()
        self.assertEqual(self.store.append([message("b")]), [1])
        self.assertEqual([row.content for row in SqliteMessageReader(self.path).messages()], ["b"])

    def test_append_after_the_write_ahead_log_was_removed_is_refused(self) -> None:
        self.store.append([message("a")])
        os.remove(self.path + "-wal")
        self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])

    def test_append_to_a_truncated_file_is_refused(self) -> None:
        self.store.append([message("a")])
        os.truncate(self.path, 0)
        self.assertRaises(LogUnavailable, self.store.append, [message("lost?")])

    def test_batch_in_doubt_is_not_found_in_another_file(self) -> None:
        fail_commits(self.store, commits=True)
        self.assertRaises(LogUnavailable, self.store.append, [message("a")])
        other = self.opened(self.mktemp())
        other.append([message("innocent")])
        other.close()
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.remove(self.path + suffix)
        os.replace(other.path, self.path)
        self.assertEqual(self.store.open(), False)
        self.assertEqual(
            [(row.content, row.delivered) for row in SqliteMessageReader(self.path).messages()], [("innocent", True)]
        )

    def test_file_of_another_program_is_refused(self) -> None:
        path = self.mktemp()
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE theirs (a)")
        error = self.assertRaises(LogUnavailable, SqliteStore(path).open)
        self.assertIn("belongs to another program", str(error))
        error = self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages())
        self.assertIn("not a message log", str(error))

    def test_file_that_is_not_a_database_is_refused(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"not a database at all, but long enough to be taken for one" * 100)
        error = str(self.assertRaises(LogUnavailable, SqliteStore(path).open))
        self.assertIn(f"{os.path.abspath(path)} is not a message log, but a file of another kind", error)
        error = str(self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages()))
        self.assertEqual(error, f"{path} is not a message log of chatrelay")
        self.assertFalse(os.path.exists(f"{path}.lock"))

    def test_missing_folder_is_reported(self) -> None:
        error = self.assertRaises(LogUnavailable, SqliteStore(self.mktemp() + "/log.sqlite3").open)
        self.assertIn("there is no folder", str(error))

    def test_reading_does_not_make_a_missing_log(self) -> None:
        path = self.mktemp()
        self.assertIn(
            "there is no message log",
            str(self.assertRaises(LogUnavailable, list, SqliteMessageReader(path).messages())),
        )
        self.assertFalse(os.path.exists(path))

    def test_old_file_is_migrated_and_newer_file_is_refused(self) -> None:
        self.store.append([message("old")])
        self.store.close()
        newer = (*MIGRATIONS, "ALTER TABLE block ADD COLUMN seen INTEGER NOT NULL DEFAULT 0")
        store = self.opened(self.path, newer)
        store.append([message("new")])
        self.assertEqual(self.rows("SELECT content FROM message"), [("old",), ("new",)])
        self.assertEqual(self.rows("SELECT first_number, seen FROM block"), [(1, 0), (2, 0)])
        self.assertEqual(self.rows("PRAGMA user_version"), [(len(newer),)])
        store.close()
        error = self.assertRaises(LogUnavailable, SqliteStore(self.path).open)
        text = f"made by a newer chatrelay (schema {len(newer)}, this one knows {len(MIGRATIONS)})"
        self.assertIn(text, str(error))
        error = self.assertRaises(LogUnavailable, list, SqliteMessageReader(self.path).messages())
        self.assertIn(f"{text}: use that version", str(error))

    def test_failed_migration_changes_nothing(self) -> None:
        self.store.append([message("old")])
        self.store.close()
        broken = (*MIGRATIONS, "ALTER TABLE block ADD COLUMN seen INTEGER; SELECT no_such_function()")
        self.assertRaises(LogUnavailable, SqliteStore(self.path, broken).open)
        self.store.open()
        self.assertEqual(self.rows("PRAGMA user_version"), [(len(MIGRATIONS),)])
        self.assertEqual(self.store.append([message("new")]), [2])

    def test_long_log_is_read_in_pages_while_it_grows(self) -> None:
        self.store.append([message(str(number)) for number in range(2500)])
        reader = SqliteMessageReader(self.path).messages()
        first = [next(reader) for _ in range(1000)]
        self.store.append([message("2500")])
        contents = [row.content for row in (*first, *reader)]
        self.assertEqual(contents, [str(number) for number in range(2501)])
