"""Denied logins: how many of one address reach the site, and how long a denial is remembered."""

from __future__ import annotations

import time

from tests.support import eventually
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED, DENIED


def guess(relay: RelayProcess, count: int) -> None:
    """Log in with this many unknown session ids."""
    for number in range(count):
        if number % 2 == 0:  # the third denial would close the connection
            client = relay.client()
        assert client.log_in(f"guess-{number}") == DENIED
        if number % 2:
            client.close()


def test_login_from_an_address_with_20_denials_is_denied_without_a_request(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay()
    began = time.monotonic()
    guess(relay, 60)
    came_back = (time.monotonic() - began) / 3
    assert 20 <= len(site.asked) <= 20 + came_back
    with relay.client() as alice, relay.client(source_address=("127.0.0.2", 0)) as bo:
        assert bo.log_in("bo-session") == ADMITTED
        before = len(site.asked)
        answer = alice.log_in("alice-session")
        # Another denial may have come back to the address meanwhile: then the site was asked.
        assert (answer == ADMITTED) is (len(site.asked) > before)
        eventually(lambda: alice.log_in("alice-session") == ADMITTED, seconds=10, pause=3.2)
    relay.said("too many logins from 127.0.0.1 were denied")
    relay.stop()
    output = "\n".join(relay.output)
    assert output.count("too many logins") == 1
    assert "guess-" not in output


def test_denial_is_remembered_for_five_seconds(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.client() as alice, relay.client(source_address=("127.0.0.2", 0)) as other:
        assert alice.log_in("new-session") == DENIED
        denied_at = time.monotonic()
        site.users["new-session"] = 1
        answers = []
        for client in (alice, other):
            answers.append(client.log_in("new-session"))
        if time.monotonic() < denied_at + 4.5:  # else the machine was too busy
            assert site.asked == ["new-session"], "a session that was just denied was asked about again"
            assert answers == [DENIED, DENIED]
        time.sleep(max(0.0, denied_at + 5.2 - time.monotonic()))
        assert other.log_in("new-session") == ADMITTED


def test_denial_memory_of_zero_remembers_nothing(site: Site, start_relay: StartRelay) -> None:
    relay = start_relay("--denial-memory", "0")
    with relay.client() as alice:
        assert [alice.log_in("new-session") for _ in range(2)] == [DENIED, DENIED]
        site.users["new-session"] = 1
        assert alice.log_in("new-session") == ADMITTED
    assert site.asked == ["new-session"] * 3
