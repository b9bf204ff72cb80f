"""A message log in PostgreSQL with its threads, while the server is killed, stopped, taken over, or out of reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, Logger
from twisted.trial.unittest import TestCase

from chatrelay.interfaces import CommitUnknown
from chatrelay.messagelog.postgres import PostgresMessageLog, PostgresMessageReader, connection, inbox_reader, writer
from chatrelay.model import InboxState, LogBusy, LogUnavailable, Mark, MarkKind, Message
from tests.support.message_logs import message
from tests.support.postgres_server import shared_server
from tests.support.tcp_proxy import Fault, Proxy

PATIENCE = 30.0
"""Seconds after which a log that should be open again counts as lost."""


def sleep(seconds: float) -> Deferred[None]:
    """Wait in the reactor."""
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)  # type: ignore[attr-defined]
    return waiting


class LogCase(TestCase):
    """A database for each test, and a log with its threads."""

    timeout = 60

    def setUp(self) -> None:
        self.server = shared_server()
        self.database = self.server.database(self.addCleanup)
        self.url = self.server.url(self.database)
        self.events: list[LogEvent] = []
        self.patch(writer, "log", Logger("chatrelay.messagelog", observer=self.events.append))
        # The waits are shorter here than in earnest.
        self.patch(writer, "MIN_RETRY_SECONDS", 0.05)
        self.patch(writer, "MAX_RETRY_SECONDS", 0.2)
        self.patch(writer, "CHECK_SECONDS", 0.05)

    def started(self, url: str | None = None) -> PostgresMessageLog:
        """Return a started log."""
        log = PostgresMessageLog(url or self.url, reactor)  # type: ignore[arg-type]
        log.start()
        self.addCleanup(log.stop)
        return log

    async def until_open(self, log: PostgresMessageLog, is_open: bool = True) -> None:
        """Wait until a log is open, or closed."""
        deadline = time.monotonic() + PATIENCE
        while log.is_open is not is_open:
            self.assertLess(time.monotonic(), deadline)
            await sleep(0.02)

    async def append(self, log: PostgresMessageLog, *batch: Message) -> str:
        """Append a batch; return "committed", "lost", or "refused", once that is known."""
        try:
            await log.append(batch)
        except CommitUnknown as error:
            return "committed" if await error.outcome else "lost"
        except LogUnavailable:
            return "refused"
        return "committed"

    def logged(self) -> list[tuple[str, int, bool]]:
        """Return the content, the recipient's place and the mark of each message."""
        return [(each.content, each.to_place, each.delivered) for each in PostgresMessageReader(self.url).messages()]

    def texts(self) -> list[str]:
        """Return the formatted log messages."""
        return [str(event["log_format"]).format(**event) for event in self.events]


