"""The store of a message log in PostgreSQL: two writers, doubtful commits, fences, epochs and migrations.

The server is real. A proxy before it loses what a network could lose.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

import attrs
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.interfaces import CommitUnknown
from chatrelay.messagelog.postgres import PostgresMessageReader, PostgresStore, queries, schema, store
from chatrelay.messagelog.postgres.address import Address, parse
from chatrelay.messagelog.postgres.connection import Connection, ServerError
from chatrelay.model import Conversation, LoggedMessage, LogUnavailable, Mark, MarkKind, Message
from tests.support.message_logs import message
from tests.support.postgres_server import shared_server
from tests.support.tcp_proxy import Fault, Proxy

LOCK_SECONDS = 0.5
"""How long the statements of these tests wait for a lock."""

SESSION = store.SESSION.replace("lock_timeout = '5s'", f"lock_timeout = '{int(LOCK_SECONDS * 1000)}ms'")


LATER = 2_000_000_000_000_000
"""A time after all messages, in microseconds since 1970 UTC."""


def sent(content: str, from_uid: str | int = "a", to_uid: str | int = "b", unique_id: str | None = None) -> Message:
    """Build a message."""
    return message(content, from_uid, to_uid, unique_id=unique_id)


def places(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Return the two places of each message."""
    return [(each.from_place, each.to_place) for each in messages]


class InThread:
    """A call in a thread of its own.

    :ivar error: what it raised.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:
            self.error = error

    def is_waiting(self, seconds: float = 0.2) -> bool:
        """Return whether the call has not ended after some time."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def result(self) -> Any:
        """Return the result of the call, or raise what it raised."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "the call has not ended"
        if self.error is not None:
            raise self.error
        return self._result


class PostgresCase(SynchronousTestCase):
    """A database for each test."""

    def setUp(self) -> None:
        self.server = shared_server()
        self.database = self.server.database(self.addCleanup)
        self.url = self.server.url(self.database)
        self.patch(store, "SESSION", SESSION)

    def opened(self, address: Address | None = None, **options: Any) -> PostgresStore:
        """Return an open store."""
        opened = PostgresStore(address or parse(self.url), **options)
        opened.open()
        self.addCleanup(opened.close)
        return opened

    def logged(self) -> list[LoggedMessage]:
        """Return all messages in the database."""
        return list(PostgresMessageReader(self.url).messages())

    def contents(self) -> list[str]:
        """Return what is in the messages."""
        return [each.content for each in self.logged()]

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as another session, and commit."""
        return self.server.execute(statement, self.database)


