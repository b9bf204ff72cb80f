"""The trials of durability: `test_durability` runs them on the relay, `test_the_checkers` on broken builds."""

from __future__ import annotations

import random
import re
import signal
import sqlite3
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chatrelay.messagelog.sqlite import SqliteStore, recovery
from chatrelay.messagelog.sqlite.files import LogFiles
from chatrelay.model import Message
from tests.support import PATIENCE
from tests.support.client import Client
from tests.support.evidence import Evidence
from tests.support.processes import peak, resident
from tests.support.programs import HIGH_RATES, RelayProcess, Site, follow, orphans
from tests.support.promise import Trial, read_log
from tests.support.saturation import SATURATED, USERS, Crowd, Part, Talker, by_turns
from tests.trials.power import PARTS, Recording, recorder

MIB = 1024 * 1024

RECOVERY = 2.0
"""Seconds within which messages are logged again, once the log can be written."""

SLOW_SYNC = 0.7
"""Seconds that a sync of a slow disk takes."""

SHORT_WAL = "from tests.trials.broken import build; build('a short WAL')"
"""The WAL is copied and restarted after 8 pages instead of 1,000, so that it happens in a short trial, too."""

LOG = "chatrelay.sqlite3"


@dataclass(frozen=True)
class Stage:
    """The place of a trial.

    :ivar folder: where the relay runs, and its message log is.
    """

    folder: Path
    site: Site

    def relay(self, *options: str, **keywords: Any) -> RelayProcess:
        """Start a relay."""
        keywords.setdefault("measured", False)
        options = ("--auth-url", self.site.url, *HIGH_RATES, *options)
        return RelayProcess(self.folder, *options, **keywords)

    @property
    def log(self) -> Path:
        """Return the path of the message log."""
        return self.folder / LOG


def faults(*inject: str, told: Path | None = None) -> tuple[str, ...]:
    """Return the strace command that injects faults into a relay, as strace's ``-e inject=`` names them.

    :param told: the file in which strace records each such system call; see `met`.
    """
    traced = ",".join({fault.partition(":")[0] for fault in inject})
    options = [word for fault in inject for word in ("-e", f"inject={fault}")]
    return ("strace", "-f", "--seccomp-bpf", "-o", str(told or "/dev/null"), "-e", f"trace={traced}", *options)


def met(told: Path) -> int:
    """Return how many faults a relay has met, as reported by the strace that injected them."""
    return sum(line.endswith(("(INJECTED)", "(DELAYED)")) for line in told.read_text().splitlines())


# A process that ends --------------------------------------------------------------------


def killed_under_load(stage: Stage, evidence: Evidence, rounds: int) -> None:
    """Kill an overloaded relay with SIGKILL, repeatedly on one message log."""
    trial = Trial()
    pressures = []
    killed = 0
    for round in range(rounds):
        with stage.relay() as relay, Crowd(relay, stage.site, f"{round}.") as crowd:
            crowd.fill(others=["flapping"])
            crowd.join("flapping", Part(leaves_after=200), connections=2)
            crowd.begin()
            # By what it has answered, not by the clock: a slow machine is killed as far in as a fast one.
            pressures.append(crowd.press(0.05, answers=random.Random(round).randrange(200, 1000)))
            relay.process.send_signal(signal.SIGKILL)
            crowd.hear_to_the_end()
            status = relay.wait()
            assert status == -signal.SIGKILL, status
            killed += 1
            trial.add(crowd.accounts(), settled=False)
    print(*pressures, trial, sep="\n")
    trial.check_log(read_log(stage.log))
    busy = statistics.median(pressure.busy for pressure in pressures)
    assert busy > SATURATED
    evidence.count("kills", killed, at_least=rounds)
    evidence.count("messages acknowledged", trial.counts["acknowledged"], at_least=rounds * 50)
    evidence.count("refused", trial.counts["refused"], at_least=rounds * 10)
    # Fewer, and the relay was killed at its ease.
    evidence.count("pending when it was killed", trial.counts["unanswered"], at_least=rounds * 10)
    evidence.figure(f"all kept; busy {busy:.0%} of the time")


