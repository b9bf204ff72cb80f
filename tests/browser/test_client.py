"""
The client's user, on a page with nothing else, with the real relay.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.browser.client_page import QUICK, SLOW, Clients, admit, log_in
from tests.browser.people import Demo, Line, People

if TYPE_CHECKING:
    from playwright.sync_api import Route


def test_page_does_not_reconnect_as_the_user_of_another_tab(
    clients: Clients, people: People, demo: Demo, line: Line
) -> None:
    anna = clients.connect("Anna", 1, QUICK)
    chidi = clients.connect("Chidi", 3)
    assert anna.send(3, "by Anna")["result"] == "delivered"

    log_in(anna.page.context, demo, "Bo")
    line.cut()
    line.repair()
    state = anna.wait_for("logged-out")
    assert state["somebodyElse"] == 2
    assert anna.send(3, "by whom?") == {"result": "not-sent"}
    chidi.wait_for("connected")
    # It was not Bo's even for a moment: otherwise a message for Bo would have reached it and counted as delivered.
    assert len(anna.urls) == 1
    assert chidi.send(2, "for Bo")["reason"] == "receiving-user-not-connected"
    assert chidi.messages == ["by Anna"]
    assert anna.messages == []


def test_login_as_another_user_during_the_handshake_is_noticed_before_the_first_message(
    clients: Clients, people: People, demo: Demo, line: Line
) -> None:
    anna = clients.connect("Anna", 1, QUICK)
    asked: list[str] = []

    def answer_late(route: Route) -> None:
        answer = route.fetch()
        asked.append(answer.text())
        if len(asked) == 1:
            log_in(anna.page.context, demo, "Bo")  # between the site's answer and the handshake
        route.fulfill(response=answer)

    anna.page.route("**/whoami", answer_late)
    line.cut()
    line.repair()
    assert anna.wait_for("logged-out")["somebodyElse"] == 2
    assert json.loads(asked[0])["uID"] == 1
    assert json.loads(asked[-1])["uID"] == 2
    assert anna.states.count("connected") == 1  # before


def test_message_for_another_user_ends_the_connection_unshown(clients: Clients) -> None:
    anna = clients.open("Anna")
    asked: list[Route] = []

    def answer_once(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            route.continue_()

    def answer(connection: Any) -> None:
        admit(connection)
        for to, text in (("1", "to Anna"), (2, "to Bo")):
            message = {"timeStamp": 1, "fromuID": 3, "touID": to, "content": text}
            connection.send(json.dumps({"type": "message", "message": message}))

    anna.page.route("**/whoami", answer_once)
    anna.meet(answer)
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    assert anna.wait_for("logged-out")["somebodyElse"] == 2
    assert anna.messages == ["to Anna"]
    assert "connected" not in anna.states


def _json(answer: object) -> Callable[[Route], None]:
    return lambda route: route.fulfill(json=answer)


def test_each_answer_about_who_is_logged_in_has_its_state(clients: Clients) -> None:
    anna = clients.open("Anna")
    answers: list[tuple[Callable[[Route], None], str]] = [
        (_json({"loggedin": True, "uID": "1"}), "connected"),
        (_json({"loggedin": False, "uID": 1}), "logged-out"),
        (_json({"loggedin": True}), "logged-out"),
        (lambda route: route.fulfill(status=401), "logged-out"),
        (lambda route: route.fulfill(status=403, body="<h1>no</h1>"), "logged-out"),
        (lambda route: route.fulfill(status=500), "waiting"),
        (lambda route: route.fulfill(body="<h1>hello</h1>", content_type="text/html"), "waiting"),
        (lambda route: route.abort(), "waiting"),
    ]
    for answer, state in answers:
        anna.page.route("**/whoami", answer)
        anna.start(clients.relay, f"{{user: 1, whoami: '/whoami', {SLOW}}}")
        found = anna.wait_for("connected", "logged-out", "waiting")
        assert found["name"] == state
        if state == "waiting":
            assert found["reason"] == "webserver-unavailable"
            anna.page.unroute("**/whoami")
            anna.page.evaluate("client.connect()")
            anna.wait_for("connected")
        anna.page.evaluate("client.close()")
        anna.page.unroute("**/whoami")


def test_late_answer_of_a_function_does_not_end_a_newer_connection(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.page.evaluate("globalThis.whoami = () => 1")
    anna.start(clients.relay, "{user: 1, whoami: () => whoami()}")
    anna.wait_for("connected")
    anna.page.evaluate(
        """async () => {
            const late = Promise.withResolvers();
            whoami = () => late.promise;
            const checked = client.check();
            whoami = () => 1;
            client.close();
            client.connect();
            late.resolve(2);
            await checked;
        }"""
    )
    anna.wait_for("connected")
    assert "logged-out" not in anna.states


def test_redirect_to_the_login_page_counts_as_logged_out(clients: Clients, demo: Demo) -> None:
    anna = clients.open("Anna")
    # To a page of HTML, as sites do.
    anna.page.route("**/whoami", lambda route: route.fulfill(status=303, headers={"Location": demo.url}))
    anna.start(clients.relay, "{user: 1, whoami: '/whoami'}")
    anna.wait_for("logged-out")


def test_custom_function_may_report_the_logged_in_user(clients: Clients) -> None:
    anna = clients.open("Anna")
    anna.start(clients.relay, "{user: '1', whoami: async () => (await (await fetch('/whoami')).json()).uID}")
    anna.wait_for("connected")
    anna.start(clients.relay, "{user: 1, whoami: () => null}")
    anna.wait_for("logged-out")
    anna.start(clients.relay, "{user: 1, whoami: () => {}}")
    anna.wait_for("logged-out")


def test_login_in_another_tab_is_noticed_at_the_next_check(clients: Clients, demo: Demo) -> None:
    anna = clients.connect("Anna", 1)
    anna.page.evaluate("client.check()")
    assert anna.states[-1] == "connected"
    log_in(anna.page.context, demo, "Bo")
    anna.page.evaluate("client.check()")
    assert anna.wait_for("logged-out")["somebodyElse"] == 2
    log_in(anna.page.context, demo, "Anna")
    anna.page.evaluate("client.check()")
    anna.wait_for("connected")
    anna.page.evaluate("client.close()")
    anna.page.evaluate("client.check()")
    assert anna.states[-1] == "idle"


def test_client_without_a_user_cannot_be_made(clients: Clients) -> None:
    anna = clients.open("Anna")
    for options in ("undefined", "{}", "{whoami: '/whoami'}", "{user: 1}", "{user: null, whoami: '/'}"):
        error = f"() => {{ try {{ new ChatClient('/', {options}); }} catch (error) {{ return String(error); }} }}"
        assert "TypeError: ChatClient needs `" in anna.page.evaluate(error), options
