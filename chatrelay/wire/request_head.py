"""The head of an opening handshake: its request line and its headers, read as RFC 9112 requires.

Pure. This module must not know what the headers mean. It knows which bytes Autobahn would misread.

Autobahn decodes a head as latin-1, and ends a line wherever Python's `str.splitlines` does. So a byte 0x85, which is
part of "Å" in UTF-8, ends a header there, and what follows counts as the next one. Autobahn is therefore given a head
of the same meaning without such bytes.
"""

from __future__ import annotations

import re

import attrs

END_OF_HEADERS = b"\r\n\r\n"

MAX_PARTS = 100
"""The most headers; the most query parameters; the most subprotocols, extensions and parameters of these, together."""

TCHAR = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
"""One character of a token, such as the name of a header or of a cookie (RFC 9110, section 5.6.2), as a pattern."""

TOKEN = re.compile(f"{TCHAR}+")

_NAME = re.compile(TOKEN.pattern.encode("ascii"))

_LINE_ENDS = b"\x0b\x0c\x1c\x1d\x1e\x85"
"""The bytes, besides CR and LF, at which `str.splitlines` ends a line of a text decoded as latin-1."""

_WITHOUT_LINE_ENDS = bytes.maketrans(_LINE_ENDS, b"?" * len(_LINE_ENDS))

_NOT_IN_URI = re.compile(rb"[^!-~]")
"""Characters that must be percent-encoded in a URI (RFC 3986, section 2). Some programs send them as they are."""

_NOT_PRINTABLE = re.compile(rb"[^ -~]")

EXTENSIONS = b"sec-websocket-extensions"


class BrokenHead(ValueError):
    """A head that is not valid HTTP. The text says why, and does not quote the head."""


@attrs.frozen
class RequestHead:
    """The head of a request.

    :ivar raw: its bytes, as they came, with the empty line at the end.
    :ivar line: the request line.
    :ivar fields: the headers: their names in lower case, and their values without the blanks around them. A line that
        begins with a blank continues the line before it (RFC 9112, section 5.2). A client can hide a header in such a
        line from a proxy that passes the line on and adds that header itself. So a line that begins with a blank is
        left out, and so is a line without a name.
    """

    raw: bytes = attrs.field(repr=False)
    line: bytes = attrs.field(repr=False)
    fields: tuple[tuple[bytes, bytes], ...] = attrs.field(repr=False)

    @classmethod
    def of(cls, raw: bytes) -> RequestHead:
        """Read a head.

        :raises BrokenHead: if a line contains CR, LF or NUL, or the name of a header ends with a blank.
        """
        lines = raw.removesuffix(END_OF_HEADERS).split(b"\r\n")
        # No header may contain these (RFC 9110, section 5.5): some proxies end a line at them, and others do not.
        if b"\0" in raw or not raw.count(b"\r") == raw.count(b"\n") == len(lines) + 1:
            raise BrokenHead("a line of the opening handshake contains a line break or a NUL")
        fields = []
        for each in lines[1:]:
            name, colon, value = each.partition(b":")
            if colon and _NAME.fullmatch(name):
                fields.append((name.lower(), value.strip(b" \t")))
            elif colon and _NAME.fullmatch(name.rstrip(b" \t")):
                raise BrokenHead("the name of a header ends with a blank")
        return cls(raw, lines[0], tuple(fields))

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a header, in the order in which they came."""
        return [value for key, value in self.fields if key == name]

    def for_autobahn(self, extensions: str | None) -> bytes:
        """Return a head of the same meaning that Autobahn reads correctly.

        :param extensions: the offers that replace the client's ``Sec-WebSocket-Extensions``; None for no offer.
        """
        line = self.line
        if _NOT_PRINTABLE.search(line):
            parts = line.split(b" ")
            if len(parts) == 3:
                parts[1] = _NOT_IN_URI.sub(lambda found: b"%%%02X" % ord(found[0]), parts[1])
            line = _NOT_PRINTABLE.sub(b"?", b" ".join(parts))
        lines = [b"%b: %b" % field for field in self.fields if field[0] != EXTENSIONS]
        if extensions is not None:
            lines.append(b"%b: %b" % (EXTENSIONS, extensions.encode("ascii")))
        return b"\r\n".join([line, *lines]).translate(_WITHOUT_LINE_ENDS) + END_OF_HEADERS

    def altered(self) -> dict[str, str]:
        """Return the original values of the headers that `for_autobahn` alters, for Autobahn's dictionary of them."""
        names = {
            name for name, value in self.fields if name == EXTENSIONS or value.translate(_WITHOUT_LINE_ENDS) != value
        }
        return {name.decode("ascii"): b", ".join(self.values(name)).decode("latin-1") for name in names}

    def excess(self) -> str | None:
        """Return an error message if the head has more than `MAX_PARTS` parts of one kind; otherwise None.

        Autobahn makes objects of each part: 14 KiB of extensions took 800 KiB of memory, and 80 times as long as an
        ordinary handshake.
        """
        if self.line.count(b"&") >= MAX_PARTS:
            return f"the URL has more than {MAX_PARTS} query parameters"
        if self.raw.count(b"\r\n") - 2 > MAX_PARTS:
            return f"the opening handshake has more than {MAX_PARTS} headers"
        offers = [value for name, value in self.fields if name.startswith(b"sec-websocket-")]
        if sum(value.count(b",") + value.count(b";") for value in offers) >= MAX_PARTS:
            parts = "subprotocols, extensions and parameters of these"
            return f"the opening handshake offers more than {MAX_PARTS} {parts}"
        return None


def header_value(request: bytes, name: str) -> str | None:
    """Return the first value of a header of a handshake, decoded as latin-1; None if there is none."""
    values = header_values(request, name)
    return values[0] if values else None


def header_values(request: bytes, name: str) -> list[str]:
    """Return all values of a header of a handshake, decoded as latin-1: those that `RequestHead.fields` has."""
    wanted = b"\r\n%b:" % name.lower().encode("ascii")
    names, values = request.lower(), []
    at = names.find(wanted)
    while at >= 0:
        at += len(wanted)
        values.append(str(request[at:].partition(b"\r\n")[0].strip(b" \t"), "latin-1"))
        at = names.find(wanted, at)
    return values
