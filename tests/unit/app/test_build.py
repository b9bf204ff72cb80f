"""Building a relay from options, and the errors of bad options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from chatrelay import Config, ConfigError, build
from chatrelay.app.build import session_page_authenticator
from chatrelay.app.listeners import BACKLOG, with_backlog
from chatrelay.messagelog.memory import MemoryMessageLog, NoMessageLog
from chatrelay.messagelog.sqlite import SqliteMessageLog
from chatrelay.model import Denied, Verdict
from chatrelay.testing import KnownSessions
from tests.support.memory import MemoryClient


class Made(SynchronousTestCase):
    """Building a relay from options, and the errors of bad options."""

    def refused(self, **options: Any) -> str:
        """Return the text of the refusal."""
        return str(self.assertRaises(ConfigError, build, Config(**options), MemoryReactorClock()))

    def test_auth_url_is_required_without_an_authenticator(self) -> None:
        self.assertIn("auth-url: is missing", self.refused())
        build(Config(), MemoryReactorClock(), authenticator=KnownSessions({}))

    def test_denial_by_an_embedders_authenticator_is_not_remembered(self) -> None:
        sessions: dict[str, str | int] = {}
        relay = build(Config(message_log="memory:"), MemoryReactorClock(), KnownSessions(sessions))
        client = MemoryClient(relay.factory).open()
        client.say_login("alice")
        self.assertEqual(client.hear(), [{"type": "auth-response", "response": False}])
        sessions["alice"] = 1
        client.log_in("alice")

    def test_denial_by_the_session_page_is_remembered_for_denial_memory(self) -> None:
        for seconds, waits, requests in ((3.0, (0.0, 2.75, 0.25), 2), (0.0, (0.0, 0.0, 0.0), 3)):
            reactor = MemoryReactorClock()
            config = Config(message_log="memory:", auth_url="http://x/", denial_memory=seconds)
            attempts = build(config, reactor).factory.parts.logins.throttle
            asked: list[str] = []

            def deny(sessid: str, is_ticket: bool, asked: list[str] = asked) -> Deferred[Verdict]:
                asked.append(sessid)
                return succeed(Denied())

            self.patch(attempts, "_ask", deny)
            for wait in waits:
                reactor.advance(wait)
                attempts.ask(None, "guess", False)
            self.assertEqual(len(asked), requests)

    def test_no_copy_upgrades_a_message_log_without_a_copy(self) -> None:
        for no_copy in (False, True):
            config = Config(listen=(), message_log="sqlite:log", no_copy=no_copy)
            log = build(config, MemoryReactorClock(), KnownSessions({})).message_log
            assert isinstance(log, SqliteMessageLog)
            self.assertEqual(log._migrating.makes_copy, not no_copy)

    def test_keep_needs_a_message_log_that_can_delete_messages(self) -> None:
        config, reactor = Config(keep=86_400, message_log="memory:"), MemoryReactorClock()
        error = self.assertRaises(ConfigError, build, config, reactor, KnownSessions({}), NoMessageLog())
        self.assertIn("keep: the application's own message log has no method trim", str(error))
        build(config, reactor, KnownSessions({}), MemoryMessageLog())

    def test_response_limit_is_webserver_answer_size(self) -> None:
        config = Config(auth_url="http://x/", webserver_answer_size=77)
        self.assertEqual(session_page_authenticator(config, MemoryReactorClock())._page.body_limit, 77)

    def test_breaker_waits_up_to_breaker_longest_wait(self) -> None:
        config = Config(auth_url="http://x/", breaker_failures=1, breaker_wait=3, breaker_longest_wait=5)
        authenticator = session_page_authenticator(config, MemoryReactorClock())
        breaker, now = authenticator._breaker, 0.0
        for wait in (3, 5, 5):
            breaker.failed("request", now)  # type: ignore[arg-type]
            self.assertFalse(breaker.admit("request", now + wait - 0.1))  # type: ignore[arg-type]
            now += wait
            self.assertTrue(breaker.admit("request", now))  # type: ignore[arg-type]

    def test_bad_endpoint_is_refused_with_its_option(self) -> None:
        for endpoint in ("nonsense:1", "tcp:", "tcp:eighty", "ssl:443:privateKey=/nowhere.pem", ""):
            self.assertIn("listen:", self.refused(auth_url="http://x/", listen=(endpoint,)))
            self.assertIn("ops-listen:", self.refused(auth_url="http://x/", ops_listen=endpoint))

    def test_backlog_is_long_unless_the_endpoint_sets_it(self) -> None:
        given = f":backlog={BACKLOG}"
        for endpoint in (
            "tcp:80",
            "tcp:80:10.0.0.5",
            r"tcp6:80:interface=\:\:1",
            "unix:a.socket:660",
            "haproxy:tcp:80",
        ):
            self.assertEqual(with_backlog(endpoint), endpoint + given)
        for endpoint in ("tcp:80:backlog=7", "tcp:80:10.0.0.5:7", "systemd:domain=INET:index=0", "nonsense:1"):
            self.assertEqual(with_backlog(endpoint), endpoint)
        reactor = MemoryReactorClock()
        relay = build(Config(listen=("tcp:80", "unix:a.socket:660")), reactor, KnownSessions({}), MemoryMessageLog())
        relay.privilegedStartService()
        self.assertEqual([reactor.tcpServers[0][2], reactor.unixServers[0][2]], [BACKLOG, BACKLOG])

    def test_bad_secret_file_is_refused(self) -> None:
        for text, said in (
            (b"", "is empty"),
            (b" \n", "is empty"),
            (b"a b", "one line"),
            (b"a\nb", "one line"),
            (b"\xff", "not ASCII"),
        ):
            path = self.mktemp()
            with open(path, "wb") as file:
                file.write(text)
            self.assertIn(said, self.refused(auth_url="http://x/", auth_secret_file=path))
            with_ops = self.refused(auth_url="http://x/", ops_listen="tcp:8081", ops_token_file=path)
            self.assertIn("ops-token-file: ", with_ops)
            self.assertIn(said, with_ops)
        self.assertIn("cannot be read", self.refused(auth_url="http://x/", auth_secret_file="/nowhere"))

    def test_short_ops_token_is_refused(self) -> None:
        path = self.mktemp()
        for text in ("hunter2", "x" * 15, f"  {'x' * 15}\n\n"):
            Path(path).write_text(text)
            refusal = self.refused(auth_url="http://x/", ops_listen="tcp:8081", ops_token_file=path)
            self.assertIn(f"ops-token-file: the token in {path} is shorter than 16 characters", refusal)
            self.assertIn("openssl rand -hex 32", refusal)
            self.assertNotIn(text.strip(), refusal)
            # The length of the secret that is sent to the site is not checked.
            build(Config(auth_url="http://x/", auth_secret_file=path), MemoryReactorClock())
        Path(path).write_text(f"{'x' * 16}\n")
        build(Config(auth_url="http://x/", ops_listen="tcp:8081", ops_token_file=path), MemoryReactorClock())

    def test_file_without_certificates_is_refused(self) -> None:
        for text in ("", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"):
            path = Path(self.mktemp())
            path.write_text(text)
            self.assertIn("no certificates", self.refused(auth_url="https://x/", auth_ca_file=str(path)))
        self.assertIn("cannot be read", self.refused(auth_url="https://x/", auth_ca_file="/nowhere"))
