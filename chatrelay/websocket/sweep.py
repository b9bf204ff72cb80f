"""The sweep: run every check of a time limit, one after the other, four times a second.

The checks are passed in. This module must not know what they check.

A defect in one check keeps no other check from running, and an error with one connection keeps no other connection from
being closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatrelay.limits.active_time import TICK_SECONDS, ActiveTime

log = Logger("chatrelay.websocket")

SWEEP_SECONDS = TICK_SECONDS
"""The seconds between two sweeps. A client has at least this time to answer a close frame."""

Actions = Iterable[Callable[[], object]]
"""The functions to call, one after the other, because a time limit has passed."""

Check = Callable[[float], Actions | None]
"""Called with the time. It does its work itself, or returns the actions that are due."""

RECOVERY_SWEEPS = 240
"""Sweeps in a row without a failure after which a check counts as recovered: one minute."""


class _Task:
    """One check.

    :ivar failures: the failures since it last recovered; 0 while it works.
    :ivar successes: the sweeps in a row without a failure, since the last failure.
    """

    __slots__ = ("check", "failures", "name", "successes")

    def __init__(self, name: str, check: Check) -> None:
        self.name = name
        self.check = check
        self.failures = 0
        self.successes = 0


class Sweep:
    """Runs the checks in their order. The actions of each check are done before the next check runs.

    A defect is logged when it begins and when it is over. If every failure were logged, a lasting defect would fill the
    log with four tracebacks a second.

    :param tasks: the name of each check, for log messages, and the check.
    :param active: the clock of all time limits.
    :param reactor: for the timer.
    """

    def __init__(self, tasks: Mapping[str, Check], active: ActiveTime, reactor: Any) -> None:
        self._tasks = [_Task(name, check) for name, check in tasks.items()]
        self._active = active
        self._loop = LoopingCall(self.run)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin to check. If that has begun already, do nothing."""
        if not self._loop.running:
            self._active.begin()
            self._loop.start(SWEEP_SECONDS, now=False).addErrback(self._restart)

    def _restart(self, failure: Failure) -> None:
        """Start again after a defect in `run` itself has ended the loop, so that time limits are still checked."""
        log.failure("checking time limits failed; please report it", failure=failure)
        self.start()

    def stop(self) -> None:
        """Stop checking."""
        if self._loop.running:
            self._loop.stop()

    def run(self) -> None:
        """Run every check now."""
        now = self._active.tick()
        if self._active.held_up:
            log.warn(
                "this process was held up for {seconds} s: that time counts towards no deadline",
                seconds=round(self._active.held_up, 1),
            )
        self.check(now)

    def check(self, now: float) -> None:
        """Run every check.

        :param now: seconds of any clock, the same at each call.
        """
        for task in self._tasks:
            failures = task.failures
            try:
                # The check runs to its end before the first action, because actions change what it reads.
                for action in tuple(task.check(now) or ()):
                    self._call(action, task)
            # A defect in one check must not keep the others from running.
            except Exception:
                self._failed(task)
            if task.failures and task.failures == failures:
                self._succeeded(task)

    def _call(self, action: Callable[[], object], task: _Task) -> None:
        try:
            action()
        # An error with one connection must not keep the others from being closed.
        except Exception:
            self._failed(task)

    def _failed(self, task: _Task) -> None:
        task.failures += 1
        task.successes = 0
        if task.failures == 1:
            log.failure(
                "checking {what} failed; please report it. It is checked again four times a second, and further "
                "failures are not logged until it recovers",
                what=task.name,
            )

    def _succeeded(self, task: _Task) -> None:
        task.successes += 1
        if task.successes == RECOVERY_SWEEPS:
            log.warn(
                "checking {what} works again; it had failed {failures} times", what=task.name, failures=task.failures
            )
            task.failures = 0
