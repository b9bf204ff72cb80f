"""Read the headers that the operator adds to each request to the session page (``auth-header``, ``auth-host``).

Pure: texts come in, names and values go out. This module must not know how a request is sent. It refuses the headers
that `chatrelay.auth.client` sets itself.
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
"""Headers that the relay sets itself, or that control how a request is sent -> what to do instead."""


def read_host(text: str) -> tuple[str, int | None]:
    """Return the name and the port of a ``Host`` (RFC 9110, section 7.2).

    :returns: the name, or an IPv6 address without its brackets; and the port, or None.
    :raises ValueError: if `text` is not a host; the message has an example.
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
        without = " without a scheme and slashes," if "/" in text else ""
        raise ValueError(f"{text!r} is not a host: give a name, and a port if needed,{without} such as www.example.com")
    return name, port


def host_name(text: str) -> str:
    """Return the name of a valid ``Host``, without the port."""
    return read_host(text)[0]


def read_header(text: str) -> tuple[bytes, bytes]:
    """Return the name and the value of a header.

    :raises ValueError: if `text` is not a header, or is one that the relay sets itself. The message does not contain
        the value, which may be a secret.
    """
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    example = f"an example is {EXAMPLE!r}"
    if not colon:
        raise ValueError(f"the header has no colon: {example}")
    if not TOKEN.fullmatch(name):
        raise ValueError(f"the text before the colon is not the name of a header: {example}")
    if not value:
        raise ValueError(f"{name} has no value: {example}")
    if "\r" in value or "\n" in value:
        raise ValueError(f"the value of {name} must be one line: {example}")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the value of {name} must be printable ASCII: {example}")
    if name.lower() == "cookie":
        raise ValueError(f"{name} can't be sent: one visitor's cookies must not be sent with requests about others")
    remedy = SET_BY_THE_RELAY.get(name.lower())
    if remedy is not None:
        raise ValueError(f"the relay sets {name} itself: {remedy}")
    return name.encode("ascii"), value.encode("ascii")


def read_headers(texts: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Return the names and values of several headers.

    :raises ValueError: as `read_header` does, and if two have the same name.
    """
    headers = [read_header(text) for text in texts]
    seen = set()
    for name, _ in headers:
        if name.lower() in seen:
            raise ValueError(f"{name.decode('ascii')} is given twice: give it once")
        seen.add(name.lower())
    return headers
