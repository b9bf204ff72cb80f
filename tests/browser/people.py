"""
People at browsers, the demo that they visit, and a line to it that can be cut.

Playwright is imported where it is needed, so that a machine without it skips these tests and says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.support import ROOT, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM_FLAGS = [
    "--no-sandbox",  # without it Chromium refuses to run as root, as it does in CI
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--js-flags=--expose-gc",
]


def chromium() -> str:
    """Return the path of the system's Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no browser was found ({', '.join(names)}): apt install chromium")
    return executable


class Line:
    """
    A TCP proxy in threads, between a browser and the relay, which can break.

    :param port: where it listens, on 127.0.0.1
    :ivar target: where it forwards accepted connections
    """

    def __init__(self, port: int, target: int) -> None:
        self.target = target
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.up = True
        self._held = threading.Event()
        self._held.set()
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, including new ones, until `repair`."""
        self.up = False
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _end(*pair)

    @property
    def connections(self) -> int:
        """Return the number of current connections."""
        with self._lock:
            return len(self._pairs)

    def repair(self) -> None:
        """Let connections pass again."""
        self.up = True

    def hold_answers(self) -> None:
        """Pass nothing from the relay on; the connections stay open."""
        self._held.clear()

    def pass_answers(self) -> None:
        """Pass on to the browser what was held, and what comes."""
        self._held.set()

    def close(self) -> None:
        """Cut, and stop listening."""
        self._held.set()
        self.cut()
        # Closing alone leaves the port taken for as long as a thread waits in accept.
        _end(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            if not self.up:
                _end(near, far)
                continue
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._to_relay, args=(near, far), daemon=True).start()
            threading.Thread(target=self._to_browser, args=(near, far), daemon=True).start()

    def _to_relay(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
        self._forget(near, far)

    def _to_browser(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                self._held.wait()
                near.sendall(data)
        self._forget(near, far)

    def _forget(self, near: socket.socket, far: socket.socket) -> None:
        _end(near, far)
        with self._lock, contextlib.suppress(ValueError):
            self._pairs.remove((near, far))


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@attrs.define
class Demo:
    """
    ``python -m chatrelay.demo`` as a process.

    :ivar port: the website's
    :ivar relay_port: the relay's, where the line leads
    :ivar directory: where it runs and keeps its message log
    """

    port: int
    relay_port: int
    directory: Path
    process: subprocess.Popen[str] = attrs.field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> str:
        """Start it; return what it printed until it was ready."""
        self.process = start_demo(self.directory, "--port", str(self.port), "--relay-port", str(self.relay_port))
        assert self.process.stdout is not None
        printed = ""
        for line in self.process.stdout:
            printed += line
            if "Ctrl-C" in line:
                return printed
        pytest.fail(f"The demo did not start. It said: {printed}{self.process.communicate()[1]}")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """
        Send it a signal and wait until it has ended.

        :return: its exit code, and all that it wrote to stderr
        """
        self.process.send_signal(number)
        try:
            _, stderr = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            pytest.fail("The demo did not stop within 20 s.")
        return self.process.returncode, stderr


def start_demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start ``python -m chatrelay.demo`` in the directory, as a process."""
    # A job that a shell started in the background ignores SIGINT, and its children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "chatrelay.demo", *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


@attrs.define
class Person:
    """
    A person at their own browser, with methods for what they do there.

    :ivar page: Playwright's page
    :ivar complaints: what the browser wrote to its console as an error: script errors, violations of the content security policy
    """

    page: Page
    complaints: list[str] = attrs.field(factory=list)

    def log_in(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()
        self.state("connected").wait_for()

    def another_tab(self) -> Person:
        """Open a second tab of the browser, at the address of the first."""
        other = Person(self.page.context.new_page())
        other.page.set_default_timeout(15_000)
        other.page.goto(self.page.url)
        return other

    def state(self, name: str) -> Locator:
        """Return the place on the page that shows the connection's state, once it is this one."""
        return self.page.locator(f"#connection[data-state={name}]")

    def in_list(self, name: str) -> Locator:
        """Return a person in the list of people."""
        return self.page.locator("a.person").filter(has=self.page.locator(".name", has_text=name))

    def open(self, name: str) -> None:
        self.in_list(name).click()
        self.page.get_by_role("heading", name=name, exact=True).wait_for()

    def write(self, text: str) -> None:
        """Type a message and send it, in the open conversation."""
        self.page.get_by_role("textbox").fill(text)
        self.page.get_by_role("button", name="Send", exact=True).click()

    def line(self, text: str, status: str) -> Locator:
        """Return a message of the open conversation, once it has this status."""
        return self.page.locator(f".line[data-status={status}]").filter(has=self.page.get_by_text(text, exact=True))

    def leave(self) -> None:
        self.page.context.close()


@attrs.define
class People:
    """Makes browsers with people in them, each with their own cookies."""

    _browser: Browser
    _demo: Demo
    _line: Line
    everybody: list[Person] = attrs.field(factory=list)

    def arrive(self, **context: Any) -> Person:
        """
        Open a new browser at the demo's front page.

        :param context: Playwright's options of a browser context, such as ``viewport``
        """
        page = self._browser.new_context(locale="en-GB", **context).new_page()
        page.set_default_timeout(15_000)
        person = Person(page)
        page.on("console", lambda message: person.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: person.complaints.append(str(error)))
        page.goto(self._demo.url)
        self.everybody.append(person)
        return person

    def log_in(self, name: str, **context: Any) -> Person:
        """Open a new browser, and log in as a person."""
        person = self.arrive(**context)
        person.log_in(name)
        return person

    def goes(self, person: Person) -> None:
        """Close a person's page, and wait until the relay has noticed."""
        before = self._line.connections
        person.page.close()
        eventually(
            lambda: self._line.connections < before, "the browser keeps the connection of a closed page", seconds=15
        )


def ask(url: str, **request: Any) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **request), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()
