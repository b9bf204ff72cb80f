"""The public names: everything that `docs/embedding.rst` and the examples show, and nothing else, can be imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import chatrelay
from chatrelay import model, testing
from chatrelay.app import build, service
from chatrelay.config import checks, options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "embedding.rst").read_text("utf-8")

PUBLIC = {
    *("Authenticator", "ChatRelayService", "Config", "ConfigError", "Denied", "LogUnavailable", "LoggedIn"),
    *("Message", "MessageLog", "Unavailable", "__version__", "build"),
}

STAND_INS = {"HeldAuthenticator", "HeldInboxReader", "HeldMessageLog", "KnownSessions", "RecordedConnection"}
"""The names that `chatrelay.testing` has for the tests of embedding programs."""


def imported_by(path: Path) -> set[tuple[str, str]]:
    """Return what a program imports of chatrelay: modules and names."""
    return {
        (node.module, name.name)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "chatrelay"
        for name in node.names
    }


class PublicNames(SynchronousTestCase):
    """What can be imported from the package itself."""

    def test_public_names_are_those_listed_here(self) -> None:
        self.assertEqual(sorted(chatrelay.__all__), sorted(PUBLIC))

    def test_each_public_name_is_loaded_from_its_module(self) -> None:
        self.assertIs(chatrelay.build, build.build)
        self.assertIs(chatrelay.ChatRelayService, service.ChatRelayService)
        self.assertIs(chatrelay.Config, options.Config)
        self.assertIs(chatrelay.ConfigError, checks.ConfigError)
        for name in ("Denied", "LoggedIn", "LogUnavailable", "Message", "Unavailable"):
            self.assertIs(getattr(chatrelay, name), getattr(model, name))

    def test_star_import_brings_every_public_name(self) -> None:
        names: dict[str, Any] = {}
        exec("from chatrelay import *", names)
        self.assertEqual(set(names) - {"__builtins__"}, PUBLIC)

    def test_unknown_name_raises_attribute_error(self) -> None:
        self.assertRaises(AttributeError, getattr, chatrelay, "no_such_name")

    def test_no_public_name_installs_a_reactor(self) -> None:
        code = (
            "import sys, chatrelay, chatrelay.testing\n"
            f"for name in {sorted(PUBLIC)!r}: getattr(chatrelay, name)\n"
            "print('twisted.internet.reactor' in sys.modules)"
        )
        printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
        self.assertEqual(printed.stdout.strip(), "False")


class EmbeddingPage(SynchronousTestCase):
    """What the page for embedding programs shows."""

    def test_each_public_name_is_on_the_page(self) -> None:
        shown = set(re.findall(r"\bchatrelay\.(\w+)", PAGE))
        self.assertEqual(PUBLIC - shown - {"__version__"}, set())

    def test_each_dotted_name_on_the_page_exists(self) -> None:
        shown = set(re.findall(r"(?<![\w/.-])chatrelay(?:\.[A-Za-z_]\w*)+", PAGE))
        self.assertIn("chatrelay.ChatRelayService.end_user", shown)
        for name in shown:
            resolve_name(name)

    def test_each_listed_member_exists(self) -> None:
        listed = re.findall(r"\.\. auto(?:class|module):: (chatrelay[\w.]*)(?:\(\))?\n +:members: (.+)\n", PAGE)
        expected = ["chatrelay.interfaces.TrimmableLog", "chatrelay.ChatRelayService", "chatrelay.testing"]
        self.assertEqual([name for name, _ in listed], expected)
        for name, members in listed:
            owner = resolve_name(name)
            for member in members.split(", "):
                self.assertTrue(hasattr(owner, member), f"{name}.{member}")

    def test_stand_ins_of_the_module_are_those_on_the_page(self) -> None:
        made_there = {
            name
            for name, value in vars(testing).items()
            if isinstance(value, type) and value.__module__ == testing.__name__
        }
        self.assertEqual(made_there, STAND_INS)
        self.assertEqual({name for name in STAND_INS if name in PAGE}, STAND_INS)

    def test_names_that_the_page_once_showed_still_exist(self) -> None:
        for name in ("chatrelay.interfaces.Message", "chatrelay.interfaces.LogUnavailable"):
            self.assertIs(resolve_name(name), getattr(chatrelay, name.rpartition(".")[2]))


class Examples(SynchronousTestCase):
    """What the example programs import."""

    def test_examples_import_public_names_only(self) -> None:
        imports = {found for path in sorted((ROOT / "examples").rglob("*.py")) for found in imported_by(path)}
        self.assertIn(("chatrelay", "build"), imports)
        self.assertEqual({name for module, name in imports if module == "chatrelay"} - PUBLIC, set())
        self.assertEqual({module for module, _ in imports}, {"chatrelay"})
