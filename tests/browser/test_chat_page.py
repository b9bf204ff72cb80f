"""
The demo and its chat page, as two people at two browsers see them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.browser.people import Demo, Line, People, Person, start_demo
from tests.support.client import Client

PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}


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


def ask(url: str, **request: Any) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **request), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


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


# ---- Two people -------------------------------------------------------------------------------------


def test_two_users_exchange_messages(demo: Demo, people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    anna.open("Bo")
    anna.write("Hej Bo!\nAre you there?")
    anna.line("Hej Bo! Are you there?", "delivered").wait_for()

    bo.in_list("Anna").get_by_text("1 unread").wait_for()
    assert bo.page.title() == "(1) Bo – chatrelay demo"
    bo.open("Anna")
    bo.line("Hej Bo! Are you there?", "received").wait_for()
    assert bo.page.get_by_text("unread").count() == 0
    assert bo.page.title() == "Bo – chatrelay demo"
    bo.write("I am.")
    anna.line("I am.", "received").wait_for()

    rows = sqlite3.connect(demo.directory / "chatrelay-demo.sqlite3").execute("SELECT content FROM message").fetchall()
    assert rows == [("Hej Bo!\nAre you there?",), ("I am.",)]
    assert anna.complaints == bo.complaints == []


def test_message_to_an_absent_user_is_marked_and_can_be_sent_again(people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    anna.open("Bo")
    anna.write("Still there?")
    anna.line("Still there?", "delivered").wait_for()
    people.goes(bo)
    anna.write("One more thing")
    anna.line("One more thing", "refused").get_by_text("Bo isn’t online right now – not delivered.").wait_for()

    bo.page = bo.page.context.new_page()
    bo.page.goto(anna.page.url.partition("#")[0])
    bo.state("connected").wait_for()
    anna.page.get_by_role("button", name="Try again").click()
    anna.line("One more thing", "delivered").wait_for()
    assert anna.page.locator(".line").count() == 2
    bo.in_list("Anna").get_by_text("One more thing").wait_for()


def test_message_to_oneself_is_shown_once_in_each_tab(people: People) -> None:
    anna = people.log_in("Anna")
    elsewhere = Person(anna.page.context.new_page())
    elsewhere.page.goto(anna.page.url)
    elsewhere.state("connected").wait_for()
    for tab in (anna, elsewhere):
        tab.open("Anna")
    anna.write("Buy bread")
    for tab in (anna, elsewhere):
        tab.line("Buy bread", "delivered").wait_for()
    anna.page.wait_for_timeout(300)
    assert anna.page.locator(".line").count() == elsewhere.page.locator(".line").count() == 1


def test_message_is_shown_as_text(people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    anna.open("Bo")
    attack = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    anna.write(attack)
    anna.line(attack, "delivered").wait_for()
    bo.in_list("Anna").get_by_text(attack).wait_for()
    bo.open("Anna")
    bo.line(attack, "received").wait_for()
    for person in (anna, bo):
        assert person.page.locator("main img, main script").count() == 0
        assert "pwned" not in person.page.title()
        # Had it become an element, the content security policy would have complained.
        assert person.complaints == []


def test_two_names_of_the_machine_are_two_logins_in_one_browser(demo: Demo, people: People) -> None:
    anna = people.log_in("Anna")
    anna.page.get_by_role("link", name=f"localhost:{demo.port}").wait_for()
    bo = Person(anna.page.context.new_page())
    bo.page.goto(f"http://localhost:{demo.port}/")
    bo.log_in("Bo")
    anna.open("Bo")
    anna.write("Two of us in one browser")
    bo.in_list("Anna").get_by_text("Two of us in one browser").wait_for()


def test_reload_keeps_the_conversation_and_logout_removes_it(people: People) -> None:
    anna = people.log_in("Anna")
    people.log_in("Bo")
    anna.open("Bo")
    anna.write("Remember me")
    anna.line("Remember me", "delivered").wait_for()
    anna.page.get_by_role("textbox").fill("half a thou")
    anna.page.reload()
    anna.line("Remember me", "delivered").wait_for()
    assert anna.page.get_by_role("textbox").input_value() == "half a thou"

    anna.page.get_by_role("button", name="Log out").click()
    anna.log_in("Anna")
    anna.open("Bo")
    assert anna.page.locator(".line").count() == 0


def test_new_message_does_not_scroll_a_reader_away(people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo", viewport={"width": 800, "height": 400})
    anna.open("Bo")
    bo.open("Anna")
    for number in range(8):
        anna.write(f"message {number}")
        bo.line(f"message {number}", "received").wait_for()
    scroll = bo.page.locator("#scroll")
    gap = "e => e.scrollHeight - e.scrollTop - e.clientHeight"
    assert scroll.evaluate(gap) < 2
    scroll.evaluate("e => e.scrollTo(0, 0)")
    bo.page.wait_for_timeout(100)
    anna.write("one more")
    newer = bo.page.get_by_role("button", name="New messages")
    newer.wait_for()
    bo.page.get_by_role("textbox").fill("a\nlong\ndraft")
    assert scroll.evaluate("e => e.scrollTop") == 0
    newer.click()
    newer.wait_for(state="hidden")
    assert scroll.evaluate(gap) < 2


def test_page_without_an_answer_of_its_site_reports_it(people: People) -> None:
    anna = people.arrive()
    anna.page.route("**/whoami", lambda route: route.abort())
    anna.page.get_by_role("button", name="Anna").click()
    anna.page.get_by_text("The chat could not be loaded.").wait_for()
    anna.page.unroute("**/whoami")
    anna.page.get_by_role("button", name="Reload").click()
    anna.state("connected").wait_for()


def test_too_long_message_is_not_sent(people: People) -> None:
    anna = people.log_in("Anna")
    people.log_in("Bo")
    anna.open("Bo")
    anna.write("ä" * 8193)
    anna.page.get_by_text("Too long by 2 bytes.").first.wait_for()
    assert anna.page.locator(".line").count() == 0
    anna.write("ä" * 8192)
    anna.line("ä" * 8192, "delivered").wait_for()


# ---- A connection that breaks -------------------------------------------------------------------------


def test_page_reconnects_and_sends_what_was_written_meanwhile(people: People, line: Line) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    anna.open("Bo")
    line.cut()
    for person in (anna, bo):
        person.state("waiting").wait_for()
    anna.page.get_by_text(re.compile(r"No connection to the chat\. Trying again in \d+ s\.")).wait_for()
    for text in ("first", "second", "third"):
        anna.write(text)
        anna.line(text, "waiting").get_by_text("Not sent yet").wait_for()
    anna.line("second", "waiting").get_by_role("button", name="Don’t send").click()

    line.repair()
    bo.state("connected").wait_for()
    anna.state("connected").wait_for()
    assert anna.page.locator("#trouble").is_hidden()
    # Whether Bo was back before Anna is chance; that nothing is lost is not.
    for text in ("first", "third"):
        anna.page.locator(".line:is([data-status=delivered], [data-status=refused])").get_by_text(text).wait_for()
    assert anna.page.locator(".line .text").all_inner_texts() == ["first", "third"]


def test_attempts_to_reconnect_become_rarer(people: People, line: Line) -> None:
    anna = people.log_in("Anna")
    anna.page.clock.install()
    line.cut()
    attempts: list[str] = []
    anna.page.on("websocket", lambda socket: attempts.append(socket.url))
    for _ in range(60):
        anna.page.clock.run_for(1_000)
        anna.page.wait_for_timeout(20)
    # 1 + 2 + 4 + 8 + 16 + 30 s, each between half and the whole of it.
    assert 4 <= len(attempts) <= 8


def test_unanswered_message_is_shown_as_unanswered(people: People, line: Line) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    anna.open("Bo")
    line.hold_answers()
    anna.write("Can you hear me?")
    anna.line("Can you hear me?", "sending").wait_for()
    line.cut()
    anna.line("Can you hear me?", "unknown").get_by_text("No answer – it may or may not have arrived.").wait_for()
    anna.line("Can you hear me?", "unknown").get_by_role("button", name="Send again").wait_for()
    bo.state("waiting").wait_for()


def test_silent_connection_is_given_up(people: People, line: Line) -> None:
    anna = people.log_in("Anna")
    people.log_in("Bo")
    anna.open("Bo")
    anna.page.clock.install()
    line.hold_answers()
    anna.write("Can you hear me?")
    anna.page.clock.run_for(19_000)
    anna.line("Can you hear me?", "sending").wait_for()
    anna.page.clock.run_for(2_000)
    anna.line("Can you hear me?", "unknown").wait_for()
    assert anna.state("connected").count() == 0


def test_restart_of_the_site_logs_the_page_out_and_keeps_its_messages(demo: Demo, people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    anna.open("Bo")
    anna.write("Before")
    anna.line("Before", "delivered").wait_for()
    bo.leave()
    people.everybody.remove(bo)
    demo.stop()
    anna.state("waiting").wait_for()
    anna.write("Meanwhile")
    anna.line("Meanwhile", "waiting").wait_for()
    # It may be long ago by the time of the next login: nothing is sent behind the writer's back.

    demo.start()
    anna.state("logged-out").wait_for()
    anna.page.get_by_text("You are logged out.", exact=True).first.wait_for()
    anna.page.get_by_role("button", name="Log in again").click()
    anna.log_in("Anna")
    anna.open("Bo")
    anna.line("Before", "delivered").wait_for()
    anna.line("Meanwhile", "kept").get_by_role("button", name="Send now").click()
    anna.line("Meanwhile", "refused").wait_for()


def test_unsent_message_is_offered_only_to_its_author(demo: Demo, people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    demo.stop()
    for name, texts in (("Bo", ("one", "two")), ("Anna", ("to do",)), ("Bo", ("three",))):
        anna.open(name)
        for text in texts:
            anna.write(text)
            anna.line(text, "waiting").get_by_text("it will be sent when you are connected again").wait_for()
    demo.start()
    for person in (anna, bo):
        person.state("logged-out").wait_for()
    anna.line("three", "waiting").get_by_text("it can be sent when you are logged in again").wait_for()
    for person in (anna, bo):
        person.page.get_by_role("button", name="Log in again").click()
    bo.log_in("Bo")
    bo.open("Anna")
    offer = anna.page.locator("#unsent")

    # Another person at this screen finds nothing of Anna's, and can't send any of it.
    anna.log_in("Emil")
    assert offer.is_hidden()
    anna.open("Bo")
    assert anna.page.locator(".line").count() == 0
    anna.page.get_by_role("button", name="Log out").click()

    anna.log_in("Anna")
    offer.get_by_text("4 messages to Bo and yourself have not been sent yet.").wait_for()
    offer.get_by_role("button", name="Show").click()
    anna.line("two", "kept").get_by_role("button", name="Discard").click()
    offer.get_by_text("3 messages to Bo and yourself have not been sent yet.").wait_for()
    assert bo.page.locator(".line").count() == 0
    offer.get_by_role("button", name="Send now").click()
    anna.line("three", "delivered").wait_for()
    bo.line("three", "received").wait_for()
    assert bo.page.locator(".line .text").all_inner_texts() == ["one", "three"]
    assert offer.is_hidden()
    anna.in_list("Anna").click()
    anna.line("to do", "delivered").wait_for()


def test_logout_asks_about_unsent_messages(people: People, line: Line) -> None:
    anna = people.log_in("Anna")
    people.log_in("Bo")
    anna.open("Bo")
    line.cut()
    anna.state("waiting").wait_for()
    anna.write("not yet")
    anna.line("not yet", "waiting").wait_for()
    anna.page.on("dialog", lambda dialog: dialog.accept())  # that the page is left
    anna.page.reload()
    line.repair()
    anna.page.locator("#unsent").get_by_text("A message to Bo has not been sent yet.").wait_for()
    anna.line("not yet", "kept").wait_for()
    asked: list[str] = []
    anna.page.on("dialog", lambda dialog: asked.append(dialog.message))
    anna.page.get_by_role("button", name="Log out").click()
    anna.page.get_by_role("heading", name="Who are you?").wait_for()
    assert ["1 of your messages" in message for message in asked] == [True]


# ---- Several tabs of one browser, which have one session -----------------------------------------------

# Nothing tells a tab to look here: headless Chromium counts every tab as visible.


def test_logout_in_one_tab_logs_the_other_out(people: People) -> None:
    anna = people.log_in("Anna")
    other = anna.another_tab()
    other.state("connected").wait_for()
    other.page.get_by_role("button", name="Log out").click()
    anna.state("logged-out").wait_for()
    anna.page.locator("#trouble").get_by_text("You are logged out.").wait_for()

    other.log_in("Anna")
    anna.state("connected").wait_for()
    anna.page.locator("#trouble").wait_for(state="hidden")


def test_login_as_another_user_in_one_tab_changes_the_other(people: People) -> None:
    anna = people.arrive()
    other = anna.another_tab()
    anna.log_in("Anna")
    other.log_in("Emil")  # without a logout, on a page that was loaded when nobody was logged in
    anna.state("logged-out").wait_for()
    anna.page.locator("#trouble").get_by_text("This browser is now logged in as Emil.").wait_for()
    anna.page.get_by_role("button", name="Continue as Emil").click()
    anna.state("connected").wait_for()
    anna.in_list("Emil (you)").wait_for()


def test_login_as_the_same_user_in_another_tab_reconnects_the_page(demo: Demo, people: People) -> None:
    anna = people.arrive()
    anna.page.clock.install()
    anna.log_in("Anna")
    anna.page.context.request.post(f"{demo.url}login", form={"name": "Anna"})
    anna.state("ended").wait_for()  # the session of its cookie has ended
    for _ in range(20):
        anna.page.clock.run_for(1_000)
        anna.page.wait_for_timeout(20)
    anna.state("connected").wait_for()
    anna.open("Anna")
    anna.write("Here again")
    anna.line("Here again", "delivered").wait_for()


def test_page_without_the_relay_follows_a_logout_in_another_tab(people: People, line: Line) -> None:
    anna = people.log_in("Anna")
    other = anna.another_tab()
    other.state("connected").wait_for()
    anna.page.clock.install()
    anna.page.clock.pause_at(time.time() + 60)  # it makes no attempt by itself
    line.cut()
    anna.state("waiting").wait_for()
    other.page.get_by_role("button", name="Log out").click()
    anna.state("logged-out").wait_for()


@pytest.mark.parametrize("page", ["logout", "login"])
def test_end_of_a_session_is_reported_to_the_relay(demo: Demo, people: People, page: str) -> None:
    anna = people.log_in("Anna")
    elsewhere = people.log_in("Anna")
    (cookie,) = anna.page.context.cookies()
    session = {"Cookie": f"demo_session={cookie['value']}"}
    with Client(
        f"ws://127.0.0.1:{demo.relay_port}/", origin=demo.url.rstrip("/"), additional_headers=session
    ) as client:
        assert client.log_in(None)["response"] is True
        ask(demo.url + page, data=b"name=Bo", headers=session)
        assert client.closed() == (4505, [])
    anna.state("logged-out").wait_for()
    # Another browser has a session of its own.
    elsewhere.open("Anna")
    elsewhere.write("Still here")
    elsewhere.line("Still here", "delivered").wait_for()


@pytest.mark.parametrize(
    ("code", "state", "text"),
    [
        (4000, "waiting", "The chat is being restarted."),
        (4003, "waiting", "The chat is full at the moment."),
        (1011, "waiting", "No connection to the chat."),
        (4501, "logged-out", "You are logged out."),
        (4502, "ended", "The chat could not understand this page."),
        (4504, "ended", "You have the chat open in many other places"),
        (4505, "ended", "This site has ended your connection."),
        (4777, "ended", "The chat closed the connection (code 4777)."),
    ],
)
def test_each_close_code_has_its_text_and_its_consequence(people: People, code: int, state: str, text: str) -> None:
    anna = people.arrive()
    connections: list[Any] = []

    def relay(connection: Any) -> None:
        connections.append(connection)
        ended = code == 4501 and len(connections) > 1
        response = {"type": "auth-response", "response": not ended}
        connection.on_message(lambda _: connection.send(json.dumps(response)))

    anna.page.route_web_socket(re.compile("^ws:"), relay)
    anna.log_in("Anna")
    connections[0].close(code=code)
    anna.page.locator("#trouble").get_by_text(text).wait_for()
    anna.state(state).wait_for()
    if state == "ended":
        anna.page.wait_for_timeout(1_500)
        assert len(connections) == 1
        anna.page.locator("#remedy").click()
        anna.state("connected").wait_for()


def test_unavailable_site_is_asked_again(people: People) -> None:
    anna = people.arrive()
    answers = ['{"type":"auth-response","response":false,"reason":"webserver-unavailable"}'] * 2
    answers.append('{"type":"auth-response","response":true}')
    anna.page.route_web_socket(
        re.compile("^ws:"), lambda connection: connection.on_message(lambda _: connection.send(answers.pop(0)))
    )
    anna.page.get_by_role("button", name="Anna").click()
    anna.page.locator("#trouble").get_by_text("The website can’t say who you are at the moment.").wait_for()
    anna.state("connected").wait_for()
    assert answers == []


def test_messages_sent_too_fast_wait_and_go_in_order(people: People) -> None:
    anna = people.arrive()
    sent: list[str] = []
    refusals = 2

    def relay(connection: Any) -> None:
        def answer(text: str) -> None:
            nonlocal refusals
            request = json.loads(text)
            if request["type"] == "auth-request":
                connection.send('{"type":"auth-response","response":true}')
                return
            outcome = {"id": request["id"], "value": True}
            if refusals and sent:
                refusals -= 1
                outcome |= {"value": False, "reason": "rate-limited"}
            else:
                sent.append(request["message"]["content"])
            connection.send(json.dumps({"type": "send-request-response", "response": outcome}))

        connection.on_message(answer)

    anna.page.route_web_socket(re.compile("^ws:"), relay)
    anna.log_in("Anna")
    anna.open("Bo")
    anna.write("first")
    anna.line("first", "delivered").wait_for()
    anna.write("second")
    anna.line("second", "waiting").get_by_text("faster than the chat allows").wait_for()
    anna.write("third")
    anna.line("third", "delivered").wait_for()
    assert sent == ["first", "second", "third"]
    assert refusals == 0
    assert anna.page.locator(".line[data-status=delivered] .text").all_inner_texts() == sent


# ---- Keyboard, narrow screens -------------------------------------------------------------------------


def test_page_works_with_the_keyboard_alone(people: People) -> None:
    bo = people.log_in("Bo")
    anna = people.arrive()
    keys = anna.page.keyboard

    def focused() -> str:
        """Return the focused element's text or label, and check that its focus is visible."""
        outline, text = anna.page.evaluate(
            "(e => [getComputedStyle(e).outlineStyle, e.labels?.[0]?.textContent ?? e.textContent])(document.activeElement)"
        )
        assert outline != "none" or anna.page.evaluate("document.activeElement === document.body")
        return str(text)

    keys.press("Tab")
    assert "Anna" in focused()
    keys.press("Enter")
    anna.state("connected").wait_for()
    while focused() != "Log out":
        keys.press("Tab")
    keys.press("Tab")
    assert "Bo" in focused()
    keys.press("ArrowDown")
    assert "Chidi" in focused()
    keys.press("ArrowUp")
    keys.press("Enter")
    anna.page.get_by_role("heading", name="Bo").wait_for()
    assert focused() == "Message to Bo"
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    keys.press("Enter")
    bo.in_list("Anna").get_by_text("one two").wait_for()
    anna.line("one two", "delivered").wait_for()
    assert focused() == "Message to Bo"

    people.goes(bo)
    keys.type("three")
    keys.press("Enter")
    anna.line("three", "refused").wait_for()
    for _ in range(2):
        keys.press("Shift+Tab")
    assert focused() == "Try again"
    keys.press("Enter")
    assert focused() == "Message to Bo"
    keys.press("Escape")
    assert "Bo" in focused()


