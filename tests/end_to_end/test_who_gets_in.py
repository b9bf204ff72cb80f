"""Logins, re-checks and ends of sessions, with a real relay and a site that fails or changes its answers."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE, eventually
from tests.support.client import Client
from tests.support.frames import HANDSHAKE
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE

TOKEN = "ops-token-of-tests"


def log_in(relay: RelayProcess, sessid: str) -> Client:
    """Return a client that is logged in."""
    client = relay.client()
    assert client.log_in(sessid) == ADMITTED
    return client


def test_failing_site_is_not_asked_until_it_recovers(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay()
    with log_in(relay, "alice-session") as alice, relay.client() as bo:
        site.answer = lambda request: request.reply(500, b"")
        for _ in range(9):
            assert bo.log_in("bo-session") == UNAVAILABLE
        relay.said(r"the session page at \S+ has failed 10 times in a row")
        # Whether that was the fault of the session was asked about one that nobody has.
        asked = len(site.asked)
        assert asked == 11
        assert re.fullmatch("[0-9a-f]{32}", site.asked[-1])
        # The site is slow: a login that is answered at once was not asked about.
        site.answer = lambda request: time.sleep(3) or request.reply(500, b"")
        began = time.monotonic()
        while time.monotonic() < began + 0.8:
            assert bo.log_in("bo-session") == UNAVAILABLE
            time.sleep(0.1)
        assert len(site.asked) == asked
        # A logged-in user stays logged in.
        alice.send(1, "note to self")
        assert alice.hear()["message"]["content"] == "note to self"
        assert alice.hear()["response"]["value"] is True
        site.answer = None
        eventually(lambda: bo.log_in("bo-session") == ADMITTED, seconds=12, pause=0.1)
        assert len(site.asked) == asked + 1
    relay.stop()
    lines = [line for line in relay.output if "has failed 10 times" in line or "answers again" in line]
    assert len(lines) == 2
    assert len([line for line in relay.output if "could not be asked" in line]) == 10


def test_failing_site_is_tried_after_breaker_wait(site: Site, start_relay: StartRelay) -> None:
    site.answer = lambda request: request.reply(500, b"")
    waiting = start_relay("--breaker-failures", "1", "--breaker-wait", "600", "--breaker-longest-wait", "600")
    with waiting.client() as bo:
        assert bo.log_in("bo-session") == UNAVAILABLE
        waiting.said(r"has failed 1 times in a row")
        assert len(site.asked) == 2
        time.sleep(1.2)  # the default would be over
        assert bo.log_in("bo-session") == UNAVAILABLE
        assert len(site.asked) == 2
    waiting.stop()
    at_once = start_relay("--breaker-failures", "1", "--breaker-wait", "0")
    with at_once.client() as bo:
        until = time.monotonic() + PATIENCE
        while site.asked.count("bo-session") < 10:  # each is followed by one of the relay's own
            assert bo.log_in("bo-session") == UNAVAILABLE
            assert time.monotonic() < until
            time.sleep(0.1)  # within messages-per-second: some are refused while the relay's own request is pending
        site.answer = None
        while bo.log_in("bo-session") != ADMITTED:
            assert time.monotonic() < until
            time.sleep(0.1)  # no more than messages-per-second here, too


def test_session_id_that_makes_the_site_fail_does_not_open_the_breaker(site: Site, start_relay: StartRelay) -> None:
    def answer(request: Any) -> None:
        if "odd" in site.asked[-1]:
            request.reply(500, b"<h1>Oops</h1>")
        else:
            request.reply(200, {"loggedin": site.asked[-1] == "bo-session", "uID": 2})

    site.answer = answer
    relay = start_relay()
    for attempt in range(3):
        with relay.client() as stranger, relay.client() as bo:
            for number in range(20):
                assert stranger.log_in(f"odd-{attempt}-{number}") == UNAVAILABLE
            assert bo.log_in("bo-session") == ADMITTED
    relay.stop()
    assert not [line for line in relay.output if "in a row" in line]


# The ops endpoint ----------------------------------------------------------------------


@pytest.fixture
def with_ops(start_relay: StartRelay, tmp_path: Path) -> RelayProcess:
    """Start a relay with an ops endpoint."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return start_relay("--ops-listen", "tcp:0", "--ops-token-file", "token")


def test_sessions_end_from_outside_within_a_second(site: Site, with_ops: RelayProcess) -> None:
    relay = with_ops
    site.users["alice-phone"] = 1
    with (
        log_in(relay, "alice-session") as alice,
        log_in(relay, "alice-phone") as phone,
        log_in(relay, "bo-session") as bo,
    ):
        assert relay.ops("POST", "/v1/revoke", {"uID": 2}, "wrong")[0] == 401
        assert relay.ops("POST", "/v1/revoke", {"uID": 2})[0] == 401
        assert relay.ops("POST", "/v1/revoke", {"SESSID": "alice-session"}, TOKEN) == (200, {"ended": 1})
        assert alice.closed(1) == (4505, [])
        phone.send(2, "one of my two is left", id="x")
        assert bo.hear()["message"]["content"] == "one of my two is left"
        assert phone.hear()["response"]["value"] is True
        assert relay.ops("POST", "/v1/revoke", {"uID": "1"}, TOKEN) == (200, {"ended": 1})
        assert phone.closed(1) == (4505, [])
        bo.send(1, "anybody?", id="y")
        assert bo.hear()["response"]["reason"] == "receiving-user-not-connected"
        # A user who may still log in at the site may come back.
        with log_in(relay, "alice-session"):
            pass
    relay.stop()
    output = "\n".join(relay.output)
    for secret in (*site.users, TOKEN, "Traceback"):
        assert secret not in output


