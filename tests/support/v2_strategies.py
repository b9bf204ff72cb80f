"""Requests of v2 for hypothesis: many of them break one rule, or a few."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.v2 import KINDS

TEXT = st.text(max_size=70)
UIDS = st.sampled_from(["7", 7, "", "x" * 65, 2**60, None]) | TEXT
IDS = st.sampled_from(["", "0b9d-4711", "short", 5, None, "x" * 65]) | TEXT
PLACES = st.sampled_from([0, 5, -1, 2**60, 1.0, None])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
LIKE_A_REQUEST = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "SESSID": st.sampled_from(["s", ""]) | JSON,
        "after": st.sampled_from([{"epoch": "e", "n": 4}, 5]) | JSON,
        "before": PLACES,
        "resume": st.sampled_from(["r", ""]) | JSON,
        "id": IDS,
        "with": UIDS,
        "touID": UIDS,
        "of": st.lists(UIDS, max_size=3) | JSON,
        "limit": st.sampled_from([1, 50, 100, 0, 101]) | JSON,
        "received": PLACES,
        "read": PLACES,
        "again": JSON,
        "offline": st.sampled_from(["store", "reject", "Store", None]),
        "message": st.fixed_dictionaries({"timeStamp": IDS, "touID": UIDS, "content": TEXT}) | JSON,
        "x": JSON,
    },
)
