"""Who may log in to the demo website, and who is logged in.

Plain values: no HTTP, no reactor, no relay. A session is a token nobody can guess, kept here and in one browser's
cookie; it ends with a log-out or with the process.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import attrs


@attrs.frozen
class Person:
    """Someone with an account on the demo website.

    :ivar uid: the site's name for the person, as the relay gets it: an ``int`` or a ``str``
    :ivar name: what people call them
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
"""Two kinds of uID on purpose: the relay carries both."""


def person_called(name: str) -> Person | None:
    """Look somebody up.

    :param name: the person's name, exactly
    :return: the person, or ``None`` when nobody is called that
    """
    return next((person for person in PEOPLE if person.name == name), None)


def _new_token() -> str:
    return secrets.token_urlsafe(32)


@attrs.define
class Sessions:
    """The sessions that are open now, in memory.

    :param new_token: makes a token that nobody can guess
    """

    _new_token: Callable[[], str] = _new_token
    _people: dict[str, Person] = attrs.field(factory=dict, init=False)

    def open(self, person: Person) -> str:
        """Log someone in.

        :return: the new session's token. Always a new one: a token that was in the browser before the login may be
            known to others.
        """
        token = self._new_token()
        self._people[token] = person
        return token

    def person(self, token: str) -> Person | None:
        """Whose session it is, or ``None`` when there is no such session."""
        return self._people.get(token)

    def close(self, token: str) -> bool:
        """Log the session's person out.

        :return: whether there was such a session.
        """
        return self._people.pop(token, None) is not None
