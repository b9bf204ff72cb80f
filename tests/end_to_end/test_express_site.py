"""An Express site with express-session, run by Node, from examples/express: the code that docs/webserver.rst shows."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from bench.ports import free_port
from tests.support import PATIENCE, ROOT
from tests.support.client import Client
from tests.support.framework_visitors import Browser
from tests.support.programs import RelayProcess
from tests.support.v1 import ADMITTED, DENIED

NODE = shutil.which("node")
PACKAGES = ROOT / "tests" / "express" / "node_modules"
EXAMPLE = ROOT / "examples" / "express"

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is missing (on Debian: apt install nodejs npm)"),
    pytest.mark.skipif(
        not (PACKAGES / "express-session").exists(),
        reason="Express is missing (make test installs it in tests/express, where npm is: apt install npm)",
    ),
]


class Express:
    """The example and its relay as processes.

    :ivar secret: what the two have in common.
    """

    def __init__(self, folder: Path) -> None:
        assert NODE is not None
        self.secret, token = secrets.token_hex(16), secrets.token_hex(16)
        for name, value in (("secret", self.secret), ("token", token)):
            (folder / name).write_text(value + "\n")
            (folder / name).chmod(0o600)
        site = folder / "site"
        shutil.copytree(EXAMPLE, site)
        (site / "node_modules").symlink_to(PACKAGES)
        ops = free_port()
        self.process = subprocess.Popen(
            [NODE, "site.mjs", "0"],
            cwd=site,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "CHATRELAY_SECRET_FILE": str(folder / "secret"),
                "CHATRELAY_TOKEN_FILE": str(folder / "token"),
                "CHATRELAY_OPS": f"http://127.0.0.1:{ops}",
            },
        )
        assert self.process.stdout is not None
        started = self.process.stdout.readline()
        found = re.search(r"http://localhost:(\d+)/", started)
        if found is None:
            self.process.kill()
            raise AssertionError(started + self.process.communicate()[0])
        self.origin = f"http://127.0.0.1:{found[1]}"
        self.relay = RelayProcess(
            folder,
            *("--auth-url", f"{self.origin}/session", "--auth-secret-file", str(folder / "secret")),
            *("--session-cookie", "connect.sid", "--origin", self.origin, "--message-log", "memory:"),
            *("--ops-listen", f"tcp:{ops}:interface=127.0.0.1", "--ops-token-file", str(folder / "token")),
        )

    def page(self, browser: Browser) -> Client:
        """Open the chat connection of a page in a browser."""
        return self.relay.client(origin=self.origin, additional_headers={"Cookie": f"connect.sid={browser.cookie}"})

    def __enter__(self) -> Self:
        self.relay.__enter__().ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.__exit__(None, None, None)
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def express(tmp_path: Path) -> Iterator[Express]:
    """Start the site and its relay."""
    with Express(tmp_path) as site:
        yield site


def ask(express: Express, body: bytes, secret: str, kind: str = "application/x-www-form-urlencoded") -> tuple[int, Any]:
    """Ask the session page directly."""
    request = urllib.request.Request(f"{express.origin}/session", body)
    request.add_header("Authorization", f"Bearer {secret}")
    request.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, str(answer.read(), "utf-8")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, str(error.read(), "utf-8")


def test_users_of_an_express_site_exchange_messages_until_they_log_out(express: Express) -> None:
    anna, bo = Browser(express, "connect.sid"), Browser(express, "connect.sid")
    assert anna.post("login", user="1") == "user 1"
    assert anna.get("whoami") == '{"loggedin":true,"uID":1}'
    assert bo.post("login", user="2") == "user 2"
    assert anna.cookie.startswith("s%3A")
    with express.page(anna) as of_anna, express.page(bo) as of_bo:
        assert of_anna.log_in(None) == of_bo.log_in(None) == ADMITTED
        of_anna.send(2, "Hej")
        assert of_bo.hear()["message"]["fromuID"] == 1
        assert of_anna.hear()["response"] == {"id": "1", "value": True}

        assert anna.post("logout") == "user nobody"
        assert of_anna.closed()[0] == 4505
        with express.page(anna) as again:
            assert again.log_in(None) == DENIED
        assert bo.post("login", user="3") == "user 3"  # another user in the same browser
        assert of_bo.closed()[0] == 4505
    assert not [line for line in express.relay.output if "startup check" in line]


def test_session_page_answers_only_the_relay(express: Express) -> None:
    anna = Browser(express, "connect.sid")
    anna.post("login", user="1")
    body = urllib.parse.urlencode({"SESSID": anna.cookie}).encode()
    assert ask(express, body, express.secret) == (200, '{"loggedin":true,"uID":1}')
    for secret in ("", "wrong", express.secret[:-1], express.secret + "1"):
        assert ask(express, body, secret)[0] == 400


def test_made_up_session_ids_are_denied_without_a_failure(express: Express) -> None:
    anna = Browser(express, "connect.sid")
    anna.post("login", user="1")
    for sessid in (
        "",
        "x",
        anna.cookie[:-1],
        anna.cookie.replace("s%3A", ""),
        "s%3A%",
        "s%3Aa.b",
        "%00",
        "åäö",
        "x" * 4096,
    ):
        body = urllib.parse.urlencode({"SESSID": sessid}).encode()
        assert ask(express, body, express.secret) == (200, '{"loggedin":false}'), sessid
    for body, kind in ((b"SESSID=a&SESSID=b", ""), (b"x=1", ""), (b'{"SESSID":"x"}', "application/json")):
        assert ask(express, body, express.secret, kind or "application/x-www-form-urlencoded")[0] == 400


def test_file_without_a_secret_of_one_line_is_named_and_its_text_is_not_printed(tmp_path: Path) -> None:
    assert NODE is not None
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE, site)
    (site / "node_modules").symlink_to(PACKAGES)
    (tmp_path / "secret").write_text("first-line\nsecond-line\n")
    names = ("CHATRELAY_SECRET_FILE", "CHATRELAY_TOKEN_FILE")
    done = subprocess.run(
        [NODE, "site.mjs", "0"],
        cwd=site,
        env={"PATH": os.environ["PATH"], **dict.fromkeys(names, str(tmp_path / "secret"))},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert f"{tmp_path}/secret has to hold one line" in done.stderr
    assert "-line" not in done.stderr
