"""End a user's chat from a site in Python. Copy this file, and call `end_chat` where the site logs a user out.

Start the relay with ``--ops-listen tcp:8081 --ops-token-file /etc/chatrelay/ops-token``.
"""

from __future__ import annotations

import json
import logging
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from uuid import UUID

OPS = ("127.0.0.1", 8081)
"""Host and port of the relay's ops endpoint."""

TOKEN_FILE = "/etc/chatrelay/ops-token"
"""The file of ``--ops-token-file``. The site must be able to read it."""


def end_chat(uid: str | int | UUID) -> None:
    """Close all connections of a user, in every browser.

    If the relay cannot be reached, log the failure and let the logout continue.
    """
    connection = HTTPConnection(*OPS, timeout=2)
    try:
        token = Path(TOKEN_FILE).read_text("ascii").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/revoke", json.dumps({"uID": uid}, default=str), headers)
        answer = connection.getresponse()
        words = answer.read(500).decode("utf-8", "replace")  # why the relay refuses, if it does
    except (OSError, HTTPException) as error:
        logging.getLogger(__name__).error("could not end the chat of user %s: %s", uid, error)
    except ValueError:  # not logged: its text may quote the token
        logging.getLogger(__name__).error("could not end the chat of user %s: no valid token in %s", uid, TOKEN_FILE)
    else:
        if answer.status != 200:
            message = "could not end the chat of user %s: the relay answered %d: %s"
            logging.getLogger(__name__).error(message, uid, answer.status, words)
    finally:
        connection.close()