class TwoWriters(PostgresCase):
    """Two relays that write to one database at the same time."""

    def test_places_have_no_holes_and_no_writer_is_lost_where_two_write_to_the_same_users(self) -> None:
        batches = 80
        users = ["a", "b", "c", "d"]
        written: dict[int, list[Message]] = {0: [], 1: []}

        def write(writer: int) -> None:
            opened = self.opened()
            for batch in range(batches):
                # Each writer goes round the users in its own direction, so locks in that order would cross.
                order = users[:: 1 if writer else -1]
                batch_messages = [
                    sent(f"{writer} {batch} {index}", order[(batch + index) % 4], order[(batch + index + 1) % 4])
                    for index in range(6)
                ]
                opened.append(batch_messages)
                written[writer] += batch_messages

        for thread in [InThread(lambda writer=writer: write(writer)) for writer in written]:  # type: ignore[misc]
            thread.result()
        found = self.logged()
        self.assertEqual(len(found), 2 * batches * 6)
        for user in users:
            taken = sorted(
                place
                for each in found
                for uid, place in ((each.from_uid, each.from_place), (each.to_uid, each.to_place))
                if uid == user
            )
            self.assertEqual(taken, list(range(1, len(taken) + 1)))
        by_content = {each.content: (each.from_place, each.to_place) for each in found}
        for each in written[0] + written[1]:
            self.assertEqual((each.from_place, each.to_place), by_content[each.content])
        # The places of one writer's messages to a user keep its order.
        for messages in written.values():
            mine = [each.to_place for each in messages if each.to_uid == "a"]
            self.assertEqual(mine, sorted(mine))

    def test_rows_are_locked_in_one_order_so_that_no_writer_waits_for_another_that_waits_for_it(self) -> None:
        counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        (before,) = self.execute(counted)[0]
        users = [f"user {number}" for number in range(40)]

        def write(step: int) -> None:
            opened = self.opened()
            for batch in range(40):
                shuffled = [users[(batch + step * index) % 40] for index in range(40)]
                opened.append([sent("", shuffled[index - 1], shuffled[index]) for index in range(40)])

        for thread in [InThread(lambda step=step: write(step)) for step in (1, 39, 7)]:  # type: ignore[misc]
            thread.result()
        (after,) = self.execute(counted)[0]
        self.assertEqual(after - before, 0)

    def test_id_that_another_writer_commits_meanwhile_gets_the_places_of_that_message(self) -> None:
        first, second = self.opened(), self.opened()
        connection = first._connection
        assert connection is not None
        connection.run("BEGIN")
        (number,) = first.append([sent("first", unique_id="id-id-id-1")])
        again = [sent("new", unique_id="id-id-id-2"), sent("again", unique_id="id-id-id-1"), sent("newer")]
        waiting = InThread(lambda: second.append(again))
        self.assertTrue(waiting.is_waiting())
        connection.run("COMMIT")
        numbers = waiting.result()
        self.assertEqual(numbers[1], number)
        self.assertEqual(places(again), [(2, 2), (1, 1), (3, 3)])
        self.assertEqual(self.contents(), ["first", "new", "newer"])

    def test_id_that_is_repeated_in_a_batch_is_written_once(self) -> None:
        opened = self.opened()
        batch = [
            sent("a", unique_id="id-id-id-1"),
            sent("b", "b", "a", "id-id-id-1"),
            sent("c", unique_id="id-id-id-1"),
        ]
        numbers = opened.append(batch)
        self.assertEqual((numbers[0], places(batch)), (numbers[2], [(1, 1), (2, 2), (1, 1)]))
        self.assertEqual(opened.append(batch), numbers)
        self.assertEqual(self.contents(), ["a", "b"])

    def test_id_is_unique_for_the_time_in_which_it_may_be_sent_again(self) -> None:
        opened = self.opened(again_seconds=10)
        for at, number in ((100.0, 1), (109.9, 1), (110.1, 2), (120.0, 2)):
            each = message("a", unique_id="id-id-id-1", received_at=at)
            self.assertEqual((opened.append([each])[0] > 1, each.to_place), (number > 1, number))

    def test_id_is_unique_for_ever_without_a_limit(self) -> None:
        opened = self.opened(again_seconds=0)
        for at in (100.0, 2e9):
            each = message("a", unique_id="id-id-id-1", received_at=at)
            self.assertEqual((opened.append([each]), each.to_place), ([1], 1))
        self.assertEqual((opened.drop_ids(), len(self.execute("SELECT * FROM chatrelay.sent_id"))), (False, 1))

    def test_old_ids_are_deleted_and_newer_ones_kept(self) -> None:
        now = 1_700_000_100.0
        opened = self.opened(again_seconds=50, now=lambda: now)
        opened.append([message(unique_id=f"id-id-id-{at}", received_at=1_700_000_000.0 + at) for at in range(100)])
        with patch.object(store, "MAX_DROPPED_IDS", 30):
            self.assertEqual([opened.drop_ids(), opened.drop_ids()], [True, False])
        (kept,) = self.execute("SELECT count(*), min(client_id) FROM chatrelay.sent_id")
        self.assertEqual(kept, (50, "id-id-id-50"))


