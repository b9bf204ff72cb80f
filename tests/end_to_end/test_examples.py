"""The small programs in examples/ that embed chatrelay in an application."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.example_programs import Example, SiteExample
from tests.support.v1 import ADMITTED, DENIED


@pytest.fixture
def embedded() -> Iterator[Example]:
    """Run examples/embedded.py."""
    with Example("embedded.py") as example:
        yield example


@pytest.fixture
def web_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SiteExample]:
    """Run examples/twisted_web_site.py, with further options of its relay if the test gives them."""
    program = ROOT / "examples" / "twisted_web_site.py"
    if options := getattr(request, "param", ""):
        source = program.read_text("utf-8")
        assert source.count("Config(listen=(), ") == 1
        program = tmp_path / program.name
        program.write_text(source.replace("Config(listen=(), ", f"Config(listen=(), {options}, "), "utf-8")
    with SiteExample(program) as example:
        yield example


MORE_THAN_PEOPLE_SEND = pytest.mark.parametrize("web_site", ["message_burst=10_000"], indirect=True)


@pytest.fixture
def at_site(web_site: SiteExample) -> Iterator[Callable[..., Client]]:
    """Log a user in at the site and, by its cookie, at the relay."""
    with ExitStack() as open_clients:

        def connect(name: str, **options: Any) -> Client:
            client = open_clients.enter_context(web_site.client(web_site.cookie(name), **options))
            assert client.log_in(None) == ADMITTED
            return client

        yield connect


# embedded.py -------------------------------------------------------------------


def test_embedded_relay_with_its_own_authenticator_carries_messages(embedded: Example) -> None:
    url = f"ws://127.0.0.1:{embedded.port}/"
    with Client(url) as alice, Client(url) as bo, Client(url) as stranger:
        assert alice.log_in("alice-session") == ADMITTED
        assert bo.log_in("bo-session") == ADMITTED
        assert stranger.log_in("stolen") == DENIED
        alice.send(2, "hej", id="21", time_stamp="23")
        assert bo.hear()["message"] == {"timeStamp": "23", "fromuID": 1, "touID": 2, "content": "hej"}
        assert alice.hear() == {"type": "send-request-response", "response": {"id": "21", "value": True}}


def test_ctrl_c_ends_the_application_and_its_relay(embedded: Example) -> None:
    with Client(f"ws://127.0.0.1:{embedded.port}/") as alice:
        alice.log_in("alice-session")
        embedded.process.send_signal(signal.SIGINT)
        assert alice.closed() == (4000, [])
    assert embedded.process.wait(PATIENCE) == 0
    assert "Traceback" not in "\n".join(embedded.output)


# twisted_web_site.py --------------------------------------------------------------


def test_relay_mounted_in_twisted_web_carries_messages(web_site: SiteExample, at_site: Callable[..., Client]) -> None:
    assert b"I am alice" in web_site.request("GET", "/").read()
    alice, bo = at_site("alice"), at_site("bo")
    alice.send("bo", "hej", id=21, time_stamp=23)
    assert bo.hear()["message"] == {"timeStamp": 23, "fromuID": "alice", "touID": "bo", "content": "hej"}
    assert alice.hear() == {"type": "send-request-response", "response": {"id": 21, "value": True}}
    page = web_site.request("GET", "/", Cookie=web_site.cookie("bo"))
    assert b"You are bo." in page.read()
    bo.close()
    alice.send("bo", "gone?", id=22)
    assert alice.hear()["response"] == {"id": 22, "value": False, "reason": "receiving-user-not-connected"}


def test_logout_at_the_twisted_web_site_ends_only_the_chat_of_that_browser(web_site: SiteExample) -> None:
    here, elsewhere = web_site.cookie("alice"), web_site.cookie("alice")
    with web_site.client(here) as alice, web_site.client(elsewhere) as phone:
        assert alice.log_in(None) == phone.log_in(None) == ADMITTED
        assert web_site.request("POST", "/logout", "", Cookie=here, Origin="https://elsewhere.example").status == 403
        assert web_site.request("POST", "/logout", "", Cookie=here).status == 302
        assert alice.closed() == (4505, [])
        assert b"I am alice" in web_site.request("GET", "/", Cookie=here).read()
        phone.send("alice", "still here")
        assert phone.hear()["message"]["content"] == "still here"


def test_login_as_another_user_at_the_twisted_web_site_ends_the_chat_of_the_first(
    web_site: SiteExample,
) -> None:
    cookie = web_site.cookie("alice")
    with web_site.client(cookie) as alice:
        assert alice.log_in(None) == ADMITTED
        assert web_site.request("POST", "/login", "name=bo", Cookie=cookie).status == 302
        assert alice.closed() == (4505, [])


def test_visitor_without_a_session_at_the_site_is_denied(web_site: SiteExample) -> None:
    for cookie in (None, "session=stolen", "other=" + web_site.cookie("bo").partition("=")[2]):
        with web_site.client(cookie) as stranger:
            assert stranger.log_in(None) == DENIED


def test_mounted_relay_refuses_pages_of_other_origins(web_site: SiteExample) -> None:
    cookie = web_site.cookie("alice")
    foreign = "http://127.0.0.1:1"
    for origins in (
        [foreign],
        ["null"],
        [""],
        [web_site.origin, foreign],
        [foreign, web_site.origin],
        [web_site.origin] * 2,
    ):
        headers = [("Cookie", cookie), *(("Origin", origin) for origin in origins)]
        with pytest.raises(InvalidStatus) as refusal:
            web_site.client(None, origin=None, additional_headers=headers)
        # Where Autobahn can't parse it at all, it says 400.
        expected = 403 if origins in ([foreign], ["null"]) else 400
        assert (origins, refusal.value.response.status_code) == (origins, expected)
    with web_site.client(cookie) as alice:
        assert alice.log_in(None) == ADMITTED


def test_mounted_relay_accepts_messages_up_to_its_limit(at_site: Callable[..., Client]) -> None:
    alice, bo = at_site("alice"), at_site("bo")
    request = {
        "type": "message-send-request",
        "id": 1,
        "message": {"timeStamp": 0, "touID": "bo", "content": "x" * 16384},
    }
    alice.say({**request, "padding": "x" * (60_000 - 16_384)})
    assert bo.hear()["message"]["content"] == "x" * 16384
    assert alice.hear()["response"] == {"id": 1, "value": True}
    alice.say({**request, "padding": "x" * (70_000 - 16_384)})
    assert alice.closed() == (1009, [])
    assert bo.hears_nothing()


@MORE_THAN_PEOPLE_SEND
def test_reader_of_the_mounted_relay_gets_every_message_in_order(at_site: Callable[..., Client]) -> None:
    """Send nine times unread-size to a client that reads as messages come."""
    alice, bo = at_site("alice"), at_site("bo")
    content = "x" * 16000
    for first in range(0, 600, 20):
        numbers = range(first, first + 20)
        for number in numbers:
            alice.send("bo", content, id=number, time_stamp=number)
        for number in numbers:
            assert bo.hear()["message"] == {"timeStamp": number, "fromuID": "alice", "touID": "bo", "content": content}
        assert [alice.hear()["response"] for _ in numbers] == [{"id": number, "value": True} for number in numbers]


@MORE_THAN_PEOPLE_SEND
def test_client_that_does_not_read_from_the_mounted_relay_is_closed_and_counts_as_gone(
    web_site: SiteExample, at_site: Callable[..., Client]
) -> None:
    alice = at_site("alice")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", web_site.port))
    bo = at_site("bo", sock=narrow, max_queue=1)
    delivered = 0
    # 48 MiB: the kernel's buffers take some of them, 4 MiB by default.
    for number in range(3000):
        alice.send("bo", "x" * 16384, id=number, time_stamp=number)
        answer = alice.hear()["response"]
        if not answer["value"]:
            assert answer == {"id": number, "value": False, "reason": "receiving-user-not-connected"}
            break
        delivered += 1
    else:
        pytest.fail("nothing was too much for a client that does not read")
    assert delivered > 64  # what may stay unread, 1 MiB
    code, frames = bo.closed()
    assert code in (4002, None)  # None: cut off, having read too slowly even to see the close frame
    assert [frame["message"]["timeStamp"] for frame in frames] == list(range(len(frames)))
    assert len(frames) <= delivered
    alice.send("alice", "the others are well", id="after")
    assert alice.hear()["message"]["content"] == "the others are well"


def test_ctrl_c_ends_the_site_and_its_relay(web_site: SiteExample, at_site: Callable[..., Client]) -> None:
    alice = at_site("alice")
    web_site.process.send_signal(signal.SIGINT)
    assert alice.closed() == (4000, [])
    assert web_site.process.wait(PATIENCE) == 0
    assert "Traceback" not in "\n".join(web_site.output)
