"""The people of the demo website, and their sessions.

Plain values: no HTTP, no reactor, no relay. A session is a token that nobody can guess, kept here and in the cookie of
one browser. It ends with a logout or with the process.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import attrs


@attrs.frozen
class Person:
    """Someone with an account on the demo website.

    :ivar uid: the site's name for the person, as the relay gets it: an ``int`` or a ``str``.
    :ivar name: the name that people see.
    """

    uid: int | str
    name: str


PEOPLE: tuple[Person, ...] = (
    Person(1, "Anna"),
    Person(2, "Bo"),
    Person(3, "Chidi"),
    Person("dora", "Dora"),
    Person("emil", "Emil"),
)
"""Some uIDs are numbers and some are strings, to show that the relay accepts both."""


def person_called(name: str) -> Person | None:
    """Return the person with a name, or ``None`` if there is no such person."""
    return next((person for person in PEOPLE if person.name == name), None)


def _new_token() -> str:
    return secrets.token_urlsafe(32)


@attrs.define
class Sessions:
    """The open sessions, in memory.

    :param new_token: makes a token that nobody can guess.
    """

    _new_token: Callable[[], str] = _new_token
    _people: dict[str, Person] = attrs.field(factory=dict, init=False)

    def open(self, person: Person) -> str:
        """Log someone in.

        :returns: the token of the session. It is always new, because others may know a token from before the login.
        """
        token = self._new_token()
        self._people[token] = person
        return token

    def person(self, token: str) -> Person | None:
        """Return the person whose session it is, or ``None`` if there is no such session."""
        return self._people.get(token)

    def close(self, token: str) -> bool:
        """Log out the person of a session.

        :returns: whether there was such a session.
        """
        return self._people.pop(token, None) is not None
