"""The files in examples/deploy/: nginx runs in front of a relay, and systemd reads the unit."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trustme
from websockets.exceptions import InvalidStatus

from bench.ports import free_port
from tests.support import PATIENCE
from tests.support.client import Client
from tests.support.deploy import DEPLOY, NGINX, ORIGIN, PATH, needs_nginx
from tests.support.programs import RelayProcess, Site, StartRelay, connected
from tests.support.v1 import ADMITTED

TOKEN = "0123456789abcdef" * 4

SYSTEMD_ANALYZE = shutil.which("systemd-analyze", path=PATH)

needs_systemd = pytest.mark.skipif(
    SYSTEMD_ANALYZE is None, reason="systemd-analyze is missing (on Debian: apt install systemd)"
)


@attrs.frozen
class Deployment:
    """nginx with the example's configuration, and the relay and site behind it."""

    folder: Path
    port: int
    relay: RelayProcess
    authorities: trustme.CA

    def client(
        self,
        path: str = "/chat",
        origin: str = ORIGIN,
        cookie: str | None = None,
        address: str = "127.0.0.1",
        forwarded_for: str | None = None,
    ) -> Client:
        """Open a connection of a page through nginx, from one of this machine's addresses."""
        trusting = ssl.create_default_context()
        self.authorities.configure_trust(trusting)
        headers = {"Cookie": cookie, "X-Forwarded-For": forwarded_for}
        return Client(
            f"wss://127.0.0.1:{self.port}{path}",
            ssl=trusting,
            server_hostname="www.example.com",
            origin=origin,
            additional_headers={name: value for name, value in headers.items() if value is not None},
            sock=connected(self.port, address),
        )

    def access_log(self, lines: int) -> list[dict[str, object]]:
        """Return what nginx has logged about /chat, which it does when a connection has ended."""
        path = self.folder / "chat.log"
        until = time.monotonic() + PATIENCE
        while len(logged := path.read_text().splitlines()) < lines:
            assert time.monotonic() < until, logged
            time.sleep(0.02)
        return [json.loads(line) for line in logged]


@pytest.fixture
def deployment(
    request: pytest.FixtureRequest, start_relay: StartRelay, site: Site, tmp_path: Path
) -> Iterator[Deployment]:
    """Start nginx and a relay with the example's options; only addresses and paths differ, unless a test adds
    options.
    """
    options = (DEPLOY / "chatrelay.toml").read_text()
    for theirs, ours in (
        ("/var/lib/chatrelay/", ""),
        ("tcp:8080", "tcp:0"),
        ("tcp:8081", "tcp:0"),
        ("/run/credentials/chatrelay.service/", ""),
    ):
        assert theirs in options
        options = options.replace(theirs, ours)
    (tmp_path / "ops-token").write_text(f"{TOKEN}\n")
    (tmp_path / "chatrelay.toml").write_text(options)
    relay = start_relay("--config", "chatrelay.toml", *getattr(request, "param", ()), listen=None)

    authorities = trustme.CA()
    leaf = authorities.issue_cert("www.example.com")
    (tmp_path / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    port = free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    for theirs, ours in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("127.0.0.1:8080", f"127.0.0.1:{relay.port}"),
        ("127.0.0.1:8000", f"127.0.0.1:{site.port}"),
        ("/etc/nginx/tls", str(tmp_path)),
        ("/var/log/nginx", str(tmp_path)),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    (tmp_path / "site.conf").write_text(text)
    temporary = "\n".join(
        f"    {kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/error.log;\n"
        f"events {{ worker_connections 256; }}\n"
        f"http {{\n{temporary}\n    access_log {tmp_path}/access.log;\n    include {tmp_path}/site.conf;\n}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")])
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                error_log = tmp_path / "error.log"
                assert process.poll() is None and time.monotonic() < until, (
                    error_log.read_text() if error_log.exists() else "nginx has not started"
                )
                time.sleep(0.02)
        yield Deployment(tmp_path, port, relay, authorities)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@needs_nginx
