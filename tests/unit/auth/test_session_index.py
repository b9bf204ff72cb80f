"""The session index: which connection logged in by which session, and ending sessions by name."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.session_index import SessionIndex
from chatrelay.relay.directory import Directory
from chatrelay.testing import RecordedConnection
from chatrelay.wire.codes import Close

ENDED = (4505, "ended by the operator or the site")


class SessionIndexTests(SynchronousTestCase):
    """Ending sessions by user and by SESSID, also while a login is pending."""

    def setUp(self) -> None:
        self.directory = Directory()
        self.index = SessionIndex(self.directory, b"key")

    def pending(self, sessid: str) -> RecordedConnection:
        """Return a connection whose login is pending."""
        connection = RecordedConnection()
        self.index.asked(connection, sessid)
        return connection

    def member(self, sessid: str, uid: str | int = 1) -> RecordedConnection:
        """Return a connection that is logged in."""
        connection = self.pending(sessid)
        self.assertTrue(self.index.answered(connection, str(uid)))
        self.directory.add(str(uid), connection)
        self.index.entered(connection, [sessid])
        return connection

    def test_end_session_closes_its_connections(self) -> None:
        first, second, other = self.member("a"), self.member("a"), self.member("b")
        self.assertEqual(self.index.end_session("a"), 2)
        self.assertEqual([first.closed, second.closed, other.closed], [ENDED, ENDED, None])
        self.assertEqual(self.index.end_session("never seen"), 0)

    def test_end_user_accepts_either_form_of_a_uid(self) -> None:
        first, second, other = self.member("a", 7), self.member("b", 7), self.member("c", 8)
        self.assertEqual(self.index.end_user("7"), 2)
        self.assertEqual([first.closed, second.closed, other.closed], [ENDED, ENDED, None])
        self.assertEqual(self.index.end_user("nobody"), 0)

    def test_end_session_closes_pending_logins(self) -> None:
        pending = self.pending("a")
        self.assertEqual(self.index.end_session("a"), 1)
        self.assertEqual(pending.closed, ENDED)

    def test_verdict_older_than_the_end_of_the_user_does_not_count(self) -> None:
        pending, late = self.pending("a"), self.pending("b")
        self.assertEqual(self.index.end_user(7), 0)
        joined = self.pending("a")
        self.assertFalse(self.index.answered(pending, "7"))
        self.assertFalse(self.index.answered(joined, "7"))
        self.assertTrue(self.index.answered(late, "8"))
        self.assertTrue(self.index.answered(self.pending("a"), "7"))

    def test_verdict_older_than_the_end_of_the_session_it_names_does_not_count(self) -> None:
        pending, other, nameless = self.pending("ticket"), self.pending("ticket 2"), self.pending("ticket 3")
        self.assertEqual(self.index.end_session("handle"), 0)
        self.assertFalse(self.index.answered(pending, "7", "handle"))
        self.assertTrue(self.index.answered(other, "7", "another handle"))
        self.assertTrue(self.index.answered(nameless, "7"))
        self.assertTrue(self.index.answered(self.pending("ticket 4"), "7", "handle"))

    def test_login_that_shares_an_old_request_does_not_count(self) -> None:
        asking = self.pending("a")
        self.assertEqual(self.index.end_session("a"), 1)
        self.assertFalse(self.index.answered(self.pending("a"), "7"))
        self.assertFalse(self.index.answered(asking, "7"))
        self.assertTrue(self.index.answered(self.pending("a"), "7"))

    def test_ends_are_kept_while_an_older_login_is_pending(self) -> None:
        self.index.end_user(7)
        self.assertEqual(len(self.index._ended), 0)
        first = self.pending("first")
        for number in range(100):
            self.index.end_session(str(number))
            self.index.end_user(number)
            self.index.end_user(7)
        self.assertEqual(len(self.index._ended), 200)
        second = self.pending("second")
        self.index.end_session("last")
        self.assertFalse(self.index.answered(first, "1000", "0"))
        self.assertEqual(len(self.index._ended), 1)
        self.assertTrue(self.index.answered(second, "7", "0"))
        self.assertEqual(len(self.index._ended), 0)

    def test_second_login_by_the_same_sessid_is_closed_once(self) -> None:
        member = self.member("a")
        self.index.asked(member, "a")
        self.assertEqual(self.index.end_session("a"), 1)

    def test_last_session_of_a_connection_counts(self) -> None:
        member = self.member("old")
        self.index.asked(member, "new")
        self.assertTrue(self.index.answered(member, "1"))
        self.index.entered(member, ["new"])
        self.assertEqual(self.index.end_session("old"), 0)
        self.assertEqual(self.index.end_session("new"), 1)

    def test_session_may_have_two_names_or_none(self) -> None:
        both, none = self.member("a"), self.member("b")
        self.index.entered(both, ["ticket", "handle"])
        self.index.entered(none, [])
        self.assertEqual([self.index.end_session(name) for name in ("a", "b", "ticket", "handle")], [0, 0, 1, 1])
        self.index.disconnected(both)
        self.index.disconnected(none)
        self.assertEqual((self.index.end_session("handle"), len(self.index)), (0, 0))

    def test_disconnected_connection_is_forgotten(self) -> None:
        for connection in (self.member("a"), self.member("a"), self.pending("a"), RecordedConnection()):
            self.index.disconnected(connection)
            self.index.disconnected(connection)
        self.assertEqual(self.index.end_session("a"), 0)
        self.assertEqual(len(self.index), 0)
        self.assertEqual({len(kept) for kept in vars(self.index).values() if isinstance(kept, dict)}, {0})

    def test_connection_may_disconnect_while_others_are_closed(self) -> None:
        first, second = self.member("a"), self.member("a")
        closing = first.close

        def close(it: Close) -> None:
            closing(close)
            self.index.disconnected(first)
            self.index.disconnected(second)

        self.patch(first, "close", close)
        self.assertEqual(self.index.end_session("a"), 2)

    def test_index_keeps_no_session_id(self) -> None:
        self.member("CANARY")
        self.pending("CANARY")
        self.index.end_session("CANARY")
        requests = [(request.digest, request.ends_before) for request in self.index._pending.values()]
        self.assertNotIn("CANARY", repr((vars(self.index), requests)))

    def test_hash_of_a_session_differs_between_processes(self) -> None:
        digests = {SessionIndex(self.directory, key).digest("a") for key in (b"one", b"two")}
        self.assertEqual(len(digests), 2)
