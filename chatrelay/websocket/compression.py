"""Compression of messages (permessage-deflate, RFC 7692): which offers of it are taken up, and how small it is kept.

It knows the words of a handshake's offer, and some numbers of zlib's. It must
not know connections or messages: whether compression is offered at all is the
option's, and when a message is compressed `chatrelay.websocket.protocol`'s.
"""

from __future__ import annotations

from typing import Any

from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept

from chatrelay.wire.extensions import WINDOW_BITS

LEAST_COMPRESSED = 256
"""Bytes of a message below which compressing it gains next to nothing."""

MEMORY_LEVEL = 5
"""How much compression remembers, as zlib counts; with `WINDOW_BITS` 32 KiB a connection, where zlib's own take 256."""

MOST_ADDED = 1024
"""Bytes by which compression may make a message larger: zlib adds some 5 to each frame and to each 16 KiB."""


def accept_compression(offers: list[Any]) -> PerMessageDeflateOfferAccept | None:
    """What to answer a client that offers compression; None where it is not of the kind that is spoken here.

    Each message is compressed by itself (no context takeover), so that no
    message's length tells of another's text, and nothing but the two small
    windows is kept between them.
    """
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(
                offer,
                request_no_context_takeover=True,
                request_max_window_bits=WINDOW_BITS if offer.accept_max_window_bits else 0,
                no_context_takeover=True,
                window_bits=min(WINDOW_BITS, offer.request_max_window_bits or WINDOW_BITS),
                mem_level=MEMORY_LEVEL,
            )
    return None
