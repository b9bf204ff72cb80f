"""Receipts: what is told of what people have received and read."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import LogBusy, MarkKind
from chatrelay.relay import receipts as receipts_module
from tests.support.people import People


class ReceiptCase(SynchronousTestCase):
    """Alice and Bo, who know each other. Alice's and Bo's places differ."""

    def setUp(self) -> None:
        self.begin()

    def begin(self, receipts: bool = True) -> None:
        """Have Alice and Bo write to each other, then log both in."""
        self.people = People(receipts=receipts)
        for _ in range(3):
            self.people.send("cy", "alice")
        self.people.send("alice", "bo")
        self.people.send("bo", "alice")
        self.alice = self.people.log_in("alice")
        self.bo = self.people.log_in("bo")
        self.reader = self.people.log.reader
        # Bo's first mark makes the relay keep his latest messages. Alice's message at place 4 is his first one.
        self.people.received(self.bo, 1)
        self.people.pass_time(1)
        self.alice.told()

    def send(self) -> int:
        """Send a message from Alice to Bo; return its place in Bo's inbox."""
        return self.people.send("alice", "bo").to_place


class ReceivedTests(ReceiptCase):
    """The mark ``received``."""

    def test_sender_is_told_in_places_of_the_sender(self) -> None:
        place = self.send()
        self.assertEqual(place, 3)
        self.people.received(self.bo, place)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -"])

    def test_live_message_is_acknowledged_without_a_read(self) -> None:
        self.people.received(self.bo, self.send())
        self.people.pass_time(1)
        self.reader.holds = True
        self.people.received(self.bo, self.send())
        self.people.received(self.bo, self.send())
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -", "receipt bo 7 -", "receipt bo 8 -"])
        self.assertEqual(self.reader.waiting, [])

    def test_mark_beyond_the_cursor_means_the_cursor(self) -> None:
        self.bo.cursor.give_up()  # nothing more is sent on this connection
        self.send()
        self.people.received(self.bo, 100)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), [])
        self.assertEqual(self.people.log.marks["bo", MarkKind.RECEIVED, ""], 2)

    def test_mark_only_goes_forward(self) -> None:
        place = self.send()
        self.people.received(self.bo, place)
        self.people.received(self.bo, place)
        self.people.received(self.bo, place - 1)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -"])
        self.assertEqual(self.people.log.marks["bo", MarkKind.RECEIVED, ""], place)

    def test_mark_counts_over_all_devices(self) -> None:
        phone = self.people.log_in("bo")
        place = self.send()
        self.people.received(phone, place)
        self.people.received(self.bo, place)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -"])

    def test_all_devices_of_the_sender_are_told(self) -> None:
        phone = self.people.log_in("alice")
        self.people.received(self.bo, self.send())
        self.assertEqual((self.alice.told(), phone.told()), (["receipt bo 6 -"], ["receipt bo 6 -"]))

    def test_mark_in_the_middle_names_the_last_message_before_it(self) -> None:
        places = [self.send() for _ in range(3)]
        self.people.received(self.bo, places[1])
        self.assertEqual(self.alice.told(), ["receipt bo 7 -"])

    def test_mark_for_messages_of_others_only_tells_nobody(self) -> None:
        self.people.received(self.bo, self.people.send("cy", "bo").to_place)
        self.people.received(self.bo, self.people.send("bo", "alice").from_place)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), [])

    def test_receipts_of_a_conversation_come_at_most_every_quarter_second_with_the_latest_number(self) -> None:
        for _ in range(4):
            self.people.received(self.bo, self.send())
        self.assertEqual(self.alice.told(), ["receipt bo 6 -"])
        self.people.pass_time(3 / 16)
        self.assertEqual(self.alice.told(), [])
        self.people.pass_time(2 / 16)
        self.assertEqual(self.alice.told(), ["receipt bo 9 -"])
        self.people.received(self.bo, self.send())
        self.assertEqual(self.alice.told(), [])
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 10 -"])
        self.people.received(self.bo, self.send())
        self.assertEqual(self.alice.told(), ["receipt bo 11 -"])

    def test_conversations_do_not_wait_for_each_other(self) -> None:
        self.people.send("bo", "cy")
        cy = self.people.log_in("cy")
        self.people.received(self.bo, self.send())
        self.people.received(self.bo, self.people.send("cy", "bo").to_place)
        self.assertEqual((self.alice.told(), cy.told()), (["receipt bo 6 -"], ["receipt bo 5 -"]))

    def test_sender_whom_the_user_has_never_written_to_is_not_told(self) -> None:
        cy = self.people.log_in("cy")
        for _ in range(3):
            self.people.received(self.bo, self.people.send("cy", "bo").to_place)
            self.people.pass_time(1)
        self.assertEqual(cy.told(), [])

    def test_sender_is_told_of_earlier_marks_once_the_user_is_known(self) -> None:
        cy = self.people.log_in("cy")
        place = self.people.send("cy", "bo").to_place
        self.people.asking.look_up(("cy", "bo"))  # as an answer to cy's message does
        self.people.received(self.bo, place)
        self.people.read(self.bo, "cy", place)
        self.people.pass_time(1)
        self.assertEqual(cy.told(), [])
        self.people.send("bo", "cy")
        self.people.pass_time(1)
        self.assertEqual(cy.told(), ["receipt bo 4 4"])

    def test_mark_of_messages_before_the_login_is_looked_up(self) -> None:
        self.people.log_out(self.bo)
        places = [self.send() for _ in range(3)]
        bo = self.people.log_in("bo")
        self.people.received(bo, places[1])
        self.people.received(bo, places[1])
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 7 -"])
        self.people.received(bo, self.send())
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 9 -"])

    def test_more_messages_than_are_kept_in_memory_are_looked_up(self) -> None:
        places = [self.send() for _ in range(70)]
        self.people.received(self.bo, places[2])
        self.assertEqual(self.alice.told(), ["receipt bo 8 -"])
        self.people.pass_time(1)
        self.people.received(self.bo, places[-1])
        self.assertEqual(self.alice.told(), ["receipt bo 75 -"])

    def test_mark_while_the_log_can_not_be_read_is_told_when_it_can(self) -> None:
        self.people.log_out(self.bo)
        place = self.send()
        bo = self.people.log_in("bo")
        self.reader.holds = True
        self.people.received(bo, place)
        self.reader.fail()
        self.people.pass_time(0.5)
        self.assertEqual(self.reader.waiting, [])
        self.people.pass_time(1)
        self.reader.fail(LogBusy("busy"))
        self.reader.holds = False
        self.people.received(bo, self.send())
        self.people.pass_time(1.5)
        self.assertEqual(self.alice.told(), ["receipt bo 7 -"])

    def test_mark_of_another_epoch_is_neither_told_nor_kept(self) -> None:
        place = self.send()
        self.people.log_out(self.bo)
        self.bo = self.people.log_in("bo")
        self.people.pass_time(1)
        self.people.log.marks.clear()
        self.reader.holds = True
        self.people.read(self.bo, "alice", place)
        self.assertEqual(len(self.reader.waiting), 1)
        self.people.log.epoch = "another"  # and the clients come back
        self.people.inboxes.check_epoch()
        self.people.log_out(self.bo)
        bo = self.people.log_in("bo")
        alice = self.people.log_in("alice")
        while self.reader.waiting:
            self.reader.answer()
        self.people.pass_time(1)
        self.assertEqual((alice.told(), self.people.log.marks.get(("bo", MarkKind.READ, "alice"))), ([], None))
        self.reader.holds = False
        self.people.received(bo, 1)
        self.people.pass_time(1)
        self.assertEqual(alice.told(), ["receipt bo 4 -"])  # the marks begin again

    def test_mark_just_before_a_disconnection_is_told(self) -> None:
        self.people.log_out(self.bo)
        place = self.send()
        bo = self.people.log_in("bo")
        self.reader.holds = True
        self.people.received(bo, place)
        self.people.log_out(bo)
        self.reader.holds = False
        while self.reader.waiting:
            self.reader.answer()
        self.assertEqual(self.alice.told(), ["receipt bo 6 -"])
        self.assertEqual(set(self.people.awareness.receipts._users), {"alice"})

    def test_mark_just_before_a_disconnection_is_kept_if_the_log_fails(self) -> None:
        self.reader.holds = True
        self.people.read(self.bo, "alice", 1)
        self.people.log_out(self.bo)
        self.reader.fail()
        self.assertEqual(set(self.people.awareness.receipts._users), {"alice"})
        self.people.pass_time(1)
        self.assertEqual(self.people.log.marks["bo", MarkKind.READ, "alice"], 1)

    def test_kept_mark_is_the_first_of_the_next_login(self) -> None:
        place = self.send()
        self.people.received(self.bo, place)
        self.people.log_out(self.bo)
        bo = self.people.log_in("bo")  # before the mark is saved
        self.people.received(bo, place)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -"])

    def test_nothing_is_kept_of_a_user_who_has_left(self) -> None:
        self.people.received(self.bo, self.send())
        for device in (self.alice, self.bo):
            self.people.log_out(device)
        self.people.pass_time(1)
        receipts = self.people.awareness.receipts
        self.assertEqual((receipts._users, receipts._pending), ({}, {}))


