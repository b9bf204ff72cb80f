"""Typing: who is told that somebody is typing a message."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.support.people import Device, People


class TypingTests(SynchronousTestCase):
    """Alice, to whom Bo is known."""

    def setUp(self) -> None:
        self.people = People()
        self.people.send("bo", "alice")
        self.alice, self.bo = self.people.log_in("alice"), self.people.log_in("bo")

    def type(self, device: Device, peer: str) -> None:
        """Type a message."""
        self.people.awareness.typing.typed(device.user, peer, device)

    def test_all_devices_of_the_recipient_are_told_at_once(self) -> None:
        phone = self.people.log_in("alice")
        self.type(self.bo, "alice")
        self.assertEqual((self.alice.told(), phone.told(), self.bo.told()), (["typing bo"], ["typing bo"], []))

    def test_recipient_to_whom_the_user_is_unknown_is_not_told(self) -> None:
        self.type(self.alice, "bo")
        self.assertEqual(self.bo.told(), [])

    def test_one_frame_of_a_pair_in_two_seconds(self) -> None:
        self.people.send("bo", "cy")
        cy = self.people.log_in("cy")
        for _ in range(3):
            self.type(self.bo, "alice")
        self.type(self.bo, "cy")
        self.people.pass_time(1.9)
        self.type(self.bo, "alice")
        self.assertEqual((self.alice.told(), cy.told()), (["typing bo"], ["typing bo"]))
        self.people.pass_time(0.2)
        self.type(self.bo, "alice")
        self.assertEqual(self.alice.told(), ["typing bo"])

    def test_nothing_is_kept_after_two_seconds(self) -> None:
        self.type(self.bo, "alice")
        self.assertEqual(len(self.people.awareness.typing), 1)
        self.people.pass_time(2.1)
        self.assertEqual((len(self.people.awareness.typing), self.people.clock.getDelayedCalls()), (0, []))

    def test_connection_that_has_bytes_to_read_gets_no_frame(self) -> None:
        phone = self.people.log_in("alice")
        self.alice.unsent = 1
        self.type(self.bo, "alice")
        self.assertEqual((self.alice.told(), phone.told()), ([], ["typing bo"]))

    def test_acquaintance_is_looked_up_once_and_a_failure_tells_nobody(self) -> None:
        people = self.people = People()
        people.send("bo", "alice")
        self.bo, self.alice = people.log_in("bo"), people.log_in("alice")
        people.awareness._told.forget()
        people.log.reader.holds = True
        self.type(self.bo, "alice")
        people.log.reader.fail()
        people.pass_time(2.1)
        self.type(self.bo, "alice")
        self.assertEqual(self.alice.told(), [])
        people.log.reader.answer()
        self.assertEqual(self.alice.told(), ["typing bo"])
        people.pass_time(2.1)
        self.type(self.bo, "alice")
        self.assertEqual((self.alice.told(), people.log.reader.waiting), (["typing bo"], []))

    def test_who_types_to_themselves_is_told_on_the_other_devices(self) -> None:
        self.people.send("bo", "bo")
        phone = self.people.log_in("bo")
        self.type(self.bo, "bo")
        self.assertEqual((self.bo.told(), phone.told()), ([], ["typing bo"]))
