"""The headers of a question to the webserver that the operator chooses: which there may be.

Pure: texts come in, names and values go out. Which headers the relay sends by
itself is `chatrelay.auth.client`'s to know; this only keeps them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address

from chatrelay.wire.request_head import TOKEN

EXAMPLE = "X-Forwarded-Proto: https"

_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE | re.ASCII)
"""A host's name (RFC 1123, section 2.1), or an IPv4 address."""

_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::([1-9][0-9]{0,4}))?")

_LEAVE_OUT = "leave it out"

SET_BY_THE_RELAY = {
    "host": "use auth-host",
    "content-type": "use auth-format",
    "authorization": "use auth-secret-file, which keeps a secret out of the list of processes",
    "accept": _LEAVE_OUT,
    "accept-encoding": _LEAVE_OUT,
    "connection": _LEAVE_OUT,
    "content-encoding": _LEAVE_OUT,
    "content-length": _LEAVE_OUT,
    "expect": _LEAVE_OUT,
    "keep-alive": _LEAVE_OUT,
    "proxy-connection": _LEAVE_OUT,
    "te": _LEAVE_OUT,
    "trailer": _LEAVE_OUT,
    "transfer-encoding": _LEAVE_OUT,
    "upgrade": _LEAVE_OUT,
}
"""Headers that say how a request is sent, or that the relay has a value of its own for; and what to do instead."""


def read_host(text: str) -> tuple[str, int | None]:
    """The name and the port of a ``Host`` (RFC 9110, section 7.2).

    :returns: the name without the brackets of an IPv6 address; the port, None where there is none.
    :raises ValueError: where it is none; the text says what would do.
    """
    found = _HOST_AND_PORT.fullmatch(text)
    name = found[1] if found else ""
    port = int(found[2]) if found and found[2] else None
    if name.startswith("["):
        name = name[1:-1]
        try:
            IPv6Address(name)
        except ValueError:
            name = ""
    elif not HOST_NAME.fullmatch(name):
        name = ""
    if not name or (port is not None and port > 65535):
        without = " without a scheme and slashes" if "/" in text else ""
        raise ValueError(f"{text!r} is no host: give a name, and at most a port{without}, such as www.example.com")
    return name, port


def host_name(text: str) -> str:
    """The name of a ``Host`` that was read before, without the port."""
    return read_host(text)[0]


def read_header(text: str) -> tuple[bytes, bytes]:
    """The name and the value of a header.

    :raises ValueError: where it is none, or one that the relay sets itself; the text says what would do, and not the
        value, which may be a secret.
    """
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    example = f"a header is such as {EXAMPLE!r}"
    if not colon:
        raise ValueError(f"what is given has no colon: {example}")
    if not TOKEN.fullmatch(name):
        raise ValueError(f"what stands before the colon is no name of a header: {example}")
    if not value:
        raise ValueError(f"{name} has no value: {example}")
    if "\r" in value or "\n" in value:
        raise ValueError(f"{name} has a value of more than one line: {example}")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the value of {name} is not printable ASCII: {example}")
    if name.lower() == "cookie":
        raise ValueError(f"{name} can't be sent: a visitor's cookies must not go out with questions about others")
    remedy = SET_BY_THE_RELAY.get(name.lower())
    if remedy is not None:
        raise ValueError(f"the relay sets {name} itself: {remedy}")
    return name.encode("ascii"), value.encode("ascii")


def read_headers(texts: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """The names and values of several headers.

    :raises ValueError: as `read_header` does, and where two have one name.
    """
    headers = [read_header(text) for text in texts]
    seen = set()
    for name, _ in headers:
        if name.lower() in seen:
            raise ValueError(f"{name.decode('ascii')} is given twice: give it once")
        seen.add(name.lower())
    return headers
