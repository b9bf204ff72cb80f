"""Clients of v2 that return with a resume token, to a relay that was restarted, and after their session was ended."""

from __future__ import annotations

import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import v2
from tests.support.client import Client
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.schema import V2

ORIGIN = "https://example.com"
OPS_TOKEN = "ops-token-of-tests"
EXPIRED = {"type": "auth-response", "response": False, "reason": "resume-expired"}
WITH_KEY = ("--resume-key-file", "resume.key")
WITH_OPS = ("--ops-listen", "tcp:0", "--ops-token-file", "token")
WITH_COOKIE = ("--session-cookie", "session", "--origin", ORIGIN)


def connected(relay: RelayProcess, cookie: str | None = None) -> Client:
    """Return a client of v2."""
    if cookie is None:
        return relay.client(subprotocols=[V2])
    return relay.client(subprotocols=[V2], origin=ORIGIN, additional_headers={"Cookie": f"session={cookie}"})


def said(client: Client, sessid: str | None = None, after: Any = None, resume: str | None = None) -> Any:
    """Send an auth-request; return the answer."""
    client.say(v2.login(sessid, after, resume=resume))
    return client.hear()


def closing(client: Client) -> Any:
    """Return the notice before the close with 4000."""
    code, frames = client.closed()
    assert code == 4000
    return frames[-1]


def stopped(relay: RelayProcess, client: Client) -> Any:
    """Stop a relay; return what its client was told before the close."""
    relay.process.send_signal(signal.SIGTERM)
    notice = closing(client)
    relay.wait()
    return notice


def test_clients_return_after_a_restart_and_the_site_is_not_asked(
    site: Site, start_relay: StartRelay, tmp_path: Path
) -> None:
    relay = start_relay(*WITH_KEY)
    alice, bo = connected(relay), connected(relay)
    first, second = said(alice, "alice-session"), said(bo, "bo-session")
    assert stat.S_IMODE((tmp_path / "resume.key").stat().st_mode) == 0o600
    alice.say(v2.message(2, "before"))
    assert alice.hear()["response"]["value"] is True
    tokens = stopped(relay, alice)["resume"], second["resume"]
    asked = len(site.asked)
    relay = start_relay(*WITH_KEY)
    alice, bo = connected(relay), connected(relay)
    answer = said(alice, None, v2.after(first, 1), tokens[0])
    assert (answer["response"], answer["uID"], answer["recovered"], answer["n"]) == (True, "1", True, 1)
    answer = said(bo, None, v2.after(second), tokens[1])
    assert (answer["response"], answer["uID"], answer["recovered"]) == (True, "2", True)
    assert bo.hear()["message"]["content"] == "before"
    bo.say(v2.message(1, "after"))
    assert alice.hear()["message"]["content"] == "after"
    assert len(site.asked) == asked
    # It is one session: a second return takes the place of the first.
    again = connected(relay)
    assert said(again, None, v2.after(first, 1), answer["resume"])["uID"] == "2"
    code, frames = bo.closed()
    assert (code, [frame["type"] for frame in frames]) == (4506, ["send-request-response"])
    assert len(site.asked) == asked


def test_session_that_was_ended_is_not_resumed_even_after_a_kill(
    site: Site, start_relay: StartRelay, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(OPS_TOKEN)
    relay = start_relay(*WITH_KEY, *WITH_OPS)
    tokens = []
    for sessid in ("alice-session", "bo-session", "chen-session"):
        with connected(relay) as client:
            tokens.append(said(client, sessid)["resume"])
    assert relay.ops("POST", "/v1/revoke", {"uID": 1}, OPS_TOKEN)[0] == 200
    assert relay.ops("POST", "/v1/revoke", {"SESSID": "bo-session"}, OPS_TOKEN)[0] == 200
    time.sleep(0.3)  # marks of other kinds are written after a second
    relay.stop(signal.SIGKILL)
    asked = len(site.asked)
    relay = start_relay(*WITH_KEY)
    for token in tokens[:2]:
        client = connected(relay)
        assert said(client, resume=token) == EXPIRED
        assert len(site.asked) == asked
    # With its SESSID, the site decides.
    assert said(client, "bo-session", resume=tokens[1])["response"] is True
    assert len(site.asked) == asked + 1
    assert said(connected(relay), resume=tokens[2])["uID"] == "chen"
    assert len(site.asked) == asked + 1


def test_token_of_a_login_by_cookie_needs_the_same_cookie(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay(*WITH_KEY, *WITH_COOKIE)
    token = said(connected(relay, "alice-session"))["resume"]
    relay.stop()
    relay = start_relay(*WITH_KEY, *WITH_COOKIE)
    asked = len(site.asked)
    assert said(connected(relay), resume=token) == EXPIRED
    assert len(site.asked) == asked
    # With another cookie, that cookie counts.
    assert said(connected(relay, "bo-session"), resume=token)["uID"] == "2"
    assert said(connected(relay, "nobody"), resume=token) == {"type": "auth-response", "response": False}
    assert site.asked[asked:] == ["bo-session", "nobody"]
    assert said(connected(relay, "alice-session"), resume=token)["uID"] == "1"
    assert len(site.asked) == asked + 2


@pytest.mark.parametrize("options", [(), ("--resume-key-file", "another.key"), (*WITH_KEY, "--resume-time", "0")])
def test_token_does_not_open_with_another_key(start_relay: StartRelay, options: tuple[str, ...]) -> None:
    relay = start_relay(*WITH_KEY)
    token = said(connected(relay), "alice-session")["resume"]
    relay.stop()
    client = connected(start_relay(*options))
    assert said(client, resume=token) == EXPIRED
    answer = said(client, "alice-session", resume=token)
    assert (answer["response"], "resume" in answer) == (True, "--resume-time" not in options)


def test_key_that_others_may_read_keeps_the_relay_from_starting(tmp_path: Path) -> None:
    (tmp_path / "resume.key").write_bytes(b"k" * 32)
    (tmp_path / "resume.key").chmod(0o644)
    relay = RelayProcess(tmp_path, "--auth-url", "http://127.0.0.1:1/", *WITH_KEY)
    assert relay.wait() == 1
    assert "chmod 600 resume.key" in "\n".join(relay.output)
    assert "Traceback" not in "\n".join(relay.output)
