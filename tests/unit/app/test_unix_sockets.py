"""Listening on UNIX sockets: stale sockets and locks are removed, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor

from chatrelay.app import unix_sockets
from chatrelay.app.unix_sockets import UnixListener, is_unix


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the socket."""
    return tmp_path / "socket"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """Return the path of Twisted's lock file."""
    return tmp_path / "socket.lock"


class Listening:
    """Listens inside a `with` statement, in a reactor that does not run."""

    def __init__(self, path: str, **options: Any) -> None:
        self.listener = UnixListener(SelectReactor())
        self.listener.listenUNIX(path, Factory(), **{"wantPID": True, **options})

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.abandon()


def dead_socket(path: Path) -> None:
    """Leave a socket behind, as a killed process does."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def answers(path: Path) -> bool:
    """Whether a process listens there."""
    with socket.socket(socket.AF_UNIX) as test:
        test.setblocking(False)
        return test.connect_ex(str(path)) in (0, errno.EAGAIN)


LOCKS = {
    "none": None,
    "of this very process": os.getpid(),
    "of another process that lives": 1,
    "of a process that has ended": 2**22 + 1,
    "without a number": "garbage",
}


@pytest.mark.parametrize("owner", LOCKS)
@pytest.mark.parametrize("has_socket", [True, False])
def test_stale_socket_and_lock_are_removed(path: Path, lock: Path, owner: str, has_socket: bool) -> None:
    if LOCKS[owner] is not None:
        lock.symlink_to(str(LOCKS[owner]))
    if has_socket:
        dead_socket(path)
    with Listening(str(path), mode=0o600):
        assert answers(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.readlink(lock) == str(os.getpid())  # for programs that look at Twisted's lock file
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("owner", LOCKS)
def test_live_socket_is_not_removed(path: Path, lock: Path, owner: str) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(0)
        if LOCKS[owner] is not None:
            lock.symlink_to(str(LOCKS[owner]))
        with pytest.raises(CannotListenError, match="another process listens there"):
            Listening(str(path))
        assert answers(path)
        # The queue of connections is full now.
        with pytest.raises(CannotListenError, match="another process listens there"):
            Listening(str(path))
        assert path.is_socket()
        assert os.path.lexists(lock) is (LOCKS[owner] is not None)


def test_live_datagram_socket_is_not_removed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(str(path))
        with pytest.raises(CannotListenError, match="wrong type"):
            Listening(str(path))
        assert path.is_socket()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_path_that_is_not_a_socket_is_not_removed(path: Path, lock: Path, make: Any) -> None:
    make(path)
    with pytest.raises(OSError, match="is not a socket"):
        Listening(str(path))
    assert os.path.lexists(path)
    assert not os.path.lexists(lock)


def test_lock_path_that_is_not_a_lock_is_not_removed(path: Path, lock: Path) -> None:
    lock.write_text("dear diary")
    with pytest.raises(OSError, match="is not one of Twisted's lock files"):
        Listening(str(path))
    assert lock.read_text() == "dear diary"


def test_stale_socket_is_kept_with_lockfile_0(path: Path, lock: Path) -> None:
    with Listening(str(path), wantPID=False):
        assert not os.path.lexists(lock)
    dead_socket(path)
    with pytest.raises(CannotListenError, match="in use"):
        Listening(str(path), wantPID=False)
    assert path.is_socket()


def test_abstract_socket_is_listened_on_without_a_lock_file() -> None:
    name = f"\0chatrelay-{os.getpid()}"
    with Listening(name):
        assert answers(Path(name))
        with pytest.raises(CannotListenError, match="in use"):
            Listening(name)


def test_one_of_many_relays_that_start_at_once_listens(path: Path, lock: Path) -> None:
    for _ in range(20):
        dead_socket(path)
        lock.symlink_to("1")
        listeners = [UnixListener(SelectReactor()) for _ in range(8)]
        with ThreadPoolExecutor(len(listeners)) as threads:
            ends = [threads.submit(one.listenUNIX, str(path), Factory(), wantPID=True) for one in listeners]
            refused = [end for end in ends if isinstance(end.exception(), CannotListenError)]
        assert len(refused) == len(ends) - 1
        assert answers(path)
        for listener in listeners:
            listener.abandon()


def test_stale_socket_is_kept_while_another_relay_begins_to_listen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_sockets, "MAX_LOCK_WAIT_SECONDS", 0.1)
    dead_socket(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(CannotListenError, match="in use"):
            Listening(str(path))
        assert path.is_socket()
    finally:
        os.close(folder)


def test_is_unix_is_true_for_unix_endpoints_only() -> None:
    assert [is_unix(d) for d in ("unix:a", "haproxy:unix:a", "tcp:1", "ssl:unix", "systemd:domain=UNIX:index=0")] == [
        *(True, True, False, False, False)
    ]
