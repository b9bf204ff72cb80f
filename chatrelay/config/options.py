"""Every option of the relay: its unit, its default, what zero means.

One attrs class is the whole list. The command line, the environment, the TOML
file and the page docs/operating/options.rst are made from it, so an option can't be in one
and missing in another. `Config` checks values and knows nothing of where they
came from: `chatrelay.config.sources` does.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Any
from urllib.parse import urlsplit

import attrs

from chatrelay.auth.headers import HOST_NAME, read_headers, read_host
from chatrelay.limits.addresses import TrustedProxies
from chatrelay.messagelog import BadMessageLogURL, check_url
from chatrelay.wire.request_head import TOKEN


class ConfigError(ValueError):
    """An option that can't be used. The text names it and says what would do.

    :ivar option: the option's name on the command line, without dashes.
    :ivar problem: the text without the option.
    :ivar place: where the option was set, as the text names it; None where nobody knows.
    """

    def __init__(self, option: str, problem: str, place: str | None = None) -> None:
        super().__init__(f"{place or option}: {problem}")
        self.option = option
        self.problem = problem
        self.place = place


def _option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    zero: str = "",
    metavar: str = "",
    repeatable: bool = False,
    split: str | None = None,
    kind: type = str,
) -> Any:
    """An option. `unit` and `zero` (what 0 means) are given for numbers.

    :param split: what stands between the values of a repeatable one in the environment; None: white space.
    """
    checks = {float: _at_least_zero, int: _at_least_zero, bool: _yes_or_no}
    return attrs.field(
        default=default,
        validator=checks.get(kind),
        metadata={
            "help": help,
            "unit": unit,
            "zero": zero,
            "metavar": metavar or unit,
            "repeatable": repeatable,
            "split": split,
            "kind": kind,
        },
    )


def option_name(attribute: str) -> str:
    """The name on the command line of an attribute of `Config`."""
    return attribute.replace("_", "-")


def value_of(field: attrs.Attribute[Any]) -> str:
    """What stands for the value behind an option's name."""
    metavar: str = field.metadata["metavar"]
    return metavar.upper() if field.metadata["unit"] else metavar