def test_messages_pass_through_nginx_with_the_sites_cookie(deployment: Deployment) -> None:
    with (
        deployment.client(cookie="session=alice-session") as alice,
        deployment.client(cookie="session=bo-session") as bo,
    ):
        assert alice.log_in(None) == ADMITTED
        assert bo.log_in(None) == ADMITTED
        alice.send(2, "å" * 8000)
        assert bo.hear()["message"]["content"] == "å" * 8000
        assert alice.hear()["response"]["value"] is True


@needs_nginx
def test_nginx_passes_the_origin_on(deployment: Deployment) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        deployment.client(origin="https://evil.test", cookie="session=alice-session")
    assert refusal.value.response.status_code == 403
    deployment.relay.said("https://evil.test")


@needs_nginx
def test_nginx_passes_the_client_address_on(deployment: Deployment) -> None:
    for address in ("127.0.0.5", "127.0.0.6"):
        with deployment.client(cookie="session=alice-session", address=address, forwarded_for="192.0.2.7") as alice:
            assert alice.log_in(None) == ADMITTED
        deployment.relay.said(f'"connection of 1 from {address} ended')
    assert "192.0.2.7" not in "\n".join(deployment.relay.output)


@needs_nginx
@pytest.mark.parametrize(
    "deployment", [("--unauthenticated-per-address", "2", "--login-timeout", "0")], indirect=True, ids=[""]
)
def test_visitors_behind_nginx_are_counted_by_their_own_address(deployment: Deployment) -> None:
    with (
        deployment.client(address="127.0.0.5", forwarded_for="192.0.2.1"),
        deployment.client(address="127.0.0.5", forwarded_for="192.0.2.2"),
        deployment.client(cookie="session=bo-session", address="127.0.0.6") as bo,
    ):
        with pytest.raises(InvalidStatus) as refusal:
            deployment.client(address="127.0.0.5", forwarded_for="192.0.2.3")
        assert refusal.value.response.status_code == 429
        assert bo.log_in(None) == ADMITTED


@needs_nginx
def test_site_reaches_the_ops_endpoint_for_readiness_and_revocation(deployment: Deployment) -> None:
    assert deployment.relay.ops("GET", "/readyz")[0] == 200
    with deployment.client(cookie="session=alice-session") as alice:
        assert alice.log_in(None) == ADMITTED
        assert deployment.relay.ops("POST", "/v1/revoke", {"uID": 1}, token="wrong")[0] == 401
        assert deployment.relay.ops("POST", "/v1/revoke", {"uID": 1}, token=TOKEN) == (200, {"ended": 1})


@needs_nginx
def test_no_session_id_is_in_nginxs_logs(deployment: Deployment) -> None:
    with deployment.client("/chat?SESSID=alice-session", cookie="session=alice-session") as alice:
        assert alice.log_in(None) == ADMITTED
        assert alice.log_in("alice-session") == ADMITTED
    (logged,) = deployment.access_log(1)
    assert (logged["path"], logged["status"], logged["origin"]) == ("/chat", 101, ORIGIN)
    for path in ("access.log", "chat.log", "error.log"):
        assert "alice-session" not in (deployment.folder / path).read_text()
    assert "alice-session" not in "\n".join(deployment.relay.output)


@needs_nginx
def test_session_page_is_not_served_to_the_outside(deployment: Deployment, site: Site) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        deployment.client("/session")
    assert refusal.value.response.status_code == 404
    assert site.requests == []


@needs_systemd
def test_unit_passes_systemd_analyze_verify_and_security(tmp_path: Path) -> None:
    assert SYSTEMD_ANALYZE is not None
    unit = tmp_path / "chatrelay.service"
    # Where the relay is not installed, systemd would say that it is not.
    unit.write_text((DEPLOY / "chatrelay.service").read_text().replace("/opt/chatrelay/bin/twistd", "/bin/true"))
    verified = subprocess.run([SYSTEMD_ANALYZE, "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    # 10 is a service without any, 0 one that may do nothing at all; the threshold is in tenths.
    rated = subprocess.run(
        [SYSTEMD_ANALYZE, "security", "--offline=true", "--no-pager", "--threshold=20", unit],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout + rated.stderr
