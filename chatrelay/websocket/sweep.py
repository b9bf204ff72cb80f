"""A sweep: everything that has a time is looked at, part by part, four times a second.

Pure: the time is handed in. A defect in one part keeps no other part from
being looked at, and trouble with one connection no other connection from
being ended. What the parts look at it must not know: they are handed in by
whoever has them (`chatrelay.websocket.protocol`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from twisted.logger import Logger

log = Logger("chatrelay.websocket")

Ends = Iterable[Callable[[], object]]
"""What is to be called, one after the other, to end what is over its time."""

WELL_AFTER = 240
"""So many sweeps in a row a part must go well to count as well again: a minute of them."""


class _Part:
    """One kind of what is looked at.

    :ivar failures: since it was last well; 0 while it is.
    :ivar went_well: how many sweeps in a row it has gone well since it failed.
    """

    __slots__ = ("failures", "look", "name", "went_well")

    def __init__(self, name: str, look: Callable[[float], Ends | None]) -> None:
        self.name = name
        self.look = look
        self.failures = 0
        self.went_well = 0


class Sweep:
    """Looks at each part in its order, and ends what it finds before the next is looked at.

    The operator is told of a defect when it begins and when it is over: a
    lasting one would fill the log with four tracebacks a second, and the
    traceback of the first says it all.

    :param parts: what each looks at, in the operator's words, and how: called with the time, it does what is due by
        itself, or returns what does.
    """

    def __init__(self, parts: Mapping[str, Callable[[float], Ends | None]]) -> None:
        self._parts = [_Part(name, look) for name, look in parts.items()]

    def look(self, now: float) -> None:
        """Look at every part.

        :param now: seconds of any clock, the same at each call.
        """
        for part in self._parts:
            failures = part.failures
            try:
                # All that is found, before the first of it ends and changes what is looked at.
                for end in tuple(part.look(now) or ()):
                    self._end(end, part)
            # A defect in one part must not keep the others from being looked at.
            except Exception:
                self._failed(part)
            if part.failures and part.failures == failures:
                self._went_well(part)

    def _end(self, end: Callable[[], object], part: _Part) -> None:
        try:
            end()
        # One connection's trouble must not keep all others from being ended.
        except Exception:
            self._failed(part)

    def _failed(self, part: _Part) -> None:
        part.failures += 1
        part.went_well = 0
        if part.failures == 1:
            log.failure(
                "looking at {what} failed; the rest is looked at as ever, and this is tried again and again, but not "
                "told again until it goes well; please report it",
                what=part.name,
            )

    def _went_well(self, part: _Part) -> None:
        part.went_well += 1
        if part.went_well == WELL_AFTER:
            log.warn(
                "looking at {what} goes well again; it had failed {failures} times",
                what=part.name,
                failures=part.failures,
            )
            part.failures = 0
