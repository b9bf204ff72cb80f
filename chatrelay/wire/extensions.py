"""The extensions that a client offers (RFC 6455, section 9.1), and the offer of compression that can be taken up.

Pure. A client offers several ways to compress in the order it likes them, and
goes without where none is taken up (RFC 7692, section 5). So an offer that
can't be taken up is passed over, whatever is odd about it, and no reason to
refuse the handshake. Only a header that can't be read at all is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from chatrelay.wire.request_head import TCHAR, TOKEN

WINDOW_BITS = 12
"""How far back compression looks at the most: 4 KiB."""

MIN_WINDOW_BITS = 9
"""zlib makes no smaller window, though RFC 7692 knows one of 8."""

DEFLATE = "permessage-deflate"

_BETWEEN_OFFERS = re.compile(r"[ \t,]*")
_PARAMETER = re.compile(
    rf"[ \t]*;[ \t]*(?P<name>{TOKEN.pattern})"
    rf'(?:[ \t]*=[ \t]*(?:(?P<plain>{TOKEN.pattern})|"(?P<quoted>(?:\\?{TCHAR})+)"))?'
)
_END_OF_OFFER = re.compile(r"[ \t]*(?:,|$)")
_BITS = re.compile(r"[89]|1[0-5]")

Parameters = list[tuple[str, str | None]]


class BrokenOffers(ValueError):
    """A header of extensions that does not follow the grammar of RFC 6455; the text says so, without quoting it."""


def offers_in(header: str) -> Iterator[tuple[str, Parameters]]:
    """The extensions that a client offers, the one that it likes best first: the name of each, and its parameters.

    :param header: the values of ``Sec-WebSocket-Extensions``, joined by commas where there are several.
    :raises BrokenOffers: where it can't be read.
    """
    at = _skip(_BETWEEN_OFFERS, header, 0)
    while at < len(header):
        name = TOKEN.match(header, at)
        if name is None:
            raise BrokenOffers("the header Sec-WebSocket-Extensions can't be read")
        at, parameters = name.end(), []
        while found := _PARAMETER.match(header, at):
            quoted = found["quoted"]
            value = found["plain"] if quoted is None else quoted.replace("\\", "")
            parameters.append((found["name"].lower(), value))
            at = found.end()
        if _END_OF_OFFER.match(header, at) is None:
            raise BrokenOffers("the header Sec-WebSocket-Extensions can't be read")
        yield name[0].lower(), parameters
        at = _skip(_BETWEEN_OFFERS, header, at)


def acceptable(headers: Iterable[str]) -> str | None:
    """The first offer of compression that can be taken up, in its plainest form; None where there is none.

    :param headers: the values of ``Sec-WebSocket-Extensions``.
    :raises BrokenOffers: where they can't be read.
    """
    # All are read, as a broken one may be behind a good one.
    taken = [_taken(parameters) for name, parameters in offers_in(",".join(headers)) if name == DEFLATE]
    return next((each for each in taken if each is not None), None)


def _taken(parameters: Parameters) -> str | None:
    """One offer of permessage-deflate (RFC 7692, section 7.1) in its plainest form; None where it can't be taken up."""
    values = dict(parameters)
    if len(values) < len(parameters):
        return None
    taken = [DEFLATE]
    for name, value in parameters:
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                return None
            taken.append(name)
        elif name == "server_max_window_bits":
            if value is None or not _BITS.fullmatch(value) or int(value) < MIN_WINDOW_BITS:
                return None
            taken.append(f"{name}={value}")
        elif name == "client_max_window_bits":
            if value is not None and not _BITS.fullmatch(value):
                return None
            # With a value the client says that it looks no further back than that (section 7.1.2.2). Where that is
            # nearer than what it would be told, it is told nothing: clients take more than they offered for an error.
            if value is None or int(value) >= WINDOW_BITS:
                taken.append(name)
        else:
            return None
    return "; ".join(taken)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
