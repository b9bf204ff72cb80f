"""What SIGHUP does: certificates read anew while people talk, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.programs import PATIENCE, Client, RelayProcess, Site
from tests.end_to_end.test_tls import ADMITTED, Authorities

StartRelay = Callable[..., RelayProcess]


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    """Authorities that whoever has the root's certificate trusts."""
    return Authorities(tmp_path / "authorities")


def renew(authorities: Authorities, *names: str) -> str:
    """Put a new certificate in the files of the old one; return the endpoint."""
    chain = authorities.root.parent / "chain.pem"
    chain.unlink(missing_ok=True)
    return authorities.endpoint(authorities.issue("127.0.0.1", *names))


def names_shown(relay: RelayProcess, authorities: Authorities) -> set[str]:
    """The host names in the certificate that a new client is shown."""
    with (
        socket.create_connection(("127.0.0.1", relay.port), PATIENCE) as plain,
        authorities.trusting().wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        certificate = tls.getpeercert()
        assert certificate is not None
        return {name for kind, name in certificate["subjectAltName"] if kind == "DNS"}  # type: ignore[misc, has-type]


def test_sighup_reads_the_certificate_anew_and_nobody_notices(
    start_relay: StartRelay, authorities: Authorities
) -> None:
    relay = start_relay("--message-log", "memory:", listen=renew(authorities, "old.example"))
    with (
        Client(f"wss://127.0.0.1:{relay.port}/", ssl=authorities.trusting()) as alice,
        Client(f"wss://127.0.0.1:{relay.port}/", ssl=authorities.trusting()) as bo,
    ):
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED
        assert names_shown(relay, authorities) == {"old.example"}

        renew(authorities, "new.example")
        assert names_shown(relay, authorities) == {"old.example"}  # until it is told
        relay.process.send_signal(signal.SIGHUP)
        assert "for new.example, 127.0.0.1, until 3000-" in relay.said("was read anew")
        assert names_shown(relay, authorities) == {"new.example"}

        key = authorities.root.parent / "key.pem"
        whole = key.read_bytes()
        key.write_bytes(whole[: len(whole) // 2])
        relay.process.send_signal(signal.SIGHUP)
        relay.said("can't be used; the one before stays: .")
        assert names_shown(relay, authorities) == {"new.example"}

        key.write_bytes(whole)
        relay.process.send_signal(signal.SIGHUP)
        relay.said("was read anew", times=2)
        assert names_shown(relay, authorities) == {"new.example"}

        # Two who have been here all the while.
        for sender, to, recipient in ((alice, 2, bo), (bo, 1, alice)):
            sender.send(to, "still here")
            assert recipient.hear()["message"]["content"] == "still here"
            assert sender.hear()["response"]["value"] is True
    assert relay.stop() == -signal.SIGTERM
    assert "Traceback" not in "\n".join(relay.output)


def test_sighup_without_a_certificate_does_nothing(relay: RelayProcess) -> None:
    relay.process.send_signal(signal.SIGHUP)
    relay.said("there is no certificate to read anew")
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
    assert relay.stop() == -signal.SIGTERM


def test_a_terminal_that_is_closed_ends_it_with_its_goodbyes(site: Site, tmp_path: Path) -> None:
    terminal, inside = os.openpty()
    relay = RelayProcess(tmp_path, "--auth-url", site.url, stdin=inside)
    os.close(inside)
    with relay:
        relay.process.send_signal(signal.SIGHUP)
        relay.said("there is no certificate to read anew")
        with relay.client() as alice:
            os.close(terminal)
            relay.process.send_signal(signal.SIGHUP)
            assert alice.closed() == (4000, [])
        assert relay.wait() == 0
