"""An echo server on the relay's real protocol class and its real options, for the Autobahn test suite's cases.

    python -m tests.conformance.echo --port 9001 [--no-fast-path] [--compression]

The suite expects its messages back, text and binary, some of them large. So the bound on a message, the bound on its
frames and the deadlines are lifted, and `onMessage` echoes. Everything else is as in the relay.
"""

from __future__ import annotations

import argparse
from typing import Any

import attrs
from twisted.internet.endpoints import serverFromString

from chatrelay.app.build import build
from chatrelay.config.options import Config
from chatrelay.messagelog.memory import NoMessageLog
from chatrelay.testing import KnownSessions
from chatrelay.websocket.protocol import ChatProtocol


class EchoProtocol(ChatProtocol):
    """The relay's protocol, but for what it does with a message."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Send it back."""
        if self.state == self.STATE_OPEN:
            self.sendMessage(payload, isBinary)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-fast-path", action="store_true")
    parser.add_argument("--compression", action="store_true")
    options = parser.parse_args()
    from twisted.internet import reactor as untyped_reactor

    reactor: Any = untyped_reactor
    no_limits = attrs.evolve(
        Config(listen=(), fast_path=not options.no_fast_path),
        login_timeout=0,
        # Compression needs a bound; the suite's largest message is 16 MiB.
        message_size=1 << 26 if options.compression else 0,
        compression=options.compression,
        message_frames=0,
        message_timeout=0,
        messages_per_second=0,
        control_frames_per_second=0,
        unread_size=0,
        ping_interval=0,  # a ping in the midst of a case fails it
    )
    factory = build(no_limits, reactor, KnownSessions({}), NoMessageLog()).factory
    factory.protocol = EchoProtocol
    factory.start_sweeping()
    listening = serverFromString(reactor, f"tcp:{options.port}:interface=127.0.0.1").listen(factory)
    listening.addCallback(lambda port: print("listening on", port.getHost().port, flush=True))
    reactor.run()


if __name__ == "__main__":
    main()
