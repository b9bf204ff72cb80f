"""Mistakes of operators in real processes: the error messages, and the files that are left."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from chatrelay.messagelog.sqlite import SqliteStore
from chatrelay.model import Message
from tests.support import PATIENCE, ROOT
from tests.support.programs import TWISTD, RelayProcess

URL = "http://127.0.0.1:1/session"
CHATRELAY = (sys.executable, "-m", "chatrelay.app.cli")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "PYTHONPATH": str(ROOT)
}
"""The environment of a person's shell, in which Python buffers output until it ends."""

UNDER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""The superuser may read and write anywhere, until it gives that up."""


def fill(path: Path, messages: int) -> SqliteStore:
    """Fill an open message log."""
    store = SqliteStore(str(path))
    store.open()
    store.append([Message(1, 2, "id", "23", "hej", 1_700_000_000.5)] * messages)
    return store


# Pipes -----------------------------------------------------------------------------

PRINTING = {
    "twistd chatrelay --help": (sys.executable, "-c", TWISTD, "chatrelay", "--help"),
    "twistd chatrelay --version": (sys.executable, "-c", TWISTD, "chatrelay", "--version"),
    "chatrelay --help": (*CHATRELAY, "--help"),
    "chatrelay --version": (*CHATRELAY, "--version"),
    "chatrelay backup --help": (*CHATRELAY, "backup", "--help"),
    "chatrelay.demo --help": (sys.executable, "-m", "chatrelay.demo", "--help"),
    "chatrelay messages": (*CHATRELAY, "messages", "--message-log", "sqlite:log"),
    "chatrelay backup": (*CHATRELAY, "backup", "--yes", "--message-log", "sqlite:log", "copy"),
    "chatrelay backup --json": (*CHATRELAY, "backup", "--yes", "--json", "--message-log", "sqlite:log", "copy"),
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", PRINTING)
def test_closed_pipe_of_a_reader_is_not_an_error(tmp_path: Path, command: str, unbuffered: str) -> None:
    fill(tmp_path / "log", 10).close()
    read, write = os.pipe()
    os.close(read)
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(
        PRINTING[command],
        cwd=tmp_path,
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert set(os.listdir(tmp_path)) - {"copy"} == {"log", "log.lock"}


@pytest.mark.parametrize("command", [command for command in PRINTING if "demo" not in command])
def test_full_disk_behind_standard_output_is_reported_in_one_sentence(tmp_path: Path, command: str) -> None:
    fill(tmp_path / "log", 10).close()
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            PRINTING[command],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    said = "chatrelay: standard output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_closed_standard_output_is_reported_in_one_sentence_and_the_backup_is_made(tmp_path: Path) -> None:
    fill(tmp_path / "log", 10).close()

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *PRINTING[command]],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )

    ended = run("chatrelay messages")
    assert (ended.returncode, ended.stderr) == (1, "chatrelay: standard output is closed\n")
    ended = run("chatrelay backup")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "copy").exists()


# Files beside a message log ----------------------------------------------------------


def test_reading_the_log_of_a_stopped_relay_leaves_no_files(tmp_path: Path) -> None:
    fill(tmp_path / "log", 10).close()
    before = (tmp_path / "log").read_bytes()
    for command in ("chatrelay messages", "chatrelay backup"):
        subprocess.run(PRINTING[command], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=PATIENCE, stdout=-3)
        assert set(os.listdir(tmp_path)) - {"copy"} == {"log", "log.lock"}
    assert (tmp_path / "log").read_bytes() == before


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_command_interrupted_while_it_prints_leaves_no_files(tmp_path: Path, sign: signal.Signals) -> None:
    fill(tmp_path / "log", 5000).close()
    started = subprocess.Popen(
        PRINTING["chatrelay messages"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.read(1)  # it has begun, and now waits for somebody to read on
    assert "log-wal" in os.listdir(tmp_path)
    started.send_signal(sign)
    assert started.wait(PATIENCE) == 128 + sign
    assert started.stderr.read() == b""
    assert sorted(os.listdir(tmp_path)) == ["log", "log.lock"]
    started.stdout.close()
    started.stderr.close()


KILLED_RELAY = """
import os, sys
from chatrelay.model import Message
from chatrelay.messagelog.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
store.open()
store.append([Message(1, 2, "id", "23", "hej", 1_700_000_000.5)])
os._exit(0)
"""


def test_write_ahead_log_of_a_relay_that_wrote_meanwhile_stays(tmp_path: Path) -> None:
    fill(tmp_path / "log", 5000).close()
    started = subprocess.Popen(
        PRINTING["chatrelay messages"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    started.stdout.read(1)
    subprocess.run([sys.executable, "-c", KILLED_RELAY, "log"], cwd=tmp_path, env=ENVIRONMENT, check=True)
    database, wal = (tmp_path / "log").read_bytes(), (tmp_path / "log-wal").read_bytes()
    assert wal
    assert started.stdout.read().count("\n") == 5001
    assert started.wait(PATIENCE) == 0
    started.stdout.close()
    assert ((tmp_path / "log").read_bytes(), (tmp_path / "log-wal").read_bytes()) == (database, wal)


@pytest.mark.parametrize("kind", ["a text", "another database"])
def test_file_that_is_not_a_message_log_is_left_alone(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "app.py"
    if kind == "a text":
        file.write_text("print(1)\n" * 100)
    else:
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE recipe (name TEXT)")
        connection.close()
    before = file.read_bytes()
    relay = RelayProcess(tmp_path, "--auth-url", URL, "--message-log", "sqlite:app.py")
    assert relay.wait() == 1
    assert f"{file} " in relay.output[-1]
    assert relay.output[-1].endswith(": name another file with --message-log")
    subprocess.run([*CHATRELAY, "restore", "--message-log", "sqlite:app.py", "x"], cwd=tmp_path, env=ENVIRONMENT)
    subprocess.run([*CHATRELAY, "messages", "--message-log", "sqlite:app.py"], cwd=tmp_path, env=ENVIRONMENT)
    assert os.listdir(tmp_path) == ["app.py"]
    assert file.read_bytes() == before


# Permissions -------------------------------------------------------------------------


def ended(folder: Path, *options: str, twistd: tuple[str, ...] = ()) -> str:
    """Start a relay that lacks permissions and can't start; return its one sentence."""
    relay = RelayProcess(folder, "--auth-url", URL, *options, under=UNDER, twistd=twistd)
    assert relay.wait() == 1, relay.output
    said = "\n".join(relay.output)
    assert "Traceback" not in said
    assert said.count("chatrelay: ") == 1
    return said.partition("chatrelay: ")[2]


