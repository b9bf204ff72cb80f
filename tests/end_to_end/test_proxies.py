"""Clients behind proxies: each block of docs/operating/proxy.rst in the real proxy. nginx with TLS is in
test_deploy.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest
from websockets.exceptions import InvalidStatus

from bench.ports import free_port
from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.deploy import PATH
from tests.support.frames import frame
from tests.support.programs import RelayProcess, Site, StartRelay, connected
from tests.support.v1 import ADMITTED

PROGRAMS = {name: shutil.which(name, path=PATH) for name in ("nginx", "apache2", "caddy", "haproxy")}
NAMING = ("nginx", "apache2", "caddy")
"""Proxies that name the client in X-Forwarded-For."""

OWN_NAME = ("--trusted-proxy", "127.0.0.1")


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a test if a proxy is not installed."""
    package = "apache2-bin" if name == "apache2" else name
    return pytest.mark.skipif(PROGRAMS[name] is None, reason=f"{name} is missing (on Debian: apt install {package})")


def block(name: str, **ours: str) -> str:
    """Return a block of docs/operating/proxy.rst, with other addresses."""
    text = (ROOT / "docs" / "operating" / "proxy.rst").read_text()
    found = re.search(rf"\.\. code-block:: \w+\n   :name: proxy-{name}\n\n((?:   .*\n|\n)+)", text)
    assert found, name
    settings = found[1]
    for theirs, our in ours.items():
        theirs = theirs.replace("_", " ")
        assert theirs in settings or theirs == "127.0.0.1:8080", (theirs, settings)
        settings = settings.replace(theirs, our)
    return settings


@attrs.frozen
class Proxy:
    """A proxy in front of a relay."""

    name: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def client(self, address: str = "127.0.0.1") -> Client:
        """Open a connection through the proxy."""
        return Client(f"ws://127.0.0.1:{self.port}/chat", sock=connected(self.port, address))


