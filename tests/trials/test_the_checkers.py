"""The trials themselves: each build in `tests.trials.broken` makes a trial fail for the right reason."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support import ROOT, programs, saturation
from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.programs import HIGH_RATES, RelayProcess, Site
from tests.trials import again, durability, jitter, lives
from tests.trials import siege as siege_module
from tests.trials.broken import BUILDS
from tests.trials.durability import Stage
from tests.trials.siege import Begin, siege
from tests.trials.storm import storm

__all__ = ["siege", "storm"]


class Trials:
    """The trials in their short forms."""

    def __init__(self, stage: Stage, request: pytest.FixtureRequest) -> None:
        self.stage = stage
        self.evidence = Evidence("of a broken build")
        self._request = request

    def module(self, name: str) -> ModuleType:
        """Return the module of a trial as pytest finds it, so that the same test is run."""
        found: ModuleType = pytest.Module.from_parent(self._request.session, path=ROOT / "tests" / f"{name}.py").obj
        return found

    def _start(self, *options: str, **keywords: Any) -> RelayProcess:
        relay: RelayProcess = self._request.getfixturevalue("start_relay")(*options, **keywords)
        return relay

    def sigkill_under_load(self) -> None:
        durability.killed_under_load(self.stage, self.evidence, rounds=2)

    def sent_again_after_kills(self) -> None:
        again.killed_between_commit_and_answer(self.stage, self.evidence, kills=3)

    def cuts_and_kills(self) -> None:
        jitter.over_cuts_and_kills(self.stage.folder, self.evidence, full=False)

    def a_log_is_rotated_under_load(self) -> None:
        durability.rotated_under_load(self.stage, self.evidence, rounds=1)

    def a_write_ahead_log_is_removed_under_load(self) -> None:
        durability.a_write_ahead_log_is_removed_under_load(self.stage, self.evidence, rounds=1)

    def a_second_relay(self) -> None:
        (self.stage.folder / "disk").mkdir()
        self.module("end_to_end/test_log_files").test_second_relay_is_refused_after_the_lock_file_was_removed(
            self._start, self.stage.site, self.stage.folder, self.stage.folder / "disk"
        )

    def a_start_with_a_long_write_ahead_log(self) -> None:
        durability.a_start_with_a_long_write_ahead_log(self.stage, self.evidence, 100_000_000)

    def a_sync_precedes_every_answer(self) -> None:
        durability.a_sync_precedes_every_answer(self.stage, self.evidence, answers=400)

    def unsynced_writes_are_lost(self) -> None:
        durability.unsynced_writes_are_lost(self.stage, self.evidence, cuts=20, recoveries=0)

    def unsynced_notes_are_lost(self) -> None:
        lives.unsynced_notes_are_lost(self.stage, self.evidence, cuts=24)

    def one_sync_fails_under_load(self) -> None:
        durability.one_sync_fails_under_load(self.stage, self.evidence)

    def syncs_fail_again_and_again(self) -> None:
        durability.syncs_fail_again_and_again(self.stage, self.evidence, messages=20)

    def a_slow_disk_at_saturation(self) -> None:
        durability.a_slow_disk_at_saturation(self.stage, self.evidence)

    def full_load(self) -> None:
        self._full_load(tls=False)

    def full_load_over_tls(self) -> None:
        self._full_load(tls=True)

    def _full_load(self, tls: bool) -> None:
        stage = self.stage
        self.module("end_to_end/test_full_load").test_every_request_gets_one_true_answer_in_order(
            self._start, stage.site, stage.folder, self.evidence, False, "yes", tls, "sqlite:chatrelay.sqlite3"
        )

    def bursts(self) -> None:
        self.module("end_to_end/test_send_limits").test_30th_message_passes_and_31st_is_refused(self._start, "yes")

    def new_recipients(self) -> None:
        self.module("end_to_end/test_send_limits").test_new_connection_of_a_user_has_the_limits_of_the_user(
            self._start, "yes"
        )

    def slow_readers(self) -> None:
        self.module("end_to_end/test_fast_path").test_client_that_does_not_read_is_closed_and_the_sender_is_refused(
            self._start, "yes"
        )

    def large_messages(self) -> None:
        relay = self._start(*HIGH_RATES)
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            self.module("end_to_end/test_tls").test_large_messages_pass_over_tls_up_to_the_limit((alice, bo))

    def login_storm(self) -> None:
        self.module("trials/test_login_storm").test_tabs_of_a_user_are_one_request(
            self._request.getfixturevalue("storm")
        )

    def deflate_bombs(self) -> None:
        self.module("trials/test_hostile_clients").test_deflate_bombs_are_refused_and_logins_stay_fast(
            self._siege, self.evidence
        )

    def silent_connections(self) -> None:
        self.module("trials/test_hostile_clients").test_silent_connections_are_closed_and_logins_stay_fast(
            self._siege, False, self.evidence
        )

    def a_header_of_20_mb(self) -> None:
        self.module("trials/test_hostile_clients").test_header_of_20_mb_is_refused_and_logins_stay_fast(
            self._siege, self.evidence
        )

    def a_million_empty_fragments(self) -> None:
        self.module("trials/test_hostile_clients").test_million_empty_fragments_close_and_logins_stay_fast(
            self._siege, self.evidence
        )

    def unusable_messages(self) -> None:
        self.module("trials/test_costly_bytes").test_unusable_messages_of_visitors_leave_the_relay_responsive(
            self._start(), self.stage.folder, self.evidence, False
        )

    def messages_in_empty_fragments(self) -> None:
        self.module("trials/test_costly_bytes").test_messages_in_empty_fragments_leave_the_relay_responsive(
            self._start(), self.stage.folder, self.evidence, False
        )

    def unread_pings(self) -> None:
        self.module("trials/test_hostile_clients").test_100_000_unread_pings_close_and_logins_stay_fast(
            self._siege, self.evidence
        )

    def who_does_not_read(self) -> None:
        self.module("trials/test_slow_readers").test_slow_readers_are_closed_and_memory_is_bounded(
            self._start, self.stage.site, False, self.evidence
        )

    def half_open_connections(self) -> None:
        relay = self._start("--ping-interval", "1", "--ping-timeout", "1", listen="tcp:0")
        self.module("trials/test_half_open").stopped_clients(
            self.module("trials/test_half_open").Half(relay, self.stage.site, limit=8), self.evidence
        )

    def the_clock_is_set(self) -> None:
        try:
            self.module("trials/test_clock").test_set_clock_changes_no_deadline(
                self._start, self.stage.site, False, self.stage.folder, evidence=self.evidence
            )
        except ConnectionClosed as end:
            raise AssertionError(f"somebody was closed: {end}") from end

    def few_descriptors(self) -> None:
        self.module("trials/test_descriptors").test_connections_leave_descriptors_in_reserve(
            self._start, None, self.evidence
        )

    def sigterm_under_load(self) -> None:
        self.module(
            "trials/test_stopping_under_load"
        ).test_sigterm_under_load_closes_all_with_4000_and_keeps_what_it_acknowledged(
            self._start, self.stage.site, self.evidence, False, "yes"
        )

    def a_webserver_away_for_a_second(self) -> None:
        self._outage(20, 1)

    def a_webserver_that_returns(self) -> None:
        self._outage(20, self.module("trials/test_webserver").SHORT.seconds)

    def a_webserver_that_goes_away(self) -> None:
        self._outage(50, 2.5)  # long enough for everybody to be asked about again

    def _outage(self, users: int, seconds: float) -> None:
        outage = replace(self.module("trials/test_webserver").SHORT, users=users, seconds=seconds)
        asyncio.run(self.module("trials/test_webserver").outages(self.stage.folder, self.evidence, outage))

    def churn(self) -> None:
        self.module("trials/test_churn").test_hour_of_churn_leaves_no_memory_and_no_descriptors(
            self.stage.folder, self.evidence, False
        )

    def many_denials(self) -> None:
        self.module(
            "end_to_end/test_denied_logins"
        ).test_login_from_an_address_with_20_denials_is_denied_without_a_request(self.stage.site, self._start)

    def one_denial(self) -> None:
        self.module("end_to_end/test_denied_logins").test_denial_is_remembered_for_five_seconds(
            self.stage.site, self._start
        )

    def a_ticket_brought_twice(self) -> None:
        self.module("end_to_end/test_who_gets_in").test_ticket_brought_twice_at_once_logs_in_once(
            self.stage.site, self._start
        )

    @property
    def _siege(self) -> Begin:
        begin: Begin = self._request.getfixturevalue("siege")
        return begin


Caught = tuple[str, Callable[[Trials], None], str]
"""A build, the trial that catches it, and the error message."""

CAUGHT: list[Caught] = [
    ("answers before the commit", Trials.a_sync_precedes_every_answer, "C1: .* before it was synced"),
    ("drops the sync", Trials.unsynced_writes_are_lost, "C1"),
    ("writes every thousandth batch", Trials.sigkill_under_load, "C1: .* is not in the log|C8"),
    (
        "lets SQLite throw an orphaned write-ahead log away",
        Trials.a_log_is_rotated_under_load,
        "C1: .* is not in the log|C8",
    ),
    ("goes by the name of a link", Trials.a_write_ahead_log_is_removed_under_load, "C1|C8"),
    ("answers what is sent again by a second row", Trials.sent_again_after_kills, "was sent again, and has 2 places"),
    ("replays from a wrong place", Trials.sent_again_after_kills, r"place \d+ came after place \d+"),
    ("loses the race of replay and live", Trials.cuts_and_kills, r"place \d+ came after place \d+"),
    ("reorders what it delivers", Trials.full_load, "out of order"),
    ("delivers what it refuses", Trials.one_sync_fails_under_load, "C3: .* was refused and delivered"),
    ("forgets messages-per-second", Trials.bursts, "rate-limited"),
    ("forgets message-size", Trials.large_messages, "not closed within"),
    ("forgets breaker-failures", Trials.a_webserver_away_for_a_second, "the breaker opened 0 times"),
    ("shares a ticket as it shares a session", Trials.a_ticket_brought_twice, "2 got in by one ticket"),
]
"""The pairs that are run with every change."""

CAUGHT_IN_FULL: list[Caught] = [
    ("answers before the commit", Trials.unsynced_writes_are_lost, "C1: .* is not in the log|C8"),
    ("drops the sync", Trials.a_sync_precedes_every_answer, "C1: .* before it was synced"),
    (
        "does not sync the note beside the log",
        Trials.unsynced_notes_are_lost,
        "gave the log another epoch|has its epoch",
    ),
    ("locks a file that can be removed, and no other", Trials.a_second_relay, "it started"),
    ("reads a write-ahead log at once", Trials.a_start_with_a_long_write_ahead_log, "MB more with a write-ahead log"),
    ("leaves a message out of the log", Trials.full_load, "C1: .* is not in the log|C8"),
    ("logs a message twice", Trials.full_load, "C1: .* more than once"),
    ("reorders what it logs", Trials.full_load, "C7: .* is out of order in the log"),
    ("takes a failed commit for one", Trials.syncs_fail_again_and_again, "acknowledged, and marked undelivered"),
    ("answers twice", Trials.full_load, "C9: .* answered more than once"),
    ("leaves a request unanswered", Trials.full_load, "not enough to be answered"),
    ("delivers to one connection of many", Trials.full_load, "C2: .* did not reach every connection"),
    ("reorders what it delivers", Trials.full_load_over_tls, "out of order"),
    ("writes past TLS", Trials.full_load_over_tls, "not enough to log in"),
    ("reorders what it delivers", Trials.sent_again_after_kills, "out of order"),
    ("drops an answer at or below the cursor", Trials.sent_again_after_kills, "sent again are not answered"),
    ("gives a place twice", Trials.sent_again_after_kills, "was closed: .* 4005|was given twice"),
    ("forgets own devices", Trials.cuts_and_kills, "lacks what is at the places"),
    ("sends past an unsettled place", Trials.cuts_and_kills, "and the log has nothing: it is void"),
    ("sends a receipt too far", Trials.cuts_and_kills, "and no device has said so"),
    ("forgets how many may wait for the log", Trials.a_slow_disk_at_saturation, "not enough to be refused"),
    ("forgets new-recipients-per-minute", Trials.new_recipients, "rate-limited"),
    ("forgets unread-size", Trials.slow_readers, "were taken for a client|10000000"),
    ("forgets unread-size", Trials.who_does_not_read, r"grew by \d+ MiB"),
    ("forgets pings", Trials.half_open_connections, "0 of 20 found"),
    ("goes by the clock on the wall", Trials.the_clock_is_set, r"assert \d+ <= \(1 \+|somebody was closed"),
    ("keeps no descriptors in reserve", Trials.few_descriptors, "did not say 'refused: the relay is full"),
    # Then it is over so soon that a slow machine hardly sees it not ready.
    ("tells all at once that it stops", Trials.sigterm_under_load, r" > \(2\.0 \* 0\.5\)|times not ready"),
    ("forgets webserver-checks", Trials.login_storm, "<= 5"),
    ("forgets breaker-longest-wait", Trials.a_webserver_that_returns, r"a login \d.* after the site's return"),
    (
        "asks on while the breaker is open",
        Trials.a_webserver_that_goes_away,
        "POSTs to a site that does not answer|a probe 0",
    ),
    (
        "puts people out while the site cannot be asked",
        Trials.a_webserver_that_goes_away,
        "4501|receiving-user-not-connected",
    ),
    ("keeps what has gone", Trials.churn, "bytes of each connection stay"),
    ("forgets logins-per-minute", Trials.many_denials, "assert 60 <= "),
    ("remembers no denial", Trials.one_denial, "a session that was just denied was asked about again"),
    ("forgets handshake-size", Trials.a_header_of_20_mb, r"assert \d+ < \(16384 \+"),
    ("forgets handshake-timeout", Trials.silent_connections, "attackers are still there"),
    ("forgets message-frames", Trials.a_million_empty_fragments, r"== \(1002, |timed out"),
    ("diagnoses before the limit", Trials.unusable_messages, "beside expensive bytes"),
    ("forgets frames-per-second", Trials.messages_in_empty_fragments, "beside expensive bytes"),
    ("forgets the bound on control frames", Trials.unread_pings, r"assert \d+ <= \(10 \*|timed out"),
    ("forgets the bound on what is unpacked", Trials.deflate_bombs, "the relay grew by "),
]
"""The pairs that ``make trials`` runs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "says" in metafunc.fixturenames:
        caught = CAUGHT + CAUGHT_IN_FULL if metafunc.config.getoption("full") else CAUGHT
        names = [f"{name}, {trial.__name__}" for name, trial, _ in caught]
        metafunc.parametrize(("name", "trial", "says"), caught, ids=names)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")
