"""Every example of docs/protocol.rst, sent to a real relay.

The page is the contract, so the page itself is run. Each of its code blocks is a transcript, in the notation that its
second section explains. Text in parentheses there is an event, and `Stage` has a method for each event. An unknown
event fails the test, and so does an example that is not a transcript.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

from tests.support import ROOT
from tests.support.client import Client
from tests.support.programs import RelayProcess, Site, StartRelay
from tests.support.schema import V1, V2, check_sent, is_valid_request

PAGE = (ROOT / "docs" / "protocol.rst").read_text("utf-8")

USERS: dict[str, str | int] = {"aoeuaoeu": "293482", "snthsnth": 234324}
"""The sessions that the session page of the examples knows."""

TOKEN = "ops-token-of-tests"

BLOCK = re.compile(r"^\.\. code-block:: text\n   :name: (?P<name>\S+)\n\n(?P<body>(?:   .+\n)+)(?=\n|\Z)", re.MULTILINE)
LINE = re.compile(r"\((?P<event>.+)\)|(?P<name>\S+) (?P<arrow>[→←]) (?P<what>.+)")


def transcripts() -> dict[str, list[str]]:
    """Return the examples of the page: name -> lines."""
    return {block["name"]: [line.strip() for line in block["body"].splitlines()] for block in BLOCK.finditer(PAGE)}


ANY_INTEGER = "an integer"
"""Stands in what is expected for any integer, which the page writes as … outside of a string."""

INTEGER = re.compile("(?<=:)…(?=[,}])")


def matches(heard: Any, expected: Any) -> bool:
    """Whether a frame is what the page says: same keys, JSON types and values; "…" stands for any text."""
    if expected == "…":
        return isinstance(heard, str) and heard != ""
    if expected == ANY_INTEGER:
        return type(heard) is int
    if type(heard) is not type(expected):
        return False
    if isinstance(expected, dict):
        return heard.keys() == expected.keys() and all(matches(heard[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(heard) == len(expected) and all(map(matches, heard, expected))
    return bool(heard == expected)


@attrs.define
class Actor:
    """A person in a transcript.

    :ivar refused: the status that the handshake was refused with.
    :ivar ahead: frames that an event has read already.
    :ivar behind: whether frames may come before the close that the transcript leaves out.
    """

    client: Client | None = None
    refused: int | None = None
    ahead: list[Any] = attrs.field(factory=list)
    behind: bool = False
    gone: bool = False


EVENTS: list[tuple[re.Pattern[str], Callable[..., None]]] = []


def event(pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a method of `Stage` under the words that the page uses for it."""

    def enter(method: Callable[..., None]) -> Callable[..., None]:
        EVENTS.append((re.compile(pattern), method))
        return method

    return enter


