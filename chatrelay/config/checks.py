"""The values that each option may have, and the errors about values that can't be used.

This module is pure, and must not know where a value was set, nor what the relay does with it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import attrs

from chatrelay.auth.headers import HOST_NAME, read_headers, read_host
from chatrelay.auth.resume import MAX_LIFE_SECONDS
from chatrelay.limits.addresses import TrustedProxies
from chatrelay.messagelog import BadMessageLogURL, check_url
from chatrelay.wire.request_head import TOKEN

MAX_NUMBER = 2**31 - 1
"""The largest number that an option may be."""

MAX_SPREAD_PER_CENT = 90
"""The largest recheck-spread. At 100 per cent, some re-checks would follow the last one at once."""

MIN_OPS_TOKEN_CHARACTERS = 16
"""The fewest characters of the ops endpoint's token. Attempts are not limited, so it must be hard to guess."""

MIN_KEEP_SECONDS = 3600.0
"""The shortest time for which messages are kept. By then, all is over that may happen to a new message."""

LOG_LEVELS = ("debug", "info", "warn", "error")
"""The levels of `twisted.logger.LogLevel`, lowest first, without critical, which would hide why a relay can't start."""

_DEFAULT_PORTS = {"http": 80, "https": 443}

Field: TypeAlias = "attrs.Attribute[Any]"
"""An attribute of `chatrelay.config.options.Config`, with the metadata that its `option` has."""


class ConfigError(ValueError):
    """An option that can't be used. The text names the option and the remedy.

    :ivar option: the option's name on the command line, without dashes.
    :ivar problem: the text without the option.
    :ivar place: where the option was set, as the text names it; None if that is not known.
    """

    def __init__(self, option: str, problem: str, place: str | None = None) -> None:
        super().__init__(f"{place or option}: {problem}")
        self.option = option
        self.problem = problem
        self.place = place


def option_name(attribute: str) -> str:
    """Return the name on the command line of an attribute of `Config`."""
    return attribute.replace("_", "-")


# By type ------------------------------------------------------------------------


