"""The certificate of an ``ssl:`` endpoint, which can be reloaded while the relay runs.

Twisted reads the files of such an endpoint once. `EndpointCertificate` has Twisted read them again, and shows the new
certificate to clients that connect from then on. Open connections are not affected. This module must not know when
certificates are reloaded: `chatrelay.app.process` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography.x509 import Certificate, DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName
from OpenSSL.crypto import Error as CertificateError
from OpenSSL.SSL import Connection
from OpenSSL.SSL import Error as TLSError
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from chatrelay.app.endpoints import PROXY_PREFIX

log = Logger("chatrelay.app")

UNUSABLE = (ValueError, TypeError, LookupError, OSError, CertificateError, TLSError, VerifyError)
"""What Twisted's endpoint parsers raise. OpenSSL's errors are for files that hold no key or certificate."""

MAX_NAMES = 5
"""The most names of a certificate that are logged."""


def has_certificate(description: str) -> bool:
    """Return whether an endpoint has a certificate that can be reloaded.

    :param description: a Twisted endpoint string.
    """
    return description.removeprefix(PROXY_PREFIX).startswith("ssl:")


@implementer(IOpenSSLServerConnectionCreator)
class EndpointCertificate:
    """The certificate of an ``ssl:`` endpoint.

    :param description: a Twisted endpoint string.
    :raises: one of `UNUSABLE`.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._options, self._certificate = _read(description)

    def listening_on(self, reactor: Any) -> Any:
        """Return a reactor for the endpoint that listens with the certificate that was read last."""

        def listen(port: int, factory: IProtocolFactory, contextFactory: object, *others: Any, **more: Any) -> Any:
            return reactor.listenSSL(port, factory, self, *others, **more)

        return _ListensWithTLS(listen)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """Make the TLS side of a new connection. Twisted calls this."""
        return Connection(self._options.getContext())

    def reload(self) -> bool:
        """Read the files again, for connections from now on. If they can't be used, keep the certificate.

        :returns: whether they could be used.
        """
        try:
            self._options, self._certificate = _read(self._description)
        except UNUSABLE as error:
            log.error(
                "the certificate of {endpoint} could not be reloaded, and the previous one is kept: {why}",
                endpoint=self._description,
                why=str(error) or type(error).__name__,
            )
            return False
        log.info(
            "the certificate of {endpoint} was reloaded: for {names}, until {until}",
            endpoint=self._description,
            names=", ".join(self.names[:MAX_NAMES]) + (" …" if len(self.names) > MAX_NAMES else ""),
            until=self.until,
        )
        return True

    @property
    def names(self) -> list[str]:
        """The host names and addresses that it is for."""
        extensions = self._certificate.extensions
        try:
            names = extensions.get_extension_for_class(SubjectAlternativeName).value
        except ExtensionNotFound:
            return ["no name"]
        return [*names.get_values_for_type(DNSName), *map(str, names.get_values_for_type(IPAddress))]

    @property
    def until(self) -> str:
        """The last moment at which it is valid: ISO 8601, UTC."""
        return self._certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")


class _ListensWithTLS:
    """The part of a reactor that an ``ssl:`` endpoint needs."""

    def __init__(self, listen: Callable[..., Any]) -> None:
        self.listenSSL = listen


def _read(description: str) -> tuple[CertificateOptions, Certificate]:
    """Read the files that an endpoint names; return Twisted's options and the certificate.

    :raises: one of `UNUSABLE`.
    """
    read: list[CertificateOptions] = []

    def listen(port: int, factory: IProtocolFactory, contextFactory: CertificateOptions, **_: Any) -> None:
        read.append(contextFactory)

    serverFromString(_ListensWithTLS(listen), description).listen(Factory())
    (options,) = read
    options.getContext()  # finds what the parser does not, such as a chain that OpenSSL refuses
    assert options.certificate is not None  # an ssl: endpoint always has one
    return options, options.certificate.to_cryptography()
