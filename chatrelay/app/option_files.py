"""The small files that options name: secrets, the token of the ops endpoint, and certificates of authorities.

Each is read once, when the relay is built. This module must not know how a secret is used.
"""

from __future__ import annotations

from pathlib import Path

from OpenSSL.crypto import Error as CertificateError
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.iweb import IPolicyForHTTPS

from chatrelay.config.checks import MIN_OPS_TOKEN_CHARACTERS, ConfigError
from chatrelay.permissions import cannot_be_read


def read_secret(option: str, path: str) -> str:
    """Read the secret that is the only line of a file.

    :raises ConfigError: if the file can't be read, or holds something else.
    """
    secret = _read(option, path).strip()
    if not secret:
        raise ConfigError(option, f"{path} is empty")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ConfigError(option, f"{path} must hold one line of printable ASCII characters without spaces")
    return secret


def read_token(path: str) -> str:
    """Read the token of the ops endpoint.

    :raises ConfigError: if the file can't be read, or the token could be guessed.
    """
    token = read_secret("ops-token-file", path)
    if len(token) < MIN_OPS_TOKEN_CHARACTERS:
        raise ConfigError(
            "ops-token-file",
            f"the token in {path} is shorter than {MIN_OPS_TOKEN_CHARACTERS} characters, so it can be guessed: make "
            "one with openssl rand -hex 32",
        )
    return token


def read_authorities(path: str) -> IPolicyForHTTPS:
    """Read the certificates of authorities in a PEM file; return a policy that trusts these and no others.

    :raises ConfigError: if the file can't be read, or holds none.
    """
    pem = _read("auth-ca-file", path)
    end = "-----END CERTIFICATE-----"
    blocks = [block + end for block in pem.split(end)[:-1]]
    try:
        authorities = [Certificate.loadPEM(block.encode("ascii")) for block in blocks]
    except CertificateError as error:
        raise ConfigError("auth-ca-file", f"{path} holds no certificates in PEM form: {error}") from error
    if not authorities:
        raise ConfigError("auth-ca-file", f"{path} holds no certificates in PEM form")
    return BrowserLikePolicyForHTTPS(trustRootFromCertificates(authorities))


def _read(option: str, path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except OSError as error:
        raise ConfigError(option, cannot_be_read(path, error)) from None
    except UnicodeDecodeError:
        raise ConfigError(option, f"{path} is not ASCII text") from None
