"""Endpoint strings of Twisted's: what is wrong with one, and what would do.

Twisted parses and opens endpoints. Each of its parsers fails in a way of its own, and most of them name neither the
endpoint nor a remedy. This module looks at an endpoint's string first, and puts what Twisted says of it into words.
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

from chatrelay.permissions import cannot_be_read, why_not_found, why_not_used, why_not_written_in

WRAPPER = "haproxy:"
"""Comes before an endpoint whose clients come through a proxy that speaks the PROXY protocol."""

MAX_PORT = 65535
MAX_UNIX_PATH = 107
"""Bytes of the path of a UNIX socket on Linux (unix(7))."""

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
"""The kinds of endpoints whose strings are understood here, and their arguments in the order of their places."""

_EXAMPLES = {
    "tcp": "tcp:8080:interface=127.0.0.1",
    "tcp6": r"tcp6:8080:interface=\:\:1",
    "ssl": "ssl:443:privateKey=/etc/ssl/private/key.pem:certKey=/etc/ssl/certs/cert.pem",
    "tls": "tls:/etc/chatrelay/certificates:443",
    "unix": "unix:/run/chatrelay/chatrelay.sock",
    "systemd": "systemd:domain=INET:index=0",
}

_OTHER_NAMES = {"http": "tcp", "ws": "tcp", "tcp4": "tcp", "https": "ssl", "wss": "ssl", "fd": "systemd"}
"""Kinds that somebody may look for, and the kind that there is."""


class BadEndpointError(ValueError):
    """An endpoint that can't be used; the text says why, and what would do."""


class CannotOpenError(CannotListenError):
    """An endpoint that could not be opened.

    :ivar option: the option that has it, without dashes.
    :ivar problem: why, and what to do about it.
    """

    def __init__(self, option: str, description: str, problem: str) -> None:
        super().__init__(None, description, problem)
        self.option = option
        self.problem = f"{description!r} cannot be opened: {problem}"

    def __str__(self) -> str:
        return f"{self.option}: {self.problem}"


def check(description: str) -> None:
    """Refuse an endpoint of which it can be told that it will not do.

    Kinds that only Twisted's plugins know are left to Twisted.

    :raises BadEndpointError: with the remedy.
    """
    inner = description.removeprefix(WRAPPER)
    prefix = WRAPPER if inner != description or description == "haproxy" else ""
    if inner in ("", "haproxy"):
        raise BadEndpointError(
            f"another endpoint comes behind haproxy:, such as {WRAPPER}{_EXAMPLES['tcp']}"
            if prefix
            else f"it is empty: give one such as {_EXAMPLES['tcp']}"
        )
    kind, positional, named = _parts(inner)
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


def why_refused(description: str, error: Exception) -> str:
    """Return what to say of an endpoint that Twisted does not take.

    :param error: what Twisted said.
    """
    inner = description.removeprefix(WRAPPER)
    kind = inner.partition(":")[0]
    if str(error).startswith("Unknown endpoint type"):
        if (suggestion := _suggestion(inner, kind)) is not None:
            return f"did you mean {description.removesuffix(inner)}{suggestion}?"
        return f"there is no kind {kind!r} of endpoint: the kinds are {', '.join(_ARGUMENTS)}"
    if kind == "systemd" and isinstance(error, LookupError):
        return _why_no_socket_of_systemd(os.environ)
    example = _EXAMPLES.get(kind, _EXAMPLES["tcp"])
    return f"{str(error) or type(error).__name__} (an endpoint is such as {example})"


@implementer(IStreamServerEndpoint)
class NamedEndpoint:
    """An endpoint whose errors name it, and the remedy.

    :param endpoint: an endpoint of Twisted's.
    :param option: the option that has it.
    :param description: its string, as it was given.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, option: str, description: str) -> None:
        self._endpoint = endpoint
        self._option = option
        self._description = description

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen.

        :returns: fails with `CannotOpenError` for what Twisted and the system say.
        """
        listening: Deferred[IListeningPort] = self._endpoint.listen(protocolFactory)
        return listening.addErrback(self._failed)

    def _failed(self, failure: Failure) -> NoReturn:
        error = failure.value
        if isinstance(error, CannotListenError | OSError | OverflowError):
            cause = error.socketError if isinstance(error, CannotListenError) else error
            raise CannotOpenError(self._option, self._description, _why_not_opened(self._description, cause)) from error
        failure.raiseException()


# The string ---------------------------------------------------------------------