class Server(LogCase):
    """What happens to the server."""

    async def test_killed_server_keeps_what_was_committed_and_the_log_goes_on_when_it_is_back(self) -> None:
        log = self.started()
        epoch = log.epoch
        self.assertEqual(await self.append(log, message("before")), "committed")
        self.server.kill()
        self.addCleanup(self.restart)
        await self.until_open(log, False)
        self.assertEqual(await self.append(log, message("meanwhile")), "refused")
        with self.assertRaises(LogUnavailable):
            await log.reader.has_written("1", "2")
        await sleep(0.5)  # some attempts fail
        self.restart()
        await self.until_open(log)
        self.assertEqual(await self.append(log, message("after")), "committed")
        self.assertEqual(self.logged(), [("before", 1, True), ("after", 2, True)])
        self.assertEqual(log.epoch, epoch)
        self.assertEqual(self.texts()[-1], f"the message log {log._store.name} can be written again")
        self.assertLess(len(self.texts()), writer.MAX_REASONS + 2)

    def restart(self) -> None:
        """Start the server, if it does not run."""
        try:
            self.server.execute("SELECT 1")
        except Exception:
            self.server.start()

    async def test_server_killed_under_load_has_each_message_as_its_sender_was_told(self) -> None:
        log = self.started()
        told: dict[str, Deferred[str]] = {}
        self.addCleanup(self.restart)
        for number in range(120):
            batch = [message(f"{number} {index}", unique_id=f"id-id-{number}-{index}") for index in range(3)]
            told[str(number)] = Deferred.fromCoroutine(self.append(log, *batch))
            if number == 60:
                self.server.kill()
            await sleep(0.002)
        self.restart()
        await self.until_open(log)
        answers = dict(zip(told, await gatherResults(list(told.values())), strict=True))
        self.assertEqual(await self.append(log, message("last")), "committed")
        found = self.logged()
        self.assertEqual([place for _, place, _ in found], list(range(1, len(found) + 1)))
        committed = [number for number, answer in answers.items() if answer == "committed"]
        self.assertEqual(
            sorted(content for content, _, _ in found[:-1]),
            sorted(f"{number} {index}" for number in committed for index in range(3)),
        )
        self.assertGreater(len(committed), 10)

    async def test_stopped_server_is_given_up_at_the_deadline_and_found_out_about_later(self) -> None:
        self.patch_deadlines()
        log = self.started()
        self.assertEqual(await self.append(log, message("before")), "committed")
        frozen = self.server.freeze()
        self.addCleanup(self.server.thaw, frozen)
        began = time.monotonic()
        error = await self.assertFailure(log.append([message("doubtful", unique_id="id-id-id-1")]), CommitUnknown)
        self.assertLess(time.monotonic() - began, 5)
        self.assertIn("the server did not answer in time", str(error))
        self.assertEqual(log.is_open, False)
        self.assertEqual(await self.append(log, message("refused")), "refused")
        self.server.thaw(frozen)
        is_committed = await error.outcome
        self.assertEqual(await self.append(log, message("after")), "committed")
        doubtful = [("doubtful", 2, True)] if is_committed else []
        self.assertEqual(self.logged(), [("before", 1, True), *doubtful, ("after", 2 + is_committed, True)])

    def patch_deadlines(self) -> None:
        """Wait for an answer for one second only."""
        query = connection.Connection.query

        def impatient(
            each: Any, statement: str, parameters: Any = (), *, binary: bool = False, seconds: float = 1
        ) -> Any:
            return query(each, statement, parameters, binary=binary, seconds=min(seconds, 1.0))

        self.patch(connection.Connection, "query", impatient)
        self.patch(connection, "CONNECT_SECONDS", 2)

    async def test_standby_that_took_over_begins_another_epoch(self) -> None:
        log = self.started()
        self.assertEqual(await self.append(log, message("before")), "committed")
        epoch = log.epoch
        self.server.begin_timeline()
        await self.until_open(log, False)
        await self.until_open(log)
        self.assertEqual(await self.append(log, message("after")), "committed")
        self.assertNotEqual(log.epoch, epoch)
        self.assertEqual(self.logged(), [("before", 1, True), ("after", 2, True)])


