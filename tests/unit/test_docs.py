"""The pages in docs/ match the code: what both contain is the same in both.

The pages are read as text and not rendered, so that Sphinx is not needed. tests/end_to_end/test_protocol_page.py runs
the examples of the protocol page.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import attrs
from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.logger import LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.app.cli import main
from chatrelay.auth import authenticator as auth
from chatrelay.auth import client as session_page
from chatrelay.auth import throttle as attempts
from chatrelay.auth import verdicts
from chatrelay.config.checks import MIN_OPS_TOKEN_CHARACTERS, option_name
from chatrelay.config.options import Config
from chatrelay.limits import buckets as limits
from chatrelay.limits import origins, pace
from chatrelay.limits.admission import LimitReached
from chatrelay.limits.sending import MAX_KNOWN_RECIPIENTS
from chatrelay.model import MAX_CONTENT, MAX_INTEGER, MAX_SESSID, MAX_TOKEN
from chatrelay.relay import base_session as session
from chatrelay.relay import delivery as relay
from chatrelay.relay import inbox, overview, presence, reads, receipts, typing
from chatrelay.web import ops as web
from chatrelay.websocket import closing as ends
from chatrelay.websocket import outbox, sweep
from chatrelay.wire import structs_v2, v2
from chatrelay.wire import v1 as wire
from chatrelay.wire.codes import CloseCode, Reason
from tests.support import ROOT

DOCS = ROOT / "docs"

RESERVED_REASONS = {"delivery-unconfirmed"}
RESERVED_CLOSE_CODES = {"4003"}

WITHOUT_EXAMPLE = {"busy"}
"""Can't be caused over the wire in reasonable time; tests/unit/relay/test_delivery.py tests it."""

CODES_WITHOUT_EXAMPLE = {"4005"}
"""The close code of v2 that takes a message log that fails while it is read."""


def page(name: str) -> str:
    """Return a page's source."""
    return (DOCS / name).read_text("utf-8")


def rows(text: str, table: str) -> list[list[str]]:
    """Return the rows of a list-table without its header, with each cell on one line.

    :param table: the table's ``:name:``.
    """
    _, _, rest = text.partition(f"   :name: {table}\n")
    assert rest, f"there is no table {table}"
    lines: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line)
    body = "\n".join(lines)
    found = [re.split(r"\n     - ", row) for row in re.split(r"\n   \* - ", body)[1:]]
    return [[" ".join(cell.split()) for cell in row] for row in found[1:]]


def literals(text: str, table: str) -> list[str]:
    """Return the first cells of a table, which are literals."""
    return [row[0].removeprefix("``").removesuffix("``") for row in rows(text, table)]


def printed_messages() -> Iterator[tuple[str, str]]:
    """Find the formats of all log messages, with ``…`` for each field, and their levels."""
    for path in sorted((ROOT / "chatrelay").rglob("*.py")):
        if "demo" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("info", "warn", "error", "critical", "failure")
                and ast.unparse(node.func.value).rpartition(".")[2].strip("_") in ("log", "logger", "events")
            ):
                (format, *_) = node.args
                assert isinstance(format, ast.Constant) and isinstance(format.value, str), ast.unparse(node)
                yield (
                    re.sub(r"\{[^}]*\}", "…", format.value).replace("\n", " "),
                    node.func.attr.replace("failure", "critical"),
                )


