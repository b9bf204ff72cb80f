"""Every option of the relay: its unit, its default, what zero means.

One attrs class is the whole list. The command line, the environment, the TOML file and the page of options in the docs
are made from it. This module must not know where a value was set: `chatrelay.config.sources` does.
"""

from __future__ import annotations

import attrs

from chatrelay.config import checks
from chatrelay.config.checks import LOG_LEVELS
from chatrelay.config.fields import option


@attrs.frozen(kw_only=True)
class Config:
    """The options of a relay. The constructor checks their values.

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
    # Limits on connections and logins

    connections: int | None = option(
        None,
        "The most connections at once; more are refused with 503. Without it: nine tenths of the file descriptors "
        "that the process may open, or fewer if that leaves too few for everything else.",
        unit="connections",
        zero="no limit except the file descriptors, none of which are reserved for everything else",
        kind=int,
    )
    connections_per_address: int = option(
        0,
        "The most connections from one address (IPv6: from one /64 network), logged in or not; more are refused with "
        "429.",
        unit="connections",
        zero="no limit, because a whole office may be behind one address",
    )
    connections_per_user: int = option(
        10,
        "The most connections of one user that are logged in; one more closes the oldest with 4504.",
        unit="connections",
        zero="no limit: one user can use up all connections",
    )
    unauthenticated: int = option(
        5000,
        "The most connections that are not logged in; more are refused with 503.",
        unit="connections",
        zero="no limit: visitors from many addresses can use up all connections",
    )
    unauthenticated_per_address: int = option(
        100,
        "The most connections from one address (IPv6: from one /64 network) that are not logged in; more are refused "
        "with 429.",
        unit="connections",
        zero="no limit: one address can use up the places of all visitors",
    )
    login_timeout: float = option(
        10.0,
        "How long a connection may stay open without being logged in; then it is closed with 4001. This is also how "
        "long a login may wait before the session page is asked about it.",
        unit="seconds",
        zero="no limit: visitors keep their places for ever, and logins wait for ever",
    )
    logins_per_minute: int = option(
        20,
        "How many logins from one address (IPv6: from one /64 network) may be denied, in the long run and at once. "
        "Further logins from that address are denied without asking the session page. Successful logins do not count. "
        "No more logins are pending at once than may still be denied.",
        unit="denials a minute",
        metavar="denials",
        zero="no limit: session ids can be guessed as fast as the session page responds",
    )
    handshake_size: int = option(
        16384,
        "The largest opening handshake. A larger one is refused, and the connection is closed.",
        unit="bytes",
        zero="no limit: one handshake can fill the memory",
    )
    handshake_timeout: float = option(
        5.0,
        "How long the opening handshake may take, TLS included; then the connection is closed.",
        unit="seconds",
        zero="no limit: a client that connects and sends nothing keeps a place for ever",
    )
    # Limits on sending

    message_size: int = option(
        65536,
        "The largest WebSocket message, in any number of frames; a larger one closes the connection with 1009.",
        unit="bytes",
        zero="no limit: one message can fill the memory",
    )
    message_frames: int = option(
        64,
        "The most frames that a WebSocket message may have; more close the connection with 1002.",
        unit="frames",
        zero="no limit: one message in empty frames can fill the memory",
    )
    message_timeout: float = option(
        10.0,
        "How long a WebSocket message may take from its first byte to its last; then the connection is closed with "
        "1002.",
        unit="seconds",
        zero="no limit: a message that is never finished keeps its memory for as long as its sender likes",
    )
    messages_per_second: float = option(
        10.0,
        "How many messages a connection may send in the long run, auth-requests included. Further messages are "
        "answered with rate-limited, and a client that goes on sending is closed with 4503.",
        unit="messages a second",
        metavar="messages",
        zero="no limit except the user's, which does not count auth-requests",
    )
    message_burst: int = option(
        30,
        "How many messages a connection may send at once. A user may send as many at once over all their connections, "
        "or one second's worth of user-messages-per-second if that is more.",
        unit="messages",
        zero="no limit for a connection, as with messages-per-second of 0; for a user, one second's worth",
    )
    user_messages_per_second: float = option(
        20.0,
        "How many messages a user may send in the long run, over all their connections. Further messages are answered "
        "with rate-limited.",
        unit="messages a second",
        metavar="messages",
        zero="no limit except that of each connection, so ten connections may send ten times as much",
    )
    new_recipients_per_minute: int = option(
        30,
        "How many new recipients a user may write to, in the long run and at once. A recipient is new unless it is "
        "among the last 256 that the user wrote to. Messages to further ones are answered with rate-limited, whether "
        "the recipient is connected or not.",
        unit="recipients a minute",
        metavar="recipients",
        zero="no limit: anybody who is logged in can find out who else is",
    )
    control_frames_per_second: float = option(
        10.0,
        "How many pings and pongs a connection may send in the long run; more close it with 1002.",
        unit="frames a second",
        metavar="frames",
        zero="no limit except frames-per-second: a client that sends more is slowed down instead of closed",
    )
    control_frame_burst: int = option(
        20,
        "How many pings and pongs a connection may send at once.",
        unit="frames",
        zero="no limit, as with control-frames-per-second of 0: a client that sends more is slowed down instead of "
        "closed",
    )
    frames_per_second: int | None = option(
        None,
        "How many frames are read from a connection in a second, and twice as many at once. Frames of whole text "
        "messages are not counted, and each piece of a frame counts as a frame. Beyond the limit, reading pauses, and "
        "TCP makes the client wait. A connection that is not logged in has half of the limit. Without this option: "
        "nine times the sum of messages-per-second and control-frames-per-second, but at least 100.",
        unit="frames a second",
        metavar="frames",
        zero="no limit: messages in many empty frames can keep the relay from serving others",
        kind=int,
    )
    bytes_per_second: int | None = option(
        None,
        "How many bytes are read from a connection in a second, and twice as many at once; each read counts as 512 "
        "more. Beyond the limit, reading pauses, and TCP makes the client wait. A connection that is not logged in "
        "has a sixteenth of the limit. Without this option: 1.6 times messages-per-second times message-size, but at "
        "least 1 MiB.",
        unit="bytes a second",
        metavar="bytes",
        zero="no limit: a client that sends single bytes can keep the relay from serving others",
        kind=int,
    )
    # Messages that are stored: chatrelay.v2

    offline: str = option(
        "store",
        "What the relay does with a message from a client that speaks v2 if the recipient is not connected: 'store' "
        "keeps it; 'reject' answers receiving-user-not-connected if the recipient has written to the sender before, "
        "and else keeps it, too. A client may ask for either. Messages of v1 are always rejected.",
        words="store|reject",
    )
    offline_messages: int = option(
        10_000,
        "How many messages may be stored for a user who is not connected, counted since their last connection closed; "
        "a tenth of them from one sender. Further ones are answered with receiving-user-full. Messages to people who "
        "have never written back are limited by stranger-messages instead.",
        unit="messages",
        zero="no limit: a user's friends can fill the message log",
    )
    stranger_messages: int = option(
        20,
        "How many messages a user may send in 24 hours to somebody who has never written back, with a client that "
        "speaks v2. Further ones are answered with receiving-user-full. The count begins again at a restart.",
        unit="messages",
        zero="no limit except those on sending: anybody can fill anybody's inbox",
    )
    replay_messages: int = option(
        10_000,
        "How many missed messages a client that speaks v2 is sent when it returns. Beyond that, it asks for history.",
        unit="messages",
        zero="no limit: a client that was away for a year is sent all of it",
    )
    again_time: float = option(
        86_400.0,
        "For how long a message that a client sends again is recognised, and so logged once. Clients are told this.",
        unit="seconds",
        zero="no limit: a search may go through the whole message log",
    )
    receipts: str = option(
        "on",
        "Whether senders with clients that speak v2 are told how far their messages were received and read, by people "
        "who have written to them: 'on' or 'off'. In either case a user's own clients learn what was read.",
        words="on|off",
    )
    presence: str = option(
        "known",
        "Of whom clients that speak v2 can see whether they are online and when they last were: with 'known', people "
        "who have written to the user; with 'everybody', any user can find out who uses your site, and when.",
        words="known|everybody|off",
    )
    # Slow and disconnected clients

    unread_size: int = option(
        1024 * 1024,
        "How many bytes for a client may be unsent or unacknowledged, including those in the kernel. Beyond that, the "
        "connection is closed with 4002 and counts as gone.",
        unit="bytes",
        zero="no limit: one client that reads slowly can fill the memory",
    )
    unread_time: float = option(
        10.0,
        "How long a client may be behind. It is behind while more than 64 KiB wait for it in the process. If it takes "
        "neither all of that nor 64 KiB in this time, its connection is closed with 4002. What it takes beyond 64 KiB "
        "counts for the next period.",
        unit="seconds",
        zero="no limit: a client that takes a byte now and then keeps up to unread-size of memory",
    )
    ping_interval: float = option(
        20.0,
        "How often a client is pinged. A proxy in front must allow connections to be quiet for longer.",
        unit="seconds",
        zero="never: a client that is gone without closing seems to be connected",
    )
    ping_timeout: float = option(
        15.0,
        "How long after a ping a client may send nothing: no pong, ping or message. Then it is closed with 4004. On "
        "Linux, sent bytes may also stay unacknowledged by the client's system for ping-interval plus ping-timeout "
        "(TCP_USER_TIMEOUT).",
        unit="seconds",
        zero="no limit: a client that is gone is pinged, and seems to be connected",
    )
    closing_timeout: float = option(
        2.0,
        "How long a client that was refused or closed may take to disconnect; then its connection is cut. Over TCP "
        "and TLS, its file descriptor is free after at most twice this time plus one second.",
        unit="seconds",
        zero="a quarter of a second, the minimum: over a slow network clients then miss their close codes",
    )
    # Performance and shutdown

    compression: bool = option(
        False,
        "Whether WebSocket messages may be compressed (permessage-deflate), for clients that offer it. This saves "
        "bandwidth. It costs the relay several times as much CPU time for each message, and up to 90 KiB of memory for "
        "each connection.",
        metavar="yes|no",
        check=checks.compression,
    )
    fast_path: bool = option(
        True,
        "Whether whole text messages are read directly from the received bytes and written without Autobahn's general "
        "code. Without it, the relay behaves the same but uses several times as much CPU time.",
        metavar="yes|no",
    )
    drain_time: float = option(
        10.0,
        "How long a stopping relay may take to answer the pending messages and close the connections. If there are "
        "thousands, they are closed one after another over the first four fifths of this time. Closing the message "
        "log may take as long again.",
        unit="seconds",
        zero="no limit; 200 connections are closed a second",
    )