class Trimming(PostgresCase):
    """Relays that delete old messages, and other sessions on the same database."""

    def test_relays_that_write_and_trim_at_once_never_deadlock_and_lose_no_place(self) -> None:
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        (before,) = self.execute(deadlocks)[0]
        users = [f"user {number}" for number in range(40)]
        is_done = threading.Event()

        def write(step: int) -> None:
            opened = self.opened()
            for batch in range(30):
                shuffled = [users[(batch + step * index) % 40] for index in range(40)]
                opened.append([sent("", shuffled[index - 1], shuffled[index]) for index in range(40)])
                opened.save_marks([Mark(user, MarkKind.READ, users[0], batch) for user in users])

        def trim() -> int:
            opened = self.opened()
            deleted = 0
            while True:
                is_last = is_done.is_set()
                count = opened.trim(LATER)
                deleted += count
                if is_last and not count:
                    return deleted

        writers = [InThread(lambda step=step: write(step)) for step in (1, 39)]  # type: ignore[misc]
        trimmers = [InThread(trim), InThread(trim)]
        for thread in writers:
            thread.result()
        is_done.set()
        self.assertEqual(sum(thread.result() for thread in trimmers), 2 * 30 * 40)
        self.assertEqual(self.execute(deadlocks)[0][0] - before, 0)
        self.assertEqual(self.contents(), [])
        inboxes = self.execute("SELECT first_place, last_place FROM chatrelay.inbox")
        self.assertEqual(sum(last for _, last in inboxes), 2 * 2 * 30 * 40)
        self.assertEqual([first - 1 for first, _ in inboxes], [last for _, last in inboxes])

    def test_one_relay_deletes_at_a_time(self) -> None:
        opened, other = self.opened(), Connection(parse(self.url))
        self.addCleanup(other.close)
        opened.append([sent("a")])
        other.run(f"BEGIN; SELECT pg_advisory_xact_lock({store._TRIM_LOCK})")
        self.assertEqual((opened.trim(LATER), self.contents()), (0, ["a"]))
        other.run("ROLLBACK")
        self.assertEqual((opened.trim(LATER), self.contents()), (1, []))

    def test_lock_of_another_session_puts_deleting_off_and_the_log_stays_open(self) -> None:
        opened, other = self.opened(), Connection(parse(self.url))
        self.addCleanup(other.close)
        opened.append([sent("a")])
        other.run("BEGIN; SELECT 1 FROM chatrelay.inbox FOR UPDATE")
        self.assertEqual((opened.trim(LATER), opened.is_open), (0, True))
        other.run("ROLLBACK")
        self.assertEqual(opened.trim(LATER), 1)

    def test_places_go_on_after_every_message_was_deleted_and_the_relay_started_again(self) -> None:
        opened = self.opened()
        opened.append([sent("a"), sent("b")])
        self.assertEqual((opened.trim(LATER), opened.trim(LATER)), (2, 0))
        opened.close()
        later = [sent("c")]
        self.assertEqual(self.opened().append(later), [3])
        self.assertEqual(places(later), [(3, 3)])

    def test_lost_connection_is_reported_and_deleting_is_repeated(self) -> None:
        opened = self.opened()
        opened.append([sent("a")])
        self.server.end_sessions(self.database)
        self.assertRaises(LogUnavailable, opened.trim, LATER)
        self.assertEqual(opened.is_open, False)
        opened.open()
        self.assertEqual(opened.trim(LATER), 1)


