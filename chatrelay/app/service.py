"""The relay as a Twisted service: made of its parts, started, drained, stopped.

`build` is where configuration, reactor and clocks are handed in; below it
nothing asks for them. It knows every part and does none of their work.
"""

from __future__ import annotations

import re
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from OpenSSL.crypto import Error as CertificateError
from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.iweb import IPolicyForHTTPS
from twisted.web.resource import IResource

import chatrelay
from chatrelay.app import descriptors
from chatrelay.app.certificates import UNUSABLE, EndpointCertificate, has_certificate
from chatrelay.app.endpoints import BadEndpointError, NamedEndpoint, check, refusal_text
from chatrelay.app.unix_sockets import UnixListener, is_unix
from chatrelay.auth.authenticator import SessionPageAuthenticator
from chatrelay.auth.session_index import SessionIndex
from chatrelay.auth.throttle import DenialCache
from chatrelay.config.checks import ConfigError
from chatrelay.config.options import Config
from chatrelay.interfaces import Authenticator, MessageLog
from chatrelay.limits.alarms import TimeLimit
from chatrelay.messagelog import message_log as make_message_log
from chatrelay.permissions import cannot_be_read
from chatrelay.relay.delivery import Relay
from chatrelay.relay.directory import Directory
from chatrelay.web.ops import SHORTEST_TOKEN, BoundedConnections, Ops, OpsSite, on_loopback
from chatrelay.websocket.factory import ChatFactory
from chatrelay.websocket.outbox import FlushScheduler
from chatrelay.websocket.resource import ChatResource

log = Logger("chatrelay.app")

TURNS_SHARE = 0.9
"""Of the time that stopping may take: by then every connection is closed, whether it has its answers or not."""

BACKLOG = 4096
"""Connections that may wait in the kernel to be accepted, which Linux too has for its bound (net.core.somaxconn)."""


def build(
    config: Config,
    reactor: Any,
    authenticator: Authenticator | None = None,
    message_log: MessageLog | None = None,
    connections: int | None = None,
) -> ChatRelayService:
    """Make a relay, ready to be started as a service of a Twisted application.

    :param config: its options. With ``listen=()`` it opens no port of its
        own: mount `ChatRelayService.websocket_resource` instead.
    :param reactor: for connections, time and threads.
    :param authenticator: who knows whose session it is, instead of the
        webserver at ``config.auth_url``.
    :param message_log: where messages are logged, instead of ``config.message_log``.
    :param connections: how many there may be where ``config.connections`` does
        not say (0: no limit), instead of what the process's file descriptors are enough for.
    :raises ConfigError: for options that do not go together, or files that can't be used.
    """
    if authenticator is None:
        authenticator = _session_page_authenticator(config, reactor)
    else:
        config = attrs.evolve(config, auth_url=None)  # nobody is asked there
    log_name = config.message_log if message_log is None else "the application's own"
    if message_log is None:
        message_log = make_message_log(config.message_log, reactor)
    directory = Directory()
    index = SessionIndex(directory, secrets.token_bytes())
    flushes = FlushScheduler(partial(reactor.callLater, 0))
    relay = Relay(directory, message_log, time.time, flushes.call_soon)
    # What an embedding program's own authenticator has answered is that program's to remember.
    denials = (
        DenialCache(secrets.token_bytes(), config.denial_memory)
        if isinstance(authenticator, SessionPageAuthenticator)
        else None
    )
    if connections is None:
        connections = descriptors.max_connections(descriptors.limit(), config.webserver_checks)
    factory = ChatFactory(
        config, relay, directory, authenticator, reactor, flushes, index, denials, connections=connections
    )
    service = ChatRelayService(config, reactor, factory, relay, message_log, authenticator, log_name)
    for description in config.listen:
        service.serve("listen", description, factory).setServiceParent(service)
    if config.ops_listen is not None:
        token = None if config.ops_token_file is None else _token(config.ops_token_file)
        site = OpsSite(Ops(index, service.not_ready, token), reactor)
        service.ops = service.serve("ops-listen", on_loopback(config.ops_listen), BoundedConnections(site, reactor))
    return service


def with_backlog(description: str) -> str:
    """A server endpoint's description, made to let `BACKLOG` connections wait unless it says how many.

    Twisted's own 50 are full in a moment, by an attack as by everybody coming
    back at once, and who finds them full waits a second or more.

    :param description: a Twisted endpoint string.
    """
    kind, *arguments = re.split(r"(?<!\\):", description.removeprefix("haproxy:"))
    positional = [argument for argument in arguments if "=" not in argument]
    # As the third of them it is given by position to some.
    if kind not in ("tcp", "tcp6", "ssl", "unix") or len(positional) > 2 or ":backlog=" in description:
        return description
    return f"{description}:backlog={BACKLOG}"


