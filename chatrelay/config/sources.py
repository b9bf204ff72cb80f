"""Read options from the command line, the environment and a TOML file.

An error about an option names the place where the option was set, and suggests a correction if there is one.
`chatrelay.config.options` decides which values are valid.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any

import attrs

from chatrelay.config.checks import ConfigError, option_name
from chatrelay.config.options import Config
from chatrelay.permissions import cannot_be_read

ENVIRONMENT_PREFIX = "CHATRELAY_"
CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"

TWISTD_OPTIONS = frozenset(
    {"chroot", "debug", "euid", "gid", "logfile", "logger", "nodaemon", "pidfile", "prefix", "profile", "reactor"}
    | {"rundir", "syslog", "uid", "umask"}
)
"""Options of twistd that somebody may mistake for options of the relay."""

_WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}

_DURATIONS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
"""The units that a time may have: the seconds of each."""

_SECONDS = {"ms": 0.001, "sec": 1, "second": 1, "m": 60, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_SECONDS |= _DURATIONS
_BYTES = {"b": 1, "byte": 1, "k": 1024, "kb": 1024, "kib": 1024, "m": 1024**2, "mb": 1024**2, "mib": 1024**2}
_BYTES |= {"g": 1024**3, "gb": 1024**3, "gib": 1024**3}
_PER_CENT = {"%": 1, "percent": 1, "per cent": 1}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|min|h|d)")
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z% ]+?)\s*", re.IGNORECASE)


@attrs.frozen
class Given:
    """The options that were set, and the place where each was set.

    :ivar values: by attribute of `Config`.
    :ivar places: by attribute of `Config`, the beginning of an error message: ``--listen`` or ``CHATRELAY_LISTEN``.
    """

    values: Mapping[str, Any]
    places: Mapping[str, str]

    def config(self) -> Config:
        """Check the values.

        :raises ConfigError: for an invalid value. The text begins with its place.
        """
        try:
            return Config(**self.values)
        except ConfigError as error:
            raise self.placed(error) from None

    def placed(self, error: ConfigError) -> ConfigError:
        """Return an error that names the place where its option was set."""
        name = error.option.replace("-", "_")
        value = self.values.get(name)
        texts = value if isinstance(value, tuple) else (value,)
        quoted = "; remove the quotes around it" if any(_unquoted(text) is not None for text in texts) else ""
        return ConfigError(error.option, error.problem + quoted, self.places.get(name, error.place))


def read(
    command_line: Mapping[str, Any], environment: Mapping[str, str] = os.environ, config_file: str | None = None
) -> Config:
    """Join the sources and check the values: see `gather`."""
    return gather(command_line, environment, config_file).config()


def gather(
    command_line: Mapping[str, Any], environment: Mapping[str, str] = os.environ, config_file: str | None = None
) -> Given:
    """Join the sources. The command line wins over the environment, and the environment over the file.

    :param command_line: the given attributes of `Config`, as text (tuples of text if repeatable).
    :param environment: variables such as ``CHATRELAY_AUTH_URL``. Repeatable options are split at white space, headers
        at line ends.
    :param config_file: the path of a TOML file, or None.
    :raises ConfigError: for anything that can't be read. It names the option, the variable or the file.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    if config_file == "":
        raise ConfigError("config", "is empty: give the path of a TOML file", "--config")
    place = "--config" if config_file else CONFIG_VARIABLE
    config_file = config_file or environment.get(CONFIG_VARIABLE)
    if config_file:
        values.update(_from_file(config_file, place))
        places.update({name: f"{config_file}: {name}" for name in values})
    _check_variables(environment)
    for field in attrs.fields(Config):
        variable = ENVIRONMENT_PREFIX + field.name.upper()
        if variable in environment:
            text = environment[variable]
            try:
                values[field.name] = (
                    _split_values(field, text) if field.metadata["repeatable"] else from_text(field, text)
                )
            except ConfigError as error:
                raise ConfigError(error.option, error.problem, variable) from None
            places[field.name] = variable
        if field.name in command_line:
            given = command_line[field.name]
            option = f"--{option_name(field.name)}"
            try:
                values[field.name] = given if field.metadata["repeatable"] else from_text(field, given)
            except ConfigError as error:
                raise ConfigError(error.option, error.problem, option) from None
            places[field.name] = option
    return Given(values, places)


def _split_values(field: attrs.Attribute[Any], text: str) -> tuple[str, ...]:
    """Return the values of a repeatable option from the text of its variable."""
    return tuple(value.strip() for value in text.split(field.metadata["separator"]) if value.strip())


