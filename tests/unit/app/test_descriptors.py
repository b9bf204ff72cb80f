"""File descriptors: raising the limit, and the share of connections."""

from __future__ import annotations

import resource
from unittest import mock

import pytest

from chatrelay.app.descriptors import MAX_DESCRIPTORS, RESERVED_DESCRIPTORS, limit, max_connections, raise_limit

INFINITY = resource.RLIM_INFINITY


class Limits:
    """Fake limits of the process, in the place of those of `resource`."""

    def __init__(self, soft: int, hard: int, refuses: Exception | None = None) -> None:
        self.both = (soft, hard)
        self._refuses = refuses
        self._patches = [
            mock.patch("resource.getrlimit", lambda _: self.both),
            mock.patch("resource.setrlimit", self._set),
        ]

    def _set(self, _: int, both: tuple[int, int]) -> None:
        if self._refuses is not None:
            raise self._refuses
        self.both = both

    def __enter__(self) -> Limits:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (1024, 4096, 4096),
        (4096, 4096, 4096),
        (1024, INFINITY, MAX_DESCRIPTORS),
        (1024, MAX_DESCRIPTORS, MAX_DESCRIPTORS),
        (1024, MAX_DESCRIPTORS + 1, MAX_DESCRIPTORS),
        (MAX_DESCRIPTORS + 1, MAX_DESCRIPTORS + 2, MAX_DESCRIPTORS + 1),  # an operator has raised it
        (INFINITY, INFINITY, INFINITY),
    ],
)
def test_soft_limit_is_raised_and_hard_limit_is_unchanged(soft: int, hard: int, raised: int) -> None:
    with Limits(soft, hard) as limits:
        raised_to = raise_limit()
        assert limits.both == (raised, hard)
        assert raised_to == limit() == (MAX_DESCRIPTORS if raised == INFINITY else raised)


@pytest.mark.parametrize("refusal", [OSError("not permitted"), ValueError("not allowed to raise maximum limit")])
def test_refused_raise_keeps_the_limit(refusal: Exception) -> None:
    with Limits(1024, 4096, refusal):
        assert raise_limit() == 1024


def test_connections_get_90_percent_of_many_descriptors() -> None:
    assert max_connections(MAX_DESCRIPTORS, 32) == MAX_DESCRIPTORS - MAX_DESCRIPTORS // 10
    assert max_connections(800, 32) == 720
    assert max_connections(790, 32) == 710  # 80 descriptors are kept


def test_descriptors_are_reserved_for_requests_and_the_message_log() -> None:
    assert max_connections(256, 32) == 256 - RESERVED_DESCRIPTORS - 32
    assert max_connections(1024, 200) == 1024 - RESERVED_DESCRIPTORS - 200
    assert max_connections(1024, 0) == 1024 - RESERVED_DESCRIPTORS - 100  # no limit


def test_connections_get_at_least_half_of_few_descriptors() -> None:
    assert max_connections(160, 32) == 80
    assert max_connections(64, 32) == 32
