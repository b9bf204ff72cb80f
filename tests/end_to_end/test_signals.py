"""What each signal does to a relay that starts, runs or stops, and to one that is the first process of a container."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from websockets.sync.client import unix_connect

from tests.support import PATIENCE
from tests.support.authorities import Authorities
from tests.support.client import Client
from tests.support.frames import HANDSHAKE
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    """Make authorities that every client with the root's certificate trusts."""
    return Authorities(tmp_path / "authorities")


def names_shown(relay: RelayProcess, authorities: Authorities) -> set[str]:
    """Return the host names in the certificate that a new client receives."""
    with (
        socket.create_connection(("127.0.0.1", relay.port), PATIENCE) as plain,
        authorities.trusting().wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        certificate = tls.getpeercert()
        assert certificate is not None
        return {name for kind, name in certificate["subjectAltName"] if kind == "DNS"}  # type: ignore[misc, has-type]


def test_sighup_reloads_the_certificate_and_connections_stay(start_relay: StartRelay, authorities: Authorities) -> None:
    relay = start_relay("--message-log", "memory:", listen=authorities.renewed_endpoint("old.example"))
    with (
        Client(f"wss://127.0.0.1:{relay.port}/", ssl=authorities.trusting()) as alice,
        Client(f"wss://127.0.0.1:{relay.port}/", ssl=authorities.trusting()) as bo,
    ):
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED
        assert names_shown(relay, authorities) == {"old.example"}

        authorities.renewed_endpoint("new.example")
        assert names_shown(relay, authorities) == {"old.example"}  # until it is told
        relay.process.send_signal(signal.SIGHUP)
        assert "for new.example, 127.0.0.1, until 3000-" in relay.said("was reloaded")
        assert names_shown(relay, authorities) == {"new.example"}

        key = authorities.root.parent / "key.pem"
        whole = key.read_bytes()
        key.write_bytes(whole[: len(whole) // 2])
        relay.process.send_signal(signal.SIGHUP)
        relay.said("could not be reloaded, and the previous one is kept: .")
        assert names_shown(relay, authorities) == {"new.example"}

        key.write_bytes(whole)
        relay.process.send_signal(signal.SIGHUP)
        relay.said("was reloaded", times=2)
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
    relay.said("there is no certificate to reload")
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
    assert relay.stop() == -signal.SIGTERM


def test_closed_terminal_stops_the_relay_with_close_frames(site: Site, tmp_path: Path) -> None:
    terminal, inside = os.openpty()
    relay = RelayProcess(tmp_path, "--auth-url", site.url, stdin=inside)
    os.close(inside)
    with relay:
        relay.process.send_signal(signal.SIGHUP)
        relay.said("there is no certificate to reload")
        with relay.client() as alice:
            os.close(terminal)
            relay.process.send_signal(signal.SIGHUP)
            assert alice.closed() == (4000, [])
        assert relay.wait() == 0


# While it starts ------------------------------------------------------------------------

AT = """
import os, signal, sys
def when(frame, event, argument):
    if event == "call" and frame.f_code.co_name == {name!r}:
        sys.setprofile(None)
        os.kill(os.getpid(), {signal})
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.setprofile(when)
"""
"""Has the relay send itself a signal at the first call of some function."""

MOMENTS = (
    *("describe", "postOptions", "build", "beginLoggingTo", "setupEnvironment", "privilegedStartService"),
    *("listenUNIX", "shedPrivileges", "startService", "addSystemEventTrigger", "startRunning"),
)
"""Functions in the order in which a start calls them, from the definition of the options to the run of the reactor."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_the_start_ends_the_relay_quietly(
    tmp_path: Path, site: Site, moment: str, sign: signal.Signals
) -> None:
    relay = RelayProcess(
        tmp_path,
        *("--auth-url", site.url, "--listen", "unix:socket", "--message-log", "sqlite:messages"),
        twistd=("--pidfile", "its.pid"),
        prelude=AT.format(name=moment, signal=int(sign)),
        measured=False,
    )
    try:
        assert relay.wait() == -sign, relay.output
    finally:
        relay.process.kill()
    assert not [line for line in relay.output if re.search("Traceback|Interrupt|Error|Unhandled", line)]
    assert not {path.name for path in tmp_path.iterdir()} & {"its.pid", "socket", "socket.lock", "messages-wal"}


@pytest.mark.parametrize("moment", ["build", "privilegedStartService", "startService"])
@pytest.mark.parametrize("sign", [signal.SIGHUP, signal.SIGUSR1])
def test_signal_during_the_start_is_handled_when_the_relay_runs(
    start_relay: StartRelay, moment: str, sign: signal.Signals
) -> None:
    relay = start_relay(
        "--message-log", "sqlite:messages", prelude=AT.format(name=moment, signal=int(sign)), measured=False
    )
    relay.said("there is no " + ("certificate to reload" if sign == signal.SIGHUP else "log file to rotate"))
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
    assert relay.stop() == -signal.SIGTERM


def test_second_signal_during_the_start_ends_the_relay_at_once(tmp_path: Path, site: Site) -> None:
    twice = AT.format(name="privilegedStartService", signal=int(signal.SIGTERM)).replace(
        "        os.kill", "        os.kill(os.getpid(), 15); os.kill"
    )
    relay = RelayProcess(tmp_path, "--auth-url", site.url, prelude=twice, measured=False)
    assert relay.wait() == -signal.SIGTERM
    assert not [line for line in relay.output if "listens on" in line]


# While it runs --------------------------------------------------------------------------


def test_sigusr1_without_a_log_file_does_nothing(relay: RelayProcess) -> None:
    for times in (1, 2):
        relay.process.send_signal(signal.SIGUSR1)
        relay.said("there is no log file to rotate", times=times)
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
    assert relay.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    "sign", [signal.SIGPIPE, signal.SIGWINCH, signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGXFSZ]
)
def test_other_signals_do_not_end_the_relay(relay: RelayProcess, sign: signal.Signals) -> None:
    relay.process.send_signal(sign)
    with relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED


@pytest.mark.parametrize("sign", [signal.SIGHUP, signal.SIGUSR1])
def test_signal_while_the_relay_stops_does_not_cut_its_close_frames(relay: RelayProcess, sign: signal.Signals) -> None:
    with socket.create_connection(("127.0.0.1", relay.port)) as silent:
        silent.sendall(HANDSHAKE)
        assert silent.recv(1000).startswith(b"HTTP/1.1 101")
        relay.process.terminate()
        relay.said("Port .* Closed")
        for _ in range(2):
            relay.process.send_signal(sign)
        assert relay.wait() == -signal.SIGTERM
    relay.said("chatrelay has stopped")
    assert "Traceback" not in "\n".join(relay.output)


# The first process of a container -----------------------------------------------------------

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture(scope="module")
def as_first() -> tuple[str, ...]:
    """Run a program as process 1 of a PID namespace, or as an ordinary process if that is not permitted."""
    try:
        can = subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        can = False
    return NAMESPACE if can else ()


def test_relay_of_a_container_starts_again_after_a_kill(
    start_relay: StartRelay, tmp_path: Path, as_first: tuple[str, ...]
) -> None:
    def start() -> RelayProcess:
        return start_relay(
            *("--ops-listen", "unix:ops", "--message-log", "sqlite:messages"),
            listen="unix:socket",
            twistd=("--pidfile", "its.pid"),
            under=as_first,
            measured=False,
        )

    left = {"its.pid", "socket", "socket.lock", "ops", "ops.lock"}
    for _ in range(2):
        relay = start()
        assert {path.name for path in tmp_path.iterdir()} >= left
        relay.stop(signal.SIGKILL)
        assert {path.name for path in tmp_path.iterdir()} >= left
    relay = start()
    if as_first:
        assert (tmp_path / "its.pid").read_text() == "1"
    second = RelayProcess(
        *(tmp_path, "--auth-url", "http://127.0.0.1:1/", "--message-log", "memory:"),
        listen="unix:socket",
        twistd=("--pidfile", "another.pid"),
        measured=False,
    )
    assert second.wait() == 1
    assert "another process listens there" in second.output[-1]
    with unix_connect(str(tmp_path / "socket"), open_timeout=PATIENCE) as alice:
        alice.send('{"type":"auth-request","SESSID":"alice-session"}')
        assert json.loads(alice.recv(PATIENCE)) == ADMITTED
    # The kernel does not let the first process end itself with a signal.
    assert relay.stop() == (0 if as_first else -signal.SIGTERM)
    assert not {path.name for path in tmp_path.iterdir()} & left


def test_pid_file_and_socket_with_the_relays_own_pid_are_removed(start_relay: StartRelay, tmp_path: Path) -> None:
    leave = """
import os, socket
os.symlink(str(os.getpid()), "socket.lock")
with socket.socket(socket.AF_UNIX) as left: left.bind("socket")
with open("its.pid", "w") as left: left.write(str(os.getpid()))
"""
    relay = start_relay(listen="unix:socket", twistd=("--pidfile", "its.pid"), prelude=leave)
    with unix_connect(str(tmp_path / "socket"), open_timeout=PATIENCE) as alice:
        alice.send('{"type":"auth-request","SESSID":"alice-session"}')
        assert json.loads(alice.recv(PATIENCE)) == ADMITTED
    assert (tmp_path / "its.pid").read_text() == str(relay.pid)


def test_pid_file_of_another_process_stays(tmp_path: Path, site: Site) -> None:
    (tmp_path / "its.pid").write_text(str(os.getpid()))
    relay = RelayProcess(tmp_path, "--auth-url", site.url, twistd=("--pidfile", "its.pid"))
    assert relay.wait() == 1
    assert f"Another twistd server is running, PID {os.getpid()}" in "\n".join(relay.output)
    assert (tmp_path / "its.pid").read_text() == str(os.getpid())


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_first_process_of_a_container_handles_signals_during_its_start(
    tmp_path: Path, site: Site, as_first: tuple[str, ...], sign: signal.Signals
) -> None:
    prelude = AT.format(name="build", signal=int(sign))
    relay = RelayProcess(tmp_path, "--auth-url", site.url, prelude=prelude, under=as_first, measured=False)
    try:
        assert relay.wait() == (128 + sign if as_first else -sign)
    finally:
        relay.process.kill()
    assert relay.output == []


def test_second_signal_ends_the_first_process_of_a_container(
    start_relay: StartRelay, as_first: tuple[str, ...]
) -> None:
    relay = start_relay("--drain-time", "600", "--closing-timeout", "600", under=as_first, measured=False)
    with socket.create_connection(("127.0.0.1", relay.port)) as deaf:
        deaf.sendall(HANDSHAKE)
        assert deaf.recv(1000).startswith(b"HTTP/1.1 101")
        os.kill(relay.pid, signal.SIGTERM)
        relay.said("Port .* Closed")
        assert relay.stop() == (128 + signal.SIGTERM if as_first else -signal.SIGTERM)


def test_failed_start_leaves_no_socket(tmp_path: Path, site: Site) -> None:
    options = ("--auth-url", site.url, "--message-log", "sqlite:nowhere/x", "--ops-listen", "unix:ops")
    relay = RelayProcess(tmp_path, *options, listen="unix:socket")
    assert relay.wait() == 1
    assert "there is no folder" in relay.output[-1] or "cannot be written" in relay.output[-1]
    assert list(tmp_path.iterdir()) == []