def _check_variables(environment: Iterable[str]) -> None:
    variables = [ENVIRONMENT_PREFIX + field.name.upper() for field in attrs.fields(Config)]
    for name in environment:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in (*variables, CONFIG_VARIABLE):
            # Only names close to an option are refused, because other programs set variables with this prefix, too:
            # Kubernetes does for a service called chatrelay.
            meant = difflib.get_close_matches(name, variables, n=1, cutoff=0.9)
            if meant:
                raise ConfigError(name, f"is not an option; did you mean {meant[0]}?")


# Text ------------------------------------------------------------------------


def from_text(field: attrs.Attribute[Any], text: str) -> Any:
    """Return the value of an option from its text.

    :raises ConfigError: for an invalid text, with a suggestion if there is one.
    """
    kind = field.metadata["kind"]
    option = option_name(field.name)
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ConfigError(option, f"{text!r} must be yes or no{_quotes_hint(field, text)}")
        return _WORDS[text.lower()]
    seconds = _duration(field, text)
    if seconds is not None:
        return seconds
    try:
        return kind(text)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        hint = _quotes_hint(field, text) or _number_hint(field, text)
        raise ConfigError(option, f"{text!r} must be {number} of {field.metadata['unit']}{hint}") from None


def _duration(field: attrs.Attribute[Any], text: object) -> float | None:
    """Return the seconds of a time with a unit, such as ``30min``; None for other texts and options."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) and _is_time(field) else None
    return None if found is None else float(found[1]) * _DURATIONS[found[2]]


def _is_time(field: attrs.Attribute[Any]) -> bool:
    return bool(field.metadata["unit"].startswith("seconds"))


def _quotes_hint(field: attrs.Attribute[Any], text: str) -> str:
    inner = _unquoted(text)
    return ": remove the quotes" if inner is not None and _is_valid(field, inner) else ""


def _unquoted(text: object) -> str | None:
    """Return a text without the quotes around it; None if it has no quotes."""
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return None


def _is_valid(field: attrs.Attribute[Any], text: str) -> bool:
    try:
        from_text(field, text)
    except ConfigError:
        return False
    return True


def _number_hint(field: attrs.Attribute[Any], text: str) -> str:
    number = _number_meant(field, text)
    if number is None:
        return ", or a time with a unit such as 30min or 365d" if _is_time(field) else ""
    return f": give {number}s" if _is_time(field) else f": give {number}, without a unit"


def _number_meant(field: attrs.Attribute[Any], text: str) -> str | None:
    """Return the number in the option's own unit for a text with a unit, such as 1048576 for ``1 MiB``."""
    units: dict[str, Mapping[str, float]] = {"seconds": _SECONDS, "bytes": _BYTES, "per cent": _PER_CENT}
    of_option = next((factors for unit, factors in units.items() if field.metadata["unit"].startswith(unit)), None)
    found = _NUMBER_AND_UNIT.fullmatch(text)
    if of_option is None or found is None:
        return None
    unit = found[2].lower()
    factor = of_option.get(unit) or of_option.get(unit.removesuffix("s"))
    if factor is None:
        return None
    number = float(found[1]) * factor
    if number.is_integer():
        return str(int(number))
    return None if field.metadata["kind"] is int else f"{number:g}"


# The file --------------------------------------------------------------------


