"""Check Twisted endpoint strings, and word the errors about them so that they name the endpoint and a remedy.

Twisted parses and opens the endpoints. Each of its parsers fails in its own way, and most of their errors name neither
the endpoint nor a remedy. This module must not know what is served at an endpoint.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import NoReturn

from OpenSSL import crypto
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from chatrelay.permissions import cannot_be_read, why_not_found, why_not_usable, why_not_writable

PROXY_PREFIX = "haproxy:"
"""The prefix of an endpoint whose clients connect through a proxy that speaks the PROXY protocol."""

MAX_PORT = 65535
MAX_UNIX_PATH_BYTES = 107
"""The longest path of a UNIX socket on Linux (unix(7))."""

_ARGUMENTS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
        *("extraCertChain", "dhParameters"),
    ),
    "tls": ("path", "port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
"""The kinds of endpoints that are checked here, each with its arguments in positional order."""

_EXAMPLES = {
    "tcp": "tcp:8080:interface=127.0.0.1",
    "tcp6": r"tcp6:8080:interface=\:\:1",
    "ssl": "ssl:443:privateKey=/etc/ssl/private/key.pem:certKey=/etc/ssl/certs/cert.pem",
    "tls": "tls:/etc/chatrelay/certificates:443",
    "unix": "unix:/run/chatrelay/chatrelay.sock",
    "systemd": "systemd:domain=INET:index=0",
}

_SYNONYMS = {"http": "tcp", "ws": "tcp", "tcp4": "tcp", "https": "ssl", "wss": "ssl", "fd": "systemd"}
"""Kinds that do not exist but may be tried, and the kind that is probably meant."""


class BadEndpointError(ValueError):
    """An endpoint that can't be used. The text gives the cause and the remedy."""


class CannotOpenError(CannotListenError):
    """An endpoint that could not be opened.

    :ivar option: the option that names it, without dashes.
    :ivar problem: the cause and the remedy.
    """

    def __init__(self, option: str, description: str, problem: str) -> None:
        super().__init__(None, description, problem)
        self.option = option
        self.problem = f"{description!r} cannot be opened: {problem}"

    def __str__(self) -> str:
        return f"{self.option}: {self.problem}"


def check(description: str) -> None:
    """Check an endpoint string and the files that it names.

    Kinds that come from Twisted plugins are not checked.

    :raises BadEndpointError: for an endpoint that is certain to fail.
    """
    inner = description.removeprefix(PROXY_PREFIX)
    prefix = PROXY_PREFIX if inner != description or description == "haproxy" else ""
    if inner in ("", "haproxy"):
        raise BadEndpointError(
            f"haproxy: needs an endpoint after it, such as {PROXY_PREFIX}{_EXAMPLES['tcp']}"
            if prefix
            else f"it is empty: give an endpoint such as {_EXAMPLES['tcp']}"
        )
    kind, positional, named = _split(inner)
    if kind not in _ARGUMENTS:
        return
    if "," in inner and re.search(rf",({'|'.join(_ARGUMENTS)}|haproxy):", inner):
        raise BadEndpointError("it is more than one endpoint: give the option once for each")
    arguments = _arguments(prefix, kind, positional, named)
    if kind in ("tcp", "tcp6", "ssl", "tls"):
        _check_port(prefix, kind, {"port": "443"} | arguments if kind == "tls" else arguments)
    if kind == "ssl":
        _check_certificate(prefix, arguments)
    elif kind == "tls":
        _check_certificates(prefix, arguments)
    elif kind == "unix":
        _check_unix(prefix, arguments)
    elif kind == "systemd":
        _check_systemd(prefix, arguments)


def refusal_text(description: str, error: Exception) -> str:
    """Return why Twisted refused an endpoint, and the remedy.

    :param error: the one that Twisted raised.
    """
    inner = description.removeprefix(PROXY_PREFIX)
    kind = inner.partition(":")[0]
    if str(error).startswith("Unknown endpoint type"):
        if (suggestion := _suggestion(inner, kind)) is not None:
            return f"did you mean {description.removesuffix(inner)}{suggestion}?"
        return f"{kind!r} is not a kind of endpoint: use one of {', '.join(_ARGUMENTS)}"
    if kind == "systemd" and isinstance(error, LookupError):
        return _missing_socket_text(os.environ)
    example = _EXAMPLES.get(kind, _EXAMPLES["tcp"])
    return f"{str(error) or type(error).__name__} (an example of an endpoint is {example})"


