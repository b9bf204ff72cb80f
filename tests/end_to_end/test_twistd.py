"""`twistd chatrelay` as an operator uses it: help, options, and what it prints when it starts and when it can't."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import attrs
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect

from chatrelay.config.headings import HEADINGS
from chatrelay.config.options import Config
from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.programs import TWISTD, RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED

URL = "http://127.0.0.1:1/session"


# Help --------------------------------------------------------------------------


def test_help_lists_every_option_in_80_columns() -> None:
    relay = RelayProcess(Path("/"), "--help", listen=None, COLUMNS="80")
    assert relay.wait() == 0
    assert max(len(line) for line in relay.output) <= 80
    listed = [found[1] for line in relay.output if (found := re.match(r"  --([a-z-]+)", line))]
    options = [field.name.replace("_", "-") for field in attrs.fields(Config)]
    assert sorted(listed) == sorted([*options, "config", "help", "version"])
    text = " ".join(" ".join(relay.output).split())
    for field in attrs.fields(Config):
        assert " ".join(field.metadata["help"].split()) in text
    headings = [line for line in relay.output if re.fullmatch(r"[A-Z][^.]*:", line)]
    assert headings == [f"{heading}:" for heading, _ in HEADINGS] + ["This program:"]
    assert "documentation" in " ".join(relay.output[-4:])


def test_version_is_printed() -> None:
    relay = RelayProcess(Path("/"), "--version", listen=None)
    assert relay.wait() == 0
    assert re.fullmatch(r"chatrelay \d+\.\d+\S*", relay.output[-1])


# Refused starts --------------------------------------------------------------------


REFUSALS = {
    "no auth-url": (r"auth-url: is missing: .* --auth-url http://", ()),
    "an unknown option": (r"chatrelay: --nonsense is not an option \(all options: ", ("--auth-url", URL, "--nonsense")),
    "an unknown key in a file": (
        r"chatrelay: c.toml: auth-url: is not an option; did you mean auth_url\? \(all options: [^,]*\)$",
        ("--config", "c.toml"),
    ),
    "no number in the environment": (
        r"chatrelay: CHATRELAY_LOGIN_TIMEOUT: 'soon' must be a number of seconds",
        ("--auth-url", URL),
    ),
    "no secret": (
        r"auth-secret-file: s cannot be read: No such file",
        ("--auth-url", URL, "--auth-secret-file", "s"),
    ),
    "no folder for the message log": (
        r"the message log \S+/nowhere/x cannot be written: .*make it, or name another file with --message-log",
        ("--auth-url", URL, "--message-log", "sqlite:nowhere/x"),
    ),
    "no folder for a socket": (
        r"--listen: 'unix:nowhere/socket' cannot be opened: there is no folder \S+/nowhere: make it",
        ("--auth-url", URL, "--listen", "unix:nowhere/socket"),
    ),
}
"""One refusal of each step of a start; tests/unit/app/test_mistakes.py has the others."""


def refusal_of(relay: RelayProcess) -> str:
    """Wait for a relay that can't start; return its last line, and check that nothing technical is printed."""
    status = relay.wait()
    output = "\n".join(relay.output)
    assert status == 1, output
    assert "Traceback" not in output
    return relay.output[-1]


@pytest.mark.parametrize("name", REFUSALS)
def test_unusable_options_are_reported_in_one_sentence(tmp_path: Path, name: str) -> None:
    says, options = REFUSALS[name]
    (tmp_path / "c.toml").write_text("auth-url = 'x'")
    environment = {"CHATRELAY_LOGIN_TIMEOUT": "soon"} if "environment" in name else {}
    assert re.search(says, refusal_of(RelayProcess(tmp_path, *options, **environment)))


def test_unwritable_message_log_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o500)
    # The superuser may write anywhere, until it gives that up.
    under = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    relay = RelayProcess(tmp_path, "--auth-url", URL, "--message-log", "sqlite:theirs/x", under=under)
    assert re.search(
        r"the message log \S+/theirs/x cannot be written: the user \S+ may not write in the folder \S+/theirs, which",
        refusal_of(relay),
    )


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        relay = RelayProcess(tmp_path, "--auth-url", URL, listen=endpoint)
        assert re.search(
            rf"--listen: '{endpoint}' cannot be opened: port \d+ is in use .*: stop the program that uses it",
            refusal_of(relay),
        )


def test_failed_start_leaves_no_pid_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        for listen, log in ((endpoint, "memory:"), ("tcp:0:interface=127.0.0.1", "sqlite:nowhere/x")):
            options = ("--auth-url", URL, "--message-log", log)
            relay = RelayProcess(tmp_path, *options, listen=listen, twistd=("--pidfile", "its.pid"))
            assert refusal_of(relay).count("chatrelay: ") == 1
            assert not (tmp_path / "its.pid").exists()


