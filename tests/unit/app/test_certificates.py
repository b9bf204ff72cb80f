"""Reloading the certificate of an endpoint: accepted and refused files, and the log."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme
from OpenSSL.SSL import Context
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chatrelay import Config, build
from chatrelay.app.certificates import UNUSABLE, EndpointCertificate, has_certificate
from chatrelay.testing import KnownSessions
from tests.support.relay_case import logged_events

UNTIL = datetime.datetime(2031, 2, 3, 4, 5, 6)  # noqa: DTZ001 -- as trustme takes it


class CertificateTests(SynchronousTestCase):
    """An endpoint with the files of a certificate and its key."""

    authorities = trustme.CA()

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.write("one.example")
        self.description = f"ssl:8443:privateKey={self.folder}/key.pem:certKey={self.folder}/cert.pem"
        self.events = logged_events(self)

    def write(self, *names: str, key: bool = True) -> None:
        """Write a new certificate, with or without its key."""
        leaf = self.authorities.issue_cert(*names, not_after=UNTIL)
        leaf.cert_chain_pems[0].write_to_path(str(self.folder / "cert.pem"))
        if key:
            leaf.private_key_pem.write_to_path(str(self.folder / "key.pem"))

    def logged(self) -> list[tuple[LogLevel, str]]:
        """Return what was logged since the last call."""
        lines = [(event["log_level"], formatEvent(event)) for event in self.events]
        self.events.clear()
        return lines

    def test_has_certificate_is_true_for_ssl_endpoints_only(self) -> None:
        for description in ("ssl:443:privateKey=x", "haproxy:ssl:443:privateKey=x"):
            self.assertTrue(has_certificate(description))
        for description in ("tcp:443", "haproxy:tcp:443", "unix:ssl:", "systemd:domain=INET:index=0", "ssl"):
            self.assertFalse(has_certificate(description))

    def test_reload_replaces_the_certificate_and_logs_its_names(self) -> None:
        certificate = EndpointCertificate(self.description)
        self.assertEqual((certificate.names, certificate.until), (["one.example"], "2031-02-03T04:05:06Z"))
        self.write("two.example", "192.0.2.1")
        self.assertEqual(certificate.names, ["one.example"])
        self.assertTrue(certificate.reload())
        self.assertEqual(certificate.names, ["two.example", "192.0.2.1"])
        self.assertEqual(
            self.logged(),
            [
                (
                    LogLevel.info,
                    f"the certificate of {self.description} was reloaded: for two.example, 192.0.2.1, "
                    "until 2031-02-03T04:05:06Z",
                )
            ],
        )

    def test_reload_logs_up_to_five_names(self) -> None:
        for count, said in ((5, "for 0.x, 1.x, 2.x, 3.x, 4.x, until"), (6, "for 0.x, 1.x, 2.x, 3.x, 4.x …, until")):
            self.write(*(f"{number}.x" for number in range(count)))
            EndpointCertificate(self.description).reload()
            ((_, line),) = self.logged()
            self.assertIn(said, line)

    def test_unusable_files_keep_the_previous_certificate(self) -> None:
        certificate = EndpointCertificate(self.description)
        paths = [self.folder / name for name in ("cert.pem", "key.pem")]
        whole = [path.read_bytes() for path in paths]
        for cert, key, said in (
            (None, whole[1], "No such file"),
            (whole[0], None, "No such file"),
            (b"", whole[1], ""),
            (whole[0], b"", ""),
            (whole[0][:200], whole[1], ""),
            (b"\xff\x00 nonsense", whole[1], ""),
        ):
            for path, text in zip(paths, (cert, key), strict=True):
                path.unlink(missing_ok=True)
                if text is not None:
                    path.write_bytes(text)
            self.assertFalse(certificate.reload(), (cert, key))
            ((level, line),) = self.logged()
            self.assertIs(level, LogLevel.error)
            self.assertIn("could not be reloaded, and the previous one is kept: ", line)
            self.assertIn(said, line)
            self.assertFalse(line.endswith(": "))
            self.assertEqual(certificate.names, ["one.example"])
            self.assertRaises(UNUSABLE, EndpointCertificate, self.description)

    def test_key_of_another_certificate_keeps_the_previous_one(self) -> None:
        certificate = EndpointCertificate(self.description)
        self.write("two.example", key=False)  # as in the middle of a renewal
        self.assertFalse(certificate.reload())
        self.assertEqual(certificate.names, ["one.example"])
        self.assertRaises(UNUSABLE, EndpointCertificate, self.description)
        self.write("three.example")
        self.assertTrue(certificate.reload())
        self.assertEqual(certificate.names, ["three.example"])

    def test_listening_uses_the_arguments_of_the_endpoint(self) -> None:
        for prefix in ("", "haproxy:"):
            reactor = MemoryReactorClock()
            service = build(
                Config(listen=(f"{prefix}{self.description}:interface=127.0.0.1:backlog=7", "tcp:8080")),
                reactor,
                KnownSessions({}),
            )
            for part in service.services:
                part.startService()
            ((port, _factory, shown, backlog, interface),) = reactor.sslServers
            self.assertEqual((port, backlog, interface), (8443, 7, "127.0.0.1"))
            self.assertIsInstance(shown, EndpointCertificate)
            self.assertEqual([server[0] for server in reactor.tcpServers], [8080])

    def test_open_connection_keeps_its_certificate(self) -> None:
        certificate = EndpointCertificate(self.description)
        before: Context = certificate.serverConnectionForTLS(None).get_context()  # type: ignore[arg-type]  # not looked at
        self.assertIs(certificate.serverConnectionForTLS(None).get_context(), before)  # type: ignore[arg-type]
        certificate.reload()
        self.assertIsNot(certificate.serverConnectionForTLS(None).get_context(), before)  # type: ignore[arg-type]

    def test_service_reloads_the_certificates_of_all_endpoints(self) -> None:
        service = build(
            Config(listen=(self.description,), ops_listen=self.description), MemoryReactorClock(), KnownSessions({})
        )
        self.events.clear()
        service.reload_certificates()
        lines = self.logged()
        self.assertEqual(len(lines), 2)
        for _, line in lines:
            self.assertIn("was reloaded: for one.example", line)

    def test_reload_without_a_certificate_is_logged(self) -> None:
        build(Config(), MemoryReactorClock(), KnownSessions({})).reload_certificates()
        self.assertEqual(
            self.logged(), [(LogLevel.info, "there is no certificate to reload: no endpoint is an ssl: endpoint")]
        )
