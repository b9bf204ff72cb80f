"""The demo as a program and as a website."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser.people import Demo, Line, People, ask, start_demo

# ---- The demo as a program ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_demo_cleanly(demo: Demo, number: signal.Signals) -> None:
    assert demo.stop(number) == (0, "")


def test_ctrl_c_ends_the_demo_with_people_connected(demo: Demo, people: People) -> None:
    anna = people.log_in("Anna")
    assert demo.stop(signal.SIGINT) == (0, "")
    anna.state("waiting").wait_for()


def test_second_ctrl_c_ends_the_demo_at_once(demo: Demo, people: People, line: Line) -> None:
    people.log_in("Anna")
    line.hold_answers()  # so that the relay waits for the browser's farewell
    demo.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert demo.process.poll() is None
    assert demo.stop(signal.SIGINT) == (1, "")


def test_demo_prints_its_addresses_and_the_path_of_its_message_log(tmp_path: Path, ports: dict[str, int]) -> None:
    demo = Demo(ports["website"], ports["relay"], tmp_path)
    printed = demo.start()
    demo.stop()
    assert f"http://127.0.0.1:{ports['website']}" in printed
    assert f"http://localhost:{ports['website']}" in printed
    assert "messages --message-log sqlite:chatrelay-demo.sqlite3" in printed
    assert (tmp_path / "chatrelay-demo.sqlite3").exists()


@pytest.mark.parametrize("taken", ["website", "relay"])
def test_port_in_use_is_reported_plainly(tmp_path: Path, ports: dict[str, int], taken: str) -> None:
    with socket.create_server(("127.0.0.1", ports[taken])):
        process = start_demo(tmp_path, "--port", str(ports["website"]), "--relay-port", str(ports["relay"]))
        printed, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert printed == ""
    assert f"Port {ports[taken]}, which the {taken} needs, is in use" in complaint
    assert "make run PORT=8001 RELAY_PORT=8081" in complaint
    assert "Traceback" not in complaint


def test_folder_that_cannot_be_made_is_reported_plainly(tmp_path: Path, ports: dict[str, int]) -> None:
    (tmp_path / "file").touch()
    process = start_demo(
        tmp_path,
        *("--port", str(ports["website"]), "--relay-port", str(ports["relay"]), "--directory", "file/below"),
    )
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "The message log can't be kept in file/below" in complaint
    assert "Traceback" not in complaint


def test_message_log_that_cannot_be_opened_is_reported_plainly(tmp_path: Path, ports: dict[str, int]) -> None:
    (tmp_path / "chatrelay-demo.sqlite3").mkdir()
    process = start_demo(tmp_path, "--port", str(ports["website"]), "--relay-port", str(ports["relay"]))
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "The demo can't start: " in complaint
    assert "Traceback" not in complaint


# ---- The website ----------------------------------------------------------------------------------


def test_every_answer_has_the_policies(demo: Demo) -> None:
    relay = f"ws://127.0.0.1:{demo.relay_port} ws://localhost:{demo.relay_port}"
    for path in ("", "login", "whoami", "session", "static/chat.js", "static/nothing", "nothing"):
        _, headers, _ = ask(demo.url + path)
        assert headers["Content-Security-Policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            f"connect-src 'self' {relay}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"


def test_session_endpoint_knows_only_sessions(demo: Demo, people: People) -> None:
    anna = people.log_in("Anna")
    (cookie,) = anna.page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("demo_session", True, "Lax")

    def whose(token: str) -> Any:
        return json.loads(ask(demo.url + "session", data=f"SESSID={token}".encode())[2])

    assert whose(cookie["value"]) == {"loggedin": True, "uID": 1}
    assert whose(cookie["value"] + "x") == {"loggedin": False}
    assert whose("") == {"loggedin": False}

    anna.page.get_by_role("button", name="Log out").click()
    anna.page.get_by_role("heading", name="Who are you?").wait_for()
    assert whose(cookie["value"]) == {"loggedin": False}


def test_page_of_another_site_cannot_log_a_visitor_in(demo: Demo) -> None:
    status, headers, _ = ask(demo.url + "login", data=b"name=Anna", headers={"Origin": "https://elsewhere.example"})
    assert status == 403
    assert "Set-Cookie" not in headers


def test_other_name_of_the_machine_is_another_site(demo: Demo) -> None:
    status, _, text = ask(demo.url, headers={"Host": f"rebound.example:{demo.port}"})
    assert status == 421
    assert demo.url.rstrip("/") in text


def test_page_at_a_wrong_address_links_to_the_right_one(demo: Demo, people: People) -> None:
    anna = people.log_in("Anna")
    for path, status, text in (
        ("nothing", 404, "There is no such page"),
        ("static/nothing.js", 404, "There is no such page"),
        ("static", 404, "There is no such page"),
        ("login/further", 404, "There is no such page"),
        ("login", 405, "To log in, choose a person"),
        ("logout", 405, "To log out, press the button"),
        ("session", 405, "The relay asks here"),
    ):
        answer = anna.page.goto(demo.url + path)
        assert answer is not None
        assert answer.status == status, path
        anna.page.get_by_text(text).wait_for()
        anna.page.get_by_role("link", name="Go to the chat").click()
        anna.state("connected").wait_for()
        head, _, nothing = ask(demo.url + path, method="HEAD")
        assert (head, nothing) == (status, ""), path
    assert ask(demo.url + "login")[1]["Allow"] == "POST"
    assert ask(demo.url, method="DELETE")[1]["Allow"] == "GET, HEAD"
