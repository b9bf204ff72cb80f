"""`twistd chatrelay`: make the service that twistd runs from the options on its command line.

It sets up what only a process under twistd needs: descriptors, time, signals, the log of the process.
`chatrelay.app.build` makes the relay itself.
"""

from __future__ import annotations

import time

from twisted.application.service import IService
from twisted.internet.base import ReactorBase
from twisted.scripts._twistd_unix import ServerOptions

import chatrelay
from chatrelay.app.command_line import Options as Options
from chatrelay.app.descriptors import raise_limit
from chatrelay.app.process import RelayProcess, in_one_sentence
from chatrelay.app.signals import at_start
from chatrelay.app.twistd_log import TwistdLog, in_foreground, twistd_log

# Twisted's documentation does not promise `twisted.scripts._twistd_unix`, nor that a reactor schedules by its own
# `seconds`.


def makeService(options: Options) -> IService:
    """Make the service that twistd runs."""
    from twisted.internet import reactor

    assert options.chosen is not None, "postOptions was not called"
    raise_limit()  # of this process, which belongs to the relay; an embedding program sets its own limit
    # Without twistd, the program that makes the service has its own reactor and its own log.
    twistd = options.parent if isinstance(options.parent, ServerOptions) else None
    if twistd is not None:
        keep_steady_time(reactor)
    with in_one_sentence(options.given):
        relay = chatrelay.build(options.chosen, reactor)
        log = TwistdLog() if twistd is None else twistd_log(options.chosen, twistd)
        service = RelayProcess(relay, log, reactor, options.given)
    if at_start.has_begun:
        # Before twistd writes its pid file. In the background, another process writes it.
        if twistd is None or in_foreground(twistd):
            at_start.hold()
        else:
            at_start.hold_in_child()
    return service


def keep_steady_time(reactor: object) -> None:
    """Make a reactor measure time by a monotonic clock.

    Twisted measures by the wall clock. Set forward, it would end every time limit at once; set back an hour, no time
    limit would be checked for an hour. A reactor on which something is scheduled already is left alone, because the
    times of those calls are by the wall clock.
    """
    if isinstance(reactor, ReactorBase) and not reactor.getDelayedCalls():
        vars(reactor)["seconds"] = time.monotonic
