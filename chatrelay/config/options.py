"""Every option of the relay: its unit, its default, what zero means.

One attrs class is the whole list. The command line, the environment, the TOML file and the page of options in the docs
are made from it. Here are the limits, and what clients see; `chatrelay.config.surroundings` has the rest.
This module must not know where a value was set: `chatrelay.config.sources` does.
"""

from __future__ import annotations

import attrs

from chatrelay.config import checks
from chatrelay.config.fields import option
from chatrelay.config.surroundings import Surroundings


@attrs.frozen(kw_only=True)
class Config(Surroundings):
    """The options of a relay. The constructor checks their values.

    :raises ConfigError: for a value that can't be used, or values that don't go together.
    """

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