class Network(LogCase):
    """What happens between the relay and the server."""

    def setUp(self) -> None:
        super().setUp()
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)
        self.proxied = self.server.url(self.database, port=self.proxy.port)

    async def test_commit_in_doubt_is_settled_before_a_later_batch_is_committed(self) -> None:
        log = self.started(self.proxied)
        await log.append([message("before")])
        for turn in range(1, 6):
            v1, v2 = message(f"v1 {turn}"), message(f"v2 {turn}", unique_id=f"id-id-id-{turn}")
            self.proxy.set_fault(Fault.LOSE_ANSWER)
            events: list[str] = []
            doubtful = self.assertFailure(log.append([v1, v2]), CommitUnknown)
            error = await doubtful
            error.outcome.addCallback(lambda value, events=events: events.append(f"outcome {value}"))
            while not events:
                try:
                    await log.append([message(f"next {turn}")]).addCallback(
                        lambda _, events=events: events.append("next")
                    )
                except LogUnavailable:
                    await sleep(0.01)
            self.assertEqual(events[0], "outcome True")
            self.assertEqual([v1.to_place + 1, v1.from_place + 1], [v2.to_place, v2.from_place])
        found = self.logged()
        self.assertEqual([place for _, place, _ in found], list(range(1, len(found) + 1)))
        self.assertEqual(
            [row for row in found if row[0].startswith("v")],
            [row for row in found if row[0][:2] in ("v1", "v2") and row[2] is (row[0][:2] == "v2")],
        )
        self.assertEqual(len([row for row in found if row[0].startswith("v")]), 10)

    async def test_inbox_after_a_doubtful_batch_has_its_places(self) -> None:
        log = self.started(self.proxied)
        await log.append([message("before")])
        self.proxy.set_fault(Fault.LOSE_ANSWER)
        error = await self.assertFailure(log.append([message("a", unique_id="id-id-id-1")]), CommitUnknown)
        self.assertEqual(await error.outcome, True)
        self.assertEqual(await log.inbox("2"), InboxState(1, 2))

    async def test_marks_of_a_failed_commit_are_refused_and_later_ones_kept(self) -> None:
        log = self.started(self.proxied)
        await log.save_marks([Mark("1", MarkKind.RECEIVED, "", 1)])
        self.proxy.set_fault(Fault.LOSE_REQUEST)
        await self.assertFailure(log.save_marks([Mark("1", MarkKind.RECEIVED, "", 2)]), LogUnavailable)
        await self.until_open(log)
        self.assertEqual((await log.inbox("1")).received, 1)
        await log.save_marks([Mark("1", MarkKind.RECEIVED, "", 3)])
        self.assertEqual((await log.inbox("1")).received, 3)

    async def test_log_that_is_stopped_while_the_server_is_away_ends(self) -> None:
        log = self.started(self.proxied)
        self.proxy.close()
        await self.until_open(log, False)
        waiting = log.append([message("a")])
        stopped = log.stop()
        await self.assertFailure(waiting, LogUnavailable)
        await stopped
        self.assertEqual((log.is_open, log.is_alive), (False, False))

    async def test_outcome_is_learned_at_the_next_start_if_the_log_was_stopped_before(self) -> None:
        self.patch(writer, "MIN_RETRY_SECONDS", 60.0)
        log = self.started(self.proxied)
        await log.append([message("before")])
        log._retry_seconds = 60.0
        self.proxy.set_fault(Fault.LOSE_ANSWER)
        error = await self.assertFailure(log.append([message("a", unique_id="id-id-id-1")]), CommitUnknown)
        outcomes: list[bool] = []
        error.outcome.addCallback(outcomes.append)
        await log.stop()  # which opens the log a last time
        self.assertEqual(outcomes, [True])


