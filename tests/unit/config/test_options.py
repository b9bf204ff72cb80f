"""Options: valid and invalid values, sources, and the help."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.app.twistd import Options
from chatrelay.config.checks import ConfigError, normal_origin, option_name
from chatrelay.config.fields import value_of
from chatrelay.config.headings import HEADINGS
from chatrelay.config.options import Config
from chatrelay.config.sources import read


class Values(SynchronousTestCase):
    """Valid and invalid values."""

    def refused(self, **options: Any) -> str:
        """Return the text of the refusal."""
        return str(self.assertRaises(ConfigError, Config, **options))

    def test_defaults_are_the_documented_ones(self) -> None:
        config = Config()
        self.assertEqual((config.login_timeout, config.webserver_timeout, config.webserver_checks), (10.0, 5.0, 32))
        self.assertEqual(config.webserver_answer_size, 8192)
        self.assertEqual((config.breaker_failures, config.ops_listen), (10, None))
        self.assertEqual((config.breaker_wait, config.breaker_longest_wait, config.denial_memory), (1.0, 10.0, 5.0))
        self.assertEqual((config.recheck_interval, config.recheck_grace), (300.0, 1800.0))
        self.assertEqual((config.recheck_spread, config.closing_timeout), (20.0, 2.0))
        self.assertEqual((config.message_size, config.message_frames, config.message_timeout), (65536, 64, 10.0))
        self.assertEqual((config.handshake_size, config.handshake_timeout), (16384, 5.0))
        self.assertEqual((config.unread_size, config.drain_time), (1048576, 10.0))
        self.assertEqual((config.messages_per_second, config.message_burst), (10.0, 30))
        self.assertEqual((config.user_messages_per_second, config.new_recipients_per_minute), (20.0, 30))
        self.assertEqual((config.control_frames_per_second, config.control_frame_burst), (10.0, 20))
        self.assertEqual((config.connections, config.connections_per_address), (None, 0))
        self.assertEqual((config.unauthenticated, config.unauthenticated_per_address), (5000, 100))
        self.assertEqual((config.connections_per_user, config.trusted_proxy), (10, ()))
        self.assertEqual(config.message_log, "sqlite:chatrelay.sqlite3")

    def test_each_option_has_one_heading(self) -> None:
        named = [name for _, names in HEADINGS for name in names]
        self.assertEqual(sorted(named), sorted(attrs.fields_dict(Config)))

    def test_each_option_has_help_and_each_number_a_unit_and_a_meaning_of_zero(self) -> None:
        for field in attrs.fields(Config):
            self.assertTrue(field.metadata["help"].endswith("."), field.name)
            if field.metadata["kind"] in (int, float):
                self.assertTrue(field.metadata["unit"] and field.metadata["zero"], field.name)

    def test_number_must_be_finite_and_not_negative(self) -> None:
        for value in (-1, "5", None, True, float("nan"), float("inf")):
            self.assertIn("login-timeout", self.refused(login_timeout=value))
        self.assertIn("whole number", self.refused(message_size=1.5))
        self.assertEqual(Config(login_timeout=0, message_size=0).login_timeout, 0)
        for value in (-1, "5", True, 1.5):
            self.assertIn("connections: ", self.refused(connections=value))
        self.assertEqual([Config(connections=value).connections for value in (None, 0, 5)], [None, 0, 5])

    def test_auth_url_must_be_a_valid_http_url(self) -> None:
        for url in ("", "example.com", "ftp://example.com/", "http:///session", "//example.com"):
            self.assertIn("is not an http or https URL", self.refused(auth_url=url))
        for url in ("http://[::1", "http://x:99999/", "http://x:/", "http://a b/", "http://exämple.com/", "http://x/å"):
            self.assertIn("is not an http or https URL", self.refused(auth_url=url))
        for url in ("http://my_site/", "http://-a/", "http://a..b/"):
            self.assertIn("is not a host name", self.refused(auth_url=url))
        self.assertIn("auth-secret-file", self.refused(auth_url="http://me:pw@example.com/"))
        self.assertIn("fragment", self.refused(auth_url="http://example.com/#x"))
        for url in (
            "http://127.0.0.1:8001/session.php?x=1",
            "https://example.com",
            "http://[::1]:8001/",
            "http://a-b.c./",
        ):
            Config(auth_url=url)

    def test_session_cookie_needs_an_origin_and_a_valid_name(self) -> None:
        self.assertIn("needs origin", self.refused(session_cookie="PHPSESSID"))
        Config(session_cookie="PHPSESSID", origin=("https://example.com",))
        for name in ("", "a b", "a=b", "a;b", "å"):
            self.assertIn(
                "is not the name of a cookie", self.refused(session_cookie=name, origin=("https://example.com",))
            )

    def test_ops_token_file_needs_ops_listen(self) -> None:
        self.assertIn("needs ops-listen", self.refused(ops_token_file="token"))
        Config(ops_listen="tcp:8081", ops_token_file="token")
        for option in ("ops_listen", "ops_token_file"):
            self.assertIn("must be a string", self.refused(**{option: 5}))

    def test_breaker_wait_must_not_exceed_breaker_longest_wait(self) -> None:
        for wait, longest in ((1, 1), (0, 0.1), (20, 0), (0, 0)):
            Config(breaker_wait=wait, breaker_longest_wait=longest)
        said = self.refused(breaker_longest_wait=0.5)
        self.assertIn("breaker-longest-wait: 0.5 s is less than the 1 s of breaker-wait", said)
        said = self.refused(breaker_wait=10.5)
        self.assertIn("breaker-wait: 10.5 s is more than the 10 s of breaker-longest-wait", said)

    def test_recheck_spread_must_not_exceed_90_per_cent(self) -> None:
        Config(recheck_spread=90)
        said = self.refused(recheck_spread=90.5)
        self.assertIn("recheck-spread: 90.5 per cent is more than 90", said)
        self.assertIn("a shorter recheck-interval", said)

    def test_messages_are_kept_for_an_hour_at_least_and_as_long_as_they_are_looked_for(self) -> None:
        self.assertEqual(Config().keep, 0)
        self.assertEqual(Config(keep=86_400).keep, 86_400)
        self.assertIn("again-time", self.refused(keep=86_399))
        self.assertEqual(Config(keep=3600, again_time=3600).keep, 3600)
        self.assertIn("an hour", self.refused(keep=3599, again_time=60))
        self.assertEqual(Config(keep=0, again_time=0).keep, 0)
        self.assertIn("again-time is 0", self.refused(keep=86_400, again_time=0))
        self.assertEqual(Config(keep=0, message_log="none").keep, 0)
        self.assertIn("not none", self.refused(keep=86_400, message_log="none"))

    def test_unknown_format_and_message_log_are_refused(self) -> None:
        self.assertIn("must be form or json", self.refused(auth_format="xml"))
        self.assertIn("is not a message log", self.refused(message_log="mysql://x"))

    def test_receipts_and_presence_have_the_values_of_the_protocol(self) -> None:
        for receipts in ("on", "off"):
            self.assertEqual(Config(receipts=receipts).receipts, receipts)
        for presence in ("known", "everybody", "off"):
            self.assertEqual(Config(presence=presence).presence, presence)
        self.assertIn("receipts: 'yes' must be on or off", self.refused(receipts="yes"))
        self.assertIn("must be one of known, everybody, off", self.refused(presence="on"))


class Origins(SynchronousTestCase):
    """Origins are compared exactly, by scheme, host and port."""

    def test_equal_origins_have_one_form(self) -> None:
        same = {
            "https://example.com": ["https://example.com", "https://example.com:443", "HTTPS://Example.COM"],
            "http://example.com": ["http://example.com:80"],
            "http://example.com:443": ["http://example.com:443"],
            "https://example.com:8443": ["https://example.com:8443"],
            "http://[::1]:8000": ["http://[::1]:8000"],
            "capacitor://localhost": ["capacitor://localhost"],
        }
        for normal, written in same.items():
            for origin in written:
                self.assertEqual(normal_origin(origin), normal)

    def test_invalid_origin_is_refused(self) -> None:
        for origin in (
            *("", "null", "example.com", "https://", "https://example.com/", "https://example.com/chat", "*"),
            *("https://*.example.com", "https://a@example.com", "https://example.com:port", "https://example.com?x"),
            *("https://exämple.com", "https://a https://b", "https://a,https://b", "https://example.com:99999", 7),
        ):
            error = self.assertRaises(ConfigError, normal_origin, origin)
            self.assertIn("origin", str(error), origin)


class Sources(SynchronousTestCase):
    """The order of the sources: command line, environment, file, defaults."""

    def file(self, text: str) -> str:
        """Write a TOML file; return its path."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_command_line_wins_over_environment_over_file(self) -> None:
        path = self.file(
            'auth_url = "http://file/"\nmessage_size = 1\nlogin_timeout = 1\ndrain_time = 1.5\norigin = ["https://file"]'
        )
        environment = {
            "CHATRELAY_MESSAGE_SIZE": "2",
            "CHATRELAY_LOGIN_TIMEOUT": "2",
            "CHATRELAY_ORIGIN": "https://a https://b",
        }
        config = read({"login_timeout": "3"}, environment, path)
        self.assertEqual(config.auth_url, "http://file/")
        self.assertEqual((config.drain_time, config.message_size, config.login_timeout), (1.5, 2, 3.0))
        self.assertEqual(config.origin, ("https://a", "https://b"))
        self.assertEqual(config.connections, None)
        self.assertEqual(read({"connections": "7"}, {"CHATRELAY_CONNECTIONS": "8"}).connections, 7)
        self.assertEqual(read({}, {"CHATRELAY_TRUSTED_PROXY": "10.0.0.0/8 unix"}).trusted_proxy, ("10.0.0.0/8", "unix"))
        self.assertEqual(config.webserver_checks, 32)

    def test_time_may_have_a_unit_in_every_source(self) -> None:
        for text, seconds in (
            ("90", 90),
            ("90s", 90),
            ("1.5min", 90),
            ("12h", 43_200),
            ("365d", 31_536_000),
            ("0d", 0),
        ):
            for config in (
                read({"recheck_interval": text}, {}),
                read({}, {"CHATRELAY_RECHECK_INTERVAL": text}),
                read({}, {}, self.file(f"recheck_interval = {text if text == '90' else repr(text)}")),
            ):
                self.assertEqual(config.recheck_interval, seconds, text)
        for text in ("", "d", "1 d", "1D", "1d12h", "-1d", "1e3d", "d1", "1days", "\u0661d"):
            error = str(self.assertRaises(ConfigError, read, {"recheck_interval": text}, {}))
            self.assertIn("must be a number of seconds", error)
        for option in ("message_size", "recheck_spread", "message_burst"):
            self.assertRaises(ConfigError, read, {option: "5s"}, {})

    def test_environment_names_the_file(self) -> None:
        self.assertEqual(read({}, {"CHATRELAY_CONFIG": self.file("message_size = 9")}).message_size, 9)

    def test_unrelated_variables_are_ignored(self) -> None:
        self.assertEqual(read({}, {"CHATRELAY_PORT": "tcp://10.0.0.1:80", "AUTH_URL": "x"}), Config())


class CommandLine(SynchronousTestCase):
    """The command line of twistd has the options of `Config`."""

    def test_help_has_each_option(self) -> None:
        help = str(Options())
        for field in attrs.fields(Config):
            self.assertIn(f"\n  --{option_name(field.name)} {value_of(field)}\n", help)

    def test_repeated_option_collects_its_values(self) -> None:
        options = Options()
        options.parseOptions(
            ["--auth-url", "http://x/", "--listen", "tcp:1", "--listen", "tcp:2", "--origin", "https://a"]
        )
        assert options.chosen is not None
        self.assertEqual(options.chosen.listen, ("tcp:1", "tcp:2"))
        self.assertEqual(options.chosen.origin, ("https://a",))