def test_unreadable_file_is_named_and_not_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    fill(folder / "log", 1).close()
    for name in ("log", "secret", "key.pem", "c.toml"):
        (folder / name).touch()
        (folder / name).chmod(0)
    folder.chmod(0o500)
    may_not = r"the user \S+ may not read \S*{}, which belongs to \S+ \(mode 0000\)"
    tries = {
        "log": ("--message-log", "sqlite:theirs/log"),
        "secret": ("--auth-secret-file", "theirs/secret"),
        "key.pem": ("--listen", "ssl:0:privateKey=theirs/key.pem"),
        "c.toml": ("--config", "theirs/c.toml"),
    }
    for name, options in tries.items():
        assert re.search(may_not.format(name), ended(tmp_path, *options)), name
    command = [*UNDER, *CHATRELAY, "messages", "--message-log", "sqlite:theirs/log"]
    read = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert re.match(rf"chatrelay: theirs/log cannot be opened: {may_not.format('log')}\. Run this", read.stderr)


def test_first_start_in_an_unwritable_folder_suggests_pidfile(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        said = ended(tmp_path, "--message-log", "memory:", twistd=("--pidfile=twistd.pid",))
    finally:
        tmp_path.chmod(0o700)
    assert re.match(
        r"--pidfile: twistd.pid cannot be written: the user \S+ may not write in the folder \S+, which .*: "
        r"give --pidfile= before chatrelay for no pid file, or --pidfile=FILE$",
        said,
    )


@pytest.mark.parametrize(
    ("twistd", "says"),
    [
        ("--pidfile=no/x", r"--pidfile: no/x cannot be written: there is no folder \S+/no: give --pidfile= before"),
        ("--pidfile=.", r"--pidfile: \. is a folder: give --pidfile="),
        ("--pidfile=text", r"--pidfile: text does not contain a process number: remove it if no relay"),
        ("--rundir=no", r"--rundir: no cannot be entered: there is no folder \S+/no"),
        ("--rundir=text", r"--rundir: text cannot be entered: \S+/text is not a folder"),
        ("--chroot=no", r"--chroot: there is no folder no"),
        ("--logfile=no/x", r"--logfile: \S+/no/x cannot be opened: there is no folder \S+/no: give --logfile=FILE"),
    ],
)
def test_path_that_twistd_cannot_use_is_reported_in_one_sentence(tmp_path: Path, twistd: str, says: str) -> None:
    (tmp_path / "text").write_text("Dear diary")
    assert re.match(says, ended(tmp_path, "--message-log", "memory:", twistd=(twistd,)))


def test_unwritable_destination_is_reported_in_one_sentence(tmp_path: Path) -> None:
    fill(tmp_path / "log", 1).close()
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0)
    for words in (
        ("backup", "--message-log", "sqlite:log", "theirs/x"),
        ("restore", "--message-log", "sqlite:theirs/x", "log"),
    ):
        command = [*UNDER, *CHATRELAY, *words]
        ran = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        assert ran.returncode == 1
        assert "may not enter the folder" in ran.stderr
        assert ran.stderr.count("\n") == 1
