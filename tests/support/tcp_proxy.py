"""A TCP proxy before a database server, which loses answers or holds requests back when a test says so."""

from __future__ import annotations

import enum
import socket
import threading
from contextlib import suppress


class Fault(enum.Enum):
    """What happens to the next bytes."""

    NONE = enum.auto()
    LOSE_REQUEST = enum.auto()
    """The client's next bytes are dropped, and both connections closed."""
    LOSE_ANSWER = enum.auto()
    """The server's next bytes are dropped, and both connections closed."""
    HOLD_REQUEST = enum.auto()
    """The client's next bytes are kept until `Proxy.release`, and the client's connection is closed at once."""


class Proxy:
    """Accepts connections on a port of 127.0.0.1, and connects each to another port there.

    :param target: the port of the server.
    :ivar fault: what happens to the next bytes. It happens once.
    :ivar happened: set when it has happened.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.fault = Fault.NONE
        self.happened = threading.Event()
        self._held: list[tuple[bytes, socket.socket]] = []
        self._late: set[socket.socket] = set()  # servers that got a request late: no fault happens to their answers
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def set_fault(self, fault: Fault) -> None:
        """Let a fault happen to the next bytes."""
        with self._lock:
            self.happened.clear()
            self.fault = fault

    def release(self) -> None:
        """Send what was held back to the server, on the connections that the server still has."""
        with self._lock:
            held, self._held = self._held, []
        for data, server in held:
            server.sendall(data)

    def close(self) -> None:
        """Close everything."""
        with self._lock:
            for each in (self._listener, *self._sockets):
                _close(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets += [client, server]
            threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                fault = Fault.NONE if source in self._late else self._take(from_client)
                if fault is Fault.NONE:
                    target.sendall(data)
                    continue
                if fault is Fault.HOLD_REQUEST:
                    self._held.append((data, target))
                    self._late.add(target)
                    _close(source)
                    self.happened.set()
                    return
                _close(source)
                _close(target)
                self.happened.set()
                return
        # What the server has not got yet must not end its connection.
        if not any(server is target for _, server in self._held):
            _close(target)
        if not from_client:
            _close(source)

    def _take(self, from_client: bool) -> Fault:
        with self._lock:
            fault = self.fault
            if fault is Fault.NONE or (fault is Fault.LOSE_ANSWER) is from_client:
                return Fault.NONE
            self.fault = Fault.NONE
            return fault


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
