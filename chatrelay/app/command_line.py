"""The command line of ``twistd chatrelay``: its options, its help, and its error messages.

It has one option for each of `chatrelay.config.options.Config`. It reports a mistake in one sentence, without a
traceback, and does not check values: `chatrelay.config` does.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import attrs
from twisted.python import usage
from twisted.scripts._twistd_unix import ServerOptions

import chatrelay
from chatrelay.app.output import print_and_exit
from chatrelay.app.twistd_options import check_places, remove_own_pid_file
from chatrelay.config.checks import ConfigError, option_name
from chatrelay.config.fields import value_of
from chatrelay.config.headings import HEADINGS
from chatrelay.config.options import Config
from chatrelay.config.sources import Given, gather

# Twisted's documentation does not promise `twisted.scripts._twistd_unix`.

ALL_OPTIONS = "(all options: twistd chatrelay --help)"


def describe(field: attrs.Attribute[Any]) -> str:
    """Return the text of ``--help`` about an option."""
    about = field.metadata
    parts = [about["help"]]
    if about["repeatable"]:
        if field.default:
            parts.append(f"[default: {' '.join(field.default)}]")
    elif field.default is not None:
        shown = {float: lambda value: f"{value:g}", bool: lambda value: "yes" if value else "no"}
        default = shown.get(about["kind"], str)(field.default)
        unit = about["unit"].removesuffix("s") if field.default == 1 else about["unit"]
        parts.append(f"[default: {default} {unit}]" if unit else f"[default: {default}]")
    if about["zero"]:
        parts.append(f"[0: {about['zero']}]")
    return " ".join(parts)


class Options(usage.Options):
    """The options of ``twistd chatrelay``. The repeatable ones are added below."""

    synopsis = "--auth-url URL [options]"
    longdesc = (
        "Direct messages between the users of the website you already have. Every option can also be set in a TOML "
        "file (--config; auth-url is written auth_url there) or in the environment (CHATRELAY_AUTH_URL). The command "
        "line takes precedence over the environment, and the environment over the file."
    )
    more = (
        'The documentation explains each option and how they work together: see "Operating" to run a relay, and "The '
        'session page" for what your website must answer.'
    )
    optParameters: list[list[Any]] = [
        ["config", None, None, "A TOML file with options."],
        *(
            [option_name(field.name), None, None, describe(field)]
            for field in attrs.fields(Config)
            if not field.metadata["repeatable"]
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.repeated: dict[str, list[str]] = {}
        self.given = Given({}, {})
        self.chosen: Config | None = None

    def getUsage(self, width: int | None = None) -> str:
        """Return what ``--help`` prints below the first line: the options under their headings.

        :param width: columns; None for the terminal's width, or 80 if there is no terminal.
        """
        columns = width or min(max(40, shutil.get_terminal_size().columns), 100)

        def wrapped(text: str, indent: str = "") -> str:
            return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

        fields = attrs.fields_dict(Config)
        parts = [wrapped(self.longdesc)]
        for heading, names in HEADINGS:
            parts.append(f"{heading}:")
            for name in names:
                option = f"  --{option_name(name)} {value_of(fields[name])}"
                parts.append(f"{option}\n{wrapped(describe(fields[name]), ' ' * 8)}")
        parts.append("This program:")
        for option, says in (
            ("config FILE", "A TOML file with options."),
            ("help", "Print this and exit."),
            ("version", "Print chatrelay's version and exit."),
        ):
            parts.append(f"  --{option}\n{wrapped(says, ' ' * 8)}")
        parts.append(wrapped(self.more))
        return "\n" + "\n\n".join(parts) + "\n"

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line.

        :raises SystemExit: with one sentence. (twistd prints a `usage.UsageError` below the whole help.)
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"chatrelay: {self._in_words(str(error), options or ())} {ALL_OPTIONS}") from error

    def parseArgs(self, *words: str) -> None:
        """Refuse words that belong to no option."""
        if words:
            is_url = words[0].startswith(("http://", "https://"))
            hint = f"; did you mean --auth-url {words[0]}?" if is_url else ""
            raise usage.UsageError(f"{words[0]!r} is not an option: options begin with --{hint}")

    def _in_words(self, error: str, options: Sequence[str]) -> str:
        """Return an error of the parser, with a suggestion if there is one.

        :param options: the command line.
        """
        if (unknown := re.fullmatch(r"option (-\S+) not recognized", error)) is not None:
            return self._unknown(unknown[1], options)
        own = [name.removesuffix("=") for name in self.longOpt]
        if (valueless := re.fullmatch(r"option --(\S+) requires argument", error)) is not None:
            field = attrs.fields_dict(Config).get(valueless[1].replace("-", "_"))
            return f"--{valueless[1]} needs a value: --{valueless[1]} {'FILE' if field is None else value_of(field)}"
        if (prefix := re.fullmatch(r"option --(\S+) not a unique prefix", error)) is not None:
            meant = [f"--{name}" for name in sorted(own) if name.startswith(prefix[1])]
            return f"--{prefix[1]} is not an option; did you mean {' or '.join(meant)}?"
        return error

    def _unknown(self, option: str, options: Sequence[str]) -> str:
        """Return the error message for an option that the relay does not have.

        :param option: with its dashes, without a value.
        """
        twistd = self.parent if isinstance(self.parent, ServerOptions) else ServerOptions()
        own = [f"--{name.removesuffix('=')}" for name in self.longOpt]
        of_twistd = [f"--{name.removesuffix('=')}" for name in twistd.longOpt]
        if (single := self._with_two_dashes(option, own, options)) is not None:
            return single
        if option in of_twistd or (len(option) == 2 and option[1] in twistd.shortOpt.replace(":", "")):
            return f"{option} is an option of twistd: give it before chatrelay, as in twistd {option} chatrelay"
        if option == "-h":
            return "-h is not an option; did you mean --help?"
        meant = difflib.get_close_matches(option, [*own, *of_twistd], n=1, cutoff=0.7)
        if not meant:
            return f"{option} is not an option"
        if meant[0] in own:
            return f"{option} is not an option; did you mean {meant[0]}?"
        return f"{option} is not an option; did you mean twistd's {meant[0]}? Give it before chatrelay"

    @staticmethod
    def _with_two_dashes(option: str, own: Sequence[str], options: Sequence[str]) -> str | None:
        """Return the error message for a long option with a single dash, which the parser reads as short options.

        :returns: None if there is no such option on the command line.
        """
        for word in options:
            name = f"-{word.partition('=')[0]}"
            if word.startswith(option) and name in own:
                return f"{name[1:]} is not an option; did you mean {name}?"
        return None

    def opt_help(self) -> NoReturn:
        """Print this and exit."""
        print_and_exit(str(self))

    def opt_version(self) -> NoReturn:
        """Print chatrelay's version and exit."""
        print_and_exit(f"chatrelay {chatrelay.__version__}")

    def postOptions(self) -> None:
        """Join the command line, the environment and the file, and check every value.

        :raises SystemExit: with one sentence that names the option, the place where it was set, and the remedy.
        """
        given: dict[str, Any] = {name: tuple(values) for name, values in self.repeated.items()}
        for field in attrs.fields(Config):
            value = self.get(option_name(field.name))
            if value is not None:
                given[field.name] = value
        try:
            self.given = gather(given, os.environ, self["config"])
            self.chosen = self.given.config()
            if self.chosen.auth_url is None:
                raise ConfigError(
                    "auth-url",
                    "is missing: give the URL of your site's session page, for instance "
                    "--auth-url http://127.0.0.1/session.php",
                )
            if not self.chosen.listen:
                raise self.given.placed(
                    ConfigError("listen", "is empty: give at least one endpoint, for instance --listen tcp:8080")
                )
        except ConfigError as error:
            raise SystemExit(f"chatrelay: {error} {ALL_OPTIONS}") from error
        if isinstance(self.parent, ServerOptions):
            remove_own_pid_file(self.parent["pidfile"])
            try:
                check_places(self.parent)
            except ConfigError as error:
                raise SystemExit(f"chatrelay: {error}") from error


def _repeatable(field: attrs.Attribute[Any]) -> Callable[[Options, str], None]:
    def take(self: Options, value: str) -> None:
        self.repeated.setdefault(field.name, []).append(value)

    take.__doc__ = describe(field)
    return take


# usage.Options finds options that may be repeated by the names of methods.
for _field in attrs.fields(Config):
    if _field.metadata["repeatable"]:
        setattr(Options, f"opt_{_field.name}", _repeatable(_field))
