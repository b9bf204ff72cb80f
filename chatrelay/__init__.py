"""Direct messages between the users of the website you already have.

These are all public names, for programs that embed chatrelay. Each is imported
when it is first used, so importing this package installs no reactor and takes
almost no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatrelay.app.build import build
    from chatrelay.app.service import ChatRelayService
    from chatrelay.config.checks import ConfigError
    from chatrelay.config.options import Config
    from chatrelay.interfaces import Authenticator, MessageLog
    from chatrelay.model import Denied, LoggedIn, LogUnavailable, Message, Unavailable

__version__ = "0.1.0"

__all__ = [
    "Authenticator",
    "ChatRelayService",
    "Config",
    "ConfigError",
    "Denied",
    "LogUnavailable",
    "LoggedIn",
    "Message",
    "MessageLog",
    "Unavailable",
    "__version__",
    "build",
]

_HOME = {
    "Authenticator": "chatrelay.interfaces",
    "ChatRelayService": "chatrelay.app.service",
    "Config": "chatrelay.config.options",
    "ConfigError": "chatrelay.config.checks",
    "Denied": "chatrelay.model",
    "LogUnavailable": "chatrelay.model",
    "LoggedIn": "chatrelay.model",
    "Message": "chatrelay.model",
    "MessageLog": "chatrelay.interfaces",
    "Unavailable": "chatrelay.model",
    "build": "chatrelay.app.build",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used (PEP 562)."""
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'chatrelay' has no attribute {name!r}") from None
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