@implementer(IStreamServerEndpoint)
class NamedEndpoint:
    """An endpoint whose errors name it and the remedy.

    :param endpoint: Twisted's endpoint.
    :param option: the option that names it.
    :param description: its string, as given.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, option: str, description: str) -> None:
        self._endpoint = endpoint
        self._option = option
        self._description = description

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen.

        :returns: fails with `CannotOpenError` if Twisted or the system refuses.
        """
        listening: Deferred[IListeningPort] = self._endpoint.listen(protocolFactory)
        return listening.addErrback(self._failed)

    def _failed(self, failure: Failure) -> NoReturn:
        error = failure.value
        if isinstance(error, CannotListenError | OSError | OverflowError):
            cause = error.socketError if isinstance(error, CannotListenError) else error
            raise CannotOpenError(
                self._option, self._description, _open_error_text(self._description, cause)
            ) from error
        failure.raiseException()


# The string ---------------------------------------------------------------------


def _split(inner: str) -> tuple[str, list[str], list[tuple[str, str]]]:
    """Split an endpoint into its kind, its positional arguments and its named arguments."""
    kind, *arguments = re.split(r"(?<!\\):", inner)
    positional = [_unescaped(argument) for argument in arguments if "=" not in argument]
    named = [tuple(argument.split("=", 1)) for argument in arguments if "=" in argument]
    return kind, positional, [(name, _unescaped(value)) for name, value in named]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _suggestion(inner: str, kind: str) -> str | None:
    """Return the endpoint that a text was probably meant to be; None if there is no likely one."""
    if kind.isdecimal() and inner == kind:
        return f"tcp:{inner}:interface=127.0.0.1"
    if found := re.fullmatch(r"(\w+)://([^:/]*)(?::(\d+))?/?", inner):
        kind = _SYNONYMS.get(found[1], found[1])
        return None if kind not in ("tcp", "ssl") else _with_port(kind, found[2], found[3] or "8080")
    if kind.startswith(("/", ".")):
        return f"unix:{inner}"
    rest = inner[len(kind) :]
    if not re.fullmatch(r"[\w.-]*", kind):
        return None
    known = _SYNONYMS.get(kind.lower()) or next(
        iter(difflib.get_close_matches(kind.lower(), [*_ARGUMENTS, "haproxy"], n=1, cutoff=0.6)), None
    )
    if known in ("ssl", "systemd") and kind in _SYNONYMS:
        return _EXAMPLES[known]
    if known is not None:
        return known + rest
    if found := re.fullmatch(r"([\w.-]*):(\d+)", inner):
        return _with_port("tcp", found[1], found[2])
    return None


def _with_port(kind: str, host: str, port: str) -> str:
    """Return an endpoint on a port of a host."""
    if kind == "ssl":
        return _EXAMPLES["ssl"].replace("443", port)
    if re.fullmatch(r"|\*|any|(0\.){3}0", host):
        return f"{kind}:{port}"
    local = r"\:\:1" if kind == "tcp6" else "127.0.0.1"
    return f"{kind}:{port}:interface={local if host == 'localhost' else host}"


