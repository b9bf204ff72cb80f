"""Register `chatrelay` with twistd. Nothing of chatrelay is imported until it is used."""

from typing import Any

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker


class _RelayMaker(ServiceMaker):
    """Handles signals before the rest of chatrelay is imported, because the import takes most of the start."""

    @property
    def options(self) -> Any:
        from chatrelay.app.signals import at_start

        at_start.begin()
        return super().options


chatrelay = _RelayMaker(
    "chatrelay",
    "chatrelay.app.twistd",
    "Direct messages between the users of the website you already have.",
    "chatrelay",
)

lean_reactor = Reactor(
    "chatrelay-epoll",
    "chatrelay.app.reactor",
    "Like Twisted's epoll reactor, without a logging context for every read.",
)
