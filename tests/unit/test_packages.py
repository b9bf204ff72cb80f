"""The folders and modules of chatrelay: each folder is an installed package, and each module states its purpose.

The files are read as text, and not imported.
"""

from __future__ import annotations

import ast
from configparser import ConfigParser

from tests.support import ROOT

MODULES = sorted((ROOT / "chatrelay").rglob("*.py"))


def test_each_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_each_package_is_installed() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    assert set(setup["options"]["packages"].split()) == packages | {"twisted.plugins"}


def test_each_module_states_its_purpose_in_one_line_and_then_its_boundary() -> None:
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        purpose, _, boundary = docstring.partition("\n\n")
        assert purpose.endswith(".") and "\n" not in purpose, path
        assert boundary, path


SEAMS = {"__init__.py", "__main__.py"}
"""Modules that may be short, because they are the entry of a package or a program."""


def test_each_module_has_40_to_500_lines() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > 500} == {}
    assert {path: count for path, count in lines.items() if count < 40 and path.name not in SEAMS} == {}