class ReadTests(ReceiptCase):
    """The mark ``read``."""

    def test_sender_is_told_and_read_means_received(self) -> None:
        place = self.send()
        self.people.read(self.bo, "alice", place)
        self.assertEqual(self.alice.told(), ["receipt bo 6 6"])

    def test_received_after_read_tells_nothing_new(self) -> None:
        place = self.send()
        self.people.read(self.bo, "alice", place)
        self.people.received(self.bo, place)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 6"])
        self.people.received(self.bo, self.send())
        self.assertEqual(self.alice.told(), ["receipt bo 7 -"])

    def test_read_after_received_tells_only_that(self) -> None:
        place = self.send()
        self.people.received(self.bo, place)
        self.people.pass_time(1)
        self.people.read(self.bo, "alice", place)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -", "receipt bo - 6"])

    def test_both_within_a_quarter_second_come_together(self) -> None:
        self.people.received(self.bo, self.send())
        place = self.send()
        self.people.received(self.bo, place)
        self.people.read(self.bo, "alice", place)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 -", "receipt bo 7 7"])

    def test_mark_in_the_middle_names_the_last_message_before_it(self) -> None:
        places = [self.send() for _ in range(3)]
        self.people.received(self.bo, places[2])
        self.people.pass_time(1)
        self.people.read(self.bo, "alice", places[1])
        self.people.pass_time(1)
        self.people.read(self.bo, "alice", self.people.send("bo", "alice").from_place)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 8 -", "receipt bo - 7", "receipt bo - 8"])

    def test_mark_beyond_the_cursor_means_the_cursor(self) -> None:
        self.bo.cursor.give_up()
        self.send()
        self.people.read(self.bo, "alice", 100)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo - 4"])
        self.assertEqual(self.people.log.marks["bo", MarkKind.READ, "alice"], 2)

    def test_mark_only_goes_forward_and_an_old_one_tells_nobody(self) -> None:
        phone = self.people.log_in("bo")
        place = self.send()
        self.people.read(self.bo, "alice", place)
        self.people.read(phone, "alice", place)
        self.people.read(phone, "alice", place - 1)
        self.people.pass_time(1)
        self.assertEqual(self.alice.told(), ["receipt bo 6 6"])
        self.assertEqual((self.bo.told(), phone.told()), ([], ["read alice 3"]))

    def test_kept_mark_is_looked_up_before_an_older_one_is_told(self) -> None:
        place = self.send()
        self.people.read(self.bo, "alice", place)
        self.people.log_out(self.bo)
        self.people.pass_time(1)
        self.alice.told()
        bo, phone = self.people.log_in("bo"), self.people.log_in("bo")
        self.people.read(bo, "alice", place)
        self.people.pass_time(1)
        self.assertEqual((self.alice.told(), phone.told()), ([], []))

    def test_own_devices_are_told_but_not_the_one_that_sets_the_mark(self) -> None:
        phone = self.people.log_in("bo")
        self.people.read(phone, "alice", 2)
        self.assertEqual((self.bo.told(), phone.told()), (["read alice 2"], []))

    def test_conversation_that_does_not_exist_is_not_kept(self) -> None:
        phone = self.people.log_in("bo")
        self.people.read(self.bo, "nobody", 2)
        self.people.pass_time(1)
        self.assertEqual(phone.told(), ["read nobody 2"])
        self.assertNotIn(("bo", MarkKind.READ, "nobody"), self.people.log.marks)

    def test_conversation_in_which_only_the_user_has_written_is_kept_and_tells_nobody(self) -> None:
        dee = self.people.log_in("dee")
        self.people.send("bo", "dee")
        self.people.read(self.bo, "dee", 3)
        self.people.pass_time(1)
        self.assertEqual(self.people.log.marks["bo", MarkKind.READ, "dee"], 3)
        self.assertEqual(dee.told(), [])

    def test_mark_while_the_log_can_not_be_read_is_told_when_it_can(self) -> None:
        self.people.log_out(self.bo)
        place = self.send()
        bo = self.people.log_in("bo")
        self.reader.holds = True
        self.people.read(bo, "alice", place)
        self.reader.fail()
        self.reader.holds = False
        self.people.pass_time(1.5)
        self.assertEqual(self.alice.told(), ["receipt bo 6 6"])

    def test_waiting_marks_beyond_the_limit_are_kept_and_tell_nobody(self) -> None:
        self.patch(receipts_module, "MAX_WAITING", 2)
        self.reader.holds = True
        for peer in ("alice", "cy", "dee", "eve"):
            self.people.read(self.bo, peer, 2)
        self.reader.holds = False
        while self.reader.waiting:
            self.reader.answer()
        self.people.pass_time(1)
        self.assertEqual(self.people.log.marks["bo", MarkKind.READ, "alice"], 2)
        self.assertEqual(len(self.people.awareness.receipts._users["bo"].wanted), 0)

    def test_no_more_conversations_than_the_limit_are_kept_in_memory(self) -> None:
        self.patch(receipts_module, "MAX_CONVERSATIONS", 2)
        for number in range(5):
            self.people.read(self.bo, str(number), 2)
        self.assertEqual(list(self.people.awareness.receipts._users["bo"].reads), ["3", "4"])


class ReceiptsOffTests(ReceiptCase):
    """``--receipts off``."""

    def setUp(self) -> None:
        self.begin(receipts=False)

    def test_marks_are_kept_and_own_devices_are_told_and_nobody_else(self) -> None:
        phone = self.people.log_in("bo")
        place = self.send()
        self.people.received(self.bo, place)
        self.people.read(self.bo, "alice", place)
        self.people.pass_time(1)
        self.assertEqual((self.alice.told(), phone.told()), ([], ["read alice 3"]))
        self.assertEqual(self.people.log.marks["bo", MarkKind.RECEIVED, ""], 3)
        self.assertEqual(self.people.log.marks["bo", MarkKind.READ, "alice"], 3)
