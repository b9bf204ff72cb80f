"""
The directive ``config-options``: show every option of the relay, from `chatrelay.config.options.Config`.

It has no content, so the page says the same as ``twistd chatrelay --help``.
"""

from __future__ import annotations

from typing import Any

import attrs
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

from chatrelay.config import options
from chatrelay.config.checks import option_name
from chatrelay.config.fields import value_of
from chatrelay.config.headings import HEADINGS
from chatrelay.config.options import Config
from chatrelay.config.sources import ENVIRONMENT_PREFIX

SPECIAL = "\\*`|_[]<>:"


def escaped(text: str) -> str:
    """Escape `text`, so that reStructuredText shows it as it is."""
    return "".join("\\" + character if character in SPECIAL else character for character in text)


def shown(field: attrs.Attribute[Any]) -> str:
    """Return an option's default as reStructuredText."""
    value, unit = field.default, field.metadata["unit"]
    if value is None or value == ():
        return "none"
    if field.metadata["repeatable"]:
        return ", ".join(f"``{item}``" for item in value)
    if field.metadata["kind"] is str:
        return f"``{value}``"
    return f"{value:g} {unit}" if field.metadata["kind"] is float else f"{value:,} {unit}"


def description(field: attrs.Attribute[Any]) -> list[str]:
    """Return one option as lines of reStructuredText."""
    about = field.metadata
    default = f"Default: {shown(field)}"
    if about["zero"]:
        default += f"; 0 means {escaped(about['zero'])}"
    places = f"``{field.name}`` in the file, ``{ENVIRONMENT_PREFIX}{field.name.upper()}`` in the environment"
    if about["repeatable"]:
        separated = "one a line" if about["separator"] == "\n" else "separated by spaces"
        places = f"{places.replace('file,', 'file (a list),')} ({separated})"
    return [
        f".. option:: --{option_name(field.name)} {value_of(field)}",
        "",
        f"   {escaped(about['help'])}",
        "",
        f"   {default}. Also {places}.",
        "",
    ]


class ConfigOptions(SphinxDirective):
    """Renders `Config`."""

    def run(self) -> list[nodes.Node]:
        """Make the entries, under the headings that ``--help`` has."""
        for source in (__file__, options.__file__):
            self.env.note_dependency(source)
        lines = [".. program:: chatrelay", ""]
        fields = attrs.fields_dict(Config)
        for heading, names in HEADINGS:
            lines += [f".. rubric:: {heading}", ""]
            for name in names:
                lines += description(fields[name])
        node = nodes.section()
        node.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, source="chatrelay.config.options.Config"), node)
        return list(node.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the directive."""
    app.add_directive("config-options", ConfigOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