def test_failed_start_in_the_background_ends_and_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--auth-url", URL, "--listen", f"tcp:{port}:interface=127.0.0.1", "--message-log", "memory:")
        started = subprocess.run(
            [sys.executable, "-c", TWISTD, "chatrelay", *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert started.returncode == 1
    assert f"chatrelay: --listen: 'tcp:{port}:" in started.stderr
    assert "log file" in started.stderr
    # It is logged before the file is removed.
    until = time.monotonic() + PATIENCE
    while (tmp_path / "twistd.pid").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert [file.name for file in tmp_path.iterdir()] == ["twistd.log"]
    said = (tmp_path / "twistd.log").read_text()
    while "or choose another port" not in said and time.monotonic() < until:
        time.sleep(0.01)
        said = (tmp_path / "twistd.log").read_text()
    assert "or choose another port" in said
    assert "Traceback" not in said


def test_log_of_a_newer_version_is_left_as_it_is(tmp_path: Path, site: Site, start_relay: StartRelay) -> None:
    file = tmp_path / "chatrelay.sqlite3"
    start_relay().stop()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
    before = file.read_bytes()
    says = r"made by a newer chatrelay \(schema 99, .*: upgrade chatrelay, or name another"
    assert re.search(says, refusal_of(RelayProcess(tmp_path, "--auth-url", site.url)))
    assert file.read_bytes() == before


def test_second_relay_on_the_same_message_log_is_refused_and_the_first_continues(
    tmp_path: Path, site: Site, relay: RelayProcess
) -> None:
    second = RelayProcess(tmp_path, "--auth-url", site.url)
    assert "is in use by another chatrelay: stop that one, or give each its own file" in refusal_of(second)
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
        alice.send(1, "note to self")
        assert alice.hear()["type"] == "message"
        assert alice.hear()["response"]["value"] is True


# Where options come from -------------------------------------------------------------


def test_command_line_precedes_environment_and_environment_precedes_file(tmp_path: Path, site: Site) -> None:
    (tmp_path / "c.toml").write_text(
        f"auth_url = '{site.url}'\n"
        "message_log = 'none'\n"
        "listen = ['tcp:0:interface=127.0.0.1', 'unix:from-file']\n"
        "origin = 'https://from-file.example'\n"
    )
    in_file = ("--config", "c.toml")
    environment = {"CHATRELAY_MESSAGE_LOG": "memory:", "CHATRELAY_ORIGIN": "https://a.example https://b.example:8443"}
    on_command_line = (
        "--message-log",
        "sqlite:x",
        "--origin",
        "https://c.example",
        "--listen",
        "unix:from-command-line",
    )

    def started(*options: str, **environment: str) -> tuple[str, list[str]]:
        with RelayProcess(tmp_path, *options, listen="tcp:0:interface=127.0.0.1", **environment) as relay:
            line = relay.said("listens on")
            admitted = []
            for origin in ("https://from-file.example", "https://b.example:8443", "https://c.example"):
                try:
                    with relay.client(origin=origin) as client:
                        assert client.log_in("alice-session") == ADMITTED
                    admitted.append(origin)
                except InvalidStatus:
                    pass
        return line.partition("listens on ")[2], admitted

    endpoint = "tcp:0:interface=127.0.0.1"
    assert started(*in_file) == (f"{endpoint}; message log: none", ["https://from-file.example"])
    assert started(*in_file, **environment) == (f"{endpoint}; message log: memory:", ["https://b.example:8443"])
    assert started(*in_file, *on_command_line, **environment) == (
        f"{endpoint}, unix:from-command-line; message log: sqlite:x",
        ["https://c.example"],
    )
    file_alone = RelayProcess(tmp_path, listen=None, CHATRELAY_CONFIG="c.toml")
    with file_alone:
        file_alone.said(r"listens on tcp:0:interface=127.0.0.1, unix:from-file; message log: none")


# Lines logged at the start -----------------------------------------------------------


@pytest.mark.parametrize(("message_log", "warned"), [("memory:", False), ("none", True)])
def test_relay_without_a_log_on_disk_carries_messages_and_writes_nothing(
    start_relay: StartRelay, message_log: str, warned: bool
) -> None:
    relay = start_relay("--message-log", message_log)
    with relay.client() as alice, relay.client() as bo:
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        alice.send(2, "hej", id="x")
        assert bo.hear()["message"]["content"] == "hej"
        assert alice.hear()["response"] == {"id": "x", "value": True}
    assert relay.stop() == -15
    assert list(relay.folder.iterdir()) == []
    warnings = [
        line for line in relay.output if "messages are not logged: one that was acknowledged may be lost" in line
    ]
    assert bool(warnings) is warned


@pytest.mark.parametrize("options", [(), ("--origin", "https://example.com")])
def test_missing_origin_option_is_logged(start_relay: StartRelay, options: tuple[str, ...]) -> None:
    relay = start_relay(*options)
    relay.client().close()  # by then it has said all that it says at its start
    relay.stop()
    said = [line for line in relay.output if "any origin may connect; admit only yours with --origin" in line]
    assert len(said) == (0 if options else 1)


@pytest.mark.parametrize(("level", "is_told"), [(None, False), ("debug", True)])
def test_health_check_is_logged_only_where_the_option_says_so(
    start_relay: StartRelay, level: str | None, is_told: bool
) -> None:
    relay = start_relay(*(() if level is None else ("--log-level", level)))
    with socket.create_connection(("127.0.0.1", relay.port)) as checker:
        checker.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert checker.recv(1000).startswith(b"HTTP/1.1 ")
    relay.stop()
    assert any("no handshake from 127.0.0.1" in line for line in relay.output) is is_told
    assert any("chatrelay has stopped" in line for line in relay.output)


def test_unreachable_site_is_logged_at_the_start_and_the_relay_starts(tmp_path: Path, site: Site) -> None:
    with RelayProcess(tmp_path, "--auth-url", URL, "--breaker-failures", "1", "--ops-listen", "tcp:0") as relay:
        relay.said(
            r"the startup check of the session page at http://127\.0\.0\.1:1/session found that nobody can log in"
        )
        listens, looked = (
            next(i for i, line in enumerate(relay.output) if words in line)
            for words in ("listens on", "the startup check")
        )
        assert listens < looked
        assert relay.ops("GET", "/readyz") == (200, {"status": "ready"})
        with relay.client() as alice:
            assert alice.log_in("alice-session")["reason"] == "webserver-unavailable"
        # That was the breaker's first failure; the look was none.
        assert "in a row" in relay.said("in a row")
        assert len([line for line in relay.output if "could not be asked" in line]) == 1


def test_startup_check_asks_about_a_made_up_session(tmp_path: Path, site: Site) -> None:
    site.counts_first_look = True
    with RelayProcess(tmp_path, "--auth-url", site.url) as relay:
        until = time.monotonic() + PATIENCE
        while not site.asked and time.monotonic() < until:
            time.sleep(0.01)
        with relay.client() as alice:
            assert alice.log_in("alice-session") == ADMITTED
    (made_up, real) = site.asked
    assert re.fullmatch(r"chatrelay-at-start-[0-9a-f]{16}", made_up)
    assert real == "alice-session"
    assert not [line for line in relay.output if "the startup check" in line]


# Where it listens --------------------------------------------------------------------


def test_listen_may_be_given_twice(start_relay: StartRelay) -> None:
    relay = start_relay("--listen", "tcp:0:interface=127.0.0.1")
    line = relay.said(r"ChatFactory.* starting on ", times=2)
    second = int(line.rpartition(" ")[2])
    assert second != relay.port
    with relay.client() as alice, Client(f"ws://127.0.0.1:{second}/") as bo:
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED
        alice.send(2, "hej")
        assert bo.hear()["message"]["content"] == "hej"
    relay.stop()
    for port in (relay.port, second):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_unix_socket_works_and_is_removed_when_the_relay_stops(start_relay: StartRelay) -> None:
    relay = start_relay(listen="unix:socket:mode=600")
    path = relay.folder / "socket"
    assert path.stat().st_mode & 0o777 == 0o600
    with unix_connect(str(path), compression=None, open_timeout=PATIENCE) as socket:
        for frame, answer in (
            ('{"type":"auth-request","SESSID":"stolen"}', '{"type":"auth-response","response":false}'),
            ('{"type":"auth-request","SESSID":"bo-session"}', '{"type":"auth-response","response":true}'),
        ):
            socket.send(frame)
            assert socket.recv(PATIENCE) == answer
    with pytest.raises(InvalidStatus) as refusal:  # its address is not a host and port, and is logged
        unix_connect(str(path), subprotocols=["nonsense"], open_timeout=PATIENCE)
    assert refusal.value.response.status_code == 400
    relay.said("refused with 400")
    relay.stop()
    assert sum("named no client" in line and "--trusted-proxy unix" in line for line in relay.output) == 1
    assert not path.exists()
    assert "Traceback" not in "\n".join(relay.output)


# How it ends -------------------------------------------------------------------------

# A job that a shell started in the background ignores SIGINT, and so would what it starts.
HEARS_SIGINT = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])",
)


def test_ctrl_c_closes_with_4000_and_ends_without_an_error(start_relay: StartRelay) -> None:
    relay = start_relay(under=HEARS_SIGINT)
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
        relay.process.send_signal(signal.SIGINT)
        assert alice.closed() == (4000, [])
    assert relay.wait() == -signal.SIGINT
    relay.said("chatrelay has stopped")
    assert "Traceback" not in "\n".join(relay.output)
