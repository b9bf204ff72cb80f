"""The certificate of an ``ssl:`` endpoint, read anew while the relay runs.

Twisted reads the files that such an endpoint names once, and gives the
reactor what it made of them. `EndpointCertificate` stands between the two: it
has Twisted read them again when asked to, and from then on shows what they
say to who connects. Connections there are go on as they began.
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

log = Logger("chatrelay.app")

UNUSABLE = (ValueError, TypeError, LookupError, OSError, CertificateError, TLSError, VerifyError)
"""What Twisted's parsers of endpoints raise, each in its own way; OpenSSL's errors are for keys that are none."""

MAX_NAMES = 5
"""How many of a certificate's names are told."""


def has_certificate(description: str) -> bool:
    """Whether an endpoint is one whose certificate can be read anew.

    :param description: a Twisted endpoint string.
    """
    return description.removeprefix("haproxy:").startswith("ssl:")


@implementer(IOpenSSLServerConnectionCreator)
class EndpointCertificate:
    """What an ``ssl:`` endpoint shows to those who connect.

    :param description: a Twisted endpoint string.
    :raises: one of `UNUSABLE`.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._options, self._certificate = _read(description)

    def listening_on(self, reactor: Any) -> Any:
        """The reactor as the endpoint is to see it: it listens with what was read last."""

        def listen(port: int, factory: IProtocolFactory, contextFactory: object, *others: Any, **more: Any) -> Any:
            return reactor.listenSSL(port, factory, self, *others, **more)

        return _ListensWithTLS(listen)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """Twisted: somebody connects."""
        return Connection(self._options.getContext())

    def read_anew(self) -> bool:
        """Read the files, and show what is in them from now on; where they can't be used, go on as before.

        :returns: whether they can.
        """
        try:
            self._options, self._certificate = _read(self._description)
        except UNUSABLE as error:
            log.error(
                "the certificate of {endpoint} was to be read anew and can't be used; the one before stays: {why}",
                endpoint=self._description,
                why=str(error) or type(error).__name__,
            )
            return False
        log.info(
            "the certificate of {endpoint} was read anew: for {names}, until {until}",
            endpoint=self._description,
            names=", ".join(self.names[:MAX_NAMES]) + (" …" if len(self.names) > MAX_NAMES else ""),
            until=self.until,
        )
        return True

    @property
    def names(self) -> list[str]:
        """The hosts and addresses for which it is."""
        extensions = self._certificate.extensions
        try:
            names = extensions.get_extension_for_class(SubjectAlternativeName).value
        except ExtensionNotFound:
            return ["no name"]
        return [*names.get_values_for_type(DNSName), *map(str, names.get_values_for_type(IPAddress))]

    @property
    def until(self) -> str:
        """The last moment at which it is good: ISO 8601, UTC."""
        return self._certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")


class _ListensWithTLS:
    """As much of a reactor as an ``ssl:`` endpoint needs."""

    def __init__(self, listen: Callable[..., Any]) -> None:
        self.listenSSL = listen


def _read(description: str) -> tuple[CertificateOptions, Certificate]:
    """What Twisted makes of the files that an endpoint names, and the certificate among them.

    :raises: one of `UNUSABLE`.
    """
    read: list[CertificateOptions] = []

    def listen(port: int, factory: IProtocolFactory, contextFactory: CertificateOptions, **_: Any) -> None:
        read.append(contextFactory)

    serverFromString(_ListensWithTLS(listen), description).listen(Factory())
    (options,) = read
    options.getContext()  # which finds out what no parser does: a chain that OpenSSL does not take, for one
    assert options.certificate is not None  # an ssl: endpoint always has one
    return options, options.certificate.to_cryptography()
