"""The ids that came with ``again``: how long and how many are remembered, and how a batch is searched."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import Message
from chatrelay.relay import resending as resending_module
from chatrelay.relay.resending import Resendings, Waiting


def message(id: str, is_v2: bool = True, sender: str | int = "alice") -> Message:
    """Return a message to Bo."""
    return Message(sender, "bo", id, 1, "hej", 0.0, is_v2, 3, 4)


class ResendingTests(SynchronousTestCase):
    """Ids that are remembered."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.resendings = Resendings(self.clock.seconds)

    def test_settled_id_is_remembered_for_ten_minutes(self) -> None:
        id = ("alice", "m1")
        self.resendings.begin(id, message("m1"))
        self.clock.advance(10_000)
        self.assertIsNotNone(self.resendings.get(id))  # copies may wait for it
        self.resendings.committed(message("m1"))
        self.assertIsNone(self.resendings.get(id))
        known = self.resendings.begin(id, message("m1"))
        self.resendings.committed(message("m1"))
        self.assertEqual(self.resendings.committed(message("m1")), ())
        self.clock.advance(599)
        self.assertIs(self.resendings.get(id), known)
        self.clock.advance(1)
        self.assertIsNone(self.resendings.get(id))
        self.assertEqual(len(self.resendings), 0)

    def test_old_ids_are_forgotten_when_others_come(self) -> None:
        for number in range(5):
            self.resendings.begin(("alice", f"m{number}"), message(f"m{number}"))
            self.resendings.committed(message(f"m{number}"))
        self.clock.advance(600)
        self.resendings.begin(("alice", "m9"), message("m9"))
        self.assertEqual(len(self.resendings), 1)

    def test_id_remembered_for_longest_is_displaced(self) -> None:
        self.patch(resending_module, "MAX_REMEMBERED", 2)
        for number in range(3):
            self.resendings.begin(("alice", f"m{number}"), message(f"m{number}"))
            self.resendings.committed(message(f"m{number}"))
        self.assertIsNone(self.resendings.get(("alice", "m0")))
        self.assertIsNotNone(self.resendings.get(("alice", "m1")))

    def test_another_epoch_leaves_only_what_waits(self) -> None:
        for id in ("m1", "m2"):
            self.resendings.begin(("alice", id), message(id))
        self.resendings.committed(message("m1"))
        self.resendings.forget()
        self.assertIsNone(self.resendings.get(("alice", "m1")))
        self.assertIsNotNone(self.resendings.get(("alice", "m2")))
        self.assertEqual(self.resendings.drop(("alice", "m1")), ())


class WaitingTests(SynchronousTestCase):
    """A batch that is searched."""

    def test_batch_is_searched_also_after_it_has_grown(self) -> None:
        first = message("m1")
        batch: list[tuple[object, Message]] = [(None, first), (None, message("m1")), (None, message("v1", is_v2=False))]
        waiting = Waiting(batch)
        self.assertIs(waiting.find(("alice", "m1")), first)
        self.assertIsNone(waiting.find(("alice", "v1")))
        self.assertIsNone(waiting.find(("7", "m2")))
        batch.append((None, message("m2", sender=7)))
        self.assertIs(waiting.find(("7", "m2")), batch[-1][1])
