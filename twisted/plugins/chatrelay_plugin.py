"""Tells twistd that there is a `chatrelay`. Imports nothing of ours until it is asked for."""

from twisted.application.service import ServiceMaker

chatrelay = ServiceMaker(
    "chatrelay", "chatrelay.tap", "Direct messages between the users of the website you already have.", "chatrelay"
)
