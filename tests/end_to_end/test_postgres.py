"""A relay whose message log is in a real PostgreSQL server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import ROOT
from tests.support.client import Client
from tests.support.postgres_server import PostgresServer, shared_server
from tests.support.programs import RelayProcess, StartRelay
from tests.support.v1 import ADMITTED

PASSWORD = "s3cr3t-of-the-database"


@pytest.fixture
def server() -> PostgresServer:
    """Return a PostgreSQL server."""
    return shared_server()


@pytest.fixture
def url(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of an empty database, with the password of a user who may do as little as possible."""
    database = server.database(request.addfinalizer)
    server.execute(f"CREATE ROLE with_password LOGIN PASSWORD '{PASSWORD}'")
    server.execute(f"GRANT CREATE ON DATABASE {database} TO with_password")
    yield server.url(database, user=f"with_password:{PASSWORD}")
    server.execute("DROP OWNED BY with_password CASCADE", database)
    server.execute("DROP ROLE with_password")


def messages(url: str) -> list[dict[str, object]]:
    """Return what ``chatrelay messages`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "chatrelay.app.cli", "messages"],
        env={"CHATRELAY_MESSAGE_LOG": url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(alice: Client, bo: Client, content: str) -> dict[str, object]:
    """Send a message, and return its answer. The recipient hears it if it was accepted."""
    alice.send(2, content)
    answer: dict[str, object] = alice.hear()["response"]
    if answer["value"]:
        assert bo.hear()["message"]["content"] == content
    return answer


def test_messages_are_refused_while_the_server_is_away_and_the_password_is_nowhere(
    start_relay: StartRelay, server: PostgresServer, url: str
) -> None:
    relay: RelayProcess = start_relay("--ops-listen", "tcp:0:interface=127.0.0.1", CHATRELAY_MESSAGE_LOG=url)
    with relay.client() as alice, relay.client() as bo:
        assert alice.log_in("alice-session") == bo.log_in("bo-session") == ADMITTED
        assert said(alice, bo, "before")["value"] is True
        server.kill()
        relay.said("No message is delivered until it can be written")
        assert said(alice, bo, "meanwhile")["reason"] == "log-unavailable"
        status, why = relay.ops("GET", "/readyz")
        assert (status, PASSWORD in json.dumps(why)) == (503, False)
        server.start()
        relay.said("can be written again")
        assert said(alice, bo, "after")["value"] is True
    assert relay.stop() == -15
    assert [row["content"] for row in messages(url)] == ["before", "after"]
    printed = "\n".join(relay.output)
    assert "message log: postgresql://with_password:***@127.0.0.1" in printed
    assert "postgresql://with_password@127.0.0.1" in printed
    assert PASSWORD not in printed


def test_relay_that_cannot_log_in_says_so_and_does_not_start(
    start_relay: StartRelay, server: PostgresServer, url: str
) -> None:
    wrong = url.replace(PASSWORD, "wr0ng-password")
    with pytest.raises(AssertionError, match="password authentication failed") as failed:
        start_relay(CHATRELAY_MESSAGE_LOG=wrong)
    assert "check the user and the password" in str(failed.value)
    assert "CHATRELAY_MESSAGE_LOG: the message log postgresql://with_password@127.0.0.1" in str(failed.value)
    assert "wr0ng" not in str(failed.value)