def string_constants() -> list[str]:
    """Return every string in the source; for an f-string, the pieces between its fields."""
    return [
        node.value
        for path in (ROOT / "chatrelay").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def logged_messages(name: str) -> set[tuple[str, str]]:
    """Return the log messages that a page of docs/operating explains, with their levels."""
    return set(re.findall(r"^``(.+)`` : (info|warn|error|critical)$", page(f"operating/{name}"), re.MULTILINE))


class ProtocolPage(SynchronousTestCase):
    """docs/protocol.rst matches chatrelay.wire.v1."""

    text = page("protocol.rst")

    def test_table_of_reasons_has_every_reason(self) -> None:
        published = literals(self.text, "table-of-reasons")
        self.assertEqual(sorted(published), sorted(reason.value for reason in Reason))

    def test_table_of_close_codes_has_every_close_code(self) -> None:
        published = literals(self.text, "table-of-close-codes")
        self.assertEqual(published, [str(code.value) for code in sorted(CloseCode)])

    def test_reserved_reasons_and_codes_are_published_and_never_sent(self) -> None:
        reasons = literals(self.text, "table-of-reserved-reasons")
        codes = literals(self.text, "table-of-reserved-close-codes")
        self.assertEqual(set(reasons), RESERVED_REASONS)
        self.assertEqual(set(codes), RESERVED_CLOSE_CODES)
        self.assertEqual(RESERVED_REASONS & {reason.value for reason in Reason}, set())
        self.assertEqual(RESERVED_CLOSE_CODES & {str(code.value) for code in CloseCode}, set())

    def test_each_reason_says_what_a_client_should_do(self) -> None:
        for reason, _, what_to_do in rows(self.text, "table-of-reasons"):
            said = re.findall(r"\*\*(Retry now|Retry later|Give up|Log in again)\*\*", what_to_do)
            self.assertEqual(len(said), 1, reason)

    def test_each_close_code_says_whether_to_reconnect(self) -> None:
        for table in ("table-of-close-codes", "table-of-reserved-close-codes"):
            for code, _, reconnect in rows(self.text, table):
                number = int(code.strip("`"))
                self.assertTrue(reconnect.startswith("No" if number >= 4500 else "Yes"), code)

    def test_each_reason_and_close_code_has_an_example(self) -> None:
        shown = set(re.findall(r'"reason":"([^"]+)"', self.text))
        self.assertEqual(shown, {reason.value for reason in Reason} - WITHOUT_EXAMPLE)
        closed = set(re.findall(r"^   \S+ ← closed (\d+)$", self.text, re.MULTILINE))
        self.assertEqual(closed, {str(code.value) for code in CloseCode} - CODES_WITHOUT_EXAMPLE)

    def test_numbers_on_the_page_are_those_of_the_code(self) -> None:
        text = " ".join(self.text.split())
        defaults = {field.name: field.default for field in attrs.fields(Config)}
        self.assertEqual(MAX_INTEGER, 2**53)
        self.assertEqual((session.MAX_DENIALS, session.MAX_UNUSABLE_FRAMES), (3, 10))
        self.assertEqual((session.MAX_REFUSALS_IN_A_ROW, session.BACK_OFF_SECONDS), (60, 0.5))
        rate, burst = defaults["messages_per_second"], defaults["message_burst"]
        new_recipients = defaults["new_recipients_per_minute"]
        control_frames = defaults["control_frames_per_second"]
        control_frame_burst = defaults["control_frame_burst"]
        for said in (
            f"string of 1 to {MAX_SESSID} characters",
            f"string of at most {MAX_TOKEN} characters",
            f"string of 1 to {MAX_TOKEN} printable characters",
            f"at most {MAX_CONTENT:,} bytes of UTF-8",
            f"- {defaults['message_size']:,} - closed with 1009",
            f"- {defaults['message_frames']} - closed with 1002",
            f"- {defaults['message_timeout']:g} s - closed with 1002",
            f"- {defaults['login_timeout']:g} s - closed with 4001",
            f"- {defaults['unauthenticated_per_address']} - refused with 429",
            f"that are not logged in ({defaults['unauthenticated_per_address']} unless changed)",
            f"that are not logged in ({defaults['unauthenticated']:,} unless changed)",
            f"- {defaults['connections_per_user']} - the oldest is closed with 4504",
            f"limits a user's connections ({defaults['connections_per_user']} unless changed)",
            f"- {defaults['unread_size'] // 1024**2} MiB - closed with 4002",
            f"all that waits for it, or {pace.MIN_PROGRESS // 1024} KiB of it - {defaults['unread_time']:g} s - closed with",
            f"- {defaults['ping_timeout']:g} s - closed with 4004",
            f"pings every {defaults['ping_interval']:g} s unless",
            f"- {rate:g} a second, {burst} at once - ``rate-limited``, then closed with 4503",
            f"may send {burst} messages at once, and {rate:g} a second in the long run",
            f"The {session.MAX_REFUSALS_IN_A_ROW + 1}st of them in a row",
            f"past {session.REAUTHENTICATIONS_PER_MINUTE} such requests at once or {session.REAUTHENTICATIONS_PER_MINUTE} a minute in the long run "
            f"(one more every {limits.MINUTE / session.REAUTHENTICATIONS_PER_MINUTE:g} seconds)",
            f"one past {session.REAUTHENTICATIONS_PER_MINUTE} at once and {session.REAUTHENTICATIONS_PER_MINUTE} a minute",
            f"- {defaults['user_messages_per_second']:g} a second, {burst} at once - ``rate-limited``",
            f"- {defaults['user_messages_per_second']:g} messages a second, and {burst} at once",
            f"- {new_recipients} a minute, {new_recipients} at once - ``rate-limited``",
            f"- {new_recipients} users a minute to whom the user has not written before",
            f"the last {MAX_KNOWN_RECIPIENTS} to whom",
            f"- {control_frames:g} a second, {control_frame_burst:g} at once - closed with 1002",
            f"for {control_frame_burst:g} at once and {control_frames:g} a second",
            f"({defaults['handshake_size'] // 1024} KiB unless changed)",
            f"not complete after {defaults['handshake_timeout']:g} s",
            f"more than {relay.MAX_WAITING:,} messages",
            f"{defaults['logins_per_minute']} a minute, {defaults['logins_per_minute']} at once - denied",
            f"A denial holds for {defaults['denial_memory']:g} s unless changed",
            f"cuts it off {defaults['closing_timeout']:g} s later (unless changed)",
            f"Past {defaults['logins_per_minute']} denials a minute",
            f"``{wire.SUBPROTOCOL}``",
            f"``{v2.SUBPROTOCOL}``",
            f"no more than {defaults['replay_messages']:,} places are missing",
            f"more than {outbox.MAX_UNSENT // 1024} KiB unread",
            f"retries for {inbox.READ_SECONDS:g} s and then closes",
            f"a string of {structs_v2.MIN_UNIQUE_ID} to {MAX_TOKEN} characters that is unique",
            f"``limit`` is 1 to {structs_v2.MAX_LIMIT}, and {structs_v2.DEFAULT_LIMIT} if it is missing",
            f"An answer has at most {v2.MAX_ANSWER // 1024} KiB",
            f"counted up to {overview.MAX_UNREAD}",
            f"receipts come at most every {receipts.RECEIPT_SECONDS * 1000:g} milliseconds",
            f"this connection watches, at most {structs_v2.MAX_WATCHED}.",
            f"in either version, and for {presence.OFFLINE_SECONDS:g} seconds after that",
            f"one ``presence`` about a user in {presence.FRAME_SECONDS:g} seconds",
            f"passes it on at most every {typing.TYPING_SECONDS:g} seconds",
            f"More than {reads.MAX_WAITING_READS} others wait",
            f"may send {defaults['stranger_messages']} messages in 24 hours",
            f"{defaults['offline_messages']:,} messages are stored, a tenth of them",
        ):
            self.assertTrue(said in text, f"the page does not say: {said}")


class WebserverPage(SynchronousTestCase):
    """docs/webserver.rst has the numbers of the code."""

    def test_numbers_on_the_page_are_those_of_the_code(self) -> None:
        text = " ".join(page("webserver.rst").split())
        config = Config()
        for said in (
            f"within {config.webserver_timeout:g} seconds of the POST (``--webserver-timeout``)",
            f"larger than {config.webserver_answer_size // 1024} KiB after decompression (``--webserver-answer-size``)",
            f"larger than {(config.webserver_answer_size + session_page.MAX_OVERHEAD_BYTES) // 1024} KiB as sent, including headers",
            f"At most {config.webserver_checks} requests",
            f"in place of this ``SESSID``: 1 to {MAX_SESSID} characters",
            f"every {config.recheck_interval:g} seconds",
            f"up to {session.REAUTHENTICATIONS_PER_MINUTE} times a minute for a connection that is logged in already",
            f"up to {config.recheck_spread:g} per cent more or less (``--recheck-spread``)",
            f"first after {config.breaker_wait:g} s (``--breaker-wait``)",
            f"every {config.breaker_longest_wait:g} s (``--breaker-longest-wait``)",
            f"gone on for {config.recheck_grace:,g} seconds",
            f"A denial is remembered for {config.denial_memory:g} seconds (``--denial-memory``",
            f"{config.logins_per_minute} logins a minute may be denied",
            f"one more every {limits.MINUTE / config.logins_per_minute:g} seconds",
            f"When {config.breaker_failures} requests in a row",
            f"{verdicts.DENIAL_STATUSES[0]} or {verdicts.DENIAL_STATUSES[1]}, whatever the body",
            f"1 to {MAX_SESSID} characters",
            f"1 to {MAX_TOKEN} printable characters",
        ):
            self.assertTrue(said in text, f"the page does not say: {said}")


class OperatingPages(SynchronousTestCase):
    """The pages in docs/operating match what the relay prints and accepts."""

    text = "\n\n".join(path.read_text("utf-8") for path in sorted((DOCS / "operating").glob("*.rst")))

    def test_numbers_on_the_page_are_those_of_the_code(self) -> None:
        text = " ".join(self.text.split())
        limit = Config().logins_per_minute
        closing = Config().closing_timeout
        self.assertEqual((session.MAX_DENIALS, session.MAX_UNUSABLE_FRAMES), (3, 10))
        self.assertEqual(sweep.RECOVERY_SWEEPS * sweep.SWEEP_SECONDS, limits.MINUTE)
        for said in (
            "It has not failed for a minute.",
            f"that the site denied less than ``denial-memory`` ({Config().denial_memory:g} seconds) ago",
            f"{limit} at once, and {limit} a minute in the long run",
            f"one more every {limits.MINUTE / limit:g} seconds",
            f"remembers up to {attempts.MAX_ADDRESSES:,} addresses",
            f"a keyed hash of a denied session, up to {attempts.MAX_DENIED_SESSIONS:,}",
            f"Each minute, up to {origins.LINES_PER_MINUTE} new refused origins and up to {origins.LINES_PER_MINUTE}",
            f"{session.MAX_REFUSALS_IN_A_ROW} refusals in a row",
            f"{session.REAUTHENTICATIONS_PER_MINUTE} auth-requests at once, and {session.REAUTHENTICATIONS_PER_MINUTE} a minute, of a connection",
            f"{MAX_KNOWN_RECIPIENTS} recipients that the relay remembers",
            f"{relay.MAX_WAITING:,} messages waiting for the message log",
            f"{auth.MAX_QUEUE:,} logins waiting for the session page",
            f"has ``closing-timeout`` ({closing:g} s) to leave",
            f"its file descriptor is free after at most {2 * closing + 1:g} s",
            f"it is cut after ``closing-timeout`` ({closing:g} s)",
            f"cut ``closing-timeout`` ({closing:g} s) later",
            f"{web.MAX_CONNECTIONS} connections to the ops endpoint at once, {web.REQUEST_SECONDS:g} seconds each",
            f"printable ASCII without spaces, at least {MIN_OPS_TOKEN_CHARACTERS} characters",
            f"- {relay.MAX_WAITING:,} × {MAX_CONTENT // 1024} KiB of text",
            f"- {relay.MAX_WAITING * MAX_CONTENT // 1024**2} MiB; four times that if",
            f"- {Config().unread_size // 1024**2} MiB each: 1,000 MiB for 1,000",
            f"- {Config().message_size // 1024} KiB each: {Config().message_size * 10_000 // 1024**2} MiB for 10,000",
            f"- {Config().handshake_size // 1024} KiB × {Config().unauthenticated:,}: 78 MiB",
        ):
            self.assertTrue(said in text, f"the page does not say: {said}")

    def test_each_log_message_is_in_the_pages_with_its_level(self) -> None:
        listed = logged_messages("troubleshooting.rst") | logged_messages("monitoring.rst")
        self.assertEqual(listed, set(printed_messages()))

    def test_each_warning_and_error_is_in_troubleshooting(self) -> None:
        alarming = {(message, level) for message, level in printed_messages() if level != "info"}
        self.assertEqual(alarming - logged_messages("troubleshooting.rst"), set())

    def test_each_documented_error_of_a_failed_start_is_printed_by_the_relay(self) -> None:
        _, _, rest = page("operating/troubleshooting.rst").partition("The relay does not start\n===")
        listed = re.findall(r"^``(.+?)``(?:, ``(.+)``)?$", rest.partition("\n===")[0], re.MULTILINE)
        parts = [part.strip(" ,") for pair in listed for term in pair for part in re.split("…|\\b\\d+\\b", term)]
        ours = [part for part in parts if part and "twistd server" not in part]
        self.assertTrue(ours)
        source = "\n".join(string_constants())
        self.assertEqual([part for part in ours if part not in source], [])

    def test_documented_fields_of_an_end_are_the_logged_ones(self) -> None:
        events: list[LogEvent] = []
        self.patch(ends, "log", Logger(observer=events.append))
        lines = ends.ConnectionLog(logs_each=True, allow=lambda what: False)
        lines.connection_refused("", LimitReached("", 0, False, ""))
        lines.connection_cut("")
        lines.handshake_refused("", 0, 400, "")
        lines.no_handshake("", 0, 426, "")
        for phase in (ends.HANDSHAKE, ends.VISITOR, ends.USER):
            lines.closed(phase, 1, "", 0, ends.STOPPING)
        told = {name for event in events for name in event if not name.startswith("log_")}
        published = [
            name for row in rows(self.text, "table-of-end-fields") for name in re.findall(r"``(\w+)``", row[0])
        ]
        self.assertEqual(sorted(published), sorted(told))
        (what,) = [row[1] for row in rows(self.text, "table-of-end-fields") if row[0] == "``phase``"]
        self.assertEqual(set(re.findall(r"``(\w+)``: ", what)), {event["phase"] for event in events})

    def test_documented_reasons_of_a_lost_connection_are_the_logged_ones(self) -> None:
        lost = [
            *(end for end in vars(ends).values() if isinstance(end, ends.CloseCause)),
            *(ends.of_loss(error) for error in (ConnectionDone(), ConnectionAborted(), ConnectionLost(), OSError())),
            ends.of_loss(ConnectionLost(), over_tls=True),
            ends.of_loss(ConnectionLost(), unacknowledged=35),
            ends.of_loss(SSL.Error([("", "", "35")])),
        ]
        told = {(end.reason.replace("35", "…"), end.by) for end in lost}
        table = rows(self.text, "table-of-losses")
        published = {(reason, by) for reasons, by, _ in table for reason in re.findall("``([^`]+)``", reasons)}
        self.assertEqual(published, told)

    def test_example_of_a_config_file_can_be_used(self) -> None:
        found = re.search(r"code-block:: toml\n.*\n\n((?:   .+\n)+)", self.text)
        assert found
        values = tomllib.loads(found[1].replace("   ", ""))
        config = Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        self.assertEqual(config.session_cookie, "session")


class Options(SynchronousTestCase):
    """Options that the pages name exist."""

    OF_OTHER_PROGRAMS = frozenset(
        {"config", "data-urlencode", "deploy-hook", "gid", "header", "help", "init", "json", "logfile", "logger"}
        | {
            *("peer", "pidfile", "reactor", "rounds", "scenario", "stop-timeout", "syslog", "uid", "ulimit", "umask"),
            "user",
        }
        | {"lines", "log", "noticed", "trace", "tree", "users", "volume", "window", "writers", "yes"}
    )

    def test_pages_name_existing_options_only(self) -> None:
        ours = {option_name(field.name) for field in attrs.fields(Config)}
        ours |= {option.removeprefix("--") for option in main.OPTIONS}
        for path in (ROOT / "README.rst", *DOCS.glob("*.rst"), *DOCS.glob("operating/*.rst")):
            lines = path.read_text("utf-8").splitlines()
            text = "\n".join(line for line in lines if "-->" not in line)  # the arrows of a diagram
            named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)\b", text))
            self.assertEqual(named - ours - self.OF_OTHER_PROGRAMS, set(), path.name)

    def test_each_zero_has_a_consequence(self) -> None:
        for field in attrs.fields(Config):
            if field.metadata["kind"] in (int, float):
                self.assertNotIn(field.metadata["zero"], ("", "no limit", "never"), field.name)


