"""Session ids appear nowhere: all that the relay prints, stores, sends and answers is searched for them.

Each session id is a canary: two long random words, with characters between them that some encodings change. The search
looks for pieces of the words, which most encodings leave unchanged, and for their base64 and hexadecimal forms.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import signal
import socket
import struct
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support import PATIENCE, eventually, v2
from tests.support.client import Client
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.schema import V2
from tests.support.v1 import ADMITTED, DENIED, UNAVAILABLE

ORIGIN = "https://example.com"
TOKEN = "ops-token-of-tests"
PIECE = 10
"""The number of characters of a session id that are as bad as the whole of it."""


def pieces(word: str) -> Iterator[bytes]:
    """Return what a text would contain if this word, or a part of it, was in it."""
    raw = word.encode()
    texts = [raw, raw.hex().encode(), raw.hex().upper().encode(), "\\x00".join(word).encode()]
    for shift in range(3):  # base64 of something that the word begins in, anywhere
        encoded = base64.b64encode(b"\0" * shift + raw)[4:-4]
        texts += [encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))]
    for text in texts:
        for start in range(len(text) - PIECE + 1):
            yield text[start : start + PIECE]


class Canaries:
    """Session ids, and everything in which they must not appear.

    :ivar found: everything that came from the relay, by its source.
    """

    def __init__(self) -> None:
        self._words: list[str] = []
        self.found: dict[str, list[bytes]] = {}

    def make(self, between: str = "/+é =&%<'") -> str:
        """Return a new session id."""
        words = secrets.token_hex(16), secrets.token_urlsafe(24).replace("-", "x").replace("_", "y")
        self._words += words
        return between.join(words)

    def add(self, token: str) -> None:
        """Search for a text that the relay has made."""
        self._words.append(token)

    def overheard(self, where: str, what: bytes | str) -> None:
        """Keep something that came from the relay."""
        self.found.setdefault(where, []).append(what.encode("utf-8", "replace") if isinstance(what, str) else what)

    def read(self, folder: Path) -> None:
        """Keep the files of a folder, which came from the relay."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.overheard(str(file.relative_to(folder)), file.read_bytes())

    def leaks(self) -> list[tuple[str, bytes]]:
        """Return where pieces of a session id are, with the text around the first one in each place."""
        wanted = {piece for word in self._words for piece in pieces(word)}
        found = []
        for where, texts in self.found.items():
            for text in texts:
                hits = (at for at in range(len(text) - PIECE + 1) if text[at : at + PIECE] in wanted)
                first = next(hits, None)
                if first is not None:
                    found.append((where, text[max(0, first - 200) : first + 40]))
        return found