class DoubtfulCommits(PostgresCase):
    """Commits whose answer was lost, and batches that come late."""

    def setUp(self) -> None:
        super().setUp()
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)
        self.store = self.opened(parse(self.server.url(self.database, port=self.proxy.port)))
        self.store.append([sent("before")])

    def doubtful(self, batch: Sequence[Message], fault: Fault) -> CommitUnknown:
        """Append a batch, and lose it or its answer."""
        self.proxy.set_fault(fault)
        error = self.assertRaises(CommitUnknown, self.store.append, batch)
        self.assertTrue(self.proxy.happened.wait(5))
        self.assertEqual((self.store.is_open, self.store.take_settled()), (False, []))
        return error

    def settled(self) -> bool:
        """Open the store again; return whether the doubtful batch is in the log."""
        self.store.open()
        ((_, is_committed),) = self.store.take_settled()
        return is_committed

    def test_lost_answer_is_found_out_and_nothing_is_written_twice(self) -> None:
        for turn in range(1, 11):
            batch = [sent(f"v1 {turn}"), sent(f"v2 {turn}", unique_id=f"id-id-id-{turn}")]
            outcome = self.doubtful(batch, Fault.LOSE_ANSWER).outcome
            self.assertNoResult(outcome)  # type: ignore[no-untyped-call]
            self.assertEqual(self.settled(), True)
            self.assertEqual(places(batch), [(2 * turn, 2 * turn), (2 * turn + 1, 2 * turn + 1)])
        found = self.logged()
        self.assertEqual(
            [(each.content, each.delivered) for each in found[1:]],
            [row for turn in range(1, 11) for row in ((f"v1 {turn}", False), (f"v2 {turn}", True))],
        )

    def test_lost_request_is_found_out_and_the_log_goes_on(self) -> None:
        for turn in range(1, 11):
            batch = [sent("lost", unique_id=f"id-id-id-{turn}")]
            self.doubtful(batch, Fault.LOSE_REQUEST)
            self.assertEqual((self.settled(), places(batch)), (False, [(0, 0)]))
            self.store.append([sent("kept")])
        self.assertEqual(self.contents()[1:], ["kept"] * 10)

    def test_batch_that_reaches_the_server_after_the_next_connection_is_refused_there(self) -> None:
        late = [sent("late")]
        self.doubtful(late, Fault.HOLD_REQUEST)
        self.assertEqual(self.settled(), False)
        self.store.append([sent("next")])
        self.proxy.release()
        self.store.append([sent("last")])
        self.wait_for_idle()
        self.assertEqual(self.contents()[1:], ["next", "last"])

    def test_batch_that_waits_for_a_lock_while_the_relay_connects_again_is_refused(self) -> None:
        self.patch(store, "SESSION", SESSION.replace(f"'{int(LOCK_SECONDS * 1000)}ms'", "'20s'"))
        self.store.open()
        blocker = Connection(parse(self.url))
        self.addCleanup(blocker.close)
        blocker.run("BEGIN; SELECT 1 FROM chatrelay.inbox FOR UPDATE")
        waiting = InThread(lambda: self.store.append([sent("waits")]))
        self.assertTrue(waiting.is_waiting())
        assert self.store._connection is not None
        self.store._connection.abort()
        self.assertRaises(CommitUnknown, waiting.result)
        self.assertEqual(self.settled(), False)
        blocker.run("COMMIT")
        self.wait_for_idle()
        self.store.append([sent("last")])
        self.assertEqual(self.contents()[1:], ["last"])

    def test_commit_that_is_still_under_way_is_waited_for(self) -> None:
        # A standby that does not exist keeps a commit under way, until its session is ended. By then it is committed.
        self.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        self.addCleanup(self.server.execute, "SELECT pg_reload_conf()")
        self.addCleanup(self.server.execute, "ALTER SYSTEM RESET synchronous_standby_names")
        self.server.execute("SELECT pg_reload_conf()")
        batch = [sent("under way")]
        while not (waiting := InThread(lambda: self.store.append(batch))).is_waiting():
            waiting.result()  # the server had not read its settings yet
        assert self.store._connection is not None
        self.store._connection.abort()
        self.assertRaises(CommitUnknown, waiting.result)
        error = self.assertRaises(LogUnavailable, self.store.open)
        self.assertIn("lock", str(error))
        self.assertEqual(self.store.take_settled(), [])
        self.server.execute("ALTER SYSTEM RESET synchronous_standby_names")
        self.server.execute("SELECT pg_reload_conf()")
        self.assertEqual(self.settled(), True)
        self.assertEqual(self.logged()[-1].to_place, batch[0].to_place)

    def test_session_that_is_ended_by_the_operator_is_noticed_and_settled(self) -> None:
        self.server.end_sessions(self.database)
        error = None
        while error is None:  # the proxy needs a moment
            try:
                self.store.check()
            except LogUnavailable as raised:
                error = raised
        self.assertIn("server closed the connection unexpectedly", str(error))
        self.store.open()
        self.store.append([sent("next")])
        self.server.end_sessions(self.database)
        self.assertRaises(CommitUnknown, self.store.append, [sent("lost")])
        self.assertEqual(self.settled(), False)
        self.assertEqual(self.contents()[1:], ["next"])

    def test_marks_of_undelivered_that_failed_are_written_when_it_opens(self) -> None:
        numbers = self.store.append([sent("a"), sent("b")])
        self.server.end_sessions(self.database)
        self.assertRaises(LogUnavailable, self.store.mark_undelivered, numbers[:1])
        self.assertRaises(LogUnavailable, self.store.mark_undelivered, numbers[1:])
        self.store.open()
        self.assertEqual([each.delivered for each in self.logged()], [True, False, False])

    def test_writer_that_was_forgotten_is_refused_and_can_connect_again(self) -> None:
        self.execute("DELETE FROM chatrelay.writer")
        error = self.assertRaises(LogUnavailable, self.store.append, [sent("a")])
        self.assertIn("connected again", str(error))
        self.store.open()
        self.store.append([sent("b")])
        self.assertEqual(self.contents()[1:], ["b"])

    def test_writer_that_closes_is_forgotten_and_one_in_doubt_is_not(self) -> None:
        self.doubtful([sent("a")], Fault.LOSE_ANSWER)
        self.store.close()
        self.assertEqual(len(self.execute("SELECT * FROM chatrelay.writer")), 1)
        self.settled()
        self.store.close()
        self.assertEqual(self.execute("SELECT * FROM chatrelay.writer"), [])

    def test_outcome_is_not_lost_if_opening_fails_after_the_fence_was_raised(self) -> None:
        self.doubtful([sent("a")], Fault.LOSE_ANSWER)
        with patch.object(store, "_IDENTITY", "SELECT 1 / 0"):
            self.assertRaises(LogUnavailable, self.store.open)
        self.assertEqual(self.settled(), True)
        self.assertEqual([each.delivered for each in self.logged()], [True, False])

    def wait_for_idle(self) -> None:
        """Wait until no session of the database is doing anything."""
        active = (
            "SELECT 1 FROM pg_stat_activity "
            "WHERE datname = current_database() AND state <> 'idle' AND pid <> pg_backend_pid()"
        )
        for _ in range(100):
            if not self.execute(active):
                return
            time.sleep(0.05)
        self.fail("a session is busy")  # type: ignore[no-untyped-call]


