"""The chat page of the demo when its connection breaks, and in several tabs of one browser."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from tests.browser.people import Demo, Line, People, ask
from tests.support.client import Client

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
