"""TLS on both sides: clients that verify the relay, and a relay that verifies the site it asks.

The certificates are made by trustme: a root, an intermediate authority that signs, a leaf. A verifier of the leaf has
only the root, so the chain in between must be sent.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from websockets.exceptions import InvalidMessage, InvalidStatus

from tests.support import PATIENCE
from tests.support.authorities import Authorities
from tests.support.client import Client
from tests.support.programs import HIGH_RATES, RelayProcess, Site, StartRelay
from tests.support.v1 import ADMITTED, UNAVAILABLE


class TLSSite(Site):
    """The site, with a certificate."""

    def __init__(self, leaf: trustme.LeafCert, with_chain: bool = True) -> None:
        super().__init__()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if with_chain:
            leaf.configure_cert(context)
        else:
            certificate = leaf.private_key_pem.bytes() + leaf.cert_chain_pems[0].bytes()
            with trustme.Blob(certificate).tempfile() as path:
                context.load_cert_chain(path)
        # There is no connection yet; from here on each one begins with a TLS handshake.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.users["alice-session"] = 1
        self.url = f"https://127.0.0.1:{self.port}/session"


@pytest.fixture(scope="module")
def other_authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    """Make further authorities that nobody trusts."""
    return Authorities(tmp_path_factory.mktemp("tls") / "authorities")


# Clients that verify the relay -----------------------------------------------------


class TLSRelay:
    """A relay that listens with TLS."""

    def __init__(self, relay: RelayProcess, authorities: Authorities) -> None:
        self.process = relay
        self.port = relay.port
        self._trusting = authorities.trusting()

    def client(self, host: str | None = None, **options: object) -> Client:
        """Open a connection of a client that verifies the relay."""
        options.setdefault("ssl", self._trusting)
        return Client(f"wss://{host or f'127.0.0.1:{self.port}'}/", **options)

    def stranger(self) -> ssl.SSLSocket:
        """Open a TLS connection that has sent nothing yet."""
        plain = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        return self._trusting.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture
def start_tls_relay(start_relay: StartRelay, authorities: Authorities) -> Callable[..., TLSRelay]:
    """Start relays that listen with TLS."""

    def start(*options: str) -> TLSRelay:
        endpoint = authorities.endpoint(authorities.issue("127.0.0.1", "localhost"))
        return TLSRelay(start_relay("--message-log", "memory:", *HIGH_RATES, *options, listen=endpoint), authorities)

    return start


@pytest.fixture
def tls_relay(start_tls_relay: Callable[..., TLSRelay]) -> TLSRelay:
    """Start a relay that listens with TLS."""
    return start_tls_relay()


@pytest.fixture
def pair(tls_relay: TLSRelay) -> Iterator[tuple[Client, Client]]:
    """Log Alice and Bo in over TLS."""
    with tls_relay.client() as alice, tls_relay.client(f"localhost:{tls_relay.port}") as bo:
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED
        yield alice, bo


def test_messages_pass_over_tls(pair: tuple[Client, Client]) -> None:
    alice, bo = pair
    alice.send(2, "hej", id="21", time_stamp="23")
    assert bo.hear()["message"] == {"timeStamp": "23", "fromuID": 1, "touID": 2, "content": "hej"}
    assert alice.hear() == {"type": "send-request-response", "response": {"id": "21", "value": True}}


def test_client_that_does_not_trust_the_certificate_leaves_the_relay_unharmed(
    tls_relay: TLSRelay, other_authorities: Authorities
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        tls_relay.client(ssl=other_authorities.trusting())
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'elsewhere\.example'"):
        tls_relay.client(server_hostname="elsewhere.example")
    with pytest.raises(InvalidMessage):
        Client(f"ws://127.0.0.1:{tls_relay.port}/")  # no TLS at all
    with tls_relay.client() as alice:
        assert alice.log_in("alice-session") == ADMITTED
    tls_relay.process.stop()
    assert "Traceback" not in "\n".join(tls_relay.process.output)


def test_large_messages_pass_over_tls_up_to_the_limit(pair: tuple[Client, Client]) -> None:
    alice, bo = pair
    request = {"type": "message-send-request", "id": 1, "message": {"timeStamp": 0, "touID": 2, "content": "x" * 16384}}
    alice.say({**request, "padding": "x" * (60_000 - 16_384)})
    assert bo.hear()["message"]["content"] == "x" * 16384
    assert alice.hear()["response"] == {"id": 1, "value": True}
    alice.say({**request, "padding": "x" * (70_000 - 16_384)})
    assert alice.closed() == (1009, [])
    assert bo.hears_nothing()


def test_many_messages_pass_over_tls_in_order(pair: tuple[Client, Client]) -> None:
    """Send twenty times unread-size, in both directions at once, to clients that read as messages come."""
    alice, bo = pair
    for batch in range(25):
        for number in range(batch * 50, batch * 50 + 50):
            alice.send(2, "a" * 16000, id=number, time_stamp=number)
            bo.send(1, "b" * 16000, id=number, time_stamp=number)
        for client, letter in ((alice, "b"), (bo, "a")):
            frames = [client.hear() for _ in range(100)]
            messages = [frame["message"] for frame in frames if frame["type"] == "message"]
            answers = [frame["response"] for frame in frames if frame["type"] == "send-request-response"]
            assert [message["timeStamp"] for message in messages] == list(range(batch * 50, batch * 50 + 50))
            assert {message["content"] for message in messages} == {letter * 16000}
            assert answers == [{"id": batch * 50 + number, "value": True} for number in range(50)]


def test_client_that_does_not_read_over_tls_is_closed_and_counts_as_gone(tls_relay: TLSRelay) -> None:
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", tls_relay.port))
    with tls_relay.client() as alice, tls_relay.client(sock=narrow, max_queue=1) as bo:
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED
        # 48 MiB: the kernel's buffers take some of them, 4 MiB by default.
        for number in range(3000):
            alice.send(2, "x" * 16384, id=number)
            answer = alice.hear()["response"]
            if not answer["value"]:
                assert answer == {"id": number, "value": False, "reason": "receiving-user-not-connected"}
                assert number > 64  # what may stay unread, 1 MiB
                break
        else:
            pytest.fail("nothing was too much for a client that does not read")
        code, _ = bo.closed()
        assert code in (4002, None)  # None: cut off, having read too slowly even to see the close frame
        alice.send(1, "the others are well")
        assert alice.hear()["message"]["content"] == "the others are well"


def test_sigterm_closes_with_4000_over_tls(tls_relay: TLSRelay, pair: tuple[Client, Client]) -> None:
    tls_relay.process.process.terminate()
    assert [client.closed() for client in pair] == [(4000, []), (4000, [])]
    assert tls_relay.process.wait() == -15
    assert "Traceback" not in "\n".join(tls_relay.process.output)


def test_refused_client_over_tls_that_stays_is_aborted(start_tls_relay: Callable[..., TLSRelay]) -> None:
    relay = start_tls_relay("--origin", "https://example.com")
    with pytest.raises(InvalidStatus):
        relay.client(origin="https://elsewhere.example")
    with relay.stranger() as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stranger.recv(4096).startswith(b"HTTP/1.1 426 ")
        # TLS says goodbye and TCP stays, for as long as the client likes; the relay likes 2 s.
        begun = time.monotonic()
        plain = socket.socket(fileno=stranger.detach())
    with plain:
        plain.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            while plain.recv(4096):
                pass
            while time.monotonic() < begun + PATIENCE:
                plain.send(b"x")
                time.sleep(0.1)
    assert time.monotonic() - begun < 5


def test_unfinished_tls_handshake_is_aborted_after_handshake_timeout(start_tls_relay: Callable[..., TLSRelay]) -> None:
    relay = start_tls_relay("--handshake-timeout", "1")
    with socket.create_connection(("127.0.0.1", relay.port)) as silent, relay.client() as alice:
        silent.settimeout(PATIENCE)
        begun = time.monotonic()
        with pytest.raises(ConnectionResetError):
            silent.recv(1)
        assert time.monotonic() - begun > 0.5
        assert alice.log_in("alice-session") == ADMITTED  # whose handshake was in time


# The relay that verifies the site -----------------------------------------------------


def test_wire_carries_only_tls_records_over_tls(tls_relay: TLSRelay) -> None:
    # The direct write to a plain TCP socket must never be used here: it
    # would go out beside the TLS records, in plain text.
    with (
        Wire(tls_relay.port) as wire,
        tls_relay.client(f"127.0.0.1:{wire.port}") as alice,
        tls_relay.client(f"127.0.0.1:{wire.port}") as bo,
    ):
        alice.log_in("alice-session")
        bo.log_in("bo-session")
        for number in range(50):
            alice.send(2, f"canary {number}", id=number)
            assert bo.hear()["message"]["content"] == f"canary {number}"
            assert alice.hear()["response"] == {"id": number, "value": True}
    streams = wire.seen()
    assert len(streams) == 4
    for stream in streams:
        assert b"canary" not in stream
        assert b"auth-response" not in stream
        while stream:
            # A TLS record: its type, the version, the length (RFC 8446, section 5.1).
            assert stream[0] in (20, 21, 22, 23)
            assert stream[1] == 3
            stream = stream[5 + int.from_bytes(stream[3:5], "big") :]


class Wire:
    """A cable between clients and the relay that keeps what passes through it, separately for each direction."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._streams: list[bytearray] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Wire:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def seen(self) -> list[bytes]:
        """Return what has passed, once everything has."""
        for thread in self._threads[1:]:
            thread.join(10)
        return [bytes(stream) for stream in self._streams]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        for _ in range(2):
            near, _address = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            self._start(self._carry, near, far)
            self._start(self._carry, far, near)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        stream = bytearray()
        self._streams.append(stream)
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                stream += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def start_site() -> Iterator[Callable[..., TLSSite]]:
    """Start sites with certificates."""
    with ExitStack() as running:

        def start(leaf: trustme.LeafCert, **options: bool) -> TLSSite:
            site = TLSSite(leaf, **options)
            running.callback(site.close)
            return site

        yield start


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[StartRelay]:
    """Start relays that ask a site."""
    with ExitStack() as running:

        def start(url: str, *options: str, **environment: str) -> RelayProcess:
            relay = RelayProcess(tmp_path, "--auth-url", url, "--message-log", "memory:", *options, **environment)
            return running.enter_context(relay)

        yield start