def number(_: object, field: Field, value: object) -> None:
    """Check an int or a float: from 0 to `MAX_NUMBER`, or None if that is the default."""
    if value is None and field.default is None:
        return
    option = option_name(field.name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigError(option, f"{value!r} must be a number")
    if field.metadata["kind"] is int and not isinstance(value, int) and not math.isinf(value):
        raise ConfigError(option, f"{value!r} must be a whole number")
    if not 0 <= value <= MAX_NUMBER:
        zero = re.split("[:;,]", field.metadata["zero"])[0]
        limit = "less than 0" if value < 0 else f"more than {MAX_NUMBER}"
        raise ConfigError(option, f"{value} is {limit}: give a number from 0 (which means {zero}) to {MAX_NUMBER}")


def boolean(_: object, field: Field, value: object) -> None:
    """Check a bool."""
    if not isinstance(value, bool):
        raise ConfigError(option_name(field.name), f"{value!r} must be true or false")


def text(_: object, field: Field, value: object) -> None:
    """Check a str, or None if that is the default."""
    if value is not None or field.default is not None:
        _text(option_name(field.name), value)


def one_of(*words: str) -> Callable[[object, Field, object], None]:
    """Make a check that accepts these words and no others."""

    def check(_: object, field: Field, value: object) -> None:
        if value in words:
            return
        option = option_name(field.name)
        if len(words) == 2:
            raise ConfigError(option, f"{value!r} must be {words[0]} or {words[1]}")
        meant = difflib.get_close_matches(str(value).lower(), words, n=1)
        hint = f"; did you mean {meant[0]}?" if meant else ""
        raise ConfigError(option, f"{value!r} must be one of {', '.join(words)}{hint}")

    return check


def _text(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(option, f"{value!r} must be a string")
    return value


# By option ----------------------------------------------------------------------


def auth_url(_: object, field: Field, url: object) -> None:
    """Check that a URL is http or https, with a host, and without parts that would not be sent."""
    if url is None:
        return
    text = _text("auth-url", url)
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number, half an IPv6 address
        usable = False
    if not usable or not text.isascii() or not text.isprintable() or " " in text or parts.netloc.endswith(":"):
        raise ConfigError("auth-url", f"{url!r} is not an http or https URL such as http://127.0.0.1/session.php")
    host = parts.hostname or ""
    if ":" not in host and not HOST_NAME.fullmatch(host):
        raise ConfigError(
            "auth-url",
            f"{host!r} is not a host name: it may have letters, digits, dots and inner hyphens, but no underscore "
            "(RFC 1123, section 2.1). Give another name of the site, or its address",
        )
    if parts.username is not None:
        raise ConfigError("auth-url", "a user name or password in the URL is not sent: use auth-secret-file")
    if parts.fragment:
        raise ConfigError("auth-url", f"{url!r} has a fragment (#...), which is never sent: remove it")


def auth_host(_: object, field: Field, host: object) -> None:
    """Check a value for the Host header."""
    if host is not None:
        value = _text("auth-host", host)
        try:
            read_host(value)
        except ValueError as error:
            raise ConfigError("auth-host", str(error)) from None


def auth_header(_: object, field: Field, headers: tuple[object, ...]) -> None:
    """Check headers that are sent to the session page."""
    values = [_text("auth-header", header) for header in headers]
    try:
        read_headers(values)
    except ValueError as error:
        raise ConfigError("auth-header", str(error)) from None


def origin(_: object, field: Field, origins: tuple[str, ...]) -> None:
    """Check origins; see `normal_origin`."""
    for each in origins:
        normal_origin(each)


def trusted_proxy(_: object, field: Field, names: tuple[object, ...]) -> None:
    """Check addresses and networks of proxies."""
    values = [_text("trusted-proxy", name) for name in names]
    try:
        TrustedProxies(values)
    except ValueError as error:
        raise ConfigError("trusted-proxy", str(error)) from None


def session_cookie(config: Any, field: Field, name: object) -> None:
    """Check a cookie's name, and that only the pages of listed origins may use it."""
    if name is None:
        return
    if not isinstance(name, str) or not TOKEN.fullmatch(name):
        raise ConfigError("session-cookie", f"{name!r} is not the name of a cookie (RFC 6265, section 4.1.1)")
    if not config.origin:
        raise ConfigError(
            "session-cookie",
            "needs origin: browsers send the cookie from every page, so name the origins whose pages may log "
            "visitors in, for instance --origin https://example.com",
        )


def message_log(_: object, field: Field, url: object) -> None:
    """Check that a URL names a message log."""
    try:
        check_url(_text("message-log", url))
    except BadMessageLogURL as error:
        raise ConfigError("message-log", str(error)) from None


def ops_token_file(config: Any, field: Field, path: object) -> None:
    """Check a path, and that there is an ops endpoint to use the token for."""
    if path is None:
        return
    _text("ops-token-file", path)
    if config.ops_listen is None:
        raise ConfigError(
            "ops-token-file",
            "needs ops-listen: the token is for the ops endpoint, so give its address, for instance "
            "--ops-listen tcp:8081",
        )


def resume_time(_: object, field: Field, seconds: float) -> None:
    """Check that revocations are kept for longer than a token lasts."""
    if seconds > MAX_LIFE_SECONDS:
        raise ConfigError(
            "resume-time",
            f"{seconds:g} s is more than a day: give {MAX_LIFE_SECONDS:g} or less, because no token lasts longer",
        )


def resume_key_file(config: Any, field: Field, path: object) -> None:
    """Check a path, and that revocations outlast the process as tokens do."""
    if path is None:
        return
    _text("resume-key-file", path)
    if config.message_log in ("memory:", "none"):
        raise ConfigError(
            "resume-key-file",
            f"needs a message log that outlasts the relay, not {config.message_log}: which sessions were ended is kept "
            "there. Without the option, tokens end with the relay, too",
        )


def keep(config: Any, field: Field, seconds: float) -> None:
    """Check that messages are kept for as long as the relay needs them."""
    again_time = config.again_time
    if not seconds:
        return
    if config.message_log == "none":
        raise ConfigError("keep", "needs a message log that keeps messages, not none")
    if seconds < MIN_KEEP_SECONDS:
        raise ConfigError("keep", f"{seconds:g} s is less than an hour: give 1h or more, or 0 to keep everything")
    if not again_time:
        raise ConfigError(
            "keep",
            "messages that are sent again are looked for without a limit, because again-time is 0: give a limit of "
            f"{seconds:.10g} s or less there",
        )
    if seconds < again_time:
        raise ConfigError(
            "keep",
            f"{seconds:g} s is less than the {again_time:g} s of again-time, in which messages that are sent again are "
            "looked for: give that much or more, or a shorter again-time",
        )


def breaker_longest_wait(config: Any, field: Field, longest: float) -> None:
    """Check that the longest wait is not shorter than the first."""
    if 0 < longest < config.breaker_wait:
        if longest == field.default:
            raise ConfigError(
                "breaker-wait",
                f"{config.breaker_wait:g} s is more than the {longest:g} s of breaker-longest-wait, up to which it "
                "grows: give that much or less, or a longer breaker-longest-wait",
            )
        raise ConfigError(
            "breaker-longest-wait",
            f"{longest:g} s is less than the {config.breaker_wait:g} s of breaker-wait, which grows up to it: give "
            "that much or more, or a shorter breaker-wait",
        )


def recheck_spread(_: object, field: Field, per_cent: float) -> None:
    """Check that a re-check never follows the last one at once."""
    if per_cent > MAX_SPREAD_PER_CENT:
        raise ConfigError(
            "recheck-spread",
            f"{per_cent:g} per cent is more than {MAX_SPREAD_PER_CENT}, and some re-checks would follow at once: give "
            f"{MAX_SPREAD_PER_CENT} or less. For more frequent re-checks give a shorter recheck-interval",
        )


def compression(config: Any, field: Field, is_on: object) -> None:
    """Check that decompressed messages have a size limit."""
    if is_on and not config.message_size:
        raise ConfigError("compression", "needs a message-size: without one, a small frame could fill the memory")


def normal_origin(origin: str) -> str:
    """Return an origin in the one form in which origins are compared: lower case, without a default port.

    :raises ConfigError: if `origin` is not a scheme, a host and at most a port (RFC 6454, section 6.2).
    """
    try:
        parts = urlsplit(_text("origin", origin))
        host, port = parts.hostname, parts.port
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("origin", f"{origin!r} is not an origin: {error}") from None
    if not (parts.scheme and host) or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(
            "origin",
            f"{origin!r} is not an origin: give scheme, host and at most a port, without a path or a '/' at the end, "
            "such as https://example.com",
        )
    if not origin.isascii() or "*" in origin or any(c.isspace() for c in origin) or origin[-1] in "/?#:":
        raise ConfigError(
            "origin",
            f"{origin!r} is not an origin: origins are exact, without wildcards, spaces or a path (not even '/')",
        )
    if ":" in host:
        host = f"[{host}]"
    shown_port = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}"
