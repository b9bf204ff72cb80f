"""A real site that is too slow for the re-checks of its sessions."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.support.programs import RelayProcess, Site
from tests.support.v1 import ADMITTED

SESSIONS = 34


def test_site_too_slow_for_rechecks_is_logged_and_so_is_its_recovery(tmp_path: Path, site: Site) -> None:
    for number in range(SESSIONS):
        site.users[f"session-{number}"] = number
    options = ("--auth-url", site.url, "--message-log", "memory:", "--ops-listen", "tcp:0")
    with (
        RelayProcess(tmp_path, *options, "--recheck-interval", "2", "--webserver-checks", "4") as relay,
        ExitStack() as open_clients,
    ):
        clients = []
        for number in range(SESSIONS):
            clients.append(open_clients.enter_context(relay.client()))
            assert clients[-1].log_in(f"session-{number}") == ADMITTED
        site.seconds = 0.15
        site.asked.clear()
        line = relay.said("re-checks are behind")
        found = re.search(
            r"1 requests are sent at once, .* enough for (\d+) sessions every 2 s, but there are (\d+)\.", line
        )
        assert found, line
        assert int(found[1]) < int(found[2]) == SESSIONS
        assert "--webserver-checks" in line and "--recheck-interval" in line
        assert relay.ops("GET", "/readyz") == (200, {"status": "ready"})
        # No session is left out in favour of those that are due again sooner.
        until = time.monotonic() + 60
        while len(set(site.asked)) < SESSIONS and time.monotonic() < until:
            time.sleep(0.05)
        times = Counter(site.asked)
        assert len(times) == SESSIONS
        assert max(times.values()) <= 2
        # There are so few that the site is fast enough for them on any machine.
        site.seconds = 0.0
        for client in clients[4:]:
            client.close()
        relay.said("re-checks are on time again")
        assert len([line for line in relay.output if "re-checks are behind" in line]) == 1
