"""The unit in examples/deploy, run by a real systemd that is the first process of its own namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.deploy import DEPLOY, ORIGIN
from tests.support.evidence import Evidence
from tests.support.programs import Site
from tests.support.v1 import ADMITTED

SYSTEMD = Path("/lib/systemd/systemd")
NAMESPACES = ("--pid", "--kill-child", "--fork", "--mount", "--uts", "--ipc", "--cgroup", "--mount-proc")

# Everything that is mounted and written is gone with the namespace. The unit lets nobody look into home folders or the
# real /tmp, where the Python that runs the tests may well be: so that, and what it imports, is put below /opt.
BEGIN = """
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for folder in /run /var/lib /opt; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir -p /run/systemd/system /opt/python /opt/site /opt/source /opt/chatrelay/bin
mount --bind "$PREFIX" /opt/python
mount --bind "$SITE" /opt/site
cp -r "$ROOT/chatrelay" "$ROOT/twisted" /opt/source
cp "$FOLDER/twistd" /opt/chatrelay/bin/twistd
cp "$FOLDER/chatrelay.toml" /opt/chatrelay/chatrelay.toml
cp "$FOLDER/ops-token" /opt/chatrelay/ops-token
cp "$FOLDER"/*.service "$FOLDER"/*.target /run/systemd/system
ln -s /dev/null /run/systemd/system/network-online.target
chmod -R a+rX /opt/source /opt/chatrelay
chmod 755 /opt/chatrelay/bin/twistd
chmod 600 /opt/chatrelay/ops-token
# As systemd does where it believes that it is no container; credentials are mounted by a process of their own.
mount --make-rshared /
export container=other
exec /lib/systemd/systemd --system --log-target=null --show-status=0 --unit=trial.target
"""

STATE = "/var/lib/private/chatrelay"
"""Where ``StateDirectory=chatrelay`` is for a user that systemd makes; /var/lib/chatrelay leads there."""

OURS = """
[Unit]
DefaultDependencies=no
[Service]
Environment=PYTHONPATH=/opt/source:/opt/site LD_LIBRARY_PATH=/opt/python/lib
StandardOutput=append:/run/relay.log
StandardError=append:/run/relay.log
WatchdogSec=2
TimeoutAbortSec=1
"""


def what_is_missing() -> str | None:
    """Return why this trial can't run here."""
    if not SYSTEMD.exists() or not shutil.which("systemctl"):
        return "systemd is missing (on Debian: apt install systemd)"
    if os.geteuid():
        return "only root may make namespaces for a systemd"
    if subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True).returncode:
        return "no namespaces for a systemd can be made here: the machine forbids it"
    return None


class Systemd:
    """A separate systemd.

    :ivar first: its process, as seen from here.
    """

    def __init__(self, folder: Path) -> None:
        variables = {
            "FOLDER": str(folder),
            "ROOT": str(ROOT),
            "PREFIX": sys.base_prefix,
            "SITE": sysconfig.get_path("purelib"),
        }
        self._process = subprocess.Popen(
            ["unshare", *NAMESPACES, "sh", "-c", BEGIN], env={**os.environ, **variables}, stdin=subprocess.DEVNULL
        )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._wait(lambda: children.read_text().strip(), "begin")
        self.first = children.read_text().split()[0]

    def systemctl(self, *words: str) -> str:
        """Run systemctl; return what it prints."""
        entering = ("nsenter", "-t", self.first, "-m", "-p", "-C", "-i", "-u")
        done = subprocess.run([*entering, "systemctl", "--no-pager", *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip()}"

    def show(self, name: str) -> str:
        """Return a property of the relay's unit."""
        return self.systemctl("show", "chatrelay", "--value", "-p", name)

    def log(self) -> str:
        """Return what the relay has logged."""
        try:
            return Path(f"/proc/{self.first}/root/run/relay.log").read_text()
        except FileNotFoundError:
            return ""

    def active(self, starts: int) -> tuple[int, int]:
        """Wait until the relay is active; return its process, as seen from here, and its port.

        :param starts: how often it has been started by then.
        """
        self._wait(
            lambda: self.log().count("; message log: ") == starts and self.show("ActiveState") == "active",
            f"be active; it said:\n{self.log()}",
        )
        inner = self.show("MainPID")
        (process,) = (
            status.parent.name
            for status in Path("/proc").glob("[0-9]*/status")
            if f"\t{inner}\n" in (text := status.read_text()) and f"NSpid:\t{status.parent.name}\t{inner}\n" in text
        )
        return int(process), int(self.log().rpartition("ChatFactory starting on ")[2].split()[0])

    def hears_of_it(self, times: int) -> None:
        """Wait until the relay has notified this often that it is alive."""
        for _ in range(times):
            last = self.show("WatchdogTimestampMonotonic")
            self._wait(lambda last=last: self.show("WatchdogTimestampMonotonic") != last, "hear of the relay")

    def _wait(self, done: Callable[[], object], what: str) -> None:
        until = time.monotonic() + 2 * PATIENCE
        while not done():
            assert time.monotonic() < until and self._process.poll() is None, f"systemd did not {what}"
            time.sleep(0.05)

    def end(self) -> None:
        """End systemd and everything that it has started."""
        self.systemctl("stop", "chatrelay")  # where the trial has failed: its /tmp goes with it
        self._process.kill()
        self._process.wait()


