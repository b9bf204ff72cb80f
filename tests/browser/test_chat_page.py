"""The chat page of the demo, as two people at two browsers see it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from tests.browser.people import Demo, Line, People, Person

PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}


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
