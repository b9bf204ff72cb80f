"""One connection to a PostgreSQL server, on which each statement has a deadline of its own.

A process that is stopped (SIGSTOP) still has its kernel answer for it, so neither keepalives nor ``tcp_user_timeout``
notice it. So this module waits for the socket itself, and gives the connection up at the deadline. It calls libpq
directly through `psycopg.pq`, which also costs less than psycopg's cursors. It must not know any table.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

import attrs
import psycopg
from psycopg import pq

from chatrelay.messagelog.postgres.address import Address
from chatrelay.messagelog.postgres.arrays import Binary

CONNECT_SECONDS = 5
"""The time that connecting may take, for each host and address."""

ANSWER_SECONDS = 10.0
"""The time that a statement may take until its whole answer has come. The server itself gives up earlier."""

Parameter = str | int | None | Binary
Row = tuple[bytes | None, ...]


@attrs.define
class ServerError(Exception):
    """The server refused a statement and rolled it back. The connection can be used further.

    :ivar sqlstate: the code of the error (PostgreSQL's documentation, appendix A).
    :ivar text: the server's message.
    :ivar detail: the server's detail; empty if there is none.
    """

    sqlstate: str
    text: str
    detail: str = ""


@attrs.define
class NotConnected(Exception):
    """The connection could not be made. The text is libpq's."""

    text: str


@attrs.define
class ConnectionLost(Exception):
    """The connection ended, so it is not known whether the server carried out the last statement.

    :ivar text: why, for the operator.
    :ivar sqlstate: the code of the server's last message; empty if there was none.
    """

    text: str
    sqlstate: str = ""


class Connection:
    """A connection that commits each statement by itself. One thread may use it at a time; any may call `abort`.

    :param address: where to.
    :raises NotConnected: if no connection could be made.
    """

    def __init__(self, address: Address) -> None:
        try:
            self._connection = psycopg.connect(address.conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS)
        except psycopg.Error as error:
            raise NotConnected(address.hide(_one_line(str(error)))) from None
        self._address = address
        self._libpq = self._connection.pgconn
        self._libpq.nonblocking = 1
        self._poll = select.poll()
        self._names: dict[str, bytes] = {}  # of the prepared statements, by their text

    @property
    def server_version(self) -> int:
        """The version of the server: 150018 for 15.18."""
        return self._libpq.server_version

    def query(
        self,
        statement: str,
        parameters: Sequence[Parameter] = (),
        *,
        binary: bool = False,
        seconds: float = ANSWER_SECONDS,
    ) -> list[Row]:
        """Run one statement; return its rows. The statement is prepared once for each connection.

        :param binary: whether the columns are returned in PostgreSQL's binary format, and not as text.
        :param seconds: the time until the answer must have come.
        :raises ServerError: if the server refused it.
        :raises ConnectionLost: if the connection ended. It is closed then.
        """
        deadline = time.monotonic() + seconds
        with _Closing(self):
            name = self._prepared(statement, deadline)
            values: list[bytes | None] = []
            for value in parameters:
                if value is None or isinstance(value, bytes):
                    values.append(value)
                else:
                    values.append(str(value).encode())
            formats = [pq.Format.BINARY if isinstance(each, Binary) else pq.Format.TEXT for each in parameters]
            form = pq.Format.BINARY if binary else pq.Format.TEXT
            self._libpq.send_query_prepared(name, values, formats, form)
            result = self._result(deadline)
            columns = range(result.nfields)
            return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]

    def prepare(self, statement: str) -> None:
        """Prepare a statement before its first use.

        :raises ServerError: if the server refused it.
        :raises ConnectionLost: if the connection ended. It is closed then.
        """
        with _Closing(self):
            self._prepared(statement, time.monotonic() + ANSWER_SECONDS)

    def _prepared(self, statement: str, deadline: float) -> bytes:
        """Return the name of a prepared statement."""
        name = self._names.get(statement)
        if name is None:
            name = f"chatrelay_{len(self._names)}".encode()
            self._libpq.send_prepare(name, statement.encode())
            self._result(deadline)
            self._names[statement] = name
        return name

    def run(self, script: str, seconds: float = ANSWER_SECONDS) -> None:
        """Run statements that have no parameters, in one transaction unless they begin their own.

        :raises ServerError: if the server refused one of them.
        :raises ConnectionLost: if the connection ended. It is closed then.
        """
        with _Closing(self):
            self._libpq.send_query(script.encode())
            self._result(time.monotonic() + seconds)

    def roll_back(self) -> None:
        """Roll back a transaction that failed, if the connection is still there. This never raises."""
        with suppress(ServerError, ConnectionLost):
            if self._libpq.transaction_status != pq.TransactionStatus.IDLE:
                self.run("ROLLBACK")

    def check(self) -> None:
        """Notice that the server has ended the connection, without asking the server anything.

        :raises ConnectionLost: if it has.
        """
        with _Closing(self):
            if self._wait(select.POLLIN, time.monotonic()):
                self._libpq.consume_input()
                self._libpq.is_busy()  # reads the server's farewell, if there is one
            if self._libpq.status == pq.ConnStatus.BAD:
                raise self._lost()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def abort(self) -> None:
        """Make a statement that another thread waits for fail with `ConnectionLost`."""
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self._libpq.socket)) as same:
            same.shutdown(socket.SHUT_RDWR)

    # Waiting --------------------------------------------------------------------------

    def _wait(self, events: int, deadline: float) -> int:
        """Wait for the socket until a deadline; return the events that came."""
        self._poll.register(self._libpq.socket, events)
        ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        return ready[0][1] if ready else 0

    def _wait_or_fail(self, events: int, deadline: float) -> int:
        ready = self._wait(events, deadline)
        if not ready:
            raise ConnectionLost("the server did not answer in time: see whether it is overloaded or stopped")
        return ready

    def _result(self, deadline: float) -> pq.abc.PGresult:
        """Send what waits to be sent, and return the last result of the answer."""
        libpq = self._libpq
        # The server may send before it has read everything, so both directions are served.
        while libpq.flush():
            if self._wait_or_fail(select.POLLIN | select.POLLOUT, deadline) & ~select.POLLOUT:
                libpq.consume_input()
        last = failed = None
        while True:
            while libpq.is_busy():
                self._wait_or_fail(select.POLLIN, deadline)
                libpq.consume_input()
            result = libpq.get_result()
            if result is None:
                break
            last = result
            if failed is None and result.status == pq.ExecStatus.FATAL_ERROR:
                failed = result
        if libpq.status == pq.ConnStatus.BAD or last is None:
            raise self._lost(failed)
        if failed is not None:
            raise ServerError(
                self._field(failed, pq.DiagnosticField.SQLSTATE),
                self._field(failed, pq.DiagnosticField.MESSAGE_PRIMARY),
                self._field(failed, pq.DiagnosticField.MESSAGE_DETAIL),
            )
        return last

    def _lost(self, result: pq.abc.PGresult | None = None) -> ConnectionLost:
        if result is not None and (text := self._field(result, pq.DiagnosticField.MESSAGE_PRIMARY)):
            return ConnectionLost(text, self._field(result, pq.DiagnosticField.SQLSTATE))
        text = _one_line(self._libpq.error_message.decode(errors="replace"))
        return ConnectionLost(self._address.hide(text) or "the server closed the connection")

    def _field(self, result: pq.abc.PGresult, field: pq.DiagnosticField) -> str:
        return self._address.hide((result.error_field(field) or b"").decode(errors="replace"))


class _Closing:
    """Close a connection that is lost in the block, and raise `ConnectionLost` for each way in which that shows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        if self._connection._connection.closed:
            raise ConnectionLost("the connection is closed")

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, ConnectionLost):
            self._connection.close()
        elif isinstance(error, psycopg.Error):  # from a call of libpq's
            lost = self._connection._lost()
            self._connection.close()
            raise lost from None


def _one_line(text: str) -> str:
    """Return a text of libpq's without its line breaks, and without its hints, which are indented."""
    return " ".join(line.strip() for line in text.splitlines() if not line.startswith("\t"))
