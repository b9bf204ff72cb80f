"""The small files that options name: secrets, tokens, keys, and certificates of authorities.

Each is read once, when the relay is built. This module must not know how a secret is used.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from OpenSSL.crypto import Error as CertificateError
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.iweb import IPolicyForHTTPS

from chatrelay.auth.resume import KEY_BYTES
from chatrelay.config.checks import MIN_OPS_TOKEN_CHARACTERS, ConfigError
from chatrelay.permissions import cannot_be_read, why_not_found, why_not_writable


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


def read_resume_key(path: str) -> bytes:
    """Read the key of resume tokens; make the file if there is none.

    :raises ConfigError: if the file can't be made or read, others may read it, or it holds something else.
    """
    option = "resume-key-file"
    try:
        with suppress(FileExistsError):
            if not os.path.lexists(path):
                _make_key(path)
    except OSError as error:
        why = why_not_found(path) or why_not_writable(os.path.dirname(os.path.abspath(path))) or error.strerror
        raise ConfigError(option, f"{path} can't be made: {why}") from None
    try:
        # Without O_NONBLOCK, a named pipe would block the relay.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(option, f"{path} is not a regular file")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    option,
                    f"{path} may be used by other users (mode {stat.S_IMODE(mode):o}), who could log in as anybody: "
                    f"chmod 600 {path}",
                )
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(option, cannot_be_read(path, error)) from None
    if len(key) != KEY_BYTES:
        raise ConfigError(
            option, f"{path} must have exactly {KEY_BYTES} random bytes: remove it, and the relay makes another"
        )
    return key


def _make_key(path: str) -> None:
    """Make a file with a random key.

    :raises FileExistsError: if another process has made it meanwhile.
    """
    # The file gets its name when it is whole, so a relay that starts at the same time never reads a part of the key.
    unfinished = f"{path}.{secrets.token_hex(8)}"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(descriptor)
        os.link(unfinished, path)
    finally:
        os.unlink(unfinished)


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
