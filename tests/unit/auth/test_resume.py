"""Resume tokens: what is sealed comes back, and nothing else opens."""

from __future__ import annotations

import base64
import itertools
import os
import secrets
import string
from typing import Any

import attrs
import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chatrelay.auth.resume import KEY_BYTES, MAX_CHARACTERS, Grant, Sealer

KEY = bytes(range(KEY_BYTES))
NOW = 1_764_271_000.5
GRANT = Grant("293482", "secret", (b"n" * 16, b"m" * 16), b"c" * 16, NOW + 300, NOW + 300, b"i" * 12, NOW - 5)


def sealer(key: bytes = KEY) -> Sealer:
    """Return a sealer."""
    return Sealer(key, secrets.token_bytes)


def sealed(grant: Grant = GRANT, key: bytes = KEY) -> str:
    """Return a token that is short enough."""
    token = sealer(key).seal(grant)
    assert token is not None
    return token


class Tokens(SynchronousTestCase):
    """Tokens of a sealer."""

    def check(self, **changes: Any) -> None:
        """Check that a grant comes back."""
        grant = attrs.evolve(GRANT, **changes)
        opened = sealer().open(sealed(grant), NOW)
        self.assertEqual(opened, grant)
        assert opened is not None
        self.assertIs(type(opened.uid), type(grant.uid))

    def test_grant_comes_back(self) -> None:
        self.check()
        self.check(uid=7)
        self.check(uid="7")
        self.check(uid=-(2**53))
        self.check(uid="ü" * 64)
        self.check(handle=None, names=(), cookie=None, due=None)
        self.check(handle="no text: \udcff")

    def test_uid_of_either_type_is_the_same_user(self) -> None:
        self.assertEqual(attrs.evolve(GRANT, uid=7).user, attrs.evolve(GRANT, uid="7").user)

    def test_token_is_usable_up_to_its_end(self) -> None:
        token = sealed()
        self.assertIsNotNone(sealer().open(token, NOW + 299.999))
        self.assertIsNone(sealer().open(token, NOW + 300))

    def test_token_never_lasts_longer_than_granted(self) -> None:
        token = sealed(attrs.evolve(GRANT, expires=NOW + 0.0009))
        self.assertIsNone(sealer().open(token, NOW + 0.0009))

    def test_tokens_of_one_grant_differ(self) -> None:
        self.assertEqual(len({sealed() for _ in range(100)}), 100)

    def test_token_shows_nothing_that_is_in_it(self) -> None:
        raw = base64.urlsafe_b64decode(sealed())
        for hidden in (b"secret", b"293482", b"nnnn", b"cccc", b"iiii"):
            self.assertNotIn(hidden, raw)
        self.assertNotIn("secret", repr(GRANT))
        self.assertNotIn("293482", repr(GRANT))

    def test_longest_token_is_within_the_limit(self) -> None:
        lengths = {}
        for length in range(5800, 5900):
            token = sealer().seal(attrs.evolve(GRANT, handle="x" * length))
            lengths[length] = None if token is None else len(token)
        longest = max(length for length, characters in lengths.items() if characters is not None)
        self.assertEqual(lengths[longest], MAX_CHARACTERS)
        self.assertIsNone(lengths[longest + 1])
        self.check(handle="x" * longest)

    def test_session_id_of_4096_ascii_characters_fits(self) -> None:
        self.check(handle="x" * 4096)

    def test_token_of_another_key_does_not_open(self) -> None:
        self.assertIsNone(sealer().open(sealed(key=bytes(32)), NOW))

    def test_changed_token_does_not_open(self) -> None:
        raw = base64.urlsafe_b64decode(sealed())
        for at in range(len(raw)):
            for bit in (1, 0x80):
                changed = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
                self.assertIsNone(sealer().open(base64.urlsafe_b64encode(changed).decode(), NOW), (at, bit))
        for end in range(len(raw)):
            self.assertIsNone(sealer().open(base64.urlsafe_b64encode(raw[:end]).decode(), NOW), end)
        self.assertIsNone(sealer().open(base64.urlsafe_b64encode(raw + b"\0").decode(), NOW))

    def test_what_is_no_token_does_not_open(self) -> None:
        token = sealed()
        texts = [
            "",
            "x",
            "=",
            "ÿ" * 100,
            "\udcff" * 8,
            "A" * 7999,
            "A" * 8000,
            "AQ" * 4000,
            token + "A",
            " " + token,
            token[:40] + "\n" + token[40:],
            token + "A" * 8000,
        ]
        for text in texts:
            self.assertIsNone(sealer().open(text, NOW), text[:40])

    def test_sealed_value_of_another_form_does_not_open(self) -> None:
        ours = sealer()
        for content in (b"", b"\xc1", msgspec.msgpack.encode([1]), msgspec.msgpack.encode({"uid": 7})):
            salt = os.urandom(24)
            cipher, nonce = ours._cipher(salt)
            text = base64.urlsafe_b64encode(b"\1" + salt + cipher.encrypt(nonce, content, b"\1")).decode()
            self.assertIsNone(ours.open(text, NOW))

    def test_key_of_another_length_is_refused(self) -> None:
        for length in (0, 16, 31, 33):
            self.assertRaises(ValueError, sealer, bytes(length))

    def test_digest_key_follows_from_the_key_and_does_not_reveal_it(self) -> None:
        self.assertEqual(sealer().digest_key, sealer().digest_key)
        self.assertNotEqual(sealer().digest_key, sealer(bytes(32)).digest_key)
        self.assertNotIn(KEY, (sealer().digest_key,))


@given(
    uid=st.text(min_size=1, max_size=64).filter(str.isprintable) | st.integers(-(2**53), 2**53),
    handle=st.none() | st.text(min_size=1, max_size=100),
    names=st.lists(st.binary(min_size=16, max_size=16), max_size=2),
    cookie=st.none() | st.binary(min_size=16, max_size=16),
    life=st.integers(1, 86_400_000),
)
def test_every_grant_comes_back(
    uid: str | int, handle: str | None, names: list[bytes], cookie: bytes | None, life: int
) -> None:
    expires = int(NOW * 1000 + life) / 1000
    grant = Grant(uid, handle, tuple(names), cookie, expires, expires, b"i" * 12, expires)
    assert sealer().open(sealed(grant), NOW) == grant


@given(st.text(alphabet=string.ascii_letters + string.digits + "-_=", max_size=400) | st.text(max_size=400))
def test_no_text_opens_or_raises(text: str) -> None:
    assert sealer().open(text, NOW) is None
    assert sealer().open("AQ" + text, NOW) is None


def test_salts_come_from_the_random_bytes() -> None:
    counter = itertools.count()
    fixed = Sealer(KEY, lambda size: bytes([next(counter)]) * size)
    tokens = [fixed.seal(GRANT), fixed.seal(GRANT)]
    assert tokens[0] != tokens[1]
    assert all(fixed.open(token or "", NOW) == GRANT for token in tokens)
