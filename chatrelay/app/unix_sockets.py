"""Listen on UNIX sockets, even if a killed process has left its socket behind.

Twisted makes and removes the sockets and their lock files. It considers a lock file live if any process now has the
number in it, and in a container the relay itself often has that number. This module asks the kernel instead, which
refuses connections to a socket on which no process listens. This module must not know what is served on a socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import connectionDone

from chatrelay.app.endpoints import PROXY_PREFIX

MAX_LOCK_WAIT_SECONDS = 5.0
"""The longest wait for other relays that begin to listen in the same folder."""


def is_unix(description: str) -> bool:
    """Return whether an endpoint is a UNIX socket.

    :param description: a Twisted endpoint string.
    """
    return description.removeprefix(PROXY_PREFIX).startswith("unix:")


class UnixListener:
    """The part of a reactor that a ``unix:`` endpoint needs.

    :param reactor: the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ports: list[Any] = []

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        """Listen. Unless the endpoint has ``lockfile=0``, first remove what a killed process has left.

        :raises CannotListenError: if another process listens there.
        :raises OSError: if the path is not a socket, or may not be removed.
        """
        if address.startswith("\0"):  # an abstract socket ends with its process, and needs no lock file
            port = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=False)
        elif wantPID:
            with _folder_locked(os.path.dirname(os.path.abspath(address))) as is_locked:
                if is_locked:
                    remove_stale(address)
                port = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=True)
        else:
            port = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=False)
        self._ports.append(port)
        return port  # type: ignore[no-any-return]

    def abandon(self) -> None:
        """Close and remove the sockets of a relay that could not start. The reactor need not run."""
        ports, self._ports = self._ports, []
        for port in ports:
            if hasattr(port, "socket"):
                port.stopReading()
                port.connectionLost(connectionDone)


def remove_stale(path: str) -> None:
    """Remove a socket on which no process listens, and Twisted's lock file of a socket that does not exist.

    :param path: the path of the socket.
    :raises CannotListenError: if a process listens there.
    :raises OSError: if a path is not a socket or a lock file, or may not be removed.
    """
    lock = path + ".lock"
    kind = _kind(path)
    lock_kind = _kind(lock)
    if kind not in (None, stat.S_IFSOCK):
        raise FileExistsError(errno.EEXIST, "It is not a socket, and is not removed", path)
    if lock_kind not in (None, stat.S_IFLNK):
        raise FileExistsError(errno.EEXIST, "It is not one of Twisted's lock files, and is not removed", lock)
    if kind is not None:
        why = _connect_error(path)
        if why not in (errno.ECONNREFUSED, errno.ENOENT):
            raise CannotListenError(None, path, "another process listens there" if not why else os.strerror(why))
        with suppress(FileNotFoundError):
            os.unlink(path)
    with suppress(FileNotFoundError):
        os.unlink(lock)


def _kind(path: str) -> int | None:
    with suppress(FileNotFoundError):
        return stat.S_IFMT(os.lstat(path).st_mode)
    return None


def _connect_error(path: str) -> int:
    """Connect to a socket. Return the error number, or 0 if a process listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as test:
        test.setblocking(False)
        error = test.connect_ex(path)
    return 0 if error == errno.EAGAIN else error  # the queue of its listener is full


@contextmanager
def _folder_locked(folder: str) -> Iterator[bool]:
    """Keep other relays from beginning to listen in a folder.

    Without this lock, a relay that has found a stale socket could remove the live socket that another relay has made
    in the meantime.

    :returns: whether the lock could be taken.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # Twisted reports what is wrong with it
        yield False
        return
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    until = time.monotonic() + MAX_LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        except OSError:  # a file system without such locks
            return False