class Life(PostgresCase):
    """The epoch, the tables and their versions."""

    def test_epoch_stays_while_the_database_stays(self) -> None:
        epoch = self.opened().epoch
        self.assertEqual({self.opened().epoch, self.opened().epoch}, {epoch})

    def test_epoch_changes_with_the_server_the_timeline_the_database_or_the_table(self) -> None:
        opened = self.opened()
        identity = self.execute("SELECT identity FROM chatrelay.life")[0][0].split("/")
        self.assertEqual(len(identity), 4)
        self.assertRegex(identity[1], r"\A[0-9A-F]{8}\Z")
        epochs = {opened.epoch}
        for part in range(4):
            other = [*identity[:part], "1", *identity[part + 1 :]]
            self.execute(f"UPDATE chatrelay.life SET identity = '{'/'.join(other)}'")
            opened.open()
            epochs.add(opened.epoch)
        self.assertEqual(len(epochs), 5)
        self.assertEqual(self.opened().epoch, opened.epoch)

    def test_copy_of_a_database_has_another_epoch(self) -> None:
        opened = self.opened()
        opened.append([sent("a")])
        opened.close()
        self.server.execute(f"CREATE DATABASE a_copy TEMPLATE {self.database}")
        self.addCleanup(self.server.execute, "DROP DATABASE a_copy WITH (FORCE)")
        copy = self.opened(parse(self.server.url("a_copy")))
        self.assertNotEqual(copy.epoch, opened.epoch)
        each = sent("b")
        copy.append([each])
        self.assertEqual(each.to_place, 2)

    def test_pending_marks_are_dropped_with_the_epoch_because_numbers_may_be_others(self) -> None:
        opened = self.opened()
        numbers = opened.append([sent("a")])
        self.server.end_sessions(self.database)
        self.assertRaises(LogUnavailable, opened.mark_undelivered, numbers)
        self.execute("UPDATE chatrelay.life SET identity = 'other'")
        opened.open()
        self.assertEqual([each.delivered for each in self.logged()], [True])

    def test_tables_are_made_once_by_relays_that_start_together(self) -> None:
        threads = [InThread(lambda: self.opened().epoch) for _ in range(4)]
        self.assertEqual(len({thread.result() for thread in threads}), 1)
        self.assertEqual(self.execute("SELECT version FROM chatrelay.schema_version"), [(len(schema.MIGRATIONS),)])

    def test_migration_that_fails_leaves_the_database_as_it_was(self) -> None:
        connection = Connection(parse(self.url))
        self.addCleanup(connection.close)
        broken = (*schema.MIGRATIONS, "CREATE TABLE chatrelay.extra (); SELECT 1 / 0")
        with patch.object(schema, "MIGRATIONS", broken):
            self.assertRaises(ServerError, schema.migrate, connection)
        self.assertEqual(self.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'chatrelay'"), [])
        schema.migrate(connection)
        with patch.object(schema, "MIGRATIONS", broken):
            self.assertRaises(ServerError, schema.migrate, connection)
        self.assertEqual(self.execute("SELECT to_regclass('chatrelay.extra')::text"), [(None,)])
        self.opened().append([sent("a")])

    def test_next_migration_keeps_the_messages(self) -> None:
        self.opened().append([sent("a")])
        steps = (*schema.MIGRATIONS, "ALTER TABLE chatrelay.message ADD COLUMN extra integer")
        with patch.object(schema, "MIGRATIONS", steps):
            self.opened().append([sent("b")])
            self.assertEqual(self.contents(), ["a", "b"])
        error = self.assertRaises(LogUnavailable, self.opened)
        self.assertIn("made by a newer chatrelay (schema 2, this one knows 1): use that version", str(error))
        error = self.assertRaises(LogUnavailable, self.contents)
        self.assertIn("made by a newer chatrelay", str(error))

    def test_commit_waits_for_the_sync_even_if_the_server_is_set_otherwise(self) -> None:
        for given, used in (("off", b"on"), ("local", b"on"), ("remote_apply", b"remote_apply")):
            self.execute(f"ALTER DATABASE {self.database} SET synchronous_commit = {given}")
            self.addCleanup(self.execute, f"ALTER DATABASE {self.database} RESET synchronous_commit")
            opened = self.opened()
            assert opened._connection is not None
            self.assertEqual(opened._connection.query("SHOW synchronous_commit"), [(used,)])

    def test_statements_use_the_indexes_before_the_table_is_analysed(self) -> None:
        self.opened().close()
        before = self.scans(0)
        opened = self.opened()
        for turn in range(3):
            opened.append([sent("a", index % 50, index % 49, f"id-id-{turn}-{index}") for index in range(500)])
        reader = opened._connection
        assert reader is not None
        queries.entries(reader, "1", 0, 100, 10, 100)
        queries.history(reader, "1", "2", None, None, 100, 10, 100)
        queries.conversations(reader, "1", None, 100, 10, 100)
        queries.progress(reader, "1", [Conversation("2"), Conversation("3", received=9, read=5)], 100, 10)
        queries.find(reader, "1", "id-id-0-1", 0)
        queries.has_written(reader, "1", "2")
        queries.writers(reader, "1", ["2", "3"])
        queries.place_of_sender(reader, "1", "2", 100)
        queries.marks(reader, [("1", MarkKind.READ, "2")])
        opened.save_marks([Mark("1", MarkKind.READ, "2", 1)])
        self.assertEqual(opened.trim(LATER), store.MAX_TRIMMED)
        opened.close()
        self.assertEqual(self.scans(1500), before)

    def scans(self, messages: int) -> list[tuple[Any, ...]]:
        """Return how often each table was read as a whole, once the statistics have a number of messages."""
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        while self.execute(f"SELECT 1 {others} AND backend_type = 'client backend'"):
            time.sleep(0.05)  # a session reports its statistics before it has ended
        inserted = dict(self.execute("SELECT relname, n_tup_ins FROM pg_stat_user_tables"))
        self.assertEqual(inserted["message"], messages)
        return self.execute(
            "SELECT relname, seq_scan FROM pg_stat_user_tables "
            "WHERE relname IN ('message', 'sent_id', 'inbox', 'mark') ORDER BY relname"
        )


class Failures(PostgresCase):
    """What an operator reads when the database can't be used."""

    def refused(self, url: str) -> str:
        """Return why a log can't be opened."""
        address = parse(url)
        error = str(self.assertRaises(LogUnavailable, PostgresStore(address).open))
        self.assertTrue(error.startswith(f"the message log {address.name} cannot be written: "), error)
        return error

    def with_user(self, name: str, options: str = "") -> str:
        """Make a user; return the URL with it."""
        self.server.execute(f"CREATE ROLE {name} LOGIN {options}")
        self.addCleanup(self.server.execute, f"DROP ROLE {name}")
        return self.server.url(self.database, user=name)

    def test_server_that_is_away(self) -> None:
        proxy = Proxy(self.server.port)
        proxy.close()
        error = self.refused(self.server.url(self.database, port=proxy.port))
        self.assertIn("Connection refused", error)
        self.assertIn("see whether PostgreSQL runs there and listens on that address", error)

    def test_unknown_host(self) -> None:
        self.assertIn("check the host in the URL", self.refused("postgresql://postgres@no-such-host.invalid/x"))

    def test_unknown_database_and_unknown_user(self) -> None:
        error = self.refused(self.server.url("nowhere"))
        self.assertIn('database "nowhere" does not exist: make the database: CREATE DATABASE nowhere', error)
        error = self.refused(self.server.url(self.database, user="nobody_known"))
        self.assertIn('role "nobody_known" does not exist: make the user: CREATE ROLE nobody_known LOGIN', error)

    def test_wrong_password_and_no_password(self) -> None:
        url = self.with_user("with_password", "PASSWORD 'right'")
        self.assertIn("no password supplied: give the password in a password file", self.refused(url))
        error = self.refused(url.replace("with_password@", "with_password:s3cret@"))
        self.assertIn("check the user and the password: in a password file (~/.pgpass", error)
        self.assertNotIn("s3cret", error)

    def test_password_file_is_read(self) -> None:
        url = self.with_user("with_password", "PASSWORD 'right'")
        self.execute(f"GRANT CREATE ON DATABASE {self.database} TO with_password")
        self.addCleanup(self.execute, "DROP OWNED BY with_password")
        path = self.mktemp()  # type: ignore[no-untyped-call]
        with open(path, "w", encoding="ascii") as file:
            file.write(f"127.0.0.1:{self.server.port}:*:with_password:right\n")
        os.chmod(path, 0o600)
        self.opened(parse(f"{url}&passfile={os.path.abspath(path)}")).append([sent("a")])

    def test_user_who_may_not_log_in_from_here(self) -> None:
        url = self.with_user("rejected")
        self.assertIn("allow this user to log in to this database from this host", self.refused(url))

    def test_user_without_rights(self) -> None:
        url = self.with_user("powerless")
        error = self.refused(url)
        self.assertIn(f"permission denied for database {self.database}: give the user powerless that right", error)
        self.opened().close()
        error = self.refused(url)
        self.assertIn("permission denied for schema chatrelay: give the user powerless that right", error)

    def test_database_that_is_read_only(self) -> None:
        self.execute(f"ALTER DATABASE {self.database} SET default_transaction_read_only = on")
        self.addCleanup(self.server.execute, f"ALTER DATABASE {self.database} RESET default_transaction_read_only")
        self.assertIn("ALTER DATABASE … SET default_transaction_read_only = off", self.refused(self.url))

    def test_server_that_is_too_old(self) -> None:
        self.patch(schema, "MIN_SERVER_VERSION", 990_000)
        self.assertRegex(self.refused(self.url), r"the server is PostgreSQL \d+, and chatrelay needs 99 or newer")

    def test_lock_of_another_session(self) -> None:
        opened = self.opened()
        opened.append([sent("a")])
        other = Connection(parse(self.url))
        self.addCleanup(other.close)
        other.run("BEGIN; LOCK TABLE chatrelay.inbox")
        began = time.monotonic()
        error = str(self.assertRaises(LogUnavailable, opened.append, [sent("b")]))
        self.assertLess(time.monotonic() - began, LOCK_SECONDS + 5)
        self.assertIn("another session holds a lock on the tables: SELECT pid, state, query FROM", error)
        other.run("ROLLBACK")
        opened.open()
        opened.append([sent("c")])
        self.assertEqual(self.contents(), ["a", "c"])

    def test_encoding_without_a_character(self) -> None:
        self.server.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        self.addCleanup(self.server.execute, "DROP DATABASE latin WITH (FORCE)")
        opened = self.opened(parse(self.server.url("latin")))
        error = str(self.assertRaises(LogUnavailable, opened.append, [sent("\u0416")]))
        self.assertIn("make a database whose encoding is UTF8", error)

    def test_tls_is_verified(self) -> None:
        if not self.server.has_tls:
            raise SkipTest("this PostgreSQL was built without TLS (Debian: postgresql)")
        host = f"postgresql://postgres@localhost:{self.server.port}/{self.database}?gssencmode=disable"
        self.opened(parse(f"{host}&sslmode=verify-full&sslrootcert={self.server.authority}")).append([sent("a")])
        (user,) = self.execute(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND datname = current_database()"
        )
        self.assertEqual(user, (1,))
        other = self.server.authority.replace("authority.pem", "server.pem")
        error = self.refused(f"{host}&sslmode=verify-full&sslrootcert={other}")
        self.assertIn("check sslmode and sslrootcert in the URL", error)
        by_number = host.replace("localhost", "127.0.0.1")
        error = self.refused(f"{by_number}&sslmode=verify-full&sslrootcert={self.server.authority}")
        self.assertIn("the name in the server's certificate", error)

    def test_password_is_in_no_error(self) -> None:
        address = parse(self.url)
        with_password = attrs.evolve(
            address, conninfo=make_conninfo(**conninfo_to_dict(address.conninfo), password="s3cr!t"), hidden=("s3cr!t",)
        )
        opened = self.opened(with_password)
        assert opened._connection is not None
        error = self.assertRaises(ServerError, opened._connection.query, "SELECT 's3cr!t'::integer")
        self.assertIn("***", str(error))
        self.assertNotIn("s3cr", str(error))
