"""Hypothesis searches for actions of clients, site and log after which the promise does not hold, and shortens them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.fuzz.broken import BROKEN
from tests.fuzz.model import State
from tests.fuzz.world import RECIPIENTS, USERS, Client, World

WHICH = st.integers(0, 5)
"""A client, by its number modulo the number of clients."""


class Relaying(RuleBasedStateMachine):
    """What may happen to a relay, in any order. `tests.fuzz.model` says what must follow."""

    fast_path: bool

    @initialize(direct=st.booleans(), held=st.booleans(), guarded=st.booleans())
    def begin(self, direct: bool, held: bool, guarded: bool) -> None:
        self.world = World(self.fast_path, direct, held, guarded)
        self.world.__enter__()
        for user in ("alice", "bo"):
            client = self.world.connect()
            self.world.log_in(client, self.world.session_of(user))
            self.world.turn()
            self.world.answer(0)
        self.world.connect()

    def client(self, which: int) -> Client:
        return self.world.clients[which % len(self.world.clients)]

    @rule(whole=st.booleans())
    def connect(self, whole: bool) -> None:
        if len(self.world.clients) < 6 and self.world.is_listening:
            self.world.connect(whole)

    @rule(which=WHICH)
    def shake(self, which: int) -> None:
        self.world.shake(self.client(which))

    @rule(which=WHICH, user=st.sampled_from([*USERS, "nobody"]))
    def log_in(self, which: int, user: str) -> None:
        self.world.log_in(self.client(which), self.world.session_of(user))

    @rule(which=WHICH, index=WHICH)
    def log_in_again_by_a_known_session(self, which: int, index: int) -> None:
        known = list(self.world.model.sessions)
        if known:
            self.world.log_in(self.client(which), known[index % len(known)])

    @rule(which=WHICH)
    def log_in_by_what_may_have_been_denied(self, which: int) -> None:
        self.world.log_in(self.client(which), "nobody.0")

    @rule(index=WHICH, said=st.sampled_from(["right", "right", "denied", "unavailable", "short", "breaks"]))
    def site_answers(self, index: int, said: str) -> None:
        self.world.answer(index, said)

    @rule(user=st.sampled_from(list(USERS)))
    def site_revokes(self, user: str) -> None:
        self.world.revoke_user(user)

    @rule(which=WHICH, to=st.sampled_from(RECIPIENTS), size=st.sampled_from([0, 700]), part=st.sampled_from([1.0, 0.6]))
    def send(self, which: int, to: str | int, size: int, part: float) -> None:
        self.world.send(self.client(which), to, size, part)

    @rule(which=WHICH, to=st.sampled_from(RECIPIENTS), count=st.sampled_from([1, 2, 4, 70]))
    def send_and_turn(self, which: int, to: str | int, count: int) -> None:
        for _ in range(count):
            self.world.send(self.client(which), to)
        self.world.turn()

    @rule(which=WHICH, to=st.sampled_from(RECIPIENTS))
    def two_at_once_and_committed(self, which: int, to: str | int) -> None:
        for _ in range(2):
            self.world.send(self.client(which), to)
        self.world.turn()
        self.world.move_log("commit")

    @rule(which=WHICH)
    def go_on(self, which: int) -> None:
        self.world.go_on(self.client(which))

    @rule(which=WHICH, kind=st.integers(0, 5), count=st.sampled_from([1, 10]))
    def talk_nonsense(self, which: int, kind: int, count: int) -> None:
        for _ in range(count):
            self.world.talk_nonsense(self.client(which), kind)

    @rule(which=WHICH, kind=st.integers(0, 5))
    def break_the_rules(self, which: int, kind: int) -> None:
        self.world.break_the_rules(self.client(which), kind)

    @rule(which=WHICH, count=st.sampled_from([1, 25]))
    def ping(self, which: int, count: int) -> None:
        for _ in range(count):
            self.world.ping(self.client(which))

    @rule(which=WHICH)
    def fall_silent(self, which: int) -> None:
        self.world.fall_silent(self.client(which))

    @rule(which=WHICH)
    def close(self, which: int) -> None:
        self.world.close(self.client(which))

    @rule(which=WHICH, broken=st.booleans())
    def cut(self, which: int, broken: bool) -> None:
        self.world.cut(self.client(which), broken)

    @rule(which=WHICH)
    def stop_reading(self, which: int) -> None:
        self.world.stop_reading(self.client(which))

    @rule(which=WHICH)
    def read_on(self, which: int) -> None:
        self.world.read_on(self.client(which))

    @rule(first=WHICH)
    def turn(self, first: int) -> None:
        self.world.turn(first)

    @rule(how=st.sampled_from(["commit", "commit", "fail", "commit_and_forget", "break_down", "mark", "fail_to_mark"]))
    def log_moves(self, how: str) -> None:
        self.world.move_log(how)

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0]))
    def pass_a_moment(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(minutes=st.sampled_from([1, 7, 40]))
    def pass_minutes(self, minutes: int) -> None:
        self.world.advance(60.0 * minutes)

    @rule(really=st.integers(0, 9))
    def stop(self, really: int) -> None:
        if really == 9:  # else every run would mostly be about a relay that has stopped
            self.world.stop()

    @invariant()
    def nobody_is_here_who_is_gone(self) -> None:
        for client in self.world.clients:
            if client.known.state is State.CLOSED:
                assert client.protocol.session is None or not client.protocol.session.logged_in

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.end()
            finally:
                self.world.__exit__()


class WithFastPath(Relaying):
    fast_path = True


class WithoutFastPath(Relaying):
    fast_path = False


QUICK = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining takes minutes of tracing
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


FULL = settings(QUICK, max_examples=2000)
"""For `make trials`: minutes."""


def test_state_machine_holds_with_the_fast_path(full: bool) -> None:
    run_state_machine_as_test(WithFastPath, settings=FULL if full else QUICK)  # type: ignore[no-untyped-call]


def test_state_machine_holds_without_the_fast_path(full: bool) -> None:
    run_state_machine_as_test(WithoutFastPath, settings=FULL if full else QUICK)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "what",
    [
        "a batch is delivered in the wrong order",
        "a request is answered twice",
        "messages are delivered before the commit",
        "who is gone stays in the directory",
        "visitors are told who is there",
    ],
)
def test_broken_promise_is_found_by_the_state_machine(what: str) -> None:
    found = settings(
        QUICK,
        max_examples=100,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,  # in a group of exceptions
    )
    with BROKEN[what](), pytest.raises(AssertionError):
        run_state_machine_as_test(WithFastPath, settings=found)  # type: ignore[no-untyped-call]