class Threads(LogCase):
    """The threads, and what the reactor has to do with them."""

    async def test_batch_takes_one_call_into_the_reactor(self) -> None:
        calls: list[object] = []

        class CountingReactor:
            def callFromThread(self, call: Any, *arguments: Any) -> None:
                calls.append(call)
                reactor.callFromThread(call, *arguments)  # type: ignore[attr-defined]

        log = PostgresMessageLog(self.url, CountingReactor())  # type: ignore[arg-type]
        log.start()
        self.addCleanup(log.stop)
        await log.append([message() for _ in range(300)])
        self.assertEqual(len(calls), 1)

    async def test_marks_of_many_calls_are_written_in_few_statements(self) -> None:
        log = self.started()
        written: list[Sequence[Mark]] = []
        save = log._store.save_marks
        self.patch(log._store, "save_marks", lambda marks: written.append(marks) or save(marks))
        await gatherResults([log.save_marks([Mark("1", MarkKind.READ, str(peer), peer)]) for peer in range(200)])
        self.assertEqual(sum(map(len, written)), 200)
        self.assertLess(len(written), 50)
        keys = [("1", MarkKind.READ, "7"), ("1", MarkKind.READ, "199")]
        self.assertEqual(await log.reader.marks(keys), dict(zip(keys, (7, 199), strict=True)))

    async def test_defect_of_a_call_reaches_its_caller_and_the_log_goes_on(self) -> None:
        log = self.started()
        await self.assertFailure(log.append([message("\ud800")]), UnicodeEncodeError)
        self.assertEqual(await self.append(log, message("next")), "committed")
        self.assertEqual(self.logged(), [("next", 1, True)])

    async def test_reads_beyond_the_limit_are_refused_as_busy(self) -> None:
        self.patch(inbox_reader, "MAX_READS", 3)
        log = self.started()
        blocker = connection.Connection(log._reader._address)
        self.addCleanup(blocker.close)
        blocker.run("BEGIN; LOCK TABLE chatrelay.message")
        reads = [log.reader.has_written("1", "2") for _ in range(20)]
        results: list[object] = []
        for read in reads:
            read.addBoth(lambda result: results.append(getattr(result, "value", result)))
        await sleep(0)
        self.assertTrue(all(isinstance(result, LogBusy) for result in results))
        self.assertGreaterEqual(len(results), 20 - 3 - inbox_reader.READ_THREADS)
        blocker.run("ROLLBACK")
        await gatherResults(reads, consumeErrors=True)
        self.assertEqual(len(results), 20)

    async def test_read_that_waits_for_a_lock_keeps_no_batch_from_being_committed(self) -> None:
        log = self.started()
        await log.append([message("a")])
        blocker = connection.Connection(log._reader._address)
        self.addCleanup(blocker.close)
        blocker.run("BEGIN; LOCK TABLE chatrelay.mark IN ACCESS EXCLUSIVE MODE")
        read = log.reader.marks([("1", MarkKind.READ, "2")])
        self.assertEqual(await self.append(log, message("b")), "committed")
        self.assertNoResult(read)
        blocker.run("ROLLBACK")
        self.assertEqual(await read, {})

    async def test_stop_interrupts_a_read(self) -> None:
        log = self.started()
        blocker = connection.Connection(log._reader._address)
        self.addCleanup(blocker.close)
        blocker.run("BEGIN; LOCK TABLE chatrelay.mark IN ACCESS EXCLUSIVE MODE")
        reads = [log.reader.marks([("1", MarkKind.READ, "2")]) for _ in range(6)]
        await sleep(0.2)
        began = time.monotonic()
        stopped = log.stop()
        for read in reads:
            await self.assertFailure(read, LogUnavailable)
        await stopped
        self.assertLess(time.monotonic() - began, 3)
        await self.assertFailure(log.reader.has_written("1", "2"), LogUnavailable)

    async def test_read_is_repeated_if_its_connection_was_ended_while_it_was_idle(self) -> None:
        log = self.started()
        await log.append([message("a")])
        self.assertEqual(await log.reader.has_written("1", "2"), True)
        for _ in range(4):
            self.server.end_sessions(self.database)
            self.assertEqual(await log.reader.has_written("1", "2"), True)

    async def test_reads_fail_at_once_for_a_moment_after_a_failed_connection(self) -> None:
        proxy = Proxy(self.server.port)
        self.addCleanup(proxy.close)
        log = self.started(self.server.url(self.database, port=proxy.port))
        self.assertEqual(await log.reader.has_written("1", "2"), False)
        proxy.close()
        with patch.object(inbox_reader, "Connection", side_effect=connection.NotConnected("refused")) as attempts:
            for _ in range(30):
                await self.assertFailure(log.reader.has_written("1", "2"), LogUnavailable)
        self.assertLess(attempts.call_count, 10)

    async def test_waits_between_attempts_double_up_to_their_limit(self) -> None:
        log = self.started()
        with patch.object(log._store, "open", side_effect=LogUnavailable("away")):
            waits = []
            for _ in range(5):
                log._reopen()
                waits.append(log._retry_seconds)
        self.assertEqual(waits, [0.1, 0.2, 0.2, 0.2, 0.2])

    async def test_one_reason_is_logged_once_for_an_outage(self) -> None:
        log = self.started()
        with patch.object(log._store, "open", side_effect=LogUnavailable("away")):
            for _ in range(5):
                log._reopen()
        self.assertEqual(len([text for text in self.texts() if "away" in text]), 1)
