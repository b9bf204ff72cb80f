"""Compression of messages (permessage-deflate, RFC 7692): the offers that are accepted, and the memory that it takes.

This module must not know connections or messages. The option ``compression`` says whether an offer is accepted at all,
and `chatrelay.websocket.autobahn` which messages are compressed.
"""

from __future__ import annotations

from typing import Any

from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept

from chatrelay.wire.extensions import WINDOW_BITS

MIN_COMPRESSED = 256
"""The size in bytes of the shortest message that is compressed. Compressing a shorter one saves almost nothing."""

MEMORY_LEVEL = 5
"""zlib's memory level. With `WINDOW_BITS` a connection takes 32 KiB; zlib's own default takes 256 KiB."""

MAX_ADDED = 1024
"""The most bytes by which compression enlarges a message: zlib adds about 5 bytes to each frame and to each 16 KiB."""


def accept_compression(offers: list[Any]) -> PerMessageDeflateOfferAccept | None:
    """Accept a client's offer of permessage-deflate; return None if it has not offered that.

    Each message is compressed by itself (no context takeover). So the length of one message reveals nothing about the
    text of another, and only the two small windows are kept between messages.
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
