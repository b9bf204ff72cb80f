"""The notifications that a relay sends to systemd; a socket of the test stands in for systemd's."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import PATIENCE
from tests.support.authorities import Authorities
from tests.support.programs import RelayProcess, StartRelay

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


class Systemd:
    """The socket that receives a service's notifications."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hears(self) -> str:
        """Return the next notification."""
        self._socket.settimeout(PATIENCE)
        return self._socket.recv(4096).decode()

    def hears_signs_of_life(self, count: int) -> None:
        """Wait for this many signs of life."""
        assert [self.hears() for _ in range(count)] == [ALIVE] * count

    def hears_nothing(self, seconds: float) -> None:
        """Discard earlier notifications, and check that no more arrive."""
        self._socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                self._socket.recv(4096)
        self._socket.settimeout(seconds)
        with pytest.raises(TimeoutError):
            self._socket.recv(4096)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    """Make a socket with either kind of address."""
    listening = Systemd(str(tmp_path / "notify") if request.param == "path" else f"@chatrelay-{tmp_path}"[:100])
    yield listening
    listening.close()


@contextmanager
def halted(relay: RelayProcess) -> Iterator[None]:
    """Halt a relay for a while."""
    relay.process.send_signal(signal.SIGSTOP)
    try:
        while Path(f"/proc/{relay.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        yield
    finally:
        relay.process.send_signal(signal.SIGCONT)


def test_systemd_is_notified_of_start_and_stop(start_relay: StartRelay, systemd: Systemd) -> None:
    relay = start_relay(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="100000")
    assert systemd.hears() == READY
    socket.create_connection(("127.0.0.1", relay.port)).close()
    systemd.hears_signs_of_life(5)
    with halted(relay):
        systemd.hears_nothing(0.3)
    systemd.hears_signs_of_life(2)
    relay.process.terminate()
    heard = ALIVE
    while heard == ALIVE:
        heard = systemd.hears()
    assert heard == STOPPING
    assert relay.wait() == -signal.SIGTERM
    assert "could not be notified" not in "\n".join(relay.output)


def test_hanging_reactor_sends_no_watchdog_message(start_relay: StartRelay, tmp_path: Path) -> None:
    authorities = Authorities(tmp_path / "authorities")
    systemd = Systemd(str(tmp_path / "notify"))
    relay = start_relay(listen=authorities.renewed_endpoint(), NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="100000")
    assert systemd.hears() == READY
    systemd.hears_signs_of_life(2)
    # It waits for a certificate that comes through a pipe.
    path = authorities.root.parent / "cert.pem"
    whole = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    relay.process.send_signal(signal.SIGHUP)
    with path.open("wb") as pipe:
        systemd.hears_nothing(0.3)
        pipe.write(whole)
    relay.said("was reloaded")
    systemd.hears_signs_of_life(2)
    systemd.close()


def test_watchdog_of_another_process_is_ignored(start_relay: StartRelay, tmp_path: Path) -> None:
    systemd = Systemd(str(tmp_path / "notify"))
    start_relay(NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    assert systemd.hears() == READY
    systemd.hears_nothing(0.3)
    systemd.close()
