"""The directory: which connections each user has."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.relay.directory import Directory
from chatrelay.testing import RecordedConnection


class DirectoryTests(SynchronousTestCase):
    """The connections of a user, in the order of their logins."""

    def test_connections_are_listed_from_add_to_remove_oldest_first(self) -> None:
        directory, first, second = Directory(), RecordedConnection(), RecordedConnection()
        self.assertEqual(directory.connections_of("1"), ())
        directory.add("1", first)
        directory.add("1", second)
        self.assertEqual(directory.connections_of("1"), (first, second))
        self.assertEqual(len(directory), 1)
        directory.remove("1", first)
        self.assertEqual(directory.connections_of("1"), (second,))
        directory.remove("1", second)
        directory.remove("1", second)
        self.assertEqual((directory.connections_of("1"), len(directory)), ((), 0))

    def test_connections_beyond_the_limit_are_the_oldest(self) -> None:
        directory = Directory()
        first, second, third = (RecordedConnection() for _ in range(3))
        for connection in (first, second, third):
            directory.add("1", connection)
        self.assertEqual(directory.oldest_beyond("1", 2), (first,))
        self.assertEqual(directory.oldest_beyond("1", 3), ())
        self.assertEqual(directory.oldest_beyond("1", 0), ())


class Watching(SynchronousTestCase):
    """Who is told of people who arrive and leave."""

    def test_first_and_last_connection_are_told(self) -> None:
        directory = Directory()
        told: list[str] = []
        for name in ("one", "other"):
            directory.watch(
                lambda user, name=name: told.append(f"{name}: {user} arrived"),
                lambda user, name=name: told.append(f"{name}: {user} left"),
            )
        first, second = RecordedConnection(), RecordedConnection()
        directory.add("bo", first)
        self.assertEqual(told, ["one: bo arrived", "other: bo arrived"])
        told.clear()
        directory.add("bo", second)
        directory.remove("bo", first)
        self.assertEqual(told, [])
        directory.remove("bo", second)
        directory.remove("bo", second)
        self.assertEqual(told, ["one: bo left", "other: bo left"])
