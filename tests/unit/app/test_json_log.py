"""JSON log lines: every event is one valid line, and untrusted text stays inside a string."""

from __future__ import annotations

import enum
import json
import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel
from twisted.python import log as legacy_log
from twisted.python.failure import Failure
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.app import twistd as tap
from chatrelay.app.json_log import line_of
from tests.support.relay_case import logged_events

HOSTILE = 'x"}\r\n{"level": "critical", "text": "forged"}\x1b[2J\x00\x85\u2028\u2029\ud800é'


class NoRepr:
    """A value whose `repr` fails."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


class Colour(enum.IntEnum):
    """A number with a name."""

    RED = 3


def not_json(constant: str) -> object:
    """Refuse NaN and infinity, which Python's reader accepts."""
    raise ValueError(constant)


class Lines(SynchronousTestCase):
    """The line of one event."""

    def read(self, event: LogEvent) -> Any:
        """Return the decoded line of an event, and check that it is one valid line."""
        line = line_of(event)
        self.assertTrue(line.endswith("\n") and line.isascii())
        self.assertEqual(len(line.splitlines()), 1)
        line[:-1].encode("utf-8")
        record = json.loads(line, parse_constant=not_json)
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # there is no half of a character in it
        return record

    def logged(self, format: str, **fields: object) -> Any:
        """Log an event; return its decoded line."""
        events: list[LogEvent] = []
        Logger(namespace="here", observer=events.append).warn(format, **fields)
        events[0]["log_time"] = 1763816709.127351
        return self.read(events[0])

    def test_line_has_time_level_namespace_format_text_and_fields(self) -> None:
        self.assertEqual(
            self.logged("handshake from {peer} refused with {code}", peer="192.0.2.1:4321", code=403, more=None),
            {
                "time": "2025-11-22T13:05:09.127351Z",
                "level": "warn",
                "namespace": "here",
                "format": "handshake from {peer} refused with {code}",
                "text": "handshake from 192.0.2.1:4321 refused with 403",
                "fields": {"peer": "192.0.2.1:4321", "code": 403, "more": None},
            },
        )

    def test_hostile_text_stays_in_its_field(self) -> None:
        record = self.logged("a page of origin {origin} was refused", origin=HOSTILE)
        self.assertEqual(record["level"], "warn")
        self.assertEqual(record["fields"], {"origin": HOSTILE.replace("\ud800", "\\ud800")})
        self.assertEqual(record["text"], f"a page of origin {record['fields']['origin']} was refused")

    def test_each_type_of_value_becomes_valid_json(self) -> None:
        values = {
            "number": (5, 5),
            "fraction": (0.5, 0.5),
            "yes": (True, True),
            "enumeration": (Colour.RED, 3),
            "exact in no other reader": (2**53 + 1, "9007199254740993"),
            "no number": (float("nan"), "nan"),
            "endless": (float("-inf"), "-inf"),
            "bytes": (b"a\xff\n", "a\\xff\n"),
            "list": ([1, "\n"], "[1, '\\n']"),
        }
        fields = self.logged("", **{name: value for name, (value, _) in values.items()})["fields"]
        for name, (_, expected) in values.items():
            self.assertEqual(fields[name], expected, name)
            self.assertIs(type(fields[name]), type(expected), name)

    def test_value_without_a_repr_is_shown_by_its_type(self) -> None:
        record = self.logged("{thing}, {digits}", thing=NoRepr(), digits=10**5000)
        self.assertIn("NoRepr", record["fields"]["thing"])
        self.assertIn("no repr", record["fields"]["thing"])
        self.assertTrue(record["text"])

    def test_format_with_a_missing_field_still_gives_a_text(self) -> None:
        self.assertIn("nobody", self.logged("{nobody}", somebody=HOSTILE)["text"])

    def test_traceback_is_one_field(self) -> None:
        events: list[LogEvent] = []
        logger = Logger(namespace="here", observer=events.append)
        try:
            raise RuntimeError(HOSTILE)
        except RuntimeError:
            logger.failure("it met a defect", at=3)
        record = self.read(events[0])
        self.assertEqual(
            (record["level"], record["text"], record["fields"]), ("critical", "it met a defect", {"at": 3})
        )
        self.assertTrue(record["traceback"].startswith("Traceback (most recent call last)"))
        self.assertIn("RuntimeError: x", record["traceback"])

    def test_failure_without_a_traceback_has_its_type(self) -> None:
        record = self.read({"log_level": LogLevel.critical, "log_failure": Failure(NoRepr, NoRepr)})  # type: ignore[arg-type]
        self.assertIn("NoRepr", record["traceback"])

    def test_legacy_event_has_its_text_and_only_its_own_fields(self) -> None:
        events = logged_events(self)
        legacy_log.msg("Starting", "up", own=HOSTILE)
        record = self.read(events[-1])
        self.assertEqual((record["level"], record["text"]), ("info", "Starting up"))
        self.assertEqual(set(record["fields"]), {"own"})

    def test_empty_event_has_null_values(self) -> None:
        self.assertEqual(
            self.read({}),
            {"time": None, "level": None, "namespace": None, "format": None, "text": "", "fields": {}},
        )

    @given(
        st.dictionaries(
            st.text(max_size=5),
            st.one_of(
                st.text(),
                st.text(st.sampled_from(HOSTILE)),
                st.binary(),
                st.integers(),
                st.floats(),
                st.booleans(),
                st.builds(NoRepr),
                st.lists(st.text()),
            ),
        ),
        st.text(st.sampled_from(HOSTILE)) | st.just("{a} {b!r} {c:5}"),
    )
    def test_any_event_is_one_line_of_json(self, fields: dict[str, object], format: str) -> None:
        event = {**fields, "log_format": format, "log_level": LogLevel.info, "log_namespace": "here", "log_time": 0.5}
        record = self.read(event)
        self.assertEqual((record["level"], record["namespace"]), ("info", "here"))
        self.assertEqual(record["time"], "1970-01-01T00:00:00.500000Z")


