"""What chatrelay needs of a Flask site with Flask's own sessions. Copy this file into your site.

app.register_blueprint(chat)
csrf.exempt(whose_session)  # with Flask-WTF: the relay has no CSRF token of the site
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

from flask import Blueprint, current_app, request, session
from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadSignature

SECRET_FILE = "/etc/chatrelay/auth-secret"
"""The file of ``--auth-secret-file``. The site must be able to read it."""

chat = Blueprint("chat", __name__)


def user_of(session: dict[str, Any]) -> dict[str, Any]:
    """Say who is logged in. Change ``uid`` to the key under which your site keeps its users' ids."""
    return {"loggedin": True, "uID": session["uid"]} if "uid" in session else {"loggedin": False}


@chat.post("/session")
def whose_session() -> Any:
    """Say whose session it is: the session page. Only the relay may ask.

    Flask's ``session`` is always empty here, because the request of the relay has no cookie.
    """
    secret = f"Bearer {Path(SECRET_FILE).read_text('ascii').strip()}"
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), secret.encode()):
        return "not the relay: the secret is missing or wrong", 400
    serializer = SecureCookieSessionInterface().get_signing_serializer(current_app)
    assert serializer is not None, "the site has no secret_key"
    # Without max_age a cookie would never expire.
    max_age = int(current_app.permanent_session_lifetime.total_seconds())
    try:
        return user_of(serializer.loads(request.form["SESSID"], max_age=max_age))
    except BadSignature:
        return {"loggedin": False}


@chat.get("/whoami")
def whoami() -> dict[str, Any]:
    """Tell the pages with the chat who is logged in with this browser."""
    return user_of(session)