def _parts(inner: str) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The kind of an endpoint, its arguments that have no name, and those that have one."""
    kind, *arguments = re.split(r"(?<!\\):", inner)
    positional = [_unescaped(argument) for argument in arguments if "=" not in argument]
    named = [tuple(argument.split("=", 1)) for argument in arguments if "=" in argument]
    return kind, positional, [(name, _unescaped(value)) for name, value in named]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _suggestion(inner: str, kind: str) -> str | None:
    """An endpoint that was meant by a text that is none."""
    if kind.isdecimal() and inner == kind:
        return f"tcp:{inner}:interface=127.0.0.1"
    if found := re.fullmatch(r"(\w+)://([^:/]*)(?::(\d+))?/?", inner):
        kind = _OTHER_NAMES.get(found[1], found[1])
        return None if kind not in ("tcp", "ssl") else _with_port(kind, found[2], found[3] or "8080")
    if kind.startswith(("/", ".")):
        return f"unix:{inner}"
    rest = inner[len(kind) :]
    if not re.fullmatch(r"[\w.-]*", kind):
        return None
    known = _OTHER_NAMES.get(kind.lower()) or next(
        iter(difflib.get_close_matches(kind.lower(), [*_ARGUMENTS, "haproxy"], n=1, cutoff=0.6)), None
    )
    if known in ("ssl", "systemd") and kind in _OTHER_NAMES:
        return _EXAMPLES[known]
    if known is not None:
        return known + rest
    if found := re.fullmatch(r"([\w.-]*):(\d+)", inner):
        return _with_port("tcp", found[1], found[2])
    return None


def _with_port(kind: str, host: str, port: str) -> str:
    """An endpoint on a port."""
    if kind == "ssl":
        return _EXAMPLES["ssl"].replace("443", port)
    if re.fullmatch(r"|\*|any|(0\.){3}0", host):
        return f"{kind}:{port}"
    local = r"\:\:1" if kind == "tcp6" else "127.0.0.1"
    return f"{kind}:{port}:interface={local if host == 'localhost' else host}"


def _arguments(prefix: str, kind: str, positional: Sequence[str], named: Sequence[tuple[str, str]]) -> dict[str, str]:
    """An endpoint's arguments by name."""
    names = _ARGUMENTS[kind]
    for name, _ in named:
        if name not in names:
            meant = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {meant[0]}=?" if meant else f"it has {', '.join(names)}"
            raise BadEndpointError(f"an endpoint of the kind {kind} has no {name}=: {hint}")
    address = next((value for name, value in named if name == "interface"), None)
    if address is not None and re.fullmatch("[0-9a-fA-F]*", address) and _is_ipv6_cut(positional, address):
        raise BadEndpointError(
            "the colons of an IPv6 address are written with a backslash before each, such as "
            rf"{prefix}{kind}:8080:interface=\:\:1"
        )
    if kind in ("tcp", "tcp6", "ssl") and positional and not _is_port(positional[0]) and positional[0]:
        port = next((text for text in positional[1:] if _is_port(text)), None)
        if port is not None:
            raise BadEndpointError(f"the port comes first: {prefix}{_with_port(kind, positional[0], port)}")
    if len(positional) > len(names):
        raise BadEndpointError(f"it has too many parts: one is such as {prefix}{_EXAMPLES[kind]}")
    arguments = dict(zip(names, positional, strict=False))
    for name, value in named:
        if name in arguments:
            raise BadEndpointError(f"{name} is given twice, {arguments[name]!r} and {value!r}: give it once")
        arguments[name] = value
    return arguments


def _is_ipv6_cut(positional: Sequence[str], address: str) -> bool:
    """Whether an interface is the beginning of an IPv6 address whose colons ended it."""
    rest = positional[1:]
    return bool(rest) and all(re.fullmatch("[0-9a-fA-F]*", text) for text in rest) and (not address or "" in rest)


def _is_port(text: str) -> bool:
    return text.strip().isdecimal()


def _check_port(prefix: str, kind: str, arguments: dict[str, str]) -> None:
    port = arguments.get("port", "")
    example = f"{prefix}{_EXAMPLES[kind]}"
    if not port:
        raise BadEndpointError(f"the port is missing: give one such as {example}")
    try:
        number = int(port)
    except ValueError:
        raise BadEndpointError(f"{port!r} is not a port, which is a number: give one such as {example}") from None
    if not 0 <= number <= MAX_PORT:
        raise BadEndpointError(f"{number} is not a port: ports are 1 to {MAX_PORT}, and 0 for any that is free")
    backlog = arguments.get("backlog", "0")
    if not backlog.isdecimal():
        raise BadEndpointError(f"the backlog {backlog!r} is not a number: leave it out")


# Certificates -------------------------------------------------------------------


def _check_certificate(prefix: str, arguments: dict[str, str]) -> None:
    """Look at the files of an ``ssl:`` endpoint. (Twisted takes server.pem where none is named.)"""
    if not arguments.get("privateKey"):
        if "privateKey" not in arguments and os.path.exists("server.pem"):
            return
        example = f"{prefix}ssl:{arguments['port']}{_EXAMPLES['ssl'].removeprefix('ssl:443')}"
        raise BadEndpointError(
            f"it names no private key: give the files of the key and of the certificate, such as {example}"
        )
    key_file = arguments["privateKey"]
    certificate_file = arguments.get("certKey", key_file)
    key = _pem("privateKey", key_file)
    if b"ENCRYPTED" in key:
        raise BadEndpointError(
            f"the key in {key_file} is encrypted with a passphrase, for which nobody can be asked: write it without, "
            "with openssl pkey -in FILE -out FILE"
        )
    try:
        crypto.load_privatekey(crypto.FILETYPE_PEM, key)
    except (crypto.Error, ValueError, TypeError):
        raise BadEndpointError(f"privateKey={key_file} holds no private key in PEM form") from None
    try:
        crypto.load_certificate(crypto.FILETYPE_PEM, _pem("certKey", certificate_file))
    except (crypto.Error, ValueError):
        if "certKey" in arguments:
            raise BadEndpointError(f"certKey={certificate_file} holds no certificate in PEM form") from None
        raise BadEndpointError(
            f"{key_file} holds no certificate in PEM form: name the certificate's file with :certKey="
        ) from None
    if "extraCertChain" in arguments:
        _pem("extraCertChain", arguments["extraCertChain"])


