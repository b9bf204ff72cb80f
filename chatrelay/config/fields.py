"""How an option is declared: its type, its unit, what zero means, and how it is shown.

This module must not know any particular option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from chatrelay.config import checks
from chatrelay.config.checks import Field

_BY_KIND = {float: checks.number, int: checks.number, bool: checks.boolean, str: checks.text}


def option(
    default: Any,
    help: str,
    *,
    kind: type | None = None,
    unit: str = "",
    zero: str = "",
    metavar: str = "",
    words: str = "",
    repeatable: bool = False,
    separator: str | None = None,
    check: Callable[[Any, Field, Any], None] | None = None,
) -> Any:
    """Make an option.

    :param kind: the type of a value; None: the type of the default, or str.
    :param unit: the unit of a number.
    :param zero: what 0 means, for a number.
    :param words: the only values that can be used, separated by ``|``; empty for any.
    :param separator: separates the values of a repeatable option in the environment; None: white space.
    :param check: raises `ConfigError` for a value of the right type that can't be used.
    """
    if words:
        metavar, check = words, checks.one_of(*words.split("|"))
    if kind is None:
        kind = type(default) if type(default) in _BY_KIND else str
    validators = [] if repeatable else [_BY_KIND[kind]]
    return attrs.field(
        default=default,
        validator=[*validators, *([] if check is None else [check])],
        metadata={
            "help": help,
            "unit": unit,
            "zero": zero,
            "metavar": metavar or unit,
            "repeatable": repeatable,
            "separator": separator,
            "kind": kind,
        },
    )


def value_of(field: Field) -> str:
    """Return the placeholder for the value after an option's name in ``--help``."""
    metavar: str = field.metadata["metavar"]
    return metavar.upper() if field.metadata["unit"] else metavar