class Overheard(Client):
    """A client that keeps everything it receives."""

    def __init__(self, canaries: Canaries, url: str, cookie: str | None = None, **options: Any) -> None:
        if cookie is not None:
            options["additional_headers"] = {"Cookie": f"a=b; session={cookie}"}
            options["origin"] = ORIGIN
        super().__init__(url, **options)
        self._canaries = canaries

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Return the next frame."""
        frame = self.socket.recv(timeout)
        self._canaries.overheard("frames", frame)
        return json.loads(frame)

    def close(self) -> None:
        """Close, and keep the frames that were not read yet, and why the connection ended."""
        super().close()
        with suppress(ConnectionClosed):
            while True:
                self._canaries.overheard("frames", self.socket.recv(PATIENCE))
        self._canaries.overheard("close reasons", str(self.socket.close_reason))

    def log_in_again_and_again(self, sessid: str | None) -> Any:
        """Log in twice, and return the second answer."""
        self.log_in(sessid)
        return self.log_in(sessid)


def post(site: Site, reply: Callable[[Any, str], None]) -> None:
    """Make the site answer with the session id that it was asked about."""
    site.answer = lambda request: reply(request, site.asked[-1])


FAULTS: list[Callable[[Any, str], None]] = [
    lambda request, sessid: request.reply(500, f"<h1>no session {sessid}</h1>".encode()),
    lambda request, sessid: request.reply(500, b"", X_Session=urllib.parse.quote(sessid)),
    lambda request, sessid: request.reply(302, b"", Location=f"/login?SESSID={urllib.parse.quote(sessid)}"),
    lambda request, sessid: request.reply(302, b"", Location=f"/login/{urllib.parse.quote_plus(sessid)}/x"),
    lambda request, sessid: request.reply(200, f"<h1>no session {sessid}</h1>".encode()),
    lambda request, sessid: request.reply(200, f"no session {sessid[:20]}..., nor {sessid[-20:]}".encode()),
    lambda request, sessid: request.reply(200, sessid.encode("utf-16")),
    lambda request, sessid: request.reply(200, {"loggedin": "no", "SESSID": sessid}),
    lambda request, sessid: request.reply(200, {"loggedin": True, "uID": {sessid: sessid}}),
    lambda request, sessid: request.reply(200, {"loggedin": True, "uID": 1, "session": sessid * 200}),
    lambda request, sessid: request.reply(200, {"loggedin": True, "uID": 1, "expires_in": sessid}),
    lambda request, sessid: request.reply(200, b"", Content_Encoding="gzip", X_Session=urllib.parse.quote(sessid)),
    lambda request, sessid: request.wfile.write(f"HTTP/1.1 {urllib.parse.quote(sessid)}\r\n\r\n".encode()),
    lambda request, sessid: request.wfile.write(
        f"HTTP/1.1 200 OK\r\nContent-Length: {urllib.parse.quote(sessid)}\r\n\r\n".encode()
    ),
]
"""Invalid answers that contain the session id."""


def bad_frames(sessid: str) -> list[bytes | str]:
    """Return frames that contain the session id and can't be used."""
    quoted = json.dumps(sessid)
    return [
        sessid,
        quoted,
        f"[{quoted}]",
        f'{{"type":"auth-request","SESSID":{quoted}',
        f'{{"type":"auth-request","SESSID":{quoted}}}{quoted}',
        f'{{"type":"auth-request","SESSID":[{quoted}]}}',
        f'{{"type":"auth-request","SESSID":{{{quoted}:1}}}}',
        f'{{"type":"auth-request","SESSID":{quoted[:-1]}\\u0000"}}',
        f'{{"type":"auth-request","SESSID":{quoted[:-1]}\\ud83d"}}',
        f'{{"type":"auth-request","SESSID":{quoted[:-1]}\n"}}',
        json.dumps({"type": "auth-request", "SESSID": sessid * 200}),
        json.dumps({"type": "auth-request", "sessid": sessid}),
        json.dumps({"type": "auth-request", sessid: sessid}),
        json.dumps({"type": sessid, "SESSID": sessid}),
        json.dumps({"SESSID": sessid}),
        json.dumps({"type": "message-send-request", "id": 1, "SESSID": sessid, "message": sessid}),
        json.dumps({"type": "message-send-request", "id": 1, "message": {"touID": [sessid], "SESSID": sessid}}),
        sessid.encode(),  # binary: closes
        sessid * 2000,  # too large: closes
    ]


