"""Compressed messages through a real relay, with a client that compresses, too."""

from __future__ import annotations

import json
import zlib

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.support.client import Client
from tests.support.frames import frame
from tests.support.processes import peak
from tests.support.programs import StartRelay

BOTH_WAYS = pytest.mark.parametrize("fast_path", ["yes", "no"])

BOMB = 100 * 1024 * 1024


def extensions(client: Client) -> list[Extension]:
    """Return what was negotiated."""
    return list(client.socket.protocol.extensions)


@BOTH_WAYS
def test_compressed_messages_arrive_as_they_were(start_relay: StartRelay, fast_path: str) -> None:
    relay = start_relay("--compression", "yes", "--fast-path", fast_path)
    contents = ["", "hej", "räksmörgås " * 1000, json.dumps(list(range(2000)))]
    with relay.client(compression="deflate") as alice, relay.client() as bo:
        assert extensions(alice) and not extensions(bo)
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        for sender, recipient, to in ((alice, bo, 2), (bo, alice, 1)):
            for number, content in enumerate(contents):
                sender.send(to, content, id=number)
            assert [recipient.hear()["message"]["content"] for _ in contents] == contents
            assert [sender.hear()["response"] for _ in contents] == [
                {"id": number, "value": True} for number in range(len(contents))
            ]


@BOTH_WAYS
def test_bomb_of_100_mib_is_not_unpacked(start_relay: StartRelay, fast_path: str) -> None:
    # The part that fits into a message: 64 KiB that would become at least 64 MiB.
    relay = start_relay("--compression", "yes", "--fast-path", fast_path, measured=False)
    compressor = zlib.compressobj(9, wbits=-12)
    bomb = b"".join(compressor.compress(bytes(1024 * 1024)) for _ in range(BOMB // 1024**2))
    bomb += compressor.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < BOMB // 900
    with relay.client(compression="deflate") as warm:
        warm.log_in("alice-session")
        before = peak(relay.process.pid)
        for _ in range(10):
            with relay.client(compression="deflate") as client:
                client.write(frame(bomb[:65_000], fin=False, rsv=4))
                with pytest.raises(ConnectionClosed) as closed:
                    client.socket.recv(10)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
        assert peak(relay.process.pid) - before < 5e6
        warm.send(1, "still here")
        assert warm.hear()["message"]["content"] == "still here"


@pytest.mark.parametrize("bits", [None, 9, 10, 12, 15])
def test_client_with_a_smaller_window_gets_compressed_messages(start_relay: StartRelay, bits: int | None) -> None:
    offer = ClientPerMessageDeflateFactory(client_max_window_bits=True if bits is None else bits)
    relay = start_relay("--compression", "yes")
    with relay.client(extensions=[offer]) as alice:
        assert extensions(alice)
        alice.log_in("alice-session")
        alice.send(1, "räksmörgås " * 1000)
        assert alice.hear()["message"]["content"] == "räksmörgås " * 1000


@pytest.mark.parametrize("compression", ["yes", "no"])
def test_offers_that_cannot_be_accepted_are_declined(start_relay: StartRelay, compression: str) -> None:
    # zlib makes no window of 8 bits, and websockets offers them one after the other.
    relay = start_relay("--compression", compression)
    offers = [ClientPerMessageDeflateFactory(server_max_window_bits=8), ClientPerMessageDeflateFactory()]
    for offered, taken in ((offers[:1], False), (offers, compression == "yes")):
        with relay.client(extensions=offered) as alice:
            assert bool(extensions(alice)) == taken
            assert alice.log_in("alice-session")["response"] is True