def settings_of(name: str, relay: RelayProcess, port: int, folder: Path) -> tuple[str, list[str]]:
    """Return the settings of a proxy, with the block of the documentation inside, and its command line."""
    program, config = PROGRAMS[name], folder / f"{name}.conf"
    assert program is not None
    if name == "nginx":
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi"))
        temporary += "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("uwsgi", "scgi"))
        inner = f"server {{\nlisten 127.0.0.1:{port};\n{block('nginx')}}}\n"
        return (
            f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
            f"http {{\n{temporary}access_log off;\n{inner}}}\n"
        ), [program, "-e", f"{folder}/error.log", "-c", str(config)]
    if name == "apache2":
        modules = "".join(
            f"LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n"
            for module in ("mpm_event", "authz_core", "proxy", "proxy_http")
        )
        return (
            f"ServerRoot {folder}\nServerName localhost\nDefaultRuntimeDir {folder}\nPidFile {folder}/apache2.pid\n"
            f"Listen 127.0.0.1:{port}\nErrorLog {folder}/error.log\n"
            f"User nobody\nGroup nogroup\n{modules}{block('apache')}"
        ), [program, "-DFOREGROUND", "-f", str(config)]
    if name == "caddy":
        own = f"{{\n    admin unix/{folder}/admin.sock\n    auto_https off\n    default_bind 127.0.0.1\n}}\n"
        return own + block("caddy", **{"example.com": f"http://127.0.0.1:{port}"}), [
            *(program, "run", "--adapter", "caddyfile", "--config", str(config))
        ]
    return (
        f"global\n    stats socket {folder}/stats.sock\n"
        + block("haproxy", **{":443 ssl crt /etc/haproxy/example.com.pem": f"127.0.0.1:{port}"})
    ), [program, "-db", "-f", str(config)]


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start proxies in front of a relay, with changed settings."""
    with ExitStack() as running:

        def begin(name: str, relay: RelayProcess, changes: dict[str, str]) -> Proxy:
            port = free_port()
            text, command = settings_of(name, relay, port, tmp_path)
            for theirs, ours in {"127.0.0.1:8080": f"127.0.0.1:{relay.port}", **changes}.items():
                assert theirs in text, (theirs, text)
                text = text.replace(theirs, ours)
            (tmp_path / f"{name}.conf").write_text(text)
            # Apache's workers and Caddy's files are the test's own: none of the machine's are used.
            tmp_path.chmod(0o755)
            home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
            with (tmp_path / f"{name}.output").open("wb") as output:
                process = running.enter_context(
                    subprocess.Popen(command, env={**os.environ, **home}, stderr=output, start_new_session=True)
                )
            running.callback(lambda: os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None)
            return Proxy(name, port, tmp_path, process)

        def start(name: str, relay: RelayProcess, **changes: str) -> Proxy:
            until = time.monotonic() + PATIENCE
            proxy = begin(name, relay, changes)
            while True:
                has_ended = proxy.process.poll() is not None
                try:
                    if not has_ended:
                        connected(proxy.port).close()
                        return proxy
                except ConnectionRefusedError:
                    pass
                said = (tmp_path / f"{name}.output").read_text()
                # Another test may have taken the port since it was found free.
                is_taken = has_ended and "ddress already in use" in said
                assert is_taken or not has_ended, f"{name} has not started: {said}"
                assert time.monotonic() < until, f"{name} has not started in time: {said}"
                if is_taken:
                    proxy = begin(name, relay, changes)
                time.sleep(0.02)

        yield start


StartProxy = Callable[..., Proxy]

each_that_names = pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in NAMING])


@each_that_names
def test_proxy_block_of_the_documentation_carries_messages(
    start_relay: StartRelay, start_proxy: StartProxy, name: str
) -> None:
    relay = start_relay(*OWN_NAME, "--connections-per-address", "2")
    proxy = start_proxy(name, relay)
    with proxy.client("127.0.0.5") as alice, proxy.client("127.0.0.5") as bo:
        assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (ADMITTED, ADMITTED)
        with pytest.raises(InvalidStatus) as refusal:
            proxy.client("127.0.0.5")
        assert refusal.value.response.status_code == 429
        with proxy.client("127.0.0.6") as chen:
            assert chen.log_in("chen-session") == ADMITTED
            chen.send(1, "å" * 8000)
            assert alice.hear()["message"]["content"] == "å" * 8000
    relay.said(r"connection of chen from 127.0.0.6 ended by the client")


@each_that_names
def test_pings_keep_an_idle_connection(start_relay: StartRelay, start_proxy: StartProxy, name: str) -> None:
    relay = start_relay(*OWN_NAME, "--ping-interval", "0.5")
    short = {
        "nginx": {"proxy_http_version 1.1;": "proxy_http_version 1.1;\nproxy_read_timeout 2s;"},
        "apache2": {"ServerName localhost": "ServerName localhost\nTimeout 2\nProxyTimeout 2"},
        "caddy": {},
    }[name]
    with start_proxy(name, relay, **short).client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
        assert alice.hears_nothing(5)
        alice.send(1, "still here")
        assert alice.hear()["message"]["content"] == "still here"


@needs("nginx")
@pytest.mark.parametrize(
    ("without", "status"), [("proxy_http_version 1.1;", 505), ("proxy_set_header Upgrade $http_upgrade;", 426)]
)
def test_handshake_stripped_by_nginx_is_refused_with_the_headers_to_pass_on(
    start_relay: StartRelay, start_proxy: StartProxy, without: str, status: int
) -> None:
    proxy = start_proxy("nginx", start_relay(*OWN_NAME), **{without: ""})
    with pytest.raises(InvalidStatus) as refusal:
        proxy.client()
    assert refusal.value.response.status_code == status
    assert without.encode() in refusal.value.response.body


@needs("caddy")
def test_reload_of_caddy_is_not_logged_as_an_error_of_the_client(
    start_relay: StartRelay, start_proxy: StartProxy
) -> None:
    relay = start_relay(*OWN_NAME)
    proxy = start_proxy("caddy", relay)
    with proxy.client() as alice, proxy.client() as bo:
        assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (ADMITTED, ADMITTED)
        # Half of a frame, and a whole one behind which is nothing.
        alice.write(frame(b"x" * 4096)[:108])
        bo.send(2, "hej")
        bo.hear()
        config = proxy.folder / "caddy.conf"
        config.write_text(config.read_text().replace("reverse_proxy", "header X-Version 2\n        reverse_proxy"))
        admin = f"unix/{proxy.folder}/admin.sock"
        reload = [PROGRAMS["caddy"] or "", "reload", "--adapter", "caddyfile", "--config", config, "--address", admin]
        subprocess.run(reload, check=True, capture_output=True, timeout=4 * PATIENCE)
        for _ in range(2):
            relay.said("connection of 1 .* ended by the client with 1001 .*: (a proxy in between closed it|it closed)")
            relay.said("connection of 2 .* ended by the client with 1001 .*: (a proxy in between closed it|it closed)")
    assert not [line for line in relay.output if "with 1002" in line or "with 1007" in line]


@needs("haproxy")
@pytest.mark.parametrize("sending", ["send-proxy", "send-proxy-v2"])
def test_haproxy_passes_the_client_address_on(
    start_proxy: StartProxy, site: Site, tmp_path: Path, sending: str
) -> None:
    options = ("--auth-url", site.url, "--connections-per-address", "2", "--ops-listen", "tcp:0")
    with RelayProcess(tmp_path, *options, listen="haproxy:tcp:0:interface=127.0.0.1") as relay:
        proxy = start_proxy("haproxy", relay, **{"port 8081": f"port {relay.ops_port}", "send-proxy-v2": sending})
        with proxy.client("127.0.0.5") as alice, proxy.client("127.0.0.5") as bo:
            assert (alice.log_in("alice-session"), bo.log_in("bo-session")) == (ADMITTED, ADMITTED)
            with pytest.raises(InvalidStatus) as refusal:
                proxy.client("127.0.0.5")
            assert refusal.value.response.status_code == 429
            relay.said(r"handshake from 127.0.0.5:\d+ refused with 429: .* \(connections-per-address 2\)")
            with proxy.client("127.0.0.6") as chen:
                assert chen.log_in("chen-session") == ADMITTED
                chen.send(1, "hej")
                assert alice.hear()["message"]["content"] == "hej"
        relay.said(r"connection of chen from 127.0.0.6:\d+ ended by the client")


@needs("haproxy")
@pytest.mark.parametrize("asks", ["as documented", "by default"])
def test_haproxy_checks_the_readiness_of_the_relay(
    start_proxy: StartProxy, site: Site, tmp_path: Path, asks: str
) -> None:
    options = ("--auth-url", site.url, "--ops-listen", "tcp:0")
    with RelayProcess(tmp_path, *options, listen="haproxy:tcp:0:interface=127.0.0.1") as relay:
        changes = {"check port 8081": f"check inter 200ms port {relay.ops_port}"}
        if asks == "by default":
            changes["http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host relay"] = ""
        proxy = start_proxy("haproxy", relay, **changes)
        expected = ("L7OK", "200") if asks == "as documented" else ("L7STS", "4")
        until = time.monotonic() + PATIENCE
        while True:
            with socket.socket(socket.AF_UNIX) as stats:
                stats.connect(str(proxy.folder / "stats.sock"))
                stats.sendall(b"show stat\n")
                lines = stats.makefile().read().splitlines()
            names = lines[0].removeprefix("# ").split(",")
            (state,) = (dict(zip(names, line.split(","), strict=False)) for line in lines if ",relay," in line)
            if state["check_status"] == expected[0] and state["check_code"].startswith(expected[1]):
                break
            assert time.monotonic() < until, state
            time.sleep(0.05)