class Readme(SynchronousTestCase):
    """The first screen of the README has the two commands that set everything up."""

    def test_first_block_has_one_target_of_make_on_each_line(self) -> None:
        text = (ROOT / "README.rst").read_text("utf-8")
        block = text.split("::\n\n", 1)[1].split("\n\n", 1)[0]
        self.assertEqual(re.findall(r"^ +(make \w+)", block, re.MULTILINE), ["make run", "make test"])


class SecurityPage(SynchronousTestCase):
    """docs/security.rst names tests that exist."""

    text = page("security.rst")

    def test_each_defence_names_existing_tests(self) -> None:
        tests = {
            node.name
            for path in (ROOT / "tests").rglob("test_*.py")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        }
        for threat, _, proof in rows(self.text, "table-of-threats"):
            named = re.findall(r"``(test_\w+)``", proof)
            self.assertTrue(named, f"nothing proves the defence against: {threat}")
            self.assertEqual(set(named) - tests, set(), threat)

    def test_each_trial_is_named_on_the_page(self) -> None:
        trials = {
            node.name
            for path in (ROOT / "tests" / "trials").glob("test_*.py")
            if path.name != "test_the_checkers.py"  # it tests the trials
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        }
        self.assertTrue(trials)
        self.assertEqual(trials - set(re.findall(r"``(test_\w+)``", self.text)), set())


