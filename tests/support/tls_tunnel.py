"""TLS for clients that would use it from two threads.

`websockets` reads in one thread while another writes. On a TLS socket of Python before 3.14 that is a data race in
OpenSSL: once in some thousand connections, sent bytes are lost and the answer never comes. Here only one thread uses
TLS, and the client has a plain socket to it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Self


class TLSTunnel:
    """A TLS connection as a plain socket.

    :param outside: a connected TCP socket, which is the tunnel's from here on.
    :param context: the client's settings.
    :param server_hostname: the name that the certificate must have.
    :ivar inside: the plain socket: bytes written here are sent as TLS, and received bytes are read here.
    :raises ssl.SSLError: what the TLS handshake ends with.
    """

    def __init__(self, outside: socket.socket, context: ssl.SSLContext, server_hostname: str) -> None:
        self.inside, self._near = socket.socketpair()
        self._established: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(outside, context, server_hostname), daemon=True)
        self._thread.start()
        try:
            self._established.result()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inside.close()
        self._thread.join()

    def _run(self, outside: socket.socket, context: ssl.SSLContext, server_hostname: str) -> None:
        asyncio.run(self._carry(outside, context, server_hostname))

    async def _carry(self, outside: socket.socket, context: ssl.SSLContext, server_hostname: str) -> None:
        plain_reader, plain_writer = await asyncio.open_connection(sock=self._near)
        try:
            tls_reader, tls_writer = await asyncio.open_connection(
                sock=outside, ssl=context, server_hostname=server_hostname, ssl_shutdown_timeout=2
            )
        except BaseException as error:
            plain_writer.transport.abort()
            self._established.set_exception(error)
            return
        self._established.set_result(None)
        # When one side has ended, what it sent has been passed on, and the other is closed.
        await asyncio.wait(
            [
                asyncio.create_task(_pass_on(plain_reader, tls_writer)),
                asyncio.create_task(_pass_on(tls_reader, plain_writer)),
            ]
        )


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:  # TLS errors are such, too
        writer.transport.abort()
    else:
        writer.close()
