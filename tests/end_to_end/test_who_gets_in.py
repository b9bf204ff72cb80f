"""Who gets in, who stays in, and who is put out: with a real relay, and a site that changes its mind."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.end_to_end.programs import Client, RelayProcess, Site

StartRelay = Callable[..., RelayProcess]

YES = {"type": "auth-response", "response": True}
UNAVAILABLE = {"type": "auth-response", "response": False, "reason": "webserver-unavailable"}


def log_in(relay: RelayProcess, sessid: str) -> Client:
    """A client that is logged in."""
    client = relay.client()
    assert client.log_in(sessid) == YES
    return client


def test_a_site_that_keeps_failing_is_left_alone_until_it_answers_again(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay()
    with log_in(relay, "alice-session") as alice, relay.client() as bo:
        site.answer = lambda request: request.reply(500, b"")
        for _ in range(10):
            assert bo.log_in("bo-session") == UNAVAILABLE
        relay.said(r"the webserver at \S+ has failed 10 times in a row")
        asked = len(site.asked)
        # Something slow: who is answered at once was not asked about.
        site.answer = lambda request: time.sleep(3) or request.reply(500, b"")
        began = time.monotonic()
        while time.monotonic() < began + 0.8:
            assert bo.log_in("bo-session") == UNAVAILABLE
            time.sleep(0.1)
        assert len(site.asked) == asked
        # Who is in stays in.
        alice.send(1, "note to self")
        assert alice.hear()["message"]["content"] == "note to self"
        assert alice.hear()["response"]["value"] is True
        site.answer = None
        until = time.monotonic() + 12
        while bo.log_in("bo-session") != YES:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert len(site.asked) == asked + 1
    relay.stop()
    lines = [line for line in relay.output if "has failed 10 times" in line or "answers again" in line]
    assert len(lines) == 2
    assert len([line for line in relay.output if "could not be asked" in line]) == 10