def log_in(relay: RelayProcess) -> object:
    """Return the outcome of Alice's login."""
    with relay.client() as alice:
        return alice.log_in("alice-session")


def told(relay: RelayProcess) -> list[str]:
    """Return what is logged about the site."""
    relay.stop()
    assert "Traceback" not in "\n".join(relay.output)
    return [line.partition("could not be asked: ")[2] for line in relay.output if "could not be asked" in line]


def test_site_is_verified_against_the_ca_file(
    authorities: Authorities, start_site: Callable[..., TLSSite], asking: StartRelay
) -> None:
    site = start_site(authorities.issue("127.0.0.1", "localhost"))
    for url in (site.url, site.url.replace("127.0.0.1", "localhost")):
        relay = asking(url, "--auth-ca-file", str(authorities.root))
        assert [log_in(relay), log_in(relay)] == [ADMITTED, ADMITTED]
        assert told(relay) == []


def test_site_is_verified_against_the_authorities_of_the_system_without_a_ca_file(
    authorities: Authorities, start_site: Callable[..., TLSSite], asking: StartRelay
) -> None:
    site = start_site(authorities.issue("127.0.0.1"))
    relay = asking(site.url)
    assert log_in(relay) == UNAVAILABLE
    (line,) = told(relay)
    assert "certificate verify failed" in line
    assert site.asked == []  # the SESSID went to nobody
    trusting_system = asking(site.url, SSL_CERT_FILE=str(authorities.root))
    assert log_in(trusting_system) == ADMITTED