def _pem(argument: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise BadEndpointError(f"{argument}={cannot_be_read(path, error)}") from None


def _check_certificates(prefix: str, arguments: dict[str, str]) -> None:
    """Look at the folder of a ``tls:`` endpoint. (Twisted listens without any certificate, too.)"""
    path = arguments.get("path", "")
    if not path:
        raise BadEndpointError(f"the folder is missing: give one such as {prefix}{_EXAMPLES['tls']}")
    try:
        names = os.listdir(path)
    except OSError as error:
        why = cannot_be_read(path, error)
        raise BadEndpointError(f"{why}: give a folder of PEM files, such as {prefix}{_EXAMPLES['tls']}") from None
    if not any(name.endswith(".pem") for name in names):
        raise BadEndpointError(f"there is no file in the folder {path} whose name ends with .pem")


# UNIX sockets -------------------------------------------------------------------


def _check_unix(prefix: str, arguments: dict[str, str]) -> None:
    path = arguments.get("address", "")
    if not path:
        raise BadEndpointError(f"the path is missing: give one such as {prefix}{_EXAMPLES['unix']}")
    if (length := len(os.fsencode(path))) > MAX_UNIX_PATH:
        raise BadEndpointError(
            f"the path of a UNIX socket has at most {MAX_UNIX_PATH} bytes, and this one has {length}: choose a shorter "
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
        raise BadEndpointError("it needs index= or name=, which tell the sockets of systemd apart, and not both")
    if not arguments.get("index", "0").isdecimal():
        raise BadEndpointError(f"the index {arguments['index']!r} is not a number: the first socket has 0")


def _why_no_socket_of_systemd(environment: Mapping[str, str]) -> str:
    is_meant = environment.get("LISTEN_PID") == str(os.getpid())
    count = environment.get("LISTEN_FDS", "0") if is_meant else "0"
    if count == "0":
        return (
            "systemd handed over no socket: start the relay by the socket unit that goes with its service, or listen "
            f"on an endpoint such as {_EXAMPLES['tcp']}"
        )
    names = environment.get("LISTEN_FDNAMES", "")
    return f"systemd handed over no such socket: it has {count}, with the names {names.replace(':', ', ') or 'unknown'}"


# Opening ------------------------------------------------------------------------


def _why_not_opened(description: str, error: BaseException | str) -> str:
    """Why an endpoint could not be opened, and what to do about it."""
    kind, positional, named = _parts(description.removeprefix(WRAPPER))
    try:
        arguments = _arguments("", kind, positional, named) if kind in _ARGUMENTS else {}
    except BadEndpointError:
        arguments = {}
    number = error.errno if isinstance(error, OSError) else None
    if kind == "unix":
        return _why_no_socket(arguments.get("address", ""), error)
    port, interface = arguments.get("port", "?"), arguments.get("interface", "")
    if number == errno.EADDRINUSE:
        return f"port {port} is in use (Address already in use): stop what listens there, or choose another port"
    if number in (errno.EACCES, errno.EPERM) and port.isdecimal() and int(port) < 1024:
        return (
            "a port below 1024 needs a privilege (Permission denied): choose another port, or give the relay "
            "CAP_NET_BIND_SERVICE, with AmbientCapabilities= in its systemd unit"
        )
    if number in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or isinstance(error, socket.gaierror):
        return f"this machine has no address {interface or 'of that kind'}: choose one of those that it has"
    return _told(error)


def _why_no_socket(path: str, error: BaseException | str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    if isinstance(error, OSError):
        if error.errno == errno.EEXIST:  # chatrelay.app.unix_sockets says what is there
            return f"{error.strerror}: {error.filename}"
        if error.errno == errno.EADDRINUSE:
            return "another process listens there: stop it, or choose another path"
        if why := why_not_found(path):
            remedy = "make it, or choose another path" if why.startswith("there is no") else "choose another path"
            return f"{why}: {remedy}"
        if why := why_not_written_in(folder) or why_not_used(f"{path}.lock", write=True):
            return f"{why}: choose another folder, or give that user the right"
    elif why := why_not_used(path, write=True):  # a socket that may not be connected to
        return f"{why}: choose another path, or remove it where nobody listens there"
    return _told(error)


def _told(error: BaseException | str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__
