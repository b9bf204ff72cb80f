"""Seeded scenarios: what a few clients, their site and their log do in a few hours, simulated in milliseconds.

A scenario is determined by its seed. One that fails names its seed, and can be run alone, with every action printed::

    python -m tests.fuzz.scenarios SEED
    python -m tests.fuzz.scenarios FIRST COUNT     that many, without printing, on all processors
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from random import Random
from typing import Any

from tests.fuzz.model import State
from tests.fuzz.world import RECIPIENTS, USERS, Client, World

DOINGS = (12, 24, 24, 60)
"""The possible numbers of actions in one scenario, before its end. Most defects need few."""

CLIENTS = 9
"""Clients that a scenario has at most."""


class Broken(AssertionError):
    """A scenario that failed; the text says how to repeat it."""

    def __init__(self, seed: int, text: str) -> None:
        super().__init__(text)
        self.seed = seed

    # An exception is pickled with what its super().__init__() was given, and goes from process to process so.
    def __reduce__(self) -> tuple[type[Broken], tuple[int, str]]:
        return Broken, (self.seed, str(self))


class Scenario:
    """One scenario.

    :param seed: all that happens follows from it.
    :param tell: called with each action.
    :ivar counts: how often each outcome occurred.
    :ivar heard: what each client was sent.
    """

    def __init__(self, seed: int, tell: Callable[[str], object] = lambda _: None) -> None:
        self.seed = seed
        self.doings: list[str] = []
        self.counts: Counter[str] = Counter()
        self.heard: list[list[Any]] = []
        self._tell = tell
        self._random = random = Random(seed)
        self._world = World(
            fast_path=random.random() < 0.6,
            direct=random.random() < 0.6,
            held=random.random() < 0.8,
            guarded=random.random() < 0.5,
            chance=random.random,
        )
        # Each scenario has its own mood: in some the site is down for long, in some nobody reads.
        self._weights = [weight * random.choice((0.3, 1, 1, 3)) for _, weight in _DOINGS]

    def run(self) -> Scenario:
        """Run the scenario.

        :raises Broken: where the relay did something that it must not do, or omitted something that it must do.
        """
        names = [name for name, _ in _DOINGS]
        world, random = self._world, self._random
        try:
            with world:
                for _ in range(random.randrange(2, 5)):
                    self._do("arrive")
                for name in random.choices(names, self._weights, k=random.choice(DOINGS)):
                    self._do(name)
                self._do("end")
        except Exception as problem:
            raise Broken(
                self.seed,
                f"seed {self.seed}: {type(problem).__name__}: {problem}\n"
                f"after {len(self.doings)} doings, the last of them: {', '.join(self.doings[-8:])}\n"
                f"to repeat it alone: python -m tests.fuzz.scenarios {self.seed}",
            ) from problem
        self.heard = [client.known.stream.frames for client in world.clients]
        self.counts.update(world.model.counts)
        self.counts["scenarios"] += 1
        self.counts["events"] += world.events
        self.counts["virtual seconds"] += int(world.seconds)
        return self

    def _do(self, name: str) -> None:
        client = self._random.choice(self._world.clients) if self._world.clients else None
        if client is None and name not in ("arrive", "connect", "end", "pass_a_while"):
            return
        self.doings.append(name)
        self._tell(f"{name} {client!r} at {self._world.reactor.seconds():g}")
        if client is None or name in _OF_NOBODY:
            getattr(self, name)()
        else:
            getattr(self, name)(client)

    # Actions without a client.

    def connect(self) -> None:
        here = sum(not client.known.is_lost for client in self._world.clients)
        if here < CLIENTS and self._world.is_listening:
            self._world.connect(self._random.random() < 0.9)

    def arrive(self) -> None:
        """Connect and log in, in one write."""
        self.connect()
        client = self._world.clients[-1]
        self.log_in(client)
        self._world.turn()
        self._world.answer(-1)

    def turn(self) -> None:
        self._world.turn(self._random.randrange(len(self._world.clients) or 1))

    def site_answers(self) -> None:
        said = self._random.choices(("right", "denied", "unavailable", "short", "breaks"), (12, 2, 3, 1, 0.3))[0]
        self._world.answer(self._random.randrange(9), said)

    def site_is_down(self) -> None:
        while self._world.site.pending:
            self._world.answer(0, "unavailable")

    def log_moves(self) -> None:
        self._world.move_log("commit")

    def log_fails(self) -> None:
        self._world.move_log(self._random.choice(("fail", "fail", "commit_and_forget", "break_down")))

    def log_marks(self) -> None:
        self._world.move_log(self._random.choice(("mark", "mark", "fail_to_mark")))

    def site_revokes(self) -> None:
        self._world.revoke_user(self._random.choice(list(USERS)))

    def pass_a_moment(self) -> None:
        self._world.advance(self._random.choice((0.25, 0.25, 0.5, 1.0, 3.0)))

    def pass_a_while(self) -> None:
        self._world.advance(self._random.choice((6.0, 12.0)))

    def pass_an_hour(self) -> None:
        """Let minutes pass, occasionally with responses of the site in between, usually the same ones."""
        said = self._random.choice(("right", "right", "unavailable", "denied", "nothing"))
        for _ in range(self._random.randrange(4, 60)):
            self._world.advance(60.0)
            while self._world.site.pending and said != "nothing":
                self._world.answer(0, said)

    def site_ends_sessions(self) -> None:
        """End every session that is re-checked in these minutes."""
        for _ in range(7):
            self._world.advance(60.0)
            while self._world.site.pending:
                self._world.answer(0, "denied")

    def stop(self) -> None:
        """Stop the relay, with many pending messages or none, and with a log that hangs or not."""
        if self._random.random() < 0.2:
            if self._random.random() < 0.7:
                self.more_is_written_than_the_log_takes()
            self._world.stop()
            if self._random.random() < 0.3:
                self.pass_a_while()

    def everybody_writes(self) -> None:
        for client in self._world.clients:
            for _ in range(5):
                self.send(client)
        self._world.turn()

    def more_is_written_than_the_log_takes(self) -> None:
        """Let the logged-in users write to each other up to their limits, while the log hangs."""
        members = [client for client in self._world.clients if client.known.is_logged_in]
        for client in members:
            for _ in range(7):
                to = self._random.choice(members).known.uid
                assert to is not None
                self._world.send(client, to)
        self._world.turn()

    def end(self) -> None:
        self._world.end()

    # Actions of a client.

    def shake(self, client: Client) -> None:
        self._world.shake(client)

    def log_in(self, client: Client) -> None:
        user = self._random.choice((*USERS, "nobody"))
        old = list(self._world.model.sessions)
        again = old and self._random.random() < 0.2
        self._world.log_in(client, self._random.choice(old) if again else self._world.session_of(user))

    def send(self, client: Client) -> None:
        size = self._random.choice((0, 0, 40, 700))
        part = 1.0 if self._random.random() < 0.9 else self._random.random()
        self._world.send(client, self._random.choice(RECIPIENTS), size, part)

    def send_and_turn(self, client: Client) -> None:
        self.send(client)
        self.turn()

    def send_many(self, client: Client) -> None:
        for _ in range(self._random.choice((5, 12, 80))):
            self._world.send(client, self._random.choice(RECIPIENTS))

    def look_for_people(self, client: Client) -> None:
        """Try names, at a rate below the limit."""
        for number in range(20):
            self._world.send(client, f"maybe-{self._random.randrange(99)}-{number}")
            self._world.turn()
            self._world.advance(0.5)

    def go_on(self, client: Client) -> None:
        self._world.go_on(client)

    def talk_nonsense(self, client: Client) -> None:
        self._world.talk_nonsense(client, self._random.randrange(6))

    def talk_much_nonsense(self, client: Client) -> None:
        for _ in range(11):
            self.talk_nonsense(client)

    def break_the_rules(self, client: Client) -> None:
        self._world.break_the_rules(client, self._random.randrange(6))

    def ping(self, client: Client) -> None:
        for _ in range(self._random.choice((1, 1, 3, 25))):
            self._world.ping(client)

    def fall_silent(self, client: Client) -> None:
        """Cut the network of a client, perhaps until that is noticed."""
        self._world.fall_silent(client)
        if self._random.random() < 0.3:
            self._world.advance(35.0)

    def falls_behind(self, client: Client) -> None:
        """Stop reading for a while: more waits than the transport's limit, but within the budget."""
        members = [each for each in self._world.clients if each.known.is_logged_in]
        client = client if client in members or not members else self._random.choice(members)
        self._world.stop_reading(client)
        others = [each for each in members if each is not client]
        if client.known.uid is not None and others:
            for _ in range(self._random.randrange(2, 4)):
                self._world.send(self._random.choice(others), client.known.uid, 700)
            self._world.turn()
            self._world.move_log()
            self._world.turn()
            self._world.advance(self._random.choice((5.0, 12.0)))
            if self._random.random() < 0.7:
                self._world.read_on(client)

    def close(self, client: Client) -> None:
        self._world.close(client)

    def cut(self, client: Client) -> None:
        self._world.cut(client, self._random.random() < 0.5)

    def stop_reading(self, client: Client) -> None:
        self._world.stop_reading(client)

    def read_on(self, client: Client) -> None:
        self._world.read_on(client)

    def is_refused(self, client: Client) -> None:
        for _ in range(3):
            self._world.log_in(client, self._world.session_of("nobody"))
            self._world.turn()
            self._world.answer(-1, "denied")
            self._world.advance(0.5)

    def comes_with_many_tabs(self, client: Client) -> None:
        """Open several more connections of the user of this one."""
        for user in [name for name, uid in USERS.items() if uid == client.known.uid]:
            for _ in range(3):
                self.connect()
                self._world.log_in(self._world.clients[-1], self._world.session_of(user))
                self._world.turn()
                self._world.answer(-1)

    def is_denied_and_tries_again(self, client: Client) -> None:
        """Log in with the same session again, from another connection and perhaps address, at once or some seconds
        later.
        """
        sessid = self._world.session_of("nobody")
        for each in (client, *self._world.clients[-2:]):
            self._world.log_in(each, sessid)
            self._world.turn()
            self._world.answer(-1, "denied")
            self._world.advance(self._random.choice((0.25, 1.0, 5.5)))

    def everybody_guesses(self, client: Client) -> None:
        """Let all clients log in at once, with unknown sessions."""
        for each in self._world.clients:
            self._world.log_in(each, self._world.session_of("nobody"))
        self._world.turn()
        for _ in range(self._random.randrange(9)):
            self._world.answer(0)

    def is_revoked_while_the_site_is_asked(self, client: Client) -> None:
        user = self._random.choice(list(USERS))
        self._world.log_in(client, self._world.session_of(user))
        self._world.turn()
        self._world.revoke_user(user)
        self._world.answer(-1)

    def is_written_to_and_does_not_read(self, client: Client) -> None:
        """Let all others write to this client, which does not read until some time later, if ever."""
        self._world.stop_reading(client)
        to = client.known.uid
        for other in self._world.clients:
            for _ in range(4 if to is not None and not other.is_over else 0):
                self._world.send(other, to, 700)
            self._world.turn()
            self._world.move_log()
        if self._random.random() < 0.5:
            self._world.read_on(client)

    def session_revoked(self, client: Client) -> None:
        sessions = self._world.model.sessions
        pending = self._world.model.pending
        named = [s for s, who in sessions.items() if client.known in who]
        named += [s for s, (who, _) in pending.items() if client.known in who]
        if named and client.known.state is not State.CLOSED:
            self._world.revoke_session(named[0])


