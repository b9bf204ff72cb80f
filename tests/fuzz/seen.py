"""What the scenarios must have met for their result to mean anything, and how often."""

from __future__ import annotations

import math


def asked_for(usual: float) -> int:
    """Return how often something must be met at least: a quarter of the usual number, less what chance may take.

    Rare things are required by the full form only, because few scenarios may miss them by chance.
    """
    return max(0, int(usual / 4 - 3 * math.sqrt(usual)))


SEEN = {
    "answers receiving-user-not-connected": 3410,
    "answers rate-limited": 4075,
    "answers log-unavailable": 300,
    "answers busy": 204,
    "messages of visitors": 3044,
    "messages whose recipient vanished": 400,
    "sessions re-checked": 373,
    "logins revoked while their request was pending": 83,
    "slow readers closed": 113,
    "unusable frames": 1266,
    "auth-requests of users beyond their limit": 145,
    "logins denied without a request": 35,
    "logins denied from memory": 53,
    "logins that waited for others of their address": 14,
    "slow readers closed by their time": 28,
    "connections that were closed when the time to stop was over": 15,
    "closed with 1000": 124,
    "closed with 1002": 140,
    "closed with 1003": 10,
    "closed with 1007": 13,
    "closed with 1009": 12,
    "closed with 4000": 2186,
    "closed with 4001": 306,
    "closed with 4002": 28,
    "closed with 4004": 47,
    "closed with 4500": 183,
    "closed with 4501": 112,
    "closed with 4502": 88,
    "closed with 4503": 30,
    "closed with 4504": 102,
    "closed with 4505": 347,
}
"""How often each was met in a thousand scenarios."""
