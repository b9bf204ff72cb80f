"""Which connection came in by which SESSID, and ending them by name."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.session_index import SessionIndex
from chatrelay.relay.directory import Directory
from chatrelay.testing import RecordedConnection
from chatrelay.wire.codes import Close

ENDED = (4505, "ended by the operator or the site")


class LoginsTests(SynchronousTestCase):
    """By user, by SESSID, and while the webserver is being asked."""

    def setUp(self) -> None:
        self.directory = Directory()
        self.logins = SessionIndex(self.directory, b"key")

    def pending(self, sessid: str) -> RecordedConnection:
        """A connection that the webserver is asked about."""
        connection = RecordedConnection()
        self.logins.asked(connection, sessid)
        return connection

    def member(self, sessid: str, uid: str | int = 1) -> RecordedConnection:
        """A connection that is logged in."""
        connection = self.pending(sessid)
        self.assertTrue(self.logins.answered(connection, str(uid)))
        self.directory.add(str(uid), connection)
        self.logins.entered(connection, [sessid])
        return connection

    def test_by_sessid(self) -> None:
        first, second, other = self.member("a"), self.member("a"), self.member("b")
        self.assertEqual(self.logins.end_session("a"), 2)
        self.assertEqual([first.closed, second.closed, other.closed], [ENDED, ENDED, None])
        self.assertEqual(self.logins.end_session("never seen"), 0)

    def test_by_user_however_the_uid_is_written(self) -> None:
        first, second, other = self.member("a", 7), self.member("b", 7), self.member("c", 8)
        self.assertEqual(self.logins.end_user("7"), 2)
        self.assertEqual([first.closed, second.closed, other.closed], [ENDED, ENDED, None])
        self.assertEqual(self.logins.end_user("nobody"), 0)

    def test_a_login_under_way_ends_with_its_session(self) -> None:
        pending = self.pending("a")
        self.assertEqual(self.logins.end_session("a"), 1)
        self.assertEqual(pending.closed, ENDED)

    def test_an_answer_older_than_the_users_end_does_not_count(self) -> None:
        pending, late = self.pending("a"), self.pending("b")
        self.assertEqual(self.logins.end_user(7), 0)
        joined = self.pending("a")
        self.assertFalse(self.logins.answered(pending, "7"))
        self.assertFalse(self.logins.answered(joined, "7"))
        self.assertTrue(self.logins.answered(late, "8"))
        self.assertTrue(self.logins.answered(self.pending("a"), "7"))

    def test_an_answer_older_than_the_end_of_the_session_it_names_does_not_count(self) -> None:
        pending, other, nameless = self.pending("ticket"), self.pending("ticket 2"), self.pending("ticket 3")
        self.assertEqual(self.logins.end_session("handle"), 0)
        self.assertFalse(self.logins.answered(pending, "7", "handle"))
        self.assertTrue(self.logins.answered(other, "7", "another handle"))
        self.assertTrue(self.logins.answered(nameless, "7"))
        self.assertTrue(self.logins.answered(self.pending("ticket 4"), "7", "handle"))

    def test_who_joins_a_question_older_than_the_end_of_the_session_ends_too(self) -> None:
        asking = self.pending("a")
        self.assertEqual(self.logins.end_session("a"), 1)
        self.assertFalse(self.logins.answered(self.pending("a"), "7"))
        self.assertFalse(self.logins.answered(asking, "7"))
        self.assertTrue(self.logins.answered(self.pending("a"), "7"))

    def test_what_was_ended_is_known_for_as_long_as_an_answer_may_be_older_and_no_longer(self) -> None:
        self.logins.end_user(7)
        self.assertEqual(len(self.logins._ended), 0)
        first = self.pending("first")
        for number in range(100):
            self.logins.end_session(str(number))
            self.logins.end_user(number)
            self.logins.end_user(7)
        self.assertEqual(len(self.logins._ended), 200)
        second = self.pending("second")
        self.logins.end_session("last")
        self.assertFalse(self.logins.answered(first, "1000", "0"))
        self.assertEqual(len(self.logins._ended), 1)
        self.assertTrue(self.logins.answered(second, "7", "0"))
        self.assertEqual(len(self.logins._ended), 0)

    def test_one_that_logs_in_again_by_the_same_sessid_is_one(self) -> None:
        member = self.member("a")
        self.logins.asked(member, "a")
        self.assertEqual(self.logins.end_session("a"), 1)

    def test_the_last_sessid_counts(self) -> None:
        member = self.member("old")
        self.logins.asked(member, "new")
        self.assertTrue(self.logins.answered(member, "1"))
        self.logins.entered(member, ["new"])
        self.assertEqual(self.logins.end_session("old"), 0)
        self.assertEqual(self.logins.end_session("new"), 1)

    def test_a_session_of_two_names_and_one_of_none(self) -> None:
        both, none = self.member("a"), self.member("b")
        self.logins.entered(both, ["ticket", "handle"])
        self.logins.entered(none, [])
        self.assertEqual([self.logins.end_session(name) for name in ("a", "b", "ticket", "handle")], [0, 0, 1, 1])
        self.logins.left(both)
        self.logins.left(none)
        self.assertEqual((self.logins.end_session("handle"), len(self.logins)), (0, 0))

    def test_who_has_left_is_forgotten(self) -> None:
        for connection in (self.member("a"), self.member("a"), self.pending("a"), RecordedConnection()):
            self.logins.left(connection)
            self.logins.left(connection)
        self.assertEqual(self.logins.end_session("a"), 0)
        self.assertEqual(len(self.logins), 0)
        self.assertEqual({len(kept) for kept in vars(self.logins).values() if isinstance(kept, dict)}, {0})

    def test_a_connection_that_leaves_while_others_are_closed(self) -> None:
        first, second = self.member("a"), self.member("a")
        closing = first.close

        def close(it: Close) -> None:
            closing(close)
            self.logins.left(first)
            self.logins.left(second)

        self.patch(first, "close", close)
        self.assertEqual(self.logins.end_session("a"), 2)

    def test_no_session_id_is_kept(self) -> None:
        self.member("CANARY")
        self.pending("CANARY")
        self.logins.end_session("CANARY")
        questions = [(question.digest, question.ends_before) for question in self.logins._pending.values()]
        self.assertNotIn("CANARY", repr((vars(self.logins), questions)))

    def test_the_same_session_has_another_hash_in_another_process(self) -> None:
        digests = {SessionIndex(self.directory, key)._digest("a") for key in (b"one", b"two")}
        self.assertEqual(len(digests), 2)