class ChatRelayService(MultiService):
    """A running relay.

    :ivar factory: the Twisted protocol factory of its connections.
    :ivar message_log: where its messages are.
    :ivar ops: serves the ops endpoint, from before the first client is let in until the last one has gone; or None.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        factory: ChatFactory,
        relay: Relay,
        message_log: MessageLog,
        authenticator: Authenticator,
        log_name: str,
    ) -> None:
        super().__init__()
        self.setName("chatrelay")
        self.config = config
        self.factory = factory
        self.message_log = message_log
        self.ops: IService | None = None
        self._certificates: list[EndpointCertificate] = []
        self._unix_listeners: list[UnixListener] = []
        self._reactor = reactor
        self._relay = relay
        self._authenticator = authenticator
        self._log_name = log_name
        self._once_running: IDelayedCall | None = None

    def websocket_resource(self) -> IResource:
        """The relay as a resource of a `twisted.web` site: ``root.putChild(b"chat", relay.websocket_resource())``."""
        resource: IResource = ChatResource(self.factory)
        return resource

    def end_user(self, uid: str | int) -> int:
        """Close every connection of a user, with 4505. For a site that logs somebody out: end the session there first.

        :param uid: ``7`` and ``"7"`` are the same user.
        :returns: how many were closed. A login that is being asked about is refused when the answer comes.
        """
        return self.factory.logins.index.end_user(uid)

    def end_session(self, sessid: str) -> int:
        """Close every connection that logged in by a SESSID, or is about to, with 4505.

        :param sessid: as the client sent it, or as the session cookie has it.
        :returns: how many were closed.
        """
        return self.factory.logins.index.end_session(sessid)

    def serve(self, option: str, description: str, factory: Any) -> IService:
        """Make a service that listens.

        :param option: what the endpoint was given with.
        :param description: a Twisted endpoint string.
        :raises ConfigError: where it is none.
        """
        reactor = self._reactor
        try:
            check(description)
            if has_certificate(description):
                certificate = EndpointCertificate(description)
                self._certificates.append(certificate)
                reactor = certificate.listening_on(reactor)
            elif is_unix(description):
                reactor = UnixListener(reactor)
                self._unix_listeners.append(reactor)
            service: StreamServerEndpointService = strports.service(with_backlog(description), factory, reactor)
        except BadEndpointError as error:
            raise ConfigError(option, f"{description!r} cannot be used: {error}") from None
        # What each endpoint's parser says is told with the text it was about.
        except UNUSABLE as error:
            raise ConfigError(option, f"{description!r} cannot be used: {refusal_text(description, error)}") from error
        service.endpoint = NamedEndpoint(service.endpoint, option, description)
        return service

    def abandon(self) -> None:
        """Remove the UNIX sockets of a relay that could not start, as its reactor will not run."""
        for listener in self._unix_listeners:
            listener.abandon()

    def reload_certificates(self) -> None:
        """Read the certificates of all ``ssl:`` endpoints again, for those who connect from now on.

        Where one can't be used, the one before stays. The log says which.
        """
        if not self._certificates:
            log.info("there is no certificate to reload: no endpoint is an ssl: endpoint")
        for certificate in self._certificates:
            certificate.reload()

    def not_ready(self) -> str | None:
        """Why no client can be served now; None where they can."""
        if self.factory.registry.stopping:
            return "the relay is stopping"
        if not self.message_log.is_open:
            return "the message log cannot be written: the relay's own lines say why"
        return None

    def privilegedStartService(self) -> None:
        """Open the ports.

        :raises CannotListenError: where one can't be opened.
        """
        super().privilegedStartService()
        if self.ops is not None:
            self.ops.privilegedStartService()

    def startService(self) -> None:
        """Open the message log, then serve.

        Ports are opened by `privilegedStartService`, while twistd still has
        the right to; nobody is let in before the reactor runs, and by then
        messages can be logged.

        :raises LogUnavailable: where the log can't be opened.
        :raises CannotListenError: where a port can't be opened.
        """
        self.message_log.start()
        self.factory.registry.stopping = False
        try:
            super().startService()
            if self.ops is not None:
                self.ops.startService()
        except BaseException:  # whatever keeps it from starting must not leave the log's thread and lock behind
            self.message_log.stop()
            raise
        self.factory.start_sweeping()
        # When the reactor runs. From then on a signal stops it in good order, which who reads that it listens counts
        # on; nothing waits for the webserver; and a site in this process is there.
        self._once_running = self._reactor.callLater(0, self._runs)

    def stopService(self) -> Deferred[None]:
        """Close every connection with 4000, by turns and each when it has its answers; then close the log."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        limit, clock = self.config.drain_time, self._reactor
        with TimeLimit(clock, limit * TURNS_SHARE) as for_turns, TimeLimit(clock, limit) as for_all:
            self.factory.registry.stopping = True
            if self._once_running is not None and self._once_running.active():
                self._once_running.cancel()
            if isinstance(self._authenticator, SessionPageAuthenticator):
                self._authenticator.stop_startup_check()
            await super().stopService()
            # By turns, each when what it had sent is answered; then whoever could not be, for the log hangs.
            await for_turns.wait(Deferred.fromCoroutine(self.factory.registry.close_by_turns()))
            await for_all.wait(self.factory.registry.close_all())
        self.factory.registry.abort_all()
        if self.factory.registry.connections:
            await deferLater(self._reactor, 0)  # Twisted tells of each in its next turn, and so the operator is told
        self.factory.stop_sweeping()
        # The log, which may have a slow disk to wait for, has as long again.
        with TimeLimit(clock, limit) as for_log:
            await for_log.wait(self._relay.drain())
            await for_log.wait(self.message_log.stop())
        if self.ops is not None:
            await maybeDeferred(self.ops.stopService)
        if isinstance(self._authenticator, SessionPageAuthenticator):
            await self._authenticator.close()
        log.info("chatrelay has stopped")

    def _runs(self) -> None:
        self._say_how_it_runs()
        if isinstance(self._authenticator, SessionPageAuthenticator):
            self._authenticator.startup_check()

    def _say_how_it_runs(self) -> None:
        log.info(
            "chatrelay {version} listens on {endpoints}; message log: {message_log}",
            version=chatrelay.__version__,
            endpoints=", ".join(self.config.listen) or "no port of its own",
            message_log=self._log_name,
        )
        log.info("this process may open {descriptors} files and sockets", descriptors=descriptors.limit())
        if self.config.ops_listen is not None:
            log.info("the ops endpoint listens on {endpoint}", endpoint=on_loopback(self.config.ops_listen))
            if self.config.ops_token_file is None:
                log.info("the ops endpoint ends no sessions: POST /v1/revoke needs --ops-token-file")
        if not self.config.origin:
            log.info("pages of any origin may connect; admit only yours with --origin")
        if self._log_name == "none":
            log.warn("messages are not logged: one that was acknowledged may be lost (C1 and C8 are waived)")


