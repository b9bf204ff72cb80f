"""How far conversations have been received and read, as history and conversations say it."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.model import LoggedMessage, MarkKind
from chatrelay.relay.overview import Overview
from chatrelay.wire.structs_v2 import Marks
from tests.support.people import People


class OverviewTests(SynchronousTestCase):
    """Alice's conversations. Bo is known to her, and nobody else is."""

    def setUp(self) -> None:
        self.people = People()
        self.people.send("cy", "bo")  # so that Alice's and Bo's places differ
        self.people.send("bo", "alice")
        self.alice, self.bo = self.people.log_in("alice"), self.people.log_in("bo")

    def overview(
        self, *peers: str, with_last: bool = True, through: int | None = None, receipts: bool = True
    ) -> dict[str, Marks]:
        """Look up conversations of Alice."""
        overview = Overview(
            self.people.log.reader, self.people.asking, self.people.awareness.marks, tells_receipts=receipts
        )
        last: dict[str, LoggedMessage | None] = {peer: self.last(peer) if with_last else None for peer in peers}
        marks: Any = self.successResultOf(Deferred.fromCoroutine(overview.marks_of("alice", last, through)))
        return marks  # type: ignore[no-any-return]

    def last(self, peer: str) -> LoggedMessage | None:
        """Return the last message of a conversation of Alice."""
        page = self.people.log.reader.history(
            "alice", peer, before=None, after=None, through=10_000, limit=1, size=10_000
        )
        entries = self.successResultOf(page).entries
        return entries[0].message if entries else None

    def test_numbers_are_zero_before_there_is_a_mark(self) -> None:
        self.assertEqual(self.overview("bo"), {"bo": Marks(0, 0, 0, UNSET)})

    def test_numbers_are_places_of_the_user_with_and_without_the_last_message(self) -> None:
        places = [self.people.send("alice", "bo").to_place for _ in range(3)]
        self.people.received(self.bo, places[2])
        self.people.read(self.bo, "alice", places[1])
        self.people.read(self.alice, "bo", 1)
        for with_last in (True, False):
            self.assertEqual(self.overview("bo", with_last=with_last), {"bo": Marks(4, 3, 1, UNSET)})

    def test_read_means_received(self) -> None:
        place = self.people.send("alice", "bo").to_place
        self.people.read(self.bo, "alice", place)
        self.assertEqual(self.overview("bo"), {"bo": Marks(2, 2, 0, UNSET)})

    def test_all_conversations_are_read_at_once(self) -> None:
        others = [f"user{number}" for number in range(40)]
        for other in others:
            self.people.send("alice", other)
        for other in others[:20]:
            self.people.send(other, "alice")
        reads = self.reads()
        self.overview(*others, through=999)
        self.assertEqual(reads, ["writers", "progress"])  # who has written last is known to have written
        reads.clear()
        self.overview(*others, through=999)
        self.assertEqual(reads, ["progress"])

    def reads(self) -> list[str]:
        """Return a list that grows by the name of each read of the log that is not `last`."""
        reads: list[str] = []
        reader = self.people.log.reader
        for name in ("marks", "has_written", "writers", "progress", "place_of_sender"):
            read = getattr(reader, name)
            self.patch(reader, name, lambda *args, name=name, read=read, **kw: reads.append(name) or read(*args, **kw))
        return reads

    def test_mark_that_is_not_saved_yet_counts(self) -> None:
        place = self.people.send("alice", "bo").to_place
        self.people.awareness.marks.set("bo", MarkKind.READ, "alice", place)
        self.people.awareness.marks.set("alice", MarkKind.READ, "bo", 1)
        self.assertEqual(self.people.log.marks, {})
        self.assertEqual(self.overview("bo"), {"bo": Marks(2, 2, 1, UNSET)})

    def test_unknown_people_have_no_numbers_and_only_acquaintance_is_read(self) -> None:
        cy = self.people.log_in("cy")
        place = self.people.send("alice", "cy").to_place
        self.people.received(cy, place)
        self.people.read(cy, "alice", place)
        self.people.read(self.alice, "cy", 2)
        self.assertEqual(
            self.overview("cy", "nobody"), {"cy": Marks(UNSET, UNSET, 2, UNSET), "nobody": Marks(UNSET, UNSET, 0)}
        )

    def test_receipts_off_leave_only_ones_own_mark(self) -> None:
        place = self.people.send("alice", "bo").to_place
        self.people.read(self.bo, "alice", place)
        self.people.read(self.alice, "bo", 2)
        self.assertEqual(self.overview("bo", receipts=False), {"bo": Marks(UNSET, UNSET, 2, UNSET)})

    def test_unread_messages_of_the_other_are_counted_up_to_a_place_and_to_100(self) -> None:
        for _ in range(4):
            self.people.send("bo", "alice")
        self.people.send("alice", "bo")
        for with_last in (True, False):
            self.assertEqual(self.overview("bo", with_last=with_last, through=6)["bo"].unread, 5)
            self.assertEqual(self.overview("bo", with_last=with_last, through=4)["bo"].unread, 4)
        self.people.read(self.alice, "bo", 2)
        self.assertEqual(self.overview("bo", through=6)["bo"].unread, 3)
        self.people.read(self.alice, "bo", 6)
        for with_last in (True, False):
            self.assertEqual(self.overview("bo", with_last=with_last, through=6)["bo"].unread, 0)
        for _ in range(120):
            self.people.send("bo", "alice")
        self.assertEqual(self.overview("bo", through=126)["bo"].unread, 100)
