"""The demo website's client of the relay's ops endpoint: it ends the chat of a session that has ended.

It only sends ``POST /v1/revoke``. The website sends nothing else to the relay.
"""

from __future__ import annotations

import json
from http import HTTPStatus

import attrs
from treq.client import HTTPClient
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

log = Logger("chatrelay.demo")

TIMEOUT_SECONDS = 5.0
"""The time limit of one request."""


@attrs.frozen
class RelayOps:
    """The relay's ops endpoint, as the website knows it.

    :ivar reactor: makes the requests.
    :ivar port: the TCP port of the ops endpoint, on 127.0.0.1.
    :ivar token: the token in the relay's ``ops_token_file``.
    """

    reactor: ReactorBase
    port: int
    token: str = attrs.field(repr=False)

    def end_session(self, session: str) -> None:
        """Close the connections that logged in by a session, without waiting. A failure is logged.

        :param session: its token, as in the browser's cookie. An unknown token ends nothing.
        """
        Deferred.fromCoroutine(self._revoke(session)).addErrback(self._failed)

    async def _revoke(self, session: str) -> None:
        answer = await HTTPClient(Agent(self.reactor, connectTimeout=TIMEOUT_SECONDS)).post(
            f"http://127.0.0.1:{self.port}/v1/revoke",
            data=json.dumps({"SESSID": session}).encode("ascii"),
            headers=Headers({"Authorization": [f"Bearer {self.token}"], "Content-Type": ["application/json"]}),
            timeout=TIMEOUT_SECONDS,
        )
        await answer.content()  # otherwise the connection would stay open
        if answer.code != HTTPStatus.OK:
            log.error("the chat of a session that has ended goes on: the relay answered {code}", code=answer.code)

    def _failed(self, failure: Failure) -> None:
        # Only the type of the exception, because its text may contain the session id.
        kind = failure.value.__class__.__name__
        log.error("the chat of a session that has ended goes on: {kind}", kind=kind)
