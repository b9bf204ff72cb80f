"""The cost of the most expensive bytes compared with harmless text, and a proof that the search finds worse ones."""

from __future__ import annotations

import json
from functools import partial
from random import Random
from unittest.mock import patch

import attrs
import pytest
from msgspec import Raw

from chatrelay.relay import history
from chatrelay.wire import v1 as wire
from chatrelay.wire import v2
from chatrelay.wire.codes import Reason
from chatrelay.wire.decoding import TypeAndID
from chatrelay.wire.structs import UnusableFrame
from tests.fuzz.cost import (
    CONVERSATIONS_ASKED,
    KNOWN,
    MESSAGES,
    PIECES,
    READS,
    TEMPLATES,
    USER,
    USER_V2,
    VISITOR,
    WRAPPERS,
    Candidate,
    Meter,
    is_text,
    search,
)

MOST = 4.0
"""Times what the largest messages of harmless text cost, in v1: the most of what is known. See docs/security.rst."""

UNUSABLE = 3.0
"""Times what harmless text or the same bytes in a valid message cost: a message that can't be used."""

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def meter() -> Meter:
    return Meter()


@pytest.mark.parametrize("candidate", KNOWN, ids=str)
def test_known_expensive_bytes_cost_no_more_than_the_limit(meter: Meter, candidate: Candidate) -> None:
    assert meter.ratio(candidate) < MOST


def fillings() -> list[tuple[tuple[bytes, bytes, bytes], bytes]]:
    """Return everything that may stand in a message, valid or not: each piece inside a string and between others."""
    return [(wrapper, piece) for wrapper in WRAPPERS for piece in PIECES]


def test_unusable_message_costs_little_more_than_a_usable_one(meter: Meter, full: bool) -> None:
    """Messages that are diagnosed: a visitor's, which gets no answer, or a user's beyond the limit."""
    unusable = [TEMPLATES[7], TEMPLATES[8], TEMPLATES[9], TEMPLATES[6]]
    chosen = fillings() if full else Random(7).sample(fillings(), 30)
    for wrapper, piece in chosen:
        valid = Candidate(USER, TEMPLATES[0], wrapper, piece)
        if not is_text(valid):
            continue
        for template in unusable:
            candidate = attrs.evolve(valid, template=template, role=VISITOR)
            ratio = decoding(meter, candidate, valid)
            assert ratio < UNUSABLE or decoding(meter, candidate, valid, 15) < UNUSABLE, candidate


def decoding(meter: Meter, candidate: Candidate, valid: Candidate, times: int = 3) -> float:
    """Return the cost of a message, as a multiple of a valid or a harmless one, whichever costs more."""
    dearest = max(meter.taking(valid, times), meter.taking(candidate.harmless, times))
    return meter.taking(candidate, times) / dearest


def by_python(payload: bytes, error: Exception) -> TypeAndID:
    """Decode with Python's own decoder, with a call for each integer, as it used to be."""
    try:
        value = json.loads(payload, parse_int=lambda digits: int(digits) if len(digits) < 20 else 2**60)
    except ValueError:
        raise UnusableFrame(Reason.INVALID_JSON, "not JSON") from None
    return TypeAndID(*(Raw(json.dumps(value[name]).encode()) for name in ("type", "id")))


def test_expensive_diagnosis_is_found(meter: Meter) -> None:
    numbers = Candidate(VISITOR, TEMPLATES[7], WRAPPERS[2], b"1")
    with patch.object(wire, "type_and_id_despite", by_python):
        assert decoding(meter, numbers, attrs.evolve(numbers, template=TEMPLATES[0])) > 2 * UNUSABLE
    assert decoding(meter, numbers, attrs.evolve(numbers, template=TEMPLATES[0])) < UNUSABLE


def test_search_finds_more_expensive_bytes(meter: Meter) -> None:
    found, tried = search(meter, 3, Random(1))
    assert tried > len(KNOWN)
    assert [cost for cost, _ in found] == sorted((cost for cost, _ in found), reverse=True)
    assert found[0][0] >= meter.cost(KNOWN[0]) * 0.9


def test_answer_without_a_limit_on_its_size_is_found(meter: Meter) -> None:
    unlimited = partial(v2.conversations, size=2**30)
    with patch.object(history, "MAX_ANSWER_CONTENT", 2**30), patch.object(v2, "conversations", unlimited):
        assert meter.ratio(CONVERSATIONS_ASKED) > MOST


@pytest.mark.parametrize("template", READS[:2])
def test_each_read_of_the_log_is_measured_and_not_its_refusal(meter: Meter, template: bytes) -> None:
    assert meter.once(Candidate(USER_V2, template, size=100)) > 0
    assert meter.answered.count(b'"value":true') == MESSAGES