def test_broken_build_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    site: Site,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    evidence: Evidence,
    name: str,
    trial: Callable[[Trials], None],
    says: str,
) -> None:
    """Every pair of a build and a trial; in the short form only those of `CAUGHT`."""
    broken = f"from tests.trials.broken import build; build({name!r})\n{programs.TWISTD}"
    monkeypatch.setattr(programs, "TWISTD", broken)
    # Waits for events that do not happen are shorter.
    if "not enough" in says:
        monkeypatch.setattr(saturation, "PATIENCE", 5.0)
    monkeypatch.setattr(Client.closed, "__defaults__", (3.0,))
    # One bomb that is unpacked shows it, and each takes a while.
    trials = Trials(Stage(tmp_path, site), request)
    monkeypatch.setattr(trials.module("trials/test_hostile_clients"), "BOMBS", 10)
    monkeypatch.setattr(siege_module, "LOGINS", 5)
    started: list[RelayProcess] = []
    enter = RelayProcess.__enter__
    monkeypatch.setattr(RelayProcess, "__enter__", lambda relay: started.append(relay) or enter(relay))
    with pytest.raises((AssertionError, TimeoutError), match=says) as caught:
        trial(trials)
    # A replacement that no longer fits the relay breaks it in another way than intended.
    assert not [line for relay in started for line in relay.output if "please report it" in line]
    evidence.count("broken build", len(started) and 1, at_least=1)
    evidence.figure(f"the trial {trial.__name__} says: {str(caught.value).splitlines()[0][:100]}")


def test_every_broken_build_has_a_trial() -> None:
    assert {name for name, _, _ in CAUGHT + CAUGHT_IN_FULL} | {
        "a short WAL",
        "waits after each commit",
        "has a slow disk",
    } == BUILDS.keys()


def test_build_that_replaces_a_missing_name_does_not_run() -> None:
    from tests.trials.broken import replace as replace_it

    with pytest.raises(KeyError):
        replace_it(Stage, "no_such_name", lambda old: old)
