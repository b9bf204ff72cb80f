"""People who are unknown to a sender: whether they are here or not, the sender sees the same, and the same is read."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatrelay.model import Mark, MarkKind
from chatrelay.relay.storing import StorePolicy
from tests.support.store_case import Device, World

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 3), st.booleans(), st.sampled_from([None, True, False])),
        st.sampled_from([("turn",), ("commit",), ("fail",), ("doubt",), ("found",), ("lost",), ("hold",), ("read",)]),
        st.sampled_from([("busy",), ("wait",), ("forget",), ("day",)]),
    ),
    max_size=40,
)
"""What Alice does, and what happens to the log."""


class Observed(World):
    """A world in which Bo is here or not. Nobody knows him.

    :ivar reads: what was read of the log, and the order.
    """

    def __init__(self, is_here: bool) -> None:
        super().__init__(StorePolicy(stranger_messages=5, offline_messages=2))
        self.reads: list[tuple[Any, ...]] = []
        for owner, name in ((self.log.reader, "has_written"), (self.log.reader, "find"), (self.log, "inbox")):
            self._observe(owner, name)
        self.alice = Device(self, "alice")
        self.alice = self.device("alice")
        self.log.save_marks([Mark("bo", MarkKind.LEFT_AT, "", 0)])
        if is_here:
            self.device("bo")
            self.old_client("bo")
            self.log.save_marks([Mark("bo", MarkKind.RECEIVED, "", 10**6)])
        self.reads.clear()

    def _observe(self, owner: Any, name: str) -> None:
        read = getattr(owner, name)

        def observed(*arguments: Any) -> Any:
            self.reads.append((name, *arguments))
            return read(*arguments)

        setattr(owner, name, observed)

    def take(self, step: tuple[Any, ...]) -> None:
        """Do one step."""
        log = self.log
        match step:
            case ("send", number, again, reject) if self.alice.is_open:
                self.store(self.alice, "bo", f"m{number}", again=again, reject=reject)
            case ("commit",) if log.batches and not log.doubtful:
                log.commit()
            case ("fail",) if log.batches and not log.doubtful:
                log.fail()
            case ("doubt",) if log.batches and not log.doubtful:
                log.commit_unknown()
            case ("found" | "lost" as what,) if log.doubtful:
                log.settle(what == "found")
            case ("hold",):
                log.reader.holds = not log.reader.holds
            case ("read",) if log.reader.waiting:
                log.reader.answer()
            case ("busy",) if log.reader.waiting:
                log.reader.fail()
            case ("wait",):
                self.pass_seconds(3)
            case ("forget",):
                self.storing.acquaintances.forget()
            case ("day",):
                self.clock.advance(90_000)
            case _:
                self.turn()


@settings(max_examples=150, deadline=None)
@given(STEPS, st.booleans())
@example([("send", 1, False, True), ("turn",), ("commit",), ("read",), ("turn",), ("commit",)], True)
def test_presence_of_unknown_people_makes_no_difference(steps: list[tuple[Any, ...]], holds: bool) -> None:
    here, away = Observed(True), Observed(False)
    for world in (here, away):
        world.log.reader.holds = holds
    for number, step in enumerate(steps):
        here.take(step)
        away.take(step)
        assert here.alice.frames == away.alice.frames, steps[: number + 1]
        assert here.reads == away.reads, steps[: number + 1]
        assert here.alice.closed == away.alice.closed
