"""The relay inside a site of `twisted.web`, which has read the handshake before the relay does."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.resource import WebSocketResource


class ChatResource(WebSocketResource):
    """Autobahn's resource, with the cookies of several headers kept apart.

    It joins the values of several headers by commas, which is right for all but cookies: a comma is no end of one.
    """

    def render(self, request: Any) -> Any:
        """Take the connection over from `twisted.web`."""
        cookies = request.requestHeaders.getRawHeaders(b"cookie", [])
        if len(cookies) > 1:
            request.requestHeaders.setRawHeaders(b"cookie", [b"; ".join(cookies)])
        return super().render(request)
