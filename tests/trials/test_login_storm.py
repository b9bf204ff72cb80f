"""All clients log in at once, at a site that is slow and counts the requests.

Each client has its own session, and finds out whose connection it has by writing to itself. A client that is refused or
closed reconnects as docs/protocol.rst says. A hundred clients share one address, as in an office.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.support.evidence import Evidence
from tests.trials.storm import WITHIN, StartStorm, storm

__all__ = ["storm"]

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("advised", [True, False], ids=["as advised", "with the defaults"])
def test_returning_clients_log_in_as_themselves(
    storm: StartStorm, evidence: Evidence, full: bool, advised: bool
) -> None:
    """The short form has 1,000 clients, the full one 10,000; the message log is an SQLite file, as by default.

    The 1,000 are logged in within two seconds. They show that at most 32 requests are pending, that each is sent once,
    and that no client gets another's login. All of them find a place, and no login waits for long. Only the full form
    shows a full relay (``unauthenticated``) and logins whose turn comes too late (``login-timeout``).

    With the defaults, 5,000 of them are refused at first and reconnect after their own wait. docs/operating/limits.rst
    gives the options with which none is refused. On a busy machine both forms take longer, and fail.
    """
    count = 10_000 if full else 1000
    began = time.process_time()
    patience = ("--login-timeout", "60", "--handshake-timeout", "60", "--unauthenticated", "10000")
    clients, site = storm(list(range(count)), *(patience if advised else ()))
    evidence.count("clients at once", len(clients.back_after), at_least=count)
    evidence.figure(f"all back after {max(clients.back_after):.1f} s")
    evidence.figure(f"{site.most_at_once} requests at once, {site.asked.total():,} in all")
    evidence.figure(f"setbacks: {dict(clients.setbacks) or 'none'}")
    evidence.figure(f"CPU: relay {clients.relay_seconds:.1f} s, clients {clients.own_seconds - began:.1f} s")
    assert clients.wrong == []
    assert site.most_at_once == 32
    # A client that had no setback was asked about once.
    assert site.asked.total() <= count + clients.setbacks.total()
    assert site.twice_at_once == set()
    assert max(clients.back_after) < WITHIN


def test_refused_or_late_clients_succeed_at_a_later_try(storm: StartStorm) -> None:
    # 4 at once of 0.05 s each are 80 in the second that a connection has for its login.
    late = ("--webserver-checks", "4", "--login-timeout", "1")
    clients, _ = storm(list(range(160)), *late)
    assert clients.wrong == []
    assert len(clients.back_after) == 160
    assert clients.setbacks["webserver-unavailable"]
    assert clients.setbacks["closed with 4001"]


def test_tabs_of_a_user_are_one_request(storm: StartStorm) -> None:
    # A tab that comes after the answer asks anew: it must not come before they do, on a slow machine, too. And without
    # logins-per-minute, for which those of one address would wait for each other.
    tabs = [number % 20 for number in range(200)]
    unlimited = ("--webserver-checks", "5", "--logins-per-minute", "0")
    clients, site = storm(tabs, *unlimited, answer_seconds=0.5)
    assert clients.wrong == []
    assert len(clients.back_after) == 200
    assert site.most_at_once <= 5
    assert site.twice_at_once == set()
    assert site.asked.total() < 100


def test_hundred_users_of_one_address_log_in_at_once_with_the_defaults(storm: StartStorm) -> None:
    clients, _ = storm(list(range(100)))
    assert (len(clients.back_after), clients.wrong, clients.setbacks) == (100, [], Counter())


def test_more_users_of_one_address_succeed_at_a_later_try_with_the_defaults(storm: StartStorm) -> None:
    clients, _ = storm(list(range(250)), office=250)
    assert (len(clients.back_after), clients.wrong) == (250, [])
    assert clients.setbacks  # the 101st, for one
