"""Hostile clients that are silent, slow, huge or endless, while a member logs in.

The attackers come from many addresses of 127.0.0.0/8, the member from 127.0.0.1. So each attacker meets the limit that
its trial is about, and not the one on connections per address.
"""

from __future__ import annotations

import socket
import time
import zlib
from contextlib import suppress

import pytest

from tests.support.evidence import Evidence
from tests.support.frames import CONTINUATION, DEFLATE, HANDSHAKE, PING, fragments, frame, handshake
from tests.trials.crowd import address, close_code, farewell, opened, sent_of, still_open, to_the_end
from tests.trials.siege import MEBIBYTE, Begin, siege

__all__ = ["siege"]

pytestmark = pytest.mark.alone

HEADER = 20_000_000
"""Bytes."""

HANDSHAKE_SIZE, MESSAGE_FRAMES, CONTROL_FRAMES = 16384, 64, 10
"""The defaults of handshake-size, message-frames and control-frames-per-second."""

BUFFERED = 512 * 1024
"""Bytes of what was sent that may be in the kernel's buffers, where an attacker's own is `SMALL` and the relay reads no more."""

SMALL = 16384

FRAGMENTS = 1_000_000
PINGS = 100_000

BOMBS = 500
BOMBERS = 10
"""At once."""

MOST_GROWN = 16
"""MiB: a quarter of one bomb. zlib's memory of those who have left waits for the garbage collector."""

LARGEST_FRAME = 65_000
"""Bytes of a bomb that fit into one frame and decompress to 64 MiB."""