@pytest.fixture
def systemd(site: Site, tmp_path: Path) -> Iterator[Systemd]:
    """Start a systemd that runs the unit."""
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    unit = (DEPLOY / "chatrelay.service").read_text().replace("/etc/chatrelay/", "/opt/chatrelay/")
    (tmp_path / "chatrelay.service").write_text(unit + OURS)
    (tmp_path / "trial.target").write_text("[Unit]\nDefaultDependencies=no\nRequires=chatrelay.service\n")
    (tmp_path / "ops-token").write_text("0123456789abcdef\n")
    options = (DEPLOY / "chatrelay.toml").read_text().replace("tcp:8080", "tcp:0").replace(":8000", f":{site.port}")
    options = options.replace("tcp:8081", "tcp:0")
    (tmp_path / "chatrelay.toml").write_text(options.replace('log_format = "json"', ""))
    python = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "twistd").write_text(f"#!{python}\nfrom twisted.scripts.twistd import run\nrun()\n")
    running = Systemd(tmp_path)
    yield running
    running.end()


def touched(process: int, path: str) -> str:
    """Make a file as a process could: as its user, in its namespace; return the error that the system reports."""
    uid, gid = (str(number) for number in (os.stat(f"/proc/{process}").st_uid, os.stat(f"/proc/{process}").st_gid))
    entering = ("nsenter", "-t", str(process), "-U", "-m", "-S", uid, "-G", gid)
    return subprocess.run([*entering, "touch", path], capture_output=True, text=True).stderr.strip()


def check_where_it_may_write(process: int, first: str) -> None:
    """Check that its message log is in its own folder, its /tmp is private, and the rest is read-only.

    :param first: the process that sees the files outside the sandbox.
    """
    open_files = {os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()}
    assert f"{STATE}/messages.sqlite3" in open_files
    state = Path(f"/proc/{process}/root{STATE}").stat()
    assert (state.st_mode & 0o777, state.st_uid) == (0o700, os.stat(f"/proc/{process}").st_uid)
    assert touched(process, f"{STATE}/mine") == ""
    name = f"chatrelay-trial-{process}"
    for folder in ("/tmp", "/var/tmp"):
        inside, outside = (Path(f"/proc/{each}/root{folder}") for each in (process, first))
        assert not inside.samefile(outside)
        assert touched(process, f"{folder}/{name}") == ""
        assert (inside / name).exists() and not (outside / name).exists()
    for folder in ("/", "/etc", "/usr", "/opt/chatrelay", "/var/lib", "/var/lib/private", "/var/log"):
        # Not only this user lacks the right: no user has it.
        assert "Read-only file system" in touched(process, f"{folder}/{name}"), folder
    for folder in ("/home", "/root", "/run"):
        assert touched(process, f"{folder}/{name}") != "", folder


def test_unit_under_systemd_runs_within_its_sandbox(systemd: Systemd, evidence: Evidence) -> None:
    """The unit starts, is reloaded and stops; a relay that hangs is ended and restarted."""
    process, port = systemd.active(starts=1)
    status = Path(f"/proc/{process}/status").read_text()
    assert "\nNoNewPrivs:\t1\n" in status
    assert "\nSeccomp:\t2\n" in status
    assert "\nUid:\t0\t" not in status
    check_where_it_may_write(process, systemd.first)
    with Client(
        f"ws://127.0.0.1:{port}/", origin=ORIGIN, additional_headers={"Cookie": "session=alice-session"}
    ) as alice:
        assert alice.log_in(None) == ADMITTED
        assert systemd.systemctl("reload", "chatrelay") == ""
        alice.send(1, "note")
        assert {alice.hear()["type"] for _ in range(2)} == {"message", "send-request-response"}
        assert "there is no certificate to reload" in systemd.log()

    systemd.hears_of_it(times=2)
    assert systemd.show("NRestarts") == "0"
    began = time.monotonic()
    os.kill(process, signal.SIGSTOP)
    anew, _ = systemd.active(starts=2)
    took = time.monotonic() - began
    assert anew != process
    restarts = int(systemd.show("NRestarts"))
    assert restarts == 1

    assert systemd.systemctl("stop", "chatrelay") == ""
    assert (systemd.show("ActiveState"), systemd.show("Result")) == ("inactive", "success")
    assert "chatrelay has stopped" in systemd.log()
    assert "Traceback" not in systemd.log()
    evidence.count("hangs after which it was started anew", restarts, at_least=1)
    evidence.figure(f"serving again {took:.1f} s after a hang, of which the watchdog's are 2 s")
