"""The latest requests of a connection that exceed a limit."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from chatrelay.limits import latest as latest_module
from chatrelay.limits.latest import Latest


class LatestTests(SynchronousTestCase):
    """Requests by key."""

    def test_later_request_replaces_an_earlier_one_and_keeps_its_turn(self) -> None:
        kept: Latest[str] = Latest()
        self.assertIsNone(kept.keep("received", "received 1"))
        self.assertIsNone(kept.keep("read", "read 1"))
        self.assertEqual(kept.keep("received", "received 2"), "received 1")
        self.assertEqual([kept.take(), kept.take(), len(kept)], ["received 2", "read 1", 0])

    def test_request_beyond_the_limit_displaces_the_oldest(self) -> None:
        self.patch(latest_module, "MAX_KEPT", 2)
        kept: Latest[str] = Latest()
        self.assertEqual([kept.keep(key, key) for key in "abc"], [None, None, "a"])
        self.assertEqual((kept.keep("c", "d"), len(kept)), ("c", 2))

    def test_clear_forgets_all(self) -> None:
        kept: Latest[str] = Latest()
        kept.keep("a", "a")
        kept.clear()
        self.assertEqual(len(kept), 0)