class Stage:
    """The place where a transcript is played: a site, a relay, and the clients that connect."""

    def __init__(self, site: Site, start_relay: StartRelay, folder: Path) -> None:
        self.site = site
        self.folder = folder
        self.start_relay = start_relay
        self.actors: dict[str, Actor] = {}
        self.exchange: list[re.Match[str]] = []
        self.epoch = ""
        self.token = ""
        self._relay: RelayProcess | None = None

    def play(self, lines: list[str]) -> None:
        """Do and check what the lines say, in order; then check that nobody received anything more."""
        for line in lines:
            parts = LINE.fullmatch(line)
            assert parts, f"not in the notation: {line}"
            if parts["event"]:
                self.happens(parts["event"])
            else:
                self.exchange = [*self.exchange[-1:], parts]
                self.say_or_hear(parts)
        for name, actor in self.actors.items():
            assert actor.ahead == [], name
            if actor.client is not None and not actor.gone:
                assert actor.client.hears_nothing(0.05), name

    def close(self) -> None:
        """Close what is open."""
        for actor in self.actors.values():
            if actor.client is not None:
                actor.client.close()

    @property
    def relay(self) -> RelayProcess:
        """Return the relay, which is started at the first call."""
        if self._relay is None:
            self._relay = self.start_relay()
        return self._relay

    def happens(self, what: str) -> None:
        for pattern, method in EVENTS:
            found = pattern.fullmatch(what)
            if found:
                method(self, *found.groups())
                return
        raise AssertionError(f"no event is called so: {what}")

    def client(self, name: str) -> Client:
        """Return the client with a name, which connects at the first call."""
        if name not in self.actors:
            self.connect(name)
        client = self.actors[name].client
        assert client is not None, f"{name} is not connected"
        return client

    def say_or_hear(self, line: re.Match[str]) -> None:
        name, what = line["name"], line["what"]
        if line["arrow"] == "→":
            what = what.replace('"epoch":"…"', f'"epoch":"{self.epoch}"')
            self.client(name).say(what.replace('"resume":"…"', f'"resume":"{self.token}"'))
            return
        actor = self.actors[name]
        if what == "nothing":
            assert self.client(name).hears_nothing()
        elif found := re.fullmatch(r"closed (\d+)", what):
            code, frames = self.client(name).closed()
            assert code == int(found[1])
            assert actor.behind or frames == []
            actor.gone = True
        elif found := re.fullmatch(r"refused with (\d+)", what):
            assert actor.refused == int(found[1])
        elif found := re.fullmatch(r"accepted with (\S+)", what):
            assert (self.client(name).socket.subprotocol or "none") == found[1]
        else:
            heard = actor.ahead.pop(0) if actor.ahead else self.client(name).hear()
            expected = json.loads(INTEGER.sub(f'"{ANY_INTEGER}"', what))
            assert matches(heard, expected), f"{name} heard {heard!r}, the page has {what}"
            self.epoch = heard.get("epoch", self.epoch)
            self.token = heard.get("resume", self.token)
            check_sent(heard, self.client(name).socket.subprotocol or V1)

    def connect(self, name: str, **options: Any) -> Actor:
        assert name not in self.actors, f"{name} is connected already"
        actor = self.actors[name] = Actor()
        try:
            actor.client = self.relay.client(**options)
        except InvalidStatus as refusal:
            actor.refused = refusal.response.status_code
        return actor

    # Events, in the page's words --------------------------------------------

    @event(r"the relay was started with (.+)")
    def relay_started(self, options: str) -> None:
        assert self._relay is None, "it is the first thing that happens"
        self._relay = self.start_relay(*options.split())

    @event(r"the relay has an ops endpoint")
    def relay_started_with_ops(self) -> None:
        (self.folder / "token").write_text(TOKEN)
        self.relay_started("--ops-listen tcp:0 --ops-token-file token")

    @event(r"the session (\S+) ends at the site")
    def session_ends(self, sessid: str) -> None:
        del self.site.users[sessid]

    @event(r"the site has the sessions of (\S+) ended")
    def sessions_are_ended(self, uid: str) -> None:
        status, _ = self.relay.ops("POST", "/v1/revoke", {"uID": uid}, TOKEN)
        assert status == 200

    @event(r"the relay is stopped")
    def relay_stopped(self) -> None:
        self.relay.process.send_signal(signal.SIGTERM)

    @event(r"(\S+) connects, offering (\S+)")
    def connects_offering(self, name: str, subprotocol: str) -> None:
        self.connect(name, **({} if subprotocol == "nothing" else {"subprotocols": subprotocol.split(",")}))

    @event(r"(\S+) connects, from a page of (\S+?)(?: with the cookie (\S+))?")
    def connects_from_page(self, name: str, origin: str, cookie: str | None) -> None:
        headers = {} if cookie is None else {"Cookie": cookie}
        self.connect(name, origin=origin, additional_headers=headers)

    @event(r"(\S+) connects, with the cookie (\S+)")
    def connects_with_cookie(self, name: str, cookie: str) -> None:
        self.connect(name, additional_headers={"Cookie": cookie})

    @event(r"(\S+) connects, and sends nothing")
    def connects(self, name: str) -> None:
        self.connect(name)

    @event(r"(\S+) connects, and answers no pings")
    def connects_and_answers_no_pings(self, name: str) -> None:
        client = self.connect(name).client
        assert client is not None
        protocol = client.socket.protocol
        send_frame = protocol.send_frame
        vars(protocol)["send_frame"] = lambda frame: None if frame.opcode is Opcode.PONG else send_frame(frame)

    @event(r"(\S+) connects, and reads only when asked to")
    def connects_and_does_not_read(self, name: str) -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        narrow.connect(("127.0.0.1", self.relay.port))
        self.connect(name, sock=narrow, max_queue=1)

    @event(r"(\S+) leaves")
    def leaves(self, name: str) -> None:
        self.client(name).close()
        self.actors[name].gone = True

    @event(r"the session page answers with status (\d+)")
    def session_page_answers(self, status: str) -> None:
        self.site.answer = lambda request: request.reply(int(status), b"")

    @event(r"the session page takes (a second|two seconds)")
    def session_page_is_slow(self, how_long: str) -> None:
        def answer(request: Any) -> None:
            uid = self.site.users[self.site.asked[-1]]
            time.sleep({"a second": 1, "two seconds": 2}[how_long])
            request.reply(200, {"loggedin": True, "uID": uid})

        self.site.answer = answer

    @event(r"the session page works again")
    def session_page_works(self) -> None:
        self.site.answer = None

    @event(r"the message log's file is taken away")
    def message_log_is_taken_away(self) -> None:
        (self.relay.folder / "chatrelay.sqlite3").rename(self.relay.folder / "taken-away.sqlite3")

    @event(r"the message log can be written again")
    def message_log_is_back(self) -> None:
        self.relay.said("the message log .* can be written again")

    @event(r"(two|six) seconds pass")
    def seconds_pass(self, how_many: str) -> None:
        time.sleep({"two": 2, "six": 6}[how_many])

    @event(r"(\S+) sends (\d+) pings")
    def sends_pings(self, name: str, pings: str) -> None:
        client = self.client(name)
        with suppress(ConnectionClosed):  # before the last of them
            for _ in range(int(pings)):
                client.socket.ping()

    @event(r"(\S+) sends a binary message")
    def sends_binary(self, name: str) -> None:
        self.client(name).say(b'{"type":"auth-request","SESSID":"aoeuaoeu"}')

    @event(r"(\S+) sends a text message that is not UTF-8")
    def sends_no_utf8(self, name: str) -> None:
        self.client(name).socket.send(b'{"type":"wave","to":"\xff"}', text=True)

    @event(r"(\S+) sends a message of ([\d,]+) bytes")
    def sends_bytes(self, name: str, size: str) -> None:
        self.client(name).say("{" + " " * (int(size.replace(",", "")) - 2) + "}")

    @event(r"(\S+) sends a message in (\d+) frames")
    def sends_frames(self, name: str, frames: str) -> None:
        # The library ends a message with an empty frame.
        self.client(name).socket.send(iter(["{", *[" "] * (int(frames) - 3), "}"]))

    @event(r"the same (\d+) times more")
    def times_more(self, times: str) -> None:
        for line in self.exchange * int(times):
            self.say_or_hear(line)

    @event(r"(\S+) sends to (\S+), who does not read, until a message is refused")
    def sends_until_refused(self, sender: str, recipient: str) -> None:
        frame = {"timeStamp": 0, "touID": USERS["snthsnth"], "content": "a" * 16384}
        self.actors[recipient].behind = True
        for _ in range(4000):
            self.client(sender).say({"type": "message-send-request", "id": 7, "message": frame})
            answer = self.client(sender).hear()
            if not answer["response"]["value"]:
                self.actors[sender].ahead.append(answer)
                return
        raise AssertionError("64 MB went to somebody who does not read")


