"""The relay as a Twisted service: it starts, serves, drains and stops.

`chatrelay.app.build` makes its parts. This module decides in which order they start and stop, and must not do their
work.
"""

from __future__ import annotations

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import IResource

import chatrelay
from chatrelay.app import descriptors
from chatrelay.app.listeners import Listeners
from chatrelay.interfaces import MessageLog, Startable
from chatrelay.limits.timers import TimeLimit
from chatrelay.web.ops import on_loopback
from chatrelay.websocket.factory import ChatFactory, ChatResource

log = Logger("chatrelay.app")

TURNS_SHARE = 0.9
"""The share of drain-time after which every connection is closed, even if its messages are not answered yet."""


class ChatRelayService(MultiService):
    """A relay as a service.

    :ivar factory: the Twisted protocol factory of its connections.
    :ivar message_log: the message log.
    :ivar ops: serves the ops endpoint, from before the first connection until after the last one; None without one.
    """

    def __init__(
        self,
        factory: ChatFactory,
        message_log: MessageLog,
        log_name: str,
        listeners: Listeners,
        startable: Startable | None,
    ) -> None:
        super().__init__()
        self.setName("chatrelay")
        self.factory = factory
        self.message_log = message_log
        self.ops: IService | None = None
        self._parts = factory.parts
        self._log_name = log_name
        self._listeners = listeners
        self._startable = startable
        self._once_running: IDelayedCall | None = None

    def websocket_resource(self) -> IResource:
        """Return the relay as a `twisted.web` resource: ``root.putChild(b"chat", relay.websocket_resource())``."""
        resource: IResource = ChatResource(self.factory)
        return resource

    def end_user(self, uid: str | int) -> int:
        """Close every connection of a user with 4505. If your site logs the user out, end the session there first.

        :param uid: ``7`` and ``"7"`` are the same user.
        :returns: how many were closed. A connection whose login as this user is pending is closed when the verdict
            comes.
        """
        return self._parts.logins.index.end_user(uid)

    def end_session(self, sessid: str) -> int:
        """Close every connection that is logged in by a SESSID, or whose login by it is pending, with 4505.

        :param sessid: the SESSID, as the client sent it or as the session cookie has it.
        :returns: how many were closed.
        """
        return self._parts.logins.index.end_session(sessid)

    def abandon(self) -> None:
        """Remove the UNIX sockets of a relay that could not start, because its reactor will not run."""
        self._listeners.abandon()

    def reload_certificates(self) -> None:
        """Read the certificates of all ``ssl:`` endpoints again, for connections from now on."""
        self._listeners.reload_certificates()

    def not_ready(self) -> str | None:
        """Return why no client can be served now; None if clients can be."""
        if self.factory.registry.stopping:
            return "the relay is stopping"
        if not self.message_log.is_open:
            return "the message log cannot be written: the relay's log messages say why"
        return None

    def privilegedStartService(self) -> None:
        """Open the ports.

        :raises CannotListenError: if one can't be opened.
        """
        super().privilegedStartService()
        if self.ops is not None:
            self.ops.privilegedStartService()

    def startService(self) -> None:
        """Open the message log, then serve.

        `privilegedStartService` has opened the ports, while twistd still had the privilege. No connection is accepted
        before the reactor runs, and by then messages can be logged.

        :raises LogUnavailable: if the message log can't be opened.
        :raises CannotListenError: if a port can't be opened.
        """
        self.message_log.start()
        self.factory.registry.stopping = False
        try:
            super().startService()
            if self.ops is not None:
                self.ops.startService()
        except BaseException:  # whatever the cause, the log's thread and lock must not be left behind
            self.message_log.stop()
            raise
        self.factory.start_sweeping()
        if self._parts.trimming is not None:
            self._parts.trimming.start()
        # Log the start and check the session page once the reactor runs. Before that, a signal does not stop the relay
        # in order, and a program that reads the log message about the start may send one at once. A site in this
        # process can answer only then, too.
        self._once_running = self._parts.reactor.callLater(0, self._runs)

    def stopService(self) -> Deferred[None]:
        """Close each connection with 4000 once its messages are answered, then close the message log."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        limit, clock, registry = self._parts.config.drain_time, self._parts.reactor, self._parts.registry
        with TimeLimit(clock, limit * TURNS_SHARE) as for_turns, TimeLimit(clock, limit) as for_all:
            registry.stopping = True
            if self._once_running is not None and self._once_running.active():
                self._once_running.cancel()
            if self._startable is not None:
                self._startable.stop_startup_check()
            if self._parts.trimming is not None:
                self._parts.trimming.stop()
            await super().stopService()
            # Each connection is closed when its messages are answered. If the log hangs, the remaining connections are
            # closed without answers.
            await for_turns.wait(Deferred.fromCoroutine(registry.close_by_turns()))
            await for_all.wait(registry.close_all())
        registry.abort_all()
        if registry.connections:
            await deferLater(clock, 0)  # Twisted reports each end in its next turn, and then the end is logged
        self.factory.stop_sweeping()
        # The log may have to wait for a slow disk, so it gets the same time again.
        with TimeLimit(clock, limit) as for_log:
            await for_log.wait(self._parts.relay.drain())
            if self._parts.v2 is not None:
                await for_log.wait(self._parts.v2.awareness.stop())
            await for_log.wait(self.message_log.stop())
        if self.ops is not None:
            await maybeDeferred(self.ops.stopService)
        if self._startable is not None:
            await self._startable.close()
        log.info("chatrelay has stopped")

    def _runs(self) -> None:
        self._log_setup()
        if self._startable is not None:
            self._startable.startup_check()

    def _log_setup(self) -> None:
        config = self._parts.config
        log.info(
            "chatrelay {version} listens on {endpoints}; message log: {message_log}",
            version=chatrelay.__version__,
            endpoints=", ".join(config.listen) or "no port of its own",
            message_log=self._log_name,
        )
        log.info("this process may open {descriptors} files and sockets", descriptors=descriptors.limit())
        if config.ops_listen is not None:
            log.info("the ops endpoint listens on {endpoint}", endpoint=on_loopback(config.ops_listen))
            if config.ops_token_file is None:
                log.info("the ops endpoint ends no sessions: POST /v1/revoke needs --ops-token-file")
        if not config.origin:
            log.info("pages of any origin may connect; admit only yours with --origin")
        if self._log_name == "none":
            log.warn("messages are not logged: one that was acknowledged may be lost (C1 and C8 are waived)")