def test_silent_connections_are_closed_and_logins_stay_fast(siege: Begin, full: bool, evidence: Evidence) -> None:
    """5,000 silent connections (1,000 in the short form), 500 a second, 100 per address, are closed after 5 s."""
    number = 5000 if full else 1000
    with siege(number * 0.03) as attack:
        begun = time.monotonic()
        for each in range(number):
            attack.crowd.connect(address(each // 100))
            time.sleep(max(0.0, begun + each / 500 - time.monotonic()))
        evidence.count("silent connections", len(attack.crowd.sockets), number)
        assert still_open(attack.crowd.sockets[-10:]) == 10
        attack.ended(8)
        evidence.figure(f"all cut {time.monotonic() - begun:.1f} s after the first came")


def test_slow_headers_are_closed_and_logins_stay_fast(siege: Begin, full: bool, evidence: Evidence) -> None:
    """1,000 endless handshakes (200 in the short form) are closed after 5 s."""
    number = 1000 if full else 200
    sent = 0
    with siege(number * 0.03 + 2) as attack:
        for each in range(number):
            attack.crowd.connect(address(each // 100), HANDSHAKE[:-2])
        begun = time.monotonic()
        for _ in range(4):
            time.sleep(1)
            for one in attack.crowd.sockets:
                with suppress(ConnectionError):  # the first ones' time is over
                    sent += one.send(b"x")
        attack.ended(5)
        took = time.monotonic() - begun
    evidence.count("header bytes, one a second each", sent, number * 3)
    evidence.figure(f"cut after {took:.1f} s")


def test_header_of_20_mb_is_refused_and_logins_stay_fast(siege: Begin, evidence: Evidence) -> None:
    """A handshake of 20 MB is answered with 431 at 16 KiB; what is sent beyond that is in the kernel's buffers."""
    attackers, sent, most_sent = 0, 0, 0
    data = HANDSHAKE[:-2] + b"X-Long: " + b"x" * HEADER
    with siege(8) as attack:
        while attackers < 20 or attack.lasts():
            one = attack.crowd.connect(address(attackers))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            sent_of_this = sent_of(one, data)
            assert sent_of_this < HANDSHAKE_SIZE + BUFFERED
            answer = to_the_end(one)
            assert answer.startswith(b"HTTP/1.1 431 "), answer
            assert f"larger than {HANDSHAKE_SIZE} bytes".encode() in answer
            attackers += 1
            sent += sent_of_this
            most_sent = max(most_sent, sent_of_this)
        attack.ended(5)
    evidence.count("headers of 20 MB begun and answered 431", attackers, 20)
    evidence.count("bytes of them that could be sent", sent, 20 * HANDSHAKE_SIZE)
    evidence.figure(f"at most {most_sent / 1024:.0f} KiB of one")


def test_million_empty_fragments_close_and_logins_stay_fast(siege: Begin, evidence: Evidence) -> None:
    """A message of a million empty fragments is closed with 1002 after 64.

    A ping after the 64th is answered, and one after the 65th is not, which shows how many were taken.
    """
    empty, ping = frame(b"", CONTINUATION, fin=False), frame(b"", PING)
    begins = frame(b"", fin=False) + empty * (MESSAGE_FRAMES - 1) + ping + empty + ping
    flood = begins + empty * (FRAGMENTS - MESSAGE_FRAMES - 1)
    attackers, sent, most_sent = 0, 0, 0
    with siege(8) as attack:
        while attackers < 10 or attack.lasts():
            one = opened(attack.crowd, address(attackers))
            sent_of_this = sent_of(one, flood)
            code, reason, pongs = farewell(one)
            assert (code, reason) == (1002, f"a message in more than {MESSAGE_FRAMES} frames")
            assert pongs == 1
            attackers += 1
            sent += sent_of_this // len(empty)
            most_sent = max(most_sent, sent_of_this // len(empty))
        attack.ended(5)
    evidence.count("messages of a million empty fragments, closed with 1002", attackers, 10)
    evidence.count("fragments that could be sent", sent, 10 * (MESSAGE_FRAMES + 1))
    evidence.figure(f"64 were taken, and at most {most_sent:,} of a million sent")


def test_100_000_unread_pings_close_and_logins_stay_fast(siege: Begin, evidence: Evidence) -> None:
    """A client that sends 100,000 pings and reads no pong is closed with 1002 after 20 pings and those that its rate
    allows.
    """
    ping = frame(b"x" * 125, PING)
    flood = ping * PINGS
    attackers, sent, most_sent, most_answered = 0, 0, 0, 0
    with siege(8) as attack:
        while attackers < 10 or attack.lasts():
            one = opened(attack.crowd, address(attackers))
            begun = time.monotonic()
            # The relay stops reading from it when it closes it, and aborts it 2 s later.
            sent_of_this = sent_of(one, flood, patience=0.1)
            code, reason, pongs = farewell(one)
            took = time.monotonic() - begun
            assert 2 * CONTROL_FRAMES <= pongs <= CONTROL_FRAMES * (2 + took)
            assert (code, reason) == (1002, f"more than {CONTROL_FRAMES} pings and pongs a second")
            attackers += 1
            sent += sent_of_this // len(ping)
            most_sent = max(most_sent, sent_of_this // len(ping))
            most_answered = max(most_answered, pongs)
        attack.ended(5)
    evidence.count("floods of 100,000 pings, closed with 1002", attackers, 10)
    evidence.count("pings that could be sent", sent, 10 * 2 * CONTROL_FRAMES)
    evidence.figure(f"at most {most_answered} of one were answered, and {most_sent:,} sent")


def deflated_zeros(mebibytes: int) -> bytes:
    """Return zeros, compressed to a thousandth of their size."""
    compressor = zlib.compressobj(9, wbits=-12)
    return b"".join(compressor.compress(bytes(MEBIBYTE)) for _ in range(mebibytes)) + compressor.flush()


def test_deflate_bombs_are_refused_and_logins_stay_fast(siege: Begin, evidence: Evidence) -> None:
    """100 MiB of compressed zeros, in one frame as far as they fit and in 60, repeatedly, are closed with 1009."""
    zeros = deflated_zeros(100)
    bombs = (
        frame(zeros[:LARGEST_FRAME], rsv=4),
        frame(zeros[:LARGEST_FRAME], fin=False, rsv=4),
        fragments(zeros, 60, rsv=4),
        fragments(
            zeros[:LARGEST_FRAME], LARGEST_FRAME // 60, rsv=4
        ),  # more of them than a message may have, if it came to that
    )
    exploded = 0
    with siege(MOST_GROWN, "--compression", "yes") as attack:
        while exploded < BOMBS or attack.lasts():
            attack.crowd.leave()  # to come back at once
            bombers = [
                opened(attack.crowd, address(each), handshake(f"{DEFLATE}; client_max_window_bits"))
                for each in range(BOMBERS)
            ]
            for each, one in enumerate(bombers):
                sent_of(one, bombs[(exploded + each) % len(bombs)])
            codes = {close_code(one) for one in bombers}
            assert codes == {1009}
            exploded += BOMBERS
        attack.ended(5)
    evidence.count("bombs of 64 or 100 MiB", exploded, BOMBS)
