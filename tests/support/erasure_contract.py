"""The contract of every message log in which messages can be erased: what is left of them for everybody.

A test case inherits from `ErasureContract` and says how to erase. This module must not know any implementation.
"""

from __future__ import annotations

from collections.abc import Mapping

from chatrelay.interfaces import ErasableLog, InboxLog
from chatrelay.model import Conversation
from tests.support.inbox_log_contract import EVERYTHING, InboxLogContract, sent


class ErasureContract(InboxLogContract):
    """The contract of every message log in which messages can be erased."""

    async def erase(self, log: InboxLog, user: str, *, received: bool = False) -> None:
        """Erase what a user wrote in a started log, as a command does."""
        raise NotImplementedError

    async def told(self, log: InboxLog, user: str) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
        """Return the places of a user at which erasures are told, each with the ranges."""
        page = await log.reader.entries(user, 0, EVERYTHING, 10_000, EVERYTHING)
        return [(entry.place, entry.erased) for entry in page.entries if entry.erased]

    async def test_erased_messages_are_void_and_their_users_are_told(self) -> None:
        log = await self.filled(
            sent("a", 1, 2), sent("b", 2, 1), sent("c", 1, 3), sent("d", 1, 2), sent("e", 3, 2), sent("f", 1, 2)
        )
        await self.erase(log, "1")
        void = "(void)"
        self.assertEqual(
            await self.entries(log, "1"), [(1, void), (2, "b"), (3, void), (4, void), (5, void), (6, void)]
        )
        self.assertEqual(await self.entries(log, "2"), [(1, void), (2, "b"), (3, void), (4, "e"), (5, void), (6, void)])
        self.assertEqual(await self.entries(log, "3"), [(1, void), (2, "e"), (3, void)])
        self.assertEqual(await self.told(log, "1"), [(6, ((1, 1), (3, 5)))])
        self.assertEqual(await self.told(log, "2"), [(6, ((1, 1), (3, 3), (5, 5)))])
        self.assertEqual(await self.told(log, "3"), [(3, ((1, 1),))])
        self.assertEqual([(await log.inbox(user)).last for user in ("1", "2", "3")], [6, 6, 3])

    async def test_what_was_received_is_erased_if_that_is_asked_for(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 2, 1), sent("c", 2, 3), sent("d", 1, 1))
        await self.erase(log, "1", received=True)
        self.assertEqual(await self.entries(log, "2"), [(1, "(void)"), (2, "(void)"), (3, "c"), (4, "(void)")])
        self.assertEqual(await self.told(log, "2"), [(4, ((1, 2),))])
        self.assertEqual(await self.told(log, "1"), [(4, ((1, 3),))])

    async def test_history_lists_no_erased_message_and_no_notice(self) -> None:
        log = await self.filled(*(sent(str(place), 1 + place % 2, 2 - place % 2) for place in range(1, 10)))
        await self.erase(log, "1")  # which has written 2, 4, 6, 8
        await log.append([sent("new", 1, 2)])
        self.assertEqual(
            await self.history(log, "2", "1"), [(11, "new"), (9, "9"), (7, "7"), (5, "5"), (3, "3"), (1, "1")]
        )
        self.assertEqual(await self.history(log, "1", "2", after=4), [(5, "5"), (7, "7"), (9, "9"), (11, "new")])
        self.assertEqual(await self.history(log, "1", "1"), [])
        page = await log.reader.history("2", "1", before=9, after=None, through=11, limit=3, size=99)
        self.assertEqual(([entry.place for entry in page.entries], page.more), ([7, 5, 3], True))
        page = await log.reader.history("2", "1", before=7, after=None, through=11, limit=3, size=99)
        self.assertEqual(([entry.place for entry in page.entries], page.more), ([5, 3, 1], False))

    async def test_conversation_is_listed_by_its_last_message_that_is_left(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 3, 1), sent("c", 2, 1), sent("d", 2, 3))
        await self.erase(log, "2")
        self.assertEqual(await self.conversations(log, "1"), [(2, "b"), (1, "a")])
        self.assertEqual(await self.conversations(log, "3"), [(1, "b")])
        self.assertEqual(await self.conversations(log, "2"), [(1, "a")])

    async def test_erased_message_is_not_counted_as_unread(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2), sent("c", 3, 2))
        await self.erase(log, "1")
        await log.append([sent("d", 1, 2)])
        self.assertEqual(await self.progress(log, "2", Conversation("1"), Conversation("3")), [(0, 0, 0, 1)] * 2)
        self.assertEqual(await self.progress(log, "1", Conversation("1")), [(0, 0, 0, 0)])

    async def test_erased_message_makes_nobody_known_and_is_found_by_no_id(self) -> None:
        log = await self.filled(sent("a", 1, 2, "id-id-id-1"), sent("b", 2, 1, "id-id-id-1"))
        await self.erase(log, "1")
        self.assertEqual(await log.reader.has_written("1", "2"), False)
        self.assertEqual(await log.reader.has_written("1", "1"), False)
        self.assertEqual(await log.reader.has_written("2", "1"), True)
        self.assertEqual(await log.reader.find("1", "id-id-id-1", 0), None)
        self.assertEqual((await log.reader.find("2", "id-id-id-1", 0)).content, "b")  # type: ignore[union-attr]
        self.assertEqual(await log.reader.place_of_sender("1", "2", 99), 0)

    async def test_id_of_an_erased_message_can_be_used_again(self) -> None:
        log = await self.filled(sent("a", 1, 2, "id-id-id-1"))
        await self.erase(log, "1")
        again = sent("a", 1, 2, "id-id-id-1")
        await log.append([again])
        self.assertEqual((again.from_place, again.to_place), (3, 3))
        self.assertEqual((await log.reader.find("1", "id-id-id-1", 0)).from_place, 3)  # type: ignore[union-attr]

    async def test_relay_is_told_of_the_last_places_before_a_later_batch(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 3, 1))
        events: list[object] = []

        def note(told: Mapping[str, int]) -> None:
            events.append(dict(told))

        assert isinstance(log, ErasableLog)
        log.on_erased = note
        await self.erase(log, "1")
        await log.append([sent("c", 1, 2)]).addCallback(lambda _: events.append("batch"))
        self.assertEqual(events, [{"1": 3, "2": 2}, "batch"])

    async def test_second_erasure_tells_only_of_what_it_has_erased(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 2, 1))
        await self.erase(log, "1")
        await log.append([sent("c", 1, 2)])
        await self.erase(log, "1")
        await self.erase(log, "1")
        await self.erase(log, "unknown")
        self.assertEqual(await self.told(log, "2"), [(3, ((1, 1),)), (5, ((4, 4),))])
        self.assertEqual(await self.told(log, "1"), [(3, ((1, 1),)), (5, ((4, 4),))])
        await self.erase(log, "2")
        self.assertEqual(await self.told(log, "2"), [(3, ((1, 1),)), (5, ((4, 4),)), (6, ((2, 2),))])

    async def test_undelivered_message_is_erased_too(self) -> None:
        log = await self.filled(sent("a", 1, 2), sent("b", 1, 2), undelivered=[1])
        await self.erase(log, "1")
        self.assertEqual(await self.told(log, "2"), [(3, ((1, 2),))])
