"""The diagnosis of a wrong setup: what it finds, and what it advises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.diagnosis import (
    DENIED_SESSIONS,
    FIRST_LOGINS,
    MAX_BODY_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_NAMES,
    DeniedLogins,
    MissingCookie,
    probable_cause,
    remedy,
    two_names,
    words_of,
)
from chatrelay.auth.redaction import redacted
from chatrelay.auth.verdicts import InvalidAnswer, SuspectDenial, judge_startup_check
from chatrelay.model import Denied

URL = "http://127.0.0.1:8000/session"


class Words(SynchronousTestCase):
    """The words of a response are those that a person would read."""

    def test_words_of_html_are_title_and_text(self) -> None:
        page = b"<!DOCTYPE html><title>Log  in</title><style>a{}</style><h1>Hej &amp; hej</h1><!-- <b> --><script>b</script>\n!"
        self.assertEqual(words_of(page), "Log in: Hej & hej !")
        self.assertEqual(words_of(b"<title>403</title><h1>403 Forbidden</h1>"), "403 Forbidden")
        self.assertEqual(words_of("<p>å</p>".encode("utf-16-le")), "\ufffd")

    def test_words_of_text_are_one_line(self) -> None:
        self.assertEqual(words_of(b' {"detail":\n "no"} '), '{"detail": "no"}')
        self.assertEqual(words_of(b""), "")

    @given(st.binary(max_size=200))
    def test_words_of_any_bytes_are_a_string(self, body: bytes) -> None:
        self.assertNotIn("\n", words_of(body))

    def test_words_are_read_from_the_start_only(self) -> None:
        self.assertEqual(len(words_of(b"x" * 2 * MAX_BODY_BYTES)), MAX_BODY_BYTES)


class StartupCheck(SynchronousTestCase):
    """What the startup check finds in a response, and advises."""

    def found(self, status: int, body: bytes, *locations: bytes) -> InvalidAnswer:
        """Return the error that the startup check finds."""
        return self.assertRaises(InvalidAnswer, judge_startup_check, status, locations, body)

    def test_denial_by_status_alone_is_suspect(self) -> None:
        for status in (401, 403):
            error = self.found(status, b"<h1>Forbidden</h1>")
            self.assertIsInstance(error, SuspectDenial)
            self.assertEqual((error.status, redacted(error, "x" * 20)), (status, "'Forbidden'"))

    def test_denial_by_status_and_body_is_a_denial(self) -> None:
        self.assertEqual(judge_startup_check(403, (), b'{"loggedin": false}'), Denied())

    def test_denial_status_with_another_body_is_a_suspect_denial(self) -> None:
        # The status decides; but such a page is suspect, too.
        for body in (b"not json", b'{"loggedin": true, "uID": 7}'):
            self.assertIsInstance(self.found(403, body), SuspectDenial)

    def test_quoted_words_have_no_session_id(self) -> None:
        made_up = "chatrelay-at-start-0123456789abcdef"
        for status in (400, 403, 500):
            error = self.found(status, f"<p>who is {made_up}?</p>".encode())
            self.assertIn("'who is <SESSID>?'", redacted(error, made_up))

    def test_quoted_words_are_printable_and_few(self) -> None:
        line = redacted(self.found(500, "\x1b[31m\u202e".encode() + b"x" * 5000), "x" * 20)
        self.assertTrue(line.isprintable())
        self.assertNotIn("\x1b", line)
        self.assertLess(len(line), 300)

    def test_each_response_has_its_remedy(self) -> None:
        for status, location, words, said in (
            (None, "", "", "Check that --auth-url is right and that the site is up"),
            (400, "", "Bad Request", "--auth-host"),
            (421, "", "", "--auth-host"),
            (404, "", "Not Found", "the path of --auth-url"),
            (404, "", "Not Found", "--auth-host"),
            (405, "", "", "does not accept POST"),
            (415, "", "", "--auth-format json"),
            (422, "", '{"detail":[{"type":"model_attributes_type"}]}', "--auth-format json"),
            (419, "", "Page Expired", "CSRF protection"),
            (400, "", "The CSRF token is missing.", "CSRF protection"),
            (200, "", "<html>", "login page"),
            (500, "", "", "the site's own log"),
            (500, "", "TypeError: Cannot read properties of undefined", "try --auth-format json"),
            (503, "", "", "the site's own log"),
            (400, "", "", "--auth-secret-file may be missing, or its secret may differ"),
            (400, "", "400 Bad Request: KeyError: 'SESSID'", "does not find SESSID: try --auth-format json"),
            (
                400,
                "",
                "DisallowedHost at /session Invalid HTTP_HOST header. ALLOWED_HOSTS. CSRF_COOKIE_NAME",
                "--auth-host",
            ),
            (500, "", "RuntimeError at /session You called this URL via POST, but … APPEND_SLASH set.", "Add a slash"),
            (422, "", "Can't verify CSRF token authenticity", "CSRF protection"),
            (500, "", "TypeError at /session " + 300 * "x" + "CSRF_COOKIE_NAME SESSID", "the site's own log"),
            (301, "https://127.0.0.1:8000/session", "", "--auth-header 'X-Forwarded-Proto: https'"),
            (301, "/session/", "", "Add a slash to the end of"),
            (302, "/login", "", "login page"),
            (302, "http://[::1/x", "", "login page"),
        ):
            self.assertIn(said, remedy(URL, "form", status, location, words))
        self.assertIn("--auth-format form", remedy(URL, "json", 415, "", ""))

    def test_denial_status_has_its_probable_cause(self) -> None:
        self.assertIn("probably the site's CSRF protection", probable_cause(403, "CSRF verification failed"))
        self.assertIn("usual cause", probable_cause(403, "Forbidden"))
        self.assertIn("a login in front of the whole site", probable_cause(401, ""))
        self.assertIn("--auth-host", probable_cause(403, "Blocked hosts: 127.0.0.1:3000"))

    def test_words_far_down_a_page_are_ignored(self) -> None:
        page = "ValueError at /session " + 300 * "x" + " CSRF_COOKIE_NAME 'csrftoken' ALLOWED_HOSTS []"
        for status in (400, 403, 500):
            self.assertNotIn("The cause is probably", remedy(URL, "form", status, "", page))
        self.assertIn("usual cause", probable_cause(403, page))

    def test_chosen_format_is_the_first_suspect(self) -> None:
        said = remedy(URL, "json", 400, "", "")
        self.assertLess(said.index("--auth-format form"), said.index("--auth-host"))


class AllDenied(SynchronousTestCase):
    """Logins that were all denied since the start."""

    def test_denials_warn_at_the_third_login_and_the_tenth_session(self) -> None:
        so_far = DeniedLogins(b"key")
        told = [so_far.denied(f"session {number}", 200) for number in range(50)]
        self.assertEqual([number for number, is_told in enumerate(told, 1) if is_told], [3, 10])

    def test_denials_of_one_session_warn_once(self) -> None:
        so_far = DeniedLogins(b"key")
        told = [so_far.denied("session", 200) for _ in range(50)]
        self.assertEqual([number for number, is_told in enumerate(told, 1) if is_told], [FIRST_LOGINS])
        self.assertEqual((so_far.logins, so_far.sessions), (50, 1))

    def test_denials_after_a_login_do_not_warn(self) -> None:
        for denied_before in (0, 1):
            so_far = DeniedLogins(b"key")
            for _ in range(denied_before):
                so_far.denied("session", 200)
            so_far.logged_in()
            self.assertFalse(any(so_far.denied(str(number), 200) for number in range(5 * DENIED_SESSIONS)))

    def test_express_session_cookie_is_recognised_and_not_shown(self) -> None:
        so_far = DeniedLogins(b"key")
        so_far.denied("s%3Aabc123.def456", 200)
        cause = so_far.probable_cause("form")
        self.assertIn("express-session", cause)
        self.assertIn("decodeURIComponent", cause)
        self.assertNotIn("abc123", cause)
        other = DeniedLogins(b"key")
        other.denied("abc123.def456", 200)
        self.assertNotIn("express-session", other.probable_cause("form"))

    def test_cause_depends_on_how_logins_were_denied(self) -> None:
        for statuses, how, cause in (
            ({200}, 'by "loggedin": false', "--auth-format json"),
            ({403}, "with status 403", "CSRF"),
            ({401, 403}, "with status 401 and 403", "CSRF"),
        ):
            so_far = DeniedLogins(b"key")
            for number, status in enumerate(statuses):
                so_far.denied(str(number), status)
            self.assertEqual(so_far.how(), how)
            self.assertIn(cause, so_far.probable_cause("form"))


class NamesOfOneMachine(SynchronousTestCase):
    """A page and a relay that are opened under two names of one machine."""

    def test_two_names_of_one_machine_have_a_remedy(self) -> None:
        for origin, host, page, relay in (
            ("http://127.0.0.1:3000", "localhost:8080", "http://localhost:3000", "ws://127.0.0.1:8080"),
            ("http://localhost", "127.0.0.1:8080", "http://127.0.0.1", "ws://localhost:8080"),
            ("https://LOCALHOST:3000", "[::1]:8080", "https://[::1]:3000", "wss://localhost:8080"),
            ("http://[::1]:3000", "localhost", "http://localhost:3000", "ws://[::1]"),
        ):
            said = two_names(origin, host)
            self.assertIn(f"open the page at {page}, or connect to {relay}:", said)

    def test_other_pairs_of_names_have_no_remedy(self) -> None:
        for origin, host in (
            ("http://localhost:3000", "localhost:8080"),
            ("http://localhost:3000", "chat.example.com"),
            ("https://example.com", "localhost:8080"),
            ("null", "localhost:8080"),
            ("", ""),
            ("http://[::1", "localhost"),
            ("http://localhost:x", "127.0.0.1"),
            ("http://localhost:3000", "127.0.0.1:99999"),
            ("http://localhost\u202e", "127.0.0.1"),
        ):
            self.assertEqual(two_names(origin, host), "")


class WithoutCookie(SynchronousTestCase):
    """Logins in a row without the session cookie."""

    def test_missing_cookie_warns_at_the_third_login_at_first(self) -> None:
        missing = MissingCookie()
        told = [number for number in range(1, 2001) if missing.login_without_cookie()]
        self.assertEqual(told, [3, 10, 100, 1000])

    def test_missing_cookie_warns_at_the_tenth_login_after_a_success(self) -> None:
        missing = MissingCookie()
        missing.logged_in()
        told = [number for number in range(1, 2001) if missing.login_without_cookie()]
        self.assertEqual(told, [10, 100, 1000])

    def test_login_by_the_cookie_resets_the_count(self) -> None:
        missing = MissingCookie()
        missing.logged_in()
        for _ in range(5):
            missing.handshake_without_cookie("theme=dark", "h", "o")
            self.assertFalse(any(missing.login_without_cookie() for _ in range(9)))
            missing.login_with_cookie()
        self.assertEqual(missing.names, {})

    def test_alternating_logins_do_not_warn_again(self) -> None:
        missing = MissingCookie()
        lines = 0
        for _ in range(500):
            lines += sum(missing.login_without_cookie() for _ in range(12))
            missing.login_with_cookie()
            missing.logged_in()
        self.assertEqual(lines, 2)

    def test_cause_names_the_two_names_of_one_machine(self) -> None:
        missing = MissingCookie()
        missing.handshake_without_cookie("", "localhost:8080", "http://127.0.0.1:3000")
        cause = missing.probable_cause("sid")
        self.assertIn("open the page at http://localhost:3000, or connect to ws://127.0.0.1:8080", cause)
        self.assertNotIn("Domain", cause)
        missing.handshake_without_cookie("theme=dark", "localhost:8080", "http://127.0.0.1:3000")
        self.assertIn("open the page at http://localhost:3000", missing.probable_cause("sid"))
        self.assertIn("--session-cookie", missing.probable_cause("sid"))

    def test_cookie_names_are_limited_in_number_and_length(self) -> None:
        missing = MissingCookie()
        for round in range(50):
            missing.handshake_without_cookie(
                "; ".join(f"{'x' * 500 if round else 'y'}{n}=v" for n in range(1000)), "h", "o"
            )
        self.assertEqual(len(missing.names), MAX_NAMES)
        self.assertLessEqual(max(map(len, missing.names)), MAX_NAME_CHARACTERS + 1)

    def test_cookie_values_are_not_shown(self) -> None:
        missing = MissingCookie()
        missing.handshake_without_cookie("s3cret; =s3cret; a=s3cret; b = s3cret;;", "h", "o")
        self.assertEqual(list(missing.names), ["a", "b"])

    def test_unusable_cookie_of_that_name_is_the_cause(self) -> None:
        missing = MissingCookie()
        missing.handshake_without_cookie("sid=", "h", "o")
        self.assertIn("its value is empty, too long or not UTF-8", missing.probable_cause("sid"))
