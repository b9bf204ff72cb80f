"""Hypothesis searches for actions after which an inbox of v2 is not what it must be, and shortens them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from chatrelay.relay.delivery import Relay
from tests.fuzz.broken_inboxes import BROKEN_INBOXES
from tests.fuzz.inbox_world import USERS, InboxWorld

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

    make_world: Callable[[], Any] = InboxWorld

    @initialize(acquainted=st.booleans())
    def begin(self, acquainted: bool) -> None:
        self.world = self.make_world()
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
        self.world.move_log("hold_reads")  # after `pass_a_day`, none is held
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


class TwoWorlds:
    """The same actions for a relay as it is, and for one that has no shorter way for the usual case.

    After each action, both have sent the same to everybody, and are in the same state.
    """

    def __init__(self) -> None:
        self.worlds = (InboxWorld(), InboxWorld())
        self.is_broken = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            usual, stepwise = self.worlds
            getattr(usual, name)(*arguments)
            with patch.object(Relay, "_deliver_as_usual", lambda *_: False):
                getattr(stepwise, name)(*arguments)
            assert self.state(usual) == self.state(stepwise)

        return act

    def state(self, inboxes: InboxWorld) -> object:
        """Return what is visible from outside, and what decides about the next messages."""
        world, storing = inboxes.world, inboxes.world.storing
        return (
            [(each.user, each.is_open, each.frames, each.answered) for each in inboxes.connections],
            [(each.cursor.place, each.cursor.state) for each in inboxes.connections if each.cursor is not None],
            [(user, old and old.sent) for user, old in inboxes.old.items()],
            [(user, inbox.last, inbox.settled) for user in USERS if (inbox := world.inboxes.get(user)) is not None],
            (dict(inboxes.old_submitter.answers), inboxes.places, inboxes.refused, inboxes.failures),
            (list(storing.acquaintances.known_pairs), sorted(storing.resendings.remembered), storing.waiting),
            (len(storing._counted), len(storing._away), len(storing._strangers), len(storing.answers.waiting)),
            world.relay._unanswered,
        )


class Comparing(Inboxing):
    """The same for two relays that must not differ."""

    make_world = TwoWorlds

    def teardown(self) -> None:
        """Do not come to rest: what must hold then is tried by `Inboxing`."""


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


def test_usual_case_of_a_delivery_differs_in_nothing_from_the_steps(full: bool) -> None:
    run_state_machine_as_test(Comparing, settings=FULL if full else QUICK)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("what", BROKEN_INBOXES)
def test_broken_inbox_is_found(what: str) -> None:
    breaks, said = BROKEN_INBOXES[what]
    with breaks(), pytest.raises(AssertionError, match=said):
        run_state_machine_as_test(Inboxing, settings=FINDING)  # type: ignore[no-untyped-call]
