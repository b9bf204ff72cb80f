"""Limits on reading: how many bytes and frames of one connection are read in a second, and how long reading pauses.

Pure: the time is passed in, and the caller pauses the transport. This module must not know what a message means.

A client whose connection is read more slowly loses nothing. TCP makes it wait. What it has sent is read and answered
later, in order. So these limits refuse and close nobody, and a client within its limits of messages never reaches them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

MIN_READ = 512
"""Bytes that are added to the size of each read: a read of one byte costs the relay as much as that many bytes."""

BURST_SECONDS = 2
"""The burst: the bytes and frames that the limits allow in this many seconds may come at once."""

MIN_PAUSE = 0.1
"""The shortest pause, in seconds. Small pieces that arrive during the pause are read together."""

MIN_BYTES, MIN_FRAMES = 1024 * 1024, 100
"""The lowest limits, in bytes and frames a second, if the options do not set them."""

VISITORS_BYTES, VISITORS_FRAMES = 1 / 16, 1 / 2
"""The shares of the limits for a client that is not logged in: it needs to send no more than an auth-request."""

BYTES_OF_A_MESSAGE = 1.6
"""The bytes that each byte of a message of the largest size counts as, with its frames and reads (`MIN_READ`)."""

FRAMES_OF_A_MESSAGE = 9
"""The most frames that messages may be split into, on average."""

LARGE_MESSAGE = 4096
"""The size of a message, in bytes, above which its arrays and objects are counted."""

BRACKET_BYTES = 32
"""The bytes that each array or object counts as. One for every sixteen bytes of the message is not counted."""

_STRIDE = 17  # a prime, so that the sample meets every part of a short text that repeats


def weight(payload: bytes, now: float) -> int:
    """Return how many bytes a large message counts as in addition to its size.

    Arrays and objects must be parsed even in keys that are not used, and take twelve times as long as text. Their
    number is estimated from every seventeenth byte. The first of these depends on the exact time, which no client can
    predict.

    :param payload: the message.
    :param now: the time, in seconds.
    """
    sample = payload[int(now * 1e6) % _STRIDE :: _STRIDE]
    brackets = (sample.count(b"[") + sample.count(b"{")) * _STRIDE
    return max(0, brackets - len(payload) // 16) * BRACKET_BYTES


class Allowance:
    """An allowance: it limits how much is taken at once, and a second in the long run. Taking needs no clock.

    The caller takes from `remaining`, and calls `refill` when too little remains. `refill` adds what has come back
    since the last call, up to the burst. So in any period, no more is taken than twice the burst, what comes back in
    that period, and twice what is taken at once.

    :param rate: how much comes back a second; 0 for no limit.
    :param burst: how much there is at first.
    :param now: seconds of any clock, the same at each call. One that is set back brings nothing back.
    :ivar remaining: how much there was at the last refill, less what was taken since.
    """

    __slots__ = ("_at", "_burst", "_rate", "remaining")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst if rate else math.inf
        self._at = now
        self.remaining = self._burst

    def refill(self, now: float, needed: float = 0.0) -> float:
        """Add what has come back, and return the seconds until `needed` remains; 0 if it does already."""
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
        """Return the rates that the options set, or else those that messages within their limits need.

        :param bytes_per_second: None for the bytes of `messages_per_second` messages of `message_size`.
        :param frames_per_second: None for the frames of `messages_per_second` messages, and pings and pongs.
        :param messages_per_second: 0 for no limit. Then a rate that is None has no limit, either.
        :param message_size: bytes; 0 for no limit. Then `bytes_per_second` has no limit, either, if it is None.
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
    """The bytes and frames that may still be read of one connection. Before the login, they are fewer.

    :param rates: how much may be read in a second once the client is logged in.
    :param now: the time.
    :ivar bytes: bytes, and `MIN_READ` for each read.
    :ivar frames: frames that are not taken by the fast path, and pieces of frames.
    :ivar held: the bytes that wait for the end of a pause; None if nothing has to wait.
    :ivar pauses: how many pauses there were.
    """

    __slots__ = ("bytes", "frames", "held", "pauses")

    def __init__(self, rates: InflowRates, now: float) -> None:
        self._begin(rates.bytes_per_second * VISITORS_BYTES, rates.frames_per_second * VISITORS_FRAMES, now)
        self.held: list[bytes] | None = None
        self.pauses = 0

    def apply_user_limits(self, rates: InflowRates, now: float) -> None:
        """Apply a user's limits from now on. What the client sent before the login does not count."""
        self._begin(rates.bytes_per_second, rates.frames_per_second, now)

    def _begin(self, bytes_per_second: float, frames_per_second: float, now: float) -> None:
        self.bytes = Allowance(bytes_per_second, bytes_per_second * BURST_SECONDS, now)
        self.frames = Allowance(frames_per_second, max(1.0, frames_per_second * BURST_SECONDS), now)

    def charge(self, size: int) -> None:
        """Count bytes in addition to those that were read."""
        self.bytes.remaining -= size

    def take_frame(self, now: float) -> bool:
        """Count a frame, or a piece of one, and return whether it may be read now."""
        frames = self.frames
        if frames.remaining < 1 and frames.refill(now, 1):
            return False
        frames.remaining -= 1
        return True

    def pause(self, now: float) -> float:
        """Return for how many seconds reading has to pause; 0 for no pause."""
        wait = max(self.bytes.refill(now), self.frames.refill(now, 1))
        return max(wait, MIN_PAUSE) if wait else 0.0

    def hold(self, data: bytes) -> None:
        """Keep bytes that were received, until the pause ends."""
        if self.held is None:
            self.held = []
        self.held.append(data)

    def release(self) -> bytes:
        """Remove and return the bytes that wait."""
        held, self.held = self.held, None
        return b"".join(held or ())