def test_ops_endpoint_answers_healthz_and_readyz(with_ops: RelayProcess) -> None:
    relay = with_ops
    assert relay.ops("GET", "/healthz") == (200, {"status": "alive"})
    assert relay.ops("GET", "/readyz") == (200, {"status": "ready"})
    file = relay.folder / "chatrelay.sqlite3"
    with log_in(relay, "alice-session") as alice:
        file.rename(relay.folder / "taken-away")
        file.mkdir()  # so that it can't be reopened
        alice.send(1, "lost")
        assert alice.hear()["response"]["reason"] == "log-unavailable"
        status, answer = relay.ops("GET", "/readyz")
        assert (status, answer["reason"]) == (503, "not-ready")
        assert "message log" in answer["detail"]
        assert relay.ops("GET", "/healthz")[0] == 200
        file.rmdir()
        relay.said("can be written again")
        assert relay.ops("GET", "/readyz")[0] == 200


def test_stopping_relay_is_not_ready(with_ops: RelayProcess) -> None:
    relay = with_ops
    assert relay.ops("GET", "/readyz")[0] == 200
    # A client that never answers the close frame keeps the relay waiting for a while.
    with socket.create_connection(("127.0.0.1", relay.port)) as deaf:
        deaf.sendall(HANDSHAKE)
        assert deaf.recv(1000).startswith(b"HTTP/1.1 101")
        relay.process.terminate()
        relay.said("Port .* Closed")
        assert relay.ops("GET", "/readyz") == (503, {"reason": "not-ready", "detail": "the relay is stopping"})
        assert relay.ops("GET", "/healthz")[0] == 200
        assert relay.wait() == -signal.SIGTERM
    assert "Traceback" not in "\n".join(relay.output)


# Asking again ---------------------------------------------------------------------------


def test_session_that_ends_at_the_site_ends_at_the_relay(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay("--recheck-interval", "1", "--recheck-spread", "0")
    began = time.monotonic()
    with log_in(relay, "alice-session") as alice, log_in(relay, "bo-session") as bo:
        del site.users["alice-session"]
        assert alice.closed() == (4501, [])
        # Bo was asked about at the login, and then once a second at the most; a busy machine is late, and asks less often.
        while (asked := site.asked.count("bo-session")) < 4:
            assert time.monotonic() - began < PATIENCE
            assert bo.hears_nothing(0.1)
        assert asked <= 1 + time.monotonic() - began
        bo.send(2, "still here")
        assert bo.hear()["message"]["content"] == "still here"
    relay.stop()
    assert "-session" not in "\n".join(relay.output)


def test_users_stay_for_recheck_grace_while_the_site_is_unreachable(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay("--recheck-interval", "1", "--recheck-grace", "4")
    with log_in(relay, "alice-session") as alice:
        site.answer = lambda request: request.reply(500, b"")
        relay.said("could not be asked")
        assert alice.hears_nothing(3)
        assert alice.closed(5) == (4501, [])


def test_recheck_follows_expires_in_of_the_site(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay()
    site.answer = lambda request: request.reply(200, {"loggedin": True, "uID": 1, "expires_in": 1})
    with log_in(relay, "alice-session") as alice:
        assert alice.hears_nothing(2.5)
        assert len(site.asked) >= 2
        site.answer = None
        site.users.clear()
        assert alice.closed(4) == (4501, [])


# Tickets --------------------------------------------------------------------------------


def test_ticket_logs_in_once_and_its_session_is_rechecked(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay("--auth-tickets", "yes", "--recheck-interval", "1")
    handles = {"alice-handle": 1}

    def answer(request: Any) -> None:
        sessid = site.asked[-1]
        if sessid in site.users:
            request.reply(200, {"loggedin": True, "uID": site.users.pop(sessid), "session": "alice-handle"})
        elif sessid in handles:
            request.reply(200, {"loggedin": True, "uID": handles[sessid]})
        else:
            request.reply(200, {"loggedin": False})

    site.answer = answer
    with log_in(relay, "alice-session") as alice, relay.client() as thief:
        assert thief.log_in("alice-session") == DENIED
        assert alice.hears_nothing(2.5)
        handles.clear()
        assert alice.closed(5) == (4501, [])
    assert site.asked.count("alice-session") == 2
    assert site.asked.count("alice-handle") >= 2
    relay.stop()
    assert not [line for line in relay.output if "alice-" in line or "Traceback" in line]


def test_ticket_brought_twice_at_once_logs_in_once(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay("--auth-tickets", "yes")
    both_wait = threading.Event()

    def answer(request: Any) -> None:
        both_wait.wait(PATIENCE)
        good = site.users.pop("alice-session", None) is not None
        request.reply(200, {"loggedin": True, "uID": 1} if good else {"loggedin": False})

    site.answer = answer
    with relay.client() as alice, relay.client() as thief:
        for client in (alice, thief):
            client.say_login("alice-session")
        # Two requests without a response; or one for both, and no other in all this time.
        until = time.monotonic() + 1
        while len(site.asked) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        both_wait.set()
        answers = [alice.hear(), thief.hear()]
    assert answers.count(ADMITTED) == 1, f"{answers.count(ADMITTED)} got in by one ticket"
    assert answers.count(DENIED) == 1
    assert site.asked == ["alice-session"] * 2