def raw(port: int, request: bytes) -> bytes:
    """Send bytes; return everything received up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def bad_handshakes(sessid: str) -> list[bytes]:
    """Return handshakes that contain the session id and are refused, or are not handshakes."""
    quoted = urllib.parse.quote(sessid)
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    good = f"{upgrade}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    cookie = f"Host: h\r\nCookie: session={sessid}\r\n"
    texts = [
        f"GET /?SESSID={quoted} HTTP/1.1\r\n{cookie}\r\n",
        f"GET /?SESSID={quoted} HTTP/1.0\r\n{cookie}{good}\r\n",
        f"POST /{quoted} HTTP/1.1\r\n{cookie}{good}\r\n",
        f"{quoted}\r\n\r\n",
        f"GET {quoted} HTTP/1.1\r\n{cookie}{good}\r\n",
        f"GET http://h/#{quoted} HTTP/1.1\r\n{cookie}{good}\r\n",
        f"GET / HTTP/1.1\r\n{sessid}\r\n{cookie}{good}\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{good}Sec-WebSocket-Protocol: {quoted}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{good}Sec-WebSocket-Extensions: {quoted}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{good}X-Session: {quoted}\r\nOrigin: https://evil.test\r\n\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{upgrade}Sec-WebSocket-Key: {quoted}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{upgrade.replace('13', quoted)}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{good.replace('websocket', quoted)}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{cookie}{good}X: {quoted * 300}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {quoted}:x\r\n{good}\r\n",
    ]
    return [text.encode() for text in texts]


def ask_ops(relay: RelayProcess, canaries: Canaries, sessid: str) -> None:
    """Send the ops endpoint every request with a session id, except one that ends that session."""
    quoted = urllib.parse.quote(sessid)
    bodies = [
        json.dumps({"SESSID": sessid})[:-1],
        json.dumps({sessid: sessid}),
        json.dumps({"SESSID": [sessid]}),
        json.dumps({"SESSID": sessid, "uID": 1}),
        json.dumps({"SESSID": sessid * 200}),
        json.dumps({"uID": sessid * 3}),
        sessid,
    ]
    told: list[tuple[str, str, str | None, dict[str, str]]] = [
        *(("POST", "/v1/revoke", body, {"Content-Type": "application/json"}) for body in bodies),
        ("POST", "/v1/revoke", f"SESSID={quoted}", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("POST", "/v1/revoke", json.dumps({"SESSID": sessid}), {"Content-Type": quoted}),
        ("GET", f"/v1/revoke?SESSID={quoted}", None, {}),
        ("GET", f"/{quoted}", None, {}),
        ("GET", f"/healthz?SESSID={quoted}", None, {"Cookie": f"session={quoted}"}),
        ("GET", f"/readyz?SESSID={quoted}", None, {"X": quoted}),
    ]
    for method, path, body, headers in told:
        for token in (TOKEN, quoted):
            asked = http.client.HTTPConnection("127.0.0.1", relay.ops_port, timeout=PATIENCE)
            data = None if body is None else body.encode()
            asked.request(method, path, data, {**headers, "Authorization": f"Bearer {token}"})
            answer = asked.getresponse()
            canaries.overheard("ops", f"{answer.status} {answer.headers}".encode() + answer.read())
            asked.close()
    for request in (f"{quoted}\r\n\r\n", f"GET /{quoted} HTTP/9\r\n\r\n", f"GET / HTTP/1.1\r\n{quoted}\r\n\r\n"):
        canaries.overheard("ops", raw(relay.ops_port, request.encode()))


@pytest.mark.parametrize("tickets", ["no", "yes"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_session_ids_appear_in_no_output(
    site: Site, start_relay: StartRelay, tmp_path: Path, log_format: str, tickets: str
) -> None:
    canaries = Canaries()
    (tmp_path / "token").write_text(TOKEN)
    relay = start_relay(
        *("--log-level", "debug", "--log-format", log_format, "--auth-tickets", tickets),
        *("--origin", ORIGIN, "--session-cookie", "session", "--ops-listen", "tcp:0", "--ops-token-file", "token"),
        *("--recheck-interval", "1", "--breaker-failures", "0", "--logins-per-minute", "1000"),
    )

    def client(cookie: str | None = None) -> Overheard:
        return Overheard(canaries, relay.url, cookie)

    alice, bo, handle, denied = canaries.make(), canaries.make("."), canaries.make(), canaries.make()
    site.users |= {alice: 1, bo: 2}
    # In: by message, by cookie, again, and asked about again, by a name that the site gives.
    post(site, lambda request, sessid: request.reply(200, {"loggedin": True, "uID": 1, "session": handle}))
    with client() as by_handle:
        assert by_handle.log_in(alice) == ADMITTED
        site.answer = None
        with client() as by_message, client(cookie=bo) as by_cookie:
            assert by_message.log_in_again_and_again(alice) == ADMITTED
            assert by_cookie.log_in_again_and_again(None) == ADMITTED
            by_message.send(2, "hej")
            assert by_message.hear()["response"]["value"] is True
            assert by_cookie.hear()["message"]["content"] == "hej"
            # Denied, twice of one session; the third time closes.
            assert by_message.log_in_again_and_again(denied) == DENIED
            assert by_message.log_in(canaries.make()) == DENIED
            with client(cookie=canaries.make(".")) as visitor:
                assert visitor.log_in(None) == DENIED
            # The site says it back, in every answer that is none.
            with client() as visitor:
                for fault in FAULTS:
                    post(site, fault)
                    assert visitor.log_in(canaries.make()) == UNAVAILABLE
                asked = len(site.asked)
                eventually(lambda: len(site.asked) >= asked + 2)  # the re-checks are answered so, too
            site.answer = None
            # Frames that can't be used.
            for number, frame in enumerate(bad_frames(canaries.make())):
                if number % 9 == 0:
                    visitor = client()
                visitor.say(frame)
                if number % 9 == 8 or not isinstance(frame, str) or len(frame) > 65536:
                    time.sleep(0.05)
                    visitor.close()
                    visitor = client()
            visitor.close()
            for handshake in bad_handshakes(canaries.make()):
                canaries.overheard("handshakes", raw(relay.port, handshake))
            # From outside.
            ask_ops(relay, canaries, canaries.make())
            status, answer = relay_ops(relay, {"SESSID": bo})
            assert (status, answer) == (200, {"ended": 1})
            canaries.overheard("close reasons", str(by_cookie.closed()))
        canaries.read(tmp_path)
    # Gone midway, and gone while the relay stops.
    site.answer = lambda request: time.sleep(2)
    gone = client()
    gone.say_login(canaries.make())
    pending = client()
    pending.say_login(canaries.make())
    eventually(lambda: len(site.requests) >= 2 and site.asked[-1] not in site.users)
    gone.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.socket.socket.close()
    time.sleep(0.2)
    assert relay.stop() == -signal.SIGTERM
    pending.close()
    canaries.overheard("output", "\n".join(relay.output))
    canaries.read(tmp_path)
    canaries.overheard("requests to the site", repr([list(headers.items()) for headers, _ in site.requests]))
    # That there was something to search.
    output = "\n".join(relay.output)
    for said in ("no handshake from", "could not be asked", "refused with 403", "ended by the"):
        assert said in output
    assert "chatrelay.sqlite3" in canaries.found
    assert {"frames", "close reasons", "handshakes", "ops"} <= canaries.found.keys()
    assert canaries.leaks() == []
    assert "Traceback" not in output
    assert TOKEN not in output


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_resume_tokens_appear_only_in_the_frames_to_their_client(
    site: Site, start_relay: StartRelay, tmp_path: Path, log_format: str
) -> None:
    sessids, tokens = Canaries(), Canaries()
    (tmp_path / "token").write_text(TOKEN)
    options = (
        *("--log-level", "debug", "--log-format", log_format, "--resume-key-file", "resume.key"),
        *("--origin", ORIGIN, "--session-cookie", "session", "--ops-listen", "tcp:0", "--ops-token-file", "token"),
        *("--recheck-interval", "0", "--resume-time", "2"),
    )
    relay = start_relay(*options)

    def client(cookie: str | None = None) -> Overheard:
        return Overheard(sessids, relay.url, cookie, subprotocols=[V2])

    def entered(client: Overheard, sessid: str | None, token: str | None = None) -> str:
        client.say(v2.login(sessid, resume=token))
        answer = client.hear()
        assert answer["response"] is True
        tokens.add(answer["resume"])
        return str(answer["resume"])

    alice, bo = sessids.make(), sessids.make(".")
    site.users |= {alice: 1, bo: 2}
    with client() as first, client(bo) as by_cookie:
        used = entered(first, alice)
        of_bo = entered(by_cookie, None)
        renewed = by_cookie.hear()
        assert renewed["type"] == "resume"
        tokens.add(renewed["resume"])
        with client() as second:
            second.say(v2.login(None, resume=used))
            answer = second.hear()
            if answer["response"]:  # else the machine is slow, and the token has expired
                tokens.add(answer["resume"])
            for wrong in (used[:-8], used + "AAAA", of_bo, used[:50] + "\n" + used[50:], [used], {used: used}):
                with client() as visitor:
                    visitor.say(v2.login(None, resume=wrong))
                    assert visitor.hear()["reason"] == "resume-expired"
            for frame in (used, f'{{"resume":"{used}"}}', f'{{"type":"{used}"}}', f'{{"type":"ping","id":["{used}"]}}'):
                second.say(frame)
            for where in (f"/{used}", f"/?resume={used}"):
                tokens.overheard(
                    "handshakes", raw(relay.port, f"GET {where} HTTP/1.1\r\nHost: {used}\r\n\r\n".encode())
                )
                tokens.overheard("ops", raw(relay.ops_port, f"GET {where} HTTP/1.1\r\nHost: h\r\n\r\n".encode()))
        assert relay.ops("POST", "/v1/revoke", {"SESSID": bo}, TOKEN)[0] == 200
    last = client()
    entered(last, alice)
    relay.process.send_signal(signal.SIGTERM)
    notice = last.hear()
    while notice["type"] != "closing":
        notice = last.hear()
    tokens.add(notice["resume"])
    relay.wait()
    for each in (sessids, tokens):
        each.overheard("output", "\n".join(relay.output))
        each.read(tmp_path)
    assert (tmp_path / "resume.key").read_bytes() not in b"".join(
        b"".join(texts)
        for texts in ([text for name, texts in tokens.found.items() if name != "resume.key" for text in texts],)
    )
    assert {"output", "resume.key", "chatrelay.sqlite3", "ops"} <= tokens.found.keys()
    assert "frames" in sessids.found
    assert tokens.leaks() == []
    assert sessids.leaks() == []  # frames contain tokens, but a token shows nothing that is in it


def relay_ops(relay: RelayProcess, value: object) -> tuple[int, Any]:
    """End a session through the ops endpoint."""
    return relay.ops("POST", "/v1/revoke", value, TOKEN)


def test_search_finds_session_ids_in_every_form() -> None:
    canary = Canaries()
    sessid = canary.make()
    for form in (
        sessid,
        sessid.encode("utf-16").decode("latin-1").encode("ascii", "backslashreplace").replace(b"\0", b"\\x00"),
        sessid[:20],
        sessid[-20:],
        urllib.parse.quote(sessid),
        urllib.parse.quote_plus(sessid),
        json.dumps(sessid),
        repr(sessid.encode()),
        ascii(sessid),
        sessid.encode().hex(),
        *(base64.b64encode(before + sessid.encode()) for before in (b"", b"1", b"12")),
        *(base64.urlsafe_b64encode(before + sessid.encode()) for before in (b"", b"1", b"12")),
    ):
        canary.found = {}
        canary.overheard("x", os.urandom(1000))
        assert canary.leaks() == []
        canary.overheard("here", b"x" * 1000 + (form.encode() if isinstance(form, str) else form) + b"x" * 1000)
        assert [where for where, _ in canary.leaks()] == ["here"]
