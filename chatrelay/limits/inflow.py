"""Limits on reading: so many bytes and frames a second of one connection, and a pause beyond them.

Pure: the time is handed in, and the caller pauses the transport. This module must not know what a message means.

A client whose connection is read no faster loses nothing. TCP makes it wait. What it has sent is read and answered
later, in order. So these limits refuse and close nobody, and a client within its limits of messages never reaches them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

MIN_READ = 512
"""Bytes that each read counts as in addition to its own: one byte in a read of its own costs the relay that much."""

BURST_SECONDS = 2
"""Seconds' worth of bytes and of frames that may come at once."""

MIN_PAUSE = 0.1
"""Seconds for which reading pauses at least. Small pieces that come meanwhile are read in one."""

MIN_BYTES, MIN_FRAMES = 1024 * 1024, 100
"""Bytes and frames a second, at the least, where the options do not say how many."""

VISITORS_BYTES, VISITORS_FRAMES = 1 / 16, 1 / 2
"""The share of that for a client that is not logged in: an auth-request is small, and nothing else is carried."""

BYTES_OF_A_MESSAGE = 1.6
"""By how much more than its largest size a message counts: its frames, and the reads it comes in (see `MIN_READ`)."""

FRAMES_OF_A_MESSAGE = 9
"""Frames that a message may come in, on average."""

LARGE_MESSAGE = 4096
"""Bytes from which on the arrays and objects of a message are counted."""

BRACKET_BYTES = 32
"""Bytes that each array or object counts as, beyond those that a sixteenth of a message may be."""

_STRIDE = 17  # a prime, so that short texts that repeat are met everywhere


def weight(payload: bytes, now: float) -> int:
    """As how many bytes a large message counts in addition to its own.

    Arrays and objects in keys that nobody reads must be gone through all the same, and take twelve times as long as
    text. One byte in seventeen is looked at to estimate how many there are. The time says which, and no client can
    foresee it so exactly.

    :param payload: the message.
    :param now: the time, in seconds.
    """
    sample = payload[int(now * 1e6) % _STRIDE :: _STRIDE]
    brackets = (sample.count(b"[") + sample.count(b"{")) * _STRIDE
    return max(0, brackets - len(payload) // 16) * BRACKET_BYTES


class Allowance:
    """An allowance: so much at once, and so much a second in the long run, counted down without a look at the clock.

    The caller takes from `remaining`, and calls `refill` when too little is left. `refill` adds what has come back
    since the last time, up to the burst. So over any time no more is taken than twice the burst, what comes back in
    it, and twice what is taken at once.

    :param rate: how much comes back a second; 0 for no limit.
    :param burst: how much there is at first.
    :param now: seconds of any clock, the same at each call. One that is set back brings nothing back.
    :ivar remaining: how much there is, as far as that is known without the clock.
    """

    __slots__ = ("_at", "_burst", "_rate", "remaining")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst if rate else math.inf
        self._at = now
        self.remaining = self._burst

    def refill(self, now: float, needed: float = 0.0) -> float:
        """Add what has come back, and return the seconds until there is as much as is needed; 0 if there is already."""
        self.remaining = min(self._burst, self.remaining + max(0.0, now - self._at) * self._rate)
        self._at = now
        return 0.0 if self.remaining >= needed else (needed - self.remaining) / self._rate


class InflowRates(NamedTuple):
    """The rates at which a connection is read.

    :ivar bytes_per_second: bytes, each read counted as `MIN_READ` more; 0 for no limit.
    :ivar frames_per_second: frames that are not taken by the fast path, and pieces of frames; 0 for no limit.
    """

    bytes_per_second: float
    frames_per_second: float

    @classmethod
    def beside(
        cls,
        bytes_per_second: int | None,
        frames_per_second: int | None,
        messages_per_second: float,
        message_size: int,
        control_frames_per_second: float,
    ) -> InflowRates:
        """The rates that an operator chose; or those that messages need, where they chose none.

        :param bytes_per_second: None for enough for `messages_per_second` messages of `message_size`.
        :param frames_per_second: None for enough for so many messages in some frames each, pings and pongs.
        :param messages_per_second: 0 for no limit, and then there is none here.
        :param message_size: bytes; 0 for no limit, and then there is none on bytes.
        :param control_frames_per_second: pings and pongs.
        """
        if bytes_per_second is None:
            needed = BYTES_OF_A_MESSAGE * messages_per_second * message_size
            bytes_per_second = max(MIN_BYTES, math.ceil(needed)) if needed else 0
        if frames_per_second is None:
            needed = FRAMES_OF_A_MESSAGE * messages_per_second
            frames_per_second = max(MIN_FRAMES, math.ceil(needed + control_frames_per_second)) if needed else 0
        return cls(bytes_per_second, frames_per_second)


class Inflow:
    """The bytes and frames that may still be read of one connection. It begins as a visitor's.

    :param rates: how much in a second, once it is logged in.
    :param now: the time.
    :ivar bytes: bytes, and `MIN_READ` for each read.
    :ivar frames: frames that are not taken by the fast path, and pieces of frames.
    :ivar held: what came, and waits for the end of a pause; None where nothing has to wait.
    :ivar pauses: how many pauses there were.
    """

    __slots__ = ("bytes", "frames", "held", "pauses")

    def __init__(self, rates: InflowRates, now: float) -> None:
        self._begin(rates.bytes_per_second * VISITORS_BYTES, rates.frames_per_second * VISITORS_FRAMES, now)
        self.held: list[bytes] | None = None
        self.pauses = 0

    def logged_in(self, rates: InflowRates, now: float) -> None:
        """Read it as a user's from here on; what it has sent as a visitor is not held against it."""
        self._begin(rates.bytes_per_second, rates.frames_per_second, now)

    def _begin(self, bytes_per_second: float, frames_per_second: float, now: float) -> None:
        self.bytes = Allowance(bytes_per_second, bytes_per_second * BURST_SECONDS, now)
        self.frames = Allowance(frames_per_second, max(1.0, frames_per_second * BURST_SECONDS), now)

    def charge(self, size: int) -> None:
        """Count bytes that were not read."""
        self.bytes.remaining -= size

    def take_frame(self, now: float) -> bool:
        """Count a frame, or a piece of one; whether there was one left."""
        frames = self.frames
        if frames.remaining < 1 and frames.refill(now, 1):
            return False
        frames.remaining -= 1
        return True

    def pause(self, now: float) -> float:
        """For how many seconds reading has to pause; 0 for not at all."""
        wait = max(self.bytes.refill(now), self.frames.refill(now, 1))
        return max(wait, MIN_PAUSE) if wait else 0.0

    def hold(self, data: bytes) -> None:
        """Let what came wait for the end of the pause."""
        if self.held is None:
            self.held = []
        self.held.append(data)

    def release(self) -> bytes:
        """Take out what waits."""
        held, self.held = self.held, None
        return b"".join(held or ())
