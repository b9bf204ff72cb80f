"""Tells twistd that there is a `chatrelay`. Imports nothing of ours until it is asked for."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

chatrelay = ServiceMaker(
    "chatrelay", "chatrelay.tap", "Direct messages between the users of the website you already have.", "chatrelay"
)

lean_reactor = Reactor(
    "chatrelay-epoll",
    "chatrelay.lean_reactor",
    "Linux's epoll(7), as Twisted's own, without a logging context for every read.",
)