def _session_page_authenticator(config: Config, reactor: Any) -> SessionPageAuthenticator:
    if config.auth_url is None:
        raise ConfigError(
            "auth-url",
            "is missing: where shall the relay ask who a visitor is? For instance --auth-url http://127.0.0.1/session.php",
        )
    return SessionPageAuthenticator(
        reactor,
        config.auth_url,
        format=config.auth_format,
        secret=None if config.auth_secret_file is None else _secret("auth-secret-file", config.auth_secret_file),
        timeout=config.webserver_timeout,
        checks=config.webserver_checks,
        queue_timeout=config.login_timeout,
        answer_size=config.webserver_answer_size,
        breaker_failures=config.breaker_failures,
        breaker_wait=config.breaker_wait,
        breaker_longest_wait=config.breaker_longest_wait,
        tls_policy=None if config.auth_ca_file is None else _policy(config.auth_ca_file),
        host=config.auth_host,
        headers=config.auth_header,
    )


def _secret(option: str, path: str) -> str:
    """The one line of a secret file."""
    secret = _read(option, path).strip()
    if not secret:
        raise ConfigError(option, f"{path} is empty")
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ConfigError(option, f"{path} must hold one line of printable ASCII characters without spaces")
    return secret


def _token(path: str) -> str:
    """The one line of the file of the ops endpoint's token."""
    token = _secret("ops-token-file", path)
    if len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            "ops-token-file",
            f"the token in {path} is shorter than {SHORTEST_TOKEN} characters, so that it can be guessed: make one "
            "with openssl rand -hex 32",
        )
    return token


def _policy(path: str) -> IPolicyForHTTPS:
    """Trust the authorities in a PEM file, and no others."""
    pem = _read("auth-ca-file", path)
    end = "-----END CERTIFICATE-----"
    blocks = [block + end for block in pem.split(end)[:-1]]
    try:
        authorities = [Certificate.loadPEM(block.encode("ascii")) for block in blocks]
    except CertificateError as error:
        raise ConfigError("auth-ca-file", f"{path} holds no certificates in PEM form: {error}") from error
    if not authorities:
        raise ConfigError("auth-ca-file", f"{path} holds no certificates in PEM form")
    return BrowserLikePolicyForHTTPS(trustRootFromCertificates(authorities))


def _read(option: str, path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except OSError as error:
        raise ConfigError(option, cannot_be_read(path, error)) from None
    except UnicodeDecodeError:
        raise ConfigError(option, f"{path} is not ASCII text") from None