def _arguments(prefix: str, kind: str, positional: Sequence[str], named: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return an endpoint's arguments by name.

    :raises BadEndpointError: for an unknown name, a misplaced port, or too many arguments.
    """
    names = _ARGUMENTS[kind]
    for name, _ in named:
        if name not in names:
            meant = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {meant[0]}=?" if meant else f"use {', '.join(names)}"
            raise BadEndpointError(f"{name}= is not an argument of {kind} endpoints: {hint}")
    address = next((value for name, value in named if name == "interface"), None)
    if address is not None and re.fullmatch("[0-9a-fA-F]*", address) and _is_split_ipv6(positional, address):
        raise BadEndpointError(
            rf"write a backslash before each colon of an IPv6 address, as in {prefix}{kind}:8080:interface=\:\:1"
        )
    if kind in ("tcp", "tcp6", "ssl") and positional and not _is_port(positional[0]) and positional[0]:
        port = next((text for text in positional[1:] if _is_port(text)), None)
        if port is not None:
            raise BadEndpointError(f"the port must come first: {prefix}{_with_port(kind, positional[0], port)}")
    if len(positional) > len(names):
        raise BadEndpointError(f"it has too many parts: give an endpoint such as {prefix}{_EXAMPLES[kind]}")
    arguments = dict(zip(names, positional, strict=False))
    for name, value in named:
        if name in arguments:
            raise BadEndpointError(f"{name} is given twice, {arguments[name]!r} and {value!r}: give it once")
        arguments[name] = value
    return arguments


def _is_split_ipv6(positional: Sequence[str], address: str) -> bool:
    """Return whether an interface is only the start of an IPv6 address, because its colons were read as separators."""
    rest = positional[1:]
    return bool(rest) and all(re.fullmatch("[0-9a-fA-F]*", text) for text in rest) and (not address or "" in rest)


def _is_port(text: str) -> bool:
    return text.strip().isdecimal()


def _check_port(prefix: str, kind: str, arguments: dict[str, str]) -> None:
    port = arguments.get("port", "")
    example = f"{prefix}{_EXAMPLES[kind]}"
    if not port:
        raise BadEndpointError(f"the port is missing: give an endpoint such as {example}")
    try:
        number = int(port)
    except ValueError:
        raise BadEndpointError(f"the port {port!r} is not a number: give an endpoint such as {example}") from None
    if not 0 <= number <= MAX_PORT:
        raise BadEndpointError(f"{number} is not a port: use 1 to {MAX_PORT}, or 0 for any free port")
    backlog = arguments.get("backlog", "0")
    if not backlog.isdecimal():
        raise BadEndpointError(f"the backlog {backlog!r} is not a number: leave it out")


# Certificates -------------------------------------------------------------------


def _check_certificate(prefix: str, arguments: dict[str, str]) -> None:
    """Check the files of an ``ssl:`` endpoint. (Twisted uses server.pem if none is named.)"""
    if not arguments.get("privateKey"):
        if "privateKey" not in arguments and os.path.exists("server.pem"):
            return
        example = f"{prefix}ssl:{arguments['port']}{_EXAMPLES['ssl'].removeprefix('ssl:443')}"
        raise BadEndpointError(
            f"the private key is missing: give the files of the key and of the certificate, such as {example}"
        )
    key_file = arguments["privateKey"]
    certificate_file = arguments.get("certKey", key_file)
    key = _read_pem("privateKey", key_file)
    if b"ENCRYPTED" in key:
        raise BadEndpointError(
            f"the key in {key_file} is encrypted, and the relay cannot ask for the passphrase: decrypt it with openssl "
            "pkey -in FILE -out FILE"
        )
    try:
        crypto.load_privatekey(crypto.FILETYPE_PEM, key)
    except (crypto.Error, ValueError, TypeError):
        raise BadEndpointError(f"privateKey={key_file} holds no private key in PEM form") from None
    try:
        crypto.load_certificate(crypto.FILETYPE_PEM, _read_pem("certKey", certificate_file))
    except (crypto.Error, ValueError):
        if "certKey" in arguments:
            raise BadEndpointError(f"certKey={certificate_file} holds no certificate in PEM form") from None
        raise BadEndpointError(
            f"{key_file} holds no certificate in PEM form: name the certificate's file with :certKey="
        ) from None
    if "extraCertChain" in arguments:
        _read_pem("extraCertChain", arguments["extraCertChain"])


def _read_pem(argument: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise BadEndpointError(f"{argument}={cannot_be_read(path, error)}") from None


def _check_certificates(prefix: str, arguments: dict[str, str]) -> None:
    """Check the folder of a ``tls:`` endpoint. (Twisted also listens if there is no certificate in it.)"""
    path = arguments.get("path", "")
    if not path:
        raise BadEndpointError(f"the folder is missing: give an endpoint such as {prefix}{_EXAMPLES['tls']}")
    try:
        names = os.listdir(path)
    except OSError as error:
        why = cannot_be_read(path, error)
        raise BadEndpointError(f"{why}: give a folder of PEM files, such as {prefix}{_EXAMPLES['tls']}") from None
    if not any(name.endswith(".pem") for name in names):
        raise BadEndpointError(f"no file in the folder {path} has a name that ends with .pem: put a PEM file there")


# UNIX sockets -------------------------------------------------------------------


def _check_unix(prefix: str, arguments: dict[str, str]) -> None:
    path = arguments.get("address", "")
    if not path:
        raise BadEndpointError(f"the path is missing: give an endpoint such as {prefix}{_EXAMPLES['unix']}")
    if (length := len(os.fsencode(path))) > MAX_UNIX_PATH_BYTES:
        raise BadEndpointError(
            f"the path of the UNIX socket has {length} bytes, and the limit is {MAX_UNIX_PATH_BYTES}: choose a shorter "
            "one"
        )
    mode = arguments.get("mode", "666")
    if not re.fullmatch("[0-7]{1,4}", mode):
        raise BadEndpointError(f"the mode {mode!r} is not an octal number such as 660")


# systemd ------------------------------------------------------------------------


def _check_systemd(prefix: str, arguments: dict[str, str]) -> None:
    domain = arguments.get("domain", "")
    if domain not in ("INET", "INET6", "UNIX"):
        raise BadEndpointError(
            f"the domain {domain!r} is not INET, INET6 or UNIX: give an endpoint such as {prefix}{_EXAMPLES['systemd']}"
        )
    if ("index" in arguments) == ("name" in arguments):
        raise BadEndpointError("it needs either index= or name=, which choose one of systemd's sockets")
    if not arguments.get("index", "0").isdecimal():
        raise BadEndpointError(f"the index {arguments['index']!r} is not a number: use 0 for the first socket")


def _missing_socket_text(environment: Mapping[str, str]) -> str:
    is_meant = environment.get("LISTEN_PID") == str(os.getpid())
    count = environment.get("LISTEN_FDS", "0") if is_meant else "0"
    if count == "0":
        return (
            "systemd passed no socket: start the socket unit that belongs to the relay's service, or listen on an "
            f"endpoint such as {_EXAMPLES['tcp']}"
        )
    names = environment.get("LISTEN_FDNAMES", "")
    return f"systemd did not pass this socket: it passed {count}, named {names.replace(':', ', ') or 'unknown'}"


# Opening ------------------------------------------------------------------------


def _open_error_text(description: str, error: BaseException | str) -> str:
    """Return why an endpoint could not be opened, and the remedy."""
    kind, positional, named = _split(description.removeprefix(PROXY_PREFIX))
    try:
        arguments = _arguments("", kind, positional, named) if kind in _ARGUMENTS else {}
    except BadEndpointError:
        arguments = {}
    number = error.errno if isinstance(error, OSError) else None
    if kind == "unix":
        return _unix_error_text(arguments.get("address", ""), error)
    port, interface = arguments.get("port", "?"), arguments.get("interface", "")
    if number == errno.EADDRINUSE:
        return f"port {port} is in use (Address already in use): stop the program that uses it, or choose another port"
    if number in (errno.EACCES, errno.EPERM) and port.isdecimal() and int(port) < 1024:
        return (
            "a port below 1024 needs a privilege (Permission denied): choose another port, or give the relay "
            "CAP_NET_BIND_SERVICE, with AmbientCapabilities= in its systemd unit"
        )
    if number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or isinstance(error, socket.gaierror):
        return f"this machine has no address {interface or 'of that kind'}: choose one that it has"
    return _error_text(error)


def _unix_error_text(path: str, error: BaseException | str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    if isinstance(error, OSError):
        if error.errno == errno.EEXIST:  # chatrelay.app.unix_sockets says what is there
            return f"{error.strerror}: {error.filename}"
        if error.errno == errno.EADDRINUSE:
            return "another process listens there: stop it, or choose another path"
        if why := why_not_found(path):
            remedy = "make it, or choose another path" if why.startswith("there is no") else "choose another path"
            return f"{why}: {remedy}"
        if why := why_not_writable(folder) or why_not_usable(f"{path}.lock", write=True):
            return f"{why}: choose another folder, or give that user the right"
    elif why := why_not_usable(path, write=True):  # a socket that may not be connected to
        return f"{why}: choose another path, or remove it if nobody listens there"
    return _error_text(error)


def _error_text(error: BaseException | str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__