def _at_least_zero(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None and attribute.default is None:
        return
    option = option_name(attribute.name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigError(option, f"{value!r} is not a number")
    if attribute.metadata["kind"] is int and not isinstance(value, int) and not math.isinf(value):
        raise ConfigError(option, f"{value!r} is not a whole number")
    if not 0 <= value <= MAX_NUMBER:
        zero = re.split("[:;,]", attribute.metadata["zero"])[0]
        limit = "less than 0" if value < 0 else f"more than {MAX_NUMBER}"
        raise ConfigError(option, f"{value} is {limit}: give a number from 0 (which means {zero}) to {MAX_NUMBER}")


def _yes_or_no(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(option_name(attribute.name), f"{value!r} is neither true nor false")


@attrs.frozen(kw_only=True)
class Config:
    """What a relay is to do. Values are checked when it is made.

    :raises ConfigError: for a value that can't be used, or values that don't go together.
    """

    auth_url: str | None = _option(
        None,
        "Where to post a visitor's SESSID to ask who it is (http or https). Needed, unless an embedding "
        "program brings an authenticator of its own.",
        metavar="URL",
    )
    auth_format: str = _option(
        "form",
        "How to post it: 'form' sends SESSID=... as an HTML form does, which PHP reads in $_POST; "
        "'json' sends {\"SESSID\": ...}.",
        metavar="form|json",
    )
    auth_host: str | None = _option(
        None,
        "By which name to ask the site, where auth-url says by which address it is reached: sent as Host, and over "
        "https the name that its certificate has to be for. For servers with several sites and for Django's "
        "ALLOWED_HOSTS. Without it, the host of auth-url.",
        metavar="NAME",
    )
    auth_header: tuple[str, ...] = _option(
        (),
        "A header to send with each question to the site, such as 'X-Forwarded-Proto: https' for a site that forces "
        "https and is asked behind its proxy; may be repeated (in the environment: one a line).",
        metavar="HEADER",
        repeatable=True,
        split="\n",
    )
    auth_secret_file: str | None = _option(
        None,
        "A file whose one line is sent to the webserver as a bearer token, so that it knows who is asking.",
        metavar="FILE",
    )
    auth_ca_file: str | None = _option(
        None,
        "A PEM file of the certificate authorities that vouch for an https auth-url, instead of the system's.",
        metavar="FILE",
    )
    session_cookie: str | None = _option(
        None,
        "The name of the site's session cookie. An auth-request without SESSID then uses that cookie of the "
        "handshake, which can so stay HttpOnly. Needs origin.",
        metavar="NAME",
    )
    origin: tuple[str, ...] = _option(
        (),
        "An origin whose pages may connect, such as https://example.com; may be repeated. Without it pages of "
        "any origin may.",
        metavar="ORIGIN",
        repeatable=True,
    )
    listen: tuple[str, ...] = _option(
        ("tcp:8080:interface=127.0.0.1",),
        "Where to listen, as a Twisted endpoint string (tcp:8080, ssl:443:privateKey=..., unix:PATH, "
        "systemd:..., haproxy:tcp:8080); may be repeated.",
        metavar="ENDPOINT",
        repeatable=True,
    )
    trusted_proxy: tuple[str, ...] = _option(
        (),
        "The address of a proxy, or a network such as 10.0.0.0/8, whose X-Forwarded-For is believed, or 'unix' for "
        "whoever connects through a UNIX socket; may be repeated. Limits then count the addresses of its clients, "
        "and not its own.",
        metavar="NETWORK",
        repeatable=True,
    )
    connections: int | None = _option(
        None,
        "How many connections there may be; more are refused with 503. Without it, as many as nine tenths of the "
        "file descriptors that the process may open are enough for, or fewer where that leaves too few for the rest.",
        unit="connections",
        zero="no limit but the file descriptors, of which none are kept for the rest",
        kind=int,
    )
    connections_per_address: int = _option(
        0,
        "How many connections there may be from one address (IPv6: from one /64 network), logged in or not; more are "
        "refused with 429.",
        unit="connections",
        zero="no limit, as a whole office may be behind one address",
        kind=int,
    )
    unauthenticated: int = _option(
        5000,
        "How many connections there may be that are not logged in yet; more are refused with 503.",
        unit="connections",
        zero="no limit: visitors of many addresses can take all of connections",
        kind=int,
    )
    unauthenticated_per_address: int = _option(
        100,
        "How many of them there may be from one address (IPv6: from one /64 network); more are refused with 429.",
        unit="connections",
        zero="no limit: one address can use up the others' places",
        kind=int,
    )
    connections_per_user: int = _option(
        10,
        "How many connections of one user may be logged in; when there is one more, the oldest is closed with 4504.",
        unit="connections",
        zero="no limit: one user can take all of connections",
        kind=int,
    )
    message_log: str = _option(
        "sqlite:chatrelay.sqlite3",
        "Where messages are logged before they are delivered: sqlite:PATH, memory: (gone when the relay stops) "
        "or none (a message that was acknowledged may be lost).",
        metavar="URL",
    )
    login_timeout: float = _option(
        10.0,
        "How long a connection may stay open without being logged in; then it is closed with 4001. Also how "
        "long a login may wait for its turn to be asked about.",
        unit="seconds",
        zero="no limit: visitors keep their places for ever, and logins wait for their turn for ever",
        kind=float,
    )
    webserver_timeout: float = _option(
        5.0,
        "How long the webserver may take, from the POST to the last byte of its answer; then the login is "
        "answered with webserver-unavailable.",
        unit="seconds",
        zero="no limit: a question that is never answered never gives its turn back",
        kind=float,
    )
    webserver_answer_size: int = _option(
        8192,
        "The largest answer of the webserver's, after decompression, and 16 KiB more as it is sent, headers and all; a "
        "larger one is cut, and the login answered with webserver-unavailable.",
        unit="bytes",
        zero="no limit: one answer can fill the memory",
        kind=int,
    )
    webserver_checks: int = _option(
        32,
        "How many questions may be out to the webserver at once; up to 5,000 more wait, up to the login-timeout. "
        "Past that, logins are answered webserver-unavailable at once.",
        unit="questions",
        zero="no limit: the webserver is asked about everybody at once",
        kind=int,
    )
    breaker_failures: int = _option(
        10,
        "After how many failures in a row the webserver is left alone: logins are then answered "
        "webserver-unavailable at once, and one at a time tries it, after breaker-wait. Any answer ends that.",
        unit="failures",
        zero="never: a webserver that fails is asked by everybody, again and again",
        kind=int,
    )
    breaker_wait: float = _option(
        1.0,
        "How long a webserver that failed breaker-failures times is left alone before a login tries it. Each try that "
        "fails doubles that, up to breaker-longest-wait.",
        unit="seconds",
        zero="not at all: one login after the other tries it, however often it fails, and only those that come while "
        "one is out are refused",
        kind=float,
    )
    breaker_longest_wait: float = _option(
        10.0,
        "Up to how long breaker-wait is doubled; no less than that. So long logins may be answered "
        "webserver-unavailable after the webserver is back.",
        unit="seconds",
        zero="no limit: after an outage logins may be refused for as long again as it lasted",
        kind=float,
    )
    logins_per_minute: int = _option(
        20,
        "How many logins from one address (IPv6: from one /64 network) may be denied, in the long run and at once. "
        "Past that, logins from there are denied and the webserver is not asked. Logins that succeed do not count, and "
        "no more are asked about at once than may still be denied.",
        unit="denials a minute",
        metavar="denials",
        zero="no limit: session ids can be guessed as fast as the webserver answers",
        kind=int,
    )
    denial_memory: float = _option(
        5.0,
        "How long a session that the webserver has denied is denied again without asking, whoever brings it, and also "
        "where the site has let it in meanwhile. One-time tickets (auth-tickets) and re-checks are always asked about.",
        unit="seconds",
        zero="not at all: who brings a denied session again and again has the webserver asked each time, up to "
        "logins-per-minute",
        kind=float,
    )
    recheck_interval: float = _option(
        300.0,
        "How often the webserver is asked again whether a session still lasts, give or take "
        "recheck-spread; its answer may say otherwise with expires_in. A session that does not is closed with 4501.",
        unit="seconds",
        zero="never, whatever the answer says: a session that ends at the site goes on here",
        kind=float,
    )
    recheck_spread: float = _option(
        20.0,
        "By how much of recheck-interval each re-check comes earlier or later, at random; at most 90. A session that "
        "ended at the site may go on here for so much longer.",
        unit="per cent",
        metavar="percent",
        zero="none: those who came at once are asked about at once, each time",
        kind=float,
    )
    recheck_grace: float = _option(
        1800.0,
        "How long people stay logged in while the webserver cannot be asked again; then they are closed with 4501.",
        unit="seconds",
        zero="no limit: while the webserver is away, sessions that ended go on",
        kind=float,
    )
    auth_tickets: bool = _option(
        False,
        "Whether a SESSID in a message is a ticket that the webserver takes once: none is then asked about twice, or "
        "for two connections at once, and re-checks ask by the session that the answer names.",
        metavar="yes|no",
        kind=bool,
    )
    ops_listen: str | None = _option(
        None,
        "Where to serve the ops endpoint (/healthz, /readyz, /v1/revoke) over HTTP, as a Twisted endpoint string such "
        "as tcp:8081; on 127.0.0.1 unless it names another interface.",
        metavar="ENDPOINT",
    )
    ops_token_file: str | None = _option(
        None,
        "A file whose one line is the bearer token, of 16 characters or more, that /v1/revoke of the ops endpoint "
        "wants. Without it nobody can use that. Needs ops-listen.",
        metavar="FILE",
    )
    message_size: int = _option(
        65536,
        "The largest WebSocket message, whatever its frames; a larger one closes the connection with 1009.",
        unit="bytes",
        zero="no limit: one message can fill the memory",
        kind=int,
    )
    message_frames: int = _option(
        64,
        "The most frames a WebSocket message may come in; more close the connection with 1002.",
        unit="frames",
        zero="no limit: one message in empty frames can fill the memory",
        kind=int,
    )
    message_timeout: float = _option(
        10.0,
        "How long a WebSocket message may take from its first byte to its last; longer closes the connection "
        "with 1002.",
        unit="seconds",
        zero="no limit: a message that is never finished keeps its memory for as long as its sender likes",
        kind=float,
    )
    messages_per_second: float = _option(
        10.0,
        "How many messages a connection may send in the long run, requests to log in included. Those beyond are "
        "answered rate-limited, and who keeps on sending is closed with 4503.",
        unit="messages a second",
        metavar="messages",
        zero="no limit but the user's, which does not count requests to log in",
        kind=float,
    )
    message_burst: int = _option(
        30,
        "How many of them a connection may send at once; and over all their connections a user, who may send at "
        "least a second's worth at once.",
        unit="messages",
        zero="no limit for a connection, as messages-per-second of 0; for a user, a second's worth of theirs",
        kind=int,
    )
    user_messages_per_second: float = _option(
        20.0,
        "How many messages a user may send in the long run, over all their connections. Those beyond are answered "
        "rate-limited.",
        unit="messages a second",
        metavar="messages",
        zero="no limit but the connections', so ten of them may send ten times as much",
        kind=float,
    )
    new_recipients_per_minute: int = _option(
        30,
        "To how many users whom they have not written to before a user may write, in the long run and at once; "
        "the last 256 are known. Messages to more are answered rate-limited, whether the recipient is connected "
        "or not.",
        unit="recipients a minute",
        metavar="recipients",
        zero="no limit: whoever is logged in can find out who else is",
        kind=int,
    )
    control_frames_per_second: float = _option(
        10.0,
        "How many pings and pongs a connection may send in the long run; more close it with 1002.",
        unit="frames a second",
        metavar="frames",
        zero="no limit but frames-per-second: a client that sends more is slowed down, and not closed",
        kind=float,
    )
    control_frame_burst: int = _option(
        20,
        "How many pings and pongs a connection may send at once.",
        unit="frames",
        zero="no limit, as control-frames-per-second of 0: a client that sends more is slowed down, and not closed",
        kind=int,
    )
    frames_per_second: int | None = _option(
        None,
        "How many frames are read of a connection in a second, and twice as many at once, those of whole text messages "
        "not counted, and pieces in which a frame comes counted as frames. Beyond that, reading pauses, and TCP makes "
        "the client wait. One that is not logged in has half of that. Without it, nine times messages-per-second "
        "and control-frames-per-second, and 100 at the least.",
        unit="frames a second",
        metavar="frames",
        zero="no limit: messages in many empty frames can keep the relay busy for the others",
        kind=int,
    )
    bytes_per_second: int | None = _option(
        None,
        "How many bytes are read of a connection in a second, and twice as many at once; each read counts as 512 more. "
        "Beyond that, reading pauses, and TCP makes the client wait. One that is not logged in has a sixteenth of "
        "that. Without it, 1.6 times messages-per-second times message-size, and 1 MiB at the least.",
        unit="bytes a second",
        metavar="bytes",
        zero="no limit: a client that sends single bytes can keep the relay busy for the others",
        kind=int,
    )
    handshake_size: int = _option(
        16384,
        "The largest opening handshake; a larger one is refused and the connection closed.",
        unit="bytes",
        zero="no limit: one handshake can fill the memory",
        kind=int,
    )
    handshake_timeout: float = _option(
        5.0,
        "How long the opening handshake may take, TLS included; then the connection is closed.",
        unit="seconds",
        zero="no limit: who connects and says nothing keeps a place for ever",
        kind=float,
    )
    unread_size: int = _option(
        1024 * 1024,
        "How much may be unsent or unacknowledged for a client, what the kernel holds included; past it the connection "
        "is closed with 4002 and counts as gone.",
        unit="bytes",
        zero="no limit: one client that reads slowly can fill the memory",
        kind=int,
    )
    unread_time: float = _option(
        10.0,
        "A client that is behind (more than 64 KiB wait for it here) and takes neither all of that nor 64 KiB in "
        "this time is closed with 4002; what it takes faster counts ahead.",
        unit="seconds",
        zero="no limit: who takes a byte now and then keeps up to unread-size of memory",
        kind=float,
    )
    ping_interval: float = _option(
        20.0,
        "How often a client is pinged. A proxy in front must allow connections to be quiet for longer.",
        unit="seconds",
        zero="never: a client that is gone without a word seems to be there",
        kind=float,
    )
    ping_timeout: float = _option(
        15.0,
        "How long after a ping a client may give no sign of life: a pong, or a ping or message of its own; then it is "
        "closed with 4004. Together with ping-interval also how long what it was sent may stay without an "
        "acknowledgement by its system, on Linux (TCP_USER_TIMEOUT).",
        unit="seconds",
        zero="no limit: a client that is gone is pinged, and seems to be there",
        kind=float,
    )
    closing_timeout: float = _option(
        2.0,
        "How long a client that was refused or closed may take to leave; then it is cut. Over TCP and TLS its file "
        "descriptor is free after twice that and a second, at the latest.",
        unit="seconds",
        zero="a quarter of a second, which is the least: over a slow network clients then miss their close codes",
        kind=float,
    )
    compression: bool = _option(
        False,
        "Whether WebSocket messages may be compressed (permessage-deflate), for clients that offer it. Spares a slow "
        "network and costs the relay several times as much time for each message, and up to 90 KiB a connection.",
        metavar="yes|no",
        kind=bool,
    )
    fast_path: bool = _option(
        True,
        "Whether whole text messages are taken straight out of received bytes, and sent without Autobahn's "
        "detours. Without it the relay behaves the same, and takes several times as long.",
        metavar="yes|no",
        kind=bool,
    )
    drain_time: float = _option(
        10.0,
        "How long stopping may take until the messages under way are answered and the connections have closed, which "
        "thousands do by turns over the first four fifths of it; closing the message log may take as long again.",
        unit="seconds",
        zero="no limit; connections are closed 200 a second",
        kind=float,
    )

    log_format: str = _option(
        "text",
        "How twistd chatrelay writes its log: 'text', or 'json', one object a line, in which what strangers sent "
        "is always inside a string. It goes where twistd's --logfile says, not to its --syslog.",
        metavar="text|json",
    )
    log_level: str = _option(
        "info",
        "The lowest level of what twistd chatrelay logs. At debug there is a line, too, for each health check, scanner "
        "and visitor who leaves without having logged in.",
        metavar="debug|info|warn|error",
    )

    @breaker_longest_wait.validator
    def _check_breaker_longest_wait(self, _: object, longest: float) -> None:
        if 0 < longest < self.breaker_wait:
            if longest == attrs.fields_dict(Config)["breaker_longest_wait"].default:
                raise ConfigError(
                    "breaker-wait",
                    f"{self.breaker_wait:g} s is more than the {longest:g} s of breaker-longest-wait, up to which it "
                    "grows: give that much or less, or a longer breaker-longest-wait",
                )
            raise ConfigError(
                "breaker-longest-wait",
                f"{longest:g} s is less than the {self.breaker_wait:g} s of breaker-wait, which grows up to it: give "
                "that much or more, or a shorter breaker-wait",
            )

    @recheck_spread.validator
    def _check_recheck_spread(self, _: object, per_cent: float) -> None:
        if per_cent > MAX_SPREAD:
            raise ConfigError(
                "recheck-spread",
                f"{per_cent:g} per cent is more than {MAX_SPREAD}, and some questions would follow at once: give "
                f"{MAX_SPREAD} or less, and for questions that come sooner a shorter recheck-interval",
            )

    @auth_url.validator
    def _check_auth_url(self, _: object, url: object) -> None:
        if url is None:
            return
        text = _text("auth-url", url)
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is none, half an IPv6 address
            usable = False
        if not usable or not text.isascii() or not text.isprintable() or " " in text or parts.netloc.endswith(":"):
            raise ConfigError("auth-url", f"{url!r} is no http or https URL, such as http://127.0.0.1/session.php")
        host = parts.hostname or ""
        if ":" not in host and not HOST_NAME.fullmatch(host):
            raise ConfigError(
                "auth-url",
                f"{host!r} is no host name: it takes letters, digits, dots and inner hyphens, no underscore "
                "(RFC 1123, section 2.1); name the webserver otherwise, or give its address",
            )
        if parts.username is not None:
            raise ConfigError("auth-url", "a user name or password in the URL is not sent: use auth-secret-file")
        if parts.fragment:
            raise ConfigError("auth-url", f"{url!r} has a fragment (#...), which is never sent: leave it out")

    @auth_format.validator
    def _check_auth_format(self, _: object, value: object) -> None:
        if value not in ("form", "json"):
            raise ConfigError("auth-format", f"{value!r} is neither form nor json")

    @log_format.validator
    def _check_log_format(self, _: object, value: object) -> None:
        if value not in ("text", "json"):
            raise ConfigError("log-format", f"{value!r} is neither text nor json")

    @log_level.validator
    def _check_log_level(self, _: object, value: object) -> None:
        if value not in LOG_LEVELS:
            meant = difflib.get_close_matches(str(value).lower(), LOG_LEVELS, n=1)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            raise ConfigError("log-level", f"{value!r} is none of {', '.join(LOG_LEVELS)}{hint}")

    @auth_host.validator
    def _check_auth_host(self, _: object, host: object) -> None:
        if host is not None:
            try:
                read_host(_text("auth-host", host))
            except ValueError as error:
                raise error if isinstance(error, ConfigError) else ConfigError("auth-host", str(error)) from None

    @auth_header.validator
    def _check_auth_header(self, _: object, headers: tuple[str, ...]) -> None:
        try:
            read_headers(_text("auth-header", header) for header in headers)
        except ValueError as error:
            raise error if isinstance(error, ConfigError) else ConfigError("auth-header", str(error)) from None

    @auth_secret_file.validator
    @auth_ca_file.validator
    def _check_file(self, attribute: attrs.Attribute[Any], path: object) -> None:
        if path is not None:
            _text(option_name(attribute.name), path)

    @origin.validator
    def _check_origin(self, _: object, origins: tuple[str, ...]) -> None:
        for origin in origins:
            normal_origin(origin)

    @trusted_proxy.validator
    def _check_trusted_proxy(self, _: object, names: tuple[str, ...]) -> None:
        try:
            TrustedProxies(_text("trusted-proxy", name) for name in names)
        except ValueError as error:
            raise error if isinstance(error, ConfigError) else ConfigError("trusted-proxy", str(error)) from None

    @session_cookie.validator
    def _check_session_cookie(self, _: object, name: object) -> None:
        if name is None:
            return
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise ConfigError("session-cookie", f"{name!r} is no name of a cookie (RFC 6265, section 4.1.1)")
        if not self.origin:
            raise ConfigError(
                "session-cookie",
                "needs origin: browsers send the cookie from every page, so name the origins whose pages may log "
                "visitors in, for instance --origin https://example.com",
            )

    @compression.validator
    def _check_compression(self, _: object, is_on: object) -> None:
        if is_on and not self.message_size:
            raise ConfigError("compression", "needs a message-size: without one, a small frame could fill the memory")

    @ops_listen.validator
    def _check_ops_listen(self, _: object, endpoint: object) -> None:
        if endpoint is not None:
            _text("ops-listen", endpoint)

    @ops_token_file.validator
    def _check_ops_token_file(self, _: object, path: object) -> None:
        if path is None:
            return
        _text("ops-token-file", path)
        if self.ops_listen is None:
            raise ConfigError(
                "ops-token-file",
                "needs ops-listen: the token is for the ops endpoint, so say where to serve it, for instance "
                "--ops-listen tcp:8081",
            )

    @message_log.validator
    def _check_message_log(self, _: object, url: object) -> None:
        try:
            check_url(_text("message-log", url))
        except BadMessageLogURL as error:
            raise ConfigError("message-log", str(error)) from None


MAX_NUMBER = 2**31 - 1
"""The largest number that an option may be."""

MAX_SPREAD = 90
"""Per cent of recheck-interval by which re-checks may be spread; at 100 some would follow the last one at once."""

HEADINGS = (
    (
        "Who a visitor is",
        (
            *("auth_url", "auth_format", "auth_host", "auth_header", "auth_secret_file", "auth_ca_file"),
            *("auth_tickets", "session_cookie", "origin"),
        ),
    ),
    ("Where it listens", ("listen", "trusted_proxy", "ops_listen", "ops_token_file")),
    ("What it writes down", ("message_log", "log_format", "log_level")),
    (
        "Asking the website",
        (
            *("webserver_timeout", "webserver_checks", "webserver_answer_size", "breaker_failures", "breaker_wait"),
            *("breaker_longest_wait", "denial_memory", "recheck_interval", "recheck_spread", "recheck_grace"),
        ),
    ),
    (
        "Who may connect and log in",
        (
            *("connections", "connections_per_address", "connections_per_user", "unauthenticated"),
            *("unauthenticated_per_address", "login_timeout", "logins_per_minute", "handshake_size"),
            "handshake_timeout",
        ),
    ),
    (
        "How much people may send",
        (
            *("message_size", "message_frames", "message_timeout", "messages_per_second", "message_burst"),
            *("user_messages_per_second", "new_recipients_per_minute", "control_frames_per_second"),
            *("control_frame_burst", "frames_per_second", "bytes_per_second"),
        ),
    ),
    (
        "Clients that are slow, or gone",
        ("unread_size", "unread_time", "ping_interval", "ping_timeout", "closing_timeout"),
    ),
    ("How it works", ("compression", "fast_path", "drain_time")),
)
"""What ``--help`` and the page of options have the options under: (heading, attributes of `Config`)."""

LOG_LEVELS = ("debug", "info", "warn", "error")
"""Of `twisted.logger.LogLevel`, lowest first. Not critical: that would leave out why a relay can't start."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def _text(option: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(option, f"{value!r} is not a text")
    return value


def normal_origin(origin: str) -> str:
    """An origin in the one form in which origins are compared: lower case, without a default port.

    :raises ConfigError: where `origin` is not a scheme, a host and at most a port (RFC 6454, section 6.2).
    """
    try:
        parts = urlsplit(_text("origin", origin))
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("origin", f"{origin!r} is no origin: {error}") from None
    if not (parts.scheme and host) or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(
            "origin",
            f"{origin!r} is no origin: give scheme, host and at most a port, without a path or a '/' at the end, "
            "such as https://example.com",
        )
    if not origin.isascii() or "*" in origin or any(c.isspace() for c in origin) or origin[-1] in "/?#:":
        raise ConfigError(
            "origin", f"{origin!r} is no origin: origins are exact, without wildcards, spaces or a path (not even '/')"
        )
    if ":" in host:
        host = f"[{host}]"
    shown_port = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}"
