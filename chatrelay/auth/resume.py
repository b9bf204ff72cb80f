"""Seal and open the tokens with which a client of v2 resumes its login, without a request to the site.

Pure: the time and the random bytes are passed in. A token contains secrets and is sent to the client, so it is
encrypted and authenticated (AES-256-GCM). This module must not know connections, nor who is given a token and when.

A token is base64 of a version, a random salt, and what was sealed. Its key and nonce are derived from the relay's key
and the salt. So a key that is kept for years never repeats a nonce: random nonces of 96 bits alone would be too short
for that.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import attrs
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from chatrelay.model import user_key

KEY_BYTES = 32
"""Bytes of the relay's key."""

MAX_CHARACTERS = 8000
"""The most characters of a token."""

MAX_LIFE_SECONDS = 86_400.0
"""The longest life of a token: a day. Revocations are kept for as long, so that they outlast every token."""

ID_BYTES = 12
"""Bytes of the id of a connection."""

_PURPOSE = b"chatrelay.resume"
_DIGEST_PURPOSE = b"chatrelay.digest"
_VERSION = b"\1"
_SALT_BYTES = 24
_SUBKEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_SEALED_BYTES = MAX_CHARACTERS * 3 // 4
_MILLISECONDS = 1000


@attrs.frozen(repr=False)
class Grant:
    """What a token says: who is logged in, and until when the relay need not ask the site.

    :ivar uid: the uID, as the site answered it.
    :ivar handle: the SESSID about which re-checks ask, a secret; None if the session is not re-checked.
    :ivar names: the digests of the SESSIDs by which the session can be ended.
    :ivar cookie: the digest of the session cookie, if the login was by cookie; else None.
    :ivar expires: when the token ends, in seconds since 1970 UTC.
    :ivar due: when the next re-check is due, on the same clock; None if the session is not re-checked.
    :ivar connection: the id of the connection that got the token.
    :ivar confirmed: when the site was asked about the session, which it confirmed, on the same clock.
    """

    uid: str | int
    handle: str | None
    names: tuple[bytes, ...]
    cookie: bytes | None
    expires: float
    due: float | None
    connection: bytes
    confirmed: float

    @property
    def user(self) -> str:
        """The key of the user."""
        return user_key(self.uid)


_Content = tuple[str | int, bytes | None, tuple[bytes, ...], bytes | None, int, int | None, bytes, int]
"""The fields of a `Grant`, with the SESSID as bytes, because it may be no text, and with times in milliseconds."""

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], _Content] = msgspec.msgpack.Decoder(_Content).decode


class Sealer:
    """Seals and opens tokens with one key.

    :param key: `KEY_BYTES` random bytes. Relays that have the same open each other's tokens.
    :param random_bytes: returns as many random bytes as it is asked for.
    """

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key must have {KEY_BYTES} bytes")
        self._key = key
        self._random_bytes = random_bytes

    @property
    def digest_key(self) -> bytes:
        """The key for digests of SESSIDs, which relays with the same key share."""
        return hashlib.blake2b(key=self._key, person=_DIGEST_PURPOSE, digest_size=KEY_BYTES).digest()

    def seal(self, grant: Grant) -> str | None:
        """Return a token; None if it would be too long, because the SESSID is."""
        content = _encode(
            (
                grant.uid,
                None if grant.handle is None else grant.handle.encode("utf-8", "surrogateescape"),
                grant.names,
                grant.cookie,
                int(grant.expires * _MILLISECONDS),
                None if grant.due is None else int(grant.due * _MILLISECONDS),
                grant.connection,
                int(grant.confirmed * _MILLISECONDS),
            )
        )
        salt = self._random_bytes(_SALT_BYTES)
        cipher, nonce = self._cipher(salt)
        sealed = _VERSION + salt + cipher.encrypt(nonce, content, _VERSION)
        return base64.urlsafe_b64encode(sealed).decode("ascii") if len(sealed) <= _MAX_SEALED_BYTES else None

    def open(self, text: str, now: float) -> Grant | None:
        """Return what a token says; None if it can't be used, for whatever reason.

        :param text: what a client has sent.
        :param now: the time, in seconds since 1970 UTC.
        """
        if len(text) > MAX_CHARACTERS:
            return None
        try:
            sealed = base64.b64decode(text, b"-_", validate=True)
            if sealed[:1] != _VERSION:
                return None
            end = 1 + _SALT_BYTES
            cipher, nonce = self._cipher(sealed[1:end])
            content = _decode(cipher.decrypt(nonce, sealed[end:], _VERSION))
        except (ValueError, InvalidTag, msgspec.MsgspecError):
            return None
        uid, handle, names, cookie, expires, due, connection, confirmed = content
        grant = Grant(
            uid,
            None if handle is None else handle.decode("utf-8", "surrogateescape"),
            names,
            cookie,
            expires / _MILLISECONDS,
            None if due is None else due / _MILLISECONDS,
            connection,
            confirmed / _MILLISECONDS,
        )
        return grant if now < grant.expires else None

    def _cipher(self, salt: bytes) -> tuple[AESGCM, bytes]:
        """Return the cipher and the nonce of the token that has this salt."""
        size = _SUBKEY_BYTES + _NONCE_BYTES
        derived = hashlib.blake2b(salt, key=self._key, person=_PURPOSE, digest_size=size).digest()
        return AESGCM(derived[:_SUBKEY_BYTES]), derived[_SUBKEY_BYTES:]
