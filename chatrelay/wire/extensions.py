"""The extensions that a client offers (RFC 6455, section 9.1), and the offer of compression that is accepted.

Pure. This module must not know how anything is compressed.

A client offers several ways to compress, the one that it prefers first. If none is accepted, nothing is compressed (RFC
7692, section 5). So an offer that can't be accepted is skipped, whatever is wrong with it. Only a header that can't be
read at all is a reason to refuse the handshake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from chatrelay.wire.request_head import TCHAR, TOKEN

WINDOW_BITS = 12
"""The largest window of compression, as a power of two: 4 KiB."""

MIN_WINDOW_BITS = 9
"""The smallest window that zlib makes. RFC 7692 also allows 8."""

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
    """Sec-WebSocket-Extensions does not follow the grammar of RFC 6455. The text does not quote the header."""


def offers_in(header: str) -> Iterator[tuple[str, Parameters]]:
    """Yield the name and the parameters of each extension that a client offers, the one that it prefers first.

    :param header: the values of ``Sec-WebSocket-Extensions``, joined by commas if there are several.
    :raises BrokenOffers: if it can't be read.
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
    """Return the first offer of compression that is accepted, in its simplest form; None if there is none.

    :param headers: the values of ``Sec-WebSocket-Extensions``.
    :raises BrokenOffers: if they can't be read.
    """
    # All offers are read, because a broken one may follow a good one.
    accepted = [_accepted(parameters) for name, parameters in offers_in(",".join(headers)) if name == DEFLATE]
    return next((each for each in accepted if each is not None), None)


def _accepted(parameters: Parameters) -> str | None:
    """Return an offer of permessage-deflate (RFC 7692, section 7.1) in its simplest form; None if it is declined."""
    values = dict(parameters)
    if len(values) < len(parameters):
        return None
    kept = [DEFLATE]
    for name, value in parameters:
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                return None
            kept.append(name)
        elif name == "server_max_window_bits":
            if value is None or not _BITS.fullmatch(value) or int(value) < MIN_WINDOW_BITS:
                return None
            kept.append(f"{name}={value}")
        elif name == "client_max_window_bits":
            if value is not None and not _BITS.fullmatch(value):
                return None
            # With a value, the client limits its window to that (section 7.1.2.2). If that is less than our window, the
            # response must not name ours, because clients treat a larger window than they offered as an error.
            if value is None or int(value) >= WINDOW_BITS:
                kept.append(name)
        else:
            return None
    return "; ".join(kept)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