def _from_file(path: str, place: str) -> dict[str, Any]:
    """Return the options that a TOML file sets.

    :param place: where the path of the file was given.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except (OSError, ValueError) as error:
        raise ConfigError("config", cannot_be_read(path, error), place) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("config", "the text is not UTF-8: save the file as UTF-8", f"{path}, line {line}") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        number, problem = _syntax_error(text, str(error))
        raise ConfigError("config", problem, path if number is None else f"{path}, line {number}") from None
    fields = attrs.fields_dict(Config)
    for key, value in values.items():
        if key not in fields:
            raise ConfigError("config", _unknown(key, value), f"{path}: {key}")
        seconds = _duration(fields[key], value)
        if seconds is not None:
            value = values[key] = seconds
        wrong = _type_problem(fields[key], value)
        if wrong is not None:
            raise ConfigError(option_name(key), wrong, f"{path}: {key}")
        if fields[key].metadata["repeatable"]:
            values[key] = (value,) if isinstance(value, str) else tuple(value)
    return values


def _unknown(key: str, value: object) -> str:
    """Return the error message for a key that is not an option."""
    fields = attrs.fields_dict(Config)
    wanted = key.replace("-", "_").lower()
    if isinstance(value, dict):
        if joined := [f"{wanted}_{inner}" for inner in value if f"{wanted}_{inner}" in fields]:
            return f"is a table, but options belong at the top level of the file: write {joined[0]} = ..."
        return f"is a table, but options belong at the top level of the file: remove the line [{key}]"
    if wanted == "config":
        return f"a file cannot name another file: give --config, or {CONFIG_VARIABLE} in the environment"
    if wanted in TWISTD_OPTIONS:
        return f"is an option of twistd: give it on the command line, as in twistd --{wanted} chatrelay"
    meant = difflib.get_close_matches(wanted, fields, n=1, cutoff=0.7)
    return "is not an option" + (f"; did you mean {meant[0]}?" if meant else "")


def _type_problem(field: attrs.Attribute[Any], value: object) -> str | None:
    """Return what is wrong with the type of a TOML value; None if the type is right."""
    kind = field.metadata["kind"]
    shown = _as_toml(value)
    if field.metadata["repeatable"]:
        items = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) for item in items):
            return None
        example = field.default[0] if field.default else field.metadata["metavar"]
        return f'{shown} must be a list of strings: write {field.name} = ["{example}"]'
    if kind is str:
        return None if isinstance(value, str) else f'{shown} must be a string: write {field.name} = "..."'
    if kind is bool:
        if isinstance(value, bool):
            return None
        if isinstance(value, str) and value.lower() in _WORDS:
            return f"{shown} is a string: remove the quotes: {field.name} = {_as_toml(_WORDS[value.lower()])}"
        return f"{shown} must be true or false, without quotes"
    return _number_problem(field, value, shown)


def _number_problem(field: attrs.Attribute[Any], value: object, shown: str) -> str | None:
    number = "a whole number" if field.metadata["kind"] is int else "a number"
    if isinstance(value, str):
        if _is_valid(field, value):
            return f"{shown} is a string: remove the quotes: {field.name} = {value.strip()}"
        meant = _number_meant(field, value)
        hint = ", without quotes"
        if not meant and _is_time(field):
            hint += ', or a time with a unit such as "365d"'
        if meant:
            hint = f": write {field.name} = {meant}, without quotes and unit"
        return f"{shown} must be {number} of {field.metadata['unit']}{hint}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{shown} must be {number} of {field.metadata['unit']}"
    if field.metadata["kind"] is int and isinstance(value, float) and value.is_integer():
        return f"{shown} must be a whole number: write {field.name} = {int(value)}"
    return None


def _as_toml(value: object) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return f'"{value}"' if isinstance(value, str) else str(value)


_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=\s*(.*?)\s*(?:#.*)?")
_KEY_AND_COLON = re.compile(r"\s*([A-Za-z0-9_-]+)\s*:\s*(.*?)\s*")


def _syntax_error(text: str, error: str) -> tuple[int | None, str]:
    """Return where a file is not valid TOML, and the remedy.

    :param error: the text of the error that `tomllib` raised.
    :returns: the line's number, None if it is unknown; and a sentence.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if "overwrite" in error:
        keys = [found[1] if (found := _KEY.fullmatch(line)) else None for line in lines]
        for number, key in enumerate(keys, 1):
            if key is not None and key in keys[: number - 1]:
                return number, f"{key} is set a second time, first in line {keys.index(key) + 1}: remove one of them"
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", error)
    at = None if place is None else int(place[1] or len(text.rstrip().splitlines()))
    line = lines[at - 1] if at is not None and at <= len(lines) else ""
    hint = ""
    if (found := _KEY.fullmatch(line)) is not None:
        hint = _value_hint(found[1], found[2])
    elif (found := _KEY_AND_COLON.fullmatch(line)) is not None:
        hint = f": write {found[1]} = ..., with an equals sign"
    problem = error[: place.start()] if place else error
    return at, f"this is not valid TOML ({problem}){hint}"


def _value_hint(key: str, value: str) -> str:
    """Return the correction for a value that is not valid TOML."""
    if not value:
        return f": {key} has no value"
    if value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return f": write {key} = {'true' if value.lower() in ('true', 'yes', 'on') else 'false'}"
    field = attrs.fields_dict(Config).get(key.replace("-", "_"))
    number = None if field is None else _number_meant(field, value)
    if field is not None and _duration(field, value) is not None:
        return f': write {key} = "{value}", in quotes'
    if number is not None:
        return f": write {key} = {number}, without a unit"
    return f': put the value in quotes: {key} = "{value}"' if value[0] not in "\"'[{" else ""
