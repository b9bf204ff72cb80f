"""Listens on UNIX sockets where one is left from a process that was killed.

Twisted makes and removes the sockets and their lock files. It takes such a lock file for a live one where its number is
that of any process now, and in a container that is mostly the relay itself. Here the kernel tells: a socket that nobody
listens on refuses to be connected to.
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

OTHERS_START = 5.0
"""Seconds to wait for others that begin to listen in the same folder."""


def is_unix(description: str) -> bool:
    """Whether an endpoint is a UNIX socket.

    :param description: a Twisted endpoint string.
    """
    return description.removeprefix("haproxy:").startswith("unix:")


class UnixListener:
    """As much of a reactor as a ``unix:`` endpoint needs.

    :param reactor: the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ports: list[Any] = []

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        """Listen; remove first what a process that was killed has left, unless the endpoint has ``lockfile=0``.

        :raises CannotListenError: where another process listens there.
        :raises OSError: where there is something else than a socket, or it may not be removed.
        """
        if address.startswith("\0"):  # an abstract one ends with its process, and a lock file can't have its name
            port = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=False)
        elif wantPID:
            with _only_one(os.path.dirname(os.path.abspath(address))) as is_alone:
                if is_alone:
                    remove_stale(address)
                port = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=True)
        else:
            port = self._reactor.listenUNIX(address, factory, backlog=backlog, mode=mode, wantPID=False)
        self._ports.append(port)
        return port  # type: ignore[no-any-return]

    def abandon(self) -> None:
        """Close and remove the sockets of a relay that could not start, without a turn of the reactor."""
        ports, self._ports = self._ports, []
        for port in ports:
            if hasattr(port, "socket"):
                port.stopReading()
                port.connectionLost(connectionDone)


def remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on, and Twisted's lock file of a socket that is not there.

    :param path: of the socket.
    :raises CannotListenError: where a process listens there.
    :raises OSError: where there is something else than a socket or a lock file, or it may not be removed.
    """
    lock = path + ".lock"
    kind = _kind(path)
    lock_kind = _kind(lock)
    if kind not in (None, stat.S_IFSOCK):
        raise FileExistsError(errno.EEXIST, "It is not a socket, and is left as it is", path)
    if lock_kind not in (None, stat.S_IFLNK):
        raise FileExistsError(errno.EEXIST, "It is not a lock file of Twisted's, and is left as it is", lock)
    if kind is not None:
        why = _test(path)
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


def _test(path: str) -> int:
    """Connect to a socket; return the error, or 0 where somebody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as test:
        test.setblocking(False)
        error = test.connect_ex(path)
    return 0 if error == errno.EAGAIN else error  # so many wait to be accepted that there is no place


@contextmanager
def _only_one(folder: str) -> Iterator[bool]:
    """Keep other relays from beginning to listen in a folder.

    Else one that has found a stale socket could remove the live one that another has put in its place since.

    :returns: whether that can be done.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # Twisted says what is wrong with it
        yield False
        return
    try:
        yield _locked(descriptor)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    until = time.monotonic() + OTHERS_START
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