class Links(SynchronousTestCase):
    """``make docs`` fails on a broken link."""

    def check(self, root: Path) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, DOCS / "check_links.py", root], capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()

    def test_links_within_the_repository_lead_somewhere(self) -> None:
        self.assertEqual(self.check(ROOT), (0, []))

    def test_each_broken_link_is_reported(self) -> None:
        root = Path(self.mktemp())
        folder = "docs"  # a name that this file does not have in full, or it would be a broken link itself
        (root / folder).mkdir(parents=True)
        (root / folder / "there.rst").write_text("A heading, here\n===============\n")
        (root / "README.rst").write_text(
            f"`whole <{folder}/there.rst#a-heading-here>`_ `gone <{folder}/gone.rst>`_ `no <{folder}/there.rst#nothing>`_\n"
            f"`elsewhere <https://example.com/nothing>`_ ``{folder}/there.rst`` ``tests/gone.py``\n"
        )
        (root / "SECURITY.md").write_text("[gone](gone.md)\n")
        (root / "program.py").write_text(f"# see {folder}/lost.rst\n")
        reported = [
            f"README.rst: there is no {folder}/gone.rst",
            f"README.rst: {folder}/there.rst has no heading #nothing",
            "README.rst: there is no tests/gone.py",
            "SECURITY.md: there is no gone.md",
            f"program.py: there is no {folder}/lost.rst",
        ]
        self.assertEqual(self.check(root), (1, reported))


