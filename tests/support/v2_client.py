"""A client of v2 that keeps its inbox, as a device does: it follows the cursor rule, and checks it.

It shares no code with the relay.
"""

from __future__ import annotations

import uuid
from typing import Any

from tests.support import PATIENCE, v2
from tests.support.client import Client
from tests.support.schema import V2, check_sent, is_valid_request


class Device:
    """One device of a user, over many connections.

    :param sessid: the SESSID that it logs in by.
    :ivar url: the relay's.
    :ivar options: for `Client`.
    :ivar epoch: the epoch of what it has; None before its first login.
    :ivar place: the last place that it was sent.
    :ivar inbox: what it has at each place: the message, with its ``at`` and ``id``; None for a void place.
    :ivar client: its connection.
    :ivar login: the answer to its last login.
    """

    def __init__(self, url: str, sessid: str, **options: Any) -> None:
        self.url = url
        self._sessid = sessid
        self.options = options
        self._sent: dict[str, dict[str, Any]] = {}
        self.epoch: str | None = None
        self.place = 0
        self.inbox: dict[int, Any] = {}
        self.client: Client | None = None
        self.login: dict[str, Any] = {}

    def connect(self) -> dict[str, Any]:
        """Connect, and log in with what it has; return the answer."""
        self.client = Client(self.url, subprotocols=[V2], **self.options)
        assert self.client.socket.subprotocol == V2
        after = None if self.epoch is None else {"epoch": self.epoch, "n": self.place}
        self.say(v2.login(self._sessid, after))
        answer = self.login = self.hear()
        if answer["response"]:
            if not answer.get("recovered"):
                self.place = answer["n"]
            if answer["epoch"] != self.epoch:
                self.inbox = {}
            self.epoch = answer["epoch"]
        return answer

    def disconnect(self) -> None:
        """Disconnect, if it is connected."""
        if self.client is not None:
            self.client.close()
            self.client = None

    def say(self, value: dict[str, Any]) -> None:
        """Send a request."""
        assert self.client is not None
        assert is_valid_request(value, V2), value
        if value["type"] == "message-send-request":
            self._sent[value["id"]] = value["message"]
        self.client.say(value)

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Return the next frame. Keep it if it occupies a place, and check that it may come now."""
        assert self.client is not None
        frame = self.client.hear(timeout)
        check_sent(frame, V2)
        if frame["type"] == "message":
            self._occupy(frame["n"], {name: frame[name] for name in ("at", "id", "message") if name in frame})
        elif frame["type"] == "void":
            for place in range(frame.get("from", frame["n"]), frame["n"] + 1):
                self._occupy(place, None)
        elif frame["type"] == "erased":
            self._occupy(frame["n"], None)
            for first, last in frame["places"]:
                self.inbox.update(dict.fromkeys(range(first, last + 1)))
        elif frame["type"] == "send-request-response" and frame["response"]["value"]:
            self._answered(frame["response"])
        return frame

    def send(self, to: Any, content: str = "hej", **more: Any) -> Any:
        """Send a message; return its response."""
        return self.ask(v2.message(to, content, str(uuid.uuid4()), **more))

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request; return its response. Keep what comes before."""
        self.say(request)
        while True:
            frame = self.hear()
            if "response" in frame and isinstance(frame["response"], dict) and frame["response"]["id"] == request["id"]:
                return frame["response"]

    def catch_up(self, place: int) -> None:
        """Hear what comes until it has this place."""
        while self.place < place:
            self.hear()

    def _answered(self, response: dict[str, Any]) -> None:
        """Keep the message that was answered, if its place is the next one. Otherwise it comes in its turn."""
        if response["n"] == self.place + 1:
            sent = self._sent[response["id"]]
            message = {**sent, "touID": str(sent["touID"]), "fromuID": self.login["uID"]}
            self._occupy(response["n"], {"at": response["at"], "id": response["id"], "message": message})

    def _occupy(self, place: int, what: Any) -> None:
        assert place == self.place + 1, f"place {place} came after place {self.place}"
        self.place = place
        self.inbox[place] = what
