"""The benchmark of the message log in PostgreSQL: it measures every part, with a real server."""

from __future__ import annotations

import io
import sys

from twisted.trial.unittest import SynchronousTestCase

from bench import postgres
from chatrelay.messagelog.postgres import PostgresMessageReader
from tests.support.postgres_server import shared_server


class Measuring(SynchronousTestCase):
    """Short runs."""

    def test_each_table_has_its_figures(self) -> None:
        printed = io.StringIO()
        self.patch(sys, "stdout", printed)
        server = shared_server()
        url = server.url(server.database(self.addCleanup))
        arguments = [url, "--batch", "1", "--batch", "50", "--users", "20", "--writers", "2", "--seconds", "0.2"]
        self.assertEqual(postgres.main([*arguments, "--reads", "5"]), 0)
        written = list(PostgresMessageReader(url).messages())
        self.assertGreater(len(written), 100)
        self.assertEqual({each.unique_id is None for each in written}, {False})
        self.assertEqual({len(each.content) for each in written}, {40})
        self.assertEqual(postgres.main([*arguments, "--v1", "--reads", "5"]), 0)
        self.assertTrue(any(each.unique_id is None for each in PostgresMessageReader(url).messages()))
        for title in (
            "20 users, 2 writers, messages of v2",
            "messages of v1",
            "milliseconds of a read",
            "bytes a message",
        ):
            self.assertIn(title, printed.getvalue())