@pytest.fixture
def stage(site: Site, start_relay: StartRelay, tmp_path: Path) -> Iterator[Stage]:
    """Make an empty stage; the site knows the page's two sessions."""
    site.users.update(USERS)
    stage = Stage(site, start_relay, tmp_path)
    yield stage
    stage.close()


@pytest.mark.parametrize("name", transcripts())
def test_relay_does_what_the_page_says(name: str, stage: Stage) -> None:
    stage.play(transcripts()[name])


def test_every_example_of_the_page_is_run() -> None:
    # Text outside the transcripts holds no example: neither a block nor an object.
    assert len(transcripts()) == len(BLOCK.findall(PAGE)), "two examples have one name"
    rest = BLOCK.sub("", PAGE)
    for mark in ("code-block", "literalinclude", "parsed-literal", '{"', '"type":'):
        assert mark not in rest, f"{mark} outside of a transcript"
    assert not re.search(r"::\n\n +\S", rest), "a literal block that is not a transcript"


def test_frame_that_differs_from_the_page_is_noticed() -> None:
    for heard, expected in (
        ({"response": True}, {"response": 1}),
        ({"id": 1}, {"id": "1"}),
        ({"id": 1, "more": 2}, {"id": 1}),
        ({"id": 1}, {"id": 1, "more": 2}),
        ({"detail": ""}, {"detail": "…"}),
        ({"detail": 5}, {"detail": "…"}),
    ):
        assert not matches(heard, expected)
    assert matches({"a": {"b": "any"}}, {"a": {"b": "…"}})


def said(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield what the clients of a transcript say: (dialect, request, what this client receives next)."""
    dialects: dict[str, str] = {}
    for number, line in enumerate(lines):
        parts = LINE.fullmatch(line)
        assert parts is not None
        if offer := re.fullmatch(r"(\S+) connects, offering (\S+)", parts["event"] or ""):
            dialects[offer[1]] = V2 if V2 in offer[2] else V1
        if parts["arrow"] == "→":
            answers = (
                after["what"]
                for after in map(LINE.fullmatch, lines[number + 1 :])
                if after and after["arrow"] == "←" and after["name"] == parts["name"]
            )
            yield dialects.get(parts["name"], V1), parts["what"], next(answers, "")


@pytest.mark.parametrize("name", transcripts())
def test_request_of_the_page_that_is_not_valid_by_the_schema_is_refused_for_its_form(name: str) -> None:
    for dialect, request, answer in said(transcripts()[name]):
        try:
            is_valid = is_valid_request(json.loads(request), dialect)
        except ValueError:
            is_valid = False
        refusals = ("invalid-json", "invalid-message", "invalid-request", "invalid-auth-request", "unknown-type")
        assert is_valid or answer in ("", "nothing") or any(f'"{reason}"' in answer for reason in refusals), request
