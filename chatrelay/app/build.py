"""The composition root: make every part of a relay, and give each part what it needs.

Configuration, reactor, clocks and random numbers come in here and nowhere else. No part that all connections share is
made in another place. This module must not do the work of any part.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from chatrelay.app import descriptors
from chatrelay.app.listeners import Listeners
from chatrelay.app.option_files import read_authorities, read_resume_key, read_secret, read_token
from chatrelay.app.service import ChatRelayService
from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.login import Logins, VerdictSource
from chatrelay.auth.rechecks import Rechecks, log_behind, log_on_time
from chatrelay.auth.resume import KEY_BYTES, MAX_LIFE_SECONDS, Sealer
from chatrelay.auth.resumption import Resumption
from chatrelay.auth.revocations import Revocations
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import DenialCache, LoginThrottle, log_too_many_denials
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.interfaces import Authenticator, ErasableLog, InboxLog, MessageLog, Startable, TrimmableLog
from chatrelay.limits.active_time import ActiveTime
from chatrelay.limits.admission import Admission
from chatrelay.limits.inflow import InflowRates
from chatrelay.limits.sending import SendLimits
from chatrelay.limits.timers import DeadlineTimer
from chatrelay.messagelog import message_log as message_log_of
from chatrelay.messagelog import without_password
from chatrelay.model import MAX_CONTENT
from chatrelay.relay.awareness import Awareness
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.relay.inbox import Inboxes
from chatrelay.relay.session_v2 import EXCESS_SECONDS, SessionV2
from chatrelay.relay.storing import StorePolicy, Storing
from chatrelay.relay.trimming import Trimming
from chatrelay.relay.v2_parts import V2Parts, no_token
from chatrelay.web.ops import BoundedConnections, Ops, OpsSite, on_loopback
from chatrelay.websocket.closing import ConnectionLog, LogLimiter
from chatrelay.websocket.factory import ChatFactory
from chatrelay.websocket.flushes import FlushScheduler
from chatrelay.websocket.handshake import Handshakes
from chatrelay.websocket.parts import Parts
from chatrelay.websocket.peer import Peers
from chatrelay.websocket.registry import Registry
from chatrelay.websocket.sweep import Sweep
from chatrelay.wire import v2
from chatrelay.wire.structs_v2 import Limits

RECHECKS_AT_ONCE = 8
"""The most sessions that are re-checked at once if webserver-checks has no limit."""


def build(
    config: Config,
    reactor: Any,
    authenticator: Authenticator | None = None,
    message_log: MessageLog | None = None,
    connections: int | None = None,
) -> ChatRelayService:
    """Make a relay, ready to be started as a service of a Twisted application.

    :param config: its options. With ``listen=()`` it opens no port of its own: mount
        `ChatRelayService.websocket_resource` instead.
    :param reactor: for connections, time and threads.
    :param authenticator: says whose session it is, instead of the session page at ``config.auth_url``.
    :param message_log: where messages are logged, instead of ``config.message_log``.
    :param connections: the limit of connections if ``config.connections`` is None; 0 for no limit. None means as many
        as the file descriptors of the process allow.
    :raises ConfigError: for options that do not go together, or files that can't be used.
    """
    # An embedding program's own authenticator may remember its denials itself, so the relay does not.
    remembers_denials = authenticator is None
    if authenticator is None:
        authenticator = session_page_authenticator(config, reactor)
    else:
        config = attrs.evolve(config, auth_url=None)  # the session page is not asked
    log_name = without_password(config.message_log) if message_log is None else "the application's own"
    if message_log is None:
        message_log = message_log_of(config.message_log, reactor, not config.no_copy, config.again_time)
    if connections is None:
        connections = descriptors.max_connections(descriptors.limit(), config.webserver_checks)
    parts = build_parts(config, reactor, authenticator, message_log, connections, remembers_denials)
    factory = ChatFactory(parts)
    listeners = Listeners(reactor)
    startable = authenticator if isinstance(authenticator, Startable) else None
    service = ChatRelayService(factory, message_log, log_name, listeners, startable)
    for description in config.listen:
        listeners.add("listen", description, factory).setServiceParent(service)
    if config.ops_listen is not None:
        token = None if config.ops_token_file is None else read_token(config.ops_token_file)
        resumption = parts.logins.resumption
        saved = () if resumption is None else (resumption.revocations_saved,)
        site = OpsSite(Ops(parts.logins.index, service.not_ready, token, reactor, *saved), reactor)
        bounded = BoundedConnections(site, reactor)
        service.ops = listeners.add("ops-listen", on_loopback(config.ops_listen), bounded)
    return service


def build_parts(
    config: Config,
    reactor: Any,
    authenticator: Authenticator,
    message_log: MessageLog,
    connections: int = 0,
    remembers_denials: bool = False,
    now: Callable[[], float] = time.time,
    chance: Callable[[], float] = random.random,
) -> Parts:
    """Make what all connections share.

    :param connections: the limit of connections if ``config.connections`` is None; 0 for no limit.
    :param remembers_denials: whether a session that was denied is denied again for a short time, without a request.
    :param now: the clock for the times of messages, in seconds since 1970.
    :param chance: returns a random number from 0 to 1.
    """
    seconds = reactor.seconds
    active = ActiveTime(seconds)
    directory = Directory()
    flushes = FlushScheduler(partial(reactor.callLater, 0))
    storing = shared_by_v2 = resumption = trimming = None
    if isinstance(message_log, InboxLog):
        resumption = resumption_of(config, message_log, reactor, now)
        policy = StorePolicy(
            config.offline == "reject", config.offline_messages, config.stranger_messages, config.again_time
        )
        inboxes = Inboxes(v2, message_log, reactor)
        storing = Storing(directory, message_log, inboxes, policy, now, reactor)
        awareness = Awareness(
            v2,
            message_log,
            directory,
            inboxes,
            storing.acquaintances,
            now,
            reactor,
            flushes.call_soon,
            config.receipts == "on",
            config.presence,
        )
        storing.tell(awareness)
        if isinstance(message_log, ErasableLog):
            message_log.on_erased = storing.erased
        shared_by_v2 = V2Parts(
            message_log,
            inboxes,
            limits_of(config),
            awareness,
            DeadlineTimer(reactor, EXCESS_SECONDS, SessionV2.catch_up),
            ("store", *awareness.features),
            config.replay_messages,
            no_token if resumption is None else resumption.token,
        )
    if config.keep:
        trimming = trimming_of(config.keep, message_log, reactor, now, storing)
    relay = Relay(directory, message_log, now, flushes.call_soon, storing, reactor)
    registry = Registry(config, relay.drain, active, reactor, chance)
    log_limiter = LogLimiter()
    handshakes = Handshakes(config, seconds)
    admission = Admission(
        connections if config.connections is None else config.connections,
        config.connections_per_address,
        config.unauthenticated,
        config.unauthenticated_per_address,
    )
    send_limits = SendLimits(
        config.messages_per_second,
        config.message_burst,
        config.user_messages_per_second,
        config.new_recipients_per_minute,
    )
    verdicts = VerdictSource(authenticator, now)
    rechecks = Rechecks(
        config.recheck_interval,
        config.recheck_spread,
        config.recheck_grace,
        # Logins have the other three quarters to themselves.
        max(1, config.webserver_checks // 4) if config.webserver_checks else RECHECKS_AT_ONCE,
        verdicts.ask,
        seconds,
        chance,
        active.now,
        verdicts.give_up,
        log_behind,
        log_on_time,
        *(() if resumption is None else (resumption.confirmed, resumption.put_off, resumption.revoke_session)),
    )
    throttle = LoginThrottle(
        config.logins_per_minute,
        verdicts.ask,
        seconds,
        DenialCache(secrets.token_bytes(), config.denial_memory) if remembers_denials else None,
        partial(log_too_many_denials, log_limiter.allow),
        verdicts.give_up,
        *(() if resumption is None else (resumption.denied,)),
    )
    index = (
        SessionIndex(directory, secrets.token_bytes())
        if resumption is None
        else SessionIndex(directory, resumption.digest_key, resumption.revoke)
    )
    logins = Logins(
        directory,
        index,
        throttle,
        rechecks,
        handshakes.missing_cookie if config.session_cookie else None,
        config.auth_tickets,
        config.connections_per_user,
        resumption,
    )
    sweep = Sweep(
        {
            "refused origins": lambda now: handshakes.log_more_refused_origins(),
            "limits of disconnected users": lambda now: send_limits.forget(seconds()),
            "addresses with denied logins": lambda now: throttle.sweep(),
            "log messages that were left out": lambda now: log_limiter.report(),
            **registry.sweep_tasks(),
            "recheck-interval": lambda now: rechecks.sweep(),
            **({} if storing is None else {"epoch of the message log": lambda now: storing.check_epoch()}),
            **({} if resumption is None else {"resume-time": lambda now: resumption.sweep()}),
        },
        active,
        reactor,
    )
    return Parts(
        config=config,
        reactor=reactor,
        seconds=seconds,
        directory=directory,
        relay=relay,
        registry=registry,
        flushes=flushes,
        peers=Peers(config.trusted_proxy, admission),
        admission=admission,
        handshakes=handshakes,
        login_without_cookie=handshakes.login_without_cookie,
        begin_login=logins.begin,
        logins=logins,
        send_limits=send_limits,
        inflow_rates=InflowRates.beside(
            config.bytes_per_second,
            config.frames_per_second,
            config.messages_per_second,
            config.message_size,
            config.control_frames_per_second,
        ),
        connection_log=ConnectionLog(config.log_format == "json", log_limiter.allow),
        log_limiter=log_limiter,
        sweep=sweep,
        v2=shared_by_v2,
        trimming=trimming,
    )


def trimming_of(
    keep: float, message_log: MessageLog, reactor: Any, now: Callable[[], float], storing: Storing | None
) -> Trimming:
    """Make what deletes old messages.

    :raises ConfigError: if the message log can't delete any.
    """
    if storing is None or not isinstance(message_log, TrimmableLog):
        raise ConfigError("keep", "the application's own message log has no method trim: leave the option out")
    return Trimming(message_log, keep, now, reactor, storing.forget_acquaintances)


def resumption_of(config: Config, message_log: InboxLog, reactor: Any, now: Callable[[], float]) -> Resumption | None:
    """Make what gives and opens resume tokens; None if there are none.

    :raises ConfigError: if the file of the key can't be used.
    """
    if not config.resume_time:
        return None
    key_file = config.resume_key_file
    key = secrets.token_bytes(KEY_BYTES) if key_file is None else read_resume_key(key_file)
    # Without a file, no token outlives this process, so revocations need not either.
    revocations = Revocations(MAX_LIFE_SECONDS, now, reactor, None if key_file is None else message_log)
    sealer = Sealer(key, secrets.token_bytes)
    return Resumption(sealer, revocations, config.resume_time, now, reactor.seconds, secrets.token_bytes)


def limits_of(config: Config) -> Limits:
    """Return the limits that clients of v2 are told."""
    burst = config.message_burst if config.messages_per_second else 0  # without a rate there is no limit on a burst
    return Limits(MAX_CONTENT, burst, _whole(config.messages_per_second), _whole(config.again_time))


def _whole(number: float) -> int | float:
    """Return a number as an integer if it is one, for it is shorter in JSON."""
    return int(number) if number == int(number) else number


def session_page_authenticator(config: Config, reactor: Any) -> SessionPageAuthenticator:
    """Make the authenticator that asks the session page.

    :raises ConfigError: if the options name no page, or a file that can't be used.
    """
    if config.auth_url is None:
        raise ConfigError(
            "auth-url",
            "is missing: give the URL of your site's session page, for instance --auth-url http://127.0.0.1/session.php",
        )
    return SessionPageAuthenticator(
        reactor,
        config.auth_url,
        format=config.auth_format,
        secret=None if config.auth_secret_file is None else read_secret("auth-secret-file", config.auth_secret_file),
        timeout=config.webserver_timeout,
        checks=config.webserver_checks,
        queue_timeout=config.login_timeout,
        answer_size=config.webserver_answer_size,
        breaker_failures=config.breaker_failures,
        breaker_wait=config.breaker_wait,
        breaker_longest_wait=config.breaker_longest_wait,
        tls_policy=None if config.auth_ca_file is None else read_authorities(config.auth_ca_file),
        host=config.auth_host,
        headers=config.auth_header,
    )