_DOINGS: list[tuple[str, float]] = [
    ("arrive", 2),
    ("connect", 1),
    ("turn", 12),
    ("site_answers", 5),
    ("site_is_down", 0.3),
    ("log_moves", 8),
    ("log_fails", 1.5),
    ("log_marks", 2),
    ("site_revokes", 0.3),
    ("pass_a_moment", 4),
    ("pass_a_while", 0.5),
    ("pass_an_hour", 0.15),
    ("site_ends_sessions", 0.15),
    ("stop", 0.5),
    ("everybody_writes", 0.3),
    ("more_is_written_than_the_log_takes", 0.4),
    ("shake", 0.5),
    ("log_in", 2),
    ("send", 12),
    ("send_and_turn", 8),
    ("send_many", 0.7),
    ("look_for_people", 0.1),
    ("go_on", 1),
    ("talk_nonsense", 1),
    ("talk_much_nonsense", 0.5),
    ("break_the_rules", 0.3),
    ("ping", 0.7),
    ("fall_silent", 0.4),
    ("falls_behind", 0.6),
    ("close", 0.5),
    ("cut", 0.5),
    ("stop_reading", 1.5),
    ("read_on", 1),
    ("is_refused", 0.6),
    ("comes_with_many_tabs", 0.2),
    ("is_denied_and_tries_again", 0.4),
    ("everybody_guesses", 0.4),
    ("is_revoked_while_the_site_is_asked", 0.5),
    ("is_written_to_and_does_not_read", 0.5),
    ("session_revoked", 0.3),
]
_OF_NOBODY = frozenset(name for name, _ in _DOINGS[: [name for name, _ in _DOINGS].index("shake")]) | {"end"}


def run(first: int, count: int) -> Counter[str]:
    """Run scenarios with these seeds, one after the other; return the counts of all.

    :raises Broken: at the first that shows something wrong.
    """
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        counts += Scenario(seed).run().counts
    return counts


PIECE = 25
"""Scenarios that a process is given at once."""


def spread(first: int, count: int) -> Counter[str]:
    """Run scenarios with seeds from the first on, on all processors; return the counts of all.

    :raises Broken: for the lowest seed that was looked at and shows something wrong.
    """
    processes = os.cpu_count() or 1
    counts: Counter[str] = Counter()
    begun = 0
    running: deque[Future[Counter[str]]] = deque()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        while begun < count or running:
            while begun < count and len(running) < 2 * processes:
                size = min(PIECE, count - begun)
                running.append(pool.submit(run, first + begun, size))
                begun += size
            try:
                counts += running.popleft().result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return counts


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    if len(given) == 1:
        print(Scenario(given[0], tell=print).run().counts)
    else:
        print(spread(*given))