# A long write-ahead log -------------------------------------------------------------------


def a_start_with_a_long_write_ahead_log(stage: Stage, evidence: Evidence, size: int) -> None:
    """Compare the memory of a start with a write-ahead log of this many bytes and without one; check that it is short
    then.
    """
    source = stage.folder / "source.sqlite3"
    store = SqliteStore(str(source))
    store.open()
    messages = [Message(1, 2, 1, 1, "x" * 16_000, 0.0)] * 500
    count = 0
    with closing(sqlite3.connect(source, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM block").fetchall()
        while (long := Path(f"{source}-wal").stat().st_size) < size:
            count = store.append(messages)[-1]
        # As a SIGKILL leaves them; under other names, for the store to have nothing to copy when it closes.
        source.rename(stage.log)
        Path(f"{source}-wal").rename(f"{stage.log}-wal")
    store.close()
    grown = most_memory(stage, "--message-log", f"sqlite:{stage.log}") - most_memory(
        stage, "--message-log", f"sqlite:{stage.folder / 'empty.sqlite3'}"
    )
    with closing(sqlite3.connect(stage.log)) as log:
        assert log.execute("SELECT max(number) FROM message WHERE block > ?", (count - 200,)).fetchone() == (count,)
    evidence.count("MB of write-ahead log", long // 1_000_000, at_least=size // 1_000_000)
    evidence.figure(f"a start takes {grown / 1e6:.1f} MB more with it")
    assert grown < 50e6, f"a start takes {grown / 1e6:.1f} MB more with a write-ahead log of {long / 1e6:.0f} MB"


def most_memory(stage: Stage, *options: str) -> int:
    """Return the most memory, in bytes, that a relay has used once it listens and is idle."""
    with stage.relay(*options) as relay:
        return peak(relay.pid)


# Files that are moved ---------------------------------------------------------------------


def linked(stage: Stage) -> Path:
    """Make the message log a symbolic link; return the file to which it points."""
    real = stage.folder / "disk" / "messages.sqlite3"
    real.parent.mkdir()
    stage.log.symlink_to(real)
    return real


def killed_under_load_behind_a_link(stage: Stage, evidence: Evidence, rounds: int) -> None:
    """Kill an overloaded relay by SIGKILL, with a message log that is a symbolic link."""
    real = linked(stage)
    killed_under_load(stage, evidence, rounds)
    beside = [path.name for path in stage.folder.glob(f"{LOG}*")]
    assert beside == [LOG], f"not beside the file that the link leads to: {beside}"
    assert real.stat().st_size


def rotated_under_load(stage: Stage, evidence: Evidence, rounds: int) -> None:
    """Move the log away without its write-ahead log, under load and after a SIGKILL, repeatedly.

    Each line that the relay prints about it ends with a command, which is executed unchanged. Then everything
    acknowledged is in one of the files.
    """
    real = linked(stage)
    trial = Trial()
    remedies: list[str] = []
    moved: list[Path] = []

    def move() -> None:
        moved.append(real.with_name(f"{real.name}.{len(moved) + 1}"))
        real.rename(moved[-1])

    for round in range(rounds):
        with stage.relay() as relay, Crowd(relay, stage.site, f"{round}.") as crowd:
            crowd.fill()
            crowd.begin()
            for _ in range(2):
                crowd.press(0.05, answers=500)
                move()
                crowd.until(real.exists, "have another log")
                accepted = crowd.accepted
                crowd.until(lambda accepted=accepted: crowd.accepted > accepted + 500, "be accepted again")  # type: ignore[misc]
            relay.process.send_signal(signal.SIGKILL)
            crowd.hear_to_the_end()
            relay.wait()
            trial.add(crowd.accounts(), settled=False)
        move()
        remedies += orphans(relay)
    with stage.relay() as relay:
        relay.stop()
    remedies += orphans(relay)
    print(trial, *remedies, sep="\n")
    for remedy in remedies:
        follow(remedy)
    trial.check_log([row for path in (*moved, real) for row in read_log(path)])
    evidence.count("files moved away", len(moved), at_least=rounds * 3)
    evidence.count("commands of lines executed", len(remedies), at_least=rounds)
    evidence.count("messages acknowledged", trial.counts["acknowledged"], at_least=rounds * 1000)
    evidence.count("refused", trial.counts["refused"], at_least=rounds * 2)
    evidence.figure("all kept")


def a_write_ahead_log_is_removed_under_load(stage: Stage, evidence: Evidence, rounds: int) -> None:
    """Delete the write-ahead log behind a symbolic link under load; then kill the relay by SIGKILL."""
    wal = Path(f"{linked(stage)}-wal")
    trial = Trial()
    for round in range(rounds):
        with stage.relay() as relay, Crowd(relay, stage.site, f"{round}.") as crowd:
            crowd.fill()
            crowd.begin()
            crowd.press(0.05, answers=500)
            wal.unlink()
            accepted = crowd.accepted
            crowd.until(lambda accepted=accepted: crowd.accepted > accepted + 2000, "be accepted")  # type: ignore[misc]
            relay.process.send_signal(signal.SIGKILL)
            crowd.hear_to_the_end()
            relay.wait()
            trial.add(crowd.accounts(), settled=False)
    print(trial)
    trial.check_log(read_log(stage.log))
    evidence.count("write-ahead logs deleted", rounds, at_least=rounds)
    evidence.count("messages acknowledged", trial.counts["acknowledged"], at_least=rounds * 2000)
    evidence.count("refused", trial.counts["refused"], at_least=rounds)
    evidence.figure("all kept")


# A machine that ends --------------------------------------------------------------------


def recorded_under_load(
    stage: Stage, answers: int, *inject: str, before: Path | None = None
) -> tuple[Recording, list[Talker]]:
    """Record each system call of an overloaded relay until it has given this many answers.

    :param before: the folder that has a copy of its message log from before the start; None if there is none.
    """
    trace = stage.folder / "trace"
    # Where a sync failed, a long WAL has the larger risk: all that comes after what was lost is lost.
    with (
        stage.relay(prelude="" if inject else SHORT_WAL, under=recorder(trace, *inject)) as relay,
        Crowd(relay, stage.site, "" if before is None else "later.") as crowd,
    ):
        crowd.fill(window=2)  # for many batches
        crowd.begin()
        while crowd.accepted < answers:
            print(crowd.press(0.1, answers=1))
        crowd.settle()
        relay.stop()
    return Recording(trace, stage.log, before), crowd.talkers


def a_sync_precedes_every_answer(stage: Stage, evidence: Evidence, answers: int) -> None:
    """Check that everything answered or delivered before a sync returns was made durable by earlier syncs."""
    recording, talkers = recorded_under_load(stage, answers)
    told = recording.heard_by(talkers)
    successes = iter(told.successes())
    moments = [*recording.syncs, len(recording.calls)]
    durable: set[str] = set()
    checked = last_block = 0
    moment_of, content = next(successes)
    for moment, disk in recording.disks(moments, random.Random(0)):
        image = disk.after_a_power_cut(stage.folder / f"{moment}", "nothing", random.Random(0))
        with closing(sqlite3.connect(image)) as log:
            rows = log.execute("SELECT content, block FROM message WHERE block > ?", (last_block,)).fetchall()
        durable.update(row[0] for row in rows)
        last_block = max([last_block, *(row[1] for row in rows)])
        while moment_of < moment:
            assert content in durable, f"C1: {content!r} was acknowledged or delivered before it was synced"
            checked += 1
            moment_of, content = next(successes, (len(recording.calls), ""))
    trial = Trial()
    trial.add(told.accounts(len(recording.calls)), settled=False)
    trial.check_log(read_log(stage.log))
    evidence.count("syncs", len(moments), at_least=20)
    evidence.count("answers value:true", trial.counts["acknowledged"], at_least=answers // 2)
    evidence.count("of them and of deliveries after their sync", checked, at_least=answers)


def unsynced_writes_are_lost(stage: Stage, evidence: Evidence, cuts: int, recoveries: int, *inject: str) -> None:
    """Cut the power, so that any part of the unsynced data is lost; let a relay continue with the rest.

    :param inject: faults that the disk had before; see `faults`. What was refused for one may then stand in the log: the
        power can fail before it is marked.
    """
    recording, talkers = recorded_under_load(stage, 600, *inject)
    told = recording.heard_by(talkers)
    chance = random.Random(cuts)
    # Every fourth is where most is at stake: just before a sync returns.
    at_syncs = chance.choices(recording.syncs, k=cuts // 4) if recording.syncs else []
    moments = sorted(at_syncs + recording.moments(cuts - len(at_syncs), chance))
    with_a_relay = set(chance.sample(range(cuts), recoveries))
    made = acknowledged = unsynced = went_on = 0
    for number, (moment, disk) in enumerate(recording.disks(moments, chance)):
        trial = Trial()
        trial.add(told.accounts(moment), settled=False)
        folder = stage.folder / f"cut-{number}"
        image = disk.after_a_power_cut(folder, PARTS[number % len(PARTS)], chance)
        unsynced += not disk.is_all_synced
        acknowledged += trial.counts["acknowledged"]
        orphan = recovery.set_orphan_aside(LogFiles(str(image)), 0.0)
        assert orphan is None, f"{image} was taken for a write-ahead log without its database"
        if number in with_a_relay:
            went_on += goes_on(Stage(folder, stage.site), trial) >= 40
        trial.check_log(read_log(image), refused_may_stand=bool(inject))
        made += 1
    evidence.count("power cuts", made, at_least=cuts)
    if inject:
        evidence.count("failed syncs before them", recording.failed_syncs, at_least=1)
    evidence.count("while something was not synced", unsynced, at_least=cuts // 6)
    evidence.count("acknowledged messages looked for", acknowledged, at_least=cuts * 100)
    evidence.count("relays that went on", went_on, at_least=recoveries)
    evidence.count("new beginnings of the WAL", recording.restarts, at_least=1 if inject else 5)


def goes_on(stage: Stage, trial: Trial) -> int:
    """Let a relay open the existing log and carry messages; return how many."""
    with stage.relay() as relay, Crowd(relay, stage.site, "afterwards.") as crowd:
        crowd.join("again", Part(["again"], window=4))
        crowd.begin()
        crowd.press(0, answers=40)
        crowd.settle()
        trial.add(crowd.accounts(), settled=True)
        relay.stop()
    return crowd.accepted


# A disk that fails ----------------------------------------------------------------------


def one_sync_fails_under_load(stage: Stage, evidence: Evidence) -> None:
    """Let one fdatasync return EIO while all clients send."""
    trial = Trial()
    told = stage.folder / "faults"
    failing = faults("fdatasync:error=EIO:when=20", told=told)
    with stage.relay(under=failing) as relay, Crowd(relay, stage.site) as crowd:
        for seed, uid in enumerate(USERS):
            crowd.join(uid, Part(by_turns(USERS, seed), window=16), connections=2)
        crowd.begin()
        crowd.until(lambda: crowd.refused > 0, "meet the failing sync")
        began = time.monotonic()
        accepted = crowd.accepted
        # Earlier commits are still being answered; the refusals end when the log is open again.
        crowd.until(lambda: crowd.accepted > accepted + 16 * len(crowd.talkers), "be accepted again")
        seconds = time.monotonic() - began
        crowd.settle()
        trial.add(crowd.accounts(), settled=True)
        relay.said("the message log .* cannot be written", times=1)
        relay.said("can be written again")
        relay.stop()
    trial.check_log(read_log(stage.log))
    print(trial, trial.reasons)
    assert set(trial.reasons) == {"log-unavailable"}, trial.reasons
    evidence.count("failed syncs", met(told), at_least=1)
    evidence.count("messages refused", trial.counts["refused"], at_least=1)
    evidence.count("acknowledged", trial.counts["acknowledged"], at_least=1000)
    assert seconds < RECOVERY, f"recovered only after {seconds:.2f} s"
    evidence.figure(f"recovered after {seconds:.2f} s")


def syncs_fail_again_and_again(stage: Stage, evidence: Evidence, messages: int) -> None:
    """Let every fourth fdatasync return EIO.

    (With every third, each reopening takes so many syncs that it succeeds, and the batch after it always fails.)

    SQLite has then written the batch and can't know whether it is on the disk. So the batch must be refused, and marked
    if it is there.
    """
    outcomes: dict[str, bool] = {}
    delivered: list[str] = []
    with stage.relay(under=faults("fdatasync:error=EIO:when=20+4"), measured=True) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            for number in range(messages):
                alice.send(2, f"content {number}", id=number)
                response = alice.hear()["response"]
                outcomes[f"content {number}"] = response["value"]
                if response["value"]:
                    # At once: a client of websockets that has sixteen messages unread answers no pings.
                    delivered.append(bo.hear()["message"]["content"])
                else:
                    assert response["reason"] == "log-unavailable", response
                    time.sleep(0.2)
            delivered += deliveries(bo)
        relay.said(r"the message log .* cannot be written")
        relay.stop()
    accepted = [content for content, value in outcomes.items() if value]
    logged = [row.content for row in read_log(stage.log) if row.delivered]
    assert logged == accepted, f"acknowledged, and marked undelivered, or the other way round: {logged}, {accepted}"
    assert delivered == accepted, f"delivered {delivered}, acknowledged {accepted}"
    evidence.count("messages refused", messages - len(accepted), at_least=messages // 8)
    evidence.count("acknowledged", len(accepted), at_least=messages // 8)
    first_refused = list(outcomes.values()).index(False)
    evidence.count("of them after a refusal", len(accepted) - first_refused, at_least=messages // 20)


def deliveries(client: Client) -> list[str]:
    """Return what a client that sends nothing has received."""
    contents = []
    while True:
        try:
            contents.append(client.hear(0.3)["message"]["content"])
        except TimeoutError:
            return contents


def a_full_disk(stage: Stage, evidence: Evidence, disk: Path) -> None:
    """Fill the disk, then free it.

    :param disk: a file system of a few MiB.
    """
    path = disk / "log.sqlite3"
    with stage.relay("--message-log", f"sqlite:{path}", measured=True) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")
            alice.send(2, "before", id="before")
            assert bo.hear()["message"]["content"] == "before"
            assert alice.hear()["response"]["value"] is True
            ballast = disk / "ballast"
            fill(ballast)
            for attempt in range(200):  # until what SQLite had reserved is used up
                alice.send(2, "x" * 4000, id=f"fill-{attempt}")
                if not (response := alice.hear()["response"])["value"]:
                    break
                bo.hear()
            refused = 0
            while refused < 50:
                assert response["reason"] == "log-unavailable", response
                refused += 1
                alice.send(2, "refused", id=refused)
                response = alice.hear()["response"]
            relay.said(r"the message log .* cannot be written")
            assert bo.hears_nothing(0.1)
            ballast.unlink()
            seconds = accepted_after(alice, 2, "after")
            assert bo.hear()["message"]["content"] == "after"
        relay.said(r"can be written again")
        relay.stop()
    contents = [(row.content, row.delivered) for row in read_log(path)]
    assert contents[0] == ("before", 1), contents[0]
    assert contents[-1] == ("after", 1), contents[-1]
    assert ("refused", 1) not in contents, "refused, and not marked undelivered"
    evidence.count("messages refused", refused, at_least=50)
    assert seconds < RECOVERY, f"recovered only after {seconds:.2f} s"
    evidence.figure(f"recovered after {seconds:.2f} s")


def fill(path: Path) -> None:
    """Use up the free space."""
    with path.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


def accepted_after(client: Client, to: str | int, content: str) -> float:
    """Send until a message is accepted; return how long that took, in seconds."""
    began = time.monotonic()
    attempt = 0
    while (seconds := time.monotonic() - began) < PATIENCE:
        attempt += 1
        client.send(to, content, id=f"{content}-{attempt}")
        if client.hear()["response"]["value"]:
            return seconds
        time.sleep(0.05)
    raise AssertionError(f"not accepted within {PATIENCE} s")


def a_disk_that_turned_read_only(stage: Stage, evidence: Evidence) -> None:
    """Let every write fail while open files stay open, as the kernel does after disk errors; then let them succeed."""
    accepted: list[str] = []
    with stage.relay(measured=True) as relay:
        with relay.client() as alice, relay.client() as bo:
            alice.log_in("alice-session")
            bo.log_in("bo-session")

            def send(content: str) -> Any:
                alice.send(2, content, id=content)
                response = alice.hear()["response"]
                if response["value"]:
                    accepted.append(content)
                    assert bo.hear()["message"]["content"] == content
                return response

            for number in range(20):
                assert send(f"before {number}")["value"] is True
            with meanwhile(relay, "pwrite64:error=EROFS", "pwritev:error=EROFS", "ftruncate:error=EROFS"):
                refusals = [send(f"refused {number}") for number in range(50)]
                relay.said(r"the message log .* cannot be written")
                assert bo.hears_nothing(0.1)
            seconds = accepted_after(alice, 2, "after")
            accepted.append("after")
            assert bo.hear()["message"]["content"] == "after"
            for number in range(20):
                assert send(f"afterwards {number}")["value"] is True
        relay.said(r"can be written again")
        relay.stop()
    assert {response.get("reason") for response in refusals} == {"log-unavailable"}, refusals
    assert [row.content for row in read_log(stage.log) if row.delivered] == accepted, "what was refused counts as sent"
    evidence.count("messages refused", len(refusals), at_least=50)
    evidence.count("acknowledged", len(accepted), at_least=41)
    assert seconds < RECOVERY, f"recovered only after {seconds:.2f} s"
    evidence.figure(f"recovered after {seconds:.2f} s")


REOPENED = "newfstatat:error=EIO:when=1"
"""Makes the relay close the log and open it again."""

FAULTS = (
    *((f"newfstatat:error={error}",) for error in ("EACCES", "EIO", "ELOOP", "ENOTDIR", "ENAMETOOLONG", "ESTALE")),
    *(
        (REOPENED, f"openat:error={error}")
        for error in ("EACCES", "EIO", "ELOOP", "ENOSPC", "EROFS", "EMFILE", "ESTALE")
    ),
    *((REOPENED, f"flock:error={error}") for error in ("EIO", "ENOLCK", "EACCES")),
    *((REOPENED, f"fcntl:error={error}") for error in ("EIO", "ENOLCK")),
    *((REOPENED, f"{call}:error=EIO") for call in ("pread64", "ftruncate", "unlink", "fstat", "mmap")),
    *((f"fdatasync:error={error}",) for error in ("EIO", "ENOSPC", "ESTALE")),
    *((f"pwrite64:error={error}",) for error in ("EIO", "ENOSPC", "EROFS", "EDQUOT")),
)
"""Errors that system calls on the files of a message log may return."""


def errors_of_the_file_system(stage: Stage, evidence: Evidence) -> None:
    """Let each system call on the files return each error for a while, one after another, in one relay."""
    log = linked(stage)
    accepted: list[str] = []
    refused: Counter[str] = Counter()
    files = [log.parent, *(Path(f"{log}{suffix}") for suffix in ("", "-wal", "-shm", ".lock"))]
    with stage.relay("--ops-listen", "tcp:0", measured=True) as relay, relay.client() as alice:
        alice.log_in("alice-session")

        def send(content: str) -> bool:
            alice.send(1, content)
            while (frame := alice.hear()).get("type") != "send-request-response":
                assert frame["message"]["content"] == content, frame
            assert frame["response"]["value"] or frame["response"]["reason"] == "log-unavailable", frame
            if frame["response"]["value"]:
                accepted.append(content)
            return bool(frame["response"]["value"])

        for fault in FAULTS:
            name = " ".join(fault)
            with meanwhile(relay, *fault, files=files):
                # Some are met when the log is opened again, half a second later.
                for number in range(12):
                    if not send(f"{name} {number}"):
                        refused[name] += 1
                        if refused[name] == 1:
                            assert relay.ops("GET", "/readyz")[0] == 503, name
                    time.sleep(0.1)
            began = time.monotonic()
            while not send(f"{name} after {time.monotonic()}"):
                assert time.monotonic() - began < PATIENCE, f"not accepted {PATIENCE} s after {name}"
                time.sleep(0.05)
            assert relay.ops("GET", "/readyz")[0] == 200, name
        relay.stop()
    print(refused)
    told = [line for line in relay.output if "please report it" in line or "Traceback" in line]
    assert not told, told
    # A line for each reason: what was met first, and what the attempts to open the log met. None comes twice.
    reason = re.compile(r" (the message log .*)\. No message is delivered until it can be written")
    outages = [reason.findall(said) for said in "\n".join(relay.output).split("can be written again")]
    assert not [reasons for reasons in outages if len(set(reasons)) < len(reasons)], outages
    logged = [row.content for row in read_log(stage.log) if row.delivered]
    assert logged == accepted, sorted(set(logged) ^ set(accepted))
    evidence.count("faults", len(FAULTS), at_least=len(FAULTS))
    evidence.count("of them refused messages", len(refused), at_least=len(FAULTS) * 3 // 4)
    evidence.count("messages refused", refused.total(), at_least=len(FAULTS) * 3)
    evidence.count("acknowledged", len(accepted), at_least=len(FAULTS))
    evidence.count("lines of outages", sum(map(len, outages)), at_least=len(FAULTS))


@contextmanager
def meanwhile(relay: RelayProcess, *inject: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """Let a running relay meet faults, as strace's ``-e inject=`` names them, and then no more.

    :param files: only system calls on these meet them.
    """
    options = [word for fault in inject for word in ("-e", f"inject={fault}")]
    options += [word for file in files for word in ("-P", str(file))]
    traced = ",".join(fault.partition(":")[0] for fault in inject)
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={traced}", *options, "-p", str(relay.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        tracer.wait()
        pytest.skip(f"needs the right to trace a process that runs (run as root): {said.strip()}")
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of the relay
        tracer.communicate(timeout=PATIENCE)


def a_slow_disk_at_saturation(stage: Stage, evidence: Evidence) -> None:
    """Let two syncs take `SLOW_SYNC` seconds each, while more messages are sent than may wait for them."""
    trial = Trial()
    window = 500
    told = stage.folder / "faults"
    # Those of a thread are counted by themselves: that which writes has few, of many messages each; that which opens 12.
    slow = faults(f"fdatasync:delay_exit={int(SLOW_SYNC * 1e6)}:when=14..15", told=told)
    with stage.relay(under=slow) as relay, Crowd(relay, stage.site) as crowd:
        for seed, uid in enumerate(USERS):
            crowd.join(uid, Part(by_turns(USERS, seed), window=window), connections=2)
        crowd.begin()
        before = most = resident(relay.pid)
        crowd.until(lambda: crowd.refused > 0, "be refused")
        began = time.monotonic()
        while met(told) < 2:
            print(crowd.press(0.1))
            most = max(most, resident(relay.pid))
        # All of them have more requests pending than may wait, and would be refused on a quick disk, too. Half have not.
        for talker in crowd.talkers[::2]:
            talker.talking = False
        refused, accepted = 0, crowd.accepted
        # Until nobody is refused any more, and as many are accepted as had to wait.
        while crowd.refused > refused or crowd.accepted < accepted + 10_000:
            refused = crowd.refused
            print(crowd.press(0.1))
            most = max(most, resident(relay.pid))
        seconds = time.monotonic() - began
        crowd.settle()
        trial.add(crowd.accounts(), settled=True)
        relay.stop()
    trial.check_log(read_log(stage.log))
    print(trial, trial.reasons)
    assert set(trial.reasons) == {"busy"}, trial.reasons
    evidence.count("slow syncs", met(told), at_least=2)
    evidence.count("messages refused as busy", trial.counts["refused"], at_least=1000)
    evidence.count("acknowledged", trial.counts["acknowledged"], at_least=10_000)
    assert most - before < 64 * MIB, f"grew by {(most - before) / MIB:.0f} MiB"
    evidence.figure(f"grew by {(most - before) / MIB:.0f} MiB; nobody refused any more {seconds:.1f} s after the first")
