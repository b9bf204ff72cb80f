"""Imports between the modules of the tests: shared code is in tests/support, and no test is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = [path for path in TESTS.rglob("*.py") if "node_modules" not in path.parts]

CLIENTS_SIDE = {
    *("twisted_client", "frames", "v1", "client", "tls_tunnel", "readers", "promise", "saturation", "programs"),
    "memory",
}
"""The modules of tests/support that stand for a client, or check what it saw."""


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of each imported module, and of each name imported from one."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_imports_a_test() -> None:
    for path in FILES:
        found = {name for name in imported(path) if name.startswith("tests.")}
        parts = {part for name in found for part in name.split(".")}
        assert {part for part in parts if part.startswith(("test_", "conftest"))} == set(), path


def test_support_imports_nothing_of_the_folders_it_supports() -> None:
    for path in (TESTS / "support").glob("*.py"):
        ours = {name for name in imported(path) if name.startswith("tests.")}
        assert {name for name in ours if not name.startswith("tests.support")} == set(), path


def test_client_modules_import_nothing_of_the_relay() -> None:
    for name in CLIENTS_SIDE:
        found = set(imported(TESTS / "support" / f"{name}.py"))
        assert {name for name in found if name.partition(".")[0] in ("chatrelay", "autobahn")} == set(), name
