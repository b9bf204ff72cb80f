"""CONTRIBUTING.rst matches what it describes: the Makefile, the parts of chatrelay, the layers.

The page is read as text. docs/check_links.py checks that the files it names exist.
"""

from __future__ import annotations

import re
import tomllib

from tests.support import ROOT

PAGE = (ROOT / "CONTRIBUTING.rst").read_text("utf-8")


def test_each_make_target_is_described_and_each_described_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()) - {"help"}
    assert set(re.findall(r"\bmake\s+([a-z-]+)", PAGE)) == targets


def test_table_of_parts_has_every_part_of_the_package() -> None:
    listed = {path.name for path in (ROOT / "chatrelay").iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    described = set(re.findall(r"^``(\w+(?=/``)|\w+\.py)", PAGE, re.MULTILINE))
    assert described == listed


def test_layers_on_the_page_are_those_that_import_linter_checks() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    described = re.findall(r"^\d\. (``.*)$", PAGE, re.MULTILINE)
    assert [re.findall(r"\w+", layer) for layer in described] == [re.findall(r"\w+", layer) for layer in layers]
