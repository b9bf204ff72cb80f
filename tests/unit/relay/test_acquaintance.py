"""Who is known to whom: what is read, what is kept, and for how long it is true."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import LogUnavailable
from chatrelay.relay import acquaintance
from chatrelay.relay.acquaintance import Acquaintances

PAIR = ("alice", "bo")


class AcquaintanceTests(SynchronousTestCase):
    """Alice, and whether Bo has written to her."""

    def setUp(self) -> None:
        self.reads: list[tuple[str, str, Deferred[bool]]] = []
        self.many: list[tuple[str, list[str], Deferred[set[str]]]] = []
        self.known = Acquaintances(self)  # type: ignore[arg-type]

    def has_written(self, sender: str, recipient: str, by_sender: bool = False) -> Deferred[bool]:
        """Keep a read until the test answers it."""
        self.by_sender = by_sender
        self.reads.append((sender, recipient, Deferred()))
        return self.reads[-1][2]

    def writers(self, recipient: str, senders: Sequence[str]) -> Deferred[set[str]]:
        """Keep a read of several users until the test answers it."""
        self.many.append((recipient, list(senders), Deferred()))
        return self.many[-1][2]

    def test_many_are_looked_up_with_one_read_of_those_who_are_not_remembered(self) -> None:
        self.known.wrote("bo", "alice")
        found = self.known.look_up_all("alice", ["bo", "cy", "di", "ed"])
        self.known.wrote("ed", "alice")  # during the read
        ((recipient, senders, read),) = self.many
        self.assertEqual((recipient, senders), ("alice", ["cy", "di", "ed"]))
        read.callback({"cy"})
        self.assertEqual(set(self.successResultOf(found)), {"bo", "cy", "ed"})
        again = self.known.look_up_all("alice", ["bo", "cy", "di", "ed"])
        self.assertEqual((set(self.successResultOf(again)), len(self.many)), ({"bo", "cy", "ed"}, 1))

    def test_lookup_of_one_shares_the_read_of_many(self) -> None:
        many = self.known.look_up_all("alice", ["bo", "cy"])
        one = self.known.look_up(PAIR)
        self.assertEqual(self.reads, [])
        self.many.pop()[2].callback({"bo"})
        self.assertEqual((self.successResultOf(one), self.successResultOf(many)), (True, {"bo"}))

    def test_failed_or_doubtful_read_of_many_is_not_kept(self) -> None:
        one = self.known.look_up(PAIR)
        many = self.known.look_up_all("alice", ["bo", "cy"])
        self.many.pop()[2].errback(LogUnavailable("gone"))
        self.failureResultOf(many, LogUnavailable)
        self.assertNoResult(one)  # its own read is not answered yet
        many = self.known.look_up_all("alice", ["cy"])
        self.known.forget_unknown()
        self.many.pop()[2].callback(set())
        self.assertEqual((self.successResultOf(many), self.known.known(("alice", "cy"))), (set(), None))

    def test_what_is_read_is_kept(self) -> None:
        for result in (True, False):
            known = Acquaintances(self)  # type: ignore[arg-type]
            self.assertIsNone(known.known(PAIR))
            found = known.look_up(PAIR)
            self.assertEqual(self.reads[-1][:2], ("bo", "alice"))
            self.reads.pop()[2].callback(result)
            self.assertEqual((self.successResultOf(found), known.known(PAIR)), (result, result))
            self.assertIsNone(known.known(("bo", "alice")))

    def test_read_is_that_of_the_user_who_asks(self) -> None:
        for by_second in (False, True):
            Acquaintances(self, by_second).look_up(PAIR)  # type: ignore[arg-type]
            self.assertIs(self.by_sender, by_second)

    def test_look_ups_of_a_pair_share_one_read(self) -> None:
        first, second = self.known.look_up(PAIR), self.known.look_up(PAIR)
        self.assertEqual(len(self.reads), 1)
        self.reads.pop()[2].callback(True)
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (True, True))

    def test_failed_read_is_not_kept(self) -> None:
        found = [self.known.look_up(PAIR) for _ in range(2)]
        self.reads.pop()[2].errback(LogUnavailable("gone"))
        for each in found:
            self.failureResultOf(each, LogUnavailable)
        self.assertIsNone(self.known.known(PAIR))
        self.known.look_up(PAIR)
        self.assertEqual(len(self.reads), 1)

    def test_message_makes_its_sender_known(self) -> None:
        self.known.look_up(PAIR)
        self.reads.pop()[2].callback(False)
        self.known.wrote("alice", "bo")
        self.assertIs(self.known.known(PAIR), False)
        self.known.wrote("bo", "alice")
        self.assertIs(self.known.known(PAIR), True)

    def test_message_during_the_read_counts(self) -> None:
        found = self.known.look_up(PAIR)
        self.known.wrote("bo", "alice")
        self.known.wrote("bo", "alice")
        self.reads.pop()[2].callback(False)
        self.assertEqual((self.successResultOf(found), self.known.known(PAIR)), (True, True))

    def test_unknown_people_are_forgotten_when_nobody_tells_of_messages(self) -> None:
        for during_the_read in (False, True):
            known = Acquaintances(self)  # type: ignore[arg-type]
            known.wrote("cy", "alice")
            known.look_up(PAIR)
            if during_the_read:
                known.forget_unknown()
            self.reads.pop()[2].callback(False)
            if not during_the_read:
                known.forget_unknown()
            self.assertEqual((known.known(PAIR), known.known(("alice", "cy"))), (None, True))

    def test_everybody_is_forgotten(self) -> None:
        self.known.wrote("bo", "alice")
        self.known.forget()
        self.assertIsNone(self.known.known(PAIR))

    def test_pair_kept_for_longest_is_displaced(self) -> None:
        self.patch(acquaintance, "MAX_PAIRS", 2)
        for sender in ("bo", "cy"):
            self.known.wrote(sender, "alice")
        self.assertIs(self.known.known(PAIR), True)
        self.known.wrote("di", "alice")
        self.assertEqual([self.known.known(("alice", user)) for user in ("bo", "cy", "di")], [None, True, True])