def test_site_of_unknown_authorities_is_not_asked(
    authorities: Authorities,
    other_authorities: Authorities,
    start_site: Callable[..., TLSSite],
    asking: StartRelay,
) -> None:
    site = start_site(other_authorities.issue("127.0.0.1"))
    relay = asking(site.url, "--auth-ca-file", str(authorities.root))
    assert log_in(relay) == UNAVAILABLE
    (line,) = told(relay)
    assert "certificate verify failed" in line
    assert site.asked == []


def test_site_with_a_certificate_of_another_name_is_not_asked(
    authorities: Authorities, start_site: Callable[..., TLSSite], asking: StartRelay
) -> None:
    site = start_site(authorities.issue("elsewhere.example", "127.0.0.2"))
    for url in (site.url, site.url.replace("127.0.0.1", "localhost")):
        relay = asking(url, "--auth-ca-file", str(authorities.root))
        assert log_in(relay) == UNAVAILABLE
        (line,) = told(relay)
        assert "127.0.0.1" in line or "localhost" in line
    assert site.asked == []


def test_site_that_does_not_send_its_chain_is_not_asked(
    authorities: Authorities, start_site: Callable[..., TLSSite], asking: StartRelay
) -> None:
    site = start_site(authorities.issue("127.0.0.1"), with_chain=False)
    relay = asking(site.url, "--auth-ca-file", str(authorities.root))
    assert log_in(relay) == UNAVAILABLE
    (line,) = told(relay)
    assert "certificate verify failed" in line


def test_site_without_tls_is_not_asked(site: Site, asking: StartRelay) -> None:
    relay = asking(site.url.replace("http:", "https:"))
    assert log_in(relay) == UNAVAILABLE
    (line,) = told(relay)
    assert "SSL" in line or "TLS" in line