class Design(SynchronousTestCase):
    """docs/design.rst shows the existing rooms and layers."""

    text = page("design.rst")

    def test_each_package_has_its_row(self) -> None:
        listed = literals(self.text, "table-of-rooms")
        rooms = {path.name for path in (ROOT / "chatrelay").glob("*.py")} - {"__init__.py"}
        rooms |= {f"{path.parent.name}/" for path in (ROOT / "chatrelay").glob("*/__init__.py")}
        self.assertEqual(sorted(listed), sorted(rooms))

    def test_each_module_is_named_in_the_row_of_its_package(self) -> None:
        for room, what in rows(self.text, "table-of-rooms"):
            folder = ROOT / "chatrelay" / room.strip("`")
            if room == "``demo/``" or not folder.is_dir():
                continue
            named = set(re.findall(r"``(\w+\.py)``", what))
            # A folder within a room stands for its modules; that of SQLite has its modules named.
            folders = [path for path in folder.iterdir() if f"``{path.name}/``" in what]
            modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
            self.assertEqual(
                (modules - named, named - modules - {path.name for inner in folders for path in inner.glob("*.py")}),
                (set(), set()),
                f"docs/design.rst, {room}",
            )

    def test_layers_on_the_page_are_those_that_import_linter_checks(self) -> None:
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
        (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
        _, _, rest = self.text.partition("   :name: layers\n\n")
        shown = [line.strip() for line in rest.split("\n\n")[0].splitlines()]
        self.assertEqual(shown, layers)