def test_events_are_announced_to_a_screen_reader(people: People) -> None:
    anna, bo = people.log_in("Anna"), people.log_in("Bo")
    spoken = anna.page.locator("[aria-live=polite]")
    bo.open("Anna")
    bo.write("Hej")
    spoken.get_by_text("Bo: Hej", exact=True).wait_for(state="attached")
    anna.open("Chidi")
    anna.write("Anybody?")
    spoken.get_by_text("Chidi isn’t online right now – not delivered.").wait_for(state="attached")


def test_phone_shows_the_list_or_a_conversation_and_does_not_scroll_sideways(people: People, line: Line) -> None:
    people.log_in("Bo")
    anna = people.arrive(**PHONE)

    def fits() -> bool:
        # An overflow on the left can't be scrolled to, so it widens nothing.
        return bool(
            anna.page.evaluate("""
                innerWidth === 360
                && ['html', '#scroll', 'nav'].every(part => (document.querySelector(part)?.scrollWidth ?? 0) <= 360)
                && [...document.querySelectorAll('.text')].every(text => text.getBoundingClientRect().left >= 0)
            """)
        )

    assert fits()
    anna.log_in("Anna")
    assert fits()
    anna.open("Bo")
    assert anna.in_list("Bo").is_hidden()
    anna.write("w" * 300)
    anna.line("w" * 300, "delivered").wait_for()
    assert fits()
    line.cut()
    anna.state("waiting").wait_for()
    anna.write("Not now")
    anna.line("Not now", "waiting").wait_for()
    assert fits()
    send = anna.page.get_by_role("button", name="Send", exact=True).bounding_box()
    assert send is not None and send["y"] + send["height"] <= 740
    anna.page.get_by_role("link", name="Back to the list of people").click()
    anna.in_list("Bo").wait_for()
    assert fits()
    anna.in_list("Bo").click()
    anna.page.go_back()
    anna.in_list("Bo").wait_for()