class UnderTwistd(SynchronousTestCase):
    """The log that a service sets up under twistd."""

    def service(self, *options: str) -> Any:
        """Return the service that `makeService` makes for a command line of twistd."""
        self.patch(tap, "keep_steady_time", lambda _: None)  # the test's reactor and signals must not change
        self.patch(tap.at_start, "begin", lambda: None)
        twistd = ServerOptions()
        twistd.parseOptions(["-n", *options, "--auth-url", "http://127.0.0.1/", "--message-log", "none"])
        return tap.makeService(twistd.subOptions)  # type: ignore[arg-type]

    def logged(self, *options: str) -> list[str]:
        """Log an event of each level; return the lines of the log file."""
        path = self.mktemp()
        application = Application("chatrelay")
        service = self.service("--logfile", path, *options)
        service.setServiceParent(application)
        observer = application.getComponent(ILogObserver)
        logger = Logger(namespace="here", observer=observer)
        for level in LogLevel.iterconstants():
            logger.emit(level, "an event")
        service._twistd_log.queue.finish()
        with open(path) as file:
            return file.read().splitlines()

    def test_text_format_is_twistds_own(self) -> None:
        lines = self.logged("chatrelay")
        self.assertEqual(
            [line.partition(" ")[2] for line in lines],
            [f"[here#{level}] an event" for level in ("info", "warn", "error", "critical")],
        )

    def test_json_format_writes_json_to_the_log_file(self) -> None:
        lines = self.logged("chatrelay", "--log-format", "json")
        self.assertEqual([json.loads(line)["level"] for line in lines], ["info", "warn", "error", "critical"])

    def test_events_below_the_log_level_are_not_logged(self) -> None:
        for lowest, lines in (("debug", 5), ("info", 4), ("warn", 3), ("error", 2)):
            self.assertEqual(len(self.logged("chatrelay", "--log-level", lowest)), lines, lowest)

    def test_syslog_uses_our_observer_and_the_logger_option_does_not(self) -> None:
        for options, is_ours in ((("--syslog",), True), (("--logger", "twisted.logger.LogPublisher"), False)):
            application = Application("chatrelay")
            self.service(*options, "chatrelay").setServiceParent(application)
            self.assertIs(application.getComponent(ILogObserver) is not None, is_ours)

    def test_service_without_twistd_sets_no_observer(self) -> None:
        options = tap.Options()
        options.parseOptions(["--auth-url", "http://127.0.0.1/", "--message-log", "none"])
        application = Application("chatrelay")
        tap.makeService(options).setServiceParent(application)
        self.assertIsNone(application.getComponent(ILogObserver))

    def test_json_with_syslog_or_logger_is_refused(self) -> None:
        json_log = ("chatrelay", "--log-format", "json")
        error = self.assertRaises(SystemExit, self.service, "--syslog", *json_log)
        self.assertIn("json excludes twistd's --syslog", str(error))
        error = self.assertRaises(SystemExit, self.service, "--logger", "twisted.logger.LogPublisher", *json_log)
        self.assertIn("json excludes twistd's --logger", str(error))

    def test_standard_output_in_the_background_is_refused(self) -> None:
        self.patch(tap, "keep_steady_time", lambda _: None)
        self.patch(tap.at_start, "begin", lambda: None)
        twistd = ServerOptions()
        twistd.parseOptions(["--logfile", "-", "chatrelay", "--auth-url", "http://127.0.0.1/", "--message-log", "none"])
        error = self.assertRaises(SystemExit, tap.makeService, twistd.subOptions)
        self.assertIn("logfile: - is standard output, which twistd has only with -n", str(error))

    def test_log_file_in_a_missing_folder_is_refused(self) -> None:
        path = self.mktemp() + "/log"
        error = self.assertRaises(SystemExit, self.service, "--logfile", path, "chatrelay")
        self.assertRegex(
            str(error), r"^chatrelay: --logfile: /\S+/log cannot be opened: there is no folder /\S+: give --logfile"
        )

    def test_log_file_that_is_a_pipe_is_refused(self) -> None:
        ours, theirs = os.pipe()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        error = self.assertRaises(SystemExit, self.service, "--logfile", f"/dev/fd/{theirs}", "chatrelay")
        self.assertRegex(
            str(error), r"^chatrelay: --logfile: /dev/fd/\d+ cannot be opened: it is not a file; .* with -n"
        )
