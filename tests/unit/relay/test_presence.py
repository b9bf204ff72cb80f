"""Presence: who is told that somebody is online, and when they were last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import LogBusy, Mark, MarkKind
from chatrelay.relay import presence as presence_module
from tests.support.people import Device, People


class PresenceCase(SynchronousTestCase):
    """Alice, to whom Bo is known."""

    presence = "known"

    def setUp(self) -> None:
        self.people = People(presence=self.presence)
        self.people.pass_time(1000)
        self.people.send("bo", "alice")
        self.alice = self.people.log_in("alice")
        self.people.turn()

    def watch(self, device: Device, *users: str) -> Any:
        """Watch users; return who is online, and who is offline."""
        return self.successResultOf(self.begin(device, *users))

    def begin(self, device: Device, *users: str) -> Deferred[Any]:
        """Begin to watch users."""
        return Deferred.fromCoroutine(self.people.awareness.watch(device.watcher, users))

    def left(self, user: str) -> tuple[int | None, int | None]:
        """Return what the message log has of the last departure of a user: the place and the time."""
        state = self.successResultOf(self.people.log.inbox(user))
        return state.left_at, state.last_seen


class PresenceTests(PresenceCase):
    """By acquaintance."""

    def test_answer_has_who_is_online_and_when_the_others_were(self) -> None:
        self.people.send("cy", "alice")
        self.people.send("dee", "alice")
        self.people.log_in("bo")
        self.people.log_out(self.people.log_in("cy"))
        self.people.pass_time(6)
        self.assertEqual(self.watch(self.alice, "bo", "cy", "dee"), (["bo"], {"cy": 1_000_000, "dee": None}))

    def test_unknown_people_are_in_neither_list_whether_they_are_here_or_not(self) -> None:
        self.people.log_in("cy")
        self.people.send("alice", "cy")
        self.assertEqual(self.watch(self.alice, "cy", "nobody"), ([], {}))

    def test_change_is_told_once_to_each_watching_connection(self) -> None:
        phone = self.people.log_in("alice")
        other = self.people.log_in("alice")
        for device in (self.alice, phone):
            self.watch(device, "bo")
        self.people.log_in("bo")
        self.people.log_in("bo")
        self.people.turn()
        self.assertEqual(
            [device.told() for device in (self.alice, phone, other)], [["presence bo on"], ["presence bo on"], []]
        )

    def test_offline_is_told_five_seconds_after_the_last_connection_with_its_time(self) -> None:
        phone, bo = self.people.log_in("bo"), self.people.log_in("bo")
        self.watch(self.alice, "bo")
        self.people.log_out(bo)
        self.people.pass_time(7)
        self.assertEqual(self.alice.told(), [])
        self.people.log_out(phone)
        self.people.pass_time(4.9)
        self.assertEqual(self.alice.told(), [])
        self.people.pass_time(0.2)
        self.assertEqual(self.alice.told(), ["presence bo off 1007000"])

    def test_who_comes_back_within_five_seconds_was_online_all_the_time(self) -> None:
        bo = self.people.log_in("bo")
        self.watch(self.alice, "bo")
        self.people.log_out(bo)
        self.people.pass_time(4)
        self.assertEqual(self.watch(self.people.log_in("alice"), "bo"), (["bo"], {}))
        self.people.log_in("bo")
        self.people.pass_time(10)
        self.assertEqual(self.alice.told(), [])

    def test_connecting_again_and_again_costs_the_watchers_nothing(self) -> None:
        self.watch(self.alice, "bo")
        bo = self.people.log_in("bo")
        self.people.turn()
        turns: list[Any] = []
        presence = self.people.awareness.presence
        assert presence is not None
        self.patch(presence, "_call_soon", turns.append)
        for _ in range(10):
            self.people.log_out(bo)
            bo = self.people.log_in("bo")
        self.assertEqual(turns, [])

    def test_watch_of_a_user_who_has_just_left_is_told_that_they_are_offline(self) -> None:
        self.people.log_out(self.people.log_in("bo"))
        self.people.pass_time(3)
        self.assertEqual(self.watch(self.alice, "bo"), (["bo"], {}))
        self.people.pass_time(6)
        self.assertEqual(self.alice.told(), ["presence bo off 1000000"])
        self.assertEqual(self.watch(self.alice, "bo"), ([], {"bo": 1_000_000}))

    def test_departures_that_nobody_watches_take_no_timer_and_are_forgotten(self) -> None:
        for user in "cde":
            self.people.log_out(self.people.log_in(user))
        self.people.turn()
        self.assertEqual(self.people.clock.getDelayedCalls(), [])
        self.people.pass_time(5)
        self.people.log_out(self.people.log_in("bo"))
        presence = self.people.awareness.presence
        assert presence is not None
        self.assertEqual(list(presence._leaving), ["bo"])

    def test_one_frame_in_five_seconds_with_the_latest_state(self) -> None:
        self.watch(self.alice, "bo")
        bo = self.people.log_in("bo")
        self.people.log_out(bo)
        self.people.pass_time(5.5)
        self.assertEqual(self.alice.told(), ["presence bo on", "presence bo off 1000000"])
        bo = self.people.log_in("bo")
        self.people.pass_time(4)
        self.assertEqual(self.alice.told(), [])
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["presence bo on"])

    def test_new_request_does_not_shorten_the_five_seconds(self) -> None:
        bo = self.people.log_in("bo")
        self.watch(self.alice, "bo")
        self.people.log_out(bo)
        self.people.pass_time(5)
        self.assertEqual(self.alice.told(), ["presence bo off 1000000"])
        self.watch(self.alice)
        self.watch(self.alice, "bo")
        self.people.log_in("bo")
        self.people.pass_time(4.5)
        self.assertEqual(self.alice.told(), [])
        self.people.pass_time(0.75)
        self.assertEqual(self.alice.told(), ["presence bo on"])

    def test_new_request_replaces_the_watches_and_an_empty_one_ends_them(self) -> None:
        self.people.send("cy", "alice")
        self.watch(self.alice, "bo")
        self.watch(self.alice, "cy")
        self.people.log_in("bo")
        self.people.log_in("cy")
        self.people.turn()
        self.assertEqual(self.alice.told(), ["presence cy on"])
        self.assertEqual(self.watch(self.alice), ([], {}))
        self.people.pass_time(6)
        self.assertEqual(len(self.people.awareness.presence or ()), 0)

    def test_watch_of_an_unknown_user_follows_acquaintance(self) -> None:
        self.watch(self.alice, "cy")
        cy = self.people.log_in("cy")
        self.people.pass_time(6)
        self.assertEqual(self.alice.told(), [])
        self.people.send("cy", "alice")
        self.assertEqual(self.alice.told(), ["presence cy on"])
        self.people.send("cy", "alice")
        self.people.log_out(cy)
        self.people.pass_time(6)
        self.assertEqual(self.alice.told(), ["presence cy off 1006000"])

    def test_user_who_becomes_known_while_the_request_is_answered_is_in_the_answer(self) -> None:
        self.people.log_in("cy")
        reader = self.people.log.reader
        reader.holds = True
        watching = self.begin(self.alice, "cy", "bo")
        reader.answer()  # who has written
        self.people.send("cy", "alice")
        reader.answer()  # when Bo was seen
        self.assertEqual(self.successResultOf(watching), (["cy"], {"bo": None}))

    def test_all_users_of_a_request_are_looked_up_at_once(self) -> None:
        users = [f"user{number}" for number in range(30)]
        for user in users[:9]:
            self.people.send(user, "alice")
        self.people.asking.forget()
        self.people.log.reader.holds = True
        watching = self.begin(self.alice, *users)
        self.people.log.reader.answer()  # who has written
        self.people.log.reader.answer()  # when they were seen
        self.assertEqual(self.successResultOf(watching), ([], dict.fromkeys(users[:9])))

    def test_request_fails_if_the_log_can_not_be_read_and_the_watches_stay(self) -> None:
        self.watch(self.alice, "bo")
        self.people.log.reader.holds = True
        watching = self.begin(self.alice, "dee")
        self.people.log.reader.fail(LogBusy("busy"))
        self.failureResultOf(watching, LogBusy)
        self.people.log_in("bo")
        self.people.turn()
        self.assertEqual(self.alice.told(), ["presence bo on"])

    def test_connection_that_closes_while_its_request_is_answered_watches_nobody(self) -> None:
        self.people.log.reader.holds = True
        watching = self.begin(self.alice, "dee", "bo")
        self.people.log_out(self.alice)
        self.people.log.reader.holds = False
        while self.people.log.reader.waiting:
            self.people.log.reader.answer()
        self.successResultOf(watching)
        presence = self.people.awareness.presence
        assert presence is not None
        self.assertEqual((len(presence), presence._watchers), (0, {}))

    def test_user_with_many_watchers_is_told_of_in_slices_with_the_state_of_then(self) -> None:
        self.patch(presence_module, "SLICE", 2)
        devices = [self.people.log_in("alice") for _ in range(5)]
        for device in devices:
            self.watch(device, "bo")
        bo = self.people.log_in("bo")
        self.people._turns.pop(0)()
        self.assertEqual([device.told() for device in devices].count(["presence bo on"]), 2)
        self.people.log_out(bo)
        self.people.pass_time(6)
        self.assertEqual([len(device.told()) for device in devices].count(1), 2)
        self.assertEqual([device.watcher.told["bo"] for device in devices], [False] * 5)

    def test_nothing_is_kept_of_connections_and_users_who_have_gone(self) -> None:
        self.people.send("cy", "alice")
        bo = self.people.log_in("bo")
        self.watch(self.alice, "bo", "cy", "dee")
        for device in (bo, self.alice):
            self.people.log_out(device)
        self.people.pass_time(11)
        presence = self.people.awareness.presence
        assert presence is not None
        kept = (presence._watchers, presence._watched, presence._last_seen, presence._recent)
        self.assertEqual(kept, ({}, {}, {}, set()))
        self.assertEqual(self.people.clock.getDelayedCalls(), [])

    def test_last_seen_and_the_last_place_are_kept_when_the_last_connection_goes(self) -> None:
        phone, bo = self.people.log_in("bo"), self.people.log_in("bo")
        self.people.log_out(bo)
        self.people.pass_time(2)
        self.assertEqual(self.left("bo"), (None, None))
        self.people.log_out(phone)
        self.people.pass_time(1)
        self.assertEqual(self.left("bo"), (1, 1_002_000))

    def test_departure_is_not_known_after_a_crash_while_the_user_was_here(self) -> None:
        self.people.log_out(self.people.log_in("bo"))
        self.people.pass_time(1)
        first = self.left("bo")
        self.people.log_in("bo")
        self.people.turn()
        self.assertEqual((first, self.left("bo")), ((1, 1_000_000), (None, None)))
        self.people.pass_time(9)
        self.people = People(self.people.log, clock=self.people.clock)  # what was in memory is lost
        self.alice = self.people.log_in("alice")
        self.assertEqual(self.watch(self.alice, "bo"), ([], {"bo": None}))
        bo = self.people.log_in("bo")
        self.people.log_out(bo)
        self.people.pass_time(6)
        self.assertEqual(self.left("bo"), (1, 1_010_000))
        self.assertEqual(self.watch(self.people.log_in("alice"), "bo"), ([], {"bo": 1_010_000}))

    def test_arrival_is_saved_once_for_all_connections_of_a_user(self) -> None:
        saves: list[Sequence[Mark]] = []
        save_marks = self.people.log.save_marks
        self.patch(self.people.log, "save_marks", lambda marks: saves.append(marks) or save_marks(marks))
        for _ in range(3):
            self.people.log_in("bo")
            self.people.turn()
        self.assertEqual([[mark[:3] for mark in marks] for marks in saves], [[("bo", MarkKind.STAYS, "")]])

    def test_late_departure_of_a_user_who_has_come_back_does_not_count(self) -> None:
        bo = self.people.log_in("bo")
        self.people.log.holds_inboxes = True
        self.people.log_out(bo)
        self.people.directory.add("bo", Device("bo"))  # type: ignore[arg-type]
        self.people.log.answer_inbox()
        self.people.log.holds_inboxes = False
        self.people.pass_time(1)
        self.assertEqual(self.left("bo"), (None, None))

    def test_stop_waits_for_the_last_places_of_those_who_leave(self) -> None:
        self.successResultOf(self.people.awareness.stop())
        bo = self.people.log_in("bo")
        self.people.log.holds_inboxes = True
        self.people.log_out(bo)
        stopped = self.people.awareness.stop()
        self.assertNoResult(stopped)
        self.people.log.answer_inbox()
        self.successResultOf(stopped)
        self.assertEqual(self.people.log.marks["bo", MarkKind.LEFT_AT, ""], 1)

    def test_nothing_waits_after_a_stop(self) -> None:
        self.people.send("alice", "bo")
        bo = self.people.log_in("bo")
        self.watch(self.alice, "bo", "cy")
        self.people.received(bo, self.people.send("alice", "bo").to_place)
        self.people.awareness.typing.typed("bo", "alice", bo)
        self.people.log.reader.holds = True
        self.people.read(bo, "alice", 2)
        self.people.read(bo, "cy", 2)
        self.people.log.reader.fail()  # so that it is tried again
        for device in (bo, self.alice):
            self.people.log_out(device)
        self.successResultOf(self.people.awareness.stop())
        self.assertEqual(self.people.clock.getDelayedCalls(), [])
        self.assertEqual(self.people.log.marks["bo", MarkKind.READ, "cy"], 2)
        self.people.log.reader.holds = False
        self.people.pass_time(1)
        self.assertEqual(self.people.clock.getDelayedCalls(), [])

    def test_acquaintance_is_looked_up_again_in_another_epoch_and_after_messages_that_nobody_told_of(self) -> None:
        awareness = self.people.awareness
        told = awareness._told
        told.look_up(("bo", "cy"))
        self.assertEqual((told.known(("alice", "bo")), told.known(("bo", "cy"))), (True, False))
        awareness.forget_unknown()
        self.assertEqual((told.known(("alice", "bo")), told.known(("bo", "cy"))), (True, None))
        awareness.forget()
        self.assertIsNone(told.known(("alice", "bo")))

    def test_departure_while_the_log_can_not_be_read_is_forgotten(self) -> None:
        bo = self.people.log_in("bo")
        self.people.log.holds_inboxes = True
        self.people.log_out(bo)
        self.people.log.fail_inbox()
        self.people.pass_time(1)
        self.people.log.holds_inboxes = False
        self.assertEqual(self.left("bo"), (None, None))


class PresenceForEverybodyTests(PresenceCase):
    """``--presence everybody``."""

    presence = "everybody"

    def test_everybody_is_told_of_everybody(self) -> None:
        cy = self.people.log_in("cy")
        self.assertEqual(self.watch(self.alice, "cy", "nobody"), (["cy"], {"nobody": None}))
        self.people.log_out(cy)
        self.people.pass_time(6)
        self.assertEqual(self.alice.told(), ["presence cy off 1000000"])
        self.assertEqual(self.people.log.reader.waiting, [])


class PresenceOffTests(PresenceCase):
    """``--presence off``."""

    presence = "off"

    def test_nobody_is_told_and_no_time_is_kept(self) -> None:
        self.assertIsNone(self.people.awareness.presence)
        self.people.log_out(self.people.log_in("bo"))
        self.people.pass_time(1)
        self.assertEqual(self.left("bo"), (1, None))
        self.assertEqual({kind for _, kind, _ in self.people.log.marks}, {MarkKind.LEFT_AT, MarkKind.STAYS})