def test_emoji_fonts_are_named_wherever_people_write_and_read(people: People) -> None:
    anna = people.log_in("Anna")
    anna.open("Anna")
    anna.write("🙂")
    anna.line("🙂", "delivered").wait_for()
    for place in (".line .text", "#text", "#people"):
        fonts = anna.page.locator(place).evaluate("e => getComputedStyle(e).fontFamily")
        for font in ("Apple Color Emoji", "Segoe UI Emoji", "Noto Color Emoji"):  # of macOS, Windows, Linux
            assert font in fonts, place
    assert anna.complaints == []  # of the policy, too, which lets no font be fetched


# ---- What it looks like ---------------------------------------------------------------------------------


def test_screenshots_of_a_conversation_are_taken(people: People, tmp_path: Path) -> None:
    """
    Take screenshots for people to look at; CHATRELAY_SCREENSHOTS names their folder.
    """
    pictures = Path(os.environ.get("CHATRELAY_SCREENSHOTS", tmp_path))
    desk: dict[str, Any] = {"viewport": {"width": 1100, "height": 760}}
    anna, bo, dora = people.log_in("Anna", **desk), people.log_in("Bo", **PHONE), people.log_in("Dora", **desk)

    def say(speaker: Person, text: str, status: str = "delivered") -> None:
        speaker.write(text)
        speaker.line(" ".join(text.split()), status).wait_for()

    anna.open("Bo")
    bo.open("Anna")
    dora.open("Anna")
    say(anna, "Hej Bo! Are you coming to the lake on Saturday?")
    say(bo, "Yes! I’ll bring the boat if the weather holds.")
    say(bo, "Shall I ask Dora as well?")
    say(anna, "Please do. There is room for four in the car, so nobody needs to take the train.")
    say(bo, "Perfect. See you at nine then!")
    say(anna, "Nine it is. I’ll make sandwiches.")
    say(dora, "Bo says there’s room in the car?")
    anna.in_list("Dora").get_by_text("unread").wait_for(state="attached")
    bo.page.screenshot(path=pictures / "chat-phone.png")
    people.goes(bo)
    say(anna, "Don’t forget your swimming things!", "refused")
    anna.page.screenshot(path=pictures / "chat.png")
    for name in ("chat.png", "chat-phone.png"):
        assert (pictures / name).stat().st_size < 200_000
    assert anna.complaints == []
