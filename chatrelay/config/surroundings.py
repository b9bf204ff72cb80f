"""The options that connect the relay to what is around it: the site, the addresses, the message log, the process's log.

`chatrelay.config.options.Config` adds the others. This module must not know where a value was set:
`chatrelay.config.sources` does.
"""

from __future__ import annotations

import attrs

from chatrelay.config import checks
from chatrelay.config.checks import LOG_LEVELS
from chatrelay.config.fields import option


@attrs.frozen(kw_only=True)
class Surroundings:
    """The options about the site, the addresses, the message log and the log of the process.

    :raises ConfigError: for a value that can't be used, or values that don't go together.
    """

    # Authentication

    auth_url: str | None = option(
        None,
        "The URL (http or https) of your site's session page. The relay posts a visitor's SESSID to it to learn who "
        "the visitor is. Required, unless an embedding program brings its own authenticator.",
        metavar="URL",
        check=checks.auth_url,
    )
    auth_format: str = option(
        "form",
        "How the SESSID is posted: 'form' sends SESSID=... as an HTML form does, which PHP reads in $_POST; 'json' "
        'sends {"SESSID": ...}.',
        words="form|json",
    )
    auth_host: str | None = option(
        None,
        "The site's name, if auth-url has an IP address or an internal name. It is sent as the Host header, and over "
        "https the certificate must be for it. Needed for servers with several sites and for Django's ALLOWED_HOSTS. "
        "Without it, the host of auth-url is used.",
        metavar="NAME",
        check=checks.auth_host,
    )
    auth_header: tuple[str, ...] = option(
        (),
        "A header to send with each request to the session page, such as 'X-Forwarded-Proto: https' for a site that "
        "redirects to https and is reached behind its proxy; may be repeated (in the environment: one header a line).",
        metavar="HEADER",
        repeatable=True,
        separator="\n",
        check=checks.auth_header,
    )
    auth_secret_file: str | None = option(
        None,
        "A file with one line, which is sent to the session page as a bearer token, so that your site recognises the "
        "relay.",
        metavar="FILE",
    )
    auth_ca_file: str | None = option(
        None,
        "A PEM file of certificate authorities. The certificate of an https auth-url is checked against these instead "
        "of the system's.",
        metavar="FILE",
    )
    auth_tickets: bool = option(
        False,
        "Whether the SESSID in an auth-request is a ticket, which the session page accepts once. The request for a "
        "ticket is never repeated and never shared by two connections. Re-checks ask about the session that the "
        "response names.",
        metavar="yes|no",
    )
    session_cookie: str | None = option(
        None,
        "The name of your site's session cookie. For an auth-request without SESSID, the relay uses that cookie of "
        "the handshake, so the cookie can stay HttpOnly. Needs origin.",
        metavar="NAME",
        check=checks.session_cookie,
    )
    origin: tuple[str, ...] = option(
        (),
        "An origin whose pages may connect, such as https://example.com; may be repeated. Without it, pages of any "
        "origin may connect.",
        metavar="ORIGIN",
        repeatable=True,
        check=checks.origin,
    )
    resume_time: float = option(
        300.0,
        "How long a resume token lasts if its session is not re-checked; others last until the next re-check. With a "
        "token, a client that speaks v2 returns without a request to the session page.",
        unit="seconds",
        zero="no tokens are given or accepted: the session page is asked at each return",
        check=checks.resume_time,
    )
    resume_key_file: str | None = option(
        None,
        "A file with the key of resume tokens, 32 random bytes; it is made if there is none. Without it, the key is "
        "made at each start, so no token works after a restart. Relays with the same key accept each other's tokens.",
        metavar="FILE",
        check=checks.resume_key_file,
    )
    # Listening

    listen: tuple[str, ...] = option(
        ("tcp:8080:interface=127.0.0.1",),
        "Where to listen, as a Twisted endpoint string (tcp:8080, ssl:443:privateKey=..., unix:PATH, "
        "systemd:..., haproxy:tcp:8080); may be repeated.",
        metavar="ENDPOINT",
        repeatable=True,
    )
    trusted_proxy: tuple[str, ...] = option(
        (),
        "The address of a proxy whose X-Forwarded-For is trusted, a network of such proxies such as 10.0.0.0/8, or "
        "'unix' for everything that connects through a UNIX socket; may be repeated. Limits then count the addresses "
        "of the proxy's clients, not its own.",
        metavar="NETWORK",
        repeatable=True,
        check=checks.trusted_proxy,
    )
    ops_listen: str | None = option(
        None,
        "Where to serve the ops endpoint (/healthz, /readyz, /v1/revoke) over HTTP, as a Twisted endpoint string such "
        "as tcp:8081; on 127.0.0.1 unless it names another interface.",
        metavar="ENDPOINT",
    )
    ops_token_file: str | None = option(
        None,
        "A file with one line: the bearer token, of 16 characters or more, that /v1/revoke of the ops endpoint "
        "requires. Without it, /v1/revoke is off. Needs ops-listen.",
        metavar="FILE",
        check=checks.ops_token_file,
    )
    # Message log and log messages

    message_log: str = option(
        "sqlite:chatrelay.sqlite3",
        "Where messages are logged before they are delivered: sqlite:PATH, "
        "postgresql://USER@HOST/DATABASE, memory: (gone when the relay stops) or none (a message that was "
        "acknowledged may be lost).",
        metavar="URL",
        check=checks.message_log,
    )
    keep: float = option(
        0.0,
        "How long messages are kept in the message log, such as 365d. Older ones are deleted in small steps. If "
        "several relays share the log, the shortest time counts.",
        unit="seconds",
        zero="everything is kept",
        check=checks.keep,
    )
    no_copy: bool = option(False, "Whether to upgrade a message log to a new schema without a copy.", metavar="yes|no")
    log_format: str = option(
        "text",
        "The format of the log of twistd chatrelay: 'text', or 'json' with one object a line, in which all text from "
        "clients is inside a string. The log goes where twistd's --logfile says; 'json' excludes its --syslog.",
        words="text|json",
    )
    log_level: str = option(
        "info",
        "The lowest level that twistd chatrelay logs. At debug, it also logs each health check, each scanner and each "
        "visitor who leaves without logging in.",
        words="|".join(LOG_LEVELS),
    )
    # Requests to your site

    webserver_timeout: float = option(
        5.0,
        "How long the session page may take, from the POST to the last byte of its response. After that, the login is "
        "answered with webserver-unavailable.",
        unit="seconds",
        zero="no limit: a request that never gets a response is pending for ever",
    )
    webserver_checks: int = option(
        32,
        "How many requests to the session page may be pending at once. Up to 5,000 more wait, each up to "
        "login-timeout. Logins beyond these are answered with webserver-unavailable at once.",
        unit="requests",
        zero="no limit: every login causes a request at once",
    )
    webserver_answer_size: int = option(
        8192,
        "The largest response body that is accepted from the session page, after decompression. As it is sent, "
        "headers included, a response may have 16 KiB more. If it is larger, the login is answered with "
        "webserver-unavailable.",
        unit="bytes",
        zero="no limit: one response can fill the memory",
    )
    breaker_failures: int = option(
        10,
        "After this many failures in a row, the session page is not asked for a while. Logins are answered with "
        "webserver-unavailable at once, except that after breaker-wait one login at a time tries the session page. "
        "Any response ends this.",
        unit="failures",
        zero="never: a session page that fails is asked for every login",
    )
    breaker_wait: float = option(
        1.0,
        "How long the relay waits, after breaker-failures, until a login tries the session page again. Each failed "
        "try doubles the wait, up to breaker-longest-wait.",
        unit="seconds",
        zero="no wait: one login after the other tries the session page, however often it fails, and only logins that "
        "come while such a request is pending are refused",
    )
    breaker_longest_wait: float = option(
        10.0,
        "The longest wait to which breaker-wait grows; not less than breaker-wait. After the session page has "
        "recovered, logins may be answered with webserver-unavailable for this long.",
        unit="seconds",
        zero="no limit: after an outage logins may be refused for as long again as it lasted",
        check=checks.breaker_longest_wait,
    )
    denial_memory: float = option(
        5.0,
        "For how long a session that the session page has denied is denied again without asking, on every connection, "
        "even if somebody has logged in to it meanwhile. The session page is always asked about one-time tickets "
        "(auth-tickets), and at each re-check.",
        unit="seconds",
        zero="denials are not remembered: a client that repeats a denied session causes a request each time, up to "
        "logins-per-minute",
    )
    recheck_interval: float = option(
        300.0,
        "How often the session page is asked whether a session has ended, plus or minus recheck-spread. Its response "
        "may set another time with expires_in. Connections of a session that has ended are closed with 4501.",
        unit="seconds",
        zero="never, whatever the response says: a session that ends at the site goes on here",
    )
    recheck_spread: float = option(
        20.0,
        "By how much of recheck-interval each re-check comes earlier or later, at random; at most 90. A session that "
        "ended at the site may go on here for that much longer.",
        unit="per cent",
        metavar="percent",
        zero="none: sessions that began at the same time are asked about at the same time, each time",
        check=checks.recheck_spread,
    )
    recheck_grace: float = option(
        1800.0,
        "How long users stay logged in while re-checks find the session page unavailable. After that, their "
        "connections are closed with 4501.",
        unit="seconds",
        zero="no limit: while the session page is unavailable, sessions that ended go on",
    )
