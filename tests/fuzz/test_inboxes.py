"""Hypothesis searches for actions after which an inbox of v2 is not what it must be, and shortens them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.fuzz.broken_inboxes import BROKEN_INBOXES
from tests.fuzz.inbox_world import InboxWorld

WHICH = st.integers(0, 4)
"""A phone, a user, or one of several messages."""

MOVES = [
    *["commit"] * 6,
    *["fail", "commit_unknown", "found", "not_found"],
    *["mark", "mark", "fail_to_mark"],
    *["read"] * 4,
    *["fail_to_read", "busy", "hold_reads", "hold_inboxes", "inbox", "inbox"],
]


class Inboxing(RuleBasedStateMachine):
    """What may happen to people who write to each other, in any order."""

    @initialize(acquainted=st.booleans())
    def begin(self, acquainted: bool) -> None:
        self.world = InboxWorld()
        for which in range(3):
            self.world.connect(which, False, False)
        if acquainted:
            for which in range(3):
                for to in range(3):
                    self.world.send(which, to, False, False)
            self.world.turn()
            self.world.move_log("commit")

    @rule(which=WHICH, is_slow=st.booleans(), has_after=st.sampled_from([True, True, False]))
    def connect(self, which: int, is_slow: bool, has_after: bool) -> None:
        self.world.connect(which, is_slow, has_after)

    @rule(which=WHICH, part=st.sampled_from([0.0, 0.5, 1.0]))
    def cut(self, which: int, part: float) -> None:
        self.world.cut(which, part)

    @rule()
    def cut_dying(self) -> None:
        self.world.cut_dying()

    @rule(which=WHICH)
    def read(self, which: int) -> None:
        self.world.read(which)

    @rule(which=WHICH, to=WHICH, count=st.sampled_from([1, 1, 3]), reject=st.booleans(), again=st.booleans())
    def send(self, which: int, to: int, count: int, reject: bool, again: bool) -> None:
        for _ in range(count):
            self.world.send(which, to, reject, again)

    @rule(which=WHICH, to=WHICH)
    def send_and_commit(self, which: int, to: int) -> None:
        self.world.send(which, to, False, False)
        self.world.turn()
        self.world.move_log("commit")

    @rule(which=WHICH, index=WHICH)
    def send_again(self, which: int, index: int) -> None:
        self.world.send_again(which, index)

    @rule(which=WHICH)
    def late_first_copy(self, which: int) -> None:
        self.world.late_first_copy(which)

    @rule(who=WHICH)
    def connect_old(self, who: int) -> None:
        self.world.connect_old(who)

    @rule(who=WHICH, to=WHICH)
    def send_old(self, who: int, to: int) -> None:
        self.world.send_old(who, to)

    @rule(who=WHICH, to=WHICH)
    def old_message_reaches_nobody(self, who: int, to: int) -> None:
        self.world.connect_old(to)
        self.world.send_old(who, to)
        self.world.turn()
        self.world.connect_old(to)
        self.world.move_log("commit")

    @rule(which=WHICH, to=WHICH)
    def answer_waits_for_a_look_up(self, which: int, to: int) -> None:
        self.world.forget_acquaintances()
        self.world.move_log("hold_reads")
        self.world.send(which, to, False, False)
        self.world.turn()
        self.world.move_log("commit")

    @rule(which=WHICH, to=WHICH)
    def comes_again_before_the_commit(self, which: int, to: int) -> None:
        self.world.send(which, to, False, False)
        self.world.send_again(which, 0)

    @rule(which=WHICH, to=WHICH)
    def comes_again_before_a_first_copy(self, which: int, to: int) -> None:
        self.world.send(which, to, False, False)
        self.world.connect(which, False, True)
        self.world.send_again(which, 0)
        self.world.late_first_copy(which)

    @rule()
    def turn(self) -> None:
        self.world.turn()

    @rule(how=st.sampled_from(MOVES))
    def log_moves(self, how: str) -> None:
        self.world.turn()
        self.world.move_log(how)

    @rule(seconds=st.sampled_from([0.5, 1.25, 4.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(which=st.integers(0, 3), rounds=st.integers(0, 4))
    def a_day_passes(self, which: int, rounds: int) -> None:
        if which == 0:  # rarely
            self.world.pass_a_day()
            self.world.trim(rounds)

    @rule()
    def trim(self) -> None:
        self.world.trim()

    @rule(which=WHICH, rounds=st.integers(1, 4))
    def what_is_replayed_is_trimmed_meanwhile(self, which: int, rounds: int) -> None:
        self.world.cut(which, 1.0)
        self.world.send(which + 1, which % 3, False, False)
        self.world.turn()
        self.world.move_log("commit")
        self.world.pass_a_day()
        self.world.log.reader.holds = True
        self.world.connect(which, False, True)
        self.world.trim(rounds)

    @rule(who=WHICH, received=st.sampled_from([False, False, True]))
    def erase(self, who: int, received: bool) -> None:
        self.world.erase(who, received)

    @rule(is_committed=st.booleans())
    def restart(self, is_committed: bool) -> None:
        self.world.restart(is_committed)

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.world.is_broken:
            self.world.come_to_rest()


QUICK = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining takes minutes of tracing
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

FULL = settings(QUICK, max_examples=5000)
"""For `make trials`: minutes."""

FINDING = settings(
    QUICK,
    max_examples=400,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,  # in a group of exceptions
)


def test_inboxes_hold(full: bool) -> None:
    run_state_machine_as_test(Inboxing, settings=FULL if full else QUICK)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("what", BROKEN_INBOXES)
def test_broken_inbox_is_found(what: str) -> None:
    breaks, said = BROKEN_INBOXES[what]
    with breaks(), pytest.raises(AssertionError, match=said):
        run_state_machine_as_test(Inboxing, settings=FINDING)  # type: ignore[no-untyped-call]
