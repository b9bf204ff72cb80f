"""Fixtures: a site with three users, and a relay that asks it. The conftest.py of a folder imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED

ALICE = {"sessid": "alice-session", "uid": 1}
BO = {"sessid": "bo-session", "uid": 2}
CHEN = {"sessid": "chen-session", "uid": "chen"}


@pytest.fixture
def site() -> Iterator[Site]:
    """Start a website where Alice (1), Bo (2) and Chen ("chen") are logged in."""
    site = Site()
    for user in (ALICE, BO, CHEN):
        site.users[str(user["sessid"])] = user["uid"]
    yield site
    site.close()


@pytest.fixture
def start_relay(site: Site, tmp_path: Path) -> Iterator[StartRelay]:
    """Return a function that starts relays that ask the site; stop them at the end."""
    with ExitStack() as running:

        def start(*options: str, **keywords: Any) -> RelayProcess:
            return running.enter_context(RelayProcess(tmp_path, "--auth-url", site.url, *options, **keywords))

        yield start


@pytest.fixture
def relay(start_relay: StartRelay) -> RelayProcess:
    """Start a relay with its defaults."""
    return start_relay()


@pytest.fixture
def logged_in(relay: RelayProcess) -> Iterator[Callable[[str], Client]]:
    """Return a function that connects and logs in by SESSID."""
    with ExitStack() as open_clients:

        def log_in(sessid: str) -> Client:
            client = open_clients.enter_context(relay.client())
            assert client.log_in(sessid) == ADMITTED
            return client

        yield log_in
