"""The variants of the message log benchmark: each writes all messages, so that their costs can be compared."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import islice

from twisted.trial.unittest import SynchronousTestCase

from bench import message_log


class Writing(SynchronousTestCase):
    """The variants and their parts."""

    def test_each_variant_writes_every_message(self) -> None:
        rows, places = message_log.gather(islice(message_log.messages(), 250))
        for variant in message_log.VARIANTS:
            with closing(sqlite3.connect(":memory:")) as connection:
                connection.executescript(variant.schema)
                variant.write(connection, rows, places)
                count = (
                    "SELECT sum(json_array_length(messages)) FROM block"
                    if "block" in variant.schema
                    else "SELECT count(*) FROM message"
                )
                self.assertEqual(connection.execute(count).fetchone(), (250,), variant.name)
                if "entry" in variant.schema:
                    entries = sum(1 if row[1] == row[3] else 2 for row in rows)
                    self.assertEqual(connection.execute("SELECT count(*) FROM entry").fetchone(), (entries,))

    def test_each_way_to_set_places_sets_them(self) -> None:
        rows, places = message_log.gather(islice(message_log.messages(), 250))
        for write in (message_log.places_one_by_one, message_log.places_looked_up, message_log.places_at_once):
            with closing(sqlite3.connect(":memory:")) as connection:
                connection.executescript(message_log.INBOX)
                write(connection, rows, places)
                self.assertEqual(dict(connection.execute("SELECT uid, last_place FROM inbox")), places)

    def test_places_are_set_once_in_10000_messages_with_any_batch(self) -> None:
        made = message_log.messages()
        for batch in (1, 7, 500):
            changes = []
            with closing(sqlite3.connect(":memory:")) as connection:
                connection.executescript(message_log.INBOX)
                for _ in range(20_000 // batch + 1):
                    rows, places = message_log.gather(islice(made, batch))
                    before = connection.total_changes
                    message_log.places_now_and_then(connection, rows, places)
                    changes.append(connection.total_changes - before)
            self.assertEqual(sum(changes), 2 * message_log.USERS)

    def test_places_have_no_gaps(self) -> None:
        rows, last = message_log.gather(islice(message_log.messages(users=3), 100))
        places: dict[str, set[int]] = {}
        for _, sender, sent, recipient, received, *_ in rows:
            places.setdefault(sender, set()).add(sent)
            places.setdefault(recipient, set()).add(received)
        self.assertEqual(places, {user: set(range(1, place + 1)) for user, place in last.items()})

    def test_batch_is_split_into_powers_of_two(self) -> None:
        rows, _ = message_log.gather(islice(message_log.messages(), 150))
        parts = list(message_log.powers_of_two(rows))
        self.assertEqual([len(part) for part in parts], [64, 64, 16, 4, 2])
        self.assertEqual([row for part in parts for row in part], rows)
