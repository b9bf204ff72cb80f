"""Coverage-guided bytes for the frame fast path, which must behave as Autobahn does.

The same bytes in the same pieces go to a relay with the fast path and to one without. Their answers, deliveries, logs
and closes are compared.

    python -m tests.fuzz frames -atheris_runs=20000 [a folder of a corpus]
    python -m tests.fuzz frames crash-…            repeat what was found
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from chatrelay.config.options import Config
from chatrelay.messagelog.memory import MemoryMessageLog
from chatrelay.testing import KnownSessions
from tests.fuzz.harness import Fuzzed, message
from tests.support.frames import BINARY, CLOSE, PING, frame
from tests.support.memory import MemoryClient
from tests.support.relay_case import chat_factory

SEEDS = tuple(
    bytes((3, 40)) + data
    for data in (
        frame(message(to=1)) + frame(message(to="1")),
        frame(message(to="nobody")),
        frame(b'{"type":"auth-request","SESSID":"alice"}') + frame(message(to=1)),
        frame(message(to=1, content="x" * 300)),
        frame(b"hej", PING) + frame(b"hej", BINARY),
        frame((1000).to_bytes(2), CLOSE),
        b"\x01\x83\0\0\0\0hej\x80\x83\0\0\0\0hej",
        b"\x81\xfe\0\5\0\0\0\0hello",
        b"\x81\xff\0\0\0\0\0\0\0\5\0\0\0\0hello",
    )
)
LOG_IN = frame(b'{"type":"auth-request","SESSID":"alice"}')


class Side:
    """A relay for all inputs; each input gets a new connection."""

    def __init__(self, fast_path: bool) -> None:
        self.clock = Clock()
        self.log = MemoryMessageLog()
        no_limits = {"messages_per_second": 0.0, "user_messages_per_second": 0.0, "new_recipients_per_minute": 0}
        config = Config(fast_path=fast_path, control_frames_per_second=0.0, **no_limits)  # type: ignore[arg-type]
        self.factory = chat_factory(config, self.clock, KnownSessions({"alice": 1}), self.log)
        self.directory = self.factory.directory

    def shows(self, pieces: list[bytes]) -> list[tuple[Any, ...]]:
        """Return the effects of these bytes."""
        client = MemoryClient(self.factory).open()
        factory, shown = self.factory, []
        for piece in pieces:
            client.write(piece)
            self.clock.advance(0)
            self.clock.advance(0)
            deadlines = (
                factory.registry.login_deadlines,
                factory.registry.message_deadlines,
                factory.registry.closing_deadlines,
            )
            shown.append(
                (
                    client.read(),
                    client.transport.disconnecting,
                    client.transport.aborted,
                    [row.message.content for row in self.log.rows],
                    len(self.directory),
                    client.protocol.state,
                    [len(each) for each in deadlines],
                )
            )
        client.lost()
        self.clock.advance(0)
        self.log.rows.clear()
        return shown


SIDES = Side(True), Side(False)


def one(data: bytes) -> None:
    """Compare both sides for one input; its first two bytes say where the rest is cut in three."""
    if len(data) < 3:
        return
    first, second, stream = data[0], data[1], data[2:]
    pieces = (LOG_IN, stream[:first], stream[first : first + second], stream[first + second :])
    fast, slow = (side.shows([piece for piece in pieces if piece]) for side in SIDES)
    assert fast == slow, f"with the fast path {fast}, without {slow}"


FUZZED = Fuzzed(one, SEEDS, planted=("chatrelay.wire.frames.is_utf8", lambda _: True))
