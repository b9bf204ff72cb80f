"""The endpoints that a relay listens on: their services, their certificates and their UNIX sockets.

`chatrelay.app.endpoints` checks the description of an endpoint. This module must not know what is served there.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import IService
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from chatrelay.app.certificates import UNUSABLE, EndpointCertificate, has_certificate
from chatrelay.app.endpoints import BadEndpointError, NamedEndpoint, check, refusal_text
from chatrelay.app.unix_sockets import UnixListener, is_unix
from chatrelay.config.checks import ConfigError

log = Logger("chatrelay.app")

BACKLOG = 4096
"""The most connections that may wait in the kernel to be accepted. Linux has the same limit (net.core.somaxconn)."""


def with_backlog(description: str) -> str:
    """Return the description of an endpoint with room for `BACKLOG` waiting connections, unless it says how many.

    Twisted's default of 50 is used up in a moment by an attack, or when all clients reconnect at once. Then a new
    client waits for a second or more.

    :param description: a Twisted endpoint string.
    """
    kind, *arguments = re.split(r"(?<!\\):", description.removeprefix("haproxy:"))
    positional = [argument for argument in arguments if "=" not in argument]
    # The backlog may also be given by position, as the third argument.
    if kind not in ("tcp", "tcp6", "ssl", "unix") or len(positional) > 2 or ":backlog=" in description:
        return description
    return f"{description}:backlog={BACKLOG}"


class Listeners:
    """Makes the services that listen, and keeps what they need while they run.

    :param reactor: the reactor.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._certificates: list[EndpointCertificate] = []
        self._unix_listeners: list[UnixListener] = []

    def add(self, option: str, description: str, factory: IProtocolFactory) -> IService:
        """Make a service that listens.

        :param option: the option that the endpoint was given with.
        :param description: a Twisted endpoint string.
        :param factory: makes a protocol for each connection.
        :raises ConfigError: if the endpoint can't be used.
        """
        reactor = self._reactor
        try:
            check(description)
            if has_certificate(description):
                certificate = EndpointCertificate(description)
                self._certificates.append(certificate)
                reactor = certificate.listening_on(reactor)
            elif is_unix(description):
                reactor = UnixListener(reactor)
                self._unix_listeners.append(reactor)
            service: StreamServerEndpointService = strports.service(with_backlog(description), factory, reactor)
        except BadEndpointError as error:
            raise ConfigError(option, f"{description!r} cannot be used: {error}") from None
        # Show the parser's error with the endpoint string, because the error often does not quote it.
        except UNUSABLE as error:
            raise ConfigError(option, f"{description!r} cannot be used: {refusal_text(description, error)}") from error
        service.endpoint = NamedEndpoint(service.endpoint, option, description)
        return service

    def abandon(self) -> None:
        """Remove the UNIX sockets of a relay that could not start, because its reactor will not run."""
        for listener in self._unix_listeners:
            listener.abandon()

    def reload_certificates(self) -> None:
        """Read the certificates of all ``ssl:`` endpoints again, for connections from now on.

        If a certificate can't be used, the previous one is kept and the log names the endpoint.
        """
        if not self._certificates:
            log.info("there is no certificate to reload: no endpoint is an ssl: endpoint")
        for certificate in self._certificates:
            certificate.reload()
