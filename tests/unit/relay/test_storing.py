"""Messages of v2: stored, delivered, refused, sent again; with those of v1 beside them."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import LogBusy, LogUnavailable, Mark, MarkKind
from chatrelay.relay import delivery as relay_module
from chatrelay.relay.storing import StorePolicy
from chatrelay.testing import HeldMessageLog, RecordedConnection
from chatrelay.wire import codes
from tests.support.store_case import Device, World

DAY = 86_400.0


def contents(connection: RecordedConnection) -> list[str]:
    """Return the messages delivered to a connection of v1 since the last call."""
    return [frame["message"]["content"] for frame in connection.take()]


class StoreCase(SynchronousTestCase):
    """Alice, Bo and others over a held log."""

    policy = StorePolicy()

    def setUp(self) -> None:
        self.world = World(self.policy)

    def know(self, *users: str) -> None:
        """Have each of these users write to each other one, and read everything."""
        for sender in users:
            for recipient in users:
                if sender != recipient:
                    self.world.relay.store(self.world.message(sender, recipient, f"{sender}-{recipient}-0"), Quiet())
        self.world.commit()

    def rows(self) -> list[str]:
        """Return the contents of the log, in order."""
        return [row.message.content for row in self.world.log.rows]


class Quiet:
    """A submitter that hears nothing, such as a session that has ended."""

    connection = None

    def stored(self, *_: object) -> None:
        """Do nothing."""

    refused = unknown = stored


class Storing(StoreCase):
    """The ordinary path."""

    def test_message_is_delivered_to_all_devices_and_answered_after_the_commit(self) -> None:
        self.know("alice", "bo")
        alice, other, bo = (self.world.device(user) for user in ("alice", "alice", "bo"))
        self.world.store(alice, "bo", "m1")
        self.world.turn()
        self.assertEqual((alice.take(), other.take(), bo.take()), ([], [], []))
        self.world.log.commit()
        self.assertEqual(alice.take(), ["3 answer m1 delivered"])
        self.assertEqual(other.take(), ["3 message m1"])
        self.assertEqual(bo.take(), ["3 message m1"])

    def test_message_to_somebody_who_is_not_here_is_stored_and_comes_at_the_next_login(self) -> None:
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.assertEqual(alice.take(), ["3 answer m1 stored"])
        self.assertEqual(self.world.device("bo", after=2).take(), ["3 message m1"])

    def test_recipient_who_goes_before_the_commit_makes_the_message_stored(self) -> None:
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.turn()
        bo.leave()
        self.world.log.commit()
        self.assertEqual(alice.take(), ["3 answer m1 stored"])
        self.assertTrue(self.world.log.rows[-1].delivered)

    def test_unknown_recipient_who_is_here_looks_as_if_away(self) -> None:
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.assertEqual((alice.take(), bo.take()), (["1 answer m1 stored"], ["1 message m1"]))
        self.world.store(bo, "alice", "m2")
        self.world.commit()
        self.assertEqual(bo.take(), ["2 answer m2 delivered"])
        self.world.store(alice, "bo", "m3")
        self.world.commit()
        self.assertEqual(alice.take(), ["2 message m2", "3 answer m3 delivered"])

    def test_answer_waits_for_the_look_up_which_begins_at_once(self) -> None:
        reader = self.world.log.reader
        self.world.storing.acquaintances.forget_unknown()
        reader.holds = True
        alice, other = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.assertEqual(len(reader.waiting), 1)
        self.world.store(alice, "bo", "m2")
        self.world.store(alice, "alice", "m3")
        self.world.commit()
        self.assertEqual(len(reader.waiting), 2)  # one for the pair, one for oneself
        self.assertEqual(alice.take(), [])
        self.assertEqual(other.take(), ["1 message m1", "2 message m2", "3 message m3"])
        reader.waiting.reverse()
        reader.answer()
        self.assertEqual(alice.take(), [])
        reader.answer()
        self.assertEqual(alice.take(), ["1 answer m1 stored", "2 answer m2 stored", "3 answer m3 delivered"])

    def test_look_up_that_fails_makes_an_answer_say_stored_and_is_tried_again(self) -> None:
        self.know("alice", "bo")
        world = World(log=self.world.log)  # after a restart
        reader = world.log.reader
        reader.holds = True
        alice = world.device("alice")
        world.device("bo")
        world.store(alice, "bo", "m1")
        reader.fail(LogBusy("later"))
        world.commit()
        reader.fail()
        self.assertEqual(alice.take(), ["3 answer m1 stored"])
        reader.holds = False
        world.store(alice, "bo", "m2")
        world.commit()
        self.assertEqual(alice.take(), ["4 answer m2 delivered"])

    def test_answers_of_another_device_do_not_wait(self) -> None:
        self.know("alice", "bo")
        self.world.log.reader.holds = True
        alice, other = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "cy", "m1")
        self.world.store(other, "bo", "m2")
        self.world.commit()
        self.assertEqual(other.take()[-1], "4 answer m2 stored")

    def test_message_to_oneself_takes_one_place(self) -> None:
        alice, other, old = self.world.device("alice"), self.world.device("alice"), self.world.old_client("alice")
        self.world.store(alice, "alice", "m1")
        self.world.commit()
        self.assertEqual((alice.take(), other.take()), (["1 answer m1 delivered"], ["1 message m1"]))
        self.assertEqual(contents(old), ["m1"])

    def test_message_to_oneself_is_delivered_to_the_connection_that_is_answered(self) -> None:
        alice = self.world.device("alice")
        self.world.store(alice, "alice", "m1")
        self.world.commit()
        self.assertEqual(alice.take(), ["1 answer m1 delivered"])

    def test_submitter_without_a_connection_reaches_all_devices(self) -> None:
        alice = self.world.device("alice")
        self.world.relay.store(self.world.message("alice", "bo", "m1"), Quiet())
        self.world.commit()
        self.assertEqual(alice.take(), ["1 message m1"])

    def test_message_reaches_clients_of_v1_as_v1(self) -> None:
        self.know("alice", "bo")
        alice, old, bo = self.world.device("alice"), self.world.old_client("bo"), self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.assertEqual((contents(old), bo.take()), (["m1"], ["3 message m1"]))
        bo.leave()
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual(contents(old), ["m2"])
        self.assertEqual(alice.take(), ["3 answer m1 delivered", "4 answer m2 delivered"])

    def test_failed_commit_refuses_the_message_and_takes_no_place(self) -> None:
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.world.turn()
        self.world.log.fail()
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual(alice.take(), ["refused m1 log-unavailable", "1 answer m2 stored"])

    def test_message_beyond_max_waiting_is_busy(self) -> None:
        self.patch(relay_module, "MAX_WAITING", 3)
        self.world.log.reader.holds = True
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.store(alice, "cy", "m2")
        self.world.turn()
        self.world.store(alice, "cy", "m3")
        self.world.store(alice, "cy", "m4")
        self.assertEqual(alice.take(), ["refused m4 busy"])

    def test_turns_of_messages_that_are_refused_may_be_taken_again(self) -> None:
        self.patch(relay_module, "MAX_WAITING", 1)
        alice = self.world.device("alice")
        for number in range(3):
            self.world.store(alice, "bo", f"m{number}")
            self.world.turn()
            self.world.log.fail()
            self.world.turn()
        self.assertEqual(len(alice.take()), 3)
        self.world.store(alice, "bo", "m4")
        self.world.commit()
        self.assertEqual(alice.take(), ["1 answer m4 stored"])

    def test_usual_case_takes_none_of_the_steps(self) -> None:
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        with patch.object(relay_module.Relay, "_deliver_stored", side_effect=AssertionError("step by step")):
            self.world.store(alice, "bo", "m1")
            self.world.commit()
        self.assertEqual((alice.take(), bo.take()), (["3 answer m1 delivered"], ["3 message m1"]))

    def test_message_of_a_device_that_has_left_reaches_the_other_one_at_once(self) -> None:
        self.know("alice", "bo")
        alice, other, bo = (self.world.device(user) for user in ("alice", "alice", "bo"))
        self.world.store(alice, "bo", "m1")
        self.world.turn()
        alice.leave()
        self.world.log.reader.holds = True
        self.world.commit()
        self.assertEqual((other.take(), bo.take()), (["3 message m1"], ["3 message m1"]))

    def test_each_message_to_somebody_who_never_wrote_is_answered_as_stored(self) -> None:
        alice, bo = self.world.device("alice"), self.world.device("bo")
        for id in ("m1", "m2", "m3"):
            self.world.store(alice, "bo", id)
            self.world.commit()
        self.assertEqual(alice.take(), [f"{place} answer m{place} stored" for place in (1, 2, 3)])
        self.assertEqual(bo.take(), [f"{place} message m{place}" for place in (1, 2, 3)])

    def test_answer_to_somebody_who_is_known_waits_for_an_earlier_answer(self) -> None:
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.log.reader.holds = True
        self.world.store(alice, "cy", "m1")
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual((alice.take(), bo.take()), ([], ["3 message m2"]))
        while self.world.log.reader.waiting:
            self.world.log.reader.answer()
        self.assertEqual(alice.take(), ["3 answer m1 stored", "4 answer m2 delivered"])

    def test_answer_waits_for_a_look_up_if_the_pair_was_displaced_before_the_commit(self) -> None:
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.turn()
        del self.world.storing.acquaintances.known_pairs["alice", "bo"]
        self.world.log.reader.holds = True
        self.world.commit()
        self.assertEqual((alice.take(), bo.take()), ([], ["3 message m1"]))
        self.world.log.reader.answer()
        self.assertEqual(alice.take(), ["3 answer m1 delivered"])

    def test_first_message_to_somebody_who_is_known_makes_the_sender_known(self) -> None:
        alice, bo = self.world.device("alice"), self.world.device("bo")
        for sender, recipient, id in ((bo, "alice", "m1"), (alice, "bo", "m2"), (bo, "alice", "m3")):
            self.world.store(sender, recipient, id)
            self.world.commit()
        self.assertEqual(bo.take(), ["1 answer m1 stored", "2 message m2", "3 answer m3 delivered"])

    def test_answer_of_a_device_that_has_left_goes_nowhere(self) -> None:
        alice, other = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        alice.leave()
        self.world.commit()
        self.assertEqual((alice.take(), other.take()), ([], ["1 message m1"]))

    def test_erasure_is_told_to_live_devices_and_makes_people_unknown(self) -> None:
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.world.store(bo, "alice", "m2")
        self.world.commit()
        self.assertEqual(bo.take(), ["1 message m1", "2 answer m2 delivered"])
        self.world.log.erase("alice")
        self.assertEqual(bo.take(), ["3 erased 1-1"])
        self.world.store(bo, "alice", "m3")
        self.world.commit()
        self.assertEqual(bo.take(), ["4 answer m3 stored"])
        self.assertEqual(alice.take()[-2:], ["3 erased 1-1", "4 message m3"])
        self.assertEqual(
            self.world.device("bo", after=0).take(), ["1-1 void", "2 message m2", "3 erased 1-1", "4 message m3"]
        )

    def test_erasure_is_not_told_before_an_unsettled_place(self) -> None:
        bo, cy = self.world.device("bo"), self.world.old_client("cy")
        self.world.submit("bo", "cy", "m1")
        self.world.directory.remove("cy", cy)
        self.world.log.mark_undelivered = lambda numbers: Deferred()  # type: ignore[method-assign]
        self.world.commit()
        self.world.log.erase("bo")
        self.assertEqual(bo.take(), [])
        self.world.inboxes.release_void("bo", 1)
        self.assertEqual(bo.take(), ["1-1 void", "2 erased 1-1"])

    def test_another_epoch_closes_the_connections(self) -> None:
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.world.log.epoch = "another"
        self.world.commit()
        self.assertEqual((alice.take(), alice.closed), ([], codes.LOG_LOST))

    def test_another_epoch_makes_all_forgotten_that_is_known_of_the_log(self) -> None:
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.commit()
        self.assertEqual(alice.take(), ["3 answer m1 delivered"])
        self.world.log = replaced = HeldMessageLog()
        for name in ("rows", "inboxes", "epoch"):  # as when another file was put in its place
            setattr(self.world.storing._log, name, getattr(replaced, name))
        self.world.log = self.world.storing._log  # type: ignore[assignment]
        late = Device(self.world, "alice")
        self.world.store(late, "bo", "m1", again=True)
        self.assertEqual((alice.closed, bo.closed), (codes.LOG_LOST, codes.LOG_LOST))
        bo = self.world.device("bo")
        alice = self.world.device("alice")
        self.world.commit()
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual((self.rows(), bo.take()), (["m1", "m2"], ["1 message m1", "2 message m2"]))
        self.assertEqual(alice.take(), ["1 message m1", "2 answer m2 stored"])

    def test_mark_of_another_epoch_is_not_repeated(self) -> None:
        marked: list[object] = []

        def refuse(numbers: object) -> Deferred[None]:
            marked.append(numbers)
            return fail(LogUnavailable("gone"))

        self.patch(self.world.log, "mark_undelivered", refuse)
        old = self.world.old_client("bo")
        self.world.submit("alice", "bo", "m1")
        self.world.turn()
        self.world.directory.remove("bo", old)
        self.world.log.commit()
        self.world.log.epoch = "another"
        self.world.pass_seconds(5)
        self.assertEqual((len(marked), self.world.clock.getDelayedCalls()), (1, []))

    def test_mark_that_fails_after_the_epoch_has_changed_is_not_repeated(self) -> None:
        pending: list[Deferred[None]] = []

        def wait(numbers: object) -> Deferred[None]:
            pending.append(Deferred())
            return pending[-1]

        self.patch(self.world.log, "mark_undelivered", wait)
        old = self.world.old_client("bo")
        self.world.submit("alice", "bo", "m1")
        self.world.turn()
        self.world.directory.remove("bo", old)
        self.world.log.commit()
        self.world.log.epoch = "another"
        pending[0].errback(LogUnavailable("gone"))
        self.world.pass_seconds(5)
        self.assertEqual((len(pending), self.world.clock.getDelayedCalls()), (1, []))

    def test_mark_of_another_epoch_makes_no_place_void(self) -> None:
        pending: Deferred[None] = Deferred()
        self.patch(self.world.log, "mark_undelivered", lambda numbers: pending)
        old = self.world.old_client("bo")
        self.world.submit("alice", "bo", "m1")
        self.world.turn()
        self.world.directory.remove("bo", old)
        self.world.log.commit()
        empty = HeldMessageLog()
        for name in ("rows", "inboxes", "epoch"):  # as when another file was put in its place
            setattr(self.world.log, name, getattr(empty, name))
        bo = self.world.device("bo")
        pending.callback(None)
        self.world.pass_seconds(20)
        self.assertEqual((bo.take(), bo.is_open), ([], True))


class BesideV1(StoreCase):
    """Messages of v1 while somebody speaks v2."""

    def test_message_of_v1_reaches_devices_of_both_users(self) -> None:
        own, bo = self.world.device("alice"), self.world.device("bo")
        self.world.old_client("alice")
        submitter = self.world.submit("alice", "bo", "m1")
        self.world.commit()
        self.assertEqual(submitter.take(), [("m1", True, None)])
        self.assertEqual((own.take(), bo.take()), (["1 message m1"], ["1 message m1"]))

    def test_message_of_v1_that_reached_nobody_is_void_when_its_mark_is_committed(self) -> None:
        marks = self.held_marks()
        own, bo = self.world.device("alice"), self.world.device("bo")
        submitter = self.world.submit("alice", "bo", "m1")
        self.world.turn()
        bo.leave()
        self.world.log.commit()
        self.world.store(own, "cy", "m2")
        self.world.store(self.world.device("cy"), "alice", "m3")
        self.world.commit()
        again = self.world.device("bo", after=0)
        self.assertEqual((own.take(), again.take()), (["2 answer m2 stored"], []))
        self.assertEqual(submitter.take(), [])
        self.mark(marks)
        self.assertEqual(submitter.take(), [("m1", False, "receiving-user-not-connected")])
        self.assertEqual(own.take(), ["1-1 void", "2 message m2", "3 message m3"])
        self.assertEqual(again.take(), ["1-1 void"])

    def test_device_under_replay_takes_a_message_of_v1(self) -> None:
        self.know("alice", "bo")
        self.world.log.reader.holds = True
        bo = self.world.device("bo", after=0)
        submitter = self.world.submit("alice", "bo", "m1")
        self.world.commit()
        self.assertEqual((submitter.take(), bo.take()), ([("m1", True, None)], []))
        while self.world.log.reader.waiting:
            self.world.log.reader.answer()
        self.assertEqual(bo.take()[-1], "3 message m1")

    def test_unsettled_place_of_users_who_log_in_later_stops_them(self) -> None:
        marks = self.held_marks()
        old = self.world.old_client("bo")
        self.world.submit("alice", "bo", "m1")
        self.world.turn()
        self.world.directory.remove("bo", old)
        self.world.log.commit()
        bo = self.world.device("bo", after=0)
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual((bo.take(), alice.take()), ([], ["2 answer m2 stored"]))
        self.mark(marks)
        self.assertEqual(bo.take(), ["1-1 void", "2 message m2"])

    def test_mark_that_fails_is_repeated_until_it_is_committed(self) -> None:
        for error in (LogUnavailable("gone"), ZeroDivisionError()):
            world = World()
            whole = world.log.mark_undelivered
            self.patch(world.log, "mark_undelivered", lambda numbers, error=error: fail(error))
            own, old = world.device("alice"), world.old_client("bo")
            submitter = world.submit("alice", "bo", "m1")
            world.turn()
            world.directory.remove("bo", old)
            world.log.commit()
            self.assertEqual(submitter.take(), [("m1", False, "receiving-user-not-connected")])
            world.pass_seconds(5)
            self.assertEqual(own.take(), [])
            self.patch(world.log, "mark_undelivered", whole)
            world.pass_seconds(1.25)
            self.assertEqual(own.take(), ["1-1 void"])
            self.assertEqual(world.clock.getDelayedCalls(), [])
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 4)

    def test_acquaintance_follows_messages_of_v1(self) -> None:
        alice, old = self.world.device("alice"), self.world.old_client("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.world.submit("bo", "alice", "m2")
        self.world.commit()
        self.world.store(alice, "bo", "m3")
        self.world.commit()
        self.assertEqual(alice.take(), ["1 answer m1 stored", "2 message m2", "3 answer m3 delivered"])
        self.assertEqual(contents(old), ["m1", "m3"])

    def test_acquaintance_follows_messages_of_v1_that_are_sent_while_nobody_speaks_v2(self) -> None:
        alice, old = self.world.device("alice"), self.world.old_client("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        alice.leave()
        old_alice = self.world.old_client("alice")
        self.world.submit("bo", "alice", "m2")
        self.world.commit()
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m3")
        self.world.commit()
        self.assertEqual(alice.take(), ["3 answer m3 delivered"])
        self.assertEqual((contents(old_alice), contents(old)), (["m2"], ["m1", "m3"]))

    def test_refused_message_of_v1_makes_nobody_known(self) -> None:
        alice = self.world.device("alice")
        old = self.world.old_client("bo")
        self.world.submit("bo", "alice", "m1")
        self.world.turn()
        alice.leave()
        self.world.log.commit()
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual(alice.take(), ["2 answer m2 stored"])
        self.assertEqual(contents(old), ["m2"])

    def held_marks(self) -> list[tuple[Sequence[int], Deferred[None]]]:
        """Have marks wait until `mark`."""
        marks: list[tuple[Sequence[int], Deferred[None]]] = []
        self._whole = self.world.log.mark_undelivered

        def hold(numbers: Sequence[int]) -> Deferred[None]:
            marks.append((numbers, Deferred()))
            return marks[-1][1]

        self.patch(self.world.log, "mark_undelivered", hold)
        return marks

    def mark(self, marks: list[tuple[Sequence[int], Deferred[None]]]) -> None:
        """Commit the oldest mark."""
        numbers, marked = marks.pop(0)
        self._whole(numbers)
        marked.callback(None)


class UnknownCommits(StoreCase):
    """Commits of which it is not known whether they succeeded."""

    def doubt(self) -> tuple[Device, Device]:
        """Send a message of each dialect, and have their commit end so."""
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.v1 = self.world.submit("alice", "bo", "old")
        self.world.store(alice, "bo", "m1")
        self.world.turn()
        self.world.log.commit_unknown()
        self.assertEqual(self.v1.take(), [("old", False, "log-unavailable")])
        self.assertEqual((alice.take(), bo.take()), ([], []))
        return alice, bo

    def test_message_that_is_found_stands(self) -> None:
        alice, bo = self.doubt()
        self.world.log.settle(True)
        self.assertEqual(alice.take(), ["3-3 void", "4 answer m1 delivered"])
        self.assertEqual(bo.take(), ["3-3 void", "4 message m1"])
        self.assertEqual(self.successResultOf(self.world.relay.drain()), None)

    def test_message_that_is_not_found_is_refused(self) -> None:
        alice, bo = self.doubt()
        self.world.log.settle(False)
        self.assertEqual((alice.take(), bo.take()), (["refused m1 log-unavailable"], []))
        self.world.pass_seconds(20)
        self.assertEqual((alice.closed, self.world.clock.getDelayedCalls()), (None, []))

    def test_connection_is_closed_after_ten_seconds_and_the_message_may_still_stand(self) -> None:
        alice, bo = self.doubt()
        drained = self.world.relay.drain()
        self.world.pass_seconds(9.5)
        self.assertEqual(alice.closed, None)
        self.assertNoResult(drained)
        self.world.pass_seconds(1)
        self.assertEqual((alice.closed, alice.take()), (codes.LOG_LOST, []))
        self.successResultOf(drained)
        self.world.log.settle(True)
        self.assertEqual(bo.take(), ["3-3 void", "4 message m1"])
        self.assertEqual(self.world.device("alice", after=2).take(), ["3-3 void", "4 message m1"])

    def test_message_that_is_sent_again_meanwhile_waits_for_the_outcome(self) -> None:
        alice, _ = self.doubt()
        other = self.world.device("alice")
        self.assertIsNone(other.cursor)  # the log is not open, so it can't log in
        other = self.world.device("nobody")
        other.user = "alice"
        self.world.store(alice, "bo", "m1", again=True)
        self.world.log.settle(True)
        self.assertEqual(alice.take(), ["3-3 void", "4 answer m1 delivered", "4 answer m1 delivered"])
        self.assertEqual(self.rows().count("m1"), 1)

    def test_message_that_is_sent_again_is_refused_with_the_first_one(self) -> None:
        alice, _ = self.doubt()
        self.world.store(alice, "bo", "m1", again=True)
        self.world.log.settle(False)
        self.assertEqual(alice.take(), ["refused m1 log-unavailable"] * 2)
        self.world.store(alice, "bo", "m1", again=True)
        self.world.commit()
        self.assertEqual(alice.take(), ["3 answer m1 delivered"])

    def test_message_that_is_sent_again_is_closed_after_ten_seconds(self) -> None:
        alice, _ = self.doubt()
        self.world.pass_seconds(5)
        submitter = Device(self.world, "alice")
        self.world.store(submitter, "bo", "m1", again=True)
        self.world.pass_seconds(9.5)
        self.assertEqual((alice.closed, submitter.closed), (codes.LOG_LOST, None))
        self.world.pass_seconds(1)
        self.assertEqual(submitter.closed, codes.LOG_LOST)
        self.world.log.settle(True)
        self.assertEqual(submitter.take(), [])

    def test_doubtful_batch_of_v1_delays_nobody(self) -> None:
        self.world.device("bo")
        sender = self.world.submit("alice", "bo", "old")
        self.world.turn()
        self.patch(relay_module, "MAX_WAITING", 1)
        self.world.log.commit_unknown()
        self.assertEqual(sender.take(), [("old", False, "log-unavailable")])
        self.assertEqual(self.successResultOf(self.world.relay.drain()), None)
        sender = self.world.submit("alice", "bo", "new")
        self.assertEqual(sender.take(), [])
        self.world.log.settle(True)
        self.world.commit()
        self.assertEqual(sender.take(), [("new", True, None)])

    def test_v2_messages_of_a_doubtful_batch_count_as_waiting(self) -> None:
        self.patch(relay_module, "MAX_WAITING", 2)
        alice, _ = self.doubt()
        self.world.store(alice, "bo", "m2")
        self.world.store(alice, "bo", "m3")
        self.assertEqual(alice.take(), ["refused m3 busy"])
        self.world.log.settle(False)
        self.world.store(alice, "bo", "m4")
        self.world.store(alice, "bo", "m5")
        self.world.commit()
        self.assertEqual(len(alice.take()), 4)


class SentAgain(StoreCase):
    """``again``: one place for an id, whatever happens."""

    def test_first_that_arrives_with_again_is_a_first(self) -> None:
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.commit()
        self.assertEqual(alice.take(), ["1 answer m1 stored"])

    def test_committed_message_is_answered_from_the_log(self) -> None:
        self.know("alice", "bo")
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        world = World(log=self.world.log)  # after a restart
        alice = world.device("alice", after=2)
        bo = world.device("bo", after=3)
        self.assertEqual(alice.take(), ["3 message m1"])
        world.store(alice, "bo", "m1", again=True)
        world.commit()
        self.assertEqual((alice.take(), bo.take()), (["3 answer m1 delivered"], []))
        self.assertEqual(self.rows().count("m1"), 1)

    def test_waiting_message_is_answered_with_the_first_one(self) -> None:
        for phase in ("forming", "committing"):
            world = World()
            alice, other = world.device("alice"), world.device("alice")
            world.store(alice, "bo", "m1")
            if phase == "committing":
                world.turn()
            world.store(other, "bo", "m1", again=True)
            world.commit()
            self.assertEqual(alice.take(), ["1 answer m1 stored"])
            self.assertEqual(other.take(), ["1 message m1", "1 answer m1 stored"])
            self.assertEqual(len(world.log.rows), 1)

    def test_message_that_waits_for_a_look_up_is_answered_with_the_first_one(self) -> None:
        for is_refused in (False, True):
            world = World()
            if is_refused:
                world.relay.store(world.message("bo", "alice", "known"), Quiet())
                world.commit()
                world.storing.acquaintances.forget()
            world.log.reader.holds = True
            alice = world.device("alice")
            world.store(alice, "bo", "m1", reject=True)
            world.store(alice, "bo", "m1", again=True)
            self.assertEqual(len(world.log.reader.waiting), 1)  # it is not searched for in the log
            world.log.reader.answer()
            world.commit()
            answer = "refused m1 receiving-user-not-connected" if is_refused else "1 answer m1 stored"
            self.assertEqual(alice.take(), [answer] * 2)

    def test_nothing_stays_of_a_search_through_waiting_messages(self) -> None:
        alice = self.world.device("alice")
        for number in range(6):
            self.world.store(alice, "bo", f"m{number}", again=True)
            self.world.store(alice, "cy", f"n{number}")
            self.world.store(alice, "cy", f"n{number}", again=True)
            self.world.turn()
            self.world.store(alice, "bo", f"o{number}", again=True)
            if number % 3 == 0:
                self.world.log.fail()
            elif number % 3 == 1:
                self.world.log.commit_unknown()
                self.world.store(alice, "bo", f"m{number}", again=True)
                self.world.log.settle(number == 4)
            self.world.commit()
        relay, storing = self.world.relay, self.world.storing
        self.assertEqual((relay._indexes, relay._doubtful, relay._waiting, relay._unanswered), ({}, [], 0, {}))
        self.assertEqual((storing._held, storing._held_ids, storing._counted, storing._advancing), ({}, {}, {}, set()))
        self.assertEqual((storing.waiting, storing.answers.waiting, self.world.clock.getDelayedCalls()), (0, {}, []))

    def test_waiting_message_that_fails_refuses_both(self) -> None:
        alice, other = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.world.store(other, "bo", "m1", again=True)
        self.world.turn()
        self.world.log.fail()
        self.assertEqual((alice.take(), other.take()), (["refused m1 log-unavailable"],) * 2)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_first_copy_that_is_read_later_is_answered_from_memory(self) -> None:
        alice, old = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.commit()
        self.world.store(old, "bo", "m1")
        self.world.commit()
        self.assertEqual((alice.take(), old.take()), (["1 answer m1 stored"], ["1 message m1", "1 answer m1 stored"]))
        self.assertEqual(self.rows(), ["m1"])

    def test_first_copy_that_is_read_during_the_search_waits_for_it(self) -> None:
        self.world.log.reader.holds = True
        alice, old = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.store(old, "bo", "m1")
        self.world.commit()
        while self.world.log.reader.waiting:
            self.world.log.reader.answer()
        self.world.commit()
        while self.world.log.reader.waiting:
            self.world.log.reader.answer()
        self.assertEqual(alice.take(), ["1 answer m1 stored"])
        self.assertEqual(old.take(), ["1 message m1", "1 answer m1 stored"])
        self.assertEqual(self.rows(), ["m1"])

    def test_id_is_remembered_for_ten_minutes(self) -> None:
        alice = self.world.device("alice")
        for seconds, expected in ((599.0, 1), (600.0, 2)):
            world = World()
            alice = world.device("alice")
            world.store(alice, "bo", "m1", again=True)
            world.commit()
            world.clock.advance(seconds)
            world.store(alice, "bo", "m1")
            world.commit()
            self.assertEqual(len(world.log.rows), expected, seconds)

    def test_message_waits_for_nothing_while_ids_and_messages_of_others_are_remembered(self) -> None:
        self.know("alice", "bo", "cy")
        alice, _, cy = (self.world.device(user) for user in ("alice", "bo", "cy"))
        self.world.store(cy, "bo", "m1", again=True)  # it is searched for
        tickets = self.world.storing.tickets
        number = tickets.open()
        self.world.store(alice, "bo", "m2")
        self.assertEqual(tickets.open(), number + 1)

    def test_id_with_another_recipient_or_content_is_refused(self) -> None:
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", "hej")
        for restart in (False, True):
            self.world.store(alice, "bo", "m1", "hallo", again=True)
            self.world.store(alice, "cy", "m1", "hej", again=True)
            self.assertEqual(alice.take()[-2:], ["refused m1 id-reused"] * 2, restart)
            self.world.commit()
            self.world = World(log=self.world.log)
            alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", "hej", again=True)
        self.assertEqual(alice.take(), ["1 answer m1 stored"])

    def test_id_of_another_user_or_of_v1_is_not_found(self) -> None:
        self.world.old_client("bo")
        alice, cy = self.world.device("alice"), self.world.device("cy")
        self.world.submit("alice", "bo", "m1")
        self.world.store(cy, "bo", "m1", again=True)
        self.world.commit()
        self.world.store(alice, "bo", "m1", again=True)
        self.world.commit()
        self.assertEqual(self.rows(), ["m1"] * 3)

    def test_message_older_than_again_time_is_a_first(self) -> None:
        for seconds, limit, expected in ((DAY - 1, DAY, 1), (DAY + 1, DAY, 2), (400 * DAY, 0, 1)):
            world = World(StorePolicy(again_time=limit))
            alice = world.device("alice")
            world.store(alice, "bo", "m1")
            world.commit()
            world.clock.advance(seconds)
            world.store(alice, "bo", "m1", again=True)
            world.commit()
            self.assertEqual(len(world.log.rows), expected, seconds)

    def test_failed_search_is_repeated_because_a_refusal_could_be_wrong(self) -> None:
        self.world.log.reader.holds = True
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.store(alice, "bo", "m1")
        for error in (LogBusy("later"), None):
            self.world.log.reader.fail(error)
            self.world.pass_seconds(1.25)
        self.assertEqual(alice.take(), [])
        self.world.log.reader.holds = False
        self.world.log.reader.answer()
        self.world.commit()
        self.assertEqual(alice.take(), ["1 answer m1 stored"] * 2)
        self.assertEqual((self.rows(), self.world.clock.getDelayedCalls()), (["m1"], []))

    def test_search_that_fails_for_ten_seconds_closes_the_connections(self) -> None:
        self.patch(self.world.log.reader, "find", lambda *_: fail(LogUnavailable("gone")))
        alice, other = self.world.device("alice"), self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.store(alice, "bo", "m2")
        self.world.store(other, "bo", "m1")
        self.world.pass_seconds(9.5)
        self.assertEqual((alice.closed, other.closed), (None, None))
        self.world.pass_seconds(2)
        self.assertEqual((alice.closed, other.closed), (codes.LOG_LOST, codes.LOG_LOST))
        self.world.commit()
        self.assertEqual((self.rows(), self.world.storing.waiting, self.world.clock.getDelayedCalls()), (["m2"], 0, []))

    def test_later_message_to_the_same_recipient_does_not_overtake(self) -> None:
        self.know("alice", "bo")
        self.world.log.reader.holds = True
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.store(alice, "bo", "m2")
        self.world.store(alice, "bo", "m3", again=True)
        self.world.commit()
        self.assertEqual(bo.take(), [])
        self.world.log.reader.waiting.reverse()
        self.world.log.reader.answer()
        self.world.commit()
        self.assertEqual(bo.take(), [])
        self.world.log.reader.answer()
        self.world.commit()
        self.assertEqual(bo.take(), ["3 message m1", "4 message m2", "5 message m3"])

    def test_delivered_where_the_recipient_has_said_to_have_received_it(self) -> None:
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.world.store(alice, "bo", "m1", again=True)
        self.assertEqual(alice.take(), ["3 answer m1 stored", "3 answer m1 stored"])
        for place, word in ((2, "stored"), (3, "delivered")):
            self.world.log.save_marks([Mark("bo", MarkKind.RECEIVED, "", place)])
            self.world.store(alice, "bo", "m1", again=True)
            self.assertEqual(alice.take(), [f"3 answer m1 {word}"])

    def test_unknown_recipient_makes_an_answer_say_stored(self) -> None:
        alice = self.world.device("alice")
        self.world.device("bo")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        self.world.log.save_marks([Mark("bo", MarkKind.RECEIVED, "", 1)])
        self.world.store(alice, "bo", "m1", again=True)
        self.assertEqual(alice.take(), ["1 answer m1 stored", "1 answer m1 stored"])

    def test_mark_that_can_t_be_read_makes_an_answer_say_stored(self) -> None:
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1")
        self.world.commit()
        alice.take()
        self.world.log.holds_inboxes = True
        self.world.store(alice, "bo", "m1", again=True)
        self.world.log.fail_inbox()
        self.assertEqual(alice.take(), ["3 answer m1 stored"])

    def test_drain_waits_for_messages_that_are_searched_for(self) -> None:
        self.world.log.reader.holds = True
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", again=True)
        self.world.store(alice, "bo", "m1", again=True)
        drained = self.world.relay.drain()
        self.world.store(alice, "bo", "m2", again=True)
        self.assertNoResult(drained)
        self.world.log.reader.answer()
        self.assertNoResult(drained)
        self.world.turn()
        self.world.log.commit()
        self.assertNoResult(drained)
        while self.world.log.reader.waiting:
            self.world.log.reader.answer()
        self.world.commit()
        self.successResultOf(drained)
        self.assertEqual(len(alice.take()), 3)


class Rejecting(StoreCase):
    """``offline: reject``."""

    def test_known_recipient_who_is_not_here_is_refused(self) -> None:
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.world.store(alice, "bo", "m1", reject=True)
        self.world.commit()
        self.assertEqual(alice.take(), ["refused m1 receiving-user-not-connected"])
        bo = self.world.device("bo")
        self.world.store(alice, "bo", "m2", reject=True)
        self.world.commit()
        self.assertEqual((alice.take(), bo.take()), (["3 answer m2 delivered"], ["3 message m2"]))
        self.assertNotIn("m1", self.rows())

    def test_unknown_recipient_is_stored_for_whether_here_or_not(self) -> None:
        for is_here in (False, True):
            world = World()
            world.log.reader.holds = True
            alice = world.device("alice")
            if is_here:
                world.device("bo")
            world.store(alice, "bo", "m1", reject=True)
            world.commit()
            self.assertEqual(len(world.log.reader.waiting), 1)  # it waits for the look-up, here or not
            world.log.reader.answer()
            world.commit()
            self.assertEqual(alice.take(), ["1 answer m1 stored"])

    def test_failed_look_up_refuses(self) -> None:
        self.world.log.reader.holds = True
        alice = self.world.device("alice")
        for error, reason in ((LogBusy("later"), "busy"), (None, "log-unavailable")):
            self.world.store(alice, "bo", "m1", reject=True)
            self.world.log.reader.fail(error)
            self.assertEqual(alice.take(), [f"refused m1 {reason}"])

    def test_later_message_does_not_overtake_one_that_waits_for_the_look_up(self) -> None:
        self.world.log.reader.holds = True
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.world.store(alice, "bo", "m1", reject=True)
        self.world.store(alice, "bo", "m2")
        self.world.commit()
        self.assertEqual(bo.take(), [])
        self.world.log.reader.answer()
        self.world.commit()
        self.assertEqual(bo.take(), ["1 message m1", "2 message m2"])

    def test_default_is_the_operator_s(self) -> None:
        for default in (False, True):
            self.world = World(StorePolicy(reject=default))
            self.know("alice", "bo")
            alice = self.world.device("alice")
            self.world.store(alice, "bo", "m1")
            self.world.store(alice, "bo", "m2", reject=not default)
            self.world.commit()
            refused = "refused m1" if default else "refused m2"
            self.assertIn(refused, " ".join(alice.take()))
            self.assertEqual(len(self.rows()), 3)


class Bounds(StoreCase):
    """How much may be stored for whom."""

    def send(self, device: Device, to: str, count: int) -> list[str]:
        """Send messages, and return the reasons or words of the answers."""
        for _ in range(count):
            self.number = getattr(self, "number", 0) + 1
            self.world.store(device, to, f"m{self.number}")
        self.world.commit()
        return [frame.split()[-1] for frame in device.take() if "answer" in frame or "refused" in frame]

    def test_strangers_are_sent_at_most_20_messages_in_24_hours(self) -> None:
        alice = self.world.device("alice")
        self.assertEqual(self.send(alice, "bo", 21), ["receiving-user-full"] + ["stored"] * 20)
        self.world.clock.advance(DAY - 1)
        self.assertEqual(self.send(alice, "bo", 1), ["receiving-user-full"])
        self.assertEqual(self.send(alice, "cy", 1), ["stored"])
        self.world.clock.advance(1)
        self.assertEqual(self.send(alice, "bo", 21), ["receiving-user-full"] + ["stored"] * 20)

    def test_presence_of_a_stranger_makes_no_difference(self) -> None:
        self.world.device("bo")
        self.assertEqual(self.send(self.world.device("alice"), "bo", 21), ["receiving-user-full"] + ["stored"] * 20)

    def test_somebody_who_writes_back_is_no_stranger(self) -> None:
        alice, bo = self.world.device("alice"), self.world.device("bo")
        self.send(alice, "bo", 20)
        self.send(bo, "alice", 1)
        self.assertEqual(self.send(alice, "bo", 30), ["delivered"] * 30)

    def test_zero_means_no_limit(self) -> None:
        self.world = World(StorePolicy(stranger_messages=0, offline_messages=0))
        self.assertEqual(self.send(self.world.device("alice"), "bo", 100), ["stored"] * 100)
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.assertEqual(self.send(alice, "bo", 100), ["stored"] * 100)

    def test_messages_that_were_not_logged_do_not_count(self) -> None:
        self.world = World(StorePolicy(stranger_messages=1, offline_messages=1))
        alice = self.world.device("alice")
        for to in ("bo", "cy"):
            if to == "cy":
                self.know("alice", "cy")
                alice.take()
            for number in range(3):
                self.world.store(alice, to, f"{to}{number}")
                self.world.turn()
                self.world.log.fail()
                self.world.turn()
            self.assertEqual({frame.split()[-1] for frame in alice.take()}, {"log-unavailable"})
            self.assertEqual(self.send(alice, to, 2), ["receiving-user-full", "stored"])

    def test_full_stranger_is_looked_up_after_a_restart(self) -> None:
        self.know("alice", "bo")
        self.world = World(StorePolicy(stranger_messages=1), self.world.log)
        self.world.log.reader.holds = True
        alice = self.world.device("alice")
        self.world.device("bo")
        for number in range(3):
            self.world.store(alice, "bo", f"n{number}")
        self.world.commit()
        self.assertEqual(len(self.rows()), 3)  # the first one is within the bound in any case
        self.world.log.reader.answer()
        self.world.commit()
        self.assertEqual([frame.split()[-1] for frame in alice.take()], ["delivered"] * 3)

    def test_recipient_who_is_away_has_room_for_so_many_places(self) -> None:
        self.world = World(StorePolicy(offline_messages=30, stranger_messages=2))
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.assertEqual(self.send(alice, "bo", 4), ["receiving-user-full"] + ["stored"] * 3)  # a tenth
        for number in range(13):
            stranger = self.world.device(f"stranger{number}")
            self.send(stranger, "bo", 2)  # these count, and are not bound by it
        self.know("cy", "bo")
        self.assertEqual(self.send(self.world.device("cy"), "bo", 1), ["receiving-user-full"])

    def test_places_since_the_last_connection_went_count(self) -> None:
        self.world = World(StorePolicy(offline_messages=10, stranger_messages=0))
        self.know("alice", "bo")
        for left_at, expected in ((0, "receiving-user-full"), (2, "stored")):
            world = World(StorePolicy(offline_messages=2), self.world.log)
            self.world.log.marks["bo", MarkKind.LEFT_AT, ""] = left_at
            world.storing.acquaintances.wrote("bo", "alice")
            alice = world.device("alice")
            world.store(alice, "bo", f"left-at-{left_at}")
            world.commit()
            self.assertEqual(alice.take()[-1].split()[-1], expected)

    def test_places_whose_messages_were_deleted_do_not_count(self) -> None:
        self.world = World(StorePolicy(offline_messages=10, stranger_messages=0))
        self.know("alice", "bo")
        world = World(StorePolicy(offline_messages=2), self.world.log)
        world.log.marks["bo", MarkKind.LEFT_AT, ""] = 0
        world.log.trim(2**62)
        world.storing.acquaintances.wrote("bo", "alice")
        alice = world.device("alice")
        world.store(alice, "bo", "m1")
        world.commit()
        self.assertEqual(alice.take()[-1].split()[-1], "stored")

    def test_recipient_who_comes_back_has_room_again(self) -> None:
        self.world = World(StorePolicy(offline_messages=1))
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.assertEqual(self.send(alice, "bo", 2), ["receiving-user-full", "stored"])
        bo = self.world.device("bo")
        self.assertEqual(self.send(alice, "bo", 5), ["delivered"] * 5)
        bo.leave()
        self.world.turn()
        self.assertEqual(self.send(alice, "bo", 2), ["receiving-user-full", "stored"])

    def test_inbox_that_can_t_be_read_refuses(self) -> None:
        self.know("alice", "bo")
        alice = self.world.device("alice")
        self.world.log.holds_inboxes = True
        self.world.store(alice, "bo", "m1")
        self.world.store(alice, "bo", "m2")
        self.world.log.fail_inbox()
        self.world.log.answer_inbox()
        self.world.log.holds_inboxes = False
        self.world.commit()
        self.assertEqual(alice.take(), ["refused m1 log-unavailable", "3 answer m2 stored"])
